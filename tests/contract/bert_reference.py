"""BERT a second time, in plain numpy with 64-bit numbers, to compare the graph with."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


class ReferenceBert:
    """The published formula, one text at a time, without padding."""

    def __init__(
        self, weights: Mapping[str, npt.NDArray[np.floating]], heads: int, epsilon: float
    ) -> None:
        self._weights = {name: values.astype(np.float64) for name, values in weights.items()}
        self._heads = heads
        self._epsilon = epsilon

    def states(self, tokens: list[int]) -> Array:
        """The last layer's states, tokens by width."""
        table = self._weights["embeddings.word_embeddings.weight"]
        positions = self._weights["embeddings.position_embeddings.weight"][: len(tokens)]
        kind = self._weights["embeddings.token_type_embeddings.weight"][0]
        states = self._normal(table[tokens] + positions + kind, "embeddings.LayerNorm")
        layer = 0
        while f"encoder.layer.{layer}.output.dense.weight" in self._weights:
            states = self._layer(states, f"encoder.layer.{layer}")
            layer += 1
        return states

    def _layer(self, states: Array, name: str) -> Array:
        context = self._attention(states, f"{name}.attention.self")
        projected = self._linear(context, f"{name}.attention.output.dense")
        attended = self._normal(projected + states, f"{name}.attention.output.LayerNorm")
        inner = self._linear(attended, f"{name}.intermediate.dense")
        active = 0.5 * inner * (1.0 + _erf(inner / math.sqrt(2.0)))
        outer = self._linear(active, f"{name}.output.dense")
        return self._normal(outer + attended, f"{name}.output.LayerNorm")

    def _attention(self, states: Array, name: str) -> Array:
        query, key, value = (
            np.split(self._linear(states, f"{name}.{part}"), self._heads, axis=1)
            for part in ("query", "key", "value")
        )
        heads = []
        for head in range(self._heads):
            scores = query[head] @ key[head].T / math.sqrt(query[head].shape[1])
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(odds / odds.sum(axis=1, keepdims=True) @ value[head])
        return np.concatenate(heads, axis=1)

    def _linear(self, states: Array, name: str) -> Array:
        product: Array = states @ self._weights[f"{name}.weight"].T
        return product + self._weights[f"{name}.bias"]

    def _normal(self, states: Array, name: str) -> Array:
        mean = states.mean(axis=1, keepdims=True)
        variance = ((states - mean) ** 2).mean(axis=1, keepdims=True)
        scaled: Array = (states - mean) / np.sqrt(variance + self._epsilon)
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def unit(vector: Array) -> Array:
    """The vector at length one."""
    scaled: Array = vector / np.sqrt((vector**2).sum())
    return scaled
