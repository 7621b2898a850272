"""Lets a forked child write a snapshot, so that the writer goes on meanwhile."""

import contextlib
import ctypes
import fcntl
import gc
import io
import os
import select
import signal
import struct
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

PIPE_BYTES = 1024 * 1024
POLL_MS = 100
PR_SET_PDEATHSIG = 1
"""prctl(2), Linux: the signal that a process gets when its parent dies."""
HEADER = struct.Struct(">?Q")
"""Whether it went well, and how many bytes follow: the snapshot, or the words of the failure."""


# Looked up before any fork: a child may not search for libraries.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class SnapshotLost(Exception):
    """The child gave no snapshot: it failed, was killed, or took too long."""


class SnapshotChild:
    """A forked copy of this process that serializes the machine as it was at the fork."""

    def __init__(self, snapshot: Callable[[], bytes]) -> None:
        """Fork; returns in the parent as soon as the page tables are copied.

        `snapshot` runs in the child and may only compute: locks that other threads held at
        the fork are held there for ever, and all descriptors but the pipe's are closed.
        Raises SnapshotLost where the system gives no process or no pipe.
        """
        self._is_given_up = threading.Event()
        try:
            self._reader, writer = os.pipe()
        except OSError as error:
            raise SnapshotLost(str(error)) from error
        _enlarge(writer)
        parent = os.getpid()
        try:
            self._pid = _fork()
        except OSError as error:
            os.close(self._reader)
            os.close(writer)
            raise SnapshotLost(str(error)) from error
        if self._pid == 0:
            _serve(snapshot, writer, parent)
        os.close(writer)

    def give_up(self) -> None:
        """Make `receive`, which waits in another thread, kill the child and raise."""
        self._is_given_up.set()

    def receive(self, timeout_ms: int) -> bytes:
        """Wait for the snapshot and reap the child; call it once. Raises SnapshotLost."""
        try:
            header = self._read(HEADER.size, time.monotonic() + timeout_ms / 1000)
            is_good, size = HEADER.unpack(header)
            body = self._read(size, time.monotonic() + timeout_ms / 1000)
        except SnapshotLost:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            raise
        finally:
            os.close(self._reader)
            # Another part of the process may have reaped all its children.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        if not is_good:
            raise SnapshotLost(body.decode(errors="replace"))
        return body

    def _read(self, size: int, deadline_s: float) -> bytes:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        # BytesIO hands its buffer over without a copy, which counts at 300 MB.
        body = io.BytesIO()
        while (missing := size - body.tell()) > 0:
            if self._is_given_up.is_set():
                raise SnapshotLost("given up")
            if time.monotonic() > deadline_s:
                raise SnapshotLost("timed out")
            if not poll.poll(POLL_MS):
                continue
            piece = os.read(self._reader, min(missing, PIPE_BYTES))
            if not piece:
                raise SnapshotLost("the child died")
            body.write(piece)
        return body.getvalue()


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads; the child keeps to what its class says.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return os.fork()


def _serve(snapshot: Callable[[], bytes], writer: int, parent: int) -> NoReturn:
    """What the child does; it never returns into the parent's event loop."""
    try:
        _let_go_of_parent(writer)
        _die_with(parent)
        try:
            body, is_good = snapshot(), True
        except BaseException:  # noqa: BLE001 - the entry point of a process of its own.
            body, is_good = traceback.format_exc().encode(), False
        _write(writer, HEADER.pack(is_good, len(body)))
        _write(writer, body)
    finally:
        os._exit(0)


def _let_go_of_parent(writer: int) -> None:
    """Keep nothing of the parent that outlives it: its sockets, its lock on the store."""
    signal.set_wakeup_fd(-1)
    # A collection would write to every object's header and so copy the whole memory.
    gc.disable()
    os.nice(10)
    os.closerange(3, writer)
    os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))


def _die_with(parent: int) -> None:
    """An orphan would take the memory that the parent's successor needs."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _write(writer: int, body: bytes) -> None:
    rest = memoryview(body)
    while rest:
        rest = rest[os.write(writer, rest[:PIPE_BYTES]) :]


def _enlarge(writer: int) -> None:
    """Fewer, larger pieces; a system that allows less keeps its own size."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
