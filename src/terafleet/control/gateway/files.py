"""Files of customers over HTTP: what a batch reads, and what it has written."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from litestar import Request, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from terafleet.control.gateway.auth import Caller, require_key
from terafleet.control.gateway.bodies import body_chunks
from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.splitting import SLICE_BYTES
from terafleet.control.gateway.stored_files import delete_file, object_name, own_file
from terafleet.control.gateway.summary import FileLook
from terafleet.control.gateway.uploads import FORM_BYTES_MAX, UploadForm, boundary_of
from terafleet.control.ports import CatalogueFull, FileRow
from terafleet.core.units import MS_PER_S
from terafleet.protocol.openai import BATCH, FILES_PATH, FileDeleted, FileList, FileObject

LIST_MAX = 10_000
"""OpenAI's own limit and default."""


def file_object(row: FileRow) -> FileObject:
    """A file as its customer reads it."""
    return FileObject(
        id=row.file_id,
        bytes=row.size_bytes,
        created_at=row.created_ms // MS_PER_S,
        filename=row.filename,
        purpose=row.purpose,
    )


@post("/", status_code=200, request_max_body_size=None)
async def create_file(
    request: Request[Any, Any, Any],
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
) -> FileObject:
    """Store a batch's input file and look at its lines while it comes."""
    if context.is_storage_full():
        raise ApiError("storage_full", "There is no room left for files.")
    form = UploadForm(boundary_of(request))
    _check_announced(request, context.limits.file_bytes_max)
    file_id = f"file-{context.new_id()}"
    look = FileLook(context.limits)
    pieces = _file_pieces(request, form, look, context.limits.file_bytes_max)
    stored = await context.objects.write(object_name(file_id), pieces)
    row = FileRow(
        file_id=file_id,
        customer_id=caller.customer_id,
        filename=form.filename,
        purpose=BATCH,
        size_bytes=stored.size_bytes,
        created_ms=context.now_ms(),
        object_name=stored.name,
        summary=msgspec.json.encode(look.summary),
    )
    try:
        context.catalogue.add_file(row)
    except CatalogueFull:
        await context.objects.delete(stored.name)
        raise
    return file_object(row)


@get("/")
async def list_files(
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
    limit: Annotated[int, QueryParameter(ge=1, le=LIST_MAX)] = LIST_MAX,
    after: FromQuery[str] = "",
    order: FromQuery[Literal["asc", "desc"]] = "desc",
    purpose: FromQuery[str] = "",
) -> FileList:
    """A page of the caller's files by time, newest first unless asked otherwise."""
    rows = context.catalogue.files(caller.customer_id, purpose, after, limit + 1, order == "asc")
    data = tuple(map(file_object, rows[:limit]))
    return FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(rows) > limit,
    )


@get("/{file_id:str}")
async def get_file(
    file_id: FromPath[str],
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
) -> FileObject:
    """One file."""
    return file_object(_find(context, caller, file_id))


@delete("/{file_id:str}", status_code=200)
async def remove_file(
    file_id: FromPath[str],
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
) -> FileDeleted:
    """Delete a file; batches that were made from it go on."""
    row = _find(context, caller, file_id)
    await delete_file(context, row)
    return FileDeleted(id=file_id)


@get("/{file_id:str}/content")
async def get_file_content(
    file_id: FromPath[str],
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
) -> Stream:
    """The bytes of a file."""
    row = _find(context, caller, file_id)
    stored = await context.objects.info(row.object_name)
    if stored is None:
        raise _not_found(file_id)
    return Stream(
        context.objects.stream(row.object_name),
        media_type="application/octet-stream",
        headers={
            "content-length": str(stored.size_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(row.filename)}",
        },
    )


files_router = Router(
    FILES_PATH,
    route_handlers=[create_file, list_files, get_file, remove_file, get_file_content],
    guards=[require_key],
    tags=["files"],
)


def _find(context: GatewayContext, caller: Caller, file_id: str) -> FileRow:
    row = own_file(context, caller.customer_id, file_id)
    if row is None:
        raise _not_found(file_id)
    return row


def _not_found(file_id: str) -> ApiError:
    return ApiError("file_not_found", f"There is no file {file_id[:64]}.", "file_id")


def _check_announced(request: Request[Any, Any, Any], bytes_max: int) -> None:
    if (request.content_length or 0) > bytes_max + FORM_BYTES_MAX:
        raise _too_large(bytes_max)


def _too_large(bytes_max: int) -> ApiError:
    message = f"A file may have {bytes_max} bytes; split it into several batches."
    return ApiError("file_too_large", message, "file")


async def _file_pieces(
    request: Request[Any, Any, Any], form: UploadForm, look: FileLook, bytes_max: int
) -> AsyncIterator[bytes]:
    """The bytes of the file in the form; raises ApiError, so that nothing is kept of a bad one.

    Between two slices the event loop has its turn.
    """
    body_bytes = file_bytes = 0
    async for piece in body_chunks(request):
        body_bytes += len(piece)
        found = form.feed(piece)
        file_bytes += len(found)
        if file_bytes > bytes_max or body_bytes > bytes_max + FORM_BYTES_MAX:
            raise _too_large(bytes_max)
        for at in range(0, len(found), SLICE_BYTES):
            look.feed(found[at : at + SLICE_BYTES])
            await asyncio.sleep(0)
        yield found
    form.end()
    look.end()
