"""What must always hold in the fleet's machine; checked in tests and simulations."""

from collections import Counter

from terafleet.core.fleet_state import FleetState
from terafleet.core.fleet_warm import may_take, models_of, suits
from terafleet.core.ids import SESSION_UNIT
from terafleet.core.records import NOT_READY, VehicleState
from terafleet.core.work import BATCH_ENDS, UnitState


def check(state: FleetState) -> None:
    """Assert every law."""
    _check_leases(state)
    _check_units(state)
    _check_batches(state)
    _check_vehicles(state)
    _check_warmth(state)


def _check_leases(state: FleetState) -> None:
    """No slot has two leases; every lease is its car's, and each of its units runs under it."""
    for lease in state.leases.values():
        vehicle = state.vehicles[lease.vehicle_id]
        assert lease.lease_id in vehicle.leases
        assert vehicle.epoch != 0, "a car that is offline holds a lease"
        assert lease.unit_ids, "a lease without work stands"
        if lease.session is not None:
            assert set(lease.unit_ids) == {SESSION_UNIT}
            session_id = lease.session.session_id
            is_present = state.sessions.get(session_id) == lease.lease_id
            assert is_present != lease.is_unwanted
            assert lease.vehicle_id not in lease.session.excluded
            continue
        offered = state.group_of[lease.vehicle_id].batch_leases
        assert (lease.lease_id in offered) == state.may_serve(vehicle)
        for unit_id in lease.unit_ids:
            unit = state.units[unit_id]
            assert unit.state is UnitState.RUNNING
            assert unit.lease_id == lease.lease_id
            assert unit.batch_id == lease.batch_id
    of_sessions = [one for one in state.leases.values() if one.session is not None]
    wanted = [one for one in of_sessions if not one.is_unwanted]
    assert len(wanted) == len(state.sessions), "a session has two leases"
    assert not any(session.session_id in state.sessions for session in state.queued_sessions)
    assert not state.spare_wanted, "a canary waits"
    offered_ids = [one for group in state.index.groups.values() for one in group.batch_leases]
    assert len(set(offered_ids)) == len(offered_ids)
    assert all(state.leases[one].session is None for one in offered_ids)
    held = sum(len(vehicle.leases) for vehicle in state.vehicles.values())
    assert held == len(state.leases)


def _check_units(state: FleetState) -> None:
    """Every accepted unit is in exactly one state, and where that state says it is."""
    running = Counter(
        unit_id
        for lease in state.leases.values()
        for unit_id in lease.unit_ids
        if lease.session is None
    )
    waiting: Counter[int] = Counter()
    for shape in state.index.shapes.values():
        requeued, others = shape.in_order()
        queued = [*requeued, *others]
        waiting.update(unit.unit_id for unit in queued)
        assert shape.waiting_units == len(queued)
        assert shape.waiting_cost == sum(unit.cost for unit in queued)
    for unit in state.units.values():
        assert waiting[unit.unit_id] == (unit.state is UnitState.WAITING)
        assert running[unit.unit_id] == (unit.state is UnitState.RUNNING)
        assert (unit.lease_id != 0) == (unit.state in (UnitState.RUNNING, UnitState.SUCCEEDED))
    assert len(waiting) + len(running) <= len(state.units)


def _check_batches(state: FleetState) -> None:
    """A batch's counts are those of its units; every request is answered at most once."""
    owned = 0
    for batch in state.batches.values():
        assert batch.state not in BATCH_ENDS
        units = [state.units[unit_id] for unit_id in batch.unit_ids()]
        owned += len(units)
        is_open = (UnitState.WAITING, UnitState.RUNNING, UnitState.VERIFYING)
        assert batch.units_open == sum(unit.state in is_open for unit in units)
        assert batch.units_running == sum(unit.state is UnitState.RUNNING for unit in units)
        assert set(batch.losses) == {
            unit.unit_id for unit in units if unit.state in (UnitState.FAILED, UnitState.CANCELLED)
        }
        assert batch.requests_completed + batch.requests_failed <= batch.requests
    assert owned == len(state.units)


def _check_vehicles(state: FleetState) -> None:
    """The index knows every ready car once, and no other; counts are those of the cars."""
    ready: Counter[str] = Counter()
    for kind, group in state.index.groups.items():
        for level, members in enumerate(group.ready):
            ready.update(list(members))
            for vehicle_id in members:
                vehicle = state.vehicles[vehicle_id]
                assert vehicle.ready_level == level
                assert state.group_of[vehicle_id] is group
                assert vehicle.is_ready()
        cars = [
            one for one in state.vehicles.values() if state.group_of.get(one.vehicle_id) is group
        ]
        assert group.known == len(cars), kind
        assert group.online == sum(one.epoch != 0 and not one.is_silent for one in cars)
        assert set(group.present) == {
            one.vehicle_id for one in cars if one.state in (VehicleState.IDLE, VehicleState.LEASED)
        }
    for vehicle in state.vehicles.values():
        assert ready[vehicle.vehicle_id] == (vehicle.ready_level != NOT_READY)
        slots = vehicle.capability.slots if vehicle.capability else 0
        assert len(vehicle.leases) <= slots, "a slot has two leases"
        is_online = vehicle.epoch != 0 and not vehicle.is_silent
        assert (vehicle.staying_since_ms != 0) == (is_online and not vehicle.refusals)
    for kind, group in state.index.groups.items():
        assert group.ready_count == sum(map(len, group.ready))
        assert (kind in state.index.ready) == (group.ready_count > 0)


def _check_warmth(state: FleetState) -> None:
    """A model has the slots that are wanted, or no car is left that could be chosen for it.

    Who is chosen can do it, and each car that can hear it was told what it is chosen for.
    """
    for record in state.warm.values():
        needs = state.models[record.model_id]
        assert record.slots > 0
        assert record.slots_chosen == sum(choice.slots for choice in record.chosen.values())
        assert not record.chosen.keys() & record.passed_over.keys()
        for vehicle_id, choice in record.chosen.items():
            assert suits(state, vehicle_id, needs), "a car is chosen that can't keep it"
            capability = state.vehicles[vehicle_id].capability
            assert capability is not None
            assert choice.slots == capability.slots
            assert (choice.due_ms == 0) == (record.model_id in capability.loaded)
        if record.slots_chosen < record.slots:
            left = [one for one in state.vehicles if may_take(state, record, one)]
            assert not left, "slots are missing although there are cars for them"
    for vehicle in state.vehicles.values():
        if vehicle.epoch and not vehicle.is_silent:
            assert vehicle.keeps == tuple(models_of(state, vehicle.vehicle_id))
