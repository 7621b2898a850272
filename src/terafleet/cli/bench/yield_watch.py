"""Watches processes from outside while they are taken off the computer, and says when they were."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from terafleet.cli.bench.yield_processes import is_ending, look, runs_own_code
from terafleet.engine.clock import elapsed_ns

LOOK_S: Final = 0.000_2
"""Between two looks: each moment is known to about so much."""

NS_PER_S: Final = 1_000_000_000
_FIRST: Final = -20
"""The best of the niceness of Linux, sched(7)."""


class Seen(msgspec.Struct, frozen=True):
    """When processes were seen off the computer, in ns of `elapsed_ns`; each no later than told.

    `stopped_ns`: of the one that had worked most, no code of its own ran any more. `off_cpu_ns`:
    they used no processor any more, not even in the kernel, which takes a dead process apart in
    that process's own time; `resolution_ns` is how much earlier that may have been.
    `memory_back_ns`: the kernel has all of their memory. What was not seen in time is 0.
    """

    stopped_ns: int
    off_cpu_ns: int
    resolution_ns: int
    memory_back_ns: int

    @property
    def is_over(self) -> bool:
        """Whether the processes have ended."""
        return bool(self.memory_back_ns)


def watch(process_ids: Sequence[int], patience_s: float) -> Seen:
    """Look at processes until all of them have ended, or for so long."""
    watched = [_Watched(one) for one in process_ids]
    until_ns = elapsed_ns() + round(patience_s * NS_PER_S)
    while not all(one.over_ns for one in watched):
        if elapsed_ns() > until_ns:
            return Seen(0, 0, 0, 0)
        for one in watched:
            one.look()
        time.sleep(LOOK_S)
    worker = max(watched, key=lambda one: one.worked_ns)
    last = max(watched, key=lambda one: one.used_ns)
    return Seen(
        stopped_ns=worker.stopped_ns,
        off_cpu_ns=last.used_ns,
        resolution_ns=last.used_ns - last.unused_ns,
        memory_back_ns=max(one.over_ns for one in watched),
    )


class _Watched:
    """One process, and when it was last seen to run, to use a processor, and to be there at all."""

    def __init__(self, process_id: int) -> None:
        self._process_id = process_id
        self._cpu_ns = -1
        self._runs, self._is_ending = True, False
        self._looked_ns = elapsed_ns()
        self.stopped_ns = self.used_ns = self.unused_ns = self._looked_ns
        """It was last on a processor between `unused_ns` and `used_ns`."""
        self.over_ns = 0

    @property
    def worked_ns(self) -> int:
        """Processor time up to the last look at which it was there."""
        return self._cpu_ns

    def look(self) -> None:
        """Look at it once more, unless it is over."""
        if self.over_ns:
            return
        began_ns = elapsed_ns()
        found = look(self._process_id)
        looked_ns = elapsed_ns()
        # What is gone without having been seen as ended may have run up to this moment.
        if found is None or found.cpu_ns != self._cpu_ns:
            self.used_ns, self.unused_ns = looked_ns, self._looked_ns
        if found is None or found.has_ended:
            self.over_ns = looked_ns
        else:
            self._cpu_ns = found.cpu_ns
        self._look_at_threads()
        self._looked_ns = began_ns

    def _look_at_threads(self) -> None:
        """It takes long, so only as long as there is any that may run code of its own."""
        if self._is_ending:
            return
        did_run, self._runs = self._runs, runs_own_code(self._process_id)
        if did_run or self._runs:
            self.stopped_ns = elapsed_ns()
        self._is_ending = is_ending(self._process_id)


@contextlib.contextmanager
def undelayed() -> Iterator[bool]:
    """Go before others on the processors, so that few looks come late; whether that is allowed.

    Looks take little time, but a looker who waits for a processor sees everything too late. It
    takes a share like others, only a large one: what goes before all could keep from running
    what a look waits for.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    is_allowed = True
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
    except PermissionError:
        is_allowed = False
    try:
        yield is_allowed
    finally:
        if is_allowed:
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
