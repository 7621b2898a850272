"""A small world around a `Guard`: a runtime, a link, an owner; and the laws of the car."""

from typing import TypeVar

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.guard import Guard
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import Epoch, LeaseId, ModelId, WorkUnitId
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.reasons import Failure, LeaseEnding

MODEL = ModelId("model")
POLICY = OwnerPolicy(settle_ms=1_000, stale_ms=5_000, release_ms=500)
LEASE_MS, MARGIN_MS = 20_000, 4_000
ENDPOINT = "/v1/embeddings"
WHOLE_LEASE = WorkUnitId(-1)

F = TypeVar("F", bound=fx.GuardEffect)


class CarWorld:
    """A guard, what its shell was told to do, and what the control plane heard."""

    def __init__(self, slots: int = 1, policy: OwnerPolicy = POLICY) -> None:
        self.guard = Guard()
        self.now_ms = 1_000
        self.slots = slots
        self.policy = policy
        self.running: dict[tuple[LeaseId, WorkUnitId], ModelId] = {}
        self.is_suspended = False
        self.is_killed = False
        self.preparing: list[ModelId] = []
        self.sent: list[fx.SendReceipt] = []
        self.reports: list[fx.ReportPermit] = []
        self.forgotten: list[fx.ForgetReceipt] = []
        self.granted: dict[LeaseId, set[WorkUnitId]] = {}
        self.lease_numbers = 0
        self.heard_ms: int | None = None
        self.effects: list[fx.AnyGuardEffect] = []
        self.history: list[ev.AnyGuardEvent] = []
        self.start()

    def happen(self, event: ev.AnyGuardEvent) -> list[fx.AnyGuardEffect]:
        """Let the guard handle an event; keep the laws."""
        self.history.append(event)
        self._note_granted(event)
        self.effects = self.guard.handle(event)
        suspended_at = [at for at, one in enumerate(self.effects) if type(one) is fx.SuspendRuntime]
        assert suspended_at in ([], [0]), "the processor is given back before all else"
        for effect in self.effects:
            self._do(effect)
        self.guard.check_invariants()
        self.check()
        return self.effects

    def said(self, kind: type[F]) -> list[F]:
        """The effects of a kind that the last event had."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def _note_granted(self, event: ev.AnyGuardEvent) -> None:
        """Keep account of what the control plane may expect of the car."""
        match event:
            case ev.LeaseGranted(epoch=epoch, lease_id=lease_id, units=units):
                if epoch and epoch == self.guard.epoch:
                    self.granted[lease_id] = {unit.unit_id for unit in units}
            case ev.LeaseRevoked(lease_id=lease_id):
                self.granted.pop(lease_id, None)
            case ev.LinkFenced(epoch=epoch):
                if epoch in (0, self.guard.epoch):
                    self.granted.clear()
            case _:
                pass

    def check(self) -> None:
        """Nothing runs while the car refuses, nor after its leases have ended."""
        assert len(self.running) == self.guard.running <= self.slots
        self._check_nothing_is_lost()
        if self.running:
            assert self.guard.state is GuardState.PERMITTING
            assert self.heard_ms is not None
            assert self.now_ms < self.heard_ms + LEASE_MS - MARGIN_MS, "it outlives its lease"
            assert not self.is_suspended
        if self.guard.state is GuardState.YIELDING:
            assert self.is_killed, "the memory is given back"
        if self.reports:
            assert self.reports[-1].state is self.guard.state
            assert self.reports[-1].refusals == self.guard.refusals

    def _check_nothing_is_lost(self) -> None:
        """Every unit that was granted stands, is handed in, or its lease is given back."""
        held = {one.lease_id: set(one.unit_ids) for one in self.guard.held()}
        ended = {one.lease_id for one in self.sent if one.ending is not None}
        told = {(one.lease_id, one.unit_id) for one in self.sent}
        for lease_id, unit_ids in self.granted.items():
            for unit_id in unit_ids:
                is_held = unit_id in held.get(lease_id, ())
                assert is_held or lease_id in ended or (lease_id, unit_id) in told, "a unit is lost"

    def _do(self, effect: fx.AnyGuardEffect) -> None:
        match effect:
            case fx.StartAttempt(lease_id=lease_id, unit_id=unit_id, model_id=model_id):
                assert model_id not in self.preparing
                assert not self.is_suspended
                self.running[lease_id, unit_id] = model_id
            case fx.StopAttempt(lease_id=lease_id, unit_id=unit_id):
                del self.running[lease_id, unit_id]
            case fx.SuspendRuntime():
                self.is_suspended = True
            case fx.KillRuntime():
                self.is_killed = True
                self.preparing.clear()
            case fx.PrepareModel(model_id=model_id):
                self.preparing.append(model_id)
            case fx.SendReceipt():
                self.sent.append(effect)
            case fx.ReportPermit():
                self.reports.append(effect)
            case fx.ForgetReceipt():
                self.forgotten.append(effect)
            case fx.ForgetLease():
                pass

    def start(self) -> None:
        """The agent's process begins."""
        self.heard_ms = None
        self.running.clear()
        self.is_suspended = self.is_killed = False
        self.preparing.clear()
        self.happen(ev.AgentStarted(self.now_ms, self.policy, self.slots))

    def restart(self, *, from_snapshot: bool = True) -> None:
        """The agent's process ends anyhow and begins again from its snapshot or its journal."""
        kept = self.guard.receipts()
        sent_before = len(self.sent)
        if from_snapshot:
            self.guard = Guard(self.guard.snapshot())
        else:
            self.guard = Guard()
            for event in self.history:
                self.guard.handle(event)
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

    def read(
        self,
        *,
        is_parked: bool | None = True,
        is_driver_present: bool | None = False,
        is_plugged_in: bool | None = True,
        soc_percent: float | None = 80.0,
        temperature_c: float | None = 25.0,
    ) -> None:
        """The sensors are read."""
        readings = Readings(
            self.now_ms, is_parked, is_driver_present, is_plugged_in, soc_percent, temperature_c
        )
        self.happen(ev.ReadingsChanged(self.now_ms, readings))

    def permit(self) -> None:
        """All is well for long enough."""
        self.read()
        self.tick(self.policy.settle_ms)

    def welcome(self, epoch: int = 1) -> None:
        """The control plane answers a hello."""
        self.heard_ms = self.now_ms
        self.happen(ev.LinkWelcomed(self.now_ms, Epoch(epoch), self.now_ms, LEASE_MS, MARGIN_MS))

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

    def model_ready(self, *only: ModelId) -> None:
        """What is being prepared stands in memory."""
        for model_id in only or self.preparing[:]:
            self.preparing.remove(model_id)
            self.happen(ev.ModelReady(self.now_ms, model_id))

    def finish(self) -> None:
        """The oldest running attempt gives an output."""
        if self.running:
            lease_id, unit_id = next(iter(self.running))
            del self.running[lease_id, unit_id]
            self.happen(ev.AttemptFinished(self.now_ms, lease_id, unit_id, 1, 0, 5, 0, 3, 10, b"d"))

    def break_attempt(self) -> None:
        """The oldest running attempt gives none."""
        if self.running:
            lease_id, unit_id = next(iter(self.running))
            del self.running[lease_id, unit_id]
            failure = Failure.RUNTIME_CRASHED
            self.happen(ev.AttemptBroke(self.now_ms, lease_id, unit_id, failure, "why", 1))

    def exit(self) -> None:
        """The runtime's process ends: what it ran broke with it."""
        while self.running:
            self.break_attempt()
        self.is_suspended = self.is_killed = False
        self.preparing.clear()
        self.happen(ev.RuntimeExited(self.now_ms, "exit"))

    def acknowledge(self) -> None:
        """The control plane keeps the oldest receipt that is open."""
        for receipt in self.guard.receipts()[:1]:
            event = ev.ReceiptAcknowledged(self.now_ms, receipt.lease_id, receipt.unit_id)
            self.happen(event)


def unit(lease_id: LeaseId, at: int = 0) -> WorkUnitId:
    """The number of a lease's unit."""
    return WorkUnitId(lease_id * 100 + at)


def state_of(world: CarWorld) -> GuardState:
    """What the guard is about."""
    return world.guard.state


def endings(world: CarWorld) -> list[tuple[LeaseId, LeaseEnding | None]]:
    """The leases that the last event gave back."""
    said = [one for one in world.said(fx.SendReceipt) if one.unit_id == WHOLE_LEASE]
    return [(one.lease_id, one.ending) for one in said]
