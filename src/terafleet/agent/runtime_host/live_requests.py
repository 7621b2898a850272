"""What llama.cpp is asked for when a session is opened: one stream for each text of the answer."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from terafleet.agent.runtime_host.chat_prompts import library_message
from terafleet.agent.runtime_host.generation_bodies import sampling_of
from terafleet.protocol.live import (
    JsonFormat,
    LiveBody,
    LiveChat,
    LiveCompletion,
    NamedTool,
    SchemaFormat,
    ToolFunction,
    output_tokens_max,
    stops_of,
)

# The number behind the last seed means chance to llama.cpp.
_SEEDS: Final = 2**32 - 1
_SEED_BYTES: Final = 4
_PROBABILITY_FIELDS: Final = ("token", "logprob", "bytes")

Request = dict[str, Any]


def token_request(body: LiveBody, prompt: str | list[int], delivered: Sequence[int]) -> Request:
    """Ask for a text behind a prompt and the tokens of it that exist already.

    Stops are looked for here and not by llama.cpp, which would keep back parts of tokens.
    """
    limit = output_tokens_max(body)
    request = sampling_of(body, None if limit is None else limit - len(delivered))
    begin = [prompt] if isinstance(prompt, str) else prompt
    return {
        **request,
        "prompt": [*begin, *delivered] if delivered else prompt,
        # So that each chunk has its tokens.
        "verbose": True,
        "return_tokens": True,
        **_logprobs_wanted(body),
    }


def chat_request(body: LiveChat) -> Request:
    """Ask for a chat as llama.cpp does it: with a grammar, or with tools."""
    request = {
        **sampling_of(body, output_tokens_max(body)),
        "messages": [library_message(message) for message in body.messages],
        **_tools(body),
    }
    if stops := stops_of(body):
        request["stop"] = list(stops)
    if body.logprobs:
        request |= {"logprobs": True, "top_logprobs": body.top_logprobs or 1}
    match body.response_format:
        case JsonFormat():
            request["response_format"] = {"type": "json_object"}
        case SchemaFormat(json_schema=named):
            described = {"name": named.name, "schema": named.schema}
            request["response_format"] = {"type": "json_schema", "json_schema": described}
    return request


def seed_at(seed: int, position: int) -> int:
    """The seed of the sampler that draws the tokens from `position` on.

    A text that was never interrupted has the customer's own. Behind a cut the position is mixed
    in (the first four bytes of a SHA-256), because the same seed would draw the same numbers
    again for other tokens: who asks twice gets the same text unless it moved at another place.
    """
    if not position:
        return seed
    mixed = hashlib.sha256(f"{seed}/{position}".encode()).digest()[:_SEED_BYTES]
    return int.from_bytes(mixed, "big") % _SEEDS


def seeded(request: Request, body: LiveBody, choice: int, position: int) -> Request:
    """The same with its choice's own chance, if the customer wants it to be repeatable."""
    if body.seed is None:
        return request
    return {**request, "seed": seed_at((body.seed + choice) % _SEEDS, position)}


def chat_logprobs(entries: Sequence[dict[str, Any]], alternatives: int) -> bytes:
    """Probabilities of tokens as a chat has them."""
    content = [
        {name: entry[name] for name in _PROBABILITY_FIELDS}
        | {
            "top_logprobs": [
                {name: other[name] for name in _PROBABILITY_FIELDS}
                for other in entry["top_logprobs"][:alternatives]
            ]
        }
        for entry in entries
    ]
    return msgspec.json.encode({"content": content, "refusal": None})


def completion_logprobs(entries: Sequence[dict[str, Any]], alternatives: int) -> bytes:
    """Probabilities of tokens as a completion has them; places count from the first token here."""
    places, place = [], 0
    for entry in entries:
        places.append(place)
        place += len(entry["token"])
    tops = [
        {other["token"]: other["logprob"] for other in entry["top_logprobs"][:alternatives]}
        for entry in entries
    ]
    written = {
        "text_offset": places,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "tokens": [entry["token"] for entry in entries],
        "top_logprobs": tops if alternatives else None,
    }
    return msgspec.json.encode(written)


def _logprobs_wanted(body: LiveBody) -> Request:
    """How many alternatives to tell; none at all would tell no probability either."""
    if isinstance(body, LiveCompletion):
        return {} if body.logprobs is None else {"logprobs": body.logprobs or 1}
    return {"logprobs": body.top_logprobs or 1} if body.logprobs else {}


def _tools(body: LiveChat) -> Request:
    if body.tools is None:
        return {}
    tools, choice = body.tools, body.tool_choice
    if isinstance(choice, NamedTool):
        # To llama.cpp the one tool that must be called is the only one there is.
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        choice = "required"
    request: Request = {"tools": [_tool(tool.function) for tool in tools]}
    if choice is not None:
        request["tool_choice"] = choice
    if body.parallel_tool_calls is not None:
        request["parallel_tool_calls"] = body.parallel_tool_calls
    return request


def _tool(function: ToolFunction) -> Request:
    described = {
        "name": function.name,
        "description": function.description or "",
        "parameters": function.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": described}
