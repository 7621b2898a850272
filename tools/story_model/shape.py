"""Says how large a network is, and where each of its weights lies in one long row of numbers."""

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating]

EMBEDDING, LAST_NORM = "token_embd", "output_norm"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a network of llama.cpp's architecture `llama`, embeddings tied."""

    vocabulary: int
    context: int
    layers: int
    width: int
    heads: int
    key_value_heads: int
    inner_width: int
    rope_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Numbers of a head's query, key or value."""
        return self.width // self.heads

    @property
    def key_value_width(self) -> int:
        """Numbers of all keys, or of all values, of a token."""
        return self.head_width * self.key_value_heads

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each array of weights; a matrix is (outputs, inputs)."""
        yield EMBEDDING, (self.vocabulary, self.width)
        for layer in range(self.layers):
            block = f"blk.{layer}."
            yield block + "attn_norm", (self.width,)
            yield block + "attn_qkv", (self.width + 2 * self.key_value_width, self.width)
            yield block + "attn_output", (self.width, self.width)
            yield block + "ffn_norm", (self.width,)
            yield block + "ffn_gate_up", (2 * self.inner_width, self.width)
            yield block + "ffn_down", (self.width, self.inner_width)
        yield LAST_NORM, (self.width,)

    def parameters(self) -> int:
        """How many numbers all arrays have."""
        return sum(math.prod(shape) for _, shape in self.arrays())


class Weights:
    """All arrays of a network as windows into one row, so that an optimizer sees one array."""

    def __init__(self, shape: Shape, row: Numbers) -> None:
        assert row.shape == (shape.parameters(),)
        self.shape = shape
        self.row = row
        self._arrays: dict[str, Numbers] = {}
        start = 0
        for name, dimensions in shape.arrays():
            end = start + math.prod(dimensions)
            self._arrays[name] = row[start:end].reshape(dimensions)
            start = end

    def __getitem__(self, name: str) -> Numbers:
        return self._arrays[name]

    def zeros(self) -> "Weights":
        """Arrays of the same shape and type, all zero."""
        return Weights(self.shape, np.zeros_like(self.row))


def random_weights(shape: Shape, seed: int) -> Weights:
    """Weights to begin training with; what adds to the residual stream begins smaller."""
    chance = np.random.default_rng(seed)
    weights = Weights(shape, np.zeros(shape.parameters(), np.float32))
    for name, dimensions in shape.arrays():
        if len(dimensions) == 1:
            weights[name][:] = 1
            continue
        spread = 1 / math.sqrt(dimensions[-1])
        if name.endswith(("attn_output", "ffn_down")):
            spread /= math.sqrt(2 * shape.layers)
        elif name == EMBEDDING:
            spread /= 2
        weights[name][:] = chance.normal(0, spread, dimensions)
    return weights


def decayed(shape: Shape) -> Numbers:
    """One for each weight of a matrix and zero for each of a norm, as one row."""
    parts = [
        np.full(math.prod(dimensions), float(len(dimensions) > 1), np.float32)
        for _, dimensions in shape.arrays()
    ]
    return np.concatenate(parts)
