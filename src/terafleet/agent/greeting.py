"""Decides when to say hello, and which hello a welcome may answer."""

from collections.abc import Callable

HELLO_MS_MIN = 2_000
HELLO_MS_MAX = 30_000
FENCED_MS_MIN = 2_000
FENCED_MS_MAX = 300_000
GIVE_WAY_MS = 60_000
WELL_MS = 60_000
"""A welcome that held so long ends the count of fences."""

MESSAGE_AGE_MS_MAX = 30_000
"""No message is on its way for longer: the bus keeps none, and ends a connection sooner."""

NEVER_MS = 1 << 62


class Greeting:
    """Hellos are repeated with growing pauses until a welcome, or after a fence far apart."""

    def __init__(self, chance: Callable[[], float]) -> None:
        """`chance` in [0, 1) spreads many cars that lost their shard together."""
        self._chance = chance
        self._said_ms: list[int] = []
        self._failures = 0
        self._fences = 0
        self._fenced_until_ms = 0
        self._welcomed_ms = 0
        self.due_ms = NEVER_MS

    def begin(self, at_ms: int) -> None:
        """Say hello at this time, and again until it is answered; but not while fenced."""
        self._failures = 0
        self.due_ms = max(at_ms, self._fenced_until_ms)

    def is_due(self, now_ms: int) -> bool:
        """Whether to say hello at this moment."""
        return now_ms >= self.due_ms

    def said(self, now_ms: int) -> None:
        """A hello has left."""
        pause_ms = min(HELLO_MS_MAX, HELLO_MS_MIN << min(self._failures, 16))
        self._failures += 1
        self.due_ms = now_ms + self._shaken(pause_ms)
        self._said_ms.append(now_ms)

    def welcomed(self, now_ms: int) -> int:
        """When the hello left that is answered, at the earliest.

        A welcome does not say which hello it answers, and leases must not count from a later one.
        """
        oldest_ms = now_ms - MESSAGE_AGE_MS_MAX
        self._said_ms = [at_ms for at_ms in self._said_ms if at_ms >= oldest_ms]
        self._welcomed_ms = now_ms
        self._failures = 0
        self.due_ms = NEVER_MS
        return min(self._said_ms, default=oldest_ms)

    def fenced(self, now_ms: int) -> int:
        """The epoch is over: say hello after a pause, which is returned."""
        if self._welcomed_ms and now_ms - self._welcomed_ms > WELL_MS:
            self._fences = 0
        self._welcomed_ms = 0
        pause_ms = self._shaken(min(FENCED_MS_MAX, FENCED_MS_MIN << min(self._fences, 16)))
        self._fences += 1
        self._fenced_until_ms = now_ms + pause_ms
        self.begin(now_ms)
        return pause_ms

    def give_way(self, now_ms: int) -> None:
        """Another agent uses this identity and has fenced us: come back late."""
        if now_ms < self._fenced_until_ms:
            self._fenced_until_ms = now_ms + self._shaken(GIVE_WAY_MS)
            self.begin(now_ms)

    def _shaken(self, pause_ms: int) -> int:
        return round(pause_ms * (1 - self._chance() / 2))
