"""The answers of live completions, chats and embeddings in OpenAI's form, whole and in chunks.

Times are in seconds since 1970. What goes beyond OpenAI stands in fields named `terafleet`.
"""

from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from terafleet.protocol.live import ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]

ROLE: Final = "assistant"
"""The role of each message that a model says."""


DONE: Final = "[DONE]"
"""What the last event of a stream holds when all was told."""


class Usage(msgspec.Struct, frozen=True):
    """What an answer took in tokens; what was told again after a move counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


EXPLAIN_HEADER: Final = "terafleet-explain"
"""The header of a request that asks for an `Explanation`, with the value 1."""


class Explanation(msgspec.Struct, frozen=True):
    """Our extension, for who asks for it: on how many further cars the answer went on."""

    moves: int


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that could have stood at a place."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of a chat, and what could have stood in its place."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: tuple[TopLogprob, ...] = ()


class ChatLogprobs(msgspec.Struct, frozen=True):
    """The probabilities of a chat's tokens."""

    content: tuple[TokenLogprob, ...] | None = None
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """The probabilities of a completion's tokens; `text_offset` counts characters of its text."""

    text_offset: tuple[int, ...]
    token_logprobs: tuple[float | None, ...]
    tokens: tuple[str, ...]
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None


class FunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of a call: its name comes first, its arguments piece by piece."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of the call number `index` of a message."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """What a model says in a chat."""

    content: str | None
    tool_calls: tuple[ToolCall, ...] | UnsetType = UNSET
    refusal: None = None
    role: Literal["assistant"] = ROLE


class ChatChoice(msgspec.Struct, frozen=True):
    """One text of a chat's answer."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """A chat's whole answer."""

    id: str
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: None = None
    terafleet: Explanation | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True):
    """What a text of a chat grows by."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    tool_calls: tuple[ToolCallDelta, ...] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """What one text of a chat grows by, or why it ends."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """A piece of a streamed chat; the one with the usage has no choices."""

    id: str
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: None = None
    terafleet: Explanation | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    """One text of a completion, or what it grows by."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(msgspec.Struct, frozen=True):
    """A completion, whole or a piece of it; the piece with the usage has no choices."""

    id: str
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: None = None
    terafleet: Explanation | UnsetType = UNSET


class Embedding(msgspec.Struct, frozen=True):
    """The vector of one input: numbers, or base64 of little-endian floats of 32 bits."""

    embedding: list[float] | str
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddingsUsage(msgspec.Struct, frozen=True):
    """What embeddings took in tokens."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, frozen=True):
    """The vectors of all inputs, in their order."""

    data: tuple[Embedding, ...]
    model: str
    usage: EmbeddingsUsage
    object: Literal["list"] = "list"
    terafleet: Explanation | UnsetType = UNSET
