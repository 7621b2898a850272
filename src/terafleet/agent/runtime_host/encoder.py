"""Turns texts into tokens and tokens into vectors, with a tokenizer and a graph from files."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# From version 1.29 on, onnxruntime looks up its maker's host unless this is set before it loads.
if os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
    assert "onnxruntime" not in sys.modules, "onnxruntime was loaded with its telemetry on"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import numpy.typing as npt
import onnxruntime
import tokenizers
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors

from terafleet.agent.runtime_host.batches import plan_batches
from terafleet.agent.runtime_host.models import IsStopped, ModelFailed
from terafleet.core.reasons import Failure

Vectors = npt.NDArray[np.float32]
Tokens = list[int]

_INPUTS: Final = ("input_ids", "attention_mask")
_OUTPUT: Final = "embedding"
_ONLY_ERRORS = 3
_FOREIGN_ERRORS = (
    onnx_errors.Fail,
    onnx_errors.InvalidArgument,
    onnx_errors.InvalidGraph,
    onnx_errors.InvalidProtobuf,
    onnx_errors.NoSuchFile,
    onnx_errors.NotImplemented,
    onnx_errors.RuntimeException,
)
_MEMORY_MESSAGES = ("bad_alloc", "bad allocation", "Failed to allocate memory")
_DETAIL_CHARACTERS_MAX = 400


class Encoder:
    """A sentence encoder in memory; several threads may use it at once.

    The graph takes `input_ids` and `attention_mask`, both of 64-bit integers, texts by tokens,
    and gives `embedding`, texts by dimensions. `vocabulary` is how many tokens there are.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        """Load `tokenizer.json` and `model.onnx`. Raises ModelFailed."""
        self._tokenizer = _tokenizer(folder / "tokenizer.json")
        self._session = _session(folder / "model.onnx", threads)
        self.vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._before, self._after = _special_tokens(self._tokenizer)

    def tokens_of(self, inputs: Sequence[str | Tokens]) -> list[Tokens]:
        """Texts as tokens, with the special ones around them; what are tokens gets only those."""
        texts = [text for text in inputs if isinstance(text, str)]
        encodings = iter(self._tokenizer.encode_batch_fast(texts))
        return [
            next(encodings).ids if isinstance(text, str) else [*self._before, *text, *self._after]
            for text in inputs
        ]

    def cut(self, tokens: Tokens, tokens_max: int) -> Tokens:
        """At most `tokens_max` tokens, the special ones at the end kept."""
        if len(tokens) <= tokens_max:
            return tokens
        return tokens[: tokens_max - len(self._after)] + self._after

    def vectors_of(self, tokens: Sequence[Tokens], is_stopped: IsStopped) -> list[Vectors]:
        """One vector for each list of tokens. Raises ModelFailed, also when stopped."""
        vectors: list[Vectors] = [_NOTHING] * len(tokens)
        for batch in plan_batches([len(ids) for ids in tokens]):
            if is_stopped():
                raise ModelFailed(Failure.STOPPED, "")
            rows = self._run([tokens[position] for position in batch])
            for position, row in zip(batch, rows, strict=True):
                vectors[position] = row
        return vectors

    def _run(self, batch: list[Tokens]) -> Vectors:
        """The vectors of a batch; the first of it is the longest."""
        shape = (len(batch), len(batch[0]))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        vectors: Vectors
        try:
            (vectors,) = self._session.run([_OUTPUT], dict(zip(_INPUTS, (ids, mask), strict=True)))
        except _FOREIGN_ERRORS as error:
            raise _failure(error, Failure.RUNTIME_REFUSED) from error
        # A damaged model gives what is no number, and nobody can use that.
        if not np.isfinite(vectors).all():
            raise ModelFailed(Failure.RUNTIME_REFUSED, "the model's output is not finite")
        return vectors


_NOTHING: Final[Vectors] = np.zeros(0, np.float32)


def _tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelFailed(Failure.MODEL_UNAVAILABLE, f"tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _special_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[Tokens, Tokens]:
    """What the tokenizer puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    dressed = tokenizer.encode("a").ids
    for begin in range(len(dressed) - len(bare) + 1):
        if dressed[begin : begin + len(bare)] == bare:
            return dressed[:begin], dressed[begin + len(bare) :]
    raise ModelFailed(Failure.MODEL_UNAVAILABLE, "tokenizer.json: special tokens inside a text")


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_ERRORS
    # An arena would keep the most that any batch ever needed, and helps nothing here.
    options.enable_cpu_mem_arena = False
    # Threads that wait for work must not burn the car's energy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _FOREIGN_ERRORS as error:
        raise _failure(error, Failure.MODEL_UNAVAILABLE) from error
    names = tuple(value.name for value in session.get_inputs())
    outputs = [value.name for value in session.get_outputs()]
    if set(names) != set(_INPUTS) or _OUTPUT not in outputs:
        detail = "model.onnx: not a graph from input_ids and attention_mask to embedding"
        raise ModelFailed(Failure.MODEL_UNAVAILABLE, detail)
    return session


def _failure(error: Exception, reason: Failure) -> ModelFailed:
    """Onnxruntime tells only in words that memory was missing."""
    text = str(error)
    if any(message in text for message in _MEMORY_MESSAGES):
        reason = Failure.OUT_OF_MEMORY
    return ModelFailed(reason, text[:_DETAIL_CHARACTERS_MAX])
