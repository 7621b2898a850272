"""Makes a process that is to die give its memory back soon, however busy the computer is.

A program that computes only when nobody else wants to also dies only then: its last steps are
the kernel's, but they take its own processor time.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from terafleet.agent.adapters.sandbox import calls

# The same number on all machines (process_mrelease(2), Linux 5.15).
_PROCESS_MRELEASE: Final = 448


def hurry(process_id: int) -> None:
    """Let a process compute like anybody else, as far as the agent may say so. Never blocks."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process_id}/autogroup").write_text("0", "ascii")
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{process_id}/task"):
            os.sched_setscheduler(int(task), os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(task), 0)


def release_memory(descriptor: int) -> None:
    """Free the memory of a process that was killed with this thread's time; closes its descriptor.

    Blocks for about 0.1 s a GiB. Where the kernel doesn't offer it the process does it itself.
    """
    try:
        with contextlib.suppress(OSError):
            calls.call(_PROCESS_MRELEASE, descriptor, 0)
    finally:
        os.close(descriptor)
