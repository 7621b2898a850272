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
from terafleet.core.ids import SESSION_UNIT, BatchId, LeaseId, SessionId
from terafleet.core.matchmaking import Shape, VehicleGroup
from terafleet.core.pricing import reward_micro
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.records import LeaseRecord, SessionLease, VehicleRecord
from terafleet.core.work import AttemptResult

LOOK_MAX = 32
"""How many cars or leases of a group are looked at for one that is not excluded."""

NO_LEASE = LeaseId(0)


def session_wanted(fleet: FleetState, event: ev.SessionWanted) -> None:
    """Give a session its slot, let it wait for one, or say why it gets none."""
    session = SessionLease(
        event.session_id,
        event.gateway_id,
        event.ask,
        event.customer_id,
        event.model_id,
        event.endpoint,
        max(1, event.tokens),
        event.excluded,
        fleet.now_ms,
    )
    known = fleet.sessions.get(event.session_id)
    if known is not None:
        lease = fleet.leases[known]
        if lease.vehicle_id not in event.excluded:
            _tell_granted(fleet, lease, session)
            return
        # The gateway has left that car, and its word to the car may be on its way.
        fleet.close_lease(lease)
    fleet.queued_sessions.pop(event.session_id, None)
    refused = _refusal(fleet, session)
    if refused is not None:
        _tell_refused(fleet, session, *refused, 0)
    elif not _place(fleet, session):
        _queue(fleet, session)


def session_unwanted(fleet: FleetState, event: ev.SessionUnwanted) -> None:
    """A session is over, or has left a car."""
    if event.lease_id == NO_LEASE:
        fleet.queued_sessions.pop(event.session_id, None)
        return
    lease = fleet.leases.get(event.lease_id)
    if lease is None or lease.session is None or lease.session.session_id != event.session_id:
        return
    # The gateway has told the car itself, and faster.
    fleet.close_lease(lease)


def serve_queue(fleet: FleetState) -> None:
    """Give free slots to the sessions that wait, the longest waiting first."""
    if not fleet.queued_sessions or not fleet.index.ready:
        return
    full: set[str] = set()
    for session in list(fleet.queued_sessions.values()):
        if session.model_id in full:
            continue
        if _place(fleet, session):
            del fleet.queued_sessions[session.session_id]
        else:
            full.add(session.model_id)


def queue_ended(fleet: FleetState, session_id: SessionId) -> None:
    """A session has waited long enough."""
    session = fleet.queued_sessions.get(session_id)
    if session is not None and fleet.now_ms >= session.asked_ms + fleet.settings.session_wait_ms:
        del fleet.queued_sessions[session_id]
        shape = fleet.index.shapes[session.model_id]
        wait_ms = max(1_000, _wait_ms(fleet, shape, session))
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
    unknown = sum(1 for vehicle in fleet.vehicles.values() if vehicle.capability is None)
    return refuse_batch(
        [fleet.models.get(session.model_id)],
        session.endpoint,
        [kind for kind, group in fleet.index.groups.items() if group.known],
        len(fleet.vehicles),
        unknown,
    )


def _place(fleet: FleetState, session: SessionLease) -> bool:
    shape = fleet.index.shape(fleet.models[session.model_id])
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
            is_there = not vehicle.is_silent and not vehicle.refusals and not vehicle.is_draining
            if is_there and vehicle.vehicle_id not in session.excluded:
                return lease
    return None


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
    wait_ms = _wait_ms(fleet, shape, session)
    if wait_ms > settings.session_wait_ms:
        detail = f"all slots are busy, for about {wait_ms // 1_000} s"
        _tell_refused(fleet, session, Refused.NO_SLOT_FREE, detail, wait_ms)
        return
    fleet.queued_sessions[session.session_id] = session
    end_ms = session.asked_ms + settings.session_wait_ms
    fleet.deadlines.add(end_ms, DeadlineKind.SESSION_QUEUE, session.session_id)
    fleet.effects.append(
        TellQueued(
            session.gateway_id,
            session.session_id,
            session.ask,
            wait_ms,
            settings.session_wait_ms,
        )
    )


def _wait_ms(fleet: FleetState, shape: Shape, session: SessionLease) -> int:
    """About how long until a slot is free for one more, if sessions take what they usually do."""
    fleet.index.learn_supply(shape)
    ahead = 1 + sum(one.model_id == session.model_id for one in fleet.queued_sessions.values())
    usual_ms = shape.durations.usual_ms(session.tokens)
    return usual_ms * ahead // max(1, shape.slots_online)


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
