"""A child process with pipes for frames: started, stopped, killed and reaped by its own id.

It knows nothing of what the frames mean.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from terafleet.agent.runtime_host.frames import FrameSplitter, FrameTooLong, length_prefix

_UNREAD_PIPE_SECONDS: Final = 1.0
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Positions in /proc/PID/stat after the name in brackets, from proc_pid_stat(5).
_STAT_USER_TICKS, _STAT_SYSTEM_TICKS = 11, 12
_STAT_STATE = 0
_STATM_RESIDENT = 1
# The clock of another process, as the kernel numbers them (clock_getcpuclockid(3) of the C
# library does the same): its id with all bits turned, and what all its threads were scheduled for.
_CLOCK_SHIFT, _CLOCK_SCHEDULED = 3, 2

OnBody = Callable[[bytes], None]
OnEnd = Callable[[int], None]
"""Gets the exit code, negative for the number of a signal."""


class ChildProcess:
    """One life of a child in a process group of its own.

    `on_body` gets each frame's body; `on_end` is called once, when the process is reaped and
    its pipes are read to their end. A child that breaks the form of the frames is killed.
    """

    def __init__(self, on_body: OnBody, on_end: OnEnd) -> None:
        self._on_body = on_body
        self._on_end = on_end
        self._splitter = FrameSplitter()
        self._exit_code: int | None = None
        self._has_output_ended = False
        self._is_over = False
        self._cpu_ms = 0
        self._gone = asyncio.Event()
        self._patience: asyncio.TimerHandle | None = None

    async def start(
        self, command: Sequence[str], environment: Mapping[str, str], errors: int | None
    ) -> None:
        """Start the program; what it writes to its `errors` goes there. Raises OSError.

        The kernel ends the child with the thread that starts it, so that must be one that stays.
        """
        loop = asyncio.get_running_loop()
        self._process = _started(command, environment, errors)
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._reap)
        self._input, _ = await loop.connect_write_pipe(_Ignore, self._process.stdin)
        await loop.connect_read_pipe(lambda: _Output(self), self._process.stdout)

    @property
    def process_id(self) -> int:
        """The child's process, which is also its group and its session."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process is reaped; what it wrote before may still be on its way."""
        return self._exit_code is not None

    def send(self, body: bytes) -> None:
        """Put a frame into the child's input; one for a child that is gone is lost."""
        if not self._input.is_closing():
            self._input.writelines([length_prefix(body), body])

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the child and to all that it might have started; never raises."""
        # Only this class reaps the child, so its id can't belong to anyone else before that.
        if self._exit_code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    async def kill(self) -> None:
        """End the child and wait until the kernel has its memory back; safe to call twice."""
        self.signal_group(signal.SIGKILL)
        await self._gone.wait()

    def cpu_ms(self) -> int:
        """Processor time of all its threads so far, or in all once it is gone."""
        with contextlib.suppress(OSError):
            if self._exit_code is None:
                fields = self._proc("stat").rpartition(")")[2].split()
                ticks = int(fields[_STAT_USER_TICKS]) + int(fields[_STAT_SYSTEM_TICKS])
                self._cpu_ms = ticks * 1000 // _TICKS_A_SECOND
        return self._cpu_ms

    def cpu_ns(self) -> int:
        """The same in ns: the kernel's clock of a process counts each moment, not ticks."""
        with contextlib.suppress(OSError):
            if self._exit_code is None:
                clock = (~self._process.pid << _CLOCK_SHIFT) | _CLOCK_SCHEDULED
                return time.clock_gettime_ns(clock)
        return self.cpu_ms() * 1_000_000

    def states(self) -> frozenset[str]:
        """The letters of its threads' states as in proc_pid_stat(5); none once it is gone."""
        letters = set()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{self._process.pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    stat = (task / "stat").read_text(encoding="utf-8", errors="replace")
                    letters.add(stat.rpartition(")")[2].split()[_STAT_STATE])
        return frozenset(letters)

    def resident_bytes(self) -> int:
        """What it occupies of the computer's memory; 0 once it is gone."""
        with contextlib.suppress(OSError):
            if self._exit_code is None:
                return int(self._proc("statm").split()[_STATM_RESIDENT]) * _PAGE_BYTES
        return 0

    def take(self, delivered: bytes) -> None:
        """Bytes from the child's output."""
        try:
            bodies = self._splitter.feed(delivered)
        except FrameTooLong:
            self.signal_group(signal.SIGKILL)
            return
        for body in bodies:
            self._on_body(body)

    def end_output(self) -> None:
        """Nothing more comes from the child's output."""
        self._has_output_ended = True
        self._end_if_over()

    def _proc(self, name: str) -> str:
        with open(f"/proc/{self._process.pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()

    def _reap(self) -> None:
        """The process has ended: take its exit code, and end what it may have left behind."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        _process_id, status, usage = os.wait4(self._process.pid, 0)
        self._exit_code = self._process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_ms = round((usage.ru_utime + usage.ru_stime) * 1000)
        self._input.close()
        self._patience = loop.call_later(_UNREAD_PIPE_SECONDS, self.end_output)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._is_over or self._exit_code is None or not self._has_output_ended:
            return
        self._is_over = True
        if self._patience is not None:
            self._patience.cancel()
        self._gone.set()
        self._on_end(self._exit_code)


def _started(
    command: Sequence[str], environment: Mapping[str, str], errors: int | None
) -> subprocess.Popen[bytes]:
    """The process, in a group and a session of its own; it blocks for the time of a fork."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd="/",
        env=dict(environment),
        bufsize=0,
        start_new_session=True,
    )


class _Ignore(asyncio.BaseProtocol):
    """The child's input has nothing to tell: that it broke is seen when the child is reaped."""


class _Output(asyncio.Protocol):
    """The child's output."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child

    def data_received(self, data: bytes) -> None:
        self._child.take(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._child.end_output()
