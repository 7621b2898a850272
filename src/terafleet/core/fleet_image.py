"""The fleet's state as bytes, and back.

Orders that decide (queues, ready cars) are kept as they are: a restored machine must decide
exactly as the one it was taken from, or the journal behind the snapshot would not fit it.
"""

import msgspec

from terafleet.core.capability import CapabilityClass, ModelNeeds
from terafleet.core.deadlines import Deadlines, DeadlinesImage
from terafleet.core.fleet_state import FleetState
from terafleet.core.ids import BatchId, Epoch, LeaseId, VehicleId, WorkUnitId
from terafleet.core.predictions import Durations
from terafleet.core.records import (
    BatchRecord,
    LeaseRecord,
    SessionLease,
    UnitRecord,
    VehicleRecord,
    WarmRecord,
)
from terafleet.core.session_queue import SessionQueue
from terafleet.core.settings import FleetSettings


class _ShapeImage(msgspec.Struct, frozen=True):
    needs: ModelNeeds
    requeued: list[WorkUnitId]
    waiting: list[WorkUnitId]
    tokens_per_s: int
    durations: list[int]


class _GroupImage(msgspec.Struct, frozen=True):
    kind: CapabilityClass
    ready: list[list[VehicleId]]
    batch_leases: list[LeaseId]
    present: list[VehicleId]


class _FleetImage(msgspec.Struct, frozen=True):
    now_ms: int
    settings: FleetSettings
    next_epoch: Epoch
    next_lease_id: LeaseId
    next_unit_id: WorkUnitId
    models: list[ModelNeeds]
    vehicles: list[VehicleRecord]
    leases: list[LeaseRecord]
    units: list[UnitRecord]
    batches: list[BatchRecord]
    deadlines: DeadlinesImage
    shapes: list[_ShapeImage]
    groups: list[_GroupImage]
    quarantined: list[VehicleId]
    stalled: list[BatchId]
    queued_sessions: list[SessionLease]
    warm: list[WarmRecord]


def image_of(state: FleetState) -> bytes:
    """The whole state as bytes."""
    shapes = []
    for shape in state.index.shapes.values():
        requeued, waiting = shape.in_order()
        shapes.append(
            _ShapeImage(
                shape.needs,
                [unit.unit_id for unit in requeued],
                [unit.unit_id for unit in waiting],
                shape.tokens_per_s,
                shape.durations.samples(),
            )
        )
    image = _FleetImage(
        now_ms=state.now_ms,
        settings=state.settings,
        next_epoch=state.next_epoch,
        next_lease_id=state.next_lease_id,
        next_unit_id=state.next_unit_id,
        models=list(state.models.values()),
        vehicles=list(state.vehicles.values()),
        leases=list(state.leases.values()),
        units=list(state.units.values()),
        batches=list(state.batches.values()),
        deadlines=state.deadlines.image(),
        shapes=shapes,
        groups=[
            _GroupImage(
                group.kind,
                [list(level) for level in group.ready],
                list(group.batch_leases),
                list(group.present),
            )
            for group in state.index.groups.values()
        ],
        quarantined=list(state.quarantined),
        stalled=list(state.stalled),
        queued_sessions=list(state.queued_sessions),
        warm=list(state.warm.values()),
    )
    return msgspec.msgpack.encode(image)


def restore(body: bytes) -> FleetState:
    """The state that an image was taken of. Bytes that are no image raise `DecodeError`."""
    image = msgspec.msgpack.decode(body, type=_FleetImage)
    state = FleetState()
    state.now_ms, state.settings = image.now_ms, image.settings
    state.next_epoch = image.next_epoch
    state.next_lease_id = image.next_lease_id
    state.next_unit_id = image.next_unit_id
    state.models = {needs.model_id: needs for needs in image.models}
    state.leases = {lease.lease_id: lease for lease in image.leases}
    state.units = {unit.unit_id: unit for unit in image.units}
    state.batches = {batch.batch_id: batch for batch in image.batches}
    state.deadlines = Deadlines(image.deadlines)
    _restore_shapes(state, image)
    _restore_vehicles(state, image)
    state.quarantined = dict.fromkeys(image.quarantined)
    state.stalled = dict.fromkeys(image.stalled)
    state.queued_sessions = SessionQueue(image.queued_sessions)
    state.sessions = {
        lease.session.session_id: lease.lease_id
        for lease in image.leases
        if lease.session is not None and not lease.is_unwanted
    }
    return state


def _restore_shapes(state: FleetState, image: _FleetImage) -> None:
    for part in image.shapes:
        shape = state.index.shape(part.needs)
        shape.tokens_per_s = part.tokens_per_s
        shape.durations = Durations(part.durations)
        for unit_id in part.requeued:
            shape.add(state.units[unit_id], is_requeued=True)
        for unit_id in part.waiting:
            shape.add(state.units[unit_id], is_requeued=False)


def _restore_vehicles(state: FleetState, image: _FleetImage) -> None:
    """Index the cars anew, then put the ready ones into the order that they had."""
    for part in image.groups:
        state.index.group(part.kind)
    state.vehicles = {vehicle.vehicle_id: vehicle for vehicle in image.vehicles}
    levels = {vehicle.vehicle_id: vehicle.ready_level for vehicle in image.vehicles}
    for vehicle in image.vehicles:
        vehicle.ready_level = -1
        state.regroup(vehicle)
    # Not every car is where a fresh look would put it: a quarantine may be over, and not yet ended.
    for part in image.groups:
        group = state.index.groups[part.kind]
        state.index.put_ready(group, part.ready)
        group.batch_leases = dict.fromkeys(part.batch_leases)
        group.present = dict.fromkeys(part.present)
    for vehicle in image.vehicles:
        vehicle.ready_level = levels[vehicle.vehicle_id]
    state.touched.clear()
    state.index.opened.clear()
    state.warm_changed.clear()
    state.warm = {record.model_id: record for record in image.warm}
