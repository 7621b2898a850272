"""A small world around a `Fleet`: cars that keep to the protocol, and a customer.

It holds the car's side of every lease, loses messages where told, and checks the laws of the
machine after every event.
"""

from collections import Counter

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.capability import Capability, ModelNeeds
from terafleet.core.fleet import Fleet
from terafleet.core.ids import (
    BatchId,
    CustomerId,
    Epoch,
    LeaseId,
    ModelId,
    RequestId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.settings import FleetSettings
from terafleet.core.work import BatchState

EMBEDDINGS = "/v1/embeddings"
CUSTOMER = CustomerId("customer")
NO_REQUEST = RequestId("")
MODEL = ModelNeeds(ModelId("model"), "small", "onnx", 500, (EMBEDDINGS,))
SETTINGS = FleetSettings(units_per_lease_max=3)


class Car:
    """One car: its connection and what it holds."""

    def __init__(self, vehicle_id: VehicleId, slots: int = 1) -> None:
        self.vehicle_id = vehicle_id
        self.capability = Capability(("onnx",), 4_000, slots)
        self.epoch = Epoch(0)
        self.refusals: tuple[Refusal, ...] = ()
        self.held: dict[LeaseId, list[WorkUnitId]] = {}


class World:
    """A fleet, its cars, and what a customer has been told."""

    def __init__(self, fleet: Fleet | None = None) -> None:
        self.fleet = fleet or Fleet()
        self.now_ms = 1_000
        self.cars: dict[VehicleId, Car] = {}
        self.records: dict[BatchId, fx.RecordBatch] = {}
        self.answers: dict[RequestId, fx.AnswerRequest] = {}
        self.acknowledged: list[fx.AcknowledgeReceipt] = []
        self.assembled: dict[BatchId, fx.AssembleOutput] = {}
        self.accepted: Counter[WorkUnitId] = Counter()
        self.dropped: list[fx.DropOutput] = []
        self.history: list[tuple[ev.FleetEvent, ...]] = []
        self.happen(ev.ShardStarted(self.now_ms, SETTINGS))
        self.happen(ev.ModelAdded(self.now_ms, MODEL, NO_REQUEST))

    def happen(self, *events: ev.FleetEvent) -> list[fx.FleetEffect]:
        """Let the fleet handle events, keep the laws, and let the cars hear what they are told."""
        self.history.append(events)
        effects = self.fleet.handle(*events)
        self.fleet.check_invariants()
        for effect in effects:
            self._hear(effect)
        return effects

    def _hear(self, effect: fx.FleetEffect) -> None:
        match effect:
            case fx.WelcomeVehicle(vehicle_id=vehicle_id, epoch=epoch):
                self.cars[vehicle_id].epoch = epoch
            case fx.FenceVehicle(vehicle_id=vehicle_id, epoch=epoch):
                car = self.cars[vehicle_id]
                if car.epoch == epoch:
                    car.epoch = Epoch(0)
                    car.held.clear()
            case fx.GrantLease():
                car = self.cars[effect.vehicle_id]
                assert car.epoch == effect.epoch
                car.held[effect.lease_id] = [unit.unit_id for unit in effect.units]
                assert len(car.held) <= car.capability.slots, "a slot has two leases"
            case fx.RevokeLease():
                self.cars[effect.vehicle_id].held.pop(effect.lease_id, None)
            case fx.RecordBatch():
                self.records[effect.batch_id] = effect
            case fx.AnswerRequest():
                self.answers[effect.request_id] = effect
            case fx.AcknowledgeReceipt():
                self.acknowledged.append(effect)
            case fx.DropOutput():
                self.dropped.append(effect)
            case fx.AssembleOutput():
                self.assembled[effect.batch_id] = effect
            case _:
                pass

    def tick(self, ms: int) -> None:
        """Let time pass, waking the fleet at each of its deadlines."""
        end_ms = self.now_ms + ms
        while (deadline_ms := self.fleet.next_deadline_ms()) is not None and deadline_ms <= end_ms:
            self.now_ms = max(self.now_ms, deadline_ms)
            self.happen(ev.TimeAdvanced(self.now_ms))
        self.now_ms = end_ms

    # Cars.

    def enrol(self, name: str, slots: int = 1) -> Car:
        """A car joins and connects."""
        car = Car(VehicleId(f"veh-{name}"), slots)
        self.cars[car.vehicle_id] = car
        self.happen(ev.VehicleEnrolled(self.now_ms, car.vehicle_id, name, NO_REQUEST))
        self.connect(car)
        return car

    def connect(self, car: Car, boot_id: str = "boot") -> None:
        """A car says hello, with what it holds."""
        held = tuple(ev.HeldLease(one, tuple(units)) for one, units in car.held.items())
        self.happen(
            ev.VehicleConnected(
                self.now_ms, car.vehicle_id, boot_id, car.capability, car.refusals, held
            )
        )

    def reboot(self, car: Car) -> None:
        """A car's agent starts anew and holds nothing."""
        car.held.clear()
        self.connect(car, f"boot-{self.now_ms}-{len(self.history)}")

    def permit(self, car: Car, *refusals: Refusal) -> None:
        """A guard changes its answer."""
        car.refusals = refusals
        self.happen(ev.PermitChanged(self.now_ms, car.vehicle_id, car.epoch, refusals))

    def fall_silent(self, car: Car) -> None:
        """The links hear nothing of a car; it may go on computing."""
        self.happen(ev.VehicleSilent(self.now_ms, car.vehicle_id, car.epoch, self.now_ms))

    def speak_again(self, car: Car) -> None:
        """The links hear a car again."""
        self.happen(ev.VehicleHeard(self.now_ms, car.vehicle_id, car.epoch))

    def next_attempt(self, car: Car) -> tuple[LeaseId, WorkUnitId] | None:
        """The attempt that a car would end next."""
        for lease_id, units in car.held.items():
            if units:
                return lease_id, units[0]
        return None

    def finish(self, car: Car, answers: int = 1) -> ev.AttemptReturned | None:
        """A car hands in its next attempt."""
        attempt = self.next_attempt(car)
        if attempt is None:
            return None
        lease_id, unit_id = attempt
        self._done(car, lease_id, unit_id)
        event = ev.AttemptReturned(
            self.now_ms, car.vehicle_id, car.epoch, lease_id, unit_id, answers, 0, 5, 0, 3, 10
        )
        self.hand_in(event)
        return event

    def hand_in(self, event: ev.AttemptReturned) -> None:
        """A receipt arrives; count whether its unit succeeded by it."""
        unit = self.fleet.state.units.get(event.unit_id)
        was_open = unit is not None and unit.state == "running"
        self.happen(event)
        unit = self.fleet.state.units.get(event.unit_id)
        if was_open and unit is not None and unit.state == "succeeded":
            self.accepted[event.unit_id] += 1

    def fail(self, car: Car, failure: Failure = Failure.RUNTIME_CRASHED) -> None:
        """A car could not do its next attempt."""
        attempt = self.next_attempt(car)
        if attempt is not None:
            lease_id, unit_id = attempt
            self._done(car, lease_id, unit_id)
            self.happen(
                ev.AttemptFailed(
                    self.now_ms, car.vehicle_id, car.epoch, lease_id, unit_id, failure, "why", 1
                )
            )

    def release(self, car: Car, ending: LeaseEnding = LeaseEnding.OWNER_RETURNED) -> None:
        """A car gives back all that it holds."""
        for lease_id in list(car.held):
            del car.held[lease_id]
            self.happen(
                ev.LeaseReleased(self.now_ms, car.vehicle_id, car.epoch, lease_id, ending, "why", 1)
            )

    def _done(self, car: Car, lease_id: LeaseId, unit_id: WorkUnitId) -> None:
        car.held[lease_id].remove(unit_id)
        if not car.held[lease_id]:
            del car.held[lease_id]

    # The customer.

    def create(self, name: str, requests: int, window_ms: int = 86_400_000) -> BatchId:
        """A customer asks for a batch."""
        batch_id = BatchId(name)
        self.happen(
            ev.BatchCreated(
                self.now_ms,
                batch_id,
                CUSTOMER,
                EMBEDDINGS,
                (MODEL.model_id,),
                requests,
                window_ms,
                "file",
                b"",
                RequestId(name),
            )
        )
        return batch_id

    def submit(self, batch_id: BatchId, units: int) -> None:
        """A gateway has cut a batch into units of one request."""
        specs = tuple(ev.UnitSpec(MODEL.model_id, 1, 100, at, 1, b"digest") for at in range(units))
        self.happen(ev.BatchSubmitted(self.now_ms, batch_id, specs, 0, NO_REQUEST))

    def batch(self, name: str, units: int, window_ms: int = 86_400_000) -> BatchId:
        """A batch from its creation to its waiting units."""
        batch_id = self.create(name, units, window_ms)
        self.submit(batch_id, units)
        return batch_id

    def assemble(self, batch_id: BatchId) -> None:
        """A gateway has written a batch's files."""
        self.happen(ev.BatchAssembled(self.now_ms, batch_id, "out", "", NO_REQUEST))

    def finish_all(self) -> None:
        """No more trouble: everybody permits, works, and gateways write files."""
        for car in self.cars.values():
            self.reboot(car)
            self.permit(car)
        self.tick(4_000_000)
        for _ in range(100_000):
            if not sum(self.finish(car) is not None for car in self.cars.values()):
                break
        for batch_id in list(self.assembled):
            self.assemble(batch_id)

    def states(self) -> dict[BatchId, BatchState]:
        """What the customer reads."""
        return {batch_id: record.state for batch_id, record in self.records.items()}
