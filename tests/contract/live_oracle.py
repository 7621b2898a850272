"""Knows the right answer to every live request: what an undisturbed model would say to it."""

import base64
import hashlib
import struct
from random import Random
from typing import Any

import msgspec

from terafleet.core.session_events import Piece
from terafleet.protocol.live import (
    LiveBody,
    LiveChat,
    LiveCompletion,
    choices_of,
    live_body,
    output_tokens_max,
)
from terafleet.protocol.openai import EMBEDDINGS

WORDS = (
    " car",
    " night",
    " the",
    " größer",
    ' "quoted"',
    "\n",
    "\n\ndata: [DONE]\n\n",
    " \\",
    " 電",
    " 🚗",
    "\u2028",
    "\r",
    "ing",
    " a",
    ".",
    "\t",
)
PROMPT_TOKENS = 7
TOKENS_USUAL = 12
DIMENSIONS = 3


class Text(msgspec.Struct, frozen=True):
    """One right text: the ids of its tokens, what each of them says, and why it ends."""

    token_ids: tuple[int, ...]
    words: tuple[str, ...]
    finish_reason: str

    @property
    def whole(self) -> str:
        """All of it."""
        return "".join(self.words)


def checked(endpoint: str, body: bytes) -> LiveBody:
    """The body as a car reads it, without anything that is not a car's matter."""
    request = live_body(endpoint, body)
    assert isinstance(request, LiveChat | LiveCompletion), request
    unsent = (request.customer_label, request.stream, request.stream_options)
    assert unsent == (None, None, None)
    assert b"\n" not in body
    return request


def texts_of(request: LiveBody) -> list[Text]:
    """The right answer."""
    return [_text(request, index) for index in range(choices_of(request))]


def _text(request: LiveBody, index: int) -> Text:
    prompt = request.prompt if isinstance(request, LiveCompletion) else request.messages
    seed = hashlib.sha256(msgspec.json.encode([prompt, index])).digest()
    chance = Random(seed)
    limit = output_tokens_max(request)
    count = limit or TOKENS_USUAL
    numbers = [chance.randrange(len(WORDS)) for _ in range(count)]
    # An id tells its place, so that a lost or repeated token can't look like a right one.
    token_ids = tuple(place * len(WORDS) + number for place, number in enumerate(numbers))
    words = tuple(WORDS[number] for number in numbers)
    return Text(token_ids, words, "length" if limit else "stop")


def pieces_of(request: LiveBody, index: int, begin: int, tokens_per_piece: int) -> list[Piece]:
    """The pieces of one text behind its first `begin` tokens; the last one has no words."""
    text = texts_of(request)[index]
    ends = range(begin, len(text.words), tokens_per_piece)
    pieces = [_piece(request, text, index, range(at, at + tokens_per_piece)) for at in ends]
    return [*pieces, Piece(index, (), "", finish_reason=text.finish_reason)]


def _piece(request: LiveBody, text: Text, index: int, places: range) -> Piece:
    words = text.words[places.start : places.stop]
    token_ids = text.token_ids[places.start : places.stop]
    logprobs = _logprobs(request, words)
    return Piece(index, token_ids, "".join(words), logprobs)


def logprob(word: str) -> float:
    """The same for the same word; halves, which JSON tells exactly."""
    return -len(word) / 2


def _logprobs(request: LiveBody, words: tuple[str, ...]) -> bytes:
    if isinstance(request, LiveChat):
        if not request.logprobs:
            return b""
        content: list[dict[str, Any]] = [
            {"token": word, "logprob": logprob(word), "bytes": None, "top_logprobs": []}
            for word in words
        ]
        return msgspec.json.encode({"content": content, "refusal": None})
    if request.logprobs is None:
        return b""
    places, place = [], 0
    for word in words:
        places.append(place)
        place += len(word)
    return msgspec.json.encode(
        {
            "text_offset": places,
            "token_logprobs": [logprob(word) for word in words],
            "tokens": words,
            "top_logprobs": [{word: logprob(word)} for word in words],
        }
    )


ARGUMENTS = '{"place": "Köln"}'


def call_pieces(name: str, index: int = 0) -> list[Piece]:
    """A call of a tool in one text of an answer, as llama.cpp tells it piece by piece."""
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name}}
    parts = [{"index": 0, "function": {"arguments": part}} for part in ARGUMENTS]
    deltas = [first, *parts]
    pieces = [Piece(index, (), "", tool_calls=msgspec.json.encode([delta])) for delta in deltas]
    return [*pieces, Piece(index, (), "", finish_reason="tool_calls")]


def vectors_of(body: dict[str, Any]) -> list[list[float]]:
    """The right vectors."""
    value = body["input"]
    is_one = isinstance(value, str) or isinstance(value[0], int)
    return [_vector(one) for one in ([value] if is_one else value)]


def _vector(one: Any) -> list[float]:
    digest = hashlib.sha256(msgspec.json.encode(one)).digest()
    return [byte / 256 for byte in digest[:DIMENSIONS]]


def embeddings_line(body: dict[str, Any]) -> str:
    """What a car sends for embeddings."""
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors_of(body)):
        packed = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode()
        is_packed = body.get("encoding_format") == "base64"
        embedding = packed if is_packed else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
    answer = {"object": "list", "data": data, "model": body["model"], "usage": usage}
    return msgspec.json.encode({"status_code": 200, "body": answer}).decode() + "\n"


def is_embeddings(endpoint: str) -> bool:
    """Whether vectors are wanted and not texts."""
    return endpoint == EMBEDDINGS
