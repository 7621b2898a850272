"""Keeps customers' files and lets go of them; a deleted file lives on while a batch needs it.

A batch is cut some time after it was admitted and needs its input file until then. A file that is
deleted before leaves a row behind under another id, which no customer sees; when the batch is cut,
the gateway that did it removes file and row.
"""

import msgspec

from terafleet.control.gateway.context import GatewayContext
from terafleet.control.ports import FileRow
from terafleet.core.ids import BatchId, CustomerId
from terafleet.core.units import MS_PER_HOUR
from terafleet.core.work import BatchState
from terafleet.protocol.openai import BATCH, WINDOW_MS_MAX
from terafleet.protocol.shard import BatchList, ListBatches

DELETED = "deleted"
PAGE = 100


def object_name(file_id: str) -> str:
    """Where the bytes of a file lie among the objects."""
    return f"file/{file_id}"


def own_file(context: GatewayContext, customer_id: str, file_id: str) -> FileRow | None:
    """A customer's file; None for what is not there and for what belongs to somebody else."""
    row = context.catalogue.file(file_id)
    return row if row is not None and row.customer_id == customer_id else None


async def delete_file(context: GatewayContext, row: FileRow) -> None:
    """Delete a customer's file; its bytes stay as long as a batch still has to be cut from them.

    Raises ShardUnavailable; then nothing is changed.
    """
    is_needed = row.purpose == BATCH and await _awaits_cut(context, row, BatchId(""))
    if is_needed:
        kept = _kept_row(row)
        if context.catalogue.file(kept.file_id) is None:
            context.catalogue.add_file(kept)
    else:
        await context.objects.delete(row.object_name)
    context.catalogue.delete_file(row.file_id)


async def let_go(context: GatewayContext, file_id: str, cut_batch_id: BatchId) -> None:
    """A batch has been cut: remove its input file, if that was deleted and no other needs it.

    Raises ShardUnavailable.
    """
    kept = context.catalogue.file(_kept_id(file_id))
    if kept is None:
        return
    original = msgspec.structs.replace(
        kept, file_id=file_id, customer_id=kept.customer_id.removeprefix(f"{DELETED}:")
    )
    if not await _awaits_cut(context, original, cut_batch_id):
        await context.objects.delete(kept.object_name)
        context.catalogue.delete_file(kept.file_id)


def _kept_id(file_id: str) -> str:
    return f"{DELETED}-{file_id}"


def _kept_row(row: FileRow) -> FileRow:
    return msgspec.structs.replace(
        row,
        file_id=_kept_id(row.file_id),
        customer_id=f"{DELETED}:{row.customer_id}",
        purpose=DELETED,
    )


async def _awaits_cut(context: GatewayContext, row: FileRow, except_id: BatchId) -> bool:
    """Whether a batch of this file, other than `except_id`, is admitted and not yet cut.

    Looks only as far back as such a batch can be; older ones have expired.
    """
    oldest_ms = context.now_ms() - WINDOW_MS_MAX - MS_PER_HOUR
    customer_id, after = CustomerId(row.customer_id), ""
    while True:
        page = await context.ask(ListBatches(customer_id, after, PAGE), BatchList)
        for batch in page.batches:
            is_of_file = batch.input_file_id == row.file_id and batch.batch_id != except_id
            if is_of_file and batch.state is BatchState.VALIDATING:
                return True
        if not page.has_more or page.batches[-1].created_ms < oldest_ms:
            return False
        after = page.batches[-1].batch_id
