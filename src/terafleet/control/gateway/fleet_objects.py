"""Serves and takes large blobs of cars at signed addresses, in pieces and with HTTP ranges."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from litestar import Request, Response, get, put
from litestar.di import NamedDependency
from litestar.params import FromQuery
from litestar.response import Stream

from terafleet.control.gateway.bodies import body_chunks
from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.ranges import ByteRange, RangeUnsatisfiable, requested_range
from terafleet.control.object_names import is_object_name
from terafleet.control.ports import ModelRow, ObjectInfo, ObjectMissing
from terafleet.core.ids import BatchId, input_name
from terafleet.core.units import MS_PER_S
from terafleet.protocol.addresses import Method, address_fault, folder_fault, sign_address
from terafleet.protocol.fleet_http import OBJECTS_PATH, object_path
from terafleet.protocol.manifest import Manifest, object_name

OBJECT_BYTES_MAX = 64 * 1024 * 1024
"""The largest output of a work unit; a unit's 512 embeddings are a tenth of it."""

_NUMBER = "[1-9][0-9]{0,18}"
_OUTPUT = re.compile(
    rf"out/(batch_[0-9a-z]{{1,64}})/veh-[a-z]{{1,64}}/{_NUMBER}-{_NUMBER}"
).fullmatch
_PUTTING: "WeakValueDictionary[str, asyncio.Lock]" = WeakValueDictionary()
WHOLE_BYTES_MAX = 256 * 1024
"""Up to this size an answer is made in one piece."""

_MANIFEST = msgspec.json.Decoder(Manifest)
_OBJECT_ROUTE = f"{OBJECTS_PATH}/{{name:path}}"


@get(_OBJECT_ROUTE, media_type="application/octet-stream")
async def get_object(
    request: Request[Any, Any, Any],
    context: NamedDependency[GatewayContext],
    offset: FromQuery[int] = 0,
    length: FromQuery[int] = -1,
) -> Response[Any]:
    """An object's bytes, or a part of them (HTTP ranges work); the address must be signed."""
    check_address(request, context, "GET")
    info = await _stored(request, context)
    available = max(0, info.size_bytes - offset)
    size_bytes = available if length < 0 else min(length, available)
    etag = f'"{info.sha256}.{offset}.{length}"'
    headers = {"etag": etag, "accept-ranges": "bytes", "cache-control": "private"}
    wanted = _wanted(request, etag, size_bytes)
    if isinstance(wanted, RangeUnsatisfiable):
        headers["content-range"] = f"bytes */{size_bytes}"
        message = f"There are only {size_bytes} bytes."
        raise ApiError("range_unsatisfiable", message, headers=headers)
    status = 200
    if wanted is None:
        wanted = ByteRange(0, size_bytes)
    else:
        status = 206
        last = wanted.offset + wanted.length - 1
        headers["content-range"] = f"bytes {wanted.offset}-{last}/{size_bytes}"
    part = ByteRange(offset + wanted.offset, wanted.length)
    return await _answer(info.name, part, context, headers, status)


@put(_OBJECT_ROUTE, status_code=204, request_max_body_size=OBJECT_BYTES_MAX)
async def put_object(
    request: Request[Any, Any, Any], context: NamedDependency[GatewayContext]
) -> None:
    """Store an attempt's output, once; the folder's address must be signed.

    What is there already stays as it is: it may have been verified. A batch that has ended takes
    nothing more, or it would lie there for ever.
    """
    check_address(request, context, "PUT", folder_fault)
    name = _name(request)
    found = _OUTPUT(name)
    if found is None:
        raise ApiError("signature_wrong", "Nothing can be put to this address.")
    batch_id = BatchId(found[1])
    # One at a time, or two that overlap would both find the place empty.
    async with _PUTTING.setdefault(name, asyncio.Lock()):
        await _check_open(context, batch_id)
        if await context.objects.info(name) is not None:
            return
        await context.objects.write(name, body_chunks(request))
        try:
            await _check_open(context, batch_id)
        except ApiError:
            await context.objects.delete(name)
            raise


async def _check_open(context: GatewayContext, batch_id: BatchId) -> None:
    """Raise ApiError if a batch has ended: its input lies there as long as it has not."""
    if await context.objects.info(input_name(batch_id)) is None:
        raise ApiError("batch_ended", "The batch of this output has ended.")


OBJECT_ROUTES = (get_object, put_object)


def check_address(
    request: Request[Any, Any, Any],
    context: GatewayContext,
    method: Method,
    fault_of: Callable[[bytes, Method, str, int], str | None] = address_fault,
) -> None:
    """Raise ApiError unless the address, exactly as it was sent, bears our signature."""
    raw_path = request.scope["raw_path"].decode("latin-1")
    query = request.scope["query_string"].decode("latin-1")
    now_s = context.now_ms() // MS_PER_S
    code = fault_of(context.address_secret, method, f"{raw_path}?{query}", now_s)
    if code == "address_expired":
        raise ApiError(code, "This address was good for a while and has expired.")
    if code is not None:
        raise ApiError(code, "This address is not signed, or was changed.")


def signed_files(row: ModelRow, context: GatewayContext) -> dict[str, str]:
    """A signed address for each file of a model, by the file's name."""
    expires_s = context.now_ms() // MS_PER_S + context.limits.address_valid_s
    return {
        file.name: sign_address(
            context.address_secret, "GET", object_path(object_name(file)), expires_s
        )
        for file in _MANIFEST.decode(row.signed.manifest).files
    }


def model_of(model_id: str, context: GatewayContext) -> ModelRow:
    """A model, also a removed one: accepted work on it goes on. Raises ApiError."""
    row = context.catalogue.model(model_id)
    if row is None:
        raise ApiError("model_not_found", "There is no such model.", "model_id")
    return row


def _name(request: Request[Any, Any, Any]) -> str:
    """The name in the address as it was sent and signed; litestar would tidy it up first."""
    return request.scope["raw_path"].decode("latin-1").removeprefix(f"{OBJECTS_PATH}/")


async def _stored(request: Request[Any, Any, Any], context: GatewayContext) -> ObjectInfo:
    name = _name(request)
    info = await context.objects.info(name) if is_object_name(name) else None
    if info is None:
        raise _missing()
    return info


def _wanted(
    request: Request[Any, Any, Any], etag: str, size_bytes: int
) -> ByteRange | RangeUnsatisfiable | None:
    header = request.headers.get("range", "")
    # Bytes of something else than the client has already are of no use to it.
    if not header or request.headers.get("if-range", etag) != etag:
        return None
    return requested_range(header, size_bytes)


async def _answer(
    name: str, part: ByteRange, context: GatewayContext, headers: dict[str, str], status: int
) -> Response[Any]:
    """The answer with these bytes. Raises ApiError when the object is gone meanwhile."""
    media_type = "application/octet-stream"
    if part.length <= WHOLE_BYTES_MAX:
        try:
            body = await context.objects.read(name, part.offset, part.length)
        except ObjectMissing as error:
            raise _missing() from error
        return Response(body, headers=headers, status_code=status, media_type=media_type)
    pieces = context.objects.stream(name, part.offset, part.length)
    try:
        first = await anext(pieces)
    except ObjectMissing as error:
        raise _missing() from error
    headers["content-length"] = str(part.length)
    stream = _joined(first, pieces)
    return Stream(stream, headers=headers, status_code=status, media_type=media_type)


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _missing() -> ApiError:
    return ApiError("not_found", "There is no such object.")
