"""A small world around a `Fleet`: cars that keep to the protocol, and a customer.

It holds the car's side of every lease, loses messages where told, and checks the laws of the
machine, and of what it asks for, after every event.
"""

from collections import Counter
from typing import TypeVar

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
from terafleet.core.records import LeaseRecord, UnitRecord, VehicleRecord
from terafleet.core.settings import FleetSettings
from terafleet.core.work import BatchState, UnitState

F = TypeVar("F", bound=fx.Effect)
Receipt = ev.AttemptReturned | ev.AttemptFailed | ev.LeaseReleased
EMBEDDINGS = "/v1/embeddings"
CUSTOMER = CustomerId("customer")
NO_REQUEST = RequestId("")
MODEL = ModelNeeds(ModelId("model"), "small", "onnx", 500, (EMBEDDINGS,))
LARGE_MODEL = ModelNeeds(ModelId("large-model"), "large", "llama", 3_000, (EMBEDDINGS,))
SETTINGS = FleetSettings(units_per_lease_max=3)
WHOLE_LEASE = WorkUnitId(-1)
DAY_MS = 86_400_000


class Car:
    """One car: its connection and what it holds."""

    def __init__(self, vehicle_id: VehicleId, slots: int = 1) -> None:
        self.vehicle_id = vehicle_id
        self.capability = Capability(("onnx",), 4_000, slots)
        self.epoch = Epoch(0)
        self.refusals: tuple[Refusal, ...] = ()
        self.held: dict[LeaseId, list[WorkUnitId]] = {}


def _can_run(vehicle: VehicleRecord, needs: ModelNeeds) -> bool:
    offered = vehicle.capability
    return (
        offered is not None
        and needs.runtime in offered.runtimes
        and needs.memory_mb <= offered.memory_mb
    )


class World:
    """A fleet, its cars, and what a customer has been told."""

    def __init__(self, settings: FleetSettings = SETTINGS) -> None:
        self.fleet = Fleet()
        self.now_ms = 1_000
        self.cars: dict[VehicleId, Car] = {}
        self.records: dict[BatchId, fx.RecordBatch] = {}
        self.answers: dict[RequestId, fx.AnswerRequest] = {}
        self.acknowledged: list[fx.AcknowledgeReceipt] = []
        self.assembled: dict[BatchId, fx.AssembleOutput] = {}
        self.accepted: Counter[WorkUnitId] = Counter()
        self.dropped: list[fx.DropOutput] = []
        self.revoked: list[fx.RevokeLease] = []
        self.silences: dict[VehicleId, int] = {}
        self.effects: list[fx.FleetEffect] = []
        self.history: list[tuple[ev.FleetEvent, ...]] = []
        self.happen(ev.ShardStarted(self.now_ms, settings))
        self.happen(ev.ModelAdded(self.now_ms, MODEL, NO_REQUEST))
        self.happen(ev.ModelAdded(self.now_ms, LARGE_MODEL, NO_REQUEST))

    def happen(self, *events: ev.FleetEvent) -> list[fx.FleetEffect]:
        """Let the fleet handle events, keep the laws, and let the cars hear what they are told."""
        self.history.append(events)
        self.effects = self.fleet.handle(*events)
        self.fleet.check_invariants()
        for effect in self.effects:
            self._hear(effect)
        return self.effects

    def said(self, kind: type[F]) -> list[F]:
        """The effects of a kind that the last event had."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def vehicle(self, car: "Car") -> VehicleRecord:
        """What the fleet remembers of a car."""
        return self.fleet.state.vehicles[car.vehicle_id]

    def leases(self, car: "Car") -> list[LeaseRecord]:
        """The leases that the fleet holds a car to."""
        return [self.fleet.state.leases[one] for one in self.vehicle(car).leases]

    def units(self, batch_id: BatchId) -> list[UnitRecord]:
        """The units of a batch that goes on."""
        state = self.fleet.state
        return [state.units[unit_id] for unit_id in state.batches[batch_id].unit_ids()]

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
                self._granted(effect)
            case fx.RevokeLease():
                car = self.cars[effect.vehicle_id]
                assert car.epoch == effect.epoch, "a car does not hear what bears another epoch"
                car.held.pop(effect.lease_id, None)
                self.revoked.append(effect)
            case fx.RecordBatch():
                self.records[effect.batch_id] = effect
            case fx.AnswerRequest():
                self.answers[effect.request_id] = effect
            case fx.AcknowledgeReceipt():
                self.acknowledged.append(effect)
            case fx.DropOutput(lease_id=lease_id, unit_id=unit_id):
                unit = self.fleet.state.units.get(unit_id)
                assert unit is None or unit.lease_id != lease_id, "it counts, or may yet count"
                self.dropped.append(effect)
            case fx.AssembleOutput():
                self.assembled[effect.batch_id] = effect
            case _:
                pass

    def _granted(self, grant: fx.GrantLease) -> None:
        """A grant reaches its car, which must be one that may have it."""
        car = self.cars[grant.vehicle_id]
        assert car.epoch == grant.epoch
        vehicle = self.vehicle(car)
        assert not vehicle.refusals
        assert not vehicle.is_draining
        assert not vehicle.is_silent
        assert vehicle.quarantined_until_ms <= self.fleet.state.now_ms
        needs = self.fleet.state.models[grant.model_id]
        assert _can_run(vehicle, needs)
        online = sum(
            one.epoch != 0 and not one.is_silent and _can_run(one, needs)
            for one in self.fleet.state.vehicles.values()
        )
        for granted in grant.units:
            failed_on = self.fleet.state.units[granted.unit_id].failed_on
            assert car.vehicle_id not in failed_on or len(failed_on) >= online
        assert grant.lease_id not in car.held, "a lease's number is a fence and never comes again"
        car.held[grant.lease_id] = [unit.unit_id for unit in grant.units]
        assert len(car.held) <= car.capability.slots, "a slot has two leases"

    def tick(self, ms: int) -> None:
        """Let time pass, waking the fleet at each of its deadlines."""
        end_ms = self.now_ms + ms
        while (deadline_ms := self.fleet.next_deadline_ms()) is not None and deadline_ms <= end_ms:
            self.now_ms = max(self.now_ms, deadline_ms)
            self.happen(ev.TimeAdvanced(self.now_ms))
            next_ms = self.fleet.next_deadline_ms()
            assert next_ms is None or next_ms > self.now_ms, "a deadline that has come is over"
        self.now_ms = end_ms
        self.check_time()

    def lag(self, ms: int) -> None:
        """Let time pass without waking the fleet, as when its shard is busy."""
        self.now_ms += ms

    def check_time(self) -> None:
        """What must hold when the fleet has been woken at its deadlines: nothing outstays."""
        state = self.fleet.state
        for lease in state.leases.values():
            assert self.now_ms < lease.overdue_ms + 1_000, "a lease is overdue"
            heard_ms = self.silences.get(lease.vehicle_id)
            if state.vehicles[lease.vehicle_id].is_silent and heard_ms is not None:
                assert self.now_ms < heard_ms + state.settings.lease_ms, "a lease outlives silence"
        for batch in state.batches.values():
            is_open = batch.state in (BatchState.VALIDATING, BatchState.IN_PROGRESS)
            assert not is_open or self.now_ms < batch.expires_ms, "a window is over"
        for vehicle in state.vehicles.values():
            if vehicle.is_ready() and vehicle.quarantined_until_ms <= self.now_ms:
                assert vehicle.ready_level >= 0, "a car that may work is kept from it"

    # Cars.

    def enrol(self, name: str, slots: int = 1, *runtimes: str) -> Car:
        """A car joins and connects."""
        car = Car(VehicleId(f"veh-{name}"), slots)
        if runtimes:
            car.capability = Capability(runtimes, 4_000, slots)
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

    def drain(self, car: Car, is_draining: bool = True) -> None:
        """The operator wants nothing new granted to a car, or wants it back."""
        self.happen(ev.VehicleDrained(self.now_ms, car.vehicle_id, is_draining, NO_REQUEST))

    def remove(self, car: Car) -> None:
        """A car is taken out of the fleet."""
        self.happen(ev.VehicleRemoved(self.now_ms, car.vehicle_id, NO_REQUEST))
        assert not car.epoch, "whoever still speaks under its epoch is fenced"
        del self.cars[car.vehicle_id]

    def leave(self, car: Car) -> None:
        """A car's agent stops cleanly."""
        car.held.clear()
        self.happen(ev.VehicleLeft(self.now_ms, car.vehicle_id, car.epoch))

    def fall_silent(self, car: Car, since_ms: int = 0) -> None:
        """The links have heard nothing of a car for so long; it may go on computing."""
        heard_ms = self.now_ms - since_ms
        if not self.vehicle(car).is_silent:
            self.silences[car.vehicle_id] = heard_ms
        self.happen(ev.VehicleSilent(self.now_ms, car.vehicle_id, car.epoch, heard_ms))

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
        """A result arrives; its unit succeeds by it if its lease stands, and else not."""
        is_due = self._is_due(event)
        unit = self.fleet.state.units.get(event.unit_id)
        had_succeeded = unit is not None and unit.state is UnitState.SUCCEEDED
        if is_due:
            self._done(self.cars[event.vehicle_id], event.lease_id, event.unit_id)
        self.arrive(event)
        if unit is None:
            assert not is_due
            return
        if is_due and event.answers == unit.requests:
            assert unit.state is UnitState.SUCCEEDED
            self.accepted[event.unit_id] += 1
        else:
            has_succeeded = unit.state is UnitState.SUCCEEDED
            assert has_succeeded == had_succeeded, "what is not due counts for nothing"

    def arrive(self, event: Receipt) -> None:
        """A receipt of any kind arrives; it is acknowledged if it bears the epoch that holds."""
        unit_id = WHOLE_LEASE if isinstance(event, ev.LeaseReleased) else event.unit_id
        vehicle = self.fleet.state.vehicles.get(event.vehicle_id)
        is_current = vehicle is not None and vehicle.epoch == event.epoch
        self.happen(event)
        said = [(one.lease_id, one.unit_id) for one in self.said(fx.AcknowledgeReceipt)]
        assert said == ([(event.lease_id, unit_id)] if is_current else [])

    def _is_due(self, event: ev.AttemptReturned) -> bool:
        vehicle = self.fleet.state.vehicles.get(event.vehicle_id)
        lease = self.fleet.state.leases.get(event.lease_id)
        return (
            vehicle is not None
            and vehicle.epoch == event.epoch
            and lease is not None
            and lease.vehicle_id == event.vehicle_id
            and event.unit_id in lease.unit_ids
        )

    def fail(self, car: Car, failure: Failure = Failure.RUNTIME_CRASHED) -> None:
        """A car could not do its next attempt."""
        attempt = self.next_attempt(car)
        if attempt is not None:
            lease_id, unit_id = attempt
            self._done(car, lease_id, unit_id)
            self.arrive(
                ev.AttemptFailed(
                    self.now_ms, car.vehicle_id, car.epoch, lease_id, unit_id, failure, "why", 1
                )
            )

    def release(self, car: Car, ending: LeaseEnding = LeaseEnding.OWNER_RETURNED) -> None:
        """A car gives back all that it holds."""
        for lease_id in list(car.held):
            del car.held[lease_id]
            self.arrive(
                ev.LeaseReleased(self.now_ms, car.vehicle_id, car.epoch, lease_id, ending, "why", 1)
            )

    def _done(self, car: Car, lease_id: LeaseId, unit_id: WorkUnitId) -> None:
        """A car is done with an attempt; it may hand in the same one twice."""
        units = car.held.get(lease_id, [])
        if unit_id in units:
            units.remove(unit_id)
        if not units:
            car.held.pop(lease_id, None)

    # The customer.

    def create(
        self, name: str, requests: int, window_ms: int = DAY_MS, model: ModelNeeds = MODEL
    ) -> BatchId:
        """A customer asks for a batch."""
        batch_id = BatchId(name)
        self.happen(
            ev.BatchCreated(
                self.now_ms,
                batch_id,
                CUSTOMER,
                EMBEDDINGS,
                (model.model_id,),
                requests,
                window_ms,
                "file",
                b"",
                RequestId(name),
            )
        )
        return batch_id

    def submit(self, batch_id: BatchId, units: int, model: ModelNeeds = MODEL) -> None:
        """A gateway has cut a batch into units of one request."""
        specs = tuple(ev.UnitSpec(model.model_id, 1, 100, at, 1, b"digest") for at in range(units))
        self.happen(ev.BatchSubmitted(self.now_ms, batch_id, specs, 0, NO_REQUEST))

    def batch(
        self, name: str, units: int, window_ms: int = DAY_MS, model: ModelNeeds = MODEL
    ) -> BatchId:
        """A batch from its creation to its waiting units."""
        batch_id = self.create(name, units, window_ms, model)
        self.submit(batch_id, units, model)
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
