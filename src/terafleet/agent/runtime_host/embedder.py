"""Answers embedding requests with an encoder in ONNX form.

It doesn't know whether it runs behind walls, so that it can be compared with a fleet in one
process.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import msgspec
import numpy as np

from terafleet.agent.runtime_host.bodies import Answer, lines_of, parsed, payload_of, refusal
from terafleet.agent.runtime_host.embedding_bodies import (
    EMBEDDING_BODY,
    ENDPOINT,
    EmbeddingBody,
    embedding_response,
    inputs_of,
    wrong_dimensions,
    wrong_inputs,
)
from terafleet.agent.runtime_host.encoder import Encoder, Tokens, Vectors
from terafleet.agent.runtime_host.models import (
    Answers,
    IsStopped,
    LiveRequest,
    LoadModel,
    ModelFailed,
    TakePiece,
)
from terafleet.agent.runtime_host.vectors import as_base64, as_numbers
from terafleet.core.reasons import Failure


class EmbeddingModel(msgspec.Struct, frozen=True):
    """What `terafleet.json` says of the model beside it.

    `tokens_max` counts special tokens too; with `truncate` 1 what is longer is cut, else refused.
    """

    dimensions: int
    tokens_max: int
    truncate: Literal[0, 1]
    format: Literal[1] = 1


class _Request(msgspec.Struct, frozen=True):
    """A request that is served, with its inputs as tokens."""

    body: EmbeddingBody
    tokens: list[Tokens]


class Embedder:
    """A sentence encoder that speaks OpenAI's form; several threads may use it at once."""

    def __init__(
        self, folder: Path, threads: int = 1, options: Mapping[str, int] | None = None
    ) -> None:
        """Load `model.onnx`, `tokenizer.json` and `terafleet.json`; each call uses `threads`.

        `options` may lower `tokens_max` and overrule `truncate`. Raises ModelFailed.
        """
        model = _described(folder / "terafleet.json")
        options = options or {}
        self.dimensions = model.dimensions
        self.tokens_max = min(model.tokens_max, options.get("tokens_max", model.tokens_max))
        self._truncates = bool(options.get("truncate", model.truncate))
        self._encoder = Encoder(folder, threads)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The embeddings of texts, one row of `dimensions` each; what is too long is cut."""
        tokens = [self._cut(ids) for ids in self._encoder.tokens_of(texts)]
        rows = self._encoder.vectors_of(tokens, _never)
        return np.stack(rows) if rows else np.zeros((0, self.dimensions), np.float32)

    def answer(
        self, payload: bytes, endpoint: str, is_stopped: IsStopped | None = None
    ) -> tuple[bytes, int]:
        """Answer JSON Lines of request bodies: JSON Lines of answers, and the tokens read.

        A request that is wrong has its error as its answer. Raises ModelFailed for another
        endpoint, when the attempt is stopped, and when the graph gives nothing.
        """
        if endpoint != ENDPOINT:
            raise ModelFailed(Failure.RUNTIME_REFUSED, f"the model doesn't serve {endpoint}")
        requests = self._requests([self._checked(line) for line in lines_of(payload)])
        served = [request for request in requests if isinstance(request, _Request)]
        tokens = [ids for request in served for ids in request.tokens]
        vectors = iter(self._encoder.vectors_of(tokens, is_stopped or _never))
        answers = [
            _response(request, [next(vectors) for _ in request.tokens])
            if isinstance(request, _Request)
            else request
            for request in requests
        ]
        return payload_of(answers), sum(map(len, tokens))

    def serve(self, payload: bytes, endpoint: str, is_stopped: IsStopped) -> Answers:
        """As `answer`, in the form of the runtime."""
        answered, prompt_tokens = self.answer(payload, endpoint, is_stopped)
        return Answers(answered, prompt_tokens, completion_tokens=0)

    def stream(
        self,
        request: LiveRequest,
        take: TakePiece,  # noqa: ARG002 - the port's.
        is_stopped: IsStopped,  # noqa: ARG002 - the port's.
    ) -> NoReturn:
        """Embeddings come whole; live ones are attempts of one line. Raises ModelFailed."""
        raise ModelFailed(Failure.RUNTIME_REFUSED, f"nothing is streamed at {request.endpoint}")

    def _checked(self, line: bytes) -> EmbeddingBody | Answer:
        """The body of a line, or the answer to what this model can't serve."""
        body = parsed(line, EMBEDDING_BODY)
        if isinstance(body, Answer):
            return body
        wrong = wrong_dimensions(body, self.dimensions)
        return wrong or wrong_inputs(body, self._encoder.vocabulary) or body

    def _requests(self, bodies: list[EmbeddingBody | Answer]) -> list[_Request | Answer]:
        """Read all texts of the attempt at once, and refuse the requests that are too long."""
        inputs = [
            text for body in bodies if isinstance(body, EmbeddingBody) for text in inputs_of(body)
        ]
        tokens = iter(self._encoder.tokens_of(inputs))
        return [
            self._fitted(body, [next(tokens) for _ in inputs_of(body)])
            if isinstance(body, EmbeddingBody)
            else body
            for body in bodies
        ]

    def _fitted(self, body: EmbeddingBody, tokens: list[Tokens]) -> _Request | Answer:
        longest = max(map(len, tokens))
        if longest <= self.tokens_max or self._truncates:
            return _Request(body, [self._cut(ids) for ids in tokens])
        message = f"The model reads {self.tokens_max} tokens at most; an input has {longest}."
        return refusal("context_length_exceeded", message, "input")

    def _cut(self, tokens: Tokens) -> Tokens:
        return self._encoder.cut(tokens, self.tokens_max)


def loader(threads: int) -> LoadModel:
    """The way to load embedders whose attempts use `threads` threads each."""

    def load(folder: Path, options: Mapping[str, int]) -> Embedder:
        return Embedder(folder, threads, options)

    return load


def _never() -> bool:
    return False


def _described(path: Path) -> EmbeddingModel:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EmbeddingModel)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelFailed(Failure.MODEL_UNAVAILABLE, f"{path.name}: {error}") from error


def _response(request: _Request, vectors: list[Vectors]) -> Answer:
    write = as_base64 if request.body.encoding_format == "base64" else as_numbers
    prompt_tokens = sum(map(len, request.tokens))
    return embedding_response(request.body.model, map(write, vectors), prompt_tokens)
