"""What customers send wrong, and what the fleet can't do, as the official client sees it."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from terafleet.bus.credentials import OperatorKeys
from terafleet.control.app import connect_bus
from terafleet.core.ids import BatchId, CustomerId, ModelId
from terafleet.protocol.manifest import Manifest
from terafleet.protocol.shard import ENCODER, REPLY_DECODER, SHARD_SUBJECT, Answered, CreateBatch
from tests.system.fleet_stage import (
    ENDPOINT,
    MODEL,
    PARKED,
    FleetStage,
    answered,
    batch_file,
    car_settings,
    line_of,
    lines_of,
    stage,
    submit_file,
)
from tests.system.slow_encoder import add_slow_encoder, slow_file

__all__ = ["stage"]

HUGE = "huge"
LINE_BYTES_MAX = 1024 * 1024
GOOD: dict[str, Any] = {"model": MODEL, "input": "text"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetStage]:
    """A stage with one car, and with a model that is larger than any car."""
    with FleetStage(tmp_path_factory.mktemp("shared")) as made:
        made.start(cars=1)
        with made.fleet.admin() as admin:
            admin.create_model(Manifest(HUGE, "noop", (ENDPOINT,), 100_000, (), {}))
        yield made


def refusal_of(client: openai.OpenAI, body: bytes, endpoint: str = ENDPOINT) -> openai.APIError:
    """How the control plane refuses to make a batch of a file."""
    with pytest.raises(openai.APIStatusError) as refused:
        submit_file(client, body, endpoint)
    assert refused.value.status_code < 500
    return refused.value


@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        (b"", "empty_file", "no lines"),
        (b"\n\n\n", "empty_file", "no lines"),
        (b"Dear Sir,\nplease embed this.\n", "invalid_file", "JSON Lines"),
        (b'[{"custom_id": "a"},\n{"custom_id": "b"}]\n', "invalid_file", "JSON array"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)), "invalid_file", "compressed"),
        (batch_file(3) + line_of("request-1", GOOD), "duplicate_custom_id", "line 4"),
        (line_of("a", {**GOOD, "model": "nobody"}), "model_not_found", "nobody"),
        (
            line_of("a", GOOD) + line_of("b", {"model": MODEL, "prompt": "p"}, "/v1/completions"),
            "mismatched_endpoint",
            "Line 2",
        ),
        (line_of("a", {**GOOD, "input": "x" * LINE_BYTES_MAX}), "invalid_file", "longer than"),
        (line_of("a", {**GOOD, "colour": "red"}), "invalid_file", "colour"),
        (line_of("a", {**GOOD, "model": HUGE}), "no_feasible_vehicle", "100000 MB are needed"),
    ],
    ids=[
        *("empty", "blank", "letter", "array", "compressed", "twice", "unknown-model"),
        *("mixed-endpoints", "long-line", "unknown-parameter", "no-car-large-enough"),
    ],
)
def test_a_file_of_which_no_batch_can_be_made(
    shared: FleetStage, body: bytes, code: str, word: str
) -> None:
    refused = refusal_of(shared.client(retries=0), body)
    assert refused.code == code
    assert word in refused.message


def test_endpoints_that_a_batch_can_not_have(shared: FleetStage) -> None:
    client = shared.client(retries=0)
    unknown = refusal_of(client, batch_file(1), "/v1/moderations")
    assert (unknown.code, unknown.param) == ("unsupported_endpoint", "endpoint")
    other = refusal_of(client, batch_file(1), "/v1/completions")
    assert (other.code, other.param) == ("mismatched_endpoint", "endpoint")
    # The model is there, but it does not serve this.
    prompt = line_of("a", {"model": MODEL, "prompt": "p"}, "/v1/completions")
    assert refusal_of(client, prompt, "/v1/completions").code == "unsupported_endpoint"


def test_keys_that_open_nothing(shared: FleetStage) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        shared.client_with("tf-" + "A" * 43).models.list()
    assert refused.value.code == "invalid_api_key"
    with shared.fleet.admin() as admin:
        made = admin.create_key("short-lived")
        client = shared.client_with(made.secret)
        assert MODEL in [model.id for model in client.models.list()]
        admin.revoke_key(made.key.key_id)
    with pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()
    assert refused.value.code == "revoked_api_key"


def test_nobody_sees_what_others_have(shared: FleetStage) -> None:
    client, other = shared.client(retries=0), shared.client(retries=0)
    batch = shared.finish(client, shared.submit(client, 1).id)
    assert not other.batches.list().data
    assert not other.files.list().data
    for deed in (
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.files.content(batch.output_file_id),
        lambda: other.files.delete(batch.input_file_id),
        lambda: other.batches.create(
            input_file_id=batch.input_file_id, endpoint=ENDPOINT, completion_window="24h"
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            deed()
    assert answered(client, batch) == ["request-0"]


def test_lines_that_can_not_be_done_fail_alone(shared: FleetStage) -> None:
    client = shared.client()
    lines = [
        line_of("good-1", GOOD),
        b'{"custom_id": "torn", "method": "POST"\n',
        line_of("unknown model", {**GOOD, "model": "nobody"}),
        line_of("good-4", GOOD),
        line_of("long", {**GOOD, "input": "x" * LINE_BYTES_MAX}),
        line_of("colour", {**GOOD, "colour": "red"}),
        b"\xff\xfe\n",
        line_of("good-8", GOOD),
    ]
    batch = shared.finish(client, submit_file(client, b"".join(lines)).id)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (8, 3, 5)
    assert answered(client, batch) == ["good-1", "good-4", "good-8"]
    errors = [
        (line["custom_id"], line["error"]["code"], line["error"]["message"].partition(":")[0])
        for line in lines_of(client, batch.error_file_id)
    ]
    assert errors == [
        (None, "invalid_json_line", "Line 2 is not JSON in UTF-8"),
        ("unknown model", "model_not_found", "Line 3"),
        (None, "line_too_long", f"Line 5 is longer than {LINE_BYTES_MAX} bytes."),
        ("colour", "unsupported_parameter", "Line 6"),
        (None, "invalid_json_line", "Line 7 is not JSON in UTF-8"),
    ]


def test_a_batch_waits_until_an_owner_permits(stage: FleetStage) -> None:
    stage.start(cars=0)
    settings = car_settings()
    paused = {**settings, "policy": {**settings["policy"], "is_paused": True}}
    stage.add_car("car-0", paused)
    stage.until(lambda: stage.states() == ["refusing"], "the car refuses")
    client = stage.client()
    batch = stage.submit(client, 10)
    stage.until(lambda: waiting_of(client, batch.id) == "all_vehicles_refuse", "the batch waits")
    assert client.batches.retrieve(batch.id).status == "in_progress"
    shown = stage.command("vehicle", "list")
    assert "the owner has paused it" in shown.stdout

    owner_file = stage.fleet.car_folder("car-0") / "owner.toml"
    owner_file.write_text("is_paused = false\n", encoding="utf-8")
    stage.fleet.cars["car-0"].process.send_signal(signal.SIGHUP)
    batch = stage.finish(client, batch.id)
    assert batch.status == "completed"
    assert waiting_of(client, batch.id) is None
    assert len(answered(client, batch)) == 10


def test_a_cancelled_batch_delivers_what_is_done(stage: FleetStage, tmp_path: Path) -> None:
    stage.fleet.start_plane()
    add_slow_encoder(stage, tmp_path / "slow")
    stage.add_car("car-0", car_settings(slots=1, runtime="onnx"))
    stage.until(lambda: stage.states() == ["idle"], "the car is idle")
    client = stage.client()
    batch = submit_file(client, slow_file(requests=10, texts=20))
    stage.until_done(client, batch.id, 1)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = stage.finish(client, batch.id)
    assert batch.status == "cancelled"
    counts = batch.request_counts
    assert 1 <= counts.completed < 10
    assert counts.completed + counts.failed == counts.total == 10
    assert len(answered(client, batch)) == counts.completed
    errors = lines_of(client, batch.error_file_id)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    names = answered(client, batch) + [line["custom_id"] for line in errors]
    assert sorted(names) == [f"request-{number}" for number in range(10)]
    # The car is free for other work at once.
    stage.until(lambda: stage.states() == ["idle"], "the car is idle again")
    again = stage.finish(client, submit_file(client, slow_file(requests=1, texts=1)).id)
    assert again.status == "completed"


def test_a_batch_whose_window_ends_before_it_is_done(stage: FleetStage) -> None:
    stage.start(cars=0)
    stage.fleet.enrol("car-0", car_settings(), {"steps": [PARKED]})
    with stage.fleet.admin() as admin:
        key = admin.create_key("customer").key
        secret = admin.create_key("customer", customer_id=key.customer_id).secret
        model_id = ModelId(admin.models().models[0].model_id)
    client = stage.client_with(secret)
    file = client.files.create(file=("batch.jsonl", batch_file(3)), purpose="batch")
    wanted = CreateBatch(
        batch_id=BatchId("batch_short"),
        customer_id=CustomerId(key.customer_id),
        endpoint=ENDPOINT,
        model_ids=(model_id,),
        requests=3,
        # Customers get a minute at least, which is too long for a test; a shard takes any window.
        window_ms=3_000,
        input_file_id=file.id,
        metadata=b"",
    )
    asyncio.run(ask_shard(stage, wanted))
    stage.until(lambda: waiting_of(client, "batch_short") == "no_vehicle_online", "it waits")
    batch = stage.finish(client, "batch_short")
    assert batch.status == "expired"
    assert batch.expired_at - batch.created_at in (3, 4)
    assert batch.output_file_id is None
    errors = lines_of(client, batch.error_file_id)
    assert [line["custom_id"] for line in errors] == ["request-0", "request-1", "request-2"]
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}


def waiting_of(client: openai.OpenAI, batch_id: str) -> str | None:
    """Why a batch waits: a field of ours, which the client hands on as it came."""
    batch: Any = client.batches.retrieve(batch_id)
    waiting: str | None = batch.terafleet["waiting"]
    return waiting


async def ask_shard(stage: FleetStage, question: CreateBatch) -> None:
    """Ask as a gateway does."""
    keys = OperatorKeys.load(stage.fleet.data / "bus" / "operator.keys")
    bus = await connect_bus([f"nats://127.0.0.1:{stage.fleet.bus_port}"], keys, "test")
    try:
        body = await bus.request(SHARD_SUBJECT, ENCODER.encode(question), 10_000)
        assert REPLY_DECODER.decode(body) == Answered()
    finally:
        await bus.close()
