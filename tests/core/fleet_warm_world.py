"""The small world of a fleet whose operator keeps models loaded, with cars that do as told.

It holds what each car was told to keep, and checks after every event, by what cars were told
alone, that the slots that are wanted are there, or that no car could give more.
"""

import msgspec

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.capability import ModelNeeds, capability_class, is_feasible
from terafleet.core.ids import ModelId, RequestId, VehicleId
from terafleet.core.reasons import Failure
from terafleet.core.records import VehicleRecord, WarmRecord
from terafleet.core.settings import FleetSettings
from tests.core.fleet_sessions_world import SessionsWorld
from tests.core.fleet_world import MODEL, SETTINGS, Car

ORDER = RequestId("order")
GB = ModelNeeds(ModelId("gb"), "a gigabyte", "onnx", 1_024, ("/v1/embeddings",))
HUGE = ModelNeeds(ModelId("huge"), "huge", "onnx", 3_072, ("/v1/embeddings",))
"""Two that don't fit beside each other into a car of this world, which lends 4,000 MB."""


class WarmWorld(SessionsWorld):
    """A fleet, its cars, and an operator who wants models to stay loaded."""

    def __init__(self, settings: FleetSettings = SETTINGS) -> None:
        self.told: dict[VehicleId, tuple[ModelId, ...]] = {}
        super().__init__(settings)
        for needs in (GB, HUGE):
            self.happen(ev.ModelAdded(self.now_ms, needs, RequestId("")))

    def warm(self, slots: int, needs: ModelNeeds = MODEL) -> fx.AnswerRequest:
        """The operator wants a model in so many slots; what is answered."""
        self.happen(ev.ModelWarmed(self.now_ms, needs.model_id, slots, ORDER))
        return self.answers[ORDER]

    def chosen(self, needs: ModelNeeds = MODEL) -> list[str]:
        """The names of the cars that are chosen for a model."""
        record = self.fleet.state.warm.get(needs.model_id)
        vehicles = self.fleet.state.vehicles
        return [vehicles[one].name for one in record.chosen] if record else []

    def record(self, needs: ModelNeeds = MODEL) -> WarmRecord:
        """What the fleet remembers of a wish."""
        return self.fleet.state.warm[needs.model_id]

    def load(self, car: Car) -> None:
        """A car has everything in memory that it is to keep."""
        kept = self.told.get(car.vehicle_id, ())
        loaded = tuple(dict.fromkeys((*car.capability.loaded, *kept)))
        models = tuple(dict.fromkeys((*car.capability.models, *kept)))
        self.offer(car, models=models, loaded=loaded)

    def unload(self, car: Car) -> None:
        """A car's runtime has ended."""
        self.offer(car, models=car.capability.models, loaded=())

    def lend(self, car: Car, memory_mb: int) -> None:
        """A car lends another amount of memory."""
        car.capability = msgspec.structs.replace(car.capability, memory_mb=memory_mb)
        self.happen(ev.CapabilityChanged(self.now_ms, car.vehicle_id, car.epoch, car.capability))

    def fail_load(self, car: Car, needs: ModelNeeds = MODEL) -> None:
        """A car says that it can't have a model."""
        failure = Failure.OUT_OF_MEMORY
        said = (car.vehicle_id, car.epoch, needs.model_id, failure, "no room")
        self.happen(ev.LoadFailed(self.now_ms, *said))

    # What the fleet says.

    def happen(self, *events: ev.FleetEvent) -> list[fx.FleetEffect]:
        """Let the fleet handle events; then the wishes are kept as far as can be."""
        super().happen(*events)
        told = [one.vehicle_id for one in self.said(fx.KeepLoaded)]
        assert len(told) == len(set(told)), "a car is told once"
        for needs in self.fleet.state.models.values():
            self._check_wish(needs)
        return self.effects

    def _hear(self, effect: fx.FleetEffect) -> None:
        super()._hear(effect)
        match effect:
            case fx.WelcomeVehicle():
                self.told.pop(effect.vehicle_id, None)
            case fx.KeepLoaded():
                assert effect.epoch == self.cars[effect.vehicle_id].epoch
                assert self.told.get(effect.vehicle_id, ()) != effect.model_ids, "it knows"
                self.told[effect.vehicle_id] = effect.model_ids

    def _check_wish(self, needs: ModelNeeds) -> None:
        """What cars were told gives the slots that are wanted, or nobody is left to be told."""
        state = self.fleet.state
        record = state.warm.get(needs.model_id)
        keeping, able = [], []
        for vehicle in state.vehicles.values():
            if not self._is_present(vehicle):
                continue
            told = self.told.get(vehicle.vehicle_id, ())
            if needs.model_id in told:
                keeping.append(vehicle)
            elif self._has_room(vehicle, needs, told):
                able.append(vehicle.vehicle_id)
        slots = sum(one.capability.slots for one in keeping if one.capability)
        if record is None:
            assert not keeping, "a car keeps what nobody wants"
        elif slots < record.slots:
            assert not set(able) - record.passed_over.keys(), "there are cars for it"

    def _is_present(self, vehicle: VehicleRecord) -> bool:
        is_there = vehicle.epoch != 0 and not vehicle.is_silent and not vehicle.is_draining
        is_quarantined = vehicle.vehicle_id in self.fleet.state.quarantined
        return is_there and not vehicle.refusals and not is_quarantined

    def _has_room(
        self, vehicle: VehicleRecord, needs: ModelNeeds, told: tuple[ModelId, ...]
    ) -> bool:
        offered = vehicle.capability
        if offered is None or not offered.slots:
            return False
        kind = capability_class(offered)
        kept = [self.fleet.state.models[one] for one in told]
        kept_mb = sum(one.memory_mb for one in kept if one.runtime == needs.runtime)
        return is_feasible(kind, needs) and kept_mb + needs.memory_mb <= kind.memory_mb
