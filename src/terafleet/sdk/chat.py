"""Reads the answer to a live request from its stream; knows no connection and no time."""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET

from terafleet.protocol.errors import ERRORS, ErrorBody
from terafleet.protocol.live_answers import (
    DONE,
    EXPLAIN_HEADER,
    ChatChunk,
    ChatChunkChoice,
    Completion,
    CompletionChoice,
    Explanation,
    Usage,
)
from terafleet.sdk.errors import (
    ODD,
    UNREACHABLE,
    AnswerOdd,
    RequestInvalid,
    TerafleetError,
    Unreachable,
    error_of,
)
from terafleet.sdk.server_events import Comment, Event, EventsOdd, events_of

ANSWER_CHARACTERS_MAX: Final = 32 * 1024 * 1024
"""More than any model says in one answer; what a gateway may make a customer hold."""

CAUSE_CHARACTERS_MAX: Final = 400
"""Of what is wrong with an answer, which may quote it."""

EXPLAIN: Final = {EXPLAIN_HEADER: "1"}
"""The header of who wants to know on how many cars an answer was made."""

_QUEUED: Final = re.compile(r"queued, about ([0-9]{1,9}) s")
_STATUS_UNKNOWN: Final = 500

Role = Literal["system", "user", "assistant"]


class Message(msgspec.Struct, frozen=True):
    """What somebody says in a chat."""

    role: Role
    content: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer is chosen among the likely ones; None leaves it to the model."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


USUAL: Final = Sampling()


class Queued(msgspec.Struct, frozen=True):
    """No car has a slot free; it will take about so long."""

    wait_s: int


class Text(msgspec.Struct, frozen=True):
    """What the answer grows by."""

    text: str


class Ended(msgspec.Struct, frozen=True):
    """The answer is whole: why it ends, and what it took.

    `moves` is on how many further cars it went on; None where that is not told.
    """

    finish_reason: str
    usage: Usage | None
    moves: int | None


Said = Queued | Text | Ended
"""What comes while an answer is made; `Ended` comes last."""

Chunk = ChatChunk | Completion


class _Fault(msgspec.Struct, frozen=True):
    """The error in place of a chunk, if it is one."""

    error: ErrorBody | None = None


_FAULT: Final = msgspec.json.Decoder(_Fault)


def body_of(model: str, asked: str | Sequence[Message], sampling: Sampling) -> dict[str, Any]:
    """A request for a stream: of a chat, or of the completion of a text. Raises RequestInvalid."""
    wishes = {
        name: value for name, value in msgspec.structs.asdict(sampling).items() if value is not None
    }
    for name, value in wishes.items():
        # JSON has no such numbers and would tell them as null, which means "as you like".
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestInvalid("invalid_value", f"{name} must be a number.", name)
    what = {"prompt": asked} if isinstance(asked, str) else {"messages": list(asked)}
    return {
        "model": model,
        **what,
        **wishes,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def said_in(chunks: Iterator[bytes], kind: type[Chunk], url: str) -> Iterator[Said]:
    """What a stream says, up to its `Ended`. Raises TerafleetError.

    `chunks` are the bytes as they come, and `url` is who sends them.
    """
    reader = _Reader(kind, url)
    try:
        for event in events_of(chunks):
            yield from reader.take(event)
            if reader.is_done:
                break
    except EventsOdd as error:
        raise reader.odd(f"{error}") from error
    yield reader.end()
    # A connection whose answer was read to its end can be used again. The answer is whole
    # whatever comes of this.
    with contextlib.suppress(Unreachable):
        next(chunks, None)


class _Reader:
    """Puts the one text of an answer together, and refuses what can't be part of it."""

    def __init__(self, kind: type[Chunk], url: str) -> None:
        self._decoder: msgspec.json.Decoder[Chunk] = msgspec.json.Decoder(kind)
        self._url = url
        self._finish_reason = ""
        self._usage: Usage | None = None
        self._moves: int | None = None
        self._characters = 0
        self.is_done = False

    def take(self, said: Comment | Event) -> Iterator[Said]:
        """What an event means to a customer."""
        if isinstance(said, Comment):
            found = _QUEUED.fullmatch(said.text)
            if found is not None:
                yield Queued(int(found[1]))
        elif said.data == DONE:
            self.is_done = True
        else:
            yield from self._take_chunk(self._chunk(said.data))

    def end(self) -> Ended:
        """The end of the answer. Raises Unreachable where it is missing."""
        if not self.is_done:
            message = f"The answer of {self._url} broke off before its end."
            raise Unreachable(UNREACHABLE, message)
        if not self._finish_reason:
            raise self.odd("it does not say why it ends")
        return Ended(self._finish_reason, self._usage, self._moves)

    def odd(self, cause: str) -> AnswerOdd:
        """The error for what no control plane of this version sends."""
        shown = cause[:CAUSE_CHARACTERS_MAX]
        return AnswerOdd(ODD, f"{self._url} sends what is no answer: {shown}.")

    def _chunk(self, data: str) -> Chunk:
        try:
            fault = _FAULT.decode(data)
            if fault.error is not None:
                raise _error_in(fault.error)
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise self.odd(f"{error}") from error

    def _take_chunk(self, chunk: Chunk) -> Iterator[Said]:
        if isinstance(chunk.usage, Usage):
            self._usage = chunk.usage
        if isinstance(chunk.terafleet, Explanation):
            self._moves = chunk.terafleet.moves
        for choice in chunk.choices:
            if choice.index != 0:
                raise self.odd("it has more than one text")
            if self._finish_reason:
                raise self.odd("it goes on behind its end")
            self._finish_reason = choice.finish_reason or ""
            text = self._text_of(choice)
            if text:
                yield self._grown(text)

    def _text_of(self, choice: ChatChunkChoice | CompletionChoice) -> str:
        if isinstance(choice, CompletionChoice):
            return choice.text
        if choice.delta.tool_calls is not UNSET:
            raise self.odd("it calls a tool that nobody offered")
        content = choice.delta.content
        return content if isinstance(content, str) else ""

    def _grown(self, text: str) -> Text:
        self._characters += len(text)
        if self._characters > ANSWER_CHARACTERS_MAX:
            raise self.odd(f"it has more than {ANSWER_CHARACTERS_MAX} characters")
        return Text(text)


def _error_in(error: ErrorBody) -> TerafleetError:
    """The error that a stream tells as its last event."""
    kind = ERRORS.get(error.code)
    status = _STATUS_UNKNOWN if kind is None else kind.status
    return error_of(status, error.code, error.message, error.param)
