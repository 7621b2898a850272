"""The clock that stamps events: wall milliseconds that only ever go forward."""

import time
from collections.abc import Callable
from typing import Protocol

NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Where the engine reads the time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; never less than at the call before."""
        ...


def elapsed_ns() -> int:
    """Nanoseconds since an arbitrary point, counting the time that the computer was suspended.

    A lease must end while a car sleeps; Linux stops CLOCK_MONOTONIC then, not CLOCK_BOOTTIME
    (clock_gettime(2)).
    """
    return time.clock_gettime_ns(_ELAPSED)


_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """Wall time at the start, carried on by the monotonic clock.

    It begins no earlier than `start_at_ms`, the last time in the journal: a wall clock that
    was stepped back over a restart must not stall the machine. Steps of the wall clock while
    it runs are not seen.
    """

    def __init__(
        self,
        start_at_ms: int = 0,
        wall_ns: Callable[[], int] = time.time_ns,
        elapsed: Callable[[], int] = elapsed_ns,
    ) -> None:
        """Start at the later of the wall clock and `start_at_ms`."""
        self._wall_ns = wall_ns
        self._elapsed_ns = elapsed
        self._start_ns = max(wall_ns(), start_at_ms * NS_PER_MS) - elapsed()

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC; never less than at the call before."""
        return (self._start_ns + self._elapsed_ns()) // NS_PER_MS

    def wall_ahead_ms(self) -> int:
        """How far the wall clock is ahead of this one; negative behind; for health pages."""
        return self._wall_ns() // NS_PER_MS - self.now_ms()


class ManualClock:
    """A clock that stands still until a test or a simulation moves it."""

    def __init__(self, start_at_ms: int = 0) -> None:
        """Stand at `start_at_ms`."""
        self._now_ms = start_at_ms

    def now_ms(self) -> int:
        """The time that was set last."""
        return self._now_ms

    def advance(self, by_ms: int) -> None:
        """Go forward by `by_ms`; call `Engine.wake` afterwards if an engine waits on it."""
        assert by_ms >= 0, "a clock never goes back"
        self._now_ms += by_ms
