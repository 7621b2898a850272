"""Splits the processor time of the whole process among the attempts that ran meanwhile."""

import threading
from collections.abc import Callable


class ProcessorShares:
    """Who used how much: between two changes, each running attempt is charged the same.

    A thread's own clock would miss the threads of the numeric libraries.
    """

    def __init__(self, used_ns: Callable[[], int]) -> None:
        self._used_ns = used_ns
        self._seen_ns = 0
        self._lock = threading.Lock()
        self._shares_ns: dict[int, int] = {}

    def begin(self, number: int) -> None:
        """An attempt starts to use the processor."""
        with self._lock:
            self._settle()
            self._shares_ns[number] = 0

    def end_ms(self, number: int) -> int:
        """An attempt is over; what it used, in milliseconds."""
        with self._lock:
            self._settle()
            return self._shares_ns.pop(number) // 1_000_000

    def _settle(self) -> None:
        used_ns = self._used_ns()
        if self._shares_ns:
            share_ns = (used_ns - self._seen_ns) // len(self._shares_ns)
            for number in self._shares_ns:
                self._shares_ns[number] += share_ns
        self._seen_ns = used_ns
