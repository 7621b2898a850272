"""Answers completion, chat and embedding requests with llama.cpp inside this process.

The library's own server is asked by function calls. It insists on a socket to listen on, and
gets a local one that has no place in the file system; the walls let nobody connect to it.
"""

import base64
import itertools
import os
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import xllamacpp

from terafleet.agent.runtime_host.bodies import Answer, lines_of, parsed, payload_of, refusal
from terafleet.agent.runtime_host.chat_prompts import ChatTemplate
from terafleet.agent.runtime_host.embedding_bodies import (
    EMBEDDING_BODY,
    EmbeddingBody,
    embedding_response,
    inputs_of,
    wrong_dimensions,
    wrong_inputs,
)
from terafleet.agent.runtime_host.embedding_bodies import ENDPOINT as EMBEDDINGS
from terafleet.agent.runtime_host.generation_bodies import (
    CHAT_BODY,
    COMPLETION_BODY,
    ChatBody,
    CompletionBody,
    generations_of,
    wrong_generation,
)
from terafleet.agent.runtime_host.generation_streams import Generation, response_of, tokens_of
from terafleet.agent.runtime_host.gguf_facts import read_gguf_facts
from terafleet.agent.runtime_host.llama_live import LiveTexts
from terafleet.agent.runtime_host.models import (
    Answers,
    IsStopped,
    LiveEnd,
    LiveRequest,
    LoadModel,
    ModelFailed,
    TakePiece,
)
from terafleet.core.reasons import Failure
from terafleet.protocol.live import LiveFault
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS

_CONTEXT_TOKENS: Final = 2048
# How much of a prompt is read at a time, in which nothing else grows and nothing can be stopped.
# On one core 16 tokens take 65 to 130 ms with 100 million parameters, a quarter of what 64 take.
_PART_TOKENS: Final = 16
# A vocabulary larger than any; the library itself knows which tokens there are.
_VOCABULARY_MAX: Final = 2**31
_FLOAT_BYTES = 4
_SILENT = -1
_SOCKET_NUMBERS: Final = itertools.count()

_GenerationBody = CompletionBody | ChatBody
_Body = _GenerationBody | EmbeddingBody
_DECODERS: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    EMBEDDINGS: EMBEDDING_BODY,
    COMPLETIONS: COMPLETION_BODY,
    CHAT_COMPLETIONS: CHAT_BODY,
}


class _Line(msgspec.Struct, frozen=True):
    """An answer and the tokens that it took."""

    answer: Answer
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LlamaModel:
    """A language model in memory; several threads may use it at once.

    `width` is how many texts of one attempt grow side by side.
    """

    def __init__(self, server: Any, width: int, live: LiveTexts | None) -> None:
        """`live` is None for a model that makes embeddings."""
        self._server = server
        self._width = width
        self._live = live

    def serve(self, payload: bytes, endpoint: str, is_stopped: IsStopped) -> Answers:
        """Answer JSON Lines of request bodies for one endpoint. Raises ModelFailed."""
        if endpoint not in _DECODERS or (endpoint == EMBEDDINGS and self._live is not None):
            raise ModelFailed(Failure.RUNTIME_REFUSED, f"the model doesn't serve {endpoint}")
        bodies = [_checked(line, _DECODERS[endpoint]) for line in lines_of(payload)]
        with ThreadPoolExecutor(self._width, "text") as pool:
            waiting = [self._begin(pool, body, is_stopped) for body in bodies]
            lines = [finish() for finish in waiting]
        if is_stopped():
            raise ModelFailed(Failure.STOPPED, "")
        return Answers(
            payload_of([line.answer for line in lines]),
            sum(line.prompt_tokens for line in lines),
            sum(line.completion_tokens for line in lines),
        )

    def stream(
        self, request: LiveRequest, take: TakePiece, is_stopped: IsStopped
    ) -> LiveEnd | LiveFault:
        """Answer one live request in pieces, or say why it can't be. Raises ModelFailed."""
        if self._live is None:
            raise ModelFailed(Failure.RUNTIME_REFUSED, "the model streams nothing")
        return self._live.stream(request, take, is_stopped)

    def _begin(
        self, pool: ThreadPoolExecutor, body: _Body | Answer, is_stopped: IsStopped
    ) -> Callable[[], _Line]:
        """Give a request's texts to the pool; the result waits for them."""
        if isinstance(body, Answer):
            line = _Line(body)
            return lambda: line
        if isinstance(body, EmbeddingBody):
            return pool.submit(self._embed, body, is_stopped).result
        texts = [
            pool.submit(self._generate, body, request, is_stopped)
            for request in generations_of(body)
        ]

        def finish() -> _Line:
            generations = [text.result() for text in texts]
            return _Line(response_of(body, generations), *tokens_of(body, generations))

        return finish

    def _generate(
        self, body: _GenerationBody, request: dict[str, Any], is_stopped: IsStopped
    ) -> Generation:
        generation = Generation(is_stopped)
        is_chat = isinstance(body, ChatBody)
        ask = self._server.handle_chat_completions if is_chat else self._server.handle_completions
        if not is_stopped():
            try:
                ask(request, generation)
            except (ValueError, RuntimeError) as error:
                # Errors of the library's own code, such as a chat that its template can't take.
                generation.error = refusal("invalid_request", str(error))
        return generation

    def _embed(self, body: EmbeddingBody, is_stopped: IsStopped) -> _Line:
        if is_stopped():
            return _Line(refusal("internal_error", "stopped"))
        request = {"input": inputs_of(body), "encoding_format": "base64"}
        try:
            response = self._server.handle_embeddings(request)
        except (ValueError, RuntimeError) as error:
            return _Line(refusal("invalid_request", str(error)))
        if "error" in response:
            failed = Generation(is_stopped)
            failed(response)
            assert failed.error is not None
            return _Line(failed.error)
        encoded = [entry["embedding"] for entry in response["data"]]
        dimensions = len(base64.b64decode(encoded[0])) // _FLOAT_BYTES
        if (wrong := wrong_dimensions(body, dimensions)) is not None:
            return _Line(wrong)
        prompt_tokens = response["usage"]["prompt_tokens"]
        is_base64 = body.encoding_format == "base64"
        vectors = [msgspec.json.encode(one) if is_base64 else _numbers(one) for one in encoded]
        answer = embedding_response(body.model, vectors, prompt_tokens)
        return _Line(answer, prompt_tokens)


def loader(threads: int, slots: int) -> LoadModel:
    """The way to load models that serve `slots` attempts at once.

    Their texts grow together, a token of each at a time, on `threads` threads for all of them.
    """

    def load(folder: Path, options: Mapping[str, int]) -> LlamaModel:
        sequences = max(options.get("sequences", slots), slots)
        file = _model_file(folder)
        facts = read_gguf_facts(file)
        template = ChatTemplate(facts.template)
        parameters = _parameters(file, options, sequences, threads)
        parameters.chat_template = template.framed
        try:
            server = xllamacpp.Server(parameters)
        except (ValueError, RuntimeError) as error:
            raise ModelFailed(Failure.MODEL_UNAVAILABLE, str(error)) from error
        width = sequences // slots
        live = None if options.get("embeddings") else LiveTexts(server, width, facts, template)
        return LlamaModel(server, width, live)

    return load


def _model_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        detail = f"{len(files)} GGUF files where there must be one"
        raise ModelFailed(Failure.MODEL_UNAVAILABLE, detail)
    return files[0]


def _parameters(
    file: Path, options: Mapping[str, int], sequences: int, threads: int
) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = options.get("context_tokens", _CONTEXT_TOKENS) * sequences
    parameters.n_parallel = sequences
    # Whoever writes has a token in each part; at least as much is left for who reads.
    parameters.n_batch = parameters.n_ubatch = max(_PART_TOKENS, 2 * sequences)
    # On processors it is quick only with a single prompt in parts of 64 tokens and more; texts
    # behind 350 tokens are written three times as fast without it (260 thousand parameters).
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for processor in (parameters.cpuparams, parameters.cpuparams_batch):
        processor.n_threads = threads
        # Threads that wait for work must not burn the car's energy.
        processor.poll = 0
    # What one customer's prompt left behind must not show in another's answer.
    parameters.cache_prompt = False
    parameters.cache_idle_slots = False
    parameters.cache_ram_mib = 0
    parameters.n_ctx_checkpoints = 0
    # A chat that ends with the assistant's words is answered, not continued.
    parameters.prefill_assistant = False
    parameters.fit_params = False
    parameters.verbosity = _SILENT
    _close_doors(parameters)
    if options.get("embeddings"):
        parameters.embedding = True
        # A text's tokens must be in one batch to be brought to one vector.
        parameters.n_batch = parameters.n_ubatch = parameters.n_ctx // sequences
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO
        if "pooling" in options:
            parameters.pooling_type = xllamacpp.llama_pooling_type(options["pooling"])
    return parameters


def _close_doors(parameters: xllamacpp.CommonParams) -> None:
    """As little of the library's web server as it can do with."""
    parameters.hostnames = [f"\0terafleet-{os.getpid()}-{next(_SOCKET_NUMBERS)}.sock"]
    parameters.n_threads_http = 1
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.offline = True


def _checked(line: bytes, decoder: msgspec.json.Decoder[_Body]) -> _Body | Answer:
    body = parsed(line, decoder)
    if isinstance(body, Answer):
        return body
    if isinstance(body, EmbeddingBody):
        return wrong_inputs(body, _VOCABULARY_MAX) or body
    return wrong_generation(body) or body


def _numbers(encoded: str) -> bytes:
    """A vector's base64 as a JSON array; nine digits give 32-bit numbers back exactly."""
    raw = base64.b64decode(encoded)
    numbers = struct.unpack(f"<{len(raw) // _FLOAT_BYTES}f", raw)
    return msgspec.json.encode([float(f"{number:.9g}") for number in numbers])
