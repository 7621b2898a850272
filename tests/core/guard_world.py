"""A small world around a `Guard`: a runtime, a link, an owner; and the laws of the car."""

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.guard import Guard
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import Epoch, LeaseId, ModelId, WorkUnitId
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.reasons import Failure

MODEL = ModelId("model")
POLICY = OwnerPolicy(settle_ms=1_000, stale_ms=5_000, release_ms=500)
LEASE_MS, MARGIN_MS = 20_000, 4_000
ENDPOINT = "/v1/embeddings"


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
        self.lease_numbers = 0
        self.history: list[ev.AnyGuardEvent] = []
        self.start()

    def happen(self, event: ev.AnyGuardEvent) -> list[fx.AnyGuardEffect]:
        """Let the guard handle an event; keep the laws."""
        self.history.append(event)
        effects = self.guard.handle(event)
        for effect in effects:
            self._do(effect)
        self.guard.check_invariants()
        self.check()
        return effects

    def check(self) -> None:
        """Nothing runs while the car refuses, nor after its leases have ended."""
        assert len(self.running) == self.guard.running <= self.slots
        if self.running:
            assert self.guard.state is GuardState.PERMITTING
            assert self.now_ms < self.guard.leases_end_ms
            assert not self.is_suspended
        if self.reports:
            assert self.reports[-1].state is self.guard.state
            assert self.reports[-1].refusals == self.guard.refusals

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
        self.running.clear()
        self.is_suspended = self.is_killed = False
        self.preparing.clear()
        self.happen(ev.AgentStarted(self.now_ms, self.policy, self.slots))

    def restart(self, *, from_snapshot: bool = True) -> None:
        """The agent's process ends anyhow and begins again from its snapshot or its journal."""
        if from_snapshot:
            self.guard = Guard(self.guard.snapshot())
        else:
            self.guard = Guard()
            for event in self.history:
                self.guard.handle(event)
        self.reports.clear()
        self.start()

    def tick(self, ms: int) -> None:
        """Let time pass, waking the guard at each of its deadlines."""
        end_ms = self.now_ms + ms
        while True:
            deadline_ms = self.guard.next_deadline_ms()
            if deadline_ms is None or deadline_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, deadline_ms)
            self.happen(ev.GuardTimeAdvanced(self.now_ms))
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
        self.happen(ev.LinkWelcomed(self.now_ms, Epoch(epoch), self.now_ms, LEASE_MS, MARGIN_MS))

    def heartbeat(self) -> None:
        """The control plane answers a heartbeat."""
        self.happen(ev.HeartbeatAnswered(self.now_ms, self.guard.epoch, self.now_ms))

    def grant(self, units: int = 1, epoch: int | None = None) -> LeaseId:
        """The control plane grants a lease."""
        self.lease_numbers += 1
        lease_id = LeaseId(self.lease_numbers)
        numbers = [WorkUnitId(lease_id * 100 + at) for at in range(units)]
        chosen = self.guard.epoch if epoch is None else Epoch(epoch)
        leased = tuple(ev.LeasedUnit(number, 1) for number in numbers)
        self.happen(ev.LeaseGranted(self.now_ms, chosen, lease_id, MODEL, ENDPOINT, leased))
        return lease_id

    def model_ready(self) -> None:
        """What is being prepared stands in memory."""
        for model_id in self.preparing[:]:
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
