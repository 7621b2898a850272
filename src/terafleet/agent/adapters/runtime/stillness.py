"""Decides from looks at a program that has work whether it stands still for good."""

from collections.abc import Callable, Collection
from typing import Final

LOOK_MS: Final = 200
"""How far apart two looks are, at least."""

STILL_LOOKS: Final = 5
"""So many in a row without a sign of life mean that the program stands still: after a second."""

# The letters of proc_pid_stat(5) for threads that run, or would if a processor or a disk let them.
_AT_WORK: Final = frozenset("RD")


class Stillness:
    """What was seen of one program since it was last known to live.

    A sign of life is processor time that it has used since the last look, or a thread that runs,
    or waits for a processor or a disk. So a program that the computer keeps waiting does not
    count as still, and neither does one that turns in an endless loop.
    """

    def __init__(self) -> None:
        self._cpu_ns: int | None = None
        self._still_looks = 0

    def forget(self) -> None:
        """What comes next is looked at anew: it was told to stand still, or had nothing to do."""
        self._cpu_ns, self._still_looks = None, 0

    def look(self, cpu_ns: int, states: Callable[[], Collection[str]]) -> bool:
        """Whether it stands still for good, by its processor time and its threads' states.

        `states` is asked only where the time says nothing. Looks are counted and not the time
        between them, because an agent that was held up itself has seen nothing meanwhile.
        """
        is_alive = cpu_ns != self._cpu_ns or not _AT_WORK.isdisjoint(states())
        self._cpu_ns = cpu_ns
        self._still_looks = 0 if is_alive else self._still_looks + 1
        return self._still_looks >= STILL_LOOKS
