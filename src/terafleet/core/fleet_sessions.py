"""What the fleet does with live sessions: a slot at once, in a queue, or a reason why not.

A session takes a free slot where its model is in memory, else where it can be loaded soonest,
else the slot of a batch's lease, whose units wait again.
"""

from collections.abc import Iterator

from terafleet.core import events as ev
from terafleet.core.admission import refuse_batch
from terafleet.core.deadlines import DeadlineKind
from terafleet.core.effects import GrantSession, TellGranted, TellQueued, TellRefused
from terafleet.core.fleet_state import FleetState
from terafleet.core.ids import (
    SESSION_UNIT,
    BatchId,
    LeaseId,
    ModelId,
    SessionId,
    VehicleId,
)
from terafleet.core.matchmaking import Shape, VehicleGroup
from terafleet.core.pricing import reward_micro
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.records import LeaseRecord, SessionLease, VehicleRecord
from terafleet.core.work import AttemptResult

LOOK_MAX = 32
"""How many cars or leases of a group are looked at for one that is not excluded."""

UNWANTED_MS = 5_000
"""How long a car may take to say what it did for a session that is over."""

NO_LEASE = LeaseId(0)


def session_wanted(fleet: FleetState, event: ev.SessionWanted) -> None:
    """Give a session its slot, let it wait for one, or say why it gets none."""
    waiting = fleet.queued_sessions.get(event.session_id)
    session = SessionLease(
        event.session_id,
        event.gateway_id,
        event.ask,
        event.customer_id,
        event.model_id,
        event.endpoint,
        max(1, event.tokens),
        event.excluded,
        fleet.now_ms if waiting is None else waiting.asked_ms,
    )
    known = fleet.sessions.get(event.session_id)
    if known is not None:
        lease = fleet.leases[known]
        if lease.vehicle_id not in event.excluded:
            _tell_granted(fleet, lease, session)
            return
        _unwant(fleet, lease)
    if waiting is not None:
        # It has not heard that it waits; it keeps its place.
        fleet.queued_sessions[event.session_id] = session
        _tell_queued(fleet, session, _wait_ms(fleet, session))
        return
    refused = _refusal(fleet, session)
    if refused is not None:
        _tell_refused(fleet, session, *refused, 0)
        return
    fleet.index.shape(fleet.models[event.model_id])
    # What was freed by events of the same group is for those who wait.
    serve_queue(fleet)
    if not _place(fleet, session):
        _queue(fleet, session)


def session_unwanted(fleet: FleetState, event: ev.SessionUnwanted) -> None:
    """A session is over, or has left a car."""
    if event.lease_id == NO_LEASE:
        fleet.queued_sessions.pop(event.session_id, None)
        granted = fleet.sessions.get(event.session_id)
        if granted is not None:
            # The gateway has not heard of it, and may never.
            _unwant(fleet, fleet.leases[granted])
        return
    lease = fleet.leases.get(event.lease_id)
    if lease is None or lease.session is None or lease.session.session_id != event.session_id:
        return
    if not lease.is_unwanted:
        _unwant(fleet, lease)


def _unwant(fleet: FleetState, lease: LeaseRecord) -> None:
    """The gateway has told the car itself: the car will say what it did, or else never."""
    assert lease.session is not None
    del fleet.sessions[lease.session.session_id]
    lease.is_unwanted = True
    fleet.deadlines.forget_lease(lease.lease_id, lease.overdue_ms)
    lease.overdue_ms = fleet.now_ms + UNWANTED_MS
    fleet.deadlines.watch_lease(lease.lease_id, lease.overdue_ms)


def serve_queue(fleet: FleetState) -> None:
    """Give slots to the sessions that wait, the longest waiting first.

    A batch's slot may be theirs later than when they asked: its car was silent then, say.
    """
    if not fleet.queued_sessions or not _has_slots(fleet):
        return
    full: set[tuple[ModelId, tuple[VehicleId, ...]]] = set()
    for session in list(fleet.queued_sessions.values()):
        model_id, excluded = session.model_id, session.excluded
        if (model_id, excluded) in full or (model_id, ()) in full:
            continue
        if _place(fleet, session):
            del fleet.queued_sessions[session.session_id]
        else:
            full.add((model_id, excluded))


def _has_slots(fleet: FleetState) -> bool:
    """Whether there is any slot in the fleet that a session could get."""
    index = fleet.index
    return bool(index.ready) or any(group.batch_leases for group in index.groups.values())


def queue_ended(fleet: FleetState, session_id: SessionId) -> None:
    """A session has waited long enough."""
    session = fleet.queued_sessions.get(session_id)
    if session is None:
        return
    end_ms = session.asked_ms + fleet.settings.session_wait_ms
    if fleet.now_ms < end_ms:
        # It has asked anew, or the setting has changed.
        fleet.deadlines.add(end_ms, DeadlineKind.SESSION_QUEUE, session_id)
        return
    del fleet.queued_sessions[session_id]
    wait_ms = max(1_000, _wait_ms(fleet, session))
    _tell_refused(fleet, session, Refused.NO_SLOT_FREE, "no slot became free", wait_ms)


def session_returned(
    fleet: FleetState, vehicle: VehicleRecord, lease: LeaseRecord, result: AttemptResult
) -> None:
    """A car has told the whole answer: it is credited, and the time that it took is learnt."""
    assert lease.session is not None
    fleet.pardon(vehicle)
    vehicle.units_succeeded += 1
    vehicle.energy_mwh += result.energy_mwh
    vehicle.runtime_ms += result.runtime_ms
    tokens = result.prompt_tokens + result.completion_tokens
    vehicle.reward_micro += reward_micro(fleet.settings.plan, result.energy_mwh, tokens)
    fleet.index.shapes[lease.model_id].durations.learn(result.runtime_ms, tokens)
    fleet.close_lease(lease)


def _refusal(fleet: FleetState, session: SessionLease) -> tuple[Refused, str] | None:
    """Why no car of the fleet could ever serve it."""
    return refuse_batch(
        [fleet.models.get(session.model_id)],
        session.endpoint,
        [kind for kind, group in fleet.index.groups.items() if group.known],
        len(fleet.vehicles),
        len(fleet.vehicles) - len(fleet.group_of),
    )


def _place(fleet: FleetState, session: SessionLease) -> bool:
    shape = fleet.index.shapes[session.model_id]
    vehicle = _ready_vehicle(fleet, shape, session)
    replaces = NO_LEASE
    if vehicle is None:
        found = _lease_to_preempt(fleet, shape, session)
        if found is None:
            return False
        replaces = found.lease_id
        vehicle = fleet.lose_lease(found, LeaseEnding.PREEMPTED, fleet.now_ms)
    _grant(fleet, vehicle, session, replaces)
    return True


def _ready_vehicle(fleet: FleetState, shape: Shape, session: SessionLease) -> VehicleRecord | None:
    for group in fleet.index.feasible_ready(shape):
        passed_over: list[VehicleRecord] = []
        found = None
        while found is None and len(passed_over) < LOOK_MAX:
            vehicle = fleet.take_ready(group)
            if vehicle is None:
                break
            if vehicle.vehicle_id in session.excluded:
                passed_over.append(vehicle)
            else:
                found = vehicle
        for vehicle in reversed(passed_over):
            fleet.refresh(vehicle)
        if found is not None:
            return found
    return None


def _lease_to_preempt(fleet: FleetState, shape: Shape, session: SessionLease) -> LeaseRecord | None:
    """The batch's lease that loses least: the latest one on the best car."""
    for group in fleet.index.feasible(shape):
        for lease in _latest_leases(fleet, group):
            vehicle = fleet.vehicles[lease.vehicle_id]
            if vehicle.vehicle_id not in session.excluded and _may_serve(fleet, vehicle):
                return lease
    return None


def _may_serve(fleet: FleetState, vehicle: VehicleRecord) -> bool:
    """Whether nothing but its leases keeps a car from another one."""
    is_there = not vehicle.is_silent and not vehicle.refusals and not vehicle.is_draining
    return is_there and vehicle.vehicle_id not in fleet.quarantined


def _latest_leases(fleet: FleetState, group: VehicleGroup) -> Iterator[LeaseRecord]:
    for looked, lease_id in enumerate(reversed(group.batch_leases)):
        if looked >= LOOK_MAX:
            return
        yield fleet.leases[lease_id]


def _grant(
    fleet: FleetState, vehicle: VehicleRecord, session: SessionLease, replaces: LeaseId
) -> None:
    lease_id = fleet.next_lease_id
    fleet.next_lease_id = LeaseId(lease_id + 1)
    model_id = session.model_id
    overdue_ms = fleet.now_ms + _duration_ms_max(fleet, vehicle, session)
    lease = LeaseRecord(
        lease_id,
        vehicle.vehicle_id,
        BatchId(""),
        model_id,
        {SESSION_UNIT: None},
        fleet.now_ms,
        fleet.now_ms,
        overdue_ms,
        session,
    )
    fleet.open_lease(lease)
    fleet.refresh(vehicle)
    fleet.effects.append(
        GrantSession(
            vehicle.vehicle_id,
            vehicle.epoch,
            lease_id,
            model_id,
            session.endpoint,
            session.session_id,
            replaces,
        )
    )
    _tell_granted(fleet, lease, session)


def _duration_ms_max(fleet: FleetState, vehicle: VehicleRecord, session: SessionLease) -> int:
    """How long an ordinary session of this kind takes at most; see `predictions`."""
    settings = fleet.settings
    durations = fleet.index.shapes[session.model_id].durations
    longest_ms = max(settings.session_ms_min, durations.longest_ms(session.tokens))
    loaded = vehicle.capability.loaded if vehicle.capability else ()
    return longest_ms if session.model_id in loaded else longest_ms + settings.session_load_ms


def _tell_granted(fleet: FleetState, lease: LeaseRecord, session: SessionLease) -> None:
    fleet.effects.append(
        TellGranted(
            session.gateway_id,
            session.session_id,
            session.ask,
            lease.lease_id,
            lease.vehicle_id,
            fleet.vehicles[lease.vehicle_id].epoch,
            lease.overdue_ms - lease.granted_ms,
        )
    )


def _queue(fleet: FleetState, session: SessionLease) -> None:
    """Let it wait, if a slot is likely to become free in time."""
    shape = fleet.index.shapes[session.model_id]
    settings = fleet.settings
    permitting = sum(group.permitting for group in fleet.index.feasible(shape))
    if not permitting:
        detail = "no car that could serve it permits at this moment"
        wait_ms = settings.session_wait_ms
        _tell_refused(fleet, session, Refused.NO_VEHICLE_PERMITS, detail, wait_ms)
        return
    wait_ms = _wait_ms(fleet, session)
    if wait_ms > settings.session_wait_ms:
        detail = f"all slots are busy, for about {wait_ms // 1_000} s"
        _tell_refused(fleet, session, Refused.NO_SLOT_FREE, detail, wait_ms)
        return
    fleet.queued_sessions[session.session_id] = session
    end_ms = session.asked_ms + settings.session_wait_ms
    fleet.deadlines.add(end_ms, DeadlineKind.SESSION_QUEUE, session.session_id)
    _tell_queued(fleet, session, wait_ms)


def _wait_ms(fleet: FleetState, session: SessionLease) -> int:
    """About how long until a slot is free for it, if sessions take what they usually do."""
    shape = fleet.index.shapes[session.model_id]
    fleet.index.learn_supply(shape)
    ahead = 1
    for one in fleet.queued_sessions.values():
        if one.session_id == session.session_id:
            break
        ahead += one.model_id == session.model_id
    usual_ms = shape.durations.usual_ms(session.tokens)
    return usual_ms * ahead // max(1, shape.slots_online)


def _tell_queued(fleet: FleetState, session: SessionLease, wait_ms: int) -> None:
    end_ms = session.asked_ms + fleet.settings.session_wait_ms
    fleet.effects.append(
        TellQueued(
            session.gateway_id,
            session.session_id,
            session.ask,
            wait_ms,
            max(0, end_ms - fleet.now_ms),
        )
    )


def _tell_refused(
    fleet: FleetState, session: SessionLease, refused: Refused, detail: str, retry_after_ms: int
) -> None:
    fleet.effects.append(
        TellRefused(
            session.gateway_id,
            session.session_id,
            session.ask,
            refused,
            detail,
            retry_after_ms,
        )
    )
