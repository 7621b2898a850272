"""The bodies of OpenAI's completions and chat completions: what may be asked, and the answers.

What a body doesn't name here is not supported and is refused by name.
"""

from typing import Annotated, Any, Final, Literal

import msgspec

from terafleet.agent.runtime_host.bodies import Answer, refusal

COMPLETIONS: Final = "/v1/completions"
CHAT_COMPLETIONS: Final = "/v1/chat/completions"

# How many texts one request may ask for, in prompts times choices.
_CHOICES_MAX = 128
_COMPLETION_TOKENS = 16  # OpenAI's own default.

_Tokens = Annotated[int, msgspec.Meta(ge=1)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=_CHOICES_MAX)]
_Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
_Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Seed = Annotated[int, msgspec.Meta(ge=0, lt=2**32 - 1)]
_Stops = str | Annotated[list[str], msgspec.Meta(max_length=4)]
_Biases = dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]]
_TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]


class SamplingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of request have; `user` is taken and means nothing, `stream` must be off."""

    model: str
    max_tokens: _Tokens | None = None
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    n: _Choices | None = None
    stop: _Stops | None = None
    seed: _Seed | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: _Biases | None = None
    stream: bool | None = None
    user: str | None = None


class CompletionBody(SamplingBody, frozen=True, kw_only=True):
    """A request body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class ChatBody(SamplingBody, frozen=True, kw_only=True):
    """A request body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None


COMPLETION_BODY: Final = msgspec.json.Decoder(CompletionBody)
CHAT_BODY: Final = msgspec.json.Decoder(ChatBody)


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """The prompts one by one; a bare number among others is none, and stands here as empty."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    numbers = [number for number in body.prompt if isinstance(number, int)]
    if numbers and len(numbers) == len(body.prompt):
        return [numbers]
    return [[] if isinstance(prompt, int) else prompt for prompt in body.prompt]


def wrong_generation(body: SamplingBody) -> Answer | None:
    """The answer to a request that no model here can serve."""
    if body.stream:
        return refusal("unsupported_parameter", "A batch doesn't stream.", "stream")
    if not isinstance(body, CompletionBody):
        return None
    prompts = prompts_of(body)
    if not prompts or [] in prompts:
        message = "Prompts are texts or lists of tokens, and there is at least one."
        return refusal("invalid_value", message, "prompt")
    if len(prompts) * (body.n or 1) > _CHOICES_MAX:
        message = f"A request asks for {_CHOICES_MAX} texts at most, prompts times n."
        return refusal("invalid_value", message, "n")
    return None


def generations_of(body: CompletionBody | ChatBody) -> list[dict[str, Any]]:
    """What llama.cpp is asked for, one text at a time, all choices of a prompt side by side.

    It would count the tokens of the first choice only if it were asked for all of them.
    """
    choices = range(body.n or 1)
    shared = _sampling(body)
    if isinstance(body, CompletionBody):
        asked = [{**shared, "prompt": prompt} for prompt in prompts_of(body)]
    else:
        asked = [{**shared, **_chat(body)}]
    if body.seed is None:
        return [request for request in asked for _ in choices]
    return [{**request, "seed": body.seed + choice} for request in asked for choice in choices]


def _sampling(body: CompletionBody | ChatBody) -> dict[str, Any]:
    """OpenAI's defaults in place of the library's own, which cut away unlikely tokens."""
    limit = body.max_tokens
    if isinstance(body, CompletionBody):
        limit = limit or _COMPLETION_TOKENS
    request: dict[str, Any] = {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        # Only a stream can be stopped on its way.
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    optional = {"max_tokens": limit, "stop": body.stop, "logit_bias": body.logit_bias}
    return request | {name: value for name, value in optional.items() if value is not None}


def _chat(body: ChatBody) -> dict[str, Any]:
    request: dict[str, Any] = {"messages": [_message(message) for message in body.messages]}
    if body.max_completion_tokens is not None:
        request["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        # The library tells no probability at all when it is asked for no alternatives.
        request |= {"logprobs": True, "top_logprobs": body.top_logprobs or 1}
    return request


def _message(message: ChatMessage) -> dict[str, str]:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    # The newer name of the same role, which templates of models don't know.
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": text}
