"""Turns pieces of an answer into OpenAI's chunks as they come; reads no clock and sends nothing."""

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from terafleet.control.gateway.live.failures import AnswerUnreadable
from terafleet.core.session_events import Piece
from terafleet.protocol.live import TOOLS_MAX
from terafleet.protocol.live_answers import (
    DONE,
    ROLE,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Explanation,
    FinishReason,
    ToolCallDelta,
    Usage,
)

_DONE: Final = f"data: {DONE}\n\n".encode()
"""How a stream says that it is whole."""

_FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
}
_BEGIN: Final = ChatDelta(role=ROLE, content="", refusal=None)
_NOTHING: Final = ChatDelta()

_ENCODER: Final = msgspec.json.Encoder()
_CHAT_LOGPROBS: Final = msgspec.json.Decoder(ChatLogprobs)
_COMPLETION_LOGPROBS: Final = msgspec.json.Decoder(CompletionLogprobs)
_TOOL_CALLS: Final = msgspec.json.Decoder(tuple[ToolCallDelta, ...] | None)

PartT = TypeVar("PartT")


class Head(msgspec.Struct, frozen=True):
    """What all chunks of an answer have; `choices` is how many texts it has.

    `includes_usage` is whether the customer wants the usage at the end of a stream.
    """

    answer_id: str
    created: int
    model: str
    choices: int
    includes_usage: bool = False


class Ended(msgspec.Struct, frozen=True):
    """How an answer went; `explanation` only for who asked for it."""

    usage: Usage
    explanation: Explanation | UnsetType = UNSET


def event(value: Any) -> bytes:
    """A server-sent event; JSON is one line."""
    return b"data: " + _ENCODER.encode(value) + b"\n\n"


class OpenTexts:
    """Which texts of an answer have not ended yet; refuses what is of no answer.

    A text that has ended can come again: its car was lost before it said that all was told.
    """

    def __init__(self, choices: int) -> None:
        self._open = [True] * choices

    def counting(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces of open texts. Raises AnswerUnreadable."""
        for piece in pieces:
            if not 0 <= piece.index < len(self._open):
                raise AnswerUnreadable(f"there is no text {piece.index}")
            if self._open[piece.index]:
                if piece.finish_reason:
                    self._open[piece.index] = False
                yield piece

    def check_all_ended(self) -> None:
        """Raises AnswerUnreadable where a text is said to be whole and broke off."""
        if any(self._open):
            raise AnswerUnreadable("a text has no end")


def finish_reason_of(piece: Piece) -> FinishReason | None:
    """Why a text ends with a piece, if it does. Raises AnswerUnreadable."""
    if not piece.finish_reason:
        return None
    reason = _FINISH_REASONS.get(piece.finish_reason)
    if reason is None:
        raise AnswerUnreadable("a text ends for an unknown reason")
    return reason


def chat_logprobs_of(piece: Piece) -> ChatLogprobs | None:
    """The probabilities of a piece of a chat. Raises AnswerUnreadable."""
    return _decoded(_CHAT_LOGPROBS, piece.logprobs) if piece.logprobs else None


def completion_logprobs_of(piece: Piece, offset: int) -> CompletionLogprobs | None:
    """The probabilities of a piece behind `offset` characters. Raises AnswerUnreadable."""
    if not piece.logprobs:
        return None
    told = _decoded(_COMPLETION_LOGPROBS, piece.logprobs)
    places = tuple(place + offset for place in told.text_offset)
    return msgspec.structs.replace(told, text_offset=places)


def tool_calls_of(piece: Piece) -> tuple[ToolCallDelta, ...]:
    """The calls that grow with a piece. Raises AnswerUnreadable."""
    if not piece.tool_calls:
        return ()
    calls = _decoded(_TOOL_CALLS, piece.tool_calls) or ()
    if not all(0 <= call.index < TOOLS_MAX for call in calls):
        raise AnswerUnreadable("a call of a tool has no possible number")
    return calls


def _decoded(decoder: msgspec.json.Decoder[PartT], text: bytes) -> PartT:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AnswerUnreadable("a part of a piece is no JSON of its kind") from error


class ChatChunks:
    """A chat that is streamed: for each text first the role, then what it grows by, then why it
    ends."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._usage: UnsetType | None = None if head.includes_usage else UNSET
        self._texts = OpenTexts(head.choices)
        self._begun = [False] * head.choices

    def take(self, pieces: Iterable[Piece]) -> bytes:
        """The events of some pieces. Raises AnswerUnreadable."""
        return b"".join(
            [
                event(self._chunk((choice,)))
                for piece in self._texts.counting(pieces)
                for choice in self._choices(piece)
            ]
        )

    def end(self, ended: Ended) -> bytes:
        """The last events. Raises AnswerUnreadable where something is missing."""
        self._texts.check_all_ended()
        return _last_event(self._head, self._chunk(()), ended) + _DONE

    def _choices(self, piece: Piece) -> Iterator[ChatChunkChoice]:
        index = piece.index
        if not self._begun[index]:
            self._begun[index] = True
            yield ChatChunkChoice(index, _BEGIN)
        if piece.tool_calls or piece.logprobs:
            calls = tool_calls_of(piece)
            content = piece.text if piece.text or not calls else UNSET
            delta = ChatDelta(content=content, tool_calls=calls or UNSET)
            yield ChatChunkChoice(index, delta, chat_logprobs_of(piece))
        elif piece.text:
            yield ChatChunkChoice(index, ChatDelta(content=piece.text))
        if piece.finish_reason:
            yield ChatChunkChoice(index, _NOTHING, None, finish_reason_of(piece))

    def _chunk(self, choices: tuple[ChatChunkChoice, ...]) -> ChatChunk:
        head = self._head
        return ChatChunk(head.answer_id, head.created, head.model, choices, self._usage)


class CompletionChunks:
    """A completion that is streamed."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._usage: UnsetType | None = None if head.includes_usage else UNSET
        self._texts = OpenTexts(head.choices)
        self._offsets = [0] * head.choices

    def take(self, pieces: Iterable[Piece]) -> bytes:
        """The events of some pieces. Raises AnswerUnreadable."""
        return b"".join(
            [
                event(self._chunk((self._choice(piece),)))
                for piece in self._texts.counting(pieces)
                if piece.text or piece.logprobs or piece.finish_reason
            ]
        )

    def end(self, ended: Ended) -> bytes:
        """The last events. Raises AnswerUnreadable where something is missing."""
        self._texts.check_all_ended()
        return _last_event(self._head, self._chunk(()), ended) + _DONE

    def _choice(self, piece: Piece) -> CompletionChoice:
        logprobs = completion_logprobs_of(piece, self._offsets[piece.index])
        self._offsets[piece.index] += len(piece.text)
        return CompletionChoice(piece.index, piece.text, logprobs, finish_reason_of(piece))

    def _chunk(self, choices: tuple[CompletionChoice, ...]) -> Completion:
        head = self._head
        return Completion(head.answer_id, head.created, head.model, choices, self._usage)


def _last_event(head: Head, chunk: ChatChunk | Completion, ended: Ended) -> bytes:
    """The chunk without choices, for who asked for the usage or for an explanation."""
    if not head.includes_usage and ended.explanation is UNSET:
        return b""
    usage = ended.usage if head.includes_usage else UNSET
    return event(msgspec.structs.replace(chunk, usage=usage, terafleet=ended.explanation))
