"""Listens to llama.cpp while it writes one text, and tells what comes in pieces for a customer."""

from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

import msgspec

from terafleet.agent.ports import SessionPiece
from terafleet.agent.runtime_host.fragments import Fragments
from terafleet.agent.runtime_host.held_text import Growth, HeldText
from terafleet.agent.runtime_host.models import IsStopped, ModelFailed, TakePiece
from terafleet.core.reasons import Failure
from terafleet.protocol.live import MESSAGE_CHARACTERS_MAX, LiveFault

_HTTP_SERVER_ERROR: Final = 500
_TOO_LONG: Final = "exceed_context_size_error"

WriteLogprobs = Callable[[tuple[dict[str, Any], ...]], bytes]
"""Writes what llama.cpp tells of tokens' probabilities as OpenAI does."""


class LibraryError(msgspec.Struct, frozen=True):
    """Why llama.cpp writes nothing; the numbers are of prompts that are too long."""

    message: str = ""
    type: str = ""
    code: int = _HTTP_SERVER_ERROR
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _Tokens(msgspec.Struct, frozen=True):
    """The tokens of a chunk, and the numbers of tokens written and read so far."""

    tokens: tuple[int, ...]
    tokens_predicted: int
    tokens_evaluated: int


class _Logprobs(msgspec.Struct, frozen=True):
    content: tuple[dict[str, Any], ...] = ()


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


FinishReason = Literal["stop", "length", "tool_calls"]


class Choice(msgspec.Struct, frozen=True):
    """What has come of the text; completions have a `text`, chats a `delta`."""

    text: str = ""
    delta: _Delta = _Delta()
    finish_reason: FinishReason | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class _Progress(msgspec.Struct, frozen=True):
    total: int


class _Chunk(msgspec.Struct, frozen=True):
    """What llama.cpp says at a time, as far as it matters here."""

    choices: tuple[Choice, ...] = ()
    error: LibraryError | None = None
    usage: _Usage | None = None
    prompt_progress: _Progress | None = None
    tokens: _Tokens | None = msgspec.field(default=None, name="__verbose")


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class Teller(Protocol):
    """Makes pieces of chunks."""

    def told(self, choice: Choice, tokens: _Tokens | None) -> SessionPiece | None:
        """What can be told by now, if anything; a reason to finish makes it the last."""
        ...

    def told_of_error(self, error: LibraryError) -> SessionPiece | LiveFault:
        """What it means that llama.cpp does not write this text."""
        ...


class LiveStream:
    """One text of an answer while it grows; called with each chunk, and True ends it.

    Llama.cpp would lose an exception, so `exception` keeps it.
    """

    def __init__(self, teller: Teller, take: TakePiece, is_stopped: IsStopped) -> None:
        self._teller = teller
        self._take = take
        self._is_stopped = is_stopped
        self.exception: BaseException | None = None
        self.fault: LiveFault | None = None
        self.is_finished = False
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def __call__(self, chunk: str) -> bool:
        """Take a chunk of JSON."""
        try:
            return self._grow(_CHUNK.decode(chunk))
        except BaseException as exception:  # noqa: BLE001 - who has asked for the text raises it.
            self.exception = exception
            return True

    def is_unwanted(self) -> bool:
        """Whether nobody wants the text any more."""
        return self._is_stopped()

    @property
    def has_failed(self) -> bool:
        """Whether nothing can come of it any more."""
        return self.fault is not None or self.exception is not None

    def _grow(self, chunk: _Chunk) -> bool:
        if chunk.error is not None:
            self._err(chunk.error)
            return True
        if self._is_stopped():
            return True
        if chunk.prompt_progress is not None:
            return False
        if chunk.tokens is not None:
            self.prompt_tokens = chunk.tokens.tokens_evaluated
            self.completion_tokens = chunk.tokens.tokens_predicted
        if chunk.usage is not None:
            self.prompt_tokens = chunk.usage.prompt_tokens
            self.completion_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            piece = self._teller.told(choice, chunk.tokens)
            if piece is not None:
                self._tell(piece)
        # A text that has been finished is only waited for when llama.cpp finished it itself.
        return self.is_finished and not any(choice.finish_reason for choice in chunk.choices)

    def _tell(self, piece: SessionPiece) -> None:
        self._take(piece)
        self.is_finished = bool(piece.finish_reason)

    def _err(self, error: LibraryError) -> None:
        if error.code >= _HTTP_SERVER_ERROR:
            raise ModelFailed(Failure.RUNTIME_REFUSED, error.message)
        outcome = self._teller.told_of_error(error)
        if isinstance(outcome, LiveFault):
            self.fault = outcome
        else:
            self.prompt_tokens = error.n_prompt_tokens
            self._tell(outcome)


class TokenTeller:
    """Tells a text of which each token is known, so that it can go on behind any of its pieces."""

    def __init__(
        self,
        index: int,
        held: HeldText,
        fragments: Fragments,
        write_logprobs: WriteLogprobs,
        was_begun: bool,
    ) -> None:
        """`was_begun` says that some of the text was told before, elsewhere."""
        self._index = index
        self._held = held
        self._fragments = fragments
        self._write_logprobs = write_logprobs
        self._was_begun = was_begun
        self._predicted = 0

    def told(self, choice: Choice, tokens: _Tokens | None) -> SessionPiece | None:
        """Whole tokens whose text can be no part of a stop."""
        assert tokens is not None, "llama.cpp was not asked for tokens"
        if choice.finish_reason:
            return self._piece(self._held.flush(), choice.finish_reason)
        growth = self._held.push(self._growth(choice, tokens))
        if self._held.has_stopped:
            return self._piece(growth or Growth((), ""), "stop")
        return None if growth is None else self._piece(growth, "")

    def told_of_error(self, error: LibraryError) -> SessionPiece | LiveFault:
        """A text that already fills the context has come to its end."""
        is_full = error.type == _TOO_LONG and error.n_prompt_tokens == error.n_ctx
        if is_full and self._was_begun:
            return SessionPiece(self._index, (), "", finish_reason="length")
        return fault_of_library(error)

    def _growth(self, choice: Choice, tokens: _Tokens) -> Growth:
        """The tokens of a chunk; of a character in several, llama.cpp tells only the last."""
        known = tokens.tokens
        untold = tokens.tokens_predicted - self._predicted - len(known)
        self._predicted = tokens.tokens_predicted
        if untold and known and choice.text:
            known = self._fragments.tokens_of(choice.text, known[-1], untold)
        return Growth(known, choice.text, choice.logprobs.content if choice.logprobs else ())

    def _piece(self, told: Growth, finish_reason: FinishReason | Literal[""]) -> SessionPiece:
        logprobs = self._write_logprobs(told.logprobs) if told.logprobs else b""
        return SessionPiece(self._index, told.token_ids, told.text, logprobs, finish_reason)


class ChatTeller:
    """Tells what llama.cpp has made of a chat that is bound to a grammar or to tools."""

    def __init__(self, index: int, write_logprobs: WriteLogprobs) -> None:
        self._index = index
        self._write_logprobs = write_logprobs

    def told(self, choice: Choice, tokens: _Tokens | None) -> SessionPiece | None:  # noqa: ARG002
        """The text or the call of a tool in the chunk; what the model thinks is left out."""
        text, tool_calls = choice.delta.content or "", bytes(choice.delta.tool_calls)
        finish_reason = choice.finish_reason or ""
        if not (text or tool_calls or finish_reason):
            return None
        entries = choice.logprobs.content if choice.logprobs else ()
        logprobs = self._write_logprobs(entries) if entries else b""
        return SessionPiece(self._index, (), text, logprobs, finish_reason, tool_calls)

    def told_of_error(self, error: LibraryError) -> LiveFault:
        """Nothing was written."""
        return fault_of_library(error)


def fault_of_library(error: LibraryError) -> LiveFault:
    """What a customer is told of a request that llama.cpp doesn't take."""
    if error.type != _TOO_LONG:
        return LiveFault("invalid_request", error.message[:MESSAGE_CHARACTERS_MAX])
    message = (
        f"The model's context has {error.n_ctx} tokens, of which a prompt leaves at least one;"
        f" this one has {error.n_prompt_tokens}."
    )
    return LiveFault("context_length_exceeded", message)
