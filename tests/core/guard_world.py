"""A small world around a `Guard`: a runtime, a link, an owner; and the laws of the car."""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.guard import Guard
from terafleet.core.guard_effects import GuardState
from terafleet.core.guard_models import WARM_AGAIN_MS
from terafleet.core.ids import WHOLE_LEASE, Epoch, LeaseId, ModelId, ReceiptId, WorkUnitId
from terafleet.core.policy import OwnerPolicy, YieldPolicy
from terafleet.core.readings import Readings
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.core.work import AttemptResult
from tests.core.guard_owner_laws import OwnerLaws

MODEL = ModelId("model")
POLICY = OwnerPolicy(giving_back=YieldPolicy(settle_ms=1_000, stale_ms=5_000, release_ms=500))
LEASE_MS, MARGIN_MS = 20_000, 4_000
ASKING = 10_000_000
"""The fleet meets any asking price."""
COMPUTER_MW = 120_000
WELL = Readings(0, True, False, True, 80.0, 25.0)
"""What the sensors say of a car that is well by the policy of the tests."""
ENDPOINT = "/v1/embeddings"
DIGEST = b"d" * 32

ReceiptName = tuple[LeaseId, ReceiptId]
F = TypeVar("F", bound=fx.GuardEffect)


def result_of(unit_id: WorkUnitId) -> AttemptResult:
    """What an attempt came to: one answer, 5 tokens, 3 mWh, 10 ms."""
    return AttemptResult(unit_id, 1, 0, 5, 0, 3, 10)


def name_of(receipt: fx.SendReceipt) -> ReceiptName:
    """What a receipt is acknowledged by."""
    return receipt.lease_id, receipt.receipt_id


class CarWorld:
    """A guard, what its shell was told to do, and what the control plane heard.

    `running` has the attempts of each run that have not ended, in their order; `open_units` those
    of each lease; `stopped` what was running when a lease was given up. `kept` are the receipts
    that the guard must not forget. `warm` are the models that the control plane wants in memory,
    `memory` those that stand there. `well` is what the sensors say when all is well.
    """

    def __init__(self, slots: int = 1, policy: OwnerPolicy = POLICY, well: Readings = WELL) -> None:
        self.guard = Guard()
        self.laws = OwnerLaws()
        self.well = well
        self.readings: Readings | None = None
        self.asking_limit = ASKING
        self.is_up = False
        self.now_ms = 1_000
        self.slots = slots
        self.policy = policy
        self.running: dict[LeaseId, list[WorkUnitId]] = {}
        self.open_units: dict[LeaseId, list[WorkUnitId]] = {}
        self.stopped: list[tuple[LeaseId, list[WorkUnitId]]] = []
        self.kept: dict[ReceiptName, fx.SendReceipt] = {}
        self.is_suspended = False
        self.is_killed = False
        self.preparing: list[ModelId] = []
        self.memory: set[ModelId] = set()
        self.warm: list[ModelId] = []
        self.failed_loads: list[fx.ReportLoadFailure] = []
        self.exited_ms = 0
        self.sent: list[fx.SendReceipt] = []
        self.reports: list[fx.ReportPermit] = []
        self.forgotten: list[ReceiptName] = []
        self.granted: dict[LeaseId, set[WorkUnitId]] = {}
        self.lease_numbers = 0
        self.heard_ms: int | None = None
        self.effects: list[fx.AnyGuardEffect] = []
        self.history: list[ev.AnyGuardEvent] = []
        self.start()

    def happen(self, event: ev.AnyGuardEvent) -> list[fx.AnyGuardEffect]:
        """Let the guard handle an event; keep the laws."""
        self.history.append(event)
        self._note(event)
        self.effects = self.guard.handle(event)
        if self.effects and isinstance(self.effects[0], fx.SuspendRuntime):
            self.is_suspended = True
        suspended_at = [at for at, one in enumerate(self.effects) if type(one) is fx.SuspendRuntime]
        assert suspended_at in ([], [0]), "the processor is given back before all else"
        for effect in self.effects:
            self._do(effect)
        self.laws.see(self)
        self.guard.check_invariants()
        self.check()
        return self.effects

    def said(self, kind: type[F]) -> list[F]:
        """The effects of a kind that the last event had."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def _note(self, event: ev.AnyGuardEvent) -> None:
        """Keep account of what the control plane may expect of the car."""
        match event:
            case ev.LeaseGranted(epoch=epoch, lease_id=lease_id, units=units):
                if epoch and epoch == self.guard.epoch:
                    unit_ids = [unit.unit_id for unit in units]
                    self.granted.setdefault(lease_id, set(unit_ids))
                    if self.guard.state is GuardState.PERMITTING:
                        self.open_units.setdefault(lease_id, unit_ids)
            case ev.LeaseRevoked(lease_id=lease_id):
                self.granted.pop(lease_id, None)
            case ev.LinkFenced(epoch=epoch):
                if epoch in (0, self.guard.epoch):
                    self.granted.clear()
                    self.warm.clear()
            case ev.LinkWelcomed():
                self.warm.clear()
            case ev.WarmModelsChanged(epoch=epoch, model_ids=model_ids):
                if epoch and epoch == self.guard.epoch:
                    self.warm = list(model_ids)
            case ev.ModelReady(model_id=model_id):
                self.memory.add(model_id)
            case ev.ModelUnavailable(model_id=model_id):
                self.memory.discard(model_id)
                if model_id in self.preparing:
                    self.preparing.remove(model_id)
            case ev.ReadingsChanged(readings=readings):
                self.readings = readings
            case ev.PolicyChanged(policy=policy):
                self.policy = policy
            case ev.RuntimeExited():
                self.is_up = False
                self.memory.clear()
                self.preparing.clear()
                if self.guard.state is not GuardState.YIELDING:
                    self.exited_ms = self.now_ms
            case ev.ReceiptsAcknowledged(receipts=names):
                for name in names:
                    self.kept.pop(name, None)
            case _:
                pass

    def check(self) -> None:
        """Nothing runs while the car refuses, nor after its leases have ended."""
        assert len(self.running) == self.guard.running <= self.slots
        self._check_nothing_is_lost()
        self._check_memory()
        if self.running:
            assert self.guard.state in (GuardState.PERMITTING, GuardState.YIELDING)
            assert self.heard_ms is not None
            assert self.now_ms < self.heard_ms + LEASE_MS - MARGIN_MS, "it outlives its lease"
            assert self.guard.state is GuardState.PERMITTING or not self.is_killed
            if self.is_suspended:
                assert self.guard.state is GuardState.YIELDING
        self.laws.check(self)
        if self.reports:
            assert self.reports[-1].state is self.guard.state
            assert self.reports[-1].refusals == self.guard.refusals

    def _check_memory(self) -> None:
        """What is to stay in memory is there or on its way, and nothing while the car refuses."""
        if self.guard.state is GuardState.YIELDING:
            assert self.is_killed or self.is_gentle, "the memory is given back"
        elif self.guard.state is not GuardState.PERMITTING:
            assert not self.memory
            assert not self.preparing
        elif not self.exited_ms or self.now_ms >= self.exited_ms + WARM_AGAIN_MS:
            assert self.memory.union(self.preparing).issuperset(self.warm)

    @property
    def has_processor(self) -> bool:
        """Whether attempts may use the processor."""
        return bool(self.running) and not self.is_suspended

    @property
    def is_gentle(self) -> bool:
        """Whether the owner lets the car take its time in some way."""
        giving = self.policy.giving_back
        return bool(giving.finish_ms or giving.stop_ms or giving.suspend_ms)

    def _check_nothing_is_lost(self) -> None:
        """Every unit that was granted stands, is handed in, or its lease is given back."""
        assert self.guard.receipts() == list(self.kept.values()), "kept until acknowledged"
        held = {one.lease_id: one.unit_ids for one in self.guard.held()}
        assert {lease_id: sorted(ids) for lease_id, ids in held.items()} == self._expected()
        ended = {one.lease_id for one in self.sent if one.ending is not None}
        told = {(one.lease_id, unit_id) for one in self.sent for unit_id in units_of(one)}
        for lease_id, unit_ids in self.granted.items():
            for unit_id in unit_ids:
                is_held = unit_id in held.get(lease_id, ())
                assert is_held or lease_id in ended or (lease_id, unit_id) in told, "a unit is lost"

    def _expected(self) -> dict[LeaseId, list[WorkUnitId]]:
        """What a hello must name: what is open, and what is handed in and not acknowledged."""
        units = {lease_id: list(unit_ids) for lease_id, unit_ids in self.open_units.items()}
        for receipt in self.kept.values():
            if receipt.ending is None:
                units.setdefault(receipt.lease_id, []).extend(units_of(receipt))
        return {lease_id: sorted(unit_ids) for lease_id, unit_ids in units.items()}

    def _do(self, effect: fx.AnyGuardEffect) -> None:
        match effect:
            case fx.StartAttempts(lease_id=lease_id, unit_ids=unit_ids, model_id=model_id):
                assert model_id not in self.preparing
                assert not self.is_suspended
                assert lease_id not in self.running
                assert list(unit_ids) == self.open_units[lease_id], "all that is open, in its order"
                self.running[lease_id] = list(unit_ids)
            case fx.StopAttempts(lease_id=lease_id):
                self.stopped.append((lease_id, self.running.pop(lease_id)))
            case fx.SuspendRuntime():
                self.is_suspended = True
            case fx.ResumeRuntime():
                assert self.is_suspended
                assert not self.is_killed
                self.is_suspended = False
            case fx.KillRuntime():
                assert self.is_suspended
                self.is_killed = True
                self.preparing.clear()
            case fx.PrepareModel(model_id=model_id):
                assert self.guard.state is GuardState.PERMITTING
                self.is_up = True
                assert model_id not in self.memory
                assert model_id not in self.preparing
                self.preparing.append(model_id)
            case fx.ReportLoadFailure(model_id=model_id):
                self.warm.remove(model_id)
                self.failed_loads.append(effect)
            case fx.SendReceipt():
                check_receipt(effect)
                self.sent.append(effect)
                self.kept[name_of(effect)] = effect
            case fx.ReportPermit():
                self.reports.append(effect)
            case fx.ForgetReceipts(receipts=names):
                assert names, "there is something to forget"
                assert not self.kept.keys() & set(names)
                self.forgotten.extend(names)
            case fx.ForgetLease(lease_id=lease_id):
                assert lease_id not in self.running, "its attempts are stopped before"
                self.open_units.pop(lease_id, None)

    def start(self) -> None:
        """The agent's process begins."""
        self.heard_ms = None
        self.running.clear()
        self.open_units.clear()
        self.stopped.clear()
        self.is_suspended = self.is_killed = self.is_up = False
        self.readings = None
        self.preparing.clear()
        self.memory.clear()
        self.warm.clear()
        self.exited_ms = 0
        self.laws.restarted(self.now_ms)
        self.happen(ev.AgentStarted(self.now_ms, self.policy, self.slots, COMPUTER_MW))

    def restart(self, *, from_snapshot: bool = True) -> None:
        """The agent's process ends anyhow and begins again from its snapshot or its journal."""
        kept, image = self.guard.receipts(), self.guard.snapshot()
        sent_before = len(self.sent)
        self.guard = Guard(image if from_snapshot else None)
        for event in () if from_snapshot else self.history:
            self.guard.handle(event)
        assert from_snapshot or self.guard.snapshot() == image
        self.reports.clear()
        self.start()
        again = self.sent[sent_before : sent_before + len(kept)]
        assert again == kept, "what is not acknowledged is sent again"

    def tick(self, ms: int) -> None:
        """Let time pass, waking the guard at each of its deadlines."""
        end_ms = self.now_ms + ms
        while True:
            deadline_ms = self.guard.next_deadline_ms()
            if deadline_ms is None or deadline_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, deadline_ms)
            self.happen(ev.GuardTimeAdvanced(self.now_ms))
            next_ms = self.guard.next_deadline_ms()
            assert next_ms is None or next_ms > self.now_ms, "a deadline that has come is over"
        self.now_ms = end_ms
        self.check()

    def read(self, **changes: Any) -> None:
        """The sensors are read; all is well but for what is named."""
        readings = msgspec.structs.replace(self.well, at_ms=self.now_ms, **changes)
        self.happen(ev.ReadingsChanged(self.now_ms, readings))

    def change_policy(self, policy: OwnerPolicy) -> None:
        """The owner allows something else."""
        self.happen(ev.PolicyChanged(self.now_ms, policy))

    def permit(self) -> None:
        """All is well for long enough."""
        giving = self.policy.giving_back
        step_ms = min(giving.settle_ms, giving.stale_ms)
        self.read()
        self.tick(step_ms)
        for _ in range(1, -(-giving.settle_ms // max(1, step_ms))):
            self.read()
            self.tick(step_ms)

    def welcome(self, epoch: int = 1) -> None:
        """The control plane answers a hello."""
        self.heard_ms = self.now_ms
        terms = (LEASE_MS, MARGIN_MS, self.asking_limit)
        self.happen(ev.LinkWelcomed(self.now_ms, Epoch(epoch), self.now_ms, *terms))

    def heartbeat(self, epoch: int | None = None, ago_ms: int = 0) -> None:
        """The control plane answers a heartbeat that left so long ago."""
        sent_ms = self.now_ms - ago_ms
        if epoch is None and self.heard_ms is not None:
            self.heard_ms = max(self.heard_ms, sent_ms)
        chosen = self.guard.epoch if epoch is None else Epoch(epoch)
        self.happen(ev.HeartbeatAnswered(self.now_ms, chosen, sent_ms))

    def grant(self, units: int = 1, epoch: int | None = None, model_id: ModelId = MODEL) -> LeaseId:
        """The control plane grants a lease; its units are numbered from a hundred times its own."""
        self.lease_numbers += 1
        lease_id = LeaseId(self.lease_numbers)
        numbers = [WorkUnitId(lease_id * 100 + at) for at in range(units)]
        chosen = self.guard.epoch if epoch is None else Epoch(epoch)
        leased = tuple(ev.LeasedUnit(number, 1) for number in numbers)
        self.happen(ev.LeaseGranted(self.now_ms, chosen, lease_id, model_id, ENDPOINT, leased))
        return lease_id

    def work(self, units: int = 1) -> LeaseId:
        """A car that is well is welcomed, granted a lease, and begins with it."""
        self.welcome()
        self.permit()
        lease_id = self.grant(units)
        self.model_ready()
        return lease_id

    def get_to_work(self, units: int) -> None:
        """Bring the car to compute, if nothing is in the way."""
        if self.guard.epoch:
            self.heartbeat()
        else:
            self.welcome()
        self.permit()
        if len(self.guard.lease_ids) < self.slots:
            self.grant(units)
        self.model_ready()

    def model_ready(self, *only: ModelId) -> None:
        """What is being prepared stands in memory."""
        for model_id in only or self.preparing[:]:
            self.preparing.remove(model_id)
            self.happen(ev.ModelReady(self.now_ms, model_id))

    def keep(self, *model_ids: ModelId, epoch: int | None = None) -> None:
        """The control plane wants these models to stay in memory."""
        chosen = self.guard.epoch if epoch is None else Epoch(epoch)
        self.happen(ev.WarmModelsChanged(self.now_ms, chosen, model_ids))

    def fail_load(self, model_id: ModelId) -> None:
        """A model on its way to the memory does not get there."""
        failure = Failure.MODEL_UNAVAILABLE
        self.happen(ev.ModelUnavailable(self.now_ms, model_id, failure, "why"))

    def finish(self, units: int = 1, at: int = 0, *, is_large: bool = False) -> None:
        """A run, the oldest or another one, tells so many outputs at most with one receipt."""
        if self.running:
            lease_id, unit_ids = self._run_at(at)
            told = unit_ids[:units]
            del unit_ids[:units]
            if not unit_ids:
                del self.running[lease_id]
            for unit_id in told:
                self.open_units[lease_id].remove(unit_id)
            self.tell(lease_id, told, is_large=is_large and len(told) == 1)

    def tell(
        self, lease_id: LeaseId, unit_ids: Sequence[WorkUnitId], *, is_large: bool = False
    ) -> None:
        """Outputs of a lease reach the guard, in a parcel unless there is a single large one."""
        results = tuple(map(result_of, unit_ids))
        parcel = b"" if is_large else b"parcel" + bytes(unit_id % 256 for unit_id in unit_ids)
        self.happen(ev.AttemptsFinished(self.now_ms, lease_id, results, DIGEST, parcel))

    def break_attempt(self, at: int = 0) -> None:
        """The attempt at hand of a run gives no output, and the run ends."""
        if self.running:
            lease_id, unit_ids = self._run_at(at)
            del self.running[lease_id]
            self.open_units[lease_id].remove(unit_ids[0])
            failure = Failure.RUNTIME_CRASHED
            self.happen(ev.AttemptBroke(self.now_ms, lease_id, unit_ids[0], failure, "why", 1))

    def end_stopped(self, told: int = 0, energy_mwh: int = 0) -> None:
        """A run that was given up ends: so many outputs lay ready, and one attempt was at hand."""
        if self.stopped:
            lease_id, unit_ids = self.stopped.pop(0)
            kept = dict(self.kept)
            ready = unit_ids[: min(told, len(unit_ids) - 1)]
            if ready:
                self.tell(lease_id, ready)
                assert self.effects == [fx.ForgetReceipts(((lease_id, ReceiptId(ready[0])),))]
            assert self.kept == kept, "nobody wants it any more"
            broken = (lease_id, unit_ids[len(ready)], Failure.STOPPED, "", energy_mwh)
            self.happen(ev.AttemptBroke(self.now_ms, *broken))
            assert bool(self.said(fx.SendReceipt)) == bool(energy_mwh), "nothing spent is hidden"

    def _run_at(self, at: int) -> tuple[LeaseId, list[WorkUnitId]]:
        return list(self.running.items())[at % len(self.running)]

    def exit(self, *, is_told_first: bool = False) -> None:
        """The runtime's process ends, and what it ran breaks; the shell may tell either first."""
        while self.running and not is_told_first:
            self.break_attempt()
        self.is_suspended = self.is_killed = False
        self.happen(ev.RuntimeExited(self.now_ms, "exit"))
        while self.running:
            self.break_attempt()

    def acknowledge(self, receipts: int = 1) -> None:
        """The control plane keeps the oldest receipts that are open."""
        names = [name_of(receipt) for receipt in self.guard.receipts()[:receipts]]
        self.confirm(*names)

    def confirm(self, *names: ReceiptName) -> None:
        """The control plane says what it keeps: each receipt goes once, and only what was there."""
        expected = tuple(name for name in dict.fromkeys(names) if name in self.kept)
        self.happen(ev.ReceiptsAcknowledged(self.now_ms, names))
        assert self.effects == ([fx.ForgetReceipts(expected)] if expected else [])


def units_of(receipt: fx.SendReceipt) -> list[WorkUnitId]:
    """The units that a receipt is about."""
    if receipt.failure is not None:
        return [WorkUnitId(receipt.receipt_id)]
    return [result.unit_id for result in receipt.results]


def check_receipt(receipt: fx.SendReceipt) -> None:
    """A receipt tells exactly one thing, and bears the name that goes with it."""
    kinds = (receipt.failure is not None, receipt.ending is not None, bool(receipt.results))
    assert sum(kinds) == 1
    if receipt.ending is not None:
        assert receipt.receipt_id == WHOLE_LEASE
    if receipt.results:
        assert receipt.receipt_id == ReceiptId(receipt.results[0].unit_id)
        assert receipt.parcel or len(receipt.results) == 1
    else:
        assert (receipt.digest, receipt.parcel) == (b"", b"")


def unit(lease_id: LeaseId, at: int = 0) -> WorkUnitId:
    """The number of a lease's unit."""
    return WorkUnitId(lease_id * 100 + at)


def state_of(world: CarWorld) -> GuardState:
    """What the guard is about."""
    return world.guard.state


def endings(world: CarWorld) -> list[tuple[LeaseId, LeaseEnding | None]]:
    """The leases that the last event gave back."""
    said = [one for one in world.said(fx.SendReceipt) if one.receipt_id == WHOLE_LEASE]
    return [(one.lease_id, one.ending) for one in said]
