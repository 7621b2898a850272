"""Gathers pieces into OpenAI's whole answers; knows no connection and no time."""

from collections.abc import Iterable
from typing import Any, ClassVar, Final, Literal

import msgspec
from msgspec import UNSET

from terafleet.control.gateway.live.chunks import (
    Ended,
    Head,
    OpenTexts,
    chat_logprobs_of,
    completion_logprobs_of,
    finish_reason_of,
    tool_calls_of,
)
from terafleet.control.gateway.live.failures import AnswerUnreadable, model_refused
from terafleet.core.session_events import Piece
from terafleet.protocol.errors import ErrorReply
from terafleet.protocol.live import CalledFunction, ToolCall
from terafleet.protocol.live_answers import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Explanation,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
)

ANSWER_BYTES_MAX: Final = 32 * 1024 * 1024
"""More than any model says in a session's time; what a car may make a gateway hold."""

HTTP_FAILED_MIN: Final = 400

_ENCODER: Final = msgspec.json.Encoder()


class _Bound:
    """Counts what is held of an answer."""

    def __init__(self) -> None:
        self._held = 0

    def add(self, piece: Piece) -> None:
        """Raises AnswerUnreadable when it is too much."""
        self._held += len(piece.text) + len(piece.logprobs) + len(piece.tool_calls)
        if self._held > ANSWER_BYTES_MAX:
            raise AnswerUnreadable("the answer has no end")


class _Call:
    """A call of a tool, while it grows."""

    def __init__(self) -> None:
        self._id = ""
        self._name = ""
        self._arguments: list[str] = []

    def grow(self, delta: ToolCallDelta) -> None:
        self._id = delta.id or self._id
        if delta.function is not None:
            self._name += delta.function.name or ""
            self._arguments.append(delta.function.arguments or "")

    def whole(self) -> ToolCall:
        return ToolCall(self._id, CalledFunction(self._name, "".join(self._arguments)))


class _ChatText:
    """One text of a chat, while it grows."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] | None = None
        self._calls: dict[int, _Call] = {}
        self._finish_reason: FinishReason | None = None

    def grow(self, piece: Piece) -> None:
        self._text.append(piece.text)
        logprobs = chat_logprobs_of(piece)
        if logprobs is not None:
            self._logprobs = [*(self._logprobs or ()), *(logprobs.content or ())]
        for delta in tool_calls_of(piece):
            self._calls.setdefault(delta.index, _Call()).grow(delta)
        self._finish_reason = finish_reason_of(piece)

    def whole(self, index: int) -> ChatChoice:
        assert self._finish_reason is not None, "all texts have ended"
        text = "".join(self._text)
        calls = tuple(call.whole() for _, call in sorted(self._calls.items()))
        message = ChatMessage(text if text or not calls else None, calls or UNSET)
        logprobs = None if self._logprobs is None else ChatLogprobs(tuple(self._logprobs))
        return ChatChoice(index, message, self._finish_reason, logprobs)


class _CompletionText:
    """One text of a completion, while it grows."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._length = 0
        self._logprobs: list[CompletionLogprobs] = []
        self._finish_reason: FinishReason | None = None

    def grow(self, piece: Piece) -> None:
        logprobs = completion_logprobs_of(piece, self._length)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self._text.append(piece.text)
        self._length += len(piece.text)
        self._finish_reason = finish_reason_of(piece)

    def whole(self, index: int) -> CompletionChoice:
        logprobs = _joined(self._logprobs) if self._logprobs else None
        return CompletionChoice(index, "".join(self._text), logprobs, self._finish_reason)


class _WholeTexts:
    """Texts that are told at once; OpenAI's two forms of them differ in what is named below."""

    text: ClassVar[type[_ChatText | _CompletionText]]
    form: ClassVar[type[ChatCompletion | Completion]]

    def __init__(self, head: Head) -> None:
        self._head = head
        self._open = OpenTexts(head.choices)
        self._bound = _Bound()
        self._texts = [self.text() for _ in range(head.choices)]

    def take(self, pieces: Iterable[Piece]) -> None:
        """Keep some pieces. Raises AnswerUnreadable."""
        for piece in self._open.counting(pieces):
            self._bound.add(piece)
            self._texts[piece.index].grow(piece)

    def end(self, ended: Ended) -> bytes:
        """The answer. Raises AnswerUnreadable where something is missing."""
        self._open.check_all_ended()
        choices: tuple[Any, ...] = tuple(
            text.whole(index) for index, text in enumerate(self._texts)
        )
        parts = (self._head.answer_id, self._head.created, self._head.model, choices, ended.usage)
        return _ENCODER.encode(self.form(*parts, terafleet=ended.explanation))


class WholeChat(_WholeTexts):
    """A chat that is told at once."""

    text = _ChatText
    form = ChatCompletion


class WholeCompletion(_WholeTexts):
    """A completion that is told at once."""

    text = _CompletionText
    form = Completion


def _joined(parts: list[CompletionLogprobs]) -> CompletionLogprobs:
    tops = [part.top_logprobs for part in parts if part.top_logprobs is not None]
    return CompletionLogprobs(
        text_offset=tuple(place for part in parts for place in part.text_offset),
        token_logprobs=tuple(value for part in parts for value in part.token_logprobs),
        tokens=tuple(token for part in parts for token in part.tokens),
        top_logprobs=tuple(top for part in tops for top in part) if tops else None,
    )


class _Line(msgspec.Struct, frozen=True):
    """What a car sends in place of texts: an answer's line as a batch's output has it."""

    status_code: int
    body: msgspec.Raw


class _Vector(msgspec.Struct, frozen=True):
    embedding: msgspec.Raw
    index: int
    object: Literal["embedding"]


class _Vectors(msgspec.Struct, frozen=True):
    """The answer with its vectors unread: they are long, and nobody's matter here."""

    data: list[_Vector]
    model: str
    usage: dict[str, int]
    object: Literal["list"]


class _ExplainedVectors(_Vectors, frozen=True):
    terafleet: Explanation


_LINE: Final = msgspec.json.Decoder(_Line)
_VECTORS: Final = msgspec.json.Decoder(_Vectors)
_ERROR: Final = msgspec.json.Decoder(ErrorReply)


class WholeEmbeddings:
    """Embeddings, which a car sends as a whole in the text of its pieces."""

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self._bound = _Bound()
        self._text: list[str] = []

    def take(self, pieces: Iterable[Piece]) -> None:
        """Keep some pieces. Raises AnswerUnreadable."""
        for piece in pieces:
            self._bound.add(piece)
            self._text.append(piece.text)

    def end(self, ended: Ended) -> bytes:
        """The answer. Raises AnswerUnreadable, or ApiError with what the car answers instead."""
        try:
            line = _LINE.decode("".join(self._text))
            if line.status_code >= HTTP_FAILED_MIN:
                error = _ERROR.decode(line.body).error
                raise model_refused(error.code, error.message, error.param)
            vectors = _VECTORS.decode(line.body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise AnswerUnreadable("there are no embeddings in it") from error
        if [vector.index for vector in vectors.data] != list(range(self._inputs)):
            raise AnswerUnreadable(
                f"it has {len(vectors.data)} embeddings of {self._inputs} inputs"
            )
        if not isinstance(ended.explanation, Explanation):
            return bytes(line.body)
        parts = (vectors.data, vectors.model, vectors.usage, vectors.object)
        return _ENCODER.encode(_ExplainedVectors(*parts, ended.explanation))
