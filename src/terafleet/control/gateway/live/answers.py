"""Answers one live request: runs its session, and tells what comes of it as OpenAI does."""

import asyncio
from typing import Final, Protocol

import msgspec
import structlog
from litestar.types import Receive, Scope, Send
from msgspec import UNSET

from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.live.asked_model import unservable
from terafleet.control.gateway.live.chunks import (
    ChatChunks,
    CompletionChunks,
    Ended,
    Head,
    event,
)
from terafleet.control.gateway.live.event_stream import EventStream, until_left, while_reading
from terafleet.control.gateway.live.failures import (
    AnswerUnreadable,
    error_of,
    reader_too_slow,
    unreadable,
)
from terafleet.control.gateway.live.requests import CheckedRequest
from terafleet.control.gateway.live.sessions import LiveRequest, LiveStream, ReaderTooSlow
from terafleet.control.gateway.live.whole import WholeChat, WholeCompletion, WholeEmbeddings
from terafleet.core.reasons import Refused
from terafleet.core.session_effects import (
    Deliver,
    FailSession,
    FinishSession,
    ForgetPieces,
    SayQueued,
)
from terafleet.core.session_events import Piece
from terafleet.core.units import MS_PER_S, divide_up
from terafleet.protocol.errors import error_reply
from terafleet.protocol.live_answers import Explanation, Usage
from terafleet.protocol.openai import CHAT_COMPLETIONS, EMBEDDINGS

_log = structlog.get_logger()

_ID_PREFIX: Final = {CHAT_COMPLETIONS: "chatcmpl"}
_ID_PREFIX_OF_COMPLETIONS: Final = "cmpl"


class Chunks(Protocol):
    """What turns pieces into events."""

    def take(self, pieces: tuple[Piece, ...]) -> bytes:
        """The events of some pieces. Raises AnswerUnreadable."""

    def end(self, ended: Ended) -> bytes:
        """The last events. Raises AnswerUnreadable."""


class Whole(Protocol):
    """What gathers pieces."""

    def take(self, pieces: tuple[Piece, ...]) -> None:
        """Keep some pieces. Raises AnswerUnreadable."""

    def end(self, ended: Ended) -> bytes:
        """The answer. Raises AnswerUnreadable, or ApiError where it is an error."""


class Asked(msgspec.Struct, frozen=True):
    """What a customer asked, and who it is; `explains` adds what went on behind the answer."""

    request: LiveRequest
    checked: CheckedRequest
    explains: bool


class LiveAnswer:
    """The answer to a request as an ASGI application, since only such a one can see a client
    leave."""

    def __init__(self, context: GatewayContext, asked: Asked) -> None:
        """Nothing is asked of the fleet yet."""
        self._context = context
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or raise ApiError before anything is sent; ends when the client leaves."""
        del scope
        if self._asked.checked.is_streamed:
            events = EventStream(send, asyncio.get_running_loop().time)
            await while_reading(self._stream(events), events.attend(receive))
        else:
            await while_reading(self._tell_whole(send), until_left(receive))

    # At once.

    async def _tell_whole(self, send: Send) -> None:
        async with self._context.live.open(self._asked.request) as stream:
            try:
                body = await self._gathered(stream)
            except AnswerUnreadable as error:
                raise unreadable(error) from error
            except ReaderTooSlow as error:
                message = "The gateway can't keep up with the answer."
                raise ApiError("overloaded", message) from error
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _gathered(self, stream: LiveStream) -> bytes:
        whole = self._whole(stream)
        async for said in stream:
            match said:
                case Deliver():
                    whole.take(said.pieces)
                case ForgetPieces():
                    whole = self._whole(stream)
                case FinishSession():
                    return whole.end(self._ended(stream, said))
                case FailSession():
                    raise self._error(said)
        raise AssertionError("a session ends with its end")

    # In events.

    async def _stream(self, events: EventStream) -> None:
        async with self._context.live.open(self._asked.request) as stream:
            try:
                await self._tell(stream, events)
            except AnswerUnreadable as error:
                await self._fail(unreadable(error), events)
            except ReaderTooSlow:
                await self._fail(reader_too_slow(), events)

    async def _tell(self, stream: LiveStream, events: EventStream) -> None:
        chunks = self._chunks(stream)
        async for said in stream:
            match said:
                case Deliver():
                    body = chunks.take(said.pieces)
                    if body:
                        await events.write(body)
                case SayQueued():
                    wait_s = divide_up(said.wait_ms, MS_PER_S)
                    await events.comment(f"queued, about {wait_s} s")
                case FinishSession():
                    await events.end(chunks.end(self._ended(stream, said)))
                case FailSession():
                    await self._fail(self._error(said), events)

    async def _fail(self, error: ApiError, events: EventStream) -> None:
        """Tell an error as long as it can have a status, else as the stream's last event."""
        if not events.has_begun:
            raise error
        _log.info("stream_failed", code=error.code, cause=error.message)
        await events.end(event(error_reply(error.code, error.message, error.param)))

    # Both.

    def _error(self, failed: FailSession) -> ApiError:
        if failed.refused is Refused.NO_FEASIBLE_VEHICLE:
            request, model = self._asked.request, self._asked.checked.model
            return unservable(self._context.catalogue, model, request.endpoint, failed.detail)
        return error_of(failed)

    def _ended(self, stream: LiveStream, said: FinishSession) -> Ended:
        tokens = (said.prompt_tokens, said.completion_tokens)
        explanation = Explanation(stream.machine.moves) if self._asked.explains else UNSET
        return Ended(Usage(*tokens, sum(tokens)), explanation)

    def _head(self, stream: LiveStream) -> Head:
        checked, endpoint = self._asked.checked, self._asked.request.endpoint
        prefix = _ID_PREFIX.get(endpoint, _ID_PREFIX_OF_COMPLETIONS)
        number = stream.session_id.removeprefix("ses_")
        created = self._context.now_ms() // MS_PER_S
        return Head(
            f"{prefix}-{number}", created, checked.model, checked.choices, checked.includes_usage
        )

    def _chunks(self, stream: LiveStream) -> Chunks:
        is_chat = self._asked.request.endpoint == CHAT_COMPLETIONS
        return (ChatChunks if is_chat else CompletionChunks)(self._head(stream))

    def _whole(self, stream: LiveStream) -> Whole:
        if self._asked.request.endpoint == EMBEDDINGS:
            return WholeEmbeddings(self._asked.checked.choices)
        is_chat = self._asked.request.endpoint == CHAT_COMPLETIONS
        return (WholeChat if is_chat else WholeCompletion)(self._head(stream))
