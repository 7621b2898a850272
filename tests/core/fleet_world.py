"""A small world around a `Fleet`: cars that keep to the protocol, and a customer.

It holds the car's side of every lease, loses messages where told, and checks the laws of the
machine, and of what it asks for, after every event.
"""

from collections import Counter, defaultdict
from typing import Any, TypeVar

import msgspec

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.capability import BATCH, Capability, ModelNeeds
from terafleet.core.fleet import Fleet
from terafleet.core.ids import (
    WHOLE_LEASE,
    BatchId,
    CustomerId,
    Epoch,
    LeaseId,
    ModelId,
    ReceiptId,
    RequestId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.records import LeaseRecord, UnitRecord, VehicleRecord
from terafleet.core.settings import FleetSettings
from terafleet.core.work import AttemptResult, BatchState, UnitState

F = TypeVar("F", bound=fx.Effect)
Receipt = ev.AttemptsReturned | ev.AttemptFailed | ev.LeaseReleased
ReceiptName = tuple[LeaseId, ReceiptId]
EMBEDDINGS = "/v1/embeddings"
CUSTOMER = CustomerId("customer")
NO_REQUEST = RequestId("")
MODEL = ModelNeeds(ModelId("model"), "small", "onnx", 500, (EMBEDDINGS,))
LARGE_MODEL = ModelNeeds(ModelId("large-model"), "large", "llama", 3_000, (EMBEDDINGS,))
SETTINGS = FleetSettings(units_per_lease_max=3)
DAY_MS = 86_400_000


class Car:
    """One car: its connection and what it holds."""

    def __init__(self, vehicle_id: VehicleId, slots: int = 1) -> None:
        self.vehicle_id = vehicle_id
        self.capability = Capability(("onnx",), 4_000, slots)
        self.epoch = Epoch(0)
        self.refusals: tuple[Refusal, ...] = ()
        self.held: dict[LeaseId, list[WorkUnitId]] = {}


def result_of(unit_id: WorkUnitId, answers: int = 1) -> AttemptResult:
    """What an attempt came to: so many answers, 5 tokens, 3 mWh, 10 ms."""
    return AttemptResult(unit_id, answers, 0, 5, 0, 3, 10)


def name_of(event: Receipt) -> ReceiptName:
    """The name of the receipt that an event tells of."""
    if isinstance(event, ev.LeaseReleased):
        return event.lease_id, WHOLE_LEASE
    if isinstance(event, ev.AttemptFailed):
        return event.lease_id, ReceiptId(event.unit_id)
    return event.lease_id, ReceiptId(event.results[0].unit_id)


def memory(fleet: Fleet) -> dict[str, Any]:
    """All that a fleet remembers but the time."""
    image: dict[str, Any] = msgspec.msgpack.decode(fleet.snapshot())
    del image["now_ms"]
    return image


def _can_run(vehicle: VehicleRecord, needs: ModelNeeds) -> bool:
    offered = vehicle.capability
    return (
        offered is not None
        and needs.runtime in offered.runtimes
        and needs.memory_mb <= offered.memory_mb
        and BATCH in offered.kinds
        and (not offered.endpoints or set(needs.endpoints) <= set(offered.endpoints))
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
        self.brought_by: dict[WorkUnitId, ReceiptName] = {}
        self.sent_by: dict[WorkUnitId, VehicleId] = {}
        self.kept: defaultdict[BatchId, list[ReceiptName]] = defaultdict(list)
        self.sums: defaultdict[BatchId, Counter[str]] = defaultdict(Counter)
        self.revoked: list[fx.RevokeLease] = []
        self.silences: dict[VehicleId, int] = {}
        self.effects: list[fx.FleetEffect] = []
        self.history: list[tuple[ev.FleetEvent, ...]] = []
        self.happen(ev.ShardStarted(self.now_ms, settings))
        self.happen(ev.ModelAdded(self.now_ms, MODEL, NO_REQUEST))
        self.happen(ev.ModelAdded(self.now_ms, LARGE_MODEL, NO_REQUEST))

    def happen(self, *events: ev.FleetEvent) -> list[fx.FleetEffect]:
        """Let the fleet handle events, keep the laws, and let the cars hear what they are told.

        Receipts of one group must be of different leases, so that none decides over another.
        """
        self.history.append(events)
        returned = [event for event in events if isinstance(event, ev.AttemptsReturned)]
        taken = [event for event in returned if self._is_due(event) and self._fits(event)]
        foreign = [event.lease_id for event in returned if self._is_of_another(event)]
        succeeded = self._succeeded() if returned else set()
        for event in taken:
            self._take(event)
        self.effects = self.fleet.handle(*events)
        self.fleet.check_invariants()
        if returned:
            now = {result.unit_id for event in taken for result in event.results}
            assert self._succeeded() == succeeded | now, "a receipt counts whole or not at all"
        for drop in self.said(fx.DropOutputs):
            self._check_drop(drop, returned)
            assert drop.lease_id not in foreign, "it is another car's, whose outputs may come yet"
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
                for name, count in self.sums[effect.batch_id].items():
                    assert getattr(effect, name) == count, "a count is the sum of what was taken"
            case fx.AnswerRequest():
                self.answers[effect.request_id] = effect
            case fx.AcknowledgeReceipt():
                self.acknowledged.append(effect)
            case fx.ForgetBatch(batch_id=batch_id, outputs=outputs):
                kept = self.kept.pop(batch_id, [])
                assert sorted(outputs) == sorted(kept), "every receipt that counted, and once"
            case fx.AssembleOutput():
                self.assembled[effect.batch_id] = effect
                for one in effect.outcomes:
                    has_output = (one.lease_id, one.receipt_id) == self.brought_by.get(one.unit_id)
                    assert has_output == (one.ending is None), "it is where its receipt put it"
                    assert one.vehicle_id == self.sent_by.get(one.unit_id, "")
            case _:
                pass

    def _take(self, event: ev.AttemptsReturned) -> None:
        """Note what the fleet shall make of a receipt that it has to take."""
        batch_id = self.fleet.state.leases[event.lease_id].batch_id
        self.kept[batch_id].append(name_of(event))
        sums = self.sums[batch_id]
        for result in event.results:
            self.accepted[result.unit_id] += 1
            self.brought_by[result.unit_id] = name_of(event)
            self.sent_by[result.unit_id] = event.vehicle_id
            sums["requests_completed"] += result.answers - result.answers_failed
            sums["prompt_tokens"] += result.prompt_tokens
            sums["completion_tokens"] += result.completion_tokens

    def _succeeded(self) -> set[WorkUnitId]:
        units = self.fleet.state.units.values()
        return {unit.unit_id for unit in units if unit.state is UnitState.SUCCEEDED}

    def _check_drop(self, drop: fx.DropOutputs, returned: list[ev.AttemptsReturned]) -> None:
        """What is dropped counts for nothing, nor may it yet, if it is not worse than late."""
        lease_id, receipt_id = drop.lease_id, drop.receipt_id
        units = self.fleet.state.units
        assert not any(unit.has_output(lease_id, receipt_id) for unit in units.values())
        unit = units.get(WorkUnitId(receipt_id))
        if unit is not None and unit.state is UnitState.RUNNING and unit.lease_id == lease_id:
            assert all(len(one.results) > 1 for one in returned), "it may yet count"

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

    def next_attempts(self, car: Car, units: int = 1) -> tuple[LeaseId, list[WorkUnitId]] | None:
        """The attempts of one lease that a car would end next, so many at most."""
        for lease_id, open_ids in car.held.items():
            if open_ids:
                return lease_id, open_ids[:units]
        return None

    def receipt(self, car: Car, units: int = 1, answers: int = 1) -> ev.AttemptsReturned | None:
        """What a car would hand in next: the results of so many attempts at most."""
        attempts = self.next_attempts(car, units)
        if attempts is None:
            return None
        lease_id, unit_ids = attempts
        return self.returned(car, lease_id, *(result_of(one, answers) for one in unit_ids))

    def returned(self, car: Car, lease_id: LeaseId, *results: AttemptResult) -> ev.AttemptsReturned:
        """A receipt of these results."""
        return ev.AttemptsReturned(self.now_ms, car.vehicle_id, car.epoch, lease_id, results)

    def finish(self, car: Car, units: int = 1, answers: int = 1) -> ev.AttemptsReturned | None:
        """A car hands in its next attempts, so many at most, with one receipt."""
        event = self.receipt(car, units, answers)
        if event is not None:
            self._done(event)
            self.hand_in(event)
        return event

    def hand_in(self, *events: ev.AttemptsReturned) -> None:
        """Results arrive, together; what is not due changes nothing that the fleet remembers."""
        is_due = [self._is_due(event) for event in events]
        for event, is_heard in zip(events, is_due, strict=True):
            if is_heard:
                self._done(event)
        before = memory(self.fleet)
        self.arrive(*events)
        assert any(is_due) or memory(self.fleet) == before, "what is late counts for nothing"

    def arrive(self, *events: Receipt) -> None:
        """Receipts of any kind arrive; those that bear the epoch that holds are acknowledged."""
        vehicles = self.fleet.state.vehicles
        expected = [
            (event.vehicle_id, event.epoch, *name_of(event))
            for event in events
            if event.vehicle_id in vehicles and vehicles[event.vehicle_id].epoch == event.epoch
        ]
        self.happen(*events)
        said = self.said(fx.AcknowledgeReceipt)
        told = [(one.vehicle_id, one.epoch, one.lease_id, one.receipt_id) for one in said]
        assert told == expected

    def _is_due(self, event: ev.AttemptsReturned) -> bool:
        """Whether a receipt is of a lease of its car that waits for each result, none twice."""
        vehicle = self.fleet.state.vehicles.get(event.vehicle_id)
        lease = self.fleet.state.leases.get(event.lease_id)
        unit_ids = [result.unit_id for result in event.results]
        return (
            vehicle is not None
            and vehicle.epoch == event.epoch
            and lease is not None
            and lease.vehicle_id == event.vehicle_id
            and all(unit_ids.count(one) == 1 and one in lease.unit_ids for one in unit_ids)
        )

    def _fits(self, event: ev.AttemptsReturned) -> bool:
        """Whether each unit of a receipt that is due has as many answers as requests."""
        units = self.fleet.state.units
        return all(
            one.answers == units[one.unit_id].requests and one.answers_failed <= one.answers
            for one in event.results
        )

    def _is_of_another(self, event: ev.AttemptsReturned) -> bool:
        """Whether a receipt is of a lease of another car."""
        lease = self.fleet.state.leases.get(event.lease_id)
        return lease is not None and lease.vehicle_id != event.vehicle_id

    def fail(self, car: Car, failure: Failure = Failure.RUNTIME_CRASHED) -> None:
        """A car could not do its next attempt."""
        attempts = self.next_attempts(car)
        if attempts is not None:
            lease_id, (unit_id,) = attempts
            self._let_go(car, lease_id, [unit_id])
            attempt = (self.now_ms, car.vehicle_id, car.epoch, lease_id, unit_id)
            self.arrive(ev.AttemptFailed(*attempt, failure, "why", 1))

    def release(self, car: Car, ending: LeaseEnding = LeaseEnding.OWNER_RETURNED) -> None:
        """A car gives back all that it holds."""
        for lease_id in list(car.held):
            del car.held[lease_id]
            self.arrive(
                ev.LeaseReleased(self.now_ms, car.vehicle_id, car.epoch, lease_id, ending, "why", 1)
            )

    def _done(self, event: ev.AttemptsReturned) -> None:
        """A car is done with what it hands in; it may hand in the same twice."""
        car = self.cars[event.vehicle_id]
        self._let_go(car, event.lease_id, [result.unit_id for result in event.results])

    def _let_go(self, car: Car, lease_id: LeaseId, unit_ids: list[WorkUnitId]) -> None:
        left = [one for one in car.held.get(lease_id, []) if one not in unit_ids]
        if left:
            car.held[lease_id] = left
        else:
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
        self.assemble_all()
        self.tick(4_000_000)
        for _ in range(100_000):
            if not sum(self.finish(car, units=2) is not None for car in self.cars.values()):
                break
        self.assemble_all()

    def assemble_all(self) -> None:
        """Gateways write the files of all batches that ask for them."""
        for batch_id in self.assembled:
            if batch_id in self.fleet.state.batches:
                self.assemble(batch_id)

    def states(self) -> dict[BatchId, BatchState]:
        """What the customer reads."""
        return {batch_id: record.state for batch_id, record in self.records.items()}
