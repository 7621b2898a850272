"""Becomes another program, which the kernel kills when the process that started it ends.

Run as a script: `python -I -S die_with_parent.py PARENT_PROCESS_ID PROGRAM [ARGUMENT …]`. A program
of its own, because the request holds for the process that makes it, and code between fork and exec
is not safe in a process with threads. The kernel means the *thread* that started the child.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Ask for the signal, and become the program."""
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit("the kernel does not tie a child to its parent")
    # The parent may have ended before the request was made.
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    os.execv(command[0], command)  # noqa: S606 - no shell is what is wanted.


if __name__ == "__main__":
    main()
