"""Holds text back that may be the beginning of what must not be said, in whole tokens."""

from collections.abc import Sequence
from typing import Any

import msgspec


class Growth(msgspec.Struct, frozen=True):
    """Some of a text: the tokens that it ends with, and what is told of their probabilities."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[Any, ...] = ()


class HeldText:
    """The end of a growing text that nobody has seen yet.

    What is told always ends with a whole token, no part of it can belong to a stop, and a token
    without text is told together with the next one that has some: the token that ends a text has
    none, and who goes on behind it would write a second text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held: list[Growth] = []
        self.has_stopped = False

    def push(self, growth: Growth) -> Growth | None:
        """The text has grown; what can be told of it by now, if anything.

        When it has come to a stop, that is the last of it, without the stop.
        """
        if not self._held and growth.text and not self._stops:
            return growth
        self._held.append(growth)
        text = "".join(one.text for one in self._held)
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.has_stopped = True
            return self._cut(text, min(found))
        return self._tell(len(text) - self._risky_characters(text))

    def flush(self) -> Growth:
        """All that is left: the text has ended."""
        held, self._held = self._held, []
        return _joined(held)

    def _risky_characters(self, text: str) -> int:
        """The longest end of the text with which a stop begins."""
        longest = min(len(text), max(map(len, self._stops), default=0))
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def _tell(self, end: int) -> Growth | None:
        """What lies before `end` in whole tokens, up to the last of them that has a text."""
        count, position = 0, 0
        for number, one in enumerate(self._held, 1):
            position += len(one.text)
            if position > end:
                break
            if one.text:
                count = number
        if not count:
            return None
        told, self._held = self._held[:count], self._held[count:]
        return _joined(told)

    def _cut(self, text: str, end: int) -> Growth:
        """What lies before `end`; a token of which only a part does is none of its tokens."""
        whole = self._tell(end) or Growth((), "")
        self._held = []
        rest = text[len(whole.text) : end]
        return Growth(whole.token_ids, whole.text + rest, whole.logprobs)


def _joined(growths: Sequence[Growth]) -> Growth:
    if len(growths) == 1:
        return growths[0]
    return Growth(
        tuple(token for one in growths for token in one.token_ids),
        "".join(one.text for one in growths),
        tuple(entry for one in growths for entry in one.logprobs),
    )
