"""The bodies of OpenAI's `/v1/embeddings`: what may be asked, and the form of the answer."""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from terafleet.agent.runtime_host.bodies import Answer, refusal, success

ENDPOINT: Final = "/v1/embeddings"
INPUTS_MAX: Final = 2048
"""OpenAI's own bound on the inputs of one request."""


class EmbeddingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request body; `user` is taken and means nothing."""

    input: str | list[str | int | list[int]]
    model: str
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class _Embedding(msgspec.Struct, frozen=True):
    object: Literal["embedding"]
    index: int
    embedding: msgspec.Raw


class _Response(msgspec.Struct, frozen=True):
    object: Literal["list"]
    data: list[_Embedding]
    model: str
    usage: _Usage


EMBEDDING_BODY: Final = msgspec.json.Decoder(EmbeddingBody)


def inputs_of(body: EmbeddingBody) -> list[str | list[int]]:
    """The inputs one by one; a bare number among others is none, and stands here as empty."""
    if isinstance(body.input, str):
        return [body.input]
    numbers = [number for number in body.input if isinstance(number, int)]
    if numbers and len(numbers) == len(body.input):
        return [numbers]
    return [[] if isinstance(text, int) else text for text in body.input]


def wrong_inputs(body: EmbeddingBody, vocabulary: int) -> Answer | None:
    """The answer to a request whose inputs no model with so many tokens can take."""
    inputs = inputs_of(body)
    if not inputs or len(inputs) > INPUTS_MAX:
        message = f"A request has between 1 and {INPUTS_MAX} inputs."
        return refusal("invalid_value", message, "input")
    if not all(inputs):
        message = "Inputs are texts or lists of tokens, and none is empty."
        return refusal("invalid_value", message, "input")
    known = range(vocabulary)
    tokens = (token for text in inputs if isinstance(text, list) for token in text)
    if not all(token in known for token in tokens):
        message = f"The model has tokens from 0 to {vocabulary - 1}."
        return refusal("invalid_value", message, "input")
    return None


def wrong_dimensions(body: EmbeddingBody, dimensions: int) -> Answer | None:
    """The answer to a request for another length than the model's vectors have."""
    if body.dimensions in (None, dimensions):
        return None
    message = f"This model's embeddings have {dimensions} dimensions."
    return refusal("invalid_value", message, "dimensions")


def embedding_response(model: str, vectors: Iterable[bytes], prompt_tokens: int) -> Answer:
    """The answer with vectors that are JSON already, in the order of the inputs."""
    data = [
        _Embedding("embedding", index, msgspec.Raw(vector)) for index, vector in enumerate(vectors)
    ]
    response = _Response("list", data, model, _Usage(prompt_tokens, prompt_tokens))
    return success(msgspec.json.encode(response))
