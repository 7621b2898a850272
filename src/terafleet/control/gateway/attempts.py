"""Slows down those who guess: counts failed attempts by where they come from."""

from collections import OrderedDict

ATTEMPTS_MAX = 60
WINDOW_MS = 60_000
SOURCES_MAX = 4_096


class Attempts:
    """Failed attempts of the last minute or so; successes count for nothing.

    The fleet's cars may share one address behind a carrier's network, so only failures count.
    Of more sources than it can hold it forgets the oldest: memory is bounded, guessing is slowed
    and not prevented, the secrets' length prevents it.
    """

    def __init__(self) -> None:
        self._failed: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def wait_ms(self, source: str, now_ms: int) -> int:
        """How long this source must wait before its next attempt is looked at; 0 is not at all."""
        since_ms, count = self._failed.get(source, (now_ms, 0))
        if count < ATTEMPTS_MAX:
            return 0
        return max(0, since_ms + WINDOW_MS - now_ms)

    def failed(self, source: str, now_ms: int) -> None:
        """Count a failed attempt."""
        since_ms, count = self._failed.pop(source, (now_ms, 0))
        if now_ms >= since_ms + WINDOW_MS:
            since_ms, count = now_ms, 0
        self._failed[source] = (since_ms, count + 1)
        if len(self._failed) > SOURCES_MAX:
            self._failed.popitem(last=False)
