"""The machine in the car: whether it computes, on which leases, and how it gives the car back.

Two rules stand above all others: no attempt runs unless the guard permits, and none outlives its
lease. The guard knows nothing of processes, files or messages.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from terafleet.core import guard_events as ev
from terafleet.core.capability import BATCH, LIVE
from terafleet.core.day_use import DayUse
from terafleet.core.events import HeldLease
from terafleet.core.guard_accounts import CarAccounts, CarBook, CarSpending, Share
from terafleet.core.guard_effects import (
    AnyGuardEffect,
    ForgetLease,
    ForgetReceipts,
    GuardState,
    ReportLoadFailure,
    ResumeRuntime,
    SendReceipt,
    SuspendRuntime,
)
from terafleet.core.guard_leases import CarLease, CarLeases
from terafleet.core.guard_models import CarModels
from terafleet.core.guard_owner import OwnerSide
from terafleet.core.guard_permit import Permit
from terafleet.core.guard_receipts import (
    ReceiptBook,
    receipt_of_ending,
    receipt_of_failure,
    receipt_of_results,
)
from terafleet.core.guard_yield import ShortStops
from terafleet.core.ids import SESSION_UNIT, Epoch, LeaseId, ReceiptId
from terafleet.core.policy import allows_work
from terafleet.core.reasons import LeaseEnding, Refusal


class _Image(msgspec.Struct, frozen=True):
    """What outlives the agent's process: who must still be told what, and what was used."""

    leases: list[LeaseId]
    receipts: list[SendReceipt]
    book: CarBook = CarBook()
    stops_ms: list[int] = []


_NOTHING = _Image([], [])


class Guard:
    """The car's machine; see `core.machine.Machine` for what it keeps to."""

    def __init__(self, image: bytes | None = None) -> None:
        restored = msgspec.msgpack.decode(image, type=_Image) if image else _NOTHING
        self._accounts = CarAccounts(restored.book)
        self._permit = Permit(self._accounts)
        self._epoch = Epoch(0)
        self._lease_ms = self._margin_ms = 0
        self._leases_end_ms = 0
        self._receipts = ReceiptBook(restored.receipts)
        self._effects: list[AnyGuardEffect] = []
        self._leases = CarLeases(self._tell, restored.leases)
        self._models = CarModels(self._tell)
        self._owner = OwnerSide(
            self._permit,
            ShortStops(restored.stops_ms),
            self._leases,
            self._models,
            self._tell,
            self._give_back,
        )

    # What the shell may read.

    @property
    def state(self) -> GuardState:
        """What the guard is about."""
        return self._owner.state

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why the car does not compute; empty is a permit."""
        return self._owner.refusals

    @property
    def is_holding(self) -> bool:
        """Whether leases stand or may come: then the control plane must hear of the car often."""
        return not self.refusals or len(self._leases) > 0

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
    def usage(self) -> DayUse:
        """What compute has taken of the day's caps."""
        return self._accounts.usage

    @property
    def spending(self) -> CarSpending:
        """What compute took and asked on the latest day."""
        return self._accounts.spending

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
            # The time between two processes is nobody's work.
            if type(event) is not ev.AgentStarted:
                working = self._leases.running if self._owner.is_computing else 0
                self._accounts.advance(event.at_ms, working)
            _HANDLERS[type(event)](self, event)
        effects, self._effects = self._effects, []
        return effects

    def next_deadline_ms(self) -> int | None:
        """When time alone changes something."""
        owner_ms = self._owner.deadline_ms()
        deadlines = [] if owner_ms is None else [owner_ms]
        if self._leases and self._epoch:
            deadlines.append(self._leases_end_ms)
        warm_ms = self._models.warm_due_ms()
        if self._owner.is_permitting and warm_ms is not None:
            deadlines.append(warm_ms)
        return min(deadlines, default=None)

    def snapshot(self) -> bytes:
        """Leases, receipts and accounts; all else begins anew with the agent's process."""
        leases, receipts = list(self._leases.ids), self._receipts.all()
        stops_ms = self._owner.stops.lengths_ms()
        return msgspec.msgpack.encode(_Image(leases, receipts, self._accounts.book(), stops_ms))

    def check_invariants(self) -> None:
        """Assert what must always hold."""
        self._leases.check_invariants()
        self._models.check_invariants()
        state, keeps_leases = self._owner.state, self._owner.keeps_leases
        assert not self.running or (keeps_leases and self._models.is_runtime_up)
        assert not self._leases or keeps_leases or not self._leases.slots
        has_the_car = (GuardState.PERMITTING, GuardState.YIELDING)
        assert not self._models.is_runtime_up or state in has_the_car
        assert (state is GuardState.PERMITTING) == (not self.refusals)

    # The process.

    def _agent_started(self, event: ev.AgentStarted) -> None:
        self._forget_process()
        self._permit.begin(event.policy, event.computer_mw, event.at_ms)
        self._leases.forget_process(event.slots)
        self._effects.extend(self._receipts.all())
        self._owner.give_back(LeaseEnding.AGENT_RESTARTED)
        self._judge(event.at_ms)

    def _forget_process(self) -> None:
        """Of the process before, nothing is true any more but its leases and receipts."""
        self._owner.forget_process()
        self._models.forget_process()
        self._epoch, self._leases_end_ms = Epoch(0), 0

    def _agent_stopping(self, event: ev.AgentStopping) -> None:
        self._permit.is_stopping = True
        self._judge(event.at_ms)

    def _time_advanced(self, event: ev.GuardTimeAdvanced) -> None:
        now_ms = event.at_ms
        if self._leases and self._epoch and now_ms >= self._leases_end_ms:
            self._owner.give_back(LeaseEnding.LINK_SILENT)
        self._judge(now_ms)

    # The owner.

    def _readings_changed(self, event: ev.ReadingsChanged) -> None:
        self._permit.read(event.readings, event.at_ms)
        self._judge(event.at_ms)

    def _policy_changed(self, event: ev.PolicyChanged) -> None:
        self._permit.change_policy(event.policy, event.at_ms)
        self._judge(event.at_ms)

    def _consumed(self, event: ev.Consumed) -> None:
        self._accounts.flash_written(event.flash_bytes)
        self._accounts.link_used(event.link_bytes, event.at_ms)
        self._judge(event.at_ms)

    def _judge(self, now_ms: int) -> None:
        """See what the owner allows, and do what it lets the car do."""
        self._owner.judge(now_ms)
        if self._owner.is_permitting:
            self._models.keep_warm(now_ms)
            self._start_attempts(now_ms)

    # The link.

    def _link_welcomed(self, event: ev.LinkWelcomed) -> None:
        self._epoch = event.epoch
        # What is to stay in memory is told anew with each epoch.
        self._models.want_warm(())
        self._lease_ms, self._margin_ms = event.lease_ms, event.margin_ms
        self._permit.meet_up_to(event.asking_micro_per_hour_max)
        self._judge(event.at_ms)
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
                self._drop(lease)
            self._models.want_warm(())
            self._epoch, self._leases_end_ms = Epoch(0), 0
            self._look_on(event.at_ms)

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
            self._drop(replaced)
        refused = self._refused_grant(event)
        if refused is not None:
            self._effects.append(ForgetLease(event.lease_id))
            self._write_ending(event.lease_id, refused)
            self._look_on(event.at_ms)
            return
        units = [unit.unit_id for unit in event.units]
        self._leases.add(CarLease(event.lease_id, event.model_id, event.endpoint, units))
        self._models.prepare(event.model_id)
        self._start_attempts(event.at_ms)

    def _refused_grant(self, event: ev.LeaseGranted) -> LeaseEnding | None:
        """Why the car does not take a grant; the fleet may not know yet what the owner wants."""
        if not self._owner.is_permitting:
            return LeaseEnding.NOT_PERMITTED
        is_session = any(unit.unit_id == SESSION_UNIT for unit in event.units[:1])
        kind = LIVE if is_session else BATCH
        is_wanted = allows_work(self._permit.policy, kind, event.endpoint)
        return None if is_wanted else LeaseEnding.WORK_UNWANTED

    def _lease_revoked(self, event: ev.LeaseRevoked) -> None:
        lease = self._leases.get(event.lease_id)
        if lease is not None:
            self._drop(lease)
            self._start_attempts(event.at_ms)
            self._look_on(event.at_ms)

    def _drop(self, lease: CarLease) -> None:
        """The control plane has ended a lease; nobody waits for a word of what it took."""
        if lease.is_running:
            share = self._share_of(lease)
            self._accounts.owe(share, self._permit.energy_mwh(share.ms))
        self._leases.drop(lease)

    def _look_on(self, now_ms: int) -> None:
        """A car that is being given back may have nothing left to wait for."""
        if self._owner.state is GuardState.YIELDING:
            self._judge(now_ms)

    def _give_back(self, lease: CarLease, ending: LeaseEnding, detail: str = "") -> None:
        """What an attempt at hand took from the owner is asked for, although nothing came of it."""
        if ending is LeaseEnding.LINK_SILENT:
            # The control plane will have ended it too before it hears of this.
            self._drop(lease)
            self._write_ending(lease.lease_id, ending, detail)
            return
        spent_micro = 0
        if lease.is_running:
            share = self._share_of(lease)
            spent_micro = self._accounts.made_good(share, self._permit.energy_mwh(share.ms))
        self._leases.drop(lease)
        self._write_ending(lease.lease_id, ending, detail, spent_micro)

    def _write_ending(
        self, lease_id: LeaseId, ending: LeaseEnding, detail: str = "", asked_micro: int = 0
    ) -> None:
        receipt = receipt_of_ending(lease_id, ending, detail, asked_micro)
        self._effects.append(self._receipts.write(receipt))

    # Models and attempts.

    def _warm_models_changed(self, event: ev.WarmModelsChanged) -> None:
        if self._is_current(event.epoch):
            self._models.want_warm(event.model_ids)
            if self._owner.is_permitting:
                self._models.keep_warm(event.at_ms)

    def _model_ready(self, event: ev.ModelReady) -> None:
        if self._models.ready(event.model_id):
            self._start_attempts(event.at_ms)

    def _model_unavailable(self, event: ev.ModelUnavailable) -> None:
        if self._models.unavailable(event.model_id):
            self._effects.append(ReportLoadFailure(event.model_id, event.failure, event.detail))
        detail = f"{event.failure}: {event.detail}"
        for lease in self._leases:
            if lease.model_id == event.model_id:
                self._give_back(lease, LeaseEnding.MODEL_UNAVAILABLE, detail)
        self._start_attempts(event.at_ms)
        self._look_on(event.at_ms)

    def _runtime_exited(self, event: ev.RuntimeExited) -> None:
        """The runtime is gone; attempts that ran end by their own `AttemptBroke`."""
        self._models.runtime_gone()
        if self._owner.runtime_exited():
            self._judge(event.at_ms)
        else:
            self._models.warm_later(event.at_ms)
        for lease in self._leases:
            self._models.prepare(lease.model_id)

    def _start_attempts(self, now_ms: int) -> None:
        is_due = self._leases.waiting and self._owner.is_permitting
        if is_due and now_ms < self._leases_end_ms:
            self._leases.start(self._models.is_loaded, now_ms, self._accounts.each)

    def _attempts_finished(self, event: ev.AttemptsFinished) -> None:
        results = event.results
        unit_ids = [result.unit_id for result in results]
        lease = self._leases.on_slot(event.lease_id, unit_ids)
        if lease is None:
            key = (event.lease_id, ReceiptId(unit_ids[0]))
            self._effects.append(ForgetReceipts((key,)))
            return
        for unit_id in unit_ids:
            del lease.units[unit_id]
        energy_mwh = sum([result.energy_mwh for result in results])
        asked_micro = self._accounts.paid(self._share_of(lease), energy_mwh, len(results))
        self._effects.append(self._receipts.write(receipt_of_results(event, asked_micro)))
        self._models.learn(lease.model_id, results[-1].runtime_ms)
        lease.began_ms = event.at_ms
        if not lease.units:
            self._leases.leave_slot(lease)
            self._start_attempts(event.at_ms)
        elif self._owner.is_finishing:
            self._give_back(lease, self._owner.ending)
        self._look_on(event.at_ms)

    def _attempt_broke(self, event: ev.AttemptBroke) -> None:
        lease = self._leases.on_slot(event.lease_id, (event.unit_id,))
        asked_micro = 0
        if lease is not None:
            asked_micro = self._accounts.made_good(self._share_of(lease), event.energy_mwh)
            del lease.units[event.unit_id]
            self._leases.leave_slot(lease)
        if lease is not None or event.energy_mwh:
            self._effects.append(self._receipts.write(receipt_of_failure(event, asked_micro)))
        if lease is not None and lease.units and self._owner.is_finishing:
            self._give_back(lease, self._owner.ending)
        self._start_attempts(event.at_ms)
        self._look_on(event.at_ms)

    def _share_of(self, lease: CarLease) -> Share:
        """What has come to the lease since it was asked for last."""
        mark, lease.mark = lease.mark, self._accounts.each
        return lease.mark.since(mark)

    def _tell(self, effect: AnyGuardEffect, *, is_first: bool = False) -> None:
        if is_first:
            # What an earlier event of the group had resumed must not go on after all.
            self._effects = [one for one in self._effects if type(one) not in _TURNS]
        self._effects.insert(0 if is_first else len(self._effects), effect)


_TURNS = (SuspendRuntime, ResumeRuntime)

_HANDLERS: dict[type, Callable[[Guard, Any], None]] = {
    ev.AgentStarted: Guard._agent_started,
    ev.AgentStopping: Guard._agent_stopping,
    ev.GuardTimeAdvanced: Guard._time_advanced,
    ev.ReadingsChanged: Guard._readings_changed,
    ev.PolicyChanged: Guard._policy_changed,
    ev.Consumed: Guard._consumed,
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
