"""Which parameters a request in a batch may have at each endpoint, and what it will cost.

What a batch cannot honour is refused by name and never ignored.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from terafleet.core.work import CHARACTERS_PER_TOKEN, predicted_cost
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS

INPUTS_MAX = 2048
"""OpenAI's own limit of the texts in one request for embeddings."""

STOPS_MAX = 4
"""OpenAI's own limit of the texts that may end a completion."""

OUTPUT_TOKENS_DEFAULT = 256
"""What a completion without a limit is taken to produce."""

OUTPUT_TOKENS_MAX = 1_048_576
"""A bound far beyond any model, so that predicted costs stay small numbers."""

SEED_MAX = 2**32 - 2
"""What llama.cpp takes; the number behind it means chance."""

MODEL_NAME_MAX = 256
"""The longest name that a model can have."""

NAME_SHOWN_MAX = 64
"""A parameter's name comes from the customer; no more of it is repeated."""

Text = Annotated[str, Meta(min_length=1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
Texts = Annotated[list[Text], Meta(min_length=1, max_length=INPUTS_MAX)]
TokenIdLists = Annotated[list[TokenIds], Meta(min_length=1, max_length=INPUTS_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stops = Text | Annotated[list[Text], Meta(min_length=1, max_length=STOPS_MAX)]
OutputTokens = Annotated[int, Meta(ge=1, le=OUTPUT_TOKENS_MAX)]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message; only text can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


Chat = Annotated[list[ChatMessage], Meta(min_length=1)]

GENERATION: dict[str, Any] = {
    "max_tokens": OutputTokens,
    "temperature": Annotated[float, Meta(ge=0, le=2)],
    "top_p": Annotated[float, Meta(gt=0, le=1)],
    "seed": Annotated[int, Meta(ge=0, le=SEED_MAX)],
    "stop": Stops,
    "presence_penalty": Penalty,
    "frequency_penalty": Penalty,
}

PARAMETERS: dict[str, dict[str, Any]] = {
    EMBEDDINGS: {
        "input": Any,
        "encoding_format": Literal["float", "base64"],
        "dimensions": Annotated[int, Meta(ge=1, le=65_536)],
    },
    COMPLETIONS: {"prompt": Text, **GENERATION},
    CHAT_COMPLETIONS: {"messages": Chat, "max_completion_tokens": OutputTokens, **GENERATION},
}
"""The parameters of each endpoint beside `model`, with their types."""

REQUIRED = {EMBEDDINGS: "input", COMPLETIONS: "prompt", CHAT_COMPLETIONS: "messages"}

ONLY: dict[str, dict[str, tuple[object, str]]] = {
    EMBEDDINGS: {},
    COMPLETIONS: {
        "n": (1, "a request of a batch gets one answer"),
        "best_of": (1, "a request of a batch gets one answer"),
        "echo": (False, "the prompt is not repeated"),
        "stream": (False, "a batch is answered as a file, not as a stream"),
    },
    CHAT_COMPLETIONS: {
        "n": (1, "a request of a batch gets one answer"),
        "logprobs": (False, "log probabilities are not kept"),
        "stream": (False, "a batch is answered as a file, not as a stream"),
    },
}
"""Parameters that may be written down with the one value that changes nothing; not sent on."""

UNSENT = frozenset({"user"})
"""What means nothing to a model and says something about a person; no car gets it."""


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a body: a code of the table of errors, words, and the parameter."""

    code: str
    message: str
    param: str | None


class CheckedBody(msgspec.Struct, frozen=True):
    """A body that can be honoured: its model, what is sent to a car, and its predicted tokens.

    What is sent has no nulls, nothing that changes nothing, and one name for the output's limit.
    """

    model: str
    body: dict[str, Any]
    cost: int


def check_body(endpoint: str, body: Mapping[str, Any]) -> CheckedBody | Fault:
    """A decoded body as a request to an endpoint of `BATCH_ENDPOINTS`, or its first fault."""
    model = body.get("model")
    if not isinstance(model, str) or not 1 <= len(model) <= MODEL_NAME_MAX:
        return _fault_of_model(model)
    required = REQUIRED[endpoint]
    if body.get(required) is None:
        return Fault("missing_parameter", f"{required} is missing", required)
    kept: dict[str, Any] = {"model": model}
    for name, value in body.items():
        fault = _check_parameter(endpoint, name, value)
        if isinstance(fault, Fault):
            return fault
        if fault is None:
            kept[name] = value
    limit = kept.pop("max_completion_tokens", None)
    if limit is not None:
        if "max_tokens" in kept:
            message = "give either max_tokens or max_completion_tokens"
            return Fault("invalid_value", message, "max_tokens")
        kept["max_tokens"] = limit
    return CheckedBody(model, kept, COSTS[endpoint](kept))


_UNSENT = "unsent"


def _check_parameter(endpoint: str, name: str, value: Any) -> Fault | str | None:
    """A fault, None for a parameter to send on, or `_UNSENT` for one that changes nothing."""
    if name == "model":
        return None
    kind = PARAMETERS[endpoint].get(name)
    if kind is not None:
        if value is None:
            return _UNSENT
        return _check_input(value) if kind is Any else _check_type(name, value, kind)
    if name in UNSENT:
        return _check_type(name, value, str | None) or _UNSENT
    only = ONLY[endpoint].get(name)
    if only is None:
        shown = name[:NAME_SHOWN_MAX]
        return Fault("unsupported_parameter", f"{shown} is not supported in a batch", shown)
    if value is None or (value == only[0] and type(value) is type(only[0])):
        return _UNSENT
    return Fault("unsupported_parameter", f"{name} must be left out: {only[1]}", name)


def _fault_of_model(model: object) -> Fault:
    if model is None:
        return Fault("missing_parameter", "model is missing", "model")
    message = f"model must be a text of 1 to {MODEL_NAME_MAX} characters"
    return Fault("invalid_value", message, "model")


def _check_type(name: str, value: Any, kind: Any) -> Fault | None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        words = str(error)
        message = f"{name} is not valid: {words[0].lower()}{words[1:]}"
        # The words can hold names out of the request, which may be as long as the line.
        return Fault("invalid_value", message[:300], name)
    return None


def _check_input(value: Any) -> Fault | None:
    if isinstance(value, str):
        return _check_type("input", value, Text)
    first = value[0] if isinstance(value, list) and value else ""
    match first:
        case list():
            return _check_type("input", value, TokenIdLists)
        case int():
            return _check_type("input", value, TokenIds)
        case _:
            return _check_type("input", value, Texts)


def _cost_of_embeddings(body: Mapping[str, Any]) -> int:
    value = body["input"]
    if isinstance(value, str):
        return predicted_cost(len(value), 0)
    match value[0]:
        case str():
            characters = sum(map(len, value))
        case list():
            characters = CHARACTERS_PER_TOKEN * sum(map(len, value))
        case _:
            characters = CHARACTERS_PER_TOKEN * len(value)
    return predicted_cost(characters, 0)


def _cost_of_completion(body: Mapping[str, Any]) -> int:
    return predicted_cost(len(body["prompt"]), body.get("max_tokens", OUTPUT_TOKENS_DEFAULT))


def _cost_of_chat(body: Mapping[str, Any]) -> int:
    characters = 0
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, str):
            characters += len(content)
        else:
            characters += sum(len(part["text"]) for part in content)
    return predicted_cost(characters, body.get("max_tokens", OUTPUT_TOKENS_DEFAULT))


COSTS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    EMBEDDINGS: _cost_of_embeddings,
    COMPLETIONS: _cost_of_completion,
    CHAT_COMPLETIONS: _cost_of_chat,
}
"""The predicted tokens of a checked body, for each endpoint."""
