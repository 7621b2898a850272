"""Computes a Llama network's loss and its gradient in plain numpy, and what it says.

The network is the one that llama.cpp runs for the architecture `llama`: RMSNorm (Zhang and
Sennrich, 2019) before each part, rotary positions (Su and others, 2021) on neighbouring pairs of
numbers, attention whose heads share keys and values (Ainslie and others, 2023) and SwiGLU (Shazeer,
2020). Arrays of activations are (texts, tokens, numbers); the backward pass is written by hand and
held to finite differences by a test.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from tools.story_model.attention import Attended, attend, attend_back
from tools.story_model.shape import EMBEDDING, LAST_NORM, Numbers, Shape, Weights

Tokens = NDArray[np.integer]
Turns = NDArray[np.complexfloating]
IGNORED = -1
"""A target that counts for nothing."""


class _Normed(msgspec.Struct, frozen=True):
    values: Numbers
    scaled: Numbers
    inverse: Numbers


class _Layer(msgspec.Struct, frozen=True):
    """What a layer's backward pass needs of its forward pass."""

    attention_norm: _Normed
    queries: Numbers
    keys: Numbers
    values: Numbers
    attended: Attended
    inner_norm: _Normed
    gate: Numbers
    up: Numbers
    open_share: Numbers
    inner: Numbers


class _Forward(msgspec.Struct, frozen=True):
    layers: list[_Layer]
    last: _Normed


def logits(weights: Weights, tokens: Tokens) -> Numbers:
    """How much each token of the vocabulary fits as the next one, after each of `tokens`."""
    return _forward(weights, tokens).last.values @ weights[EMBEDDING].T


def loss_and_gradient(
    weights: Weights, tokens: Tokens, targets: Tokens, gradient: Weights
) -> float:
    """The mean cross-entropy in nats of `targets` after `tokens`; `gradient` is overwritten."""
    forward = _forward(weights, tokens)
    counted = targets != IGNORED
    last = forward.last.values[counted]
    shares = last @ weights[EMBEDDING].T
    shares -= shares.max(-1, keepdims=True)
    rows, right = np.arange(len(shares)), targets[counted]
    right_logits = shares[rows, right]
    np.exp(shares, out=shares)
    sums = shares.sum(-1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - right_logits))
    shares /= sums
    shares[rows, right] -= 1
    shares /= len(shares)
    gradient[EMBEDDING][:] = shares.T @ last
    stream = np.zeros_like(forward.last.values)
    stream[counted] = shares @ weights[EMBEDDING]
    stream = _norm_back(stream, forward.last, weights[LAST_NORM], gradient[LAST_NORM])
    for layer in reversed(range(weights.shape.layers)):
        stream = _layer_back(weights, gradient, f"blk.{layer}.", forward.layers[layer], stream)
    np.add.at(gradient[EMBEDDING], tokens.ravel(), stream.reshape(-1, weights.shape.width))
    return loss


def greedy(weights: Weights, prompt: list[int], count: int, end: int) -> list[int]:
    """At most `count` likeliest tokens after `prompt`, up to the token `end` and with it."""
    text = list(prompt)
    while len(text) < len(prompt) + count and (len(text) == len(prompt) or text[-1] != end):
        text.append(int(logits(weights, np.array([text]))[0, -1].argmax()))
    return text[len(prompt) :]


def _forward(weights: Weights, tokens: Tokens) -> _Forward:
    shape = weights.shape
    stream = weights[EMBEDDING][tokens]
    turns = _turns(shape, tokens.shape[1], stream.dtype)
    layers = []
    for layer in range(shape.layers):
        kept, stream = _layer(weights, f"blk.{layer}.", stream, turns)
        layers.append(kept)
    return _Forward(layers, _norm(stream, weights[LAST_NORM], shape.epsilon))


def _layer(weights: Weights, block: str, stream: Numbers, turns: Turns) -> tuple[_Layer, Numbers]:
    shape = weights.shape
    attention_norm = _norm(stream, weights[block + "attn_norm"], shape.epsilon)
    projected = attention_norm.values @ weights[block + "attn_qkv"].T
    queries, keys, values = _split_heads(shape, projected, turns)
    attended = attend(queries, keys, values)
    stream = stream + attended.mixed @ weights[block + "attn_output"].T
    inner_norm = _norm(stream, weights[block + "ffn_norm"], shape.epsilon)
    both = inner_norm.values @ weights[block + "ffn_gate_up"].T
    gate, up = both[..., : shape.inner_width], both[..., shape.inner_width :]
    open_share = 1 / (1 + np.exp(-gate))
    inner = gate * open_share * up
    stream = stream + inner @ weights[block + "ffn_down"].T
    kept = _Layer(
        attention_norm, queries, keys, values, attended, inner_norm, gate, up, open_share, inner
    )
    return kept, stream


def _layer_back(
    weights: Weights, gradient: Weights, block: str, layer: _Layer, back: Numbers
) -> Numbers:
    """The gradient of what the layer read, from that of what it wrote."""
    inner_back = _linear_back(back, layer.inner, weights, gradient, block + "ffn_down")
    both = _gated_back(inner_back, layer)
    normed = _linear_back(both, layer.inner_norm.values, weights, gradient, block + "ffn_gate_up")
    name = block + "ffn_norm"
    back = back + _norm_back(normed, layer.inner_norm, weights[name], gradient[name])
    name = block + "attn_output"
    mixed = _linear_back(back, layer.attended.mixed, weights, gradient, name)
    heads = attend_back(mixed, layer.attended, layer.queries, layer.keys, layer.values)
    projected = _joined_heads(weights.shape, *heads)
    read = layer.attention_norm
    normed = _linear_back(projected, read.values, weights, gradient, block + "attn_qkv")
    name = block + "attn_norm"
    return back + _norm_back(normed, read, weights[name], gradient[name])


def _linear_back(
    back: Numbers, read: Numbers, weights: Weights, gradient: Weights, name: str
) -> Numbers:
    rows = back.reshape(-1, back.shape[-1])
    np.matmul(rows.T, read.reshape(-1, read.shape[-1]), out=gradient[name])
    return back @ weights[name]


def _gated_back(back: Numbers, layer: _Layer) -> Numbers:
    """The gradients of gate and up side by side; the gate is opened by x * sigmoid(x)."""
    opened = layer.gate * layer.open_share
    slope = layer.open_share + opened * (1 - layer.open_share)
    return np.concatenate((back * layer.up * slope, back * opened), axis=-1)


def _norm(values: Numbers, scale: Numbers, epsilon: float) -> _Normed:
    mean_square = np.einsum("...i,...i->...", values, values)[..., None] / values.shape[-1]
    inverse = 1 / np.sqrt(mean_square + epsilon)
    scaled = values * inverse
    return _Normed(scaled * scale, scaled, inverse)


def _norm_back(back: Numbers, normed: _Normed, scale: Numbers, scale_back: Numbers) -> Numbers:
    scale_back[:] = np.einsum("tni,tni->i", back, normed.scaled)
    back = back * scale
    share = np.einsum("...i,...i->...", back, normed.scaled)[..., None] / back.shape[-1]
    read: Numbers = (back - normed.scaled * share) * normed.inverse
    return read


def _turns(shape: Shape, tokens: int, dtype: np.dtype[np.floating]) -> Turns:
    """How far each pair of numbers turns at each position, as complex numbers of length one."""
    pairs = np.arange(0, shape.head_width, 2) / shape.head_width
    angles = np.outer(np.arange(tokens), shape.rope_base**-pairs)
    turns: Turns = np.exp(1j * angles[:, None, :]).astype(np.result_type(dtype, np.complex64))
    return turns


def _turned(heads: Numbers, turns: Turns) -> Numbers:
    """The heads with each pair of neighbouring numbers turned as a complex number."""
    return (heads.view(turns.dtype) * turns).view(heads.dtype)


def _split_heads(shape: Shape, projected: Numbers, turns: Turns) -> tuple[Numbers, ...]:
    """Queries and keys, turned by position, and values, each (texts, tokens, heads, numbers)."""
    places = (shape.width, shape.width + shape.key_value_width)
    queries, keys, values = (
        part.reshape(*part.shape[:2], -1, shape.head_width)
        for part in np.split(projected, places, axis=-1)
    )
    return _turned(queries, turns), _turned(keys, turns), values


def _joined_heads(shape: Shape, queries: Numbers, keys: Numbers, values: Numbers) -> Numbers:
    turns = _turns(shape, queries.shape[1], queries.dtype).conj()
    parts = (_turned(queries, turns), _turned(np.ascontiguousarray(keys), turns), values)
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)
