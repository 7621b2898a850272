"""Reads the body of a live request: what is asked for, what the car gets of it, what it costs."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.parameters import (
    INPUTS_MAX,
    OUTPUT_TOKENS_DEFAULT,
    Text,
    Texts,
    TokenIdLists,
    TokenIds,
)
from terafleet.core.work import CHARACTERS_PER_TOKEN, predicted_cost
from terafleet.protocol.live import (
    EarlierAnswer,
    LiveBody,
    LiveChat,
    LiveCompletion,
    LiveFault,
    Message,
    can_move,
    choices_of,
    fault_of,
    live_body,
    output_tokens_max,
    prompts_of,
    text_of,
)
from terafleet.protocol.openai import EMBEDDINGS

UNSENT: Final = ("stream", "stream_options", "user")
"""What is the gateway's own matter, or says something about a person; no car gets it."""

DIMENSIONS_MAX: Final = 65_536
NO_WHITESPACE: Final = -1


class LiveEmbeddings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request body of `/v1/embeddings`; `user` is taken and means nothing."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=DIMENSIONS_MAX)] | None = None
    user: str | None = None


class CheckedRequest(msgspec.Struct, frozen=True):
    """A body that can be honoured: what is wanted, and what is sent to a car.

    `tokens` is the predicted work; `choices` how many texts or vectors the answer has.
    """

    model: str
    body: bytes
    tokens: int
    choices: int
    can_move: bool = False
    is_streamed: bool = False
    includes_usage: bool = False


_EMBEDDINGS: Final = msgspec.json.Decoder(LiveEmbeddings)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def checked_request(endpoint: str, body: bytes) -> CheckedRequest:
    """The request of a body. Raises ApiError that names the parameter at fault."""
    if endpoint == EMBEDDINGS:
        return _checked_embeddings(body)
    request = live_body(endpoint, body)
    if isinstance(request, LiveFault):
        raise ApiError(request.code, request.message, request.param)
    fields = _FIELDS.decode(body)
    options = request.stream_options
    return CheckedRequest(
        model=request.model,
        body=_sent(fields),
        tokens=_tokens(request, len(bytes(fields.get("tools", b"")))),
        choices=choices_of(request),
        can_move=can_move(request),
        is_streamed=bool(request.stream),
        includes_usage=options is not None and bool(options.include_usage),
    )


def _sent(fields: dict[str, msgspec.Raw]) -> bytes:
    """The body for the car, on one line; its values stay as the customer wrote them."""
    kept = {name: value for name, value in fields.items() if name not in UNSENT}
    return msgspec.json.format(msgspec.json.encode(kept), indent=NO_WHITESPACE)


def _tokens(request: LiveBody, tools_bytes: int) -> int:
    output_tokens = output_tokens_max(request) or OUTPUT_TOKENS_DEFAULT
    characters = _characters(request) + tools_bytes
    return predicted_cost(characters, output_tokens * choices_of(request))


def _characters(request: LiveBody) -> int:
    if isinstance(request, LiveCompletion):
        return sum(map(_characters_of, prompts_of(request.prompt)))
    assert isinstance(request, LiveChat)
    return sum(map(_characters_in, request.messages))


def _characters_of(prompt: str | list[int]) -> int:
    return len(prompt) if isinstance(prompt, str) else CHARACTERS_PER_TOKEN * len(prompt)


def _characters_in(message: Message) -> int:
    characters = len(text_of(message.content))
    if isinstance(message, EarlierAnswer):
        for call in message.tool_calls or []:
            characters += len(call.function.name) + len(call.function.arguments)
    return characters


def _checked_embeddings(body: bytes) -> CheckedRequest:
    try:
        request = _EMBEDDINGS.decode(body)
    except msgspec.ValidationError as error:
        fault = fault_of(str(error))
        raise ApiError(fault.code, fault.message, fault.param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("invalid_request", f"The body is not valid JSON: {error}") from error
    inputs = _inputs(request.input)
    characters = sum(map(_characters_of, inputs))
    sent = _sent(_FIELDS.decode(body))
    return CheckedRequest(request.model, sent, predicted_cost(characters, 0), len(inputs))


def _inputs(value: str | list[Any]) -> list[str | list[int]]:
    """The inputs one by one. Raises ApiError where they are of several kinds, or empty."""
    kind = _kind(value)
    try:
        checked = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = (
            f"The input is a text, or a list of up to {INPUTS_MAX} texts, or one of token ids, or "
            f"a list of up to {INPUTS_MAX} such lists, and none is empty: {error}"
        )
        raise ApiError("invalid_value", message, "input") from error
    return checked if kind in (Texts, TokenIdLists) else [checked]


def _kind(value: str | list[Any]) -> Any:
    """What a value must be to be an input, as its first entry has it."""
    if isinstance(value, str):
        return Text
    match value[:1]:
        case [list()]:
            return TokenIdLists
        case [int()]:
            return TokenIds
        case _:
            return Texts
