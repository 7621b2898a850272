"""Batches over HTTP: decides at once whether one can be made, and tells how it goes."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from terafleet.control.gateway.auth import Caller, require_key
from terafleet.control.gateway.batch_request import read_batch_create
from terafleet.control.gateway.context import GatewayContext, ShardUnavailable
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.served_models import served_model
from terafleet.control.gateway.stored_files import own_file
from terafleet.control.gateway.summary import MODELS_MAX, SUMMARY_DECODER, FileSummary
from terafleet.core.ids import BatchId, CustomerId, ModelId
from terafleet.core.units import MS_PER_S
from terafleet.core.work import BatchState
from terafleet.protocol.openai import (
    BATCH,
    BATCHES_PATH,
    BatchCreate,
    BatchErrors,
    BatchList,
    BatchObject,
    BatchProgress,
    BatchRequestCounts,
    BatchUsage,
    completion_window,
    window_ms,
)
from terafleet.protocol.shard import (
    Answered,
    BatchView,
    CancelBatch,
    CreateBatch,
    GetBatch,
    ListBatches,
)
from terafleet.protocol.shard import BatchList as BatchViews

LIST_MAX = 100
LIST_DEFAULT = 20
"""OpenAI's own limit and default."""

ERRORS_TOLD = 3


def batch_object(view: BatchView) -> BatchObject:
    """A batch as its customer reads it."""
    ended_at = _seconds(view.ended_ms)
    state = view.state
    return BatchObject(
        id=view.batch_id,
        endpoint=view.endpoint,
        input_file_id=view.input_file_id,
        completion_window=completion_window(view.expires_ms - view.created_ms),
        status=state.value,
        created_at=view.created_ms // MS_PER_S,
        request_counts=BatchRequestCounts(
            total=view.requests, completed=view.requests_completed, failed=view.requests_failed
        ),
        terafleet=BatchProgress(
            waiting=view.waiting, units=view.units, units_ended=view.units_ended
        ),
        errors=msgspec.json.decode(view.errors, type=BatchErrors) if view.errors else None,
        output_file_id=view.output_file_id or None,
        error_file_id=view.error_file_id or None,
        in_progress_at=_seconds(view.in_progress_ms),
        expires_at=_seconds(view.expires_ms),
        finalizing_at=_seconds(view.finalizing_ms),
        completed_at=ended_at if state is BatchState.COMPLETED else None,
        failed_at=ended_at if state is BatchState.FAILED else None,
        expired_at=ended_at if state is BatchState.EXPIRED else None,
        cancelling_at=_seconds(view.cancelling_ms),
        cancelled_at=ended_at if state is BatchState.CANCELLED else None,
        metadata=msgspec.json.decode(view.metadata) if view.metadata else None,
        usage=BatchUsage(
            input_tokens=view.prompt_tokens,
            output_tokens=view.completion_tokens,
            total_tokens=view.prompt_tokens + view.completion_tokens,
        ),
    )


@post("/", status_code=200)
async def create_batch(
    request: Request[Any, Any, Any],
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
) -> BatchObject:
    """Make a batch of an input file, or say at once why not."""
    wanted = read_batch_create(await request.body())
    row = own_file(context, caller.customer_id, wanted.input_file_id)
    if row is None:
        shown = wanted.input_file_id[:64]
        raise ApiError("file_not_found", f"There is no file {shown}.", "input_file_id")
    if row.purpose != BATCH:
        message = f"A batch reads files of the purpose {BATCH}; this one is {row.purpose}."
        raise ApiError("unsupported_purpose", message, "input_file_id")
    summary = SUMMARY_DECODER.decode(row.summary)
    check_summary(summary, wanted.endpoint)
    model_ids = served_models(context, summary, wanted.endpoint)
    if context.is_storage_full():
        raise ApiError("storage_full", "There is no room left for the results of a batch.")
    question = _question(context, caller, wanted, summary.requests, model_ids)
    await context.ask(question, Answered)
    return batch_object(await _created_view(context, question))


@get("/")
async def list_batches(
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
    after: FromQuery[str] = "",
    limit: Annotated[int, QueryParameter(ge=1, le=LIST_MAX)] = LIST_DEFAULT,
) -> BatchList:
    """A page of the caller's batches, newest first."""
    question = ListBatches(CustomerId(caller.customer_id), after, limit)
    views = await context.ask(question, BatchViews)
    data = tuple(map(batch_object, views.batches))
    return BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=views.has_more,
    )


@get("/{batch_id:str}")
async def get_batch(
    batch_id: FromPath[str],
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
) -> BatchObject:
    """One batch."""
    question = GetBatch(BatchId(batch_id), CustomerId(caller.customer_id))
    return batch_object(await context.ask(question, BatchView))


@post("/{batch_id:str}/cancel", status_code=200)
async def cancel_batch(
    batch_id: FromPath[str],
    caller: NamedDependency[Caller],
    context: NamedDependency[GatewayContext],
) -> BatchObject:
    """Do no more of a batch; what is done is still written."""
    question = GetBatch(BatchId(batch_id), CustomerId(caller.customer_id))
    # Asked before, so that a batch that is not there is told apart from one that has ended.
    await context.ask(question, BatchView)
    await context.ask(CancelBatch(question.batch_id, question.customer_id), Answered)
    return batch_object(await context.ask(question, BatchView))


batches_router = Router(
    BATCHES_PATH,
    route_handlers=[create_batch, list_batches, get_batch, cancel_batch],
    guards=[require_key],
    tags=["batches"],
)


def check_summary(summary: FileSummary, endpoint: str) -> None:
    """Raise ApiError if no batch for this endpoint can be made of a file that looks like this."""
    for seen in summary.endpoints:
        if seen.endpoint != endpoint:
            message = (
                f"Line {seen.first_line} asks for {seen.endpoint}, the batch for {endpoint}; "
                "all lines of a batch ask for its endpoint."
            )
            raise ApiError("mismatched_endpoint", message, "endpoint")
    if summary.duplicates:
        first = summary.duplicates[0]
        message = (
            f"The custom_id {first.custom_id} is in line {first.first_line} "
            f"and in line {first.second_line}; each must be there once."
        )
        raise ApiError("duplicate_custom_id", message, "input_file_id")
    if summary.refused == summary.requests:
        told = " ".join(error.message for error in summary.errors[:ERRORS_TOLD])
        message = f"No line of the file can be done. {told}"
        raise ApiError("invalid_file", message, "input_file_id")
    if len(summary.models) > MODELS_MAX:
        message = f"A batch may use {MODELS_MAX} models; split the file by model."
        raise ApiError("invalid_file", message, "input_file_id")


def served_models(
    context: GatewayContext, summary: FileSummary, endpoint: str
) -> tuple[ModelId, ...]:
    """The models that the lines use; raises ApiError if there is none, not if some are missing."""
    found = [served_model(context.catalogue, seen.name, endpoint) for seen in summary.models]
    model_ids = tuple(model_id for model_id in found if isinstance(model_id, str))
    if not model_ids:
        unserved = found[0]
        assert not isinstance(unserved, str)
        line = summary.models[0].first_line
        raise ApiError(unserved.code, f"{unserved.message} Line {line} asks for it.", "model")
    return model_ids


def _seconds(at_ms: int) -> int | None:
    return at_ms // MS_PER_S if at_ms else None


def _question(
    context: GatewayContext,
    caller: Caller,
    wanted: BatchCreate,
    requests: int,
    model_ids: tuple[ModelId, ...],
) -> CreateBatch:
    length_ms = window_ms(wanted.completion_window)
    assert length_ms is not None, "the body has been checked"
    metadata = b"" if wanted.metadata is None else msgspec.json.encode(wanted.metadata)
    return CreateBatch(
        batch_id=BatchId(f"batch_{context.new_id()}"),
        customer_id=CustomerId(caller.customer_id),
        endpoint=wanted.endpoint,
        model_ids=model_ids,
        requests=requests,
        window_ms=length_ms,
        input_file_id=wanted.input_file_id,
        metadata=metadata,
    )


async def _created_view(context: GatewayContext, created: CreateBatch) -> BatchView:
    """How an admitted batch stands; if the shard falls silent right then, as it began.

    An error in its place would make clients ask again and get a second batch.
    """
    try:
        return await context.ask(GetBatch(created.batch_id, created.customer_id), BatchView)
    except ShardUnavailable:
        now_ms = context.now_ms()
        return BatchView(
            batch_id=created.batch_id,
            customer_id=created.customer_id,
            endpoint=created.endpoint,
            input_file_id=created.input_file_id,
            state=BatchState.VALIDATING,
            created_ms=now_ms,
            in_progress_ms=0,
            finalizing_ms=0,
            ended_ms=0,
            cancelling_ms=0,
            expires_ms=now_ms + created.window_ms,
            requests=created.requests,
            requests_completed=0,
            requests_failed=0,
            units=0,
            units_ended=0,
            waiting=None,
            output_file_id="",
            error_file_id="",
            errors=b"",
            metadata=created.metadata,
            prompt_tokens=0,
            completion_tokens=0,
        )
