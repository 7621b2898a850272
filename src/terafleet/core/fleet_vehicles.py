"""What the fleet does when vehicles come, go, fall silent or change their minds."""

from terafleet.core import events as ev
from terafleet.core.capability import Capability
from terafleet.core.deadlines import DeadlineKind
from terafleet.core.effects import AskHello, FenceVehicle, OfferPolicy, RevokeLease, WelcomeVehicle
from terafleet.core.fleet_state import FleetState
from terafleet.core.ids import Epoch, LeaseId, VehicleId, WorkUnitId
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.records import VehicleRecord
from terafleet.core.work import BatchState

NO_EPOCH = Epoch(0)
GATEWAY_WAIT_MS = 1_000


def shard_started(fleet: FleetState, event: ev.ShardStarted) -> None:
    """Count every car as heard, and ask each what it holds: a message may have been lost."""
    fleet.settings = event.settings
    for vehicle in fleet.vehicles.values():
        if vehicle.epoch:
            vehicle.is_silent = False
            fleet.recount(vehicle)
            fleet.effects.append(AskHello(vehicle.vehicle_id))
    for batch in fleet.batches.values():
        if batch.state is not BatchState.IN_PROGRESS:
            # What a gateway was asked before is lost; it needs a moment to listen again.
            batch.ask_again_ms = fleet.now_ms + GATEWAY_WAIT_MS
            fleet.deadlines.add(batch.ask_again_ms, DeadlineKind.GATEWAY, batch.batch_id)


def vehicle_enrolled(fleet: FleetState, event: ev.VehicleEnrolled) -> None:
    """Know a car; enrolling it again changes its name only."""
    vehicle = fleet.vehicles.get(event.vehicle_id)
    if vehicle is None:
        fleet.vehicles[event.vehicle_id] = VehicleRecord(event.vehicle_id, event.name)
    else:
        vehicle.name = event.name
    fleet.answer(event.request_id)


def vehicle_removed(fleet: FleetState, event: ev.VehicleRemoved) -> None:
    """Forget a car; its work waits again."""
    vehicle = fleet.vehicles.get(event.vehicle_id)
    if vehicle is None:
        fleet.answer(event.request_id, Refused.VEHICLE_UNKNOWN, "no such vehicle")
        return
    end_epoch(fleet, vehicle, LeaseEnding.VEHICLE_REMOVED, fleet.now_ms)
    fleet.ungroup(vehicle)
    fleet.quarantined.pop(vehicle.vehicle_id, None)
    del fleet.vehicles[event.vehicle_id]
    fleet.answer(event.request_id)


def policy_set(fleet: FleetState, event: ev.VehiclePolicySet) -> None:
    """Keep an owner policy for a car, and tell the car if it is there."""
    vehicle = fleet.vehicles.get(event.vehicle_id)
    if vehicle is None:
        fleet.answer(event.request_id, Refused.VEHICLE_UNKNOWN, "no such vehicle")
        return
    vehicle.policy = event.policy
    if vehicle.epoch:
        _offer_policy(fleet, vehicle)
    fleet.answer(event.request_id)


def _offer_policy(fleet: FleetState, vehicle: VehicleRecord) -> None:
    if vehicle.policy is not None:
        fleet.effects.append(OfferPolicy(vehicle.vehicle_id, vehicle.epoch, vehicle.policy))


def vehicle_drained(fleet: FleetState, event: ev.VehicleDrained) -> None:
    """Grant a car nothing new, or again."""
    vehicle = fleet.vehicles.get(event.vehicle_id)
    if vehicle is None:
        fleet.answer(event.request_id, Refused.VEHICLE_UNKNOWN, "no such vehicle")
        return
    vehicle.is_draining = event.is_draining
    fleet.recount(vehicle)
    fleet.answer(event.request_id)


def vehicle_connected(fleet: FleetState, event: ev.VehicleConnected) -> None:
    """Begin an epoch, and bring what the car holds in line with what the fleet holds it to."""
    vehicle = fleet.vehicles.get(event.vehicle_id)
    if vehicle is None:
        fleet.effects.append(FenceVehicle(event.vehicle_id, NO_EPOCH))
        return
    if vehicle.epoch and vehicle.boot_id != event.boot_id:
        fleet.effects.append(FenceVehicle(vehicle.vehicle_id, vehicle.epoch))
    vehicle.epoch = fleet.next_epoch
    fleet.next_epoch = Epoch(fleet.next_epoch + 1)
    vehicle.boot_id = event.boot_id
    vehicle.refusals = event.refusals
    vehicle.is_silent = False
    vehicle.keeps = ()
    # A car hears only what bears its epoch, so the welcome goes before what is revoked under it.
    settings = fleet.settings
    fleet.effects.append(
        WelcomeVehicle(
            vehicle.vehicle_id,
            vehicle.epoch,
            event.boot_id,
            settings.lease_ms,
            settings.margin_ms,
            settings.plan.asking_micro_per_hour_max,
        )
    )
    _offer_policy(fleet, vehicle)
    _set_capability(fleet, vehicle, event.capability)
    _reconcile(fleet, vehicle, event.held)
    fleet.recount(vehicle)


def _reconcile(fleet: FleetState, vehicle: VehicleRecord, held: tuple[ev.HeldLease, ...]) -> None:
    """What both hold goes on; what one alone holds ends."""
    in_car = {lease.lease_id: lease.unit_ids for lease in held}
    for lease_id in list(vehicle.leases):
        if lease_id not in in_car:
            lease = fleet.leases[lease_id]
            fleet.lose_lease(lease, LeaseEnding.LEASE_UNKNOWN, lease.progress_ms)
        else:
            _drop_units_not_held(fleet, lease_id, in_car[lease_id])
    for lease_id in in_car:
        if lease_id not in vehicle.leases:
            ending = LeaseEnding.LEASE_UNKNOWN
            fleet.effects.append(RevokeLease(vehicle.vehicle_id, vehicle.epoch, lease_id, ending))


def _drop_units_not_held(
    fleet: FleetState, lease_id: LeaseId, held: tuple[WorkUnitId, ...]
) -> None:
    lease = fleet.leases[lease_id]
    gone = [unit_id for unit_id in lease.unit_ids if unit_id not in held]
    if lease.session is not None:
        if gone:
            fleet.lose_lease(lease, LeaseEnding.LEASE_UNKNOWN, lease.progress_ms)
        return
    for unit_id in gone:
        del lease.unit_ids[unit_id]
        fleet.requeue(fleet.units[unit_id])
    if not lease.unit_ids:
        fleet.close_lease(lease)


def current(fleet: FleetState, vehicle_id: VehicleId, epoch: Epoch) -> VehicleRecord | None:
    """The car, if the epoch is the one that holds."""
    vehicle = fleet.vehicles.get(vehicle_id)
    return vehicle if vehicle is not None and vehicle.epoch == epoch else None


def capability_changed(fleet: FleetState, event: ev.CapabilityChanged) -> None:
    """A car can run something else than before."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is not None:
        _set_capability(fleet, vehicle, event.capability)


def _set_capability(fleet: FleetState, vehicle: VehicleRecord, offered: Capability) -> None:
    """Index a car anew where it has changed; leases beyond its slots end."""
    if vehicle.capability == offered:
        return
    vehicle.capability = offered
    for lease_id in list(vehicle.leases)[max(0, offered.slots) :]:
        ending = LeaseEnding.CONDITIONS_CHANGED
        fleet.effects.append(RevokeLease(vehicle.vehicle_id, vehicle.epoch, lease_id, ending))
        fleet.lose_lease(fleet.leases[lease_id], ending, fleet.now_ms)
    fleet.regroup(vehicle)


def permit_changed(fleet: FleetState, event: ev.PermitChanged) -> None:
    """A guard has changed its answer; its leases end by their own receipts."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is not None:
        vehicle.refusals = event.refusals
        fleet.recount(vehicle)


def vehicle_silent(fleet: FleetState, event: ev.VehicleSilent) -> None:
    """Grant a silent car nothing; its leases stand until they end by themselves."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is None or vehicle.is_silent:
        return
    vehicle.is_silent = True
    vehicle.silent_end_ms = event.heard_ms + fleet.settings.lease_ms
    fleet.deadlines.add(vehicle.silent_end_ms, DeadlineKind.SILENCE, vehicle.vehicle_id)
    fleet.recount(vehicle)


def vehicle_heard(fleet: FleetState, event: ev.VehicleHeard) -> None:
    """A silent car speaks again before its leases have ended."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is not None and vehicle.is_silent:
        vehicle.is_silent = False
        fleet.recount(vehicle)


def vehicle_left(fleet: FleetState, event: ev.VehicleLeft) -> None:
    """An agent has stopped cleanly."""
    vehicle = current(fleet, event.vehicle_id, event.epoch)
    if vehicle is not None:
        end_epoch(fleet, vehicle, LeaseEnding.AGENT_STOPPED, fleet.now_ms)


def silence_ended(fleet: FleetState, vehicle_id: VehicleId) -> None:
    """A car has been silent for as long as its leases stand."""
    vehicle = fleet.vehicles.get(vehicle_id)
    if vehicle is None or not vehicle.is_silent or vehicle.silent_end_ms > fleet.now_ms:
        return
    heard_ms = vehicle.silent_end_ms - fleet.settings.lease_ms
    end_epoch(fleet, vehicle, LeaseEnding.LINK_SILENT, heard_ms)


def quarantine_ended(fleet: FleetState, vehicle_id: VehicleId) -> None:
    """A car may be tried again; its next failure doubles the pause."""
    vehicle = fleet.vehicles.get(vehicle_id)
    if vehicle is not None and 0 < vehicle.quarantined_until_ms <= fleet.now_ms:
        vehicle.quarantined_until_ms = 0
        fleet.quarantined.pop(vehicle_id, None)
        fleet.recount(vehicle)


def end_epoch(
    fleet: FleetState, vehicle: VehicleRecord, ending: LeaseEnding, until_ms: int
) -> None:
    """A connection is over: its leases end, whoever still speaks under it is fenced."""
    for lease_id in list(vehicle.leases):
        fleet.lose_lease(fleet.leases[lease_id], ending, until_ms)
    if vehicle.epoch:
        fleet.effects.append(FenceVehicle(vehicle.vehicle_id, vehicle.epoch))
    vehicle.epoch = NO_EPOCH
    vehicle.is_silent = False
    vehicle.keeps = ()
    fleet.recount(vehicle)
