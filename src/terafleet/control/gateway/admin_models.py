"""What operators do with models over HTTP: store their files, publish, list, remove."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
from litestar import Request, delete, get, head, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from terafleet.control.gateway.bodies import body_chunks
from terafleet.control.gateway.context import GatewayContext, ShardRefused, ShardUnavailable
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.health import shard_status
from terafleet.control.gateway.model_check import file_fault
from terafleet.control.ports import ModelRow
from terafleet.core.ids import ModelId
from terafleet.protocol.admin import (
    MODEL_FILES_PATH,
    MODELS_PATH,
    ModelCreate,
    ModelFileView,
    ModelList,
    ModelRemoved,
    ModelView,
    ModelWarm,
)
from terafleet.protocol.manifest import (
    Manifest,
    ManifestFile,
    manifest_bytes,
    model_id_of,
    needs_of,
    object_name,
)
from terafleet.protocol.model_rules import FILE_BYTES_MAX, manifest_fault
from terafleet.protocol.shard import AddModel, Answered, RemoveModel, WarmModel, WarmView

MODELS_LOCK_KEY = "models_lock"
"""Where the application keeps the lock that model changes take one after the other."""

WARM_SLOTS_MAX = 1_000_000
"""More slots than any fleet of one shard has."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANIFEST = msgspec.json.Decoder(Manifest)
_FILE_ROUTE = f"{MODEL_FILES_PATH}/{{sha256:str}}"


@put(_FILE_ROUTE, status_code=200, request_max_body_size=FILE_BYTES_MAX)
async def put_model_file(
    sha256: FromPath[str], request: Request[Any, Any, Any], context: NamedDependency[GatewayContext]
) -> ModelFileView:
    """Store a file of models, the body as it is; its SHA-256 must be the one in the address."""
    name = _object_name(sha256)
    if context.is_storage_full():
        raise ApiError("storage_full", "There is no room for new models.")
    info = await context.objects.write(name, _with_digest(body_chunks(request), sha256))
    return ModelFileView(sha256, info.size_bytes)


@get(_FILE_ROUTE)
async def get_model_file(
    sha256: FromPath[str], context: NamedDependency[GatewayContext]
) -> ModelFileView:
    """Whether a file of models is stored, and its size."""
    info = await context.objects.info(_object_name(sha256))
    if info is None:
        raise ApiError("not_found", "This file is not stored.", "sha256")
    return ModelFileView(sha256, info.size_bytes)


@head(_FILE_ROUTE)
async def head_model_file(sha256: FromPath[str], context: NamedDependency[GatewayContext]) -> None:
    """Whether a file of models is stored."""
    if await context.objects.info(_object_name(sha256)) is None:
        raise ApiError("not_found", "This file is not stored.", "sha256")


@post(MODELS_PATH)
async def create_model(
    data: JSONBody[ModelCreate],
    request: Request[Any, Any, Any],
    context: NamedDependency[GatewayContext],
) -> ModelView:
    """Publish a model: check its manifest and files, sign it, and tell the fleet."""
    manifest = data.manifest
    fault = manifest_fault(manifest)
    if fault is not None:
        raise ApiError("invalid_value", fault.message, fault.param)
    async with _models_lock(request):
        for file in manifest.files:
            await _check_file(file, context)
        signed = context.sign_manifest(manifest_bytes(manifest))
        model_id = model_id_of(signed.manifest)
        row = ModelRow(model_id, manifest.name, signed, context.now_ms())
        code = context.catalogue.add_model(row)
        if code is not None:
            message = f"The name {manifest.name} belongs to another model; remove that first."
            raise ApiError(code, message, "manifest.name")
        await context.ask(AddModel(needs_of(manifest, model_id)), Answered)
    known = context.catalogue.model(model_id)
    return _model_view(known or row)


@get(MODELS_PATH)
async def list_models(context: NamedDependency[GatewayContext]) -> ModelList:
    """The models that are not removed, oldest first."""
    models = tuple(_model_view(row) for row in _present(context.catalogue.models()))
    try:
        return ModelList(models, (await shard_status(context)).warm)
    except (ShardUnavailable, ShardRefused):
        return ModelList(models, None)


@put(f"{MODELS_PATH}/{{model_id:str}}/warm", status_code=200)
async def warm_model(
    model_id: FromPath[str],
    data: JSONBody[ModelWarm],
    context: NamedDependency[GatewayContext],
) -> WarmView:
    """Keep a model in memory in so many slots of the fleet, whoever comes and goes; 0 ends that."""
    row = context.catalogue.model(model_id)
    if row is None or row.removed_ms:
        raise ApiError("model_not_found", "There is no such model.", "model_id")
    if not 0 <= data.slots <= WARM_SLOTS_MAX:
        message = f"A model can stay in memory in 0 to {WARM_SLOTS_MAX} slots."
        raise ApiError("invalid_value", message, "slots")
    await context.ask(WarmModel(ModelId(model_id), data.slots), Answered)
    warm = (await shard_status(context)).warm
    nowhere = WarmView(ModelId(model_id), row.name, 0, 0, 0)
    return next((one for one in warm if one.model_id == model_id), nowhere)


@delete(f"{MODELS_PATH}/{{model_id:str}}", status_code=200)
async def remove_model(
    model_id: FromPath[str],
    request: Request[Any, Any, Any],
    context: NamedDependency[GatewayContext],
) -> ModelRemoved:
    """Remove a model; accepted work on it goes on.

    Files that no model needs are deleted, unless batches are open: the work of these may need them
    still, and removing the model once more deletes them later.
    """
    async with _models_lock(request):
        row = context.catalogue.model(model_id)
        if row is None:
            raise ApiError("model_not_found", "There is no such model.", "model_id")
        context.catalogue.remove_model(model_id, context.now_ms())
        await context.ask(RemoveModel(ModelId(model_id)), Answered)
        deleted: tuple[str, ...] = ()
        if (await shard_status(context)).batches_open == 0:
            deleted = await _delete_unused(row, context)
    return ModelRemoved(model_id, deleted)


MODEL_ROUTES = (
    put_model_file,
    get_model_file,
    head_model_file,
    create_model,
    list_models,
    warm_model,
    remove_model,
)


def _models_lock(request: Request[Any, Any, Any]) -> asyncio.Lock:
    lock = request.app.state[MODELS_LOCK_KEY]
    assert isinstance(lock, asyncio.Lock)
    return lock


def _object_name(sha256: str) -> str:
    if _SHA256.fullmatch(sha256) is None:
        message = "A file's SHA-256 has 64 hex digits in lower case."
        raise ApiError("invalid_value", message, "sha256")
    return f"model/{sha256}"


async def _with_digest(chunks: AsyncIterator[bytes], sha256: str) -> AsyncIterator[bytes]:
    """The same bytes. Raises ApiError behind the last of them if their digest is another."""
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        message = f"The body has the SHA-256 {digest.hexdigest()}; nothing was stored."
        raise ApiError("digest_wrong", message, "sha256")


async def _check_file(file: ManifestFile, context: GatewayContext) -> None:
    """Raise ApiError unless a file is stored, has its size, and is what its name says."""
    info = await context.objects.info(object_name(file))
    fault: str | None
    if info is None:
        fault = f"{file.name}: the file is not stored; put it to {MODEL_FILES_PATH}/{file.sha256}"
    elif info.size_bytes != file.size_bytes or info.sha256 != file.sha256:
        fault = f"{file.name}: the file has {info.size_bytes} bytes, not {file.size_bytes}"
    else:
        fault = await asyncio.to_thread(file_fault, file, context.objects.read_now)
    if fault is not None:
        raise ApiError("invalid_model_file", fault, "manifest.files")


async def _delete_unused(removed: ModelRow, context: GatewayContext) -> tuple[str, ...]:
    """Delete the files of a removed model that no other model has."""
    used = {
        file.sha256 for row in _present(context.catalogue.models()) for file in _manifest(row).files
    }
    unused = [file for file in _manifest(removed).files if file.sha256 not in used]
    deleted = [file.sha256 for file in unused if await context.objects.delete(object_name(file))]
    return tuple(deleted)


def _present(rows: Iterable[ModelRow]) -> list[ModelRow]:
    return [row for row in rows if not row.removed_ms]


def _manifest(row: ModelRow) -> Manifest:
    return _MANIFEST.decode(row.signed.manifest)


def _model_view(row: ModelRow) -> ModelView:
    return ModelView(row.model_id, _manifest(row), row.created_ms)
