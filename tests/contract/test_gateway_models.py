"""How a model is published and removed over HTTP, and which are refused."""

import asyncio
import hashlib
import pickle  # noqa: TID251  The files that must be refused are made with it, none is loaded.
from typing import Any

import msgspec
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec.structs import replace
from structlog.typing import EventDict

from terafleet.control.adapters.objects_memory import MemoryObjects
from terafleet.control.gateway.admin_models import WARM_SLOTS_MAX
from terafleet.core.ids import ModelId
from terafleet.core.reasons import Refused
from terafleet.protocol.admin import ModelFileView, ModelList, ModelRemoved, ModelView
from terafleet.protocol.manifest import Manifest, ManifestFile, needs_of
from terafleet.protocol.model_rules import manifest_fault
from terafleet.protocol.openai import CHAT_COMPLETIONS, EMBEDDINGS
from terafleet.protocol.shard import (
    AddModel,
    Answered,
    GetStatus,
    RemoveModel,
    WarmModel,
    WarmView,
)
from tests.contract.fake_answers import shard_status
from tests.contract.gateway_app import START_MS, Stage, code_of, decoded, serving
from tests.contract.model_bodies import (
    create,
    entry,
    manifest_of,
    mini,
    onnx_body,
    publish,
    put_files,
    safetensors_body,
)

FILES = "/admin/v1/objects/model"


async def test_a_file_is_stored_by_its_content() -> None:
    stage = Stage()
    body = bytes(range(256)) * 4_000
    sha256 = hashlib.sha256(body).hexdigest()
    async with serving(stage, stage.add_key("operator")) as client:
        assert code_of(await client.get(f"{FILES}/{sha256}")) == "not_found"
        assert (await client.head(f"{FILES}/{sha256}")).status_code == 404
        response = await client.put(f"{FILES}/{sha256}", content=body)
        assert decoded(response, ModelFileView) == ModelFileView(sha256, len(body))
        response = await client.get(f"{FILES}/{sha256}")
        assert decoded(response, ModelFileView) == ModelFileView(sha256, len(body))
        assert (await client.head(f"{FILES}/{sha256}")).status_code == 200
    assert await stage.objects.read(f"model/{sha256}") == body


async def test_a_file_with_another_digest_is_not_kept() -> None:
    stage = Stage()
    body = b"the body"
    sha256 = hashlib.sha256(body).hexdigest()
    async with serving(stage, stage.add_key("operator")) as client:
        response = await client.put(f"{FILES}/{sha256}", content=b"the body!")
        assert code_of(response) == "digest_wrong"
        assert await stage.objects.info(f"model/{sha256}") is None
        await client.put(f"{FILES}/{sha256}", content=body)
        response = await client.put(f"{FILES}/{sha256}", content=b"")
        assert code_of(response) == "digest_wrong"
        assert await stage.objects.read(f"model/{sha256}") == body
        for name in ("..", "x", sha256.upper(), f"{sha256}0", sha256[:-1]):
            response = await client.put(f"{FILES}/{name}", content=body)
            assert code_of(response) in ("invalid_value", "not_found", "method_not_allowed")


async def test_an_upload_that_breaks_off_leaves_nothing_and_is_no_fault() -> None:
    stage = Stage()
    body = bytes(1_000_000)
    sha256 = hashlib.sha256(body).hexdigest()
    secret = stage.add_key("operator")
    has_ended = asyncio.Event()

    def keep(_: object, __: str, entry: EventDict) -> EventDict:
        lines.append(entry)
        if entry["event"] == "request":
            has_ended.set()
        raise structlog.DropEvent

    lines: list[EventDict] = []
    structlog.configure(processors=[keep])
    try:
        async with serving(stage, secret) as client:
            _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            head = f"PUT {FILES}/{sha256} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:500_000])
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            await asyncio.wait_for(has_ended.wait(), 10)
    finally:
        structlog.reset_defaults()
    assert [line["event"] for line in lines] == ["request"]
    assert await stage.objects.info(f"model/{sha256}") is None


async def test_a_full_disk_is_told() -> None:
    stage = Stage(objects=MemoryObjects(bytes_max=100))
    body = bytes(200)
    path = f"{FILES}/{hashlib.sha256(body).hexdigest()}"
    async with serving(stage, stage.add_key("operator")) as client:
        assert code_of(await client.put(path, content=body)) == "storage_full"
        stage.is_storage_full = True
        assert code_of(await client.put(path, content=b"")) == "storage_full"


async def test_a_model_is_published() -> None:
    stage = Stage()
    files = {**mini(), "model.safetensors": safetensors_body(), "vocabulary.txt": b"a\nb\n"}
    async with serving(stage, stage.add_key("operator")) as client:
        view = await publish(client, files)
        assert view.manifest == manifest_of(files)
        assert view.created_ms == START_MS
        listed = decoded(await client.get("/admin/v1/models"), ModelList)
        assert listed.models == (view,)
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert model["id"] == "mini"
    row = stage.catalogue.model(view.model_id)
    assert row is not None
    assert hashlib.sha256(row.signed.manifest).hexdigest() == view.model_id
    assert msgspec.json.decode(row.signed.manifest, type=Manifest) == view.manifest
    key = Ed25519PublicKey.from_public_bytes(stage.context.manifest_key)
    key.verify(row.signed.signature, row.signed.manifest)
    (told,) = stage.shard.asked(AddModel)
    assert told.needs == needs_of(view.manifest, ModelId(view.model_id))


async def test_publishing_again_is_harmless_and_tells_the_shard_again() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        await put_files(client, mini())
        await stage.shard.bus.close()
        assert code_of(await create(client, manifest_of(mini()))) == "shard_unavailable"
        await stage.shard.start()
        stage.now_ms += 1_000
        first = decoded(await create(client, manifest_of(mini())), ModelView)
        again = decoded(await create(client, manifest_of(mini())), ModelView)
        assert again == first
        assert first.created_ms == START_MS
        assert len(decoded(await client.get("/admin/v1/models"), ModelList).models) == 1
    assert len(stage.shard.asked(AddModel)) == 2


async def test_a_taken_name_is_told() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        await publish(client, mini(0))
        await put_files(client, mini(1))
        assert code_of(await create(client, manifest_of(mini(1)))) == "model_name_taken"


async def test_a_model_is_removed_with_the_files_that_no_other_model_has() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        first = await publish(client, mini(0), "first")
        second = await publish(client, mini(1), "second")
        weights, tokenizer = (file.sha256 for file in first.manifest.files)
        removed = decoded(await client.delete(f"/admin/v1/models/{first.model_id}"), ModelRemoved)
        assert removed == ModelRemoved(first.model_id, (weights,))
        assert stage.shard.asked(RemoveModel) == [RemoveModel(ModelId(first.model_id))]
        assert await stage.objects.info(f"model/{weights}") is None
        assert await stage.objects.info(f"model/{tokenizer}") is not None
        assert decoded(await client.get("/admin/v1/models"), ModelList).models == (second,)
        await client.delete(f"/admin/v1/models/{second.model_id}")
        assert await stage.objects.info(f"model/{tokenizer}") is None
        await publish(client, mini(0), "first")


async def test_files_of_a_removed_model_stay_while_batches_are_open() -> None:
    stage = Stage()
    stage.shard.answers[GetStatus] = shard_status(batches_open=1)
    async with serving(stage, stage.add_key("operator")) as client:
        view = await publish(client, mini())
        path = f"/admin/v1/models/{view.model_id}"
        assert decoded(await client.delete(path), ModelRemoved).files_deleted == ()
        assert len(decoded(await client.get("/admin/v1/models"), ModelList).models) == 0
        assert await stage.objects.info(f"model/{view.manifest.files[0].sha256}") is not None
        stage.shard.answers[GetStatus] = shard_status(batches_open=0)
        assert len(decoded(await client.delete(path), ModelRemoved).files_deleted) == 2


async def test_an_unknown_model_is_not_found() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        for model_id in ("x", "0" * 64):
            response = await client.delete(f"/admin/v1/models/{model_id}")
            assert code_of(response) == "model_not_found"
            response = await client.put(f"/admin/v1/models/{model_id}/warm", json={"slots": 1})
            assert code_of(response) == "model_not_found"


async def test_a_model_is_kept_loaded() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        view = await publish(client, mini())
        model_id = ModelId(view.model_id)
        path = f"/admin/v1/models/{model_id}/warm"
        other = WarmView(ModelId("other"), "other", 9, 9, 9)
        warm = WarmView(model_id, "mini", 4, 3, 2)
        stage.shard.answers[GetStatus] = replace(shard_status(), warm=(other, warm))
        assert decoded(await client.put(path, json={"slots": 4}), WarmView) == warm
        assert stage.shard.asked(WarmModel) == [WarmModel(model_id, 4)]
        listed = decoded(await client.get("/admin/v1/models"), ModelList)
        assert listed == ModelList((view,), (other, warm))
        stage.shard.answers[GetStatus] = shard_status()
        ended = decoded(await client.put(path, json={"slots": 0}), WarmView)
        assert ended == WarmView(model_id, "mini", 0, 0, 0)
        for slots in (-1, WARM_SLOTS_MAX + 1):
            assert code_of(await client.put(path, json={"slots": slots})) == "invalid_value"
        for body in (b"{}", b'{"slots": "many"}', b'{"slots": 1, "cars": 1}'):
            assert (await client.put(path, content=body)).status_code == 400
        stage.shard.answers[WarmModel] = Answered(Refused.NO_FEASIBLE_VEHICLE, "too large")
        response = await client.put(path, json={"slots": 1})
        assert code_of(response) == "no_feasible_vehicle"
        assert "too large" in response.text
        await client.delete(f"/admin/v1/models/{model_id}")
        assert code_of(await client.put(path, json={"slots": 1})) == "model_not_found"
    assert len(stage.shard.asked(WarmModel)) == 3


async def test_only_operators_say_what_is_kept_loaded() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key()) as client:
        response = await client.put("/admin/v1/models/x/warm", json={"slots": 1})
        assert code_of(response) == "operator_only"


async def test_models_are_listed_also_when_the_shard_is_silent() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        view = await publish(client, mini())
        await stage.shard.bus.close()
        listed = decoded(await client.get("/admin/v1/models"), ModelList)
        assert listed == ModelList((view,), None)


WRONG_MANIFESTS: list[tuple[dict[str, Any], str]] = [
    ({"format": 2}, "manifest.format"),
    ({"name": ""}, "manifest.name"),
    ({"name": "../mini"}, "manifest.name"),
    ({"name": "a b"}, "manifest.name"),
    ({"name": "a//b"}, "manifest.name"),
    ({"name": "a" * 129}, "manifest.name"),
    ({"runtime": "torch"}, "manifest.runtime"),
    ({"runtime": "llama"}, "manifest.files"),
    ({"endpoints": ()}, "manifest.endpoints"),
    ({"endpoints": ("/v1/images",)}, "manifest.endpoints"),
    ({"endpoints": (EMBEDDINGS, EMBEDDINGS)}, "manifest.endpoints"),
    ({"memory_mb": 0}, "manifest.memory_mb"),
    ({"memory_mb": 2**40}, "manifest.memory_mb"),
    ({"options": {"Tokens": 1}}, "manifest.options"),
    ({"options": {"tokens_max": -1}}, "manifest.options"),
    ({"options": {f"option{number}": 1 for number in range(33)}}, "manifest.options"),
    ({"source": "a\nb"}, "manifest.source"),
    ({"source": "a" * 1025}, "manifest.source"),
    ({"files": ()}, "manifest.files"),
]


@pytest.mark.parametrize(("change", "param"), WRONG_MANIFESTS)
def test_a_manifest_that_is_not_sane_is_refused(change: dict[str, Any], param: str) -> None:
    fault = manifest_fault(replace(manifest_of(mini()), **change))
    assert fault is not None
    assert fault.param == param


async def test_a_fault_of_the_manifest_is_told() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        response = await create(client, replace(manifest_of(mini()), memory_mb=0))
    assert code_of(response) == "invalid_value"
    assert response.json()["error"]["param"] == "manifest.memory_mb"
    assert stage.catalogue.models() == []


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../model.onnx"},
        {"name": "/model.onnx"},
        {"name": "a/model.onnx"},
        {"name": "a\\model.onnx"},
        {"name": ".onnx"},
        {"name": "model.bin"},
        {"name": "model"},
        {"name": "TOKENIZER.json"},
        {"sha256": "0" * 63},
        {"sha256": "A" * 64},
        {"sha256": "../" + "0" * 61},
        {"size_bytes": 0},
        {"size_bytes": 2**50},
    ],
)
def test_an_entry_of_a_manifest_that_is_not_sane_is_refused(change: dict[str, Any]) -> None:
    manifest = manifest_of(mini())
    first, second = manifest.files
    files = (replace(first, **change), second)
    fault = manifest_fault(replace(manifest, files=files))
    assert fault is not None
    assert fault.param == "manifest.files"


async def test_a_file_that_is_not_what_it_must_be_is_refused() -> None:
    stage = Stage()
    onnx = onnx_body()
    async with serving(stage, stage.add_key("operator")) as client:
        for files, word in (
            ({"model.onnx": pickle.dumps({"a": 1})}, "pickle"),
            ({"model.onnx": onnx[:-6]}, "model.onnx"),
            ({"model.onnx": safetensors_body()}, "the content is safetensors"),
            ({"model.onnx": b"GGUF" + bytes(100)}, "the content is gguf"),
            ({"model.safetensors": safetensors_body()[:-1]}, "model.safetensors"),
            ({"model.onnx": onnx, "tokenizer.json": b"{"}, "JSON"),
            ({"model.onnx": onnx, "tokenizer.json": b"[" * 200_000}, "deep"),
            ({"model.onnx": onnx, "vocabulary.txt": b"\xff\xfe"}, "UTF-8"),
            ({"model.onnx": onnx, "config.json": pickle.dumps({})}, "UTF-8"),
        ):
            await put_files(client, files)
            response = await create(client, manifest_of(files))
            assert code_of(response) == "invalid_model_file"
            assert word in response.json()["error"]["message"]
    assert stage.catalogue.models() == []
    assert stage.shard.asked(AddModel) == []


async def test_a_file_that_is_missing_or_of_another_size_is_told() -> None:
    stage = Stage()
    files = mini()
    manifest = manifest_of(files)
    async with serving(stage, stage.add_key("operator")) as client:
        response = await create(client, manifest)
        assert code_of(response) == "invalid_model_file"
        assert manifest.files[0].sha256 in response.json()["error"]["message"]
        await put_files(client, files)
        longer = entry("model.onnx", files["model.onnx"])
        longer = ManifestFile(longer.name, longer.size_bytes + 1, longer.sha256)
        changed = replace(manifest, files=(longer, manifest.files[1]))
        assert code_of(await create(client, changed)) == "invalid_model_file"


async def test_a_model_for_no_runtime_needs_no_files() -> None:
    stage = Stage()
    manifest = replace(manifest_of({}, runtime="noop"), endpoints=(CHAT_COMPLETIONS, EMBEDDINGS))
    async with serving(stage, stage.add_key("operator")) as client:
        assert (await create(client, manifest)).status_code == 201
        named = replace(manifest, name="org/model-1.5_a:latest")
        assert (await create(client, named)).status_code == 201
