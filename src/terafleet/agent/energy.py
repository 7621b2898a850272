"""Splits the processor time of runtimes among the attempts that run in them."""

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class CpuShares(Generic[K]):
    """Splits the processor time of one program among the attempts that run in it.

    What passes while several run belongs to each of them alike.
    """

    def __init__(self, cpu_ms: Callable[[], int]) -> None:
        """`cpu_ms` is the program's processor time so far; it falls when the program is anew."""
        self._cpu_ms = cpu_ms
        self._seen_ms = 0
        self._each_ms = 0.0
        """What an attempt would have by now that had run from the first moment on."""
        self._began_ms: dict[K, float] = {}

    def __len__(self) -> int:
        """How many run at this moment."""
        return len(self._began_ms)

    def begin(self, key: K) -> None:
        """From here on it has a share."""
        self._settle()
        self._began_ms[key] = self._each_ms

    def end(self, key: K) -> int:
        """Its processor time, in ms."""
        self._settle()
        return round(self._each_ms - self._began_ms.pop(key, self._each_ms))

    def _settle(self) -> None:
        seen_ms = self._cpu_ms()
        if seen_ms == self._seen_ms:
            return
        passed_ms = seen_ms - self._seen_ms if seen_ms >= self._seen_ms else seen_ms
        self._seen_ms = seen_ms
        if self._began_ms:
            self._each_ms += passed_ms / len(self._began_ms)
