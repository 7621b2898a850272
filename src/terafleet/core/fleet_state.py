"""The fleet's memory and the small steps that every handler takes on it."""

from collections.abc import Iterable

from terafleet.core.admission import waiting_reason
from terafleet.core.availability import observe_stay
from terafleet.core.capability import ModelNeeds, capability_class
from terafleet.core.deadlines import DeadlineKind, Deadlines
from terafleet.core.effects import AnswerRequest, FleetEffect, RecordBatch, TellLost
from terafleet.core.ids import (
    BatchId,
    Epoch,
    LeaseId,
    ModelId,
    RequestId,
    SessionId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.matchmaking import LEVELS, MatchmakingIndex, Shape, VehicleGroup
from terafleet.core.pricing import met_micro
from terafleet.core.reasons import LeaseEnding, Refused, Waiting
from terafleet.core.records import (
    NOT_READY,
    BatchRecord,
    LeaseRecord,
    SessionLease,
    UnitRecord,
    VehicleRecord,
    WarmRecord,
)
from terafleet.core.session_queue import SessionQueue
from terafleet.core.settings import FleetSettings
from terafleet.core.work import BATCH_ENDS, BatchState, UnitState


class FleetState:
    """Everything the fleet knows. Only handlers of `Fleet` change it."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.settings = FleetSettings()
        self.next_epoch = Epoch(1)
        self.next_lease_id = LeaseId(1)
        self.next_unit_id = WorkUnitId(1)
        self.models: dict[ModelId, ModelNeeds] = {}
        self.vehicles: dict[VehicleId, VehicleRecord] = {}
        self.leases: dict[LeaseId, LeaseRecord] = {}
        self.units: dict[WorkUnitId, UnitRecord] = {}
        self.batches: dict[BatchId, BatchRecord] = {}
        self.deadlines = Deadlines()
        self.index = MatchmakingIndex()
        self.group_of: dict[VehicleId, VehicleGroup] = {}
        self.counted: dict[VehicleId, tuple[bool, bool, int]] = {}
        self.quarantined: dict[VehicleId, None] = {}
        self.touched: dict[BatchId, None] = {}
        self.stalled: dict[BatchId, None] = {}
        self.sessions: dict[SessionId, LeaseId] = {}
        self.queued_sessions = SessionQueue()
        self.spare_wanted: dict[SessionId, SessionLease] = {}
        self.warm: dict[ModelId, WarmRecord] = {}
        self.warm_due: dict[ModelId, None] = {}
        self.warm_changed: dict[VehicleId, None] = {}
        self.effects: list[FleetEffect] = []

    def answer(
        self, request_id: RequestId, refused: Refused | None = None, detail: str = ""
    ) -> None:
        """Answer a question, if one was asked."""
        if request_id:
            self.effects.append(AnswerRequest(request_id, refused, detail))

    # Vehicles in the index.

    def regroup(self, vehicle: VehicleRecord) -> None:
        """A car's capability has changed, or is known for the first time."""
        self.ungroup(vehicle)
        if vehicle.capability is not None:
            group = self.index.group(capability_class(vehicle.capability))
            group.known += 1
            self.group_of[vehicle.vehicle_id] = group
            self.recount(vehicle)

    def ungroup(self, vehicle: VehicleRecord) -> None:
        """Take a car out of the index."""
        group = self.group_of.pop(vehicle.vehicle_id, None)
        if group is None:
            return
        self._leave_ready(vehicle, group)
        self._discount(vehicle, group)
        self.look_again(vehicle)
        self.index.supply_changed()
        group.known -= 1
        group.present.pop(vehicle.vehicle_id, None)
        for lease_id in vehicle.leases:
            group.batch_leases.pop(lease_id, None)

    def recount(self, vehicle: VehicleRecord) -> None:
        """A car has come, gone, or changed its mind: bring its group's counts in line."""
        group = self.group_of.get(vehicle.vehicle_id)
        if group is None:
            return
        self._discount(vehicle, group)
        is_online = vehicle.epoch != 0 and not vehicle.is_silent
        is_staying = is_online and not vehicle.refusals
        is_permitting = is_staying and not vehicle.is_draining
        slots = vehicle.capability.slots if is_permitting and vehicle.capability else 0
        self.counted[vehicle.vehicle_id] = (is_online, is_permitting, slots)
        group.online += is_online
        group.slots_online += slots
        if is_permitting:
            group.present.setdefault(vehicle.vehicle_id)
        else:
            group.present.pop(vehicle.vehicle_id, None)
        observe_stay(vehicle, is_staying, self.now_ms)
        self.look_again(vehicle)
        self.index.supply_changed()
        self.refresh(vehicle)
        self._offer_leases(vehicle, group)
        self.touched.update(self.stalled)

    def may_serve(self, vehicle: VehicleRecord) -> bool:
        """Whether nothing but its leases keeps a car from another one."""
        _, is_permitting, _ = self.counted.get(vehicle.vehicle_id, (False, False, 0))
        return is_permitting and vehicle.vehicle_id not in self.quarantined

    def _offer_leases(self, vehicle: VehicleRecord, group: VehicleGroup) -> None:
        """Let sessions take the slots of a car's batches, or keep them from it."""
        is_offered = self.may_serve(vehicle)
        for lease_id in vehicle.leases:
            if self.leases[lease_id].session is not None:
                continue
            if is_offered:
                group.batch_leases.setdefault(lease_id)
                self.index.opened[group] = None
            else:
                group.batch_leases.pop(lease_id, None)

    def _discount(self, vehicle: VehicleRecord, group: VehicleGroup) -> None:
        was_online, _, slots = self.counted.pop(vehicle.vehicle_id, (False, False, 0))
        group.online -= was_online
        group.slots_online -= slots

    def look_again(self, vehicle: VehicleRecord) -> None:
        """Whether a car may keep a model loaded is to be looked at anew."""
        if self.warm or vehicle.keeps:
            self.warm_changed[vehicle.vehicle_id] = None

    def refresh(self, vehicle: VehicleRecord) -> None:
        """Put a car where it belongs among the ready ones, or out of them."""
        level = NOT_READY
        if vehicle.is_ready() and vehicle.quarantined_until_ms <= self.now_ms:
            level = min(len(vehicle.leases), LEVELS - 1)
        if level == vehicle.ready_level:
            return
        group = self.group_of[vehicle.vehicle_id]
        self._leave_ready(vehicle, group)
        if level != NOT_READY:
            self.index.add_ready(group, vehicle.vehicle_id, level)
            vehicle.ready_level = level

    def take_ready(self, group: VehicleGroup) -> VehicleRecord | None:
        """Take the car to grant to next out of the ready ones."""
        vehicle_id = self.index.take_ready(group)
        if vehicle_id is None:
            return None
        vehicle = self.vehicles[vehicle_id]
        vehicle.ready_level = NOT_READY
        return vehicle

    def _leave_ready(self, vehicle: VehicleRecord, group: VehicleGroup) -> None:
        if vehicle.ready_level != NOT_READY:
            self.index.drop_ready(group, vehicle.vehicle_id, vehicle.ready_level)
            vehicle.ready_level = NOT_READY

    def quarantine(self, vehicle: VehicleRecord) -> None:
        """Give a car nothing for a while, the longer the more it failed in a row."""
        settings = self.settings
        excess = vehicle.failures_in_row - settings.quarantine_failures
        if excess < 0:
            return
        quarantine_ms = min(settings.quarantine_ms << min(excess, 20), settings.quarantine_ms_max)
        vehicle.quarantined_until_ms = self.now_ms + quarantine_ms
        self.quarantined[vehicle.vehicle_id] = None
        self._offer_leases(vehicle, self.group_of[vehicle.vehicle_id])
        self.look_again(vehicle)
        until_ms = vehicle.quarantined_until_ms
        self.deadlines.add(until_ms, DeadlineKind.QUARANTINE, vehicle.vehicle_id)

    def pardon(self, vehicle: VehicleRecord) -> None:
        """A car has done well, or was not to blame."""
        vehicle.failures_in_row = 0
        if vehicle.quarantined_until_ms:
            vehicle.quarantined_until_ms = 0
            self.quarantined.pop(vehicle.vehicle_id, None)
            self._offer_leases(vehicle, self.group_of[vehicle.vehicle_id])
            self.look_again(vehicle)
            self.refresh(vehicle)

    # Leases and units.

    def open_lease(self, lease: LeaseRecord) -> None:
        """A lease stands from here on."""
        self.leases[lease.lease_id] = lease
        self.deadlines.watch_lease(lease.lease_id, lease.overdue_ms)
        self.vehicles[lease.vehicle_id].leases[lease.lease_id] = None
        if lease.session is None:
            if lease.vehicle_id not in self.quarantined:
                self.group_of[lease.vehicle_id].batch_leases[lease.lease_id] = None
        else:
            self.sessions[lease.session.session_id] = lease.lease_id

    def close_lease(self, lease: LeaseRecord) -> VehicleRecord:
        """A lease is over; its slot is free."""
        del self.leases[lease.lease_id]
        self.deadlines.forget_lease(lease.lease_id, lease.overdue_ms)
        vehicle = self.vehicles[lease.vehicle_id]
        del vehicle.leases[lease.lease_id]
        if lease.session is None:
            self.group_of[lease.vehicle_id].batch_leases.pop(lease.lease_id, None)
        elif not lease.is_unwanted:
            del self.sessions[lease.session.session_id]
        self.refresh(vehicle)
        return vehicle

    def lose_lease(self, lease: LeaseRecord, reason: LeaseEnding, until_ms: int) -> VehicleRecord:
        """A lease ended with work left: its units wait again; one attempt of it was running."""
        vehicle = self.close_lease(lease)
        if lease.is_unwanted:
            return vehicle
        if lease.unit_ids:
            self.count_loss(vehicle, reason, until_ms - lease.progress_ms)
        if lease.session is not None:
            session = lease.session
            self.effects.append(
                TellLost(session.gateway_id, session.session_id, lease.lease_id, reason)
            )
            return vehicle
        for unit_id in lease.unit_ids:
            self.requeue(self.units[unit_id])
        return vehicle

    def meet(self, lease: LeaseRecord, asked_micro: int) -> int:
        """What is paid of what an owner asks under a lease, in micro-units.

        The plan's limit holds for all that is asked under the lease, by the time since its grant:
        how long it worked a car could say as it likes, and receipts may come late and together.
        """
        held_ms = self.now_ms - lease.granted_ms
        met = met_micro(self.settings.plan, lease.met_micro + asked_micro, held_ms)
        before, lease.met_micro = lease.met_micro, max(met, lease.met_micro)
        return lease.met_micro - before

    def count_loss(self, vehicle: VehicleRecord, reason: str, lost_ms: int) -> None:
        """One attempt of a car came to nothing, after so much time."""
        vehicle.attempts_lost[reason] = vehicle.attempts_lost.get(reason, 0) + 1
        vehicle.lost_ms += max(0, lost_ms)

    def requeue(self, unit: UnitRecord) -> None:
        """The unit of a lost attempt waits again, before what never ran."""
        unit.state = UnitState.WAITING
        unit.lease_id = LeaseId(0)
        self.batches[unit.batch_id].units_running -= 1
        self.index.shapes[unit.model_id].add(unit, is_requeued=True)
        self.touched[unit.batch_id] = None

    def shape_of(self, unit: UnitRecord) -> Shape:
        """The shape that a unit waits in."""
        return self.index.shapes[unit.model_id]

    # What a customer reads.

    def record_touched(self) -> None:
        """Write the batches that have changed."""
        for batch_id in self.touched:
            batch = self.batches.get(batch_id)
            if batch is not None:
                waiting = self.waiting_reason(batch)
                if waiting is None:
                    self.stalled.pop(batch_id, None)
                else:
                    self.stalled[batch_id] = None
                self.effects.append(record_of(batch, waiting))
        self.touched.clear()

    def record_now(self, batch: BatchRecord) -> None:
        """Write a batch for the last time."""
        self.effects.append(record_of(batch, None))
        self.touched.pop(batch.batch_id, None)
        self.stalled.pop(batch.batch_id, None)

    def waiting_reason(self, batch: BatchRecord) -> Waiting | None:
        """Why none of a batch's units runs, or None while some do."""
        if batch.state is not BatchState.IN_PROGRESS or batch.units_running:
            return None
        groups = self._groups_for(batch.model_ids)
        permitting = sum(group.permitting for group in groups)
        quarantined = len(self.quarantined)
        if quarantined >= permitting:
            # Only then does it matter that some of them are other cars than these.
            quarantined = sum(self._is_held_back(one, groups) for one in self.quarantined)
        return waiting_reason(sum(group.online for group in groups), permitting, quarantined)

    def _is_held_back(self, vehicle_id: VehicleId, groups: list[VehicleGroup]) -> bool:
        """Whether nothing but its quarantine keeps a car of these groups from work."""
        _, is_permitting, _ = self.counted[vehicle_id]
        return is_permitting and self.group_of[vehicle_id] in groups

    def _groups_for(self, model_ids: Iterable[ModelId]) -> list[VehicleGroup]:
        found: dict[int, VehicleGroup] = {}
        for model_id in model_ids:
            shape = self.index.shapes.get(model_id)
            if shape is not None:
                found.update((id(group), group) for group in self.index.feasible(shape))
        return list(found.values())


def record_of(batch: BatchRecord, waiting: Waiting | None) -> RecordBatch:
    """What is written of a batch."""
    ended = 0 if batch.state in BATCH_ENDS else batch.units_open
    return RecordBatch(
        batch_id=batch.batch_id,
        customer_id=batch.customer_id,
        endpoint=batch.endpoint,
        input_file_id=batch.input_file_id,
        state=batch.state,
        created_ms=batch.created_ms,
        in_progress_ms=batch.in_progress_ms,
        finalizing_ms=batch.finalizing_ms,
        ended_ms=batch.ended_ms,
        cancelling_ms=batch.cancelling_ms,
        expires_ms=batch.expires_ms,
        requests=batch.requests,
        requests_completed=batch.requests_completed,
        requests_failed=batch.requests_failed,
        units=batch.units,
        units_ended=batch.units - ended,
        waiting=waiting,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        errors=batch.errors,
        metadata=batch.metadata,
        prompt_tokens=batch.prompt_tokens,
        completion_tokens=batch.completion_tokens,
    )
