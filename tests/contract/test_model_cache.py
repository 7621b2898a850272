"""The model cache: whole and checked models, whatever the network and the gateway do."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from terafleet.agent import model_disk
from terafleet.agent.gateway import Gateway
from terafleet.agent.model_cache import ModelCache
from terafleet.agent.model_check import ModelFault, ModelReason
from terafleet.agent.model_disk import ModelDisk
from terafleet.agent.ports import RuntimeModel
from terafleet.protocol.manifest import SignedManifest
from tests.contract.agent_stage import FakeGateway, FakeModel, no_pause, until

MANY = 1 << 30
JSON = b'{"words": ["a", "b"]}'
TEXT = b"one\ntwo\n" * 4_000


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway().open() as opened:
        yield opened


@pytest.fixture
async def make_cache(
    tmp_path: Path, gateway: FakeGateway
) -> AsyncIterator[Callable[..., ModelCache]]:
    ways: list[Gateway] = []

    def make(
        model: FakeModel, bytes_max: int = MANY, changes: list[int] | None = None
    ) -> ModelCache:
        ways.append(Gateway(gateway.url))
        disk = ModelDisk(tmp_path / "models", bytes_max)
        cache = ModelCache(
            disk,
            ways[-1],
            lambda: model.manifest_key,
            no_pause,
            lambda: None if changes is None else changes.append(1),
        )
        cache.learn_address(model.model_id, model.address)
        return cache

    yield make
    for way in ways:
        await way.close()


def a_model(**files: bytes) -> FakeModel:
    return FakeModel(files or {"tokenizer.json": JSON, "vocabulary.txt": TEXT})


def offered(model: FakeModel, gateway: FakeGateway) -> FakeModel:
    model.put_on(gateway)
    return model


def reason_of(outcome: RuntimeModel | ModelFault) -> ModelReason:
    assert isinstance(outcome, ModelFault), outcome
    return outcome.reason


def folder_of(outcome: RuntimeModel | ModelFault) -> Path:
    assert isinstance(outcome, RuntimeModel), outcome
    return outcome.folder


def bodies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


Make = Callable[..., ModelCache]


async def test_a_model_comes_to_the_disk_with_the_names_of_its_manifest(
    gateway: FakeGateway, make_cache: Make
) -> None:
    model = offered(a_model(), gateway)
    changes: list[int] = []
    cache = make_cache(model, changes=changes)
    outcome = await cache.prepared(model.model_id)
    assert bodies(folder_of(outcome)) == model.files
    assert isinstance(outcome, RuntimeModel)
    assert (outcome.model_id, outcome.runtime) == (model.model_id, "noop")
    assert outcome.options == {"tokens_max": 8}
    assert cache.models() == (model.model_id,)
    assert changes == [1]


async def test_a_model_on_the_disk_needs_no_network(gateway: FakeGateway, make_cache: Make) -> None:
    model = offered(a_model(), gateway)
    await make_cache(model).prepared(model.model_id)
    asked = len(gateway.heard)
    gateway.objects.clear()
    again = make_cache(model)
    assert again.models() == (model.model_id,)
    assert bodies(folder_of(await again.prepared(model.model_id))) == model.files
    assert len(gateway.heard) == asked


@pytest.mark.parametrize("cuts", [[1_000], [0, 0, 0], [10_000, 0, 1, 0, 12_345]])
async def test_a_download_goes_on_where_it_was_cut(
    gateway: FakeGateway, make_cache: Make, cuts: list[int]
) -> None:
    model = offered(a_model(), gateway)
    path = model.file_path("vocabulary.txt")
    gateway.cuts[path] = list(cuts)
    outcome = await make_cache(model).prepared(model.model_id)
    assert bodies(folder_of(outcome)) == model.files
    ranges = [one.headers.get("range") for one in gateway.heard if one.path == path]
    came = [sum(cuts[:index]) for index in range(len(cuts) + 1)]
    assert ranges == [f"bytes={first}-" if first else None for first in came]


async def test_a_download_goes_on_after_a_restart(gateway: FakeGateway, make_cache: Make) -> None:
    model = offered(a_model(), gateway)
    path = model.file_path("vocabulary.txt")
    gateway.cuts[path] = [5_000, 0, 0, 0, 0, 0]
    assert reason_of(await make_cache(model).prepared(model.model_id)) is ModelReason.FETCH_FAILED
    outcome = await make_cache(model).prepared(model.model_id)
    assert bodies(folder_of(outcome)) == model.files
    assert gateway.heard[-1].headers["range"] == "bytes=5000-"


async def test_a_gateway_without_ranges_sends_all_again(
    gateway: FakeGateway, make_cache: Make
) -> None:
    model = offered(a_model(), gateway)
    gateway.knows_ranges = False
    gateway.cuts[model.file_path("vocabulary.txt")] = [5_000]
    outcome = await make_cache(model).prepared(model.model_id)
    assert bodies(folder_of(outcome)) == model.files


async def test_an_endless_cut_is_given_up(gateway: FakeGateway, make_cache: Make) -> None:
    model = offered(a_model(), gateway)
    gateway.cuts[model.file_path("vocabulary.txt")] = [0] * 100
    assert reason_of(await make_cache(model).prepared(model.model_id)) is ModelReason.FETCH_FAILED


async def test_wrong_bytes_are_fetched_once_more(gateway: FakeGateway, make_cache: Make) -> None:
    model = offered(a_model(), gateway)
    path = model.file_path("tokenizer.json")
    gateway.answers[path] = [(200, JSON.replace(b"a", b"x"))]
    outcome = await make_cache(model).prepared(model.model_id)
    assert bodies(folder_of(outcome)) == model.files


@pytest.mark.parametrize("wrong", [JSON.replace(b"a", b"x"), JSON + b" "])
async def test_bytes_that_stay_wrong_are_refused(
    tmp_path: Path, gateway: FakeGateway, make_cache: Make, wrong: bytes
) -> None:
    model = offered(a_model(), gateway)
    path = model.file_path("tokenizer.json")
    gateway.objects[path] = wrong
    cache = make_cache(model)
    assert reason_of(await cache.prepared(model.model_id)) is ModelReason.FILE_DIGEST_WRONG
    assert gateway.paths().count(path) == 2
    assert cache.models() == ()
    digest = model.manifest.files[0].sha256
    assert not list((tmp_path / "models" / "files").glob(f"{digest}*"))


async def test_a_foreign_signature_is_refused(gateway: FakeGateway, make_cache: Make) -> None:
    model, stranger = a_model(), a_model()
    forged = SignedManifest(model.signed.manifest, stranger.key.sign(model.signed.manifest))
    model.put_on(gateway, signed=forged)
    assert (
        reason_of(await make_cache(model).prepared(model.model_id)) is ModelReason.SIGNATURE_WRONG
    )
    assert gateway.paths() == [model.address], "nothing else was fetched"


async def test_another_models_manifest_is_refused(gateway: FakeGateway, make_cache: Make) -> None:
    model = a_model()
    other = FakeModel({"other.txt": b"x"}, key=model.key)
    model.put_on(gateway, signed=other.signed)
    outcome = await make_cache(model).prepared(model.model_id)
    assert reason_of(outcome) is ModelReason.MANIFEST_DIGEST_WRONG


@pytest.mark.parametrize(
    "name", ["../escape.txt", "sub/model.txt", ".hidden.txt", "run.py", "model.bin", "", "a.txt\n"]
)
async def test_a_signed_manifest_with_an_unsafe_name_is_refused(
    gateway: FakeGateway, make_cache: Make, name: str
) -> None:
    model = offered(FakeModel({name: b"x"}), gateway)
    outcome = await make_cache(model).prepared(model.model_id)
    assert reason_of(outcome) is ModelReason.MANIFEST_INVALID


@pytest.mark.parametrize(
    "files",
    [
        {"model.gguf": b"not a model at all"},
        {"model.onnx": b"\x80\x04\x95pickle."},
        {"model.safetensors": b"GGUF" + b"\0" * 64},
        {"tokenizer.json": b"{"},
        {"tokenizer.json": b"[" * 100_000},
        {"vocabulary.txt": b"\xff\xfe"},
    ],
)
async def test_a_signed_file_that_is_not_what_its_name_says_is_refused(
    gateway: FakeGateway, make_cache: Make, files: dict[str, bytes]
) -> None:
    model = offered(FakeModel(files, runtime="noop"), gateway)
    cache = make_cache(model)
    assert reason_of(await cache.prepared(model.model_id)) is ModelReason.FILE_REFUSED
    assert cache.models() == ()


async def test_a_file_that_changed_on_the_disk_is_fetched_again(
    gateway: FakeGateway, make_cache: Make
) -> None:
    model = offered(a_model(), gateway)
    folder = folder_of(await make_cache(model).prepared(model.model_id))
    damaged = folder / "tokenizer.json"
    damaged.write_bytes(JSON.replace(b"a", b"x"))
    again = await make_cache(model).prepared(model.model_id)
    assert bodies(folder_of(again)) == model.files


async def test_a_model_whose_names_are_gone_is_not_whole(
    gateway: FakeGateway, make_cache: Make
) -> None:
    model = offered(a_model(), gateway)
    shutil.rmtree(folder_of(await make_cache(model).prepared(model.model_id)))
    cache = make_cache(model)
    assert cache.models() == ()
    assert bodies(folder_of(await cache.prepared(model.model_id))) == model.files


async def test_those_who_want_one_model_share_one_download(
    gateway: FakeGateway, make_cache: Make
) -> None:
    model = offered(a_model(), gateway)
    cache = make_cache(model)
    outcomes = await asyncio.gather(*(cache.prepared(model.model_id) for _ in range(5)))
    assert len({str(folder_of(outcome)) for outcome in outcomes}) == 1
    assert sorted(gateway.paths()) == sorted(
        [model.address, *(model.file_path(name) for name in model.files)]
    )


async def test_a_download_ends_when_nobody_wants_it_any_more(
    gateway: FakeGateway, make_cache: Make
) -> None:
    model = offered(a_model(), gateway)
    cache = make_cache(model)
    gateway.gate.clear()
    first, second = (asyncio.create_task(cache.prepared(model.model_id)) for _ in range(2))
    await until(lambda: gateway.heard)
    first.cancel()
    await asyncio.wait({first})
    assert not second.done(), "another one still waits"
    second.cancel()
    await asyncio.wait({second})
    gateway.gate.set()
    assert bodies(folder_of(await cache.prepared(model.model_id))) == model.files
    assert gateway.paths().count(model.address) == 2


async def test_models_share_their_files(gateway: FakeGateway, make_cache: Make) -> None:
    model = offered(a_model(), gateway)
    other = FakeModel(model.files, key=model.key, name="another-model")
    offered(other, gateway)
    cache = make_cache(model)
    cache.learn_address(other.model_id, other.address)
    one, two = await asyncio.gather(cache.prepared(model.model_id), cache.prepared(other.model_id))
    assert bodies(folder_of(one)) == bodies(folder_of(two)) == model.files
    assert len(gateway.heard) == 4, "two offers, and each file once"


async def test_the_least_recently_used_model_goes_first(
    gateway: FakeGateway, make_cache: Make
) -> None:
    first = offered(FakeModel({"a.txt": b"a" * 400}), gateway)
    second = offered(FakeModel({"b.txt": b"b" * 400}, key=first.key), gateway)
    third = offered(FakeModel({"c.txt": b"c" * 400}, key=first.key), gateway)
    changes: list[int] = []
    cache = make_cache(first, bytes_max=1_000, changes=changes)
    for model in (first, second, first):
        cache.learn_address(model.model_id, model.address)
        folder_of(await cache.prepared(model.model_id))
    cache.release()
    cache.learn_address(third.model_id, third.address)
    folder_of(await cache.prepared(third.model_id))
    assert cache.models() == tuple(sorted((first.model_id, third.model_id)))
    assert make_cache(first, bytes_max=1_000).models() == cache.models()


async def test_a_model_in_use_never_goes(gateway: FakeGateway, make_cache: Make) -> None:
    first = offered(FakeModel({"a.txt": b"a" * 600}), gateway)
    second = offered(FakeModel({"b.txt": b"b" * 600}, key=first.key), gateway)
    cache = make_cache(first, bytes_max=1_000)
    folder_of(await cache.prepared(first.model_id))
    cache.learn_address(second.model_id, second.address)
    assert reason_of(await cache.prepared(second.model_id)) is ModelReason.DISK_FULL
    assert cache.models() == (first.model_id,)
    cache.release()
    folder_of(await cache.prepared(second.model_id))
    assert cache.models() == (second.model_id,)


async def test_a_model_larger_than_the_bound_is_refused(
    gateway: FakeGateway, make_cache: Make
) -> None:
    model = offered(a_model(), gateway)
    outcome = await make_cache(model, bytes_max=100).prepared(model.model_id)
    assert reason_of(outcome) is ModelReason.TOO_LARGE
    assert gateway.paths() == [model.address]


async def test_a_full_disk_is_a_named_fault(
    gateway: FakeGateway, make_cache: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = offered(a_model(), gateway)
    monkeypatch.setattr(model_disk, "DISK_BYTES_FREE_MIN", 1 << 60)
    assert reason_of(await make_cache(model).prepared(model.model_id)) is ModelReason.DISK_FULL


async def test_no_address_is_a_named_fault(gateway: FakeGateway, make_cache: Make) -> None:
    model = offered(a_model(), gateway)
    stranger = FakeModel({"b.txt": b"b"})
    assert reason_of(await make_cache(model).prepared(stranger.model_id)) is (
        ModelReason.ADDRESS_MISSING
    )


@pytest.mark.parametrize("address", ["http://elsewhere/x", "//elsewhere/x", "x", "/a b", "/\x00"])
async def test_an_address_that_leads_elsewhere_is_not_followed(
    gateway: FakeGateway, make_cache: Make, address: str
) -> None:
    model = offered(a_model(), gateway)
    cache = make_cache(model)
    cache.learn_address(model.model_id, address)
    outcome = await cache.prepared(model.model_id)
    assert reason_of(outcome) is ModelReason.FETCH_FAILED
    assert isinstance(outcome, ModelFault)
    assert outcome.detail.startswith("address_foreign")
    assert not gateway.heard


@pytest.mark.parametrize(
    ("code", "tries"), [("address_expired", 1), ("model_not_found", 1), ("overloaded", 5)]
)
async def test_a_refused_offer_is_tried_again_only_where_that_helps(
    gateway: FakeGateway, make_cache: Make, code: str, tries: int
) -> None:
    model = offered(a_model(), gateway)
    gateway.refuse(model.address, code, times=10)
    outcome = await make_cache(model).prepared(model.model_id)
    assert reason_of(outcome) is ModelReason.FETCH_FAILED
    assert isinstance(outcome, ModelFault)
    assert outcome.detail.startswith(code)
    assert len(gateway.heard) == tries
