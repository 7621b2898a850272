"""What the fleet does so that models stay in memory: as many slots of each as the operator wants.

A car is chosen for a model until it permits no more, drains, is in quarantine or gone, can't load
the model, or is one too many; what is then missing is chosen anew with the same events. A model
that found no more cars looks only at those that have changed since.
"""

from collections.abc import Iterable
from itertools import chain, islice

from terafleet.core import events as ev
from terafleet.core.admission import admission_refusal
from terafleet.core.availability import expected_stay_ms
from terafleet.core.capability import ModelNeeds, is_feasible
from terafleet.core.deadlines import DeadlineKind
from terafleet.core.effects import KeepLoaded
from terafleet.core.fleet_state import FleetState
from terafleet.core.fleet_vehicles import current
from terafleet.core.ids import ModelId, VehicleId
from terafleet.core.records import VehicleRecord, WarmChoice, WarmRecord

LOOK_MAX = 64
"""How many cars of a group are compared, beside as many as are missing."""


def model_warmed(fleet: FleetState, event: ev.ModelWarmed) -> None:
    """Keep a model in so many slots from here on; with 0 it need not stay anywhere."""
    needs = fleet.models.get(event.model_id)
    if event.slots <= 0 and needs is not None:
        end_warmth(fleet, event.model_id)
        fleet.answer(event.request_id)
        return
    refused = admission_refusal(
        [needs],
        needs.endpoints[0] if needs else "",
        [kind for kind, group in fleet.index.groups.items() if group.known],
        len(fleet.vehicles),
        len(fleet.vehicles) - len(fleet.group_of),
    )
    if refused is not None:
        fleet.answer(event.request_id, *refused)
        return
    record = fleet.warm.setdefault(event.model_id, WarmRecord(event.model_id))
    record.slots = event.slots
    # Who asks again may have mended what kept cars from loading it.
    record.passed_over.clear()
    fleet.warm_due[event.model_id] = None
    fleet.answer(event.request_id)


def end_warmth(fleet: FleetState, model_id: ModelId) -> None:
    """A model need not stay in memory; the cars that have it are told."""
    record = fleet.warm.pop(model_id, None)
    if record is not None:
        fleet.warm_due.pop(model_id, None)
        fleet.warm_changed.update(dict.fromkeys(record.chosen))


def load_failed(fleet: FleetState, event: ev.LoadFailed) -> None:
    """A car can't have a model: another one shall."""
    record = fleet.warm.get(event.model_id)
    is_current = current(fleet, event.vehicle_id, event.epoch) is not None
    if is_current and record is not None and event.vehicle_id in record.chosen:
        _pass_over(fleet, record, event.vehicle_id)


def deadline_came(fleet: FleetState, about: str) -> None:
    """A car should have loaded a model by this time, or may be tried again."""
    model_id, _, vehicle = about.rpartition(" ")
    record, vehicle_id = fleet.warm.get(ModelId(model_id)), VehicleId(vehicle)
    if record is None:
        return
    choice = record.chosen.get(vehicle_id)
    if choice is not None and 0 < choice.due_ms <= fleet.now_ms:
        _pass_over(fleet, record, vehicle_id)
    elif record.passed_over.get(vehicle_id, fleet.now_ms + 1) <= fleet.now_ms:
        del record.passed_over[vehicle_id]
        fleet.warm_changed[vehicle_id] = None


def keep_warm(fleet: FleetState) -> None:
    """Bring choices in line with what has become of cars and wishes, and tell the cars."""
    if not fleet.warm_changed and not fleet.warm_due:
        return
    for vehicle_id in list(fleet.warm_changed):
        for record in fleet.warm.values():
            if vehicle_id in record.chosen:
                _look_again(fleet, record, vehicle_id)
    for model_id in fleet.warm_due:
        _release_surplus(fleet, fleet.warm[model_id])
    for record in fleet.warm.values():
        if record.slots_chosen < record.slots:
            _choose(fleet, record)
    for vehicle_id in fleet.warm_changed:
        _tell(fleet, vehicle_id)
    fleet.warm_changed.clear()
    fleet.warm_due.clear()


def suits(fleet: FleetState, vehicle_id: VehicleId, needs: ModelNeeds) -> bool:
    """Whether a car permits, can run a model, and has room for it beside what else it keeps."""
    _, is_permitting, slots = fleet.counted.get(vehicle_id, (False, False, 0))
    if not is_permitting or not slots or vehicle_id in fleet.quarantined:
        return False
    beside_mb = 0
    for model_id in models_of(fleet, vehicle_id):
        # Each kind of runtime is a program of its own, with as much memory.
        if model_id != needs.model_id and fleet.models[model_id].runtime == needs.runtime:
            beside_mb += fleet.models[model_id].memory_mb
    kind = fleet.group_of[vehicle_id].kind
    return is_feasible(kind, needs) and beside_mb + needs.memory_mb <= kind.memory_mb


def models_of(fleet: FleetState, vehicle_id: VehicleId) -> list[ModelId]:
    """The models that a car is chosen for, the oldest wish first."""
    return [record.model_id for record in fleet.warm.values() if vehicle_id in record.chosen]


def may_take(fleet: FleetState, record: WarmRecord, vehicle_id: VehicleId) -> bool:
    """Whether a car could be chosen for a model beside those that are."""
    is_open = vehicle_id not in record.chosen and vehicle_id not in record.passed_over
    return is_open and suits(fleet, vehicle_id, fleet.models[record.model_id])


def _look_again(fleet: FleetState, record: WarmRecord, vehicle_id: VehicleId) -> None:
    """A chosen car has changed."""
    if not suits(fleet, vehicle_id, fleet.models[record.model_id]):
        _let_go(fleet, record, vehicle_id)
        return
    choice, capability = record.chosen[vehicle_id], fleet.vehicles[vehicle_id].capability
    assert capability is not None
    if capability.slots != choice.slots:
        record.slots_chosen += capability.slots - choice.slots
        choice.slots = capability.slots
        fleet.warm_due[record.model_id] = None
    if record.model_id in capability.loaded:
        choice.due_ms = 0
    elif not choice.due_ms:
        choice.due_ms = _due_ms(fleet, record, vehicle_id)


def _choose(fleet: FleetState, record: WarmRecord) -> None:
    """Choose cars for what is missing, those expected to stay longest first."""
    vehicles = [fleet.vehicles[one] for one in _candidates(fleet, record)]
    for vehicle in sorted(vehicles, key=lambda one: _rank(fleet, one, record.model_id)):
        if record.slots_chosen >= record.slots:
            return
        assert vehicle.capability is not None
        slots, is_loaded = vehicle.capability.slots, record.model_id in vehicle.capability.loaded
        due_ms = 0 if is_loaded else _due_ms(fleet, record, vehicle.vehicle_id)
        record.chosen[vehicle.vehicle_id] = WarmChoice(slots, due_ms)
        record.slots_chosen += slots
        fleet.warm_changed[vehicle.vehicle_id] = None


def _candidates(fleet: FleetState, record: WarmRecord) -> Iterable[VehicleId]:
    """Cars that could be chosen: all that are enough to choose well, or the changed ones."""
    if record.model_id not in fleet.warm_due:
        # When all were looked at there was none.
        return [one for one in fleet.warm_changed if may_take(fleet, record, one)]
    shape = fleet.index.shape(fleet.models[record.model_id])
    look = LOOK_MAX + record.slots - record.slots_chosen
    found: list[VehicleId] = []
    for group in chain(*fleet.index.feasible_tiers(shape)):
        able = (one for one in group.present if may_take(fleet, record, one))
        found += islice(able, look)
    return found


def _rank(
    fleet: FleetState, vehicle: VehicleRecord, model_id: ModelId
) -> tuple[int, bool, bool, int]:
    """Long stays first; of those alike, within a factor of two, where the model is nearer."""
    stay_ms = expected_stay_ms(vehicle, fleet.now_ms, fleet.settings.stay_prior_ms)
    capability = vehicle.capability
    assert capability is not None
    is_far = model_id not in capability.loaded
    return -stay_ms.bit_length(), is_far, model_id not in capability.models, -stay_ms


def _release_surplus(fleet: FleetState, record: WarmRecord) -> None:
    """Let cars go that are not needed any more, those expected to leave soonest first."""
    if record.slots_chosen <= record.slots:
        return
    vehicles = [fleet.vehicles[one] for one in record.chosen]
    vehicles.sort(key=lambda one: _rank(fleet, one, record.model_id), reverse=True)
    for vehicle in vehicles:
        slots = record.chosen[vehicle.vehicle_id].slots
        if record.slots_chosen - slots >= record.slots:
            _let_go(fleet, record, vehicle.vehicle_id)


def _let_go(fleet: FleetState, record: WarmRecord, vehicle_id: VehicleId) -> None:
    record.slots_chosen -= record.chosen.pop(vehicle_id).slots
    fleet.warm_changed[vehicle_id] = None
    fleet.warm_due[record.model_id] = None


def _pass_over(fleet: FleetState, record: WarmRecord, vehicle_id: VehicleId) -> None:
    """Let a car go that could not load a model, and leave it alone for a while."""
    _let_go(fleet, record, vehicle_id)
    until_ms = fleet.now_ms + fleet.settings.warm_retry_ms
    record.passed_over[vehicle_id] = until_ms
    _watch(fleet, record, vehicle_id, until_ms)


def _due_ms(fleet: FleetState, record: WarmRecord, vehicle_id: VehicleId) -> int:
    """By when a car must have a model in memory; that is looked at then."""
    settings, capability = fleet.settings, fleet.vehicles[vehicle_id].capability
    due_ms = fleet.now_ms + settings.session_load_ms
    if capability is not None and record.model_id not in capability.models:
        # What is fetched is no larger than what it takes in memory.
        due_ms += fleet.models[record.model_id].memory_mb * settings.warm_fetch_ms_per_mb
    _watch(fleet, record, vehicle_id, due_ms)
    return due_ms


def _watch(fleet: FleetState, record: WarmRecord, vehicle_id: VehicleId, at_ms: int) -> None:
    fleet.deadlines.add(at_ms, DeadlineKind.WARM, f"{record.model_id} {vehicle_id}")


def _tell(fleet: FleetState, vehicle_id: VehicleId) -> None:
    """Tell a car what to keep if it was told something else; a silent one when it is heard."""
    vehicle = fleet.vehicles.get(vehicle_id)
    if vehicle is None or not vehicle.epoch or vehicle.is_silent:
        return
    keeps = tuple(models_of(fleet, vehicle_id))
    if keeps != vehicle.keeps:
        vehicle.keeps = keeps
        fleet.effects.append(KeepLoaded(vehicle_id, vehicle.epoch, keeps))
