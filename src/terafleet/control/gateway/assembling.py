"""Assembles a batch: writes its output and error files from the outputs of its work units.

Every request of the plan, and every refused line, gets exactly one line in exactly one of the
two files, whatever the cars have handed in.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from http import HTTPStatus
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from terafleet.control.gateway.context import GatewayContext, ShardRefused
from terafleet.control.gateway.lines import RefusedLine
from terafleet.control.gateway.plan import PlannedLines, plan_name, read_lines_of_plan
from terafleet.control.gateway.splitting import Line, LineSplitter, read_lines
from terafleet.control.gateway.stored_files import let_go, object_name
from terafleet.control.ports import FileRow, ObjectMissing
from terafleet.core.ids import (
    BatchId,
    batch_outputs_folder,
    input_name,
    large_output_name,
    vehicle_outputs_folder,
)
from terafleet.core.reasons import Refused, UnitEnding
from terafleet.protocol.openai import BATCH_OUTPUT, BatchResponse, BatchResultLine, RequestError
from terafleet.protocol.shard import (
    Answered,
    Assemble,
    BatchFilesWritten,
    Forget,
    GetOutputs,
    Outcome,
    Outputs,
)

OUTPUTS_ASKED = 64
"""How many outputs are asked for at once; the shard answers with as many as fit."""

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""No answer to one request is longer: 2,048 embeddings of 2,048 numbers each are 50 MB."""

REFUSED_IN_PIECE = 512

OUTPUT_DAMAGED = "output_damaged"
"""The code for a request whose answer is not there or is no answer."""

WORDS: dict[str, str] = {
    UnitEnding.BATCH_EXPIRED: "The batch expired before this request was done.",
    UnitEnding.BATCH_CANCELLED: "The batch was cancelled before this request was done.",
    UnitEnding.FAILED_ON_SEVERAL_VEHICLES: "Several vehicles tried this request and failed.",
    UnitEnding.FAILED_TOO_OFTEN: "This request was tried too often without a result.",
    OUTPUT_DAMAGED: "The answer to this request was damaged or incomplete.",
}

_OVER = frozenset({Refused.BATCH_UNKNOWN, Refused.BATCH_ENDED})


async def handle_assemble(context: GatewayContext, work: Assemble) -> None:
    """Write a batch's files and answer with `BatchFilesWritten`; a file without lines is not made.

    Safe to do twice: the same files come out under the same ids. Raises ShardUnavailable,
    ShardRefused, ObjectsFull, CatalogueFull; then it is to be done again.
    """
    output_id, error_id = _file_id(work.batch_id, "output"), _file_id(work.batch_id, "errors")
    plan = await read_lines_of_plan(context.objects, work.batch_id)
    if plan is None:
        # Either the files were written before and the plan is forgotten, or the plan is lost.
        output_id, error_id = _known_id(context, output_id), _known_id(context, error_id)
        if not output_id and not error_id and work.outcomes:
            error_id = _file_id(work.batch_id, "errors")
            error_id = await _write_file(context, work, error_id, _line_of_lost_plan(work))
    else:
        assembly = Assembly(context, work, plan)
        output_id = await _write_file(context, work, output_id, assembly.output_pieces())
        error_id = await _write_file(context, work, error_id, assembly.error_pieces())
    try:
        await context.ask(BatchFilesWritten(work.batch_id, output_id, error_id), Answered)
    except ShardRefused as refusal:
        if refusal.answered.refused not in _OVER:
            raise


async def handle_forget(context: GatewayContext, work: Forget) -> None:
    """Remove what was stored for a batch's units; its files stay. Safe to do twice."""
    await context.objects.delete_folder(batch_outputs_folder(work.batch_id))
    await context.objects.delete(input_name(work.batch_id))
    await context.objects.delete(plan_name(work.batch_id))
    # Last, since only this needs the shard to answer.
    await let_go(context, work.input_file_id, work.batch_id)


class Answer(msgspec.Struct, frozen=True):
    """What a car answered one request."""

    status_code: Annotated[int, Meta(ge=100, le=599)]
    body: msgspec.Raw


class Part(NamedTuple):
    """A unit's outcome, and from which place in the plan to which its requests are."""

    outcome: Outcome
    start: int
    stop: int


_ANSWER_DECODER = msgspec.json.Decoder(Answer)


def read_answer(text: bytes) -> Answer | None:
    """A line of an output, or None if it is no answer; never raises, whatever the bytes are."""
    if len(text) > ANSWER_BYTES_MAX:
        return None
    try:
        if not text.isascii():
            text.decode()
        answer = _ANSWER_DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return answer if memoryview(answer.body)[0] == ord("{") else None


class Assembly:
    """Makes the lines of the output file and then, of what has none by then, of the error file."""

    def __init__(self, context: GatewayContext, work: Assemble, plan: PlannedLines) -> None:
        """Nothing is read yet."""
        self._context = context
        self._batch_id = work.batch_id
        self._hex = work.batch_id.removeprefix("batch_")
        self._plan = plan
        self._is_written = bytearray(len(plan.custom_ids))
        self._parts = _parts(work.outcomes, len(plan.custom_ids))

    async def output_pieces(self) -> AsyncIterator[bytes]:
        """The lines of requests with a good answer, in the order of the cut."""
        async for answers in self._answers(self._parts):
            good = [(at, answer) for at, answer in answers if not _is_error(answer)]
            yield b"".join(self._answered(at, answer) for at, answer in good)

    async def error_pieces(self) -> AsyncIterator[bytes]:
        """A line for each request that has none so far, and one for each refused line."""
        unfinished = [part for part in self._parts if 0 in self._is_written[part.start : part.stop]]
        async for answers in self._answers(unfinished):
            bad = [(at, answer) for at, answer in answers if _is_error(answer)]
            yield b"".join(self._answered(at, answer) for at, answer in bad)
        for outcome, start, stop in unfinished:
            code = outcome.ending or OUTPUT_DAMAGED
            words = f"{WORDS.get(code, 'This request has no result.')} {outcome.detail}".strip()
            yield self._unanswered(range(start, stop), RequestError(code, words))
        told = self._parts[-1].stop if self._parts else 0
        missing = RequestError(OUTPUT_DAMAGED, WORDS[OUTPUT_DAMAGED])
        yield self._unanswered(range(told, len(self._plan.custom_ids)), missing)
        for begin in range(0, len(self._plan.refused), REFUSED_IN_PIECE):
            refused = self._plan.refused[begin : begin + REFUSED_IN_PIECE]
            first = len(self._plan.custom_ids) + begin
            yield b"".join(self._refused(first + i, line) for i, line in enumerate(refused))

    async def _answers(self, parts: Sequence[Part]) -> AsyncIterator[list[tuple[int, Answer]]]:
        """The answers of units with an output, each with its request's place in the plan.

        What is no answer is left out.
        """
        with_output = [part for part in parts if part.outcome.ending is None]
        begin = 0
        while begin < len(with_output):
            asked = with_output[begin : begin + OUTPUTS_ASKED]
            bodies = await self._inline(asked)
            for part, body in zip(asked, bodies, strict=False):
                if body is None:
                    async for answers in self._stored(part):
                        yield answers
                else:
                    splitter = LineSplitter(ANSWER_BYTES_MAX)
                    yield _placed(part, [*splitter.feed(body), *splitter.end()])
                await asyncio.sleep(0)
            begin += len(bodies)

    async def _inline(self, parts: Sequence[Part]) -> Sequence[bytes | None]:
        """Outputs for the first of these units, at least one; None is for one that is an object."""
        asked = tuple(
            (one.outcome.lease_id, one.outcome.receipt_id, one.outcome.unit_id) for one in parts
        )
        outputs = await self._context.ask(GetOutputs(asked), Outputs)
        return outputs.bodies[: len(parts)] or (None,)

    async def _stored(self, part: Part) -> AsyncIterator[list[tuple[int, Answer]]]:
        outcome = part.outcome
        folder = vehicle_outputs_folder(self._batch_id, outcome.vehicle_id)
        name = f"{folder}{large_output_name(outcome.lease_id, outcome.unit_id)}"
        try:
            async for lines in read_lines(self._context.objects, name, ANSWER_BYTES_MAX):
                yield _placed(part, lines)
        except ObjectMissing:
            return

    def _answered(self, at: int, answer: Answer) -> bytes:
        response = BatchResponse(answer.status_code, f"req_{self._hex}{at:05x}", answer.body)
        return self._request_line(at, response, None)

    def _unanswered(self, places: Iterable[int], error: RequestError) -> bytes:
        open_places = [at for at in places if not self._is_written[at]]
        return b"".join(self._request_line(at, None, error) for at in open_places)

    def _request_line(
        self, at: int, response: BatchResponse | None, error: RequestError | None
    ) -> bytes:
        assert not self._is_written[at], "every request gets one line"
        self._is_written[at] = 1
        if error is not None:
            error = msgspec.structs.replace(error, line=self._plan.line_numbers[at])
        return self._line(at, self._plan.custom_ids[at], response, error)

    def _refused(self, at: int, refused: RefusedLine) -> bytes:
        error = RequestError(refused.code, refused.message, refused.param, refused.line_number)
        return self._line(at, refused.custom_id, None, error)

    def _line(
        self,
        at: int,
        custom_id: str | None,
        response: BatchResponse | None,
        error: RequestError | None,
    ) -> bytes:
        line = BatchResultLine(f"batch_req_{self._hex}{at:05x}", custom_id, response, error)
        return msgspec.json.encode(line) + b"\n"


def _is_error(answer: Answer) -> bool:
    return answer.status_code >= HTTPStatus.BAD_REQUEST


def _parts(outcomes: Sequence[Outcome], requests: int) -> list[Part]:
    """The outcomes with their places in the plan, which has so many requests."""
    parts = []
    start = 0
    for outcome in outcomes:
        stop = min(start + outcome.requests, requests)
        parts.append(Part(outcome, start, stop))
        start = stop
    return parts


def _placed(part: Part, lines: Sequence[Line]) -> list[tuple[int, Answer]]:
    """The answers in these lines of a unit's output; lines beyond its requests are left out."""
    placed = []
    for number, text in lines:
        at = part.start + number - 1
        answer = read_answer(text) if at < part.stop else None
        if answer is not None:
            placed.append((at, answer))
    return placed


async def _line_of_lost_plan(work: Assemble) -> AsyncIterator[bytes]:
    requests = sum(outcome.requests for outcome in work.outcomes)
    message = (
        f"The plan of this batch is lost, and with it which answers its {requests} requests had."
    )
    error = RequestError(OUTPUT_DAMAGED, message)
    yield msgspec.json.encode(BatchResultLine("batch_req_0", None, None, error)) + b"\n"


def _file_id(batch_id: BatchId, kind: str) -> str:
    """The same id whenever and wherever the file is written."""
    return "file-" + hashlib.sha256(f"{batch_id} {kind}".encode()).hexdigest()[:24]


def _known_id(context: GatewayContext, file_id: str) -> str:
    return file_id if context.catalogue.file(file_id) is not None else ""


async def _write_file(
    context: GatewayContext, work: Assemble, file_id: str, pieces: AsyncIterator[bytes]
) -> str:
    """Write a file for the customer; its id, or empty if there is nothing to write."""
    filled = (piece async for piece in pieces if piece)
    first = await anext(filled, b"")
    if not first:
        return ""
    stored = await context.objects.write(object_name(file_id), _with_first(first, filled))
    kind = "output" if file_id == _file_id(work.batch_id, "output") else "errors"
    context.catalogue.delete_file(file_id)
    context.catalogue.add_file(
        FileRow(
            file_id=file_id,
            customer_id=work.customer_id,
            filename=f"{work.batch_id}_{kind}.jsonl",
            purpose=BATCH_OUTPUT,
            size_bytes=stored.size_bytes,
            created_ms=context.now_ms(),
            object_name=stored.name,
        )
    )
    return file_id


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
