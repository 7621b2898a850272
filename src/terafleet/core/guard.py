"""The machine in the car: whether it computes, on which leases, and how it gives the car back.

Two rules stand above all others: no attempt runs unless the guard permits, and none outlives its
lease. The guard knows nothing of processes, files or messages.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from terafleet.core import guard_events as ev
from terafleet.core.events import HeldLease
from terafleet.core.guard_effects import (
    AnyGuardEffect,
    ForgetLease,
    ForgetReceipts,
    GuardState,
    KillRuntime,
    PrepareModel,
    ReportLoadFailure,
    ReportPermit,
    SendReceipt,
    SuspendRuntime,
)
from terafleet.core.guard_leases import CarLease, CarLeases
from terafleet.core.guard_receipts import (
    ReceiptBook,
    receipt_of_ending,
    receipt_of_failure,
    receipt_of_results,
)
from terafleet.core.ids import Epoch, LeaseId, ModelId
from terafleet.core.policy import OwnerPolicy, refusals
from terafleet.core.readings import Readings
from terafleet.core.reasons import LeaseEnding, Refusal

WARM_AGAIN_MS = 10_000
"""How long models that are only kept stay away after the runtime ended by itself.

One that ends it each time shall not keep the car busy; what a lease needs is loaded at once.
"""


class _Image(msgspec.Struct, frozen=True):
    """What outlives the agent's process: who must still be told what."""

    leases: list[LeaseId]
    receipts: list[SendReceipt]


class Guard:
    """The car's machine; see `core.machine.Machine` for what it keeps to."""

    def __init__(self, image: bytes | None = None) -> None:
        restored = msgspec.msgpack.decode(image, type=_Image) if image else _Image([], [])
        self._policy = OwnerPolicy()
        self._readings: Readings | None = None
        self._state = GuardState.REFUSING
        self._refusals: tuple[Refusal, ...] = (Refusal.AGENT_STARTING,)
        self._is_stopping = False
        self._settled_ms = 0
        self._kill_again_ms = 0
        self._is_runtime_up = False
        self._models: dict[ModelId, bool] = {}
        self._warm: dict[ModelId, None] = {}
        self._warm_from_ms = 0
        self._epoch = Epoch(0)
        self._lease_ms = self._margin_ms = 0
        self._leases_end_ms = 0
        self._receipts = ReceiptBook(restored.receipts)
        self._effects: list[AnyGuardEffect] = []
        self._leases = CarLeases(self._tell, restored.leases)

    # What the shell may read.

    @property
    def state(self) -> GuardState:
        """What the guard is about."""
        return self._state

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why the car does not compute; empty is a permit."""
        return self._refusals

    @property
    def epoch(self) -> Epoch:
        """The connection that holds, or 0."""
        return self._epoch

    @property
    def running(self) -> int:
        """How many leases have an attempt running."""
        return self._leases.running

    @property
    def lease_ids(self) -> tuple[LeaseId, ...]:
        """The leases that stand."""
        return self._leases.ids

    @property
    def leases_end_ms(self) -> int:
        """When all leases end unless the control plane is heard before."""
        return self._leases_end_ms

    def receipts(self) -> list[SendReceipt]:
        """What is handed in and not yet acknowledged, oldest first."""
        return self._receipts.all()

    def held(self) -> tuple[HeldLease, ...]:
        """What a hello says: every attempt that is not handed in or not acknowledged."""
        units = self._receipts.units_handed_in()
        for lease in self._leases:
            units.setdefault(lease.lease_id, []).extend(lease.units)
        return tuple(HeldLease(lease_id, tuple(ids)) for lease_id, ids in units.items())

    # The protocol of a machine.

    def handle(self, *events: ev.AnyGuardEvent) -> list[AnyGuardEffect]:
        """Take facts in their order and return what is to be done."""
        for event in events:
            _HANDLERS[type(event)](self, event)
        effects, self._effects = self._effects, []
        return effects

    def next_deadline_ms(self) -> int | None:
        """When time alone changes something."""
        deadlines = []
        if self._state is GuardState.SETTLING:
            deadlines.append(self._settled_ms)
        if self._state is GuardState.YIELDING:
            deadlines.append(self._kill_again_ms)
        if self._readings is not None and Refusal.READING_STALE not in self._refusals:
            deadlines.append(self._readings.at_ms + self._policy.stale_ms + 1)
        if self._leases and self._epoch:
            deadlines.append(self._leases_end_ms)
        if self._state is GuardState.PERMITTING and not self._warm.keys() <= self._models.keys():
            deadlines.append(self._warm_from_ms)
        return min(deadlines, default=None)

    def snapshot(self) -> bytes:
        """Leases and receipts; all else begins anew with the agent's process."""
        return msgspec.msgpack.encode(_Image(list(self._leases.ids), self._receipts.all()))

    def check_invariants(self) -> None:
        """Assert what must always hold."""
        self._leases.check_invariants()
        assert not self.running or self._state is GuardState.PERMITTING
        assert not self.running or self._is_runtime_up
        assert not self._models or self._is_runtime_up
        has_the_car = (GuardState.PERMITTING, GuardState.YIELDING)
        assert not self._is_runtime_up or self._state in has_the_car
        assert (self._state is GuardState.PERMITTING) == (not self._refusals)
        assert not self._leases or self._state is GuardState.PERMITTING or not self._leases.slots

    # The process.

    def _agent_started(self, event: ev.AgentStarted) -> None:
        self._forget_process()
        self._policy = event.policy
        self._leases.forget_process(event.slots)
        self._effects.extend(self._receipts.all())
        self._give_back(LeaseEnding.AGENT_RESTARTED)
        self._judge(event.at_ms)

    def _forget_process(self) -> None:
        """Of the process before, nothing is true any more but its leases and receipts."""
        self._readings = None
        self._state = GuardState.REFUSING
        self._refusals = (Refusal.AGENT_STARTING,)
        self._is_stopping = self._is_runtime_up = False
        self._models.clear()
        self._warm.clear()
        self._warm_from_ms = 0
        self._epoch, self._leases_end_ms = Epoch(0), 0

    def _agent_stopping(self, event: ev.AgentStopping) -> None:
        self._is_stopping = True
        self._judge(event.at_ms)

    def _time_advanced(self, event: ev.GuardTimeAdvanced) -> None:
        now_ms = event.at_ms
        if self._leases and self._epoch and now_ms >= self._leases_end_ms:
            self._give_back(LeaseEnding.LINK_SILENT)
        if self._state is GuardState.YIELDING and now_ms >= self._kill_again_ms:
            self._kill(now_ms)
        self._judge(now_ms)

    # The owner.

    def _readings_changed(self, event: ev.ReadingsChanged) -> None:
        self._readings = event.readings
        self._judge(event.at_ms)

    def _policy_changed(self, event: ev.PolicyChanged) -> None:
        self._policy = event.policy
        self._judge(event.at_ms)

    def _judge(self, now_ms: int) -> None:
        """Bring the state in line with policy and readings."""
        is_permitting = self._state is GuardState.PERMITTING
        found = refusals(self._policy, self._readings, is_permitting, now_ms)
        if self._is_stopping:
            found = (Refusal.AGENT_STOPPING, *found)
        if is_permitting and found:
            self._yield(found, now_ms)
        elif self._state is GuardState.YIELDING:
            self._enter(GuardState.YIELDING, (Refusal.YIELDING, *found))
        elif found:
            self._enter(GuardState.REFUSING, found)
        elif not is_permitting:
            self._settle(now_ms)
        self._keep_warm(now_ms)

    def _settle(self, now_ms: int) -> None:
        if self._state is not GuardState.SETTLING:
            self._settled_ms = now_ms + self._policy.settle_ms
        if now_ms >= self._settled_ms:
            self._enter(GuardState.PERMITTING, ())
        else:
            self._enter(GuardState.SETTLING, (Refusal.SETTLING,))

    def _yield(self, found: tuple[Refusal, ...], now_ms: int) -> None:
        """Give the car back: off the processor first, all else after."""
        if self._is_runtime_up:
            self._effects.append(SuspendRuntime())
        self._give_back(_ending_for(found))
        if self._is_runtime_up:
            self._kill(now_ms)
            self._enter(GuardState.YIELDING, (Refusal.YIELDING, *found))
        else:
            self._enter(GuardState.REFUSING, found)

    def _kill(self, now_ms: int) -> None:
        self._kill_again_ms = now_ms + max(1, self._policy.release_ms)
        self._effects.append(KillRuntime())

    def _enter(self, state: GuardState, found: tuple[Refusal, ...]) -> None:
        if (state, found) != (self._state, self._refusals):
            self._state, self._refusals = state, found
            self._effects.append(ReportPermit(state, found))

    # The link.

    def _link_welcomed(self, event: ev.LinkWelcomed) -> None:
        self._epoch = event.epoch
        # What is to stay in memory is told anew with each epoch.
        self._warm.clear()
        self._lease_ms, self._margin_ms = event.lease_ms, event.margin_ms
        self._renew(event.sent_ms, event.at_ms)

    def _heartbeat_answered(self, event: ev.HeartbeatAnswered) -> None:
        if self._is_current(event.epoch):
            self._renew(event.sent_ms, event.at_ms)

    def _is_current(self, epoch: Epoch) -> bool:
        """Whether a message is of the connection that holds; 0 is none."""
        return epoch != 0 and epoch == self._epoch

    def _renew(self, sent_ms: int, now_ms: int) -> None:
        end_ms = sent_ms + self._lease_ms - self._margin_ms
        self._leases_end_ms = max(self._leases_end_ms, end_ms)
        self._start_attempts(now_ms)

    def _link_fenced(self, event: ev.LinkFenced) -> None:
        if event.epoch in (self._epoch, 0):
            for lease in self._leases:
                self._leases.drop(lease)
            self._warm.clear()
            self._epoch, self._leases_end_ms = Epoch(0), 0

    def _receipts_acknowledged(self, event: ev.ReceiptsAcknowledged) -> None:
        gone = self._receipts.acknowledge(event.receipts)
        if gone:
            self._effects.append(ForgetReceipts(gone))

    # Leases.

    def _lease_granted(self, event: ev.LeaseGranted) -> None:
        if not self._is_current(event.epoch) or self._leases.get(event.lease_id):
            return
        replaced = self._leases.get(event.replaces)
        if replaced is not None:
            self._leases.drop(replaced)
        if self._state is not GuardState.PERMITTING:
            self._effects.append(ForgetLease(event.lease_id))
            self._write_ending(event.lease_id, LeaseEnding.NOT_PERMITTED)
            return
        units = [unit.unit_id for unit in event.units]
        self._leases.add(CarLease(event.lease_id, event.model_id, event.endpoint, units))
        self._prepare(event.model_id)
        self._start_attempts(event.at_ms)

    def _lease_revoked(self, event: ev.LeaseRevoked) -> None:
        lease = self._leases.get(event.lease_id)
        if lease is not None:
            self._leases.drop(lease)
            self._start_attempts(event.at_ms)

    def _give_back(self, ending: LeaseEnding) -> None:
        for lease in self._leases:
            self._leases.drop(lease)
            self._write_ending(lease.lease_id, ending)

    def _write_ending(self, lease_id: LeaseId, ending: LeaseEnding, detail: str = "") -> None:
        receipt = receipt_of_ending(lease_id, ending, detail)
        self._effects.append(self._receipts.write(receipt))

    # Models and attempts.

    def _warm_models_changed(self, event: ev.WarmModelsChanged) -> None:
        if self._is_current(event.epoch):
            self._warm = dict.fromkeys(event.model_ids)
            self._keep_warm(event.at_ms)

    def _keep_warm(self, now_ms: int) -> None:
        """While the car permits, load what is to stay in memory, whether or not it is needed."""
        if self._state is GuardState.PERMITTING and now_ms >= self._warm_from_ms:
            for model_id in self._warm:
                self._prepare(model_id)

    def _prepare(self, model_id: ModelId) -> None:
        if model_id not in self._models:
            self._models[model_id] = False
            self._is_runtime_up = True
            self._effects.append(PrepareModel(model_id))

    def _model_ready(self, event: ev.ModelReady) -> None:
        if event.model_id in self._models:
            self._models[event.model_id] = True
            self._start_attempts(event.at_ms)

    def _model_unavailable(self, event: ev.ModelUnavailable) -> None:
        self._models.pop(event.model_id, None)
        if event.model_id in self._warm:
            # Else it would be tried again and again.
            del self._warm[event.model_id]
            self._effects.append(ReportLoadFailure(event.model_id, event.failure, event.detail))
        detail = f"{event.failure}: {event.detail}"
        for lease in self._leases:
            if lease.model_id == event.model_id:
                self._leases.drop(lease)
                self._write_ending(lease.lease_id, LeaseEnding.MODEL_UNAVAILABLE, detail)

    def _runtime_exited(self, event: ev.RuntimeExited) -> None:
        """The runtime is gone; attempts that ran end by their own `AttemptBroke`."""
        self._is_runtime_up = False
        self._models.clear()
        if self._state is GuardState.YIELDING:
            self._state = GuardState.REFUSING
            self._judge(event.at_ms)
        else:
            self._warm_from_ms = event.at_ms + WARM_AGAIN_MS
        for lease in self._leases:
            self._prepare(lease.model_id)

    def _start_attempts(self, now_ms: int) -> None:
        if self._state is GuardState.PERMITTING and now_ms < self._leases_end_ms:
            self._leases.start(self._models.get)

    def _attempts_finished(self, event: ev.AttemptsFinished) -> None:
        receipt = receipt_of_results(event)
        unit_ids = [result.unit_id for result in event.results]
        lease = self._leases.on_slot(event.lease_id, unit_ids)
        if lease is None:
            key = (receipt.lease_id, receipt.receipt_id)
            self._effects.append(ForgetReceipts((key,)))
            return
        for unit_id in unit_ids:
            del lease.units[unit_id]
        self._effects.append(self._receipts.write(receipt))
        if not lease.units:
            self._leases.leave_slot(lease)
            self._start_attempts(event.at_ms)

    def _attempt_broke(self, event: ev.AttemptBroke) -> None:
        lease = self._leases.on_slot(event.lease_id, (event.unit_id,))
        if lease is not None:
            del lease.units[event.unit_id]
            self._leases.leave_slot(lease)
        if lease is not None or event.energy_mwh:
            self._effects.append(self._receipts.write(receipt_of_failure(event)))
        self._start_attempts(event.at_ms)

    def _tell(self, effect: AnyGuardEffect) -> None:
        self._effects.append(effect)


def _ending_for(found: tuple[Refusal, ...]) -> LeaseEnding:
    if Refusal.AGENT_STOPPING in found:
        return LeaseEnding.AGENT_STOPPED
    if Refusal.DRIVER_PRESENT in found or Refusal.NOT_PARKED in found:
        return LeaseEnding.OWNER_RETURNED
    return LeaseEnding.CONDITIONS_CHANGED


_HANDLERS: dict[type, Callable[[Guard, Any], None]] = {
    ev.AgentStarted: Guard._agent_started,
    ev.AgentStopping: Guard._agent_stopping,
    ev.GuardTimeAdvanced: Guard._time_advanced,
    ev.ReadingsChanged: Guard._readings_changed,
    ev.PolicyChanged: Guard._policy_changed,
    ev.LinkWelcomed: Guard._link_welcomed,
    ev.HeartbeatAnswered: Guard._heartbeat_answered,
    ev.LinkFenced: Guard._link_fenced,
    ev.LeaseGranted: Guard._lease_granted,
    ev.LeaseRevoked: Guard._lease_revoked,
    ev.WarmModelsChanged: Guard._warm_models_changed,
    ev.ModelReady: Guard._model_ready,
    ev.ModelUnavailable: Guard._model_unavailable,
    ev.AttemptsFinished: Guard._attempts_finished,
    ev.AttemptBroke: Guard._attempt_broke,
    ev.RuntimeExited: Guard._runtime_exited,
    ev.ReceiptsAcknowledged: Guard._receipts_acknowledged,
}
