"""Turns the guard's effects into deeds: one method for each, none of which raises or blocks."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.attempts import Attempts, failure_named
from terafleet.agent.deliveries import Deliveries
from terafleet.agent.inputs import LeasedInputs
from terafleet.agent.link import Link
from terafleet.agent.live import LiveRuns
from terafleet.agent.model_cache import ModelCache
from terafleet.agent.model_check import ModelFault
from terafleet.agent.ports import RuntimeFailure
from terafleet.agent.runtime_keeper import RuntimeKeeper
from terafleet.core import guard_effects as fx
from terafleet.core.guard_events import (
    AnyGuardEvent,
    ModelReady,
    ModelUnavailable,
    RuntimeExited,
)
from terafleet.core.ids import ModelId
from terafleet.core.reasons import Failure
from terafleet.engine.clock import Clock

log: FilteringBoundLogger = structlog.get_logger()


class Rooms(msgspec.Struct, frozen=True):
    """The parts of the agent that deeds are done with."""

    cache: ModelCache
    keeper: RuntimeKeeper
    attempts: Attempts
    live: LiveRuns
    deliveries: Deliveries
    inputs: LeasedInputs
    link: Link


class Performer:
    """Does what the guard asks; what comes of it goes back to the guard as events."""

    def __init__(
        self,
        rooms: Rooms,
        submit: Callable[[AnyGuardEvent], bool],
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._rooms = rooms
        self._submit = submit
        self._clock = clock
        self._spawn = spawn
        self._preparing: set[asyncio.Task[None]] = set()
        self._kinds: dict[str, str] = {}
        self.state = fx.GuardState.REFUSING

    def perform(self, effects: list[fx.AnyGuardEffect]) -> None:
        """Do effects in their order; but the processor is given back before anything else."""
        if fx.SuspendRuntime in map(type, effects):
            self._rooms.keeper.suspend()
        receipts: list[fx.SendReceipt] = []
        for effect in effects:
            if type(effect) is fx.SendReceipt:
                receipts.append(effect)
            else:
                _DEEDS[type(effect)](self, effect)
        if receipts:
            self._rooms.deliveries.send(receipts)

    def kind_of(self, model_id: str) -> str:
        """The kind of runtime that a model was loaded into, or empty."""
        return self._kinds.get(model_id, "")

    @property
    def loaded(self) -> tuple[str, ...]:
        """The models that stand in a runtime's memory."""
        return tuple(sorted(self._kinds))

    def runtime_exited(self, detail: str) -> None:
        """The runtime is gone, by itself or because it was killed."""
        self._kinds.clear()
        self._rooms.cache.release()
        self._rooms.link.report_capability()
        self._submit(RuntimeExited(self._clock.now_ms(), detail))

    def _prepare_model(self, effect: fx.PrepareModel) -> None:
        task = self._spawn(self._prepare(effect.model_id))
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _prepare(self, model_id: ModelId) -> None:
        outcome = await self._load(model_id)
        now_ms = self._clock.now_ms()
        if outcome is None:
            self._submit(ModelReady(now_ms, model_id))
            return
        failure, detail = failure_named(outcome.reason), outcome.detail
        log.warning("model_not_loaded", model_id=model_id, cause=failure, detail=detail)
        self._submit(ModelUnavailable(now_ms, model_id, failure, detail))

    async def _load(self, model_id: ModelId) -> RuntimeFailure | None:
        """Bring a model to the disk, its runtime up, and the model into memory."""
        model = await self._rooms.cache.prepared(model_id)
        if isinstance(model, ModelFault):
            detail = f"{model.reason}: {model.detail}"
            return RuntimeFailure("", Failure.MODEL_UNAVAILABLE, detail)
        runtime = await self._rooms.keeper.up(model.runtime)
        if isinstance(runtime, RuntimeFailure):
            return runtime
        loaded = await runtime.load(model)
        if isinstance(loaded, RuntimeFailure):
            return loaded
        self._kinds[model_id] = model.runtime
        self._rooms.link.report_capability()
        log.info("model_loaded", model_id=model_id, load_ms=loaded.load_ms)
        return None

    def _report_load_failure(self, effect: fx.ReportLoadFailure) -> None:
        self._rooms.link.report_load_failure(effect.model_id, effect.failure, effect.detail)

    def _start_attempts(self, effect: fx.StartAttempts) -> None:
        found = self._rooms.inputs.of(effect.lease_id)
        if found is not None and found.session_id:
            self._rooms.live.start(effect, found.session_id)
        else:
            self._rooms.attempts.start(effect)

    def _stop_attempts(self, effect: fx.StopAttempts) -> None:
        self._rooms.attempts.stop(effect.lease_id)
        self._rooms.live.stop(effect.lease_id)

    def _forget_lease(self, effect: fx.ForgetLease) -> None:
        self._rooms.inputs.forget(effect.lease_id)

    def _suspend_runtime(self, effect: fx.SuspendRuntime) -> None:
        """It was done before all else; see `perform`."""

    def _resume_runtime(self, effect: fx.ResumeRuntime) -> None:
        del effect
        self._rooms.keeper.resume()

    def _kill_runtime(self, effect: fx.KillRuntime) -> None:  # noqa: ARG002 - it says nothing.
        for task in self._preparing:
            task.cancel()
        self._rooms.keeper.kill()

    def _report_permit(self, effect: fx.ReportPermit) -> None:
        self.state = effect.state
        self._rooms.link.report_permit(effect.refusals)

    def _forget_receipts(self, effect: fx.ForgetReceipts) -> None:
        self._rooms.link.forget(effect.receipts)
        self._rooms.deliveries.forget(effect.receipts)


_DEEDS: dict[type, Callable[[Performer, Any], None]] = {
    fx.PrepareModel: Performer._prepare_model,
    fx.ReportLoadFailure: Performer._report_load_failure,
    fx.StartAttempts: Performer._start_attempts,
    fx.StopAttempts: Performer._stop_attempts,
    fx.ForgetLease: Performer._forget_lease,
    fx.SuspendRuntime: Performer._suspend_runtime,
    fx.ResumeRuntime: Performer._resume_runtime,
    fx.KillRuntime: Performer._kill_runtime,
    fx.ReportPermit: Performer._report_permit,
    fx.ForgetReceipts: Performer._forget_receipts,
}
