"""What the fleet does with leases: grant them, take what comes back, end them."""

from terafleet.core import events as ev
from terafleet.core.effects import (
    AcknowledgeReceipt,
    DropOutput,
    GrantedUnit,
    GrantLease,
    RevokeLease,
)
from terafleet.core.fleet_batches import unit_failed, unit_succeeded
from terafleet.core.fleet_state import FleetState
from terafleet.core.fleet_vehicles import current
from terafleet.core.ids import LeaseId, WorkUnitId
from terafleet.core.matchmaking import Shape, VehicleGroup, lease_cost
from terafleet.core.pricing import reward_micro
from terafleet.core.reasons import Failure, LeaseEnding, UnitEnding
from terafleet.core.records import LeaseRecord, UnitRecord, VehicleRecord
from terafleet.core.verification import Appraisal, appraise_count
from terafleet.core.work import UnitState

WHOLE_LEASE = WorkUnitId(-1)


def match(fleet: FleetState) -> None:
    """Pair waiting units with ready cars until one or the other runs out."""
    index = fleet.index
    for shape in index.with_work() if index.ready else ():
        for group in index.feasible_ready(shape):
            _match_group(fleet, shape, group)
            if not shape.waiting_units:
                break
        if not index.ready:
            break


def _match_group(fleet: FleetState, shape: Shape, group: VehicleGroup) -> None:
    settings = fleet.settings
    fleet.index.learn_supply(shape)
    passed_over = []
    while shape.waiting_units:
        vehicle = fleet.take_ready(group)
        if vehicle is None:
            break
        speed = vehicle.speeds.get(shape.needs.model_id, shape.tokens_per_s)
        cost = lease_cost(shape, speed, settings.lease_target_ms)
        units = shape.take(vehicle.vehicle_id, cost, settings.units_per_lease_max)
        if units:
            _grant(fleet, vehicle, units, speed)
            fleet.refresh(vehicle)
        else:
            passed_over.append(vehicle)
    for vehicle in reversed(passed_over):
        fleet.refresh(vehicle)


def _grant(
    fleet: FleetState, vehicle: VehicleRecord, units: list[UnitRecord], tokens_per_s: int
) -> None:
    lease_id = fleet.next_lease_id
    fleet.next_lease_id = LeaseId(lease_id + 1)
    batch = fleet.batches[units[0].batch_id]
    model_id = units[0].model_id
    cost = 0
    granted = []
    unit_ids = []
    for unit in units:
        unit.state = UnitState.RUNNING
        unit.lease_id = lease_id
        cost += unit.cost
        unit_ids.append(unit.unit_id)
        granted.append(
            GrantedUnit(unit.unit_id, unit.requests, unit.offset, unit.length, unit.digest)
        )
    settings, now_ms = fleet.settings, fleet.now_ms
    work_ms = cost * 1_000 // max(1, tokens_per_s) * settings.overdue_factor
    overdue_ms = now_ms + work_ms + settings.overdue_allowance_ms
    fleet.leases[lease_id] = LeaseRecord(
        lease_id, vehicle.vehicle_id, batch.batch_id, model_id, unit_ids, now_ms, now_ms, overdue_ms
    )
    fleet.deadlines.watch_lease(lease_id, overdue_ms)
    vehicle.leases[lease_id] = None
    batch.units_running += len(units)
    fleet.touched[batch.batch_id] = None
    fleet.effects.append(
        GrantLease(
            vehicle.vehicle_id,
            vehicle.epoch,
            lease_id,
            batch.batch_id,
            model_id,
            batch.endpoint,
            tuple(granted),
        )
    )


def _lease_of(
    fleet: FleetState, vehicle: VehicleRecord, lease_id: LeaseId, unit_id: WorkUnitId
) -> LeaseRecord | None:
    """The lease that a receipt is about, if it stands, is the car's, and waits for the unit."""
    lease = fleet.leases.get(lease_id)
    if lease is None or lease.vehicle_id != vehicle.vehicle_id:
        return None
    return lease if unit_id in lease.unit_ids else None


def attempt_returned(fleet: FleetState, event: ev.AttemptReturned) -> None:
    """Take a result once, if its lease still stands; always acknowledge the receipt."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is None:
        return
    fleet.effects.append(
        AcknowledgeReceipt(event.vehicle_id, event.epoch, event.lease_id, event.unit_id)
    )
    lease = _lease_of(fleet, vehicle, event.lease_id, event.unit_id)
    if lease is None:
        _refuse_late(fleet, vehicle, event.lease_id, event.unit_id)
        return
    unit = fleet.units[event.unit_id]
    if appraise_count(unit.requests, event.answers, event.answers_failed) is Appraisal.INVALID:
        fleet.effects.append(DropOutput(event.lease_id, event.unit_id))
        detail = f"{event.answers} answers to {unit.requests} requests"
        vehicle.energy_lost_mwh += event.energy_mwh
        _fail(fleet, vehicle, lease, unit, (Failure.OUTPUT_INCOMPLETE, detail))
        return
    _account(fleet, vehicle, unit, event)
    unit_succeeded(fleet, unit, event)
    _progress(fleet, lease, event.unit_id)


def _refuse_late(
    fleet: FleetState, vehicle: VehicleRecord, lease_id: LeaseId, unit_id: WorkUnitId
) -> None:
    """A result whose lease has ended counts for nothing, unless it is the one that counted.

    Under a lease of another car, whose output may be on its way, nothing is dropped.
    """
    lease = fleet.leases.get(lease_id)
    if lease is not None and lease.vehicle_id != vehicle.vehicle_id:
        return
    unit = fleet.units.get(unit_id)
    is_canonical = (
        unit is not None and unit.state is UnitState.SUCCEEDED and unit.lease_id == lease_id
    )
    if not is_canonical:
        fleet.effects.append(DropOutput(lease_id, unit_id))


def _account(
    fleet: FleetState, vehicle: VehicleRecord, unit: UnitRecord, event: ev.AttemptReturned
) -> None:
    """Credit the car, and learn its speed: a moving average over about four attempts."""
    fleet.pardon(vehicle)
    vehicle.units_succeeded += 1
    vehicle.energy_mwh += event.energy_mwh
    vehicle.runtime_ms += event.runtime_ms
    tokens = event.prompt_tokens + event.completion_tokens
    vehicle.reward_micro += reward_micro(fleet.settings.plan, event.energy_mwh, tokens)
    if event.runtime_ms > 0:
        seen = unit.cost * 1_000 // event.runtime_ms
        known = vehicle.speeds.get(unit.model_id, seen)
        vehicle.speeds[unit.model_id] = max(1, (3 * known + seen) // 4)
        shape = fleet.shape_of(unit)
        shape.tokens_per_s = max(1, (15 * shape.tokens_per_s + seen) // 16)


def _progress(fleet: FleetState, lease: LeaseRecord, unit_id: WorkUnitId) -> None:
    """A unit of a lease is done with; the last one completes the lease."""
    lease.unit_ids.remove(unit_id)
    lease.progress_ms = fleet.now_ms
    if not lease.unit_ids:
        fleet.close_lease(lease)


def attempt_failed(fleet: FleetState, event: ev.AttemptFailed) -> None:
    """A car could not do a unit: another one shall try."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is None:
        return
    fleet.effects.append(
        AcknowledgeReceipt(event.vehicle_id, event.epoch, event.lease_id, event.unit_id)
    )
    vehicle.energy_lost_mwh += event.energy_mwh
    lease = _lease_of(fleet, vehicle, event.lease_id, event.unit_id)
    if lease is not None:
        unit = fleet.units[event.unit_id]
        _fail(fleet, vehicle, lease, unit, (event.failure, event.detail))


def _fail(
    fleet: FleetState,
    vehicle: VehicleRecord,
    lease: LeaseRecord,
    unit: UnitRecord,
    why: tuple[Failure, str],
) -> None:
    failure, detail = why
    fleet.count_loss(vehicle, failure, fleet.now_ms - lease.progress_ms)
    vehicle.failures_in_row += 1
    fleet.quarantine(vehicle)
    _progress(fleet, lease, unit.unit_id)
    fleet.refresh(vehicle)
    blame(fleet, unit, vehicle, f"{failure}: {detail}" if detail else str(failure))


def blame(fleet: FleetState, unit: UnitRecord, vehicle: VehicleRecord, detail: str) -> None:
    """Decide who is at fault: several cars failing one unit clears them and ends the unit."""
    unit.failures += 1
    if vehicle.vehicle_id not in unit.failed_on:
        unit.failed_on = (*unit.failed_on, vehicle.vehicle_id)
    if len(unit.failed_on) >= fleet.settings.blame_vehicles:
        for vehicle_id in unit.failed_on:
            innocent = fleet.vehicles.get(vehicle_id)
            if innocent is not None:
                fleet.pardon(innocent)
                fleet.recount(innocent)
        unit_failed(fleet, unit, UnitEnding.FAILED_ON_SEVERAL_VEHICLES, detail)
    elif unit.failures >= fleet.settings.failures_max:
        unit_failed(fleet, unit, UnitEnding.FAILED_TOO_OFTEN, detail)
    else:
        fleet.requeue(unit)


def lease_released(fleet: FleetState, event: ev.LeaseReleased) -> None:
    """A car gives a lease back; its owner's wish is no fault, a model it can't load is."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is None:
        return
    fleet.effects.append(
        AcknowledgeReceipt(event.vehicle_id, event.epoch, event.lease_id, WHOLE_LEASE)
    )
    vehicle.energy_lost_mwh += event.energy_mwh
    lease = fleet.leases.get(event.lease_id)
    if lease is None or lease.vehicle_id != event.vehicle_id:
        return
    if event.ending is not LeaseEnding.MODEL_UNAVAILABLE:
        fleet.lose_lease(lease, event.ending, fleet.now_ms)
        return
    units = [fleet.units[unit_id] for unit_id in lease.unit_ids]
    fleet.close_lease(lease)
    fleet.count_loss(vehicle, event.ending, 0)
    vehicle.failures_in_row += 1
    fleet.quarantine(vehicle)
    fleet.refresh(vehicle)
    for unit in units:
        blame(fleet, unit, vehicle, event.detail or str(event.ending))


def lease_overdue(fleet: FleetState, lease_id: LeaseId) -> None:
    """A car that is heard but does not get on: take the work back; it counts as a failure."""
    lease = fleet.leases[lease_id]
    vehicle = fleet.vehicles[lease.vehicle_id]
    ending = LeaseEnding.OVERDUE
    fleet.effects.append(RevokeLease(vehicle.vehicle_id, vehicle.epoch, lease_id, ending))
    fleet.lose_lease(lease, ending, fleet.now_ms)
    vehicle.failures_in_row += 1
    fleet.quarantine(vehicle)
    fleet.refresh(vehicle)
