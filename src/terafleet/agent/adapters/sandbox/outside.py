"""What the agent does around a runtime: wraps it, bounds it and looks at it from outside.

It doesn't know what the runtime says or does.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from terafleet.agent.adapters.sandbox.bubblewrap import NotWrapped, View, Wrapping, find_wrapping
from terafleet.agent.adapters.sandbox.cgroups import Group, make_group
from terafleet.agent.adapters.sandbox.own_user import GROUP_ID, free_user_id, lend_models
from terafleet.agent.adapters.sandbox.tries import namespaces
from terafleet.agent.ports import SandboxReport
from terafleet.agent.runtime_host.messages import HostSettings

_FIRST_PROCESS: Final = 1
"""The parent that a wrapped program sees: the first process of its namespace."""

Program = Callable[[HostSettings], list[str]]


class Outside:
    """The walls of one runtime that the agent builds; the others the runtime builds itself."""

    def __init__(self) -> None:
        self.wrapping: Wrapping | NotWrapped = NotWrapped("it was not asked for")
        self._user_id = 0
        self._group: Group | None = None

    @property
    def is_wrapping(self) -> bool:
        """Whether the program runs inside another one."""
        return isinstance(self.wrapping, Wrapping)

    @property
    def faults(self) -> tuple[str, str]:
        """Why the program is not wrapped, and why it has no user of its own; empty where it is."""
        if isinstance(self.wrapping, NotWrapped):
            return self.wrapping.reason, self.wrapping.reason
        return "", self.wrapping.lacks

    async def prepare(self, view: View) -> None:
        """Find out how programs can be wrapped here."""
        self.wrapping = await asyncio.to_thread(find_wrapping, view)

    def command(self, settings: HostSettings, program: Program) -> list[str]:
        """The command line that starts the program with settings, wrapped where it can be."""
        wrapping = self.wrapping
        if isinstance(wrapping, NotWrapped):
            return program(settings)
        self._user_id = (free_user_id() or 0) if wrapping.has_own_identity else 0
        settings = msgspec.structs.replace(
            settings,
            parent_id=_FIRST_PROCESS,
            shown=wrapping.shown,
            outside=namespaces(),
            user_id=self._user_id,
            group_id=GROUP_ID,
        )
        return wrapping.command(program(settings))

    async def bound(self, process_id: int, settings: HostSettings) -> tuple[str, ...]:
        """Put a program that is up into a group of its own; the bounds that hold from then on.

        Only now does one with any niceness stand behind everybody else: to start takes little, and
        is not to take for ever.
        """
        is_idle = settings.niceness > 0
        if is_idle:
            _make_idle(process_id)
        group = self._group = await asyncio.to_thread(make_group, settings.memory_bytes, is_idle)
        if group is None or not await asyncio.to_thread(group.add, process_id):
            return ()
        return group.holds

    def checked(
        self, report: SandboxReport, bounds: tuple[str, ...], process_id: int
    ) -> SandboxReport:
        """A report with what only the agent can see."""
        has_own_identity = report.has_own_identity and _users_of(process_id) == {self._user_id}
        has_limited_threads = report.has_limited_threads or any("pids" in one for one in bounds)
        return msgspec.structs.replace(
            report,
            has_own_identity=has_own_identity,
            has_limited_threads=has_limited_threads,
            has_idle_priority=_is_idle(process_id),
        )

    def lend(self, folder: Path) -> None:
        """Let the program read a model's folder."""
        if isinstance(self.wrapping, Wrapping) and self.wrapping.has_own_identity:
            lend_models(folder)

    def hurry(self) -> None:
        """Let the program end without waiting for the processor."""
        if self._group is not None:
            self._group.hurry()

    def clear(self) -> None:
        """Leave nothing of a program that has ended; another thread waits for the kernel."""
        group, self._group = self._group, None
        if group is not None:
            asyncio.get_running_loop().run_in_executor(None, group.remove)


def _users_of(process_id: int) -> set[int]:
    """All the users that a process is or may become, as the agent's namespace numbers them."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text("utf-8").splitlines()
    except OSError:
        return set()
    return {int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]}


def _make_idle(process_id: int) -> None:
    """Let all threads of a process compute only when nobody else wants to."""
    for thread_id in _threads_of(process_id):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread_id, os.SCHED_IDLE, os.sched_param(0))


def _is_idle(process_id: int) -> bool:
    threads = _threads_of(process_id)
    with contextlib.suppress(OSError):
        return bool(threads) and {os.SCHED_IDLE} == set(map(os.sched_getscheduler, threads))
    return False


def _threads_of(process_id: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{process_id}/task")]
    return []
