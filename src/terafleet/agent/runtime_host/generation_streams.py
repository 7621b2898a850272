"""Puts the pieces of a generated text together again, and writes the answer of a request."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from terafleet.agent.runtime_host.bodies import Answer, refusal, success
from terafleet.agent.runtime_host.generation_bodies import ChatBody, CompletionBody
from terafleet.agent.runtime_host.models import IsStopped

_HTTP_BAD_REQUEST: Final = 400
# What the library says of a text for an embedding that doesn't fit into one batch.
_TOO_LONG: Final = "too large to process"


class Generation:
    """One text while it grows; called with each piece, and says whether it should stop."""

    def __init__(self, is_stopped: IsStopped) -> None:
        self._is_stopped = is_stopped
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[Any] = []
        self._finish_reason: str | None = None
        self._first: dict[str, Any] = {}
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.error: Answer | None = None

    def __call__(self, piece: dict[str, Any]) -> bool:
        """Take a piece in OpenAI's form of a stream; True ends the generation."""
        if "error" in piece:
            self.error = _error(piece["error"])
            return True
        self._first = self._first or piece
        for choice in piece["choices"]:
            self._take(choice)
        if (usage := piece.get("usage")) is not None:
            self.prompt_tokens = usage["prompt_tokens"]
            self.completion_tokens = usage["completion_tokens"]
        return self._is_stopped()

    @property
    def id(self) -> str:
        """The name that the library gave it."""
        return str(self._first.get("id", ""))

    @property
    def created_s(self) -> int:
        """When it was begun, in seconds since 1970."""
        return int(self._first.get("created", 0))

    def completion_choice(self, index: int) -> dict[str, Any]:
        """The text as a choice of a completion."""
        return {
            "text": "".join(self._text),
            "index": index,
            "logprobs": None,
            "finish_reason": self._finish_reason,
        }

    def chat_choice(self, index: int, alternatives: int | None) -> dict[str, Any]:
        """The text as a choice of a chat completion, with so many alternatives to each token."""
        message = {"role": "assistant", "content": "".join(self._text), "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        return {
            "index": index,
            "message": message,
            "logprobs": None if alternatives is None else self._probabilities(alternatives),
            "finish_reason": self._finish_reason,
        }

    def _probabilities(self, alternatives: int) -> dict[str, Any]:
        fields = ("token", "logprob", "bytes")
        content = [
            {name: token[name] for name in fields}
            | {
                "top_logprobs": [
                    {name: other[name] for name in fields}
                    for other in token["top_logprobs"][:alternatives]
                ]
            }
            for token in self._logprobs
        ]
        return {"content": content, "refusal": None}

    def _take(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        self._text.append(choice.get("text") or delta.get("content") or "")
        if delta.get("reasoning_content"):
            self._reasoning.append(delta["reasoning_content"])
        if choice.get("logprobs"):
            self._logprobs += choice["logprobs"]["content"]
        self._finish_reason = choice.get("finish_reason") or self._finish_reason


def response_of(body: CompletionBody | ChatBody, generations: Sequence[Generation]) -> Answer:
    """The answer of a request from all of its texts; the first that failed is the answer."""
    for generation in generations:
        if generation.error is not None:
            return generation.error
    prompt_tokens, completion_tokens = tokens_of(body, generations)
    first = generations[0]
    response: dict[str, Any] = {
        "id": first.id,
        "object": "text_completion",
        "created": first.created_s,
        "model": body.model,
        "choices": [one.completion_choice(index) for index, one in enumerate(generations)],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    if isinstance(body, ChatBody):
        alternatives = (body.top_logprobs or 0) if body.logprobs else None
        choices = [one.chat_choice(index, alternatives) for index, one in enumerate(generations)]
        response |= {"object": "chat.completion", "choices": choices}
    return success(msgspec.json.encode(response))


def tokens_of(
    body: CompletionBody | ChatBody, generations: Sequence[Generation]
) -> tuple[int, int]:
    """Tokens read and written; a prompt counts once however many texts continue it."""
    if any(generation.error is not None for generation in generations):
        return 0, 0
    prompt_tokens = sum(one.prompt_tokens for one in generations[:: body.n or 1])
    return prompt_tokens, sum(one.completion_tokens for one in generations)


def _error(error: dict[str, Any]) -> Answer:
    """The library's error in our table's words."""
    message = str(error.get("message", ""))
    is_too_long = error.get("type") == "exceed_context_size_error" or _TOO_LONG in message
    if is_too_long:
        return refusal("context_length_exceeded", message)
    code = error.get("code")
    return refusal("invalid_request" if code == _HTTP_BAD_REQUEST else "internal_error", message)
