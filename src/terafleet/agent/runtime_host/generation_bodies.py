"""The bodies of OpenAI's completions and chat completions: what may be asked, and the answers.

What a body doesn't name here is not supported and is refused by name.
"""

from typing import Annotated, Any, Final, Literal

import msgspec

from terafleet.agent.runtime_host.bodies import Answer, refusal, refusal_of
from terafleet.protocol.live import (
    COMPLETION_TOKENS,
    OutputTokens,
    SamplingBody,
    TextPart,
    TopLogprobs,
    prompts_of,
    text_of,
    wrong_prompts,
)


class CompletionBody(SamplingBody, frozen=True, kw_only=True):
    """A request body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class ChatBody(SamplingBody, frozen=True, kw_only=True):
    """A request body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: OutputTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None


COMPLETION_BODY: Final = msgspec.json.Decoder(CompletionBody)
CHAT_BODY: Final = msgspec.json.Decoder(ChatBody)


def wrong_generation(body: SamplingBody) -> Answer | None:
    """The answer to a request that no model here can serve."""
    if body.stream:
        return refusal("unsupported_parameter", "A batch doesn't stream.", "stream")
    if not isinstance(body, CompletionBody):
        return None
    wrong = wrong_prompts(prompts_of(body.prompt), body.n or 1)
    return None if wrong is None else refusal_of(wrong)


def generations_of(body: CompletionBody | ChatBody) -> list[dict[str, Any]]:
    """What llama.cpp is asked for, one text at a time, all choices of a prompt side by side.

    It would count the tokens of the first choice only if it were asked for all of them.
    """
    choices = range(body.n or 1)
    shared = _asked(body)
    if isinstance(body, CompletionBody):
        asked = [{**shared, "prompt": prompt} for prompt in prompts_of(body.prompt)]
    else:
        asked = [{**shared, **_chat(body)}]
    if body.seed is None:
        return [request for request in asked for _ in choices]
    return [{**request, "seed": body.seed + choice} for request in asked for choice in choices]


def sampling_of(body: SamplingBody, tokens_max: int | None) -> dict[str, Any]:
    """How a stream of at most so many tokens is drawn, as llama.cpp wants to be told.

    OpenAI's defaults stand in place of the library's own, which cut away unlikely tokens.
    """
    request: dict[str, Any] = {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        # Only a stream can be stopped on its way, and while it reads only one that tells of it.
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
    }
    optional = {"max_tokens": tokens_max, "logit_bias": body.logit_bias}
    return request | {name: value for name, value in optional.items() if value is not None}


def _asked(body: CompletionBody | ChatBody) -> dict[str, Any]:
    limit = body.max_tokens
    if isinstance(body, CompletionBody):
        limit = limit or COMPLETION_TOKENS
    request = sampling_of(body, limit)
    return request if body.stop is None else {**request, "stop": body.stop}


def _chat(body: ChatBody) -> dict[str, Any]:
    request: dict[str, Any] = {"messages": [_message(message) for message in body.messages]}
    if body.max_completion_tokens is not None:
        request["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        # The library tells no probability at all when it is asked for no alternatives.
        request |= {"logprobs": True, "top_logprobs": body.top_logprobs or 1}
    return request


def _message(message: ChatMessage) -> dict[str, str]:
    # The newer name of the same role, which templates of models don't know.
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": text_of(message.content)}
