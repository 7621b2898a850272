"""Keeps the runtimes of a car: starts each when it is wanted, and ends all of them at once.

A car that offers several kinds has one program for each; to the guard they are one runtime.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.deeds import Spawn
from terafleet.agent.ports import Runtime, RuntimeFailure, RuntimeUnavailable
from terafleet.core.isolation import IsolationLevel, isolation_level
from terafleet.core.reasons import Failure

TURNS_TO_SETTLE = 10
"""Turns of the event loop; a failure reaches the end of its chain of waits in fewer."""

log: FilteringBoundLogger = structlog.get_logger()


class _Life:
    """One program from its start to its end."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.starting: asyncio.Task[RuntimeFailure | None] | None = None
        self.is_over = False


class RuntimeKeeper:
    """The runtimes by kind. `exited(detail)` is called once for every end that the guard awaits."""

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        exited: Callable[[str], None],
        spawn: Spawn,
    ) -> None:
        """`runtimes` are not started; each can be started again after it has ended."""
        self._runtimes = dict(runtimes)
        self._exited = exited
        self._spawn = spawn
        self._lives: dict[str, _Life] = {}
        self._levels: dict[str, IsolationLevel] = {}
        self._dying: list[_Life] = []

    async def up(self, kind: str) -> Runtime | RuntimeFailure:
        """The runtime of a kind, started if it is not; callers share one start."""
        runtime = self._runtimes.get(kind)
        if runtime is None:
            return RuntimeFailure("", Failure.MODEL_UNAVAILABLE, f"no runtime {kind} here")
        life = self._lives.get(kind)
        if life is None:
            life = self._lives[kind] = _Life(runtime)
            life.starting = asyncio.ensure_future(self._start(kind, life))
        assert life.starting is not None
        failure = await asyncio.shield(life.starting)
        return runtime if failure is None else failure

    def running(self, kind: str) -> Runtime | None:
        """The runtime of a kind if it is up."""
        life = self._lives.get(kind)
        if life is None or life.starting is None or not life.starting.done():
            return None
        return life.runtime

    @property
    def isolation(self) -> str:
        """How well the kinds that have run are walled in, the worst of them; empty before any."""
        levels = list(IsolationLevel)
        return min(self._levels.values(), key=levels.index, default="")

    def suspend(self) -> None:
        """Take all of them off the processor, at once."""
        for life in self._lives.values():
            life.runtime.suspend()

    def resume(self) -> None:
        """Let all of them go on where they were."""
        for life in self._lives.values():
            life.runtime.resume()

    def kill(self) -> None:
        """End all of them; `exited` is called when the last one is gone, or now if none is up.

        While they are ending, another call only presses the point.
        """
        is_ending = bool(self._dying)
        self._dying.extend(self._lives.values())
        self._lives.clear()
        if is_ending:
            self._spawn(self._end(list(self._dying)))
        elif self._dying:
            self._spawn(self._end_all())
        else:
            self._exited("it was not up")

    def cpu_ms(self) -> int:
        """Processor time of all of them since each was started."""
        total_ms = 0
        for runtime in self._runtimes.values():
            total_ms += runtime.cpu_ms()
        return total_ms

    async def stop(self) -> None:
        """End all of them and say nothing."""
        lives = [*self._lives.values(), *self._dying]
        self._lives.clear()
        await self._end(lives)

    async def _start(self, kind: str, life: _Life) -> RuntimeFailure | None:
        try:
            report = await life.runtime.start(
                lambda detail: self._ended_by_itself(kind, life, detail)
            )
        except RuntimeUnavailable as error:
            log.warning("runtime_unavailable", kind=kind, cause=error.reason, detail=error.detail)
            self._forget(kind, life)
            return RuntimeFailure("", error.reason, error.detail)
        level = isolation_level(report)
        self._levels[kind] = level
        log.info("runtime_started", kind=kind, isolation=level, report=report)
        return None

    def _ended_by_itself(self, kind: str, life: _Life, detail: str) -> None:
        if life.is_over or life in self._dying:
            return
        log.warning("runtime_exited", kind=kind, cause=detail)
        self._forget(kind, life)
        self._spawn(self._say_exited(detail))

    async def _say_exited(self, detail: str) -> None:
        """Let those who waited for the runtime say first what became of their work.

        Else a model that crashes its runtime would be loaded again before it is known as bad.
        """
        for _ in range(TURNS_TO_SETTLE):
            await asyncio.sleep(0)
        self._exited(detail)

    def _forget(self, kind: str, life: _Life) -> None:
        life.is_over = True
        if self._lives.get(kind) is life:
            del self._lives[kind]

    async def _end_all(self) -> None:
        while self._dying:
            lives = list(self._dying)
            await self._end(lives)
            self._dying = [life for life in self._dying if life not in lives]
        self._exited("killed")

    async def _end(self, lives: list[_Life]) -> None:
        for life in lives:
            life.is_over = True
            if life.starting is not None and not life.starting.done():
                life.starting.cancel()
                await asyncio.wait({life.starting})
        await asyncio.gather(*(life.runtime.kill() for life in lives))
