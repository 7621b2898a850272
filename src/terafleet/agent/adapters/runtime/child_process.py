"""A child process with pipes for frames: started, stopped, killed and reaped by its own id.

It may be wrapped by another program; it knows nothing of what the frames mean.
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

from terafleet.agent.adapters.runtime.ending import hurry, release_memory
from terafleet.agent.adapters.runtime.worker import worker_behind
from terafleet.agent.runtime_host.frames import FrameSplitter, FrameTooLong, length_prefix

_UNREAD_PIPE_SECONDS: Final = 1.0
_WRAPPER_SECONDS_MAX: Final = 0.5
"""So long a wrapper has to end behind its worker; it takes some milliseconds."""
_WRAPPED_SIGNAL: Final = 128
"""A wrapper ends with this and the number of the signal that ended its worker (bwrap, shells)."""
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Positions in /proc/PID/stat after the name in brackets, from proc_pid_stat(5).
_STAT_USER_TICKS, _STAT_SYSTEM_TICKS = 11, 12
_STAT_STATE = 0
_STATM_RESIDENT = 1
_NS_PER_MS: Final = 1_000_000
# The clock of another process, as the kernel numbers them (clock_getcpuclockid(3) of the C
# library does the same): its id with all bits turned, and what all its threads were scheduled for.
_CLOCK_SHIFT, _CLOCK_SCHEDULED = 3, 2

OnBody = Callable[[bytes], None]
OnEnd = Callable[[int], None]
"""Gets the exit code, negative for the number of a signal."""


class ChildProcess:
    """One life of a child in a process group of its own.

    `on_body` gets each frame's body; `on_end` is called once, when the process is reaped and
    its pipes are read to their end. A child that breaks the form of the frames is killed. Of a
    child that is wrapped, time, states and memory are those of the process inside, the worker.
    """

    def __init__(self, on_body: OnBody, on_end: OnEnd) -> None:
        self._on_body = on_body
        self._on_end = on_end
        self._splitter = FrameSplitter()
        self._worker: _Worker | None = None
        self._exit_code: int | None = None
        self._has_output_ended = False
        self._is_over = False
        self._cpu_ms = 0
        self._gone = asyncio.Event()
        self._patience: asyncio.TimerHandle | None = None
        self._impatience: asyncio.TimerHandle | None = None

    async def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        errors: int | None,
        is_wrapped: bool = False,
    ) -> None:
        """Start the program; what it writes to its `errors` goes there. Raises OSError.

        The kernel ends the child with the thread that starts it, so that must be one that stays.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._is_wrapped = is_wrapped
        self._process = _started(command, environment, errors)
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._reap)
        self._input, _ = await loop.connect_write_pipe(_Ignore, self._process.stdin)
        await loop.connect_read_pipe(lambda: _Output(self), self._process.stdout)

    @property
    def process_id(self) -> int:
        """The process that does the work; the child itself, or the worker that it has wrapped."""
        worker = self._find_worker()
        return self._process.pid if worker is None else worker.process_id

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
        if self._exit_code is not None:
            return
        if number is signal.SIGKILL:
            self._end_all()
        else:
            self._signal_all(number)

    async def kill(self) -> None:
        """End the child and wait until the kernel has its memory back; safe to call twice."""
        self.signal_group(signal.SIGKILL)
        await self._gone.wait()

    def cpu_ms(self) -> int:
        """Processor time of all its threads so far, or in all once it is gone.

        A worker is reaped by its wrapper, which tells nobody what it used: of one that ended by
        itself, this is what was last seen.
        """
        with contextlib.suppress(OSError):
            if self._exit_code is None:
                fields = self._proc("stat").rpartition(")")[2].split()
                ticks = int(fields[_STAT_USER_TICKS]) + int(fields[_STAT_SYSTEM_TICKS])
                self._see_used(ticks * 1000 // _TICKS_A_SECOND)
        return self._cpu_ms

    def cpu_ns(self) -> int:
        """The same in ns: the kernel's clock of a process counts each moment, not ticks."""
        with contextlib.suppress(OSError):
            if self._exit_code is None:
                clock = (~self.process_id << _CLOCK_SHIFT) | _CLOCK_SCHEDULED
                used_ns = time.clock_gettime_ns(clock)
                self._see_used(used_ns // _NS_PER_MS)
                return used_ns
        return self.cpu_ms() * _NS_PER_MS

    def states(self) -> frozenset[str]:
        """The letters of its threads' states as in proc_pid_stat(5); none once it is gone."""
        letters = set()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{self.process_id}/task").iterdir():
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
        with open(f"/proc/{self.process_id}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()

    def _end_all(self) -> None:
        """Kill what does the work, and have its memory back before its turn to compute comes.

        A wrapper is left alive, so that it reaps; one that does not end then is killed too.
        """
        self.cpu_ns()
        hurry(self.process_id)
        worker = self._find_worker()
        if worker is None:
            descriptor = self._pidfd
            self._signal_all(signal.SIGKILL)
        elif worker.has_ended:
            return
        else:
            descriptor = worker.descriptor
            worker.kill()
            self._signal_all(signal.SIGCONT)
        if self._impatience is None:
            self._loop.run_in_executor(None, release_memory, os.dup(descriptor))
            late_s = _WRAPPER_SECONDS_MAX
            self._impatience = self._loop.call_later(late_s, self._signal_all, signal.SIGKILL)

    def _find_worker(self) -> "_Worker | None":
        """The worker of a wrapper, as soon as there is one."""
        if self._is_wrapped and self._worker is None and self._exit_code is None:
            process_id = worker_behind(self._process.pid)
            if process_id is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._worker = _Worker(process_id, self._loop, self._end_if_over)
        return self._worker

    def _see_used(self, cpu_ms: int) -> None:
        self._cpu_ms = max(self._cpu_ms, cpu_ms)

    def _signal_all(self, number: signal.Signals) -> None:
        # Only this class reaps the child, so its id can't belong to anyone else before that.
        if self._exit_code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _reap(self) -> None:
        """The process has ended: take its exit code, and end what it may have left behind."""
        loop = self._loop
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._signal_all(signal.SIGKILL)
        _process_id, status, usage = os.wait4(self._process.pid, 0)
        exit_code = os.waitstatus_to_exitcode(status)
        if self._worker is not None:
            self._worker.kill()
            exit_code = _WRAPPED_SIGNAL - exit_code if exit_code > _WRAPPED_SIGNAL else exit_code
        self._exit_code = self._process.returncode = exit_code
        self._see_used(round((usage.ru_utime + usage.ru_stime) * 1000))
        self._input.close()
        self._patience = loop.call_later(_UNREAD_PIPE_SECONDS, self.end_output)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._is_over or self._exit_code is None or not self._has_output_ended:
            return
        if self._worker is not None and not self._worker.has_ended:
            return
        self._is_over = True
        for timer in (self._patience, self._impatience):
            if timer is not None:
                timer.cancel()
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


class _Worker:
    """The process inside a wrapper: not our child, so it is held by a descriptor of the kernel."""

    def __init__(
        self, process_id: int, loop: asyncio.AbstractEventLoop, on_end: Callable[[], None]
    ) -> None:
        """Raises ProcessLookupError."""
        self.process_id = process_id
        self.has_ended = False
        self.descriptor = os.pidfd_open(process_id)
        self._loop = loop
        self._on_end = on_end
        loop.add_reader(self.descriptor, self._end)

    def kill(self) -> None:
        """End it, if it has not ended."""
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def _end(self) -> None:
        self._loop.remove_reader(self.descriptor)
        os.close(self.descriptor)
        self.has_ended = True
        self._on_end()


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
