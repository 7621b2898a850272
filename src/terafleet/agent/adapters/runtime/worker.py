"""Finds the process that does the work behind a program that wraps it.

bubblewrap stays outside and waits; its child is the first process of the namespace, which reaps;
the child of that runs the program (bwrap(1), without --as-pid-1).
"""

import contextlib
import os
from pathlib import Path


def worker_behind(process_id: int) -> int | None:
    """The process that a wrapper runs; None while it has not got so far, or is gone."""
    first = _only_child(process_id)
    return _only_child(first) if first is not None else None


def _only_child(process_id: int) -> int | None:
    children = _children(process_id)
    return children[0] if len(children) == 1 else None


def _children(process_id: int) -> list[int]:
    listed = Path(f"/proc/{process_id}/task/{process_id}/children")
    with contextlib.suppress(OSError):
        return [int(word) for word in listed.read_text("ascii").split()]
    if not os.path.exists(f"/proc/{process_id}"):
        return []
    # The kernel was built without the list (CONFIG_PROC_CHILDREN).
    return [
        int(name)
        for name in os.listdir("/proc")
        if name.isdecimal() and _parent(name) == process_id
    ]


def _parent(name: str) -> int | None:
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[1])
    return None
