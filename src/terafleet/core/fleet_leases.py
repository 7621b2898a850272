"""What the fleet does with leases: grant them, take what comes back, end them."""

from collections.abc import Sequence

from terafleet.core import events as ev
from terafleet.core.effects import (
    AcknowledgeReceipt,
    DropOutputs,
    GrantedUnit,
    GrantLease,
    RevokeLease,
)
from terafleet.core.fleet_batches import unit_failed, units_succeeded
from terafleet.core.fleet_sessions import session_returned
from terafleet.core.fleet_state import FleetState
from terafleet.core.fleet_vehicles import current
from terafleet.core.ids import SESSION_UNIT, WHOLE_LEASE, LeaseId, ReceiptId, WorkUnitId
from terafleet.core.matchmaking import Shape, VehicleGroup, lease_cost
from terafleet.core.pricing import reward_micro
from terafleet.core.reasons import Failure, LeaseEnding, UnitEnding
from terafleet.core.records import LeaseRecord, UnitRecord, VehicleRecord
from terafleet.core.verification import Appraisal, appraise_count
from terafleet.core.work import AttemptResult, UnitState

_NO_FAULT = frozenset({Failure.STOPPED, Failure.INPUT_UNAVAILABLE})
"""Why a session may fail in a car that did nothing wrong: it was told to stop, or told nothing."""


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
    unit_ids: dict[WorkUnitId, None] = {}
    for unit in units:
        unit.state = UnitState.RUNNING
        unit.lease_id = lease_id
        cost += unit.cost
        unit_ids[unit.unit_id] = None
        granted.append(
            GrantedUnit(unit.unit_id, unit.requests, unit.offset, unit.length, unit.digest)
        )
    settings, now_ms = fleet.settings, fleet.now_ms
    work_ms = cost * 1_000 // max(1, tokens_per_s) * settings.overdue_factor
    overdue_ms = now_ms + work_ms + settings.overdue_allowance_ms
    fleet.open_lease(
        LeaseRecord(
            lease_id,
            vehicle.vehicle_id,
            batch.batch_id,
            model_id,
            unit_ids,
            now_ms,
            now_ms,
            overdue_ms,
        )
    )
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


def attempts_returned(fleet: FleetState, event: ev.AttemptsReturned) -> None:
    """Take all results of a receipt once, or none of them; always acknowledge the receipt."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is None:
        return
    lease_id, results = event.lease_id, event.results
    receipt_id = ReceiptId(results[0].unit_id)
    fleet.effects.append(AcknowledgeReceipt(event.vehicle_id, event.epoch, lease_id, receipt_id))
    lease = lease_waiting_for(fleet, event)
    if lease is None:
        _refuse_late(fleet, vehicle, lease_id, receipt_id)
        return
    if lease.session is not None:
        session_returned(fleet, vehicle, lease, results[0], event.asked_micro)
        return
    fault = _count_fault(fleet, results)
    if fault:
        fleet.effects.append(DropOutputs(lease_id, receipt_id))
        _mistrust(fleet, vehicle)
        for result in results:
            vehicle.energy_lost_mwh += result.energy_mwh
            unit = fleet.units[result.unit_id]
            _fail_unit(fleet, vehicle, lease, unit, (Failure.OUTPUT_INCOMPLETE, fault))
        return
    _account(fleet, vehicle, lease, event)
    units_succeeded(fleet, lease, results)
    for result in results:
        del lease.unit_ids[result.unit_id]
    _progress(fleet, lease)


def lease_waiting_for(fleet: FleetState, event: ev.AttemptsReturned) -> LeaseRecord | None:
    """The lease that results are of, if it stands, is the car's, and waits for each of them."""
    lease = fleet.leases.get(event.lease_id)
    if lease is None or lease.vehicle_id != event.vehicle_id:
        return None
    wanted = lease.unit_ids
    if len(event.results) == 1:
        return lease if event.results[0].unit_id in wanted else None
    unit_ids = {result.unit_id for result in event.results}
    is_wanted = len(unit_ids) == len(event.results) and unit_ids <= wanted.keys()
    return lease if is_wanted else None


def _refuse_late(
    fleet: FleetState, vehicle: VehicleRecord, lease_id: LeaseId, receipt_id: ReceiptId
) -> None:
    """Results whose lease has ended count for nothing, unless they are the ones that counted.

    Under a lease of another car, whose outputs may be on their way, nothing is dropped.
    """
    lease = fleet.leases.get(lease_id)
    if lease is not None and lease.vehicle_id != vehicle.vehicle_id:
        return
    if lease is not None and WorkUnitId(receipt_id) in lease.unit_ids:
        # What this unit will bring bears the same name.
        return
    if receipt_id == ReceiptId(SESSION_UNIT):
        return
    unit = fleet.units.get(WorkUnitId(receipt_id))
    if unit is None or not unit.has_output(lease_id, receipt_id):
        fleet.effects.append(DropOutputs(lease_id, receipt_id))


def _count_fault(fleet: FleetState, results: Sequence[AttemptResult]) -> str:
    """What is wrong with the numbers of answers, in words, or empty."""
    for result in results:
        requests = fleet.units[result.unit_id].requests
        if appraise_count(requests, result.answers, result.answers_failed) is Appraisal.INVALID:
            return f"{result.answers} answers to {requests} requests"
    return ""


def _account(
    fleet: FleetState, vehicle: VehicleRecord, lease: LeaseRecord, event: ev.AttemptsReturned
) -> None:
    """Credit the car, and learn its speed: a moving average over about four receipts."""
    fleet.pardon(vehicle)
    units, results, model_id = fleet.units, event.results, lease.model_id
    cost = tokens = energy_mwh = runtime_ms = 0
    for result in results:
        cost += units[result.unit_id].cost
        tokens += result.prompt_tokens + result.completion_tokens
        energy_mwh += result.energy_mwh
        runtime_ms += result.runtime_ms
    vehicle.units_succeeded += len(results)
    vehicle.energy_mwh += energy_mwh
    vehicle.runtime_ms += runtime_ms
    earned_micro = reward_micro(fleet.settings.plan, energy_mwh, tokens)
    vehicle.reward_micro += max(earned_micro, fleet.meet(lease, event.asked_micro))
    if runtime_ms > 0:
        seen = cost * 1_000 // runtime_ms
        known = vehicle.speeds.get(model_id, seen)
        vehicle.speeds[model_id] = max(1, (3 * known + seen) // 4)
        shape = fleet.index.shapes[model_id]
        shape.tokens_per_s = max(1, (15 * shape.tokens_per_s + seen) // 16)


def _progress(fleet: FleetState, lease: LeaseRecord) -> None:
    """Something of a lease is done with; without open units the lease is complete."""
    lease.progress_ms = fleet.now_ms
    if not lease.unit_ids:
        fleet.close_lease(lease)


def attempt_failed(fleet: FleetState, event: ev.AttemptFailed) -> None:
    """A car could not do a unit: another one shall try."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is None:
        return
    receipt_id = ReceiptId(event.unit_id)
    fleet.effects.append(
        AcknowledgeReceipt(event.vehicle_id, event.epoch, event.lease_id, receipt_id)
    )
    vehicle.energy_lost_mwh += event.energy_mwh
    lease = fleet.leases.get(event.lease_id)
    is_the_cars = lease is not None and lease.vehicle_id == event.vehicle_id
    if lease is not None and is_the_cars and event.unit_id in lease.unit_ids:
        vehicle.reward_micro += fleet.meet(lease, event.asked_micro)
        if lease.session is not None:
            _fail_session(fleet, vehicle, lease, event.failure)
            return
        unit = fleet.units[event.unit_id]
        _mistrust(fleet, vehicle)
        _fail_unit(fleet, vehicle, lease, unit, (event.failure, event.detail))


def _fail_session(
    fleet: FleetState, vehicle: VehicleRecord, lease: LeaseRecord, failure: Failure
) -> None:
    """A car could not serve a session, which goes on elsewhere or has gone there already."""
    if lease.is_unwanted:
        fleet.close_lease(lease)
    else:
        fleet.lose_lease(lease, LeaseEnding.ATTEMPT_FAILED, fleet.now_ms)
    if failure not in _NO_FAULT:
        _mistrust(fleet, vehicle)
    fleet.refresh(vehicle)


def _fail_unit(
    fleet: FleetState,
    vehicle: VehicleRecord,
    lease: LeaseRecord,
    unit: UnitRecord,
    why: tuple[Failure, str],
) -> None:
    """An attempt has come to nothing; whether the car is to blame for more is said apart."""
    failure, detail = why
    fleet.count_loss(vehicle, failure, fleet.now_ms - lease.progress_ms)
    del lease.unit_ids[unit.unit_id]
    _progress(fleet, lease)
    blame(fleet, unit, vehicle, f"{failure}: {detail}" if detail else str(failure))


def _mistrust(fleet: FleetState, vehicle: VehicleRecord) -> None:
    """A car has failed once more in a row."""
    vehicle.failures_in_row += 1
    fleet.quarantine(vehicle)
    fleet.refresh(vehicle)


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
    vehicle.reward_micro += fleet.meet(lease, event.asked_micro)
    if event.ending is not LeaseEnding.MODEL_UNAVAILABLE:
        fleet.lose_lease(lease, event.ending, fleet.now_ms)
        return
    if lease.session is not None:
        _fail_session(fleet, vehicle, lease, Failure.MODEL_UNAVAILABLE)
        return
    units = [fleet.units[unit_id] for unit_id in lease.unit_ids]
    fleet.close_lease(lease)
    fleet.count_loss(vehicle, event.ending, 0)
    _mistrust(fleet, vehicle)
    for unit in units:
        blame(fleet, unit, vehicle, event.detail or str(event.ending))


def lease_overdue(fleet: FleetState, lease_id: LeaseId) -> None:
    """A car that is heard but does not get on: take the work back; it counts as a failure."""
    lease = fleet.leases[lease_id]
    vehicle = fleet.vehicles[lease.vehicle_id]
    ending = LeaseEnding.OVERDUE
    fleet.effects.append(RevokeLease(vehicle.vehicle_id, vehicle.epoch, lease_id, ending))
    fleet.lose_lease(lease, ending, fleet.now_ms)
    if not lease.is_unwanted:
        _mistrust(fleet, vehicle)
