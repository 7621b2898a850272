"""Deals the stories of a grammar out as batches of tokens and targets, the same for a seed."""

from collections.abc import Iterator
from itertools import islice

import msgspec
import numpy as np

from tools.story_model.grammar import Grammar, stories
from tools.story_model.network import IGNORED, Tokens
from tools.story_model.vocabulary import BEGIN, END, Vocabulary

# Stories of like length share a batch, so that little of it is padding.
_BATCHES_IN_POOL = 32


class Deal(msgspec.Struct, frozen=True):
    """What batches are made of: `texts` stories each, of at most `tokens_max` tokens."""

    grammar: Grammar
    vocabulary: Vocabulary
    texts: int
    tokens_max: int
    seed: int


def batches(deal: Deal, first: int = 0) -> Iterator[tuple[Tokens, Tokens]]:
    """Endless batches from batch `first` on: tokens and what follows each of them."""
    pool, skipped = divmod(first, _BATCHES_IN_POOL)
    while True:
        fitting = (story for story in _cut(deal, pool) if len(story) <= deal.tokens_max + 1)
        rows = sorted(islice(fitting, deal.texts * _BATCHES_IN_POOL), key=len)
        order = np.random.default_rng((deal.seed, pool)).permutation(_BATCHES_IN_POOL)
        for place in order[skipped:]:
            yield _padded(rows[place * deal.texts : (place + 1) * deal.texts])
        pool, skipped = pool + 1, 0


def _cut(deal: Deal, pool: int) -> Iterator[list[int]]:
    for story in stories(deal.grammar, f"{deal.seed}-{pool}"):
        yield [BEGIN, *deal.vocabulary.encode(story), END]


def _padded(rows: list[list[int]]) -> tuple[Tokens, Tokens]:
    length = max(map(len, rows)) - 1
    tokens = np.full((len(rows), length), END)
    targets = np.full((len(rows), length), IGNORED)
    for row, numbers in enumerate(rows):
        tokens[row, : len(numbers) - 1] = numbers[:-1]
        targets[row, : len(numbers) - 1] = numbers[1:]
    return tokens, targets
