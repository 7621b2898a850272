"""Looks at processes of this computer from outside: who is whose child, what they use and hold."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Positions in /proc/PID/stat after the name in brackets, from proc_pid_stat(5).
_STATE, _PARENT, _FLAGS, _THREADS, _RESIDENT = 0, 1, 6, 17, 21
# Of a thread that has begun to end: from here on only the kernel runs in it (linux/sched.h).
_EXITING = 0x4
# The clock of another process, as the kernel numbers them (clock_getcpuclockid(3) of the C
# library does the same): its id with all bits turned, and what all its threads were scheduled for.
_CLOCK_SHIFT, _CLOCK_SCHEDULED = 3, 2
_PROC: Final = Path("/proc")


class Look(msgspec.Struct, frozen=True):
    """One look at a process that is there.

    `cpu_ns` is what all its threads were on a processor so far, up to the moment of the look. One
    that `has_ended` is only waited for by its parent: it uses nothing any more, and the kernel
    has its memory.
    """

    cpu_ns: int
    resident_bytes: int
    has_ended: bool


def look(process_id: int) -> Look | None:
    """What a process uses and holds at this moment, or None once there is none of this number."""
    try:
        fields = _fields(f"{_PROC}/{process_id}/stat")
        # Read behind the state: what has ended by then has used all that it will.
        cpu_ns = cpu_ns_of(process_id)
    except OSError:
        return None
    # A leader is a zombie as soon as it has ended itself, though other threads may still run; the
    # last one of them gives the memory back before it is counted as gone (linux, kernel/exit.c).
    has_ended = fields[_STATE] in "ZX" and int(fields[_THREADS]) <= 1
    return Look(cpu_ns, int(fields[_RESIDENT]) * PAGE_BYTES, has_ended)


def cpu_ns_of(process_id: int) -> int:
    """Processor time of all threads of a process, with that of those that run just now.

    Raises OSError if there is no such process.
    """
    return time.clock_gettime_ns((~process_id << _CLOCK_SHIFT) | _CLOCK_SCHEDULED)


def runs_own_code(process_id: int) -> bool:
    """Whether a thread runs, or would if it had a processor, that does not only end."""
    return any(state in "RD" and not flags & _EXITING for state, flags in _threads(process_id))


def is_ending(process_id: int) -> bool:
    """Whether all threads have begun to end, or there is none."""
    return all(flags & _EXITING for _, flags in _threads(process_id))


def descendants(process_id: int) -> tuple[int, ...]:
    """All processes below one, its children's children too."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(_fields(f"{folder}/stat")[_PARENT])
                children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    coming = list(children.get(process_id, ()))
    while coming:
        one = coming.pop()
        found.append(one)
        coming += children.get(one, ())
    return tuple(sorted(found))


def _threads(process_id: int) -> Iterator[tuple[str, int]]:
    """State and flags of each thread of a process that is there."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"{_PROC}/{process_id}/task"):
            with contextlib.suppress(OSError):
                fields = _fields(f"{_PROC}/{process_id}/task/{thread}/stat")
                yield fields[_STATE], int(fields[_FLAGS])


def _fields(path: str) -> list[str]:
    """What stands in a stat file behind the name, which may hold anything."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
