"""Whether the fleet could ever run a request, and why accepted work waits."""

import pytest

from terafleet.core.admission import admission_refusal, waiting_reason
from terafleet.core.capability import (
    Capability,
    CapabilityClass,
    ModelNeeds,
    capability_class,
    is_feasible,
    what_lacks,
)
from terafleet.core.ids import ModelId
from terafleet.core.reasons import Refused, Waiting

EMBEDDINGS, CHAT = "/v1/embeddings", "/v1/chat/completions"
SMALL = ModelNeeds(ModelId("s"), "small", "onnx", 500, (EMBEDDINGS,))
LARGE = ModelNeeds(ModelId("l"), "large", "onnx", 9_000, (EMBEDDINGS, CHAT))
CAR = CapabilityClass(("onnx",), 4_096, ())
BIG_CAR = CapabilityClass(("llama", "onnx"), 16_384, ())


def test_what_some_car_can_run_is_taken() -> None:
    assert admission_refusal([SMALL], EMBEDDINGS, [CAR], 3, 0) is None
    assert admission_refusal([SMALL, LARGE], EMBEDDINGS, [CAR, BIG_CAR], 3, 0) is None


@pytest.mark.parametrize(
    ("needs", "endpoint", "vehicles", "refused"),
    [
        ([SMALL, None], EMBEDDINGS, 1, Refused.MODEL_UNKNOWN),
        ([LARGE, SMALL], CHAT, 0, Refused.FLEET_EMPTY),
        ([SMALL], CHAT, 0, Refused.ENDPOINT_UNSUPPORTED),
        ([SMALL, LARGE], EMBEDDINGS, 1, Refused.NO_FEASIBLE_VEHICLE),
    ],
)
def test_the_first_reason_is_told(
    needs: list[ModelNeeds | None], endpoint: str, vehicles: int, refused: Refused
) -> None:
    found = admission_refusal(needs, endpoint, [CAR] if vehicles else [], vehicles, 0)
    assert found is not None
    assert found[0] is refused
    assert found[1]
    assert "batch" not in found[1], "live requests are told the same"


def test_a_car_that_has_not_spoken_leaves_it_open() -> None:
    assert admission_refusal([LARGE], EMBEDDINGS, [CAR], 2, 1) is None


def test_the_words_name_what_is_nearest() -> None:
    larger = CapabilityClass(("onnx",), 8_192, ())
    other = CapabilityClass(("llama",), 65_536, ())
    found = admission_refusal([LARGE], EMBEDDINGS, [CAR, larger, other], 7, 0)
    words = "no car of the fleet can run large: "
    lack = "the nearest lends 8192 MB of memory, 9000 MB are needed"
    assert found == (Refused.NO_FEASIBLE_VEHICLE, words + lack)
    found = admission_refusal([LARGE], EMBEDDINGS, [other], 7, 0)
    assert found == (Refused.NO_FEASIBLE_VEHICLE, words + "the nearest lacks the runtime onnx")


@pytest.mark.parametrize(
    ("online", "permitting", "quarantined", "waiting"),
    [
        (0, 0, 0, Waiting.NO_VEHICLE_ONLINE),
        (2, 0, 0, Waiting.ALL_VEHICLES_REFUSE),
        (2, 2, 1, Waiting.ALL_SLOTS_TAKEN),
        (2, 2, 2, Waiting.VEHICLES_QUARANTINED),
    ],
)
def test_why_work_waits(online: int, permitting: int, quarantined: int, waiting: Waiting) -> None:
    assert waiting_reason(online, permitting, quarantined) is waiting


# What a car can run.


def test_cars_that_are_alike_are_of_one_class() -> None:
    first = Capability(("onnx", "llama"), 4_100, 1, (ModelId("b"), ModelId("a")), "phone")
    second = Capability(("llama", "onnx"), 4_351, 3, (ModelId("a"), ModelId("b")), "computer")
    assert capability_class(first) == capability_class(second)
    assert capability_class(first).memory_mb == 4_096, "never more than it lends"
    smaller = Capability(("onnx", "llama"), 4_095, 1, (ModelId("a"), ModelId("b")))
    assert capability_class(smaller) != capability_class(first)


@pytest.mark.parametrize(
    ("runtimes", "memory_mb", "lack"),
    [
        (("onnx",), 500, ""),
        (("onnx",), 499, "lends 499 MB of memory, 500 MB are needed"),
        (("llama",), 5_000, "lacks the runtime onnx"),
        ((), 0, "lacks the runtime onnx"),
    ],
)
def test_what_a_car_lacks(runtimes: tuple[str, ...], memory_mb: int, lack: str) -> None:
    kind = CapabilityClass(runtimes, memory_mb, ())
    assert what_lacks(kind, SMALL) == lack
    assert is_feasible(kind, SMALL) == (not lack)
