"""The bodies of live completions and chats: what may be asked, at the gateway and in the car.

What a body doesn't name here is not supported and is refused by name, never ignored.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from terafleet.protocol.live_schemas import size_fault, strict_fault
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS

CHOICES_MAX: Final = 128
"""How many texts one request may ask for, in prompts times choices."""

COMPLETION_TOKENS: Final = 16
"""What `/v1/completions` writes at most when nothing is said; OpenAI's own default."""

TOOLS_MAX: Final = 128
"""OpenAI's own bound on the tools of one request."""

BIASES_MAX: Final = 1_024
"""A bias is looked at for each token that is written, and far more of them take seconds to read."""

OUTPUT_TOKENS_MAX: Final = 1_048_576
MESSAGE_CHARACTERS_MAX: Final = 400

OutputTokens = Annotated[int, Meta(ge=1, le=OUTPUT_TOKENS_MAX)]
Choices = Annotated[int, Meta(ge=1, le=CHOICES_MAX)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=0, lt=2**32 - 1)]
Stops = str | Annotated[list[str], Meta(max_length=4)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenKey = Annotated[str, Meta(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Biases = Annotated[dict[TokenKey, Bias], Meta(max_length=BIASES_MAX)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
CompletionLogprobs = Annotated[int, Meta(ge=0, le=5)]
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Schema = dict[str, Any]

_UNKNOWN_FIELD = re.compile(r"contains unknown field `(?P<name>[^`]*)`")
_MISSING_FIELD = re.compile(r"missing required field `(?P<name>[^`]*)`")
_PLACE = re.compile(r"`\$\.(?P<name>\w+)")


class LiveFault(msgspec.Struct, frozen=True):
    """Why a request gets no answer: a code of `protocol.errors`, words, and the parameter."""

    code: str
    message: str
    param: str | None = None


class SamplingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all requests for texts have; `user` is taken and means nothing."""

    model: str
    max_tokens: OutputTokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: Choices | None = None
    stop: Stops | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    stream: bool | None = None
    customer_label: str | None = msgspec.field(default=None, name="user")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a body; it has the fields that are named and no others."""


class StreamOptions(_Part, frozen=True):
    """How a stream is told; the gateway's matter."""

    include_usage: bool | None = None


class LiveCompletion(SamplingBody, frozen=True, kw_only=True):
    """A request body of `/v1/completions`."""

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: CompletionLogprobs | None = None
    stream_options: StreamOptions | None = None


class TextPart(_Part, frozen=True):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class CalledFunction(_Part, frozen=True):
    """The function that a model has called, with its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(_Part, frozen=True):
    """A call that a model has made in an earlier answer."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class _Message(_Part, frozen=True, tag_field="role"):
    """One message of a chat."""


class Instruction(_Message, frozen=True, tag="system"):
    """What the customer's program tells the model."""

    content: Content


class NewerInstruction(_Message, frozen=True, tag="developer"):
    """The newer name of the same."""

    content: Content


class Question(_Message, frozen=True, tag="user"):
    """What a person says."""

    content: Content


class EarlierAnswer(_Message, frozen=True, tag="assistant"):
    """What the model said before; as its answers have it, a refusal of null among it."""

    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None


class ToolResult(_Message, frozen=True, tag="tool"):
    """What a tool gave back."""

    content: Content
    tool_call_id: str


Message = Instruction | NewerInstruction | Question | EarlierAnswer | ToolResult


class ToolFunction(_Part, frozen=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(_Part, frozen=True):
    """A tool; only functions are known."""

    type: Literal["function"]
    function: ToolFunction


class NamedFunction(_Part, frozen=True):
    """The name of a function."""

    name: Name


class NamedTool(_Part, frozen=True):
    """The one tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(_Part, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class JsonFormat(_Part, frozen=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class NamedSchema(_Part, frozen=True):
    """A JSON schema and its name."""

    name: Name
    schema: Schema
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(_Part, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that a schema allows."""

    json_schema: NamedSchema


class LiveChat(SamplingBody, frozen=True, kw_only=True):
    """A request body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: OutputTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    stream_options: StreamOptions | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


LiveBody = LiveCompletion | LiveChat

_DECODERS: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    COMPLETIONS: msgspec.json.Decoder(LiveCompletion),
    CHAT_COMPLETIONS: msgspec.json.Decoder(LiveChat),
}


def live_body(endpoint: str, body: bytes) -> LiveBody | LiveFault:
    """The request that a body holds, or the first thing that is wrong with it."""
    decoder = _DECODERS.get(endpoint)
    if decoder is None:
        return LiveFault("unsupported_endpoint", f"Nothing is streamed at {endpoint}.")
    try:
        request: LiveBody = decoder.decode(body)
    except msgspec.ValidationError as error:
        return fault_of(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"The body is not valid JSON: {error}"
        return LiveFault("invalid_request", message[:MESSAGE_CHARACTERS_MAX])
    return _fault(request) or request


def can_move(body: LiveBody) -> bool:
    """Whether an answer that has begun can go on in another car, from the tokens delivered.

    The state of a grammar or of a tool's call is not in the tokens; and of several texts nobody
    could say which has got how far.
    """
    if choices_of(body) > 1:
        return False
    if isinstance(body, LiveCompletion):
        return True
    return body.tools is None and isinstance(body.response_format, TextFormat | None)


def prompts_of(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The prompts one by one; a bare number among others is none, and stands here as empty."""
    if isinstance(prompt, str):
        return [prompt]
    numbers = [number for number in prompt if isinstance(number, int)]
    if numbers and len(numbers) == len(prompt):
        return [numbers]
    return [[] if isinstance(one, int) else one for one in prompt]


def choices_of(body: LiveBody) -> int:
    """How many texts the answer has."""
    prompts = len(prompts_of(body.prompt)) if isinstance(body, LiveCompletion) else 1
    return prompts * (body.n or 1)


def output_tokens_max(body: LiveBody) -> int | None:
    """What each text of the answer may have at most, None where only the context ends it."""
    if isinstance(body, LiveCompletion):
        return body.max_tokens or COMPLETION_TOKENS
    return body.max_completion_tokens or body.max_tokens


def stops_of(body: SamplingBody) -> tuple[str, ...]:
    """The texts before which an answer ends; an empty one would end every answer and is none."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return tuple(stop for stop in stops if stop)


def text_of(content: Content | None) -> str:
    """A message's text in one piece."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def fault_of(words: str) -> LiveFault:
    """What msgspec says of a body, with the parameter, which only its words tell."""
    place = _PLACE.search(words)
    if place is None and (unknown := _UNKNOWN_FIELD.search(words)):
        # A name comes from the customer and can be as long as the body.
        name = unknown["name"][: MESSAGE_CHARACTERS_MAX // 2]
        return LiveFault("unsupported_parameter", f"The parameter {name} is not supported.", name)
    if place is None and (missing := _MISSING_FIELD.search(words)):
        name = missing["name"]
        return LiveFault("missing_parameter", f"The parameter {name} is required.", name)
    message = words[:MESSAGE_CHARACTERS_MAX]
    return LiveFault("invalid_value", message, place["name"] if place else None)


def wrong_prompts(prompts: list[str | list[int]], choices: int) -> LiveFault | None:
    """What no model could take of prompts, each of which asks for so many texts."""
    if not prompts or [] in prompts:
        message = "Prompts are texts or lists of tokens, and there is at least one."
        return LiveFault("invalid_value", message, "prompt")
    if len(prompts) * choices > CHOICES_MAX:
        message = f"A request asks for {CHOICES_MAX} texts at most, prompts times n."
        return LiveFault("invalid_value", message, "n")
    return None


def _fault(body: LiveBody) -> LiveFault | None:
    """What the types of the fields can't say."""
    if body.stream_options is not None and not body.stream:
        return LiveFault("invalid_value", "There is no stream to have options.", "stream_options")
    if isinstance(body, LiveCompletion):
        return wrong_prompts(prompts_of(body.prompt), body.n or 1)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        message = "Give either max_tokens or max_completion_tokens."
        return LiveFault("invalid_value", message, "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        return LiveFault("invalid_value", "This needs logprobs to be true.", "top_logprobs")
    return _tools_fault(body) or _schemas_fault(body) or _messages_fault(body)


def _tools_fault(body: LiveChat) -> LiveFault | None:
    names = [tool.function.name for tool in body.tools or []]
    if len(set(names)) < len(names):
        return LiveFault("invalid_value", "Two tools have the same name.", "tools")
    if names:
        choice = body.tool_choice
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            return LiveFault("invalid_value", "There is no such tool.", "tool_choice")
        return None
    for name in ("tool_choice", "parallel_tool_calls"):
        if getattr(body, name) is not None:
            return LiveFault("invalid_value", "This needs tools.", name)
    return None


def _schemas_fault(body: LiveChat) -> LiveFault | None:
    """Schemas that nobody can read, or that can't be kept to although that is asked for."""
    functions = [tool.function for tool in body.tools or []]
    asked = [("tools", one.parameters, one.strict) for one in functions]
    if isinstance(body.response_format, SchemaFormat):
        named = body.response_format.json_schema
        asked.append(("response_format", named.schema, named.strict))
    for param, schema, is_strict in asked:
        if (words := size_fault(schema)) is not None:
            return LiveFault("invalid_value", words, param)
        if is_strict and (words := strict_fault(schema or {})) is not None:
            return LiveFault("invalid_value", words, param)
    return None


def _messages_fault(body: LiveChat) -> LiveFault | None:
    for message in body.messages:
        if message.content is None and not message.tool_calls:
            words = "A message of the assistant has content or tool_calls."
            return LiveFault("invalid_value", words, "messages")
        # Chat templates are run by code that ends a text there.
        if any("\0" in text for text in _texts(message)):
            return LiveFault("invalid_value", "A message has a NUL character.", "messages")
    return None


def _texts(message: Message) -> Iterable[str]:
    """All that a chat template can see of a message."""
    yield text_of(message.content)
    if isinstance(message, ToolResult):
        yield message.tool_call_id
    if isinstance(message, EarlierAnswer):
        for call in message.tool_calls or []:
            yield from (call.id, call.function.name, call.function.arguments)
