"""Causal attention of grouped heads and its backward pass, in blocks that fit a processor's cache.

A block is some tokens' queries against all keys up to the last of them; what lies in the future
beyond the block is never computed. Shares are kept without their common divisor, which is applied
to the few numbers of a head instead of to every share.
"""

import math
from collections.abc import Iterator
from functools import cache

import msgspec
import numpy as np

from tools.story_model.shape import Numbers

_BLOCK_TOKENS = 128


class Attended(msgspec.Struct, frozen=True):
    """The values mixed by attention, (texts, tokens, width), and what the way back needs.

    `exponents` has one array a block; `divisors` is (texts, shared heads, rows, 1).
    """

    mixed: Numbers
    exponents: list[Numbers]
    divisors: Numbers


def attend(queries: Numbers, keys: Numbers, values: Numbers) -> Attended:
    """Mix `values` by how well each query fits the keys up to its own token.

    `queries` is (texts, tokens, heads, head width); of `keys` and `values` several neighbouring
    heads share one.
    """
    groups = queries.shape[2] // keys.shape[2]
    rows = _as_rows(queries, groups) * (1 / math.sqrt(queries.shape[3]))
    keys, values = _by_head(keys), _by_head(values)
    mixed = np.empty_like(rows)
    divisors = np.empty_like(rows[..., :1])
    exponents: list[Numbers] = []
    for text, block, end in _blocks(queries, groups):
        fits = rows[text, :, block] @ keys[text, :, :end].swapaxes(1, 2)
        tokens = (block.stop - block.start) // groups
        fits[:, :, end - tokens :] += _mask(tokens, groups)
        fits -= fits.max(-1, keepdims=True)
        np.exp(fits, out=fits)
        divisors[text, :, block] = fits.sum(-1, keepdims=True)
        np.matmul(fits, values[text, :, :end], out=mixed[text, :, block])
        exponents.append(fits)
    mixed /= divisors
    return Attended(_as_tokens(mixed, groups), exponents, divisors)


def attend_back(
    gradient: Numbers, attended: Attended, queries: Numbers, keys: Numbers, values: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """The gradients of queries, keys and values from that of what was mixed of them."""
    groups = queries.shape[2] // keys.shape[2]
    scale = 1 / math.sqrt(queries.shape[3])
    rows = _as_rows(queries, groups) * scale
    keys, values = _by_head(keys), _by_head(values)
    back = _as_rows(gradient.reshape(queries.shape), groups)
    mixed = _as_rows(attended.mixed.reshape(queries.shape), groups)
    back /= attended.divisors
    common = np.einsum("...i,...i->...", back, mixed)[..., None]
    rows_back, keys_back, values_back = (
        np.empty_like(rows),
        np.zeros_like(keys),
        np.zeros_like(keys),
    )
    blocks = _blocks(queries, groups)
    for (text, block, end), exponents in zip(blocks, attended.exponents, strict=True):
        values_back[text, :, :end] += exponents.swapaxes(1, 2) @ back[text, :, block]
        fits_back = back[text, :, block] @ values[text, :, :end].swapaxes(1, 2)
        fits_back -= common[text, :, block]
        fits_back *= exponents
        np.matmul(fits_back, keys[text, :, :end], out=rows_back[text, :, block])
        keys_back[text, :, :end] += fits_back.swapaxes(1, 2) @ rows[text, :, block]
    rows_back *= scale
    return (
        _as_tokens(rows_back, groups).reshape(queries.shape),
        keys_back.swapaxes(1, 2),
        values_back.swapaxes(1, 2),
    )


def _blocks(queries: Numbers, groups: int) -> Iterator[tuple[int, slice, int]]:
    """Text, rows of queries and end of the keys of each block."""
    texts, tokens = queries.shape[:2]
    for text in range(texts):
        for start in range(0, tokens, _BLOCK_TOKENS):
            end = min(start + _BLOCK_TOKENS, tokens)
            yield text, slice(start * groups, end * groups), end


@cache
def _mask(tokens: int, groups: int) -> Numbers:
    """Minus infinity where a key lies behind the query's token, within a block."""
    queries = np.arange(tokens * groups) // groups
    behind = np.arange(tokens) > queries[:, None]
    return np.where(behind, np.float32(-np.inf), np.float32(0))


def _by_head(numbers: Numbers) -> Numbers:
    """(texts, tokens, heads, numbers) to (texts, heads, tokens, numbers)."""
    return np.ascontiguousarray(numbers.swapaxes(1, 2))


def _as_rows(queries: Numbers, groups: int) -> Numbers:
    """(texts, tokens, heads, numbers) to (texts, shared heads, tokens times groups, numbers)."""
    texts, tokens, heads, width = queries.shape
    grouped = queries.reshape(texts, tokens, heads // groups, groups, width)
    return grouped.swapaxes(1, 2).reshape(texts, heads // groups, tokens * groups, width)


def _as_tokens(rows: Numbers, groups: int) -> Numbers:
    """(texts, shared heads, tokens times groups, numbers) to (texts, tokens, width)."""
    texts, shared, count, width = rows.shape
    grouped = rows.reshape(texts, shared, count // groups, groups, width)
    return grouped.swapaxes(1, 2).reshape(texts, count // groups, shared * groups * width)
