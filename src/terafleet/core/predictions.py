"""How long a request takes, from how long others took: a median and the spread around it."""

from collections import deque
from collections.abc import Iterable

US_PER_MS = 1_000
SAMPLES_MAX = 63
"""Odd, so that the median is one of them; few enough to follow a fleet that changes."""

SAMPLES_MIN = 5
"""With fewer nothing is known, and a cautious guess stands in."""

US_PER_TOKEN_UNKNOWN = 100_000
"""Ten tokens a second: a model that barely fits the car."""

SPREADS = 8
"""How many median absolute deviations above the median still count as ordinary.

Of a normal distribution, whose deviation is 1.4826 of these, that is 5.4 standard deviations.
"""


class Durations:
    """What the newest requests took, in µs for each token of predicted work."""

    def __init__(self, samples: Iterable[int] = ()) -> None:
        """With the samples of before, oldest first."""
        self._samples: deque[int] = deque(samples, SAMPLES_MAX)

    def learn(self, duration_ms: int, tokens: int) -> None:
        """A request of so many tokens has taken so long."""
        self._samples.append(max(1, duration_ms * US_PER_MS // max(1, tokens)))

    def samples(self) -> list[int]:
        """All of them, oldest first, for a snapshot."""
        return list(self._samples)

    def usual_ms(self, tokens: int) -> int:
        """What a request of so many tokens takes by half a chance."""
        return tokens * self._median() // US_PER_MS

    def longest_ms(self, tokens: int) -> int:
        """What an ordinary request of so many tokens does not exceed: median + k·MAD."""
        median = self._median()
        if len(self._samples) < SAMPLES_MIN:
            return 2 * tokens * median // US_PER_MS
        deviations = sorted(abs(sample - median) for sample in self._samples)
        # A tenth of the median at least: equal samples do not make the next one equal.
        spread = max(deviations[len(deviations) // 2], median // 10)
        return tokens * (median + SPREADS * spread) // US_PER_MS

    def _median(self) -> int:
        if len(self._samples) < SAMPLES_MIN:
            return US_PER_TOKEN_UNKNOWN
        return sorted(self._samples)[len(self._samples) // 2]
