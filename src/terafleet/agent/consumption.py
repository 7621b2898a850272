"""Counts what the agent and its children take of the car's flash and link, for the owner's caps."""

import os
from collections.abc import Callable
from pathlib import Path

FLASH_NEWS_BYTES = 1_000_000
LINK_NEWS_BYTES = 1_000_000
"""Less is told later, so that counting writes no more than it counts."""

PROC = Path("/proc")


class Consumption:
    """Bytes written and bytes sent and received since the guard was told last."""

    def __init__(self, link_bytes: Callable[[], int], proc: Path = PROC) -> None:
        """`link_bytes` counts all that went over the link since the agent began."""
        self._link_bytes = link_bytes
        self._proc = proc
        self._told_flash = flash_bytes(proc)
        self._told_link = link_bytes()

    def news(self, *, is_last: bool = False) -> tuple[int, int] | None:
        """Bytes to flash and over the link, if they are worth telling or it is the last chance."""
        flash, link = flash_bytes(self._proc), self._link_bytes()
        flash_more = max(0, flash - self._told_flash)
        link_more = max(0, link - self._told_link)
        is_worth_it = flash_more >= FLASH_NEWS_BYTES or link_more >= LINK_NEWS_BYTES
        if not is_worth_it and not (is_last and (flash_more or link_more)):
            return None
        self._told_flash, self._told_link = max(flash, self._told_flash), link
        return flash_more, link_more


def flash_bytes(proc: Path = PROC) -> int:
    """What this process and its children, those that ended too, have sent to storage.

    `write_bytes` of proc_pid_io(5): pages of a file system in memory never count. A child that
    may not be looked at counts when it has ended: the kernel adds it to its parent then.
    """
    own = proc / str(os.getpid())
    return _written(own) + sum(_written(proc / child) for child in _children(own))


def _written(process: Path) -> int:
    try:
        lines = (process / "io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("write_bytes:")]
    return int(found[0]) if found else 0


def _children(process: Path) -> list[str]:
    found: list[str] = []
    try:
        for task in (process / "task").iterdir():
            found += (task / "children").read_text(encoding="ascii").split()
    except OSError:
        return found
    return found
