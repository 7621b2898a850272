"""What the fleet does with live sessions: a slot at once, in a queue, or a reason why not.

A session takes the slot on which its first token comes soonest: where its model is in memory, else
on disk; a free slot, else that of a batch's lease, whose units wait again.
"""

import heapq
from collections.abc import Iterator

import msgspec

from terafleet.core import events as ev
from terafleet.core.admission import admission_refusal
from terafleet.core.deadlines import DeadlineKind
from terafleet.core.effects import GrantSession, TellGranted, TellQueued, TellRefused
from terafleet.core.fleet_state import FleetState
from terafleet.core.ids import SESSION_UNIT, BatchId, LeaseId, ModelId, SessionId
from terafleet.core.matchmaking import VehicleGroup
from terafleet.core.pricing import reward_micro
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.records import LeaseRecord, SessionLease, VehicleRecord
from terafleet.core.work import AttemptResult

UNWANTED_MS = 5_000
"""How long a car may take to say what it did for a session that is over."""

NO_LEASE = LeaseId(0)


def session_wanted(fleet: FleetState, event: ev.SessionWanted) -> None:
    """Give a session its slot, let it wait for one, or say why it gets none."""
    waiting = fleet.queued_sessions.get(event.session_id)
    if waiting is not None:
        _waiting_asks_again(fleet, waiting, event)
        return
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
        event.only_spare,
    )
    known = fleet.sessions.get(event.session_id)
    if known is not None:
        lease = fleet.leases[known]
        if lease.vehicle_id not in event.excluded:
            _tell_granted(fleet, lease, session)
            return
        _unwant(fleet, lease)
    refused = _refusal(fleet, session)
    if refused is not None:
        _tell_refused(fleet, session, *refused, 0)
        return
    fleet.index.shape(fleet.models[event.model_id])
    if session.only_spare:
        # What is free at this moment may be wanted by the events behind this one.
        fleet.spare_wanted[session.session_id] = session
        return
    # What was freed by events of the same group is for those who wait.
    serve_queue(fleet)
    if not _place(fleet, session):
        _queue(fleet, session)


def _waiting_asks_again(fleet: FleetState, waiting: SessionLease, event: ev.SessionWanted) -> None:
    """It has not heard that it waits, or there are other cars that it does not want."""
    session = msgspec.structs.replace(waiting, ask=event.ask, excluded=event.excluded)
    fleet.queued_sessions.change(session)
    if session.excluded != waiting.excluded:
        fleet.index.open_all()
    _tell_queued(fleet, session, _wait_ms(fleet, session))


def session_unwanted(fleet: FleetState, event: ev.SessionUnwanted) -> None:
    """A session is over, or has left a car."""
    if event.lease_id == NO_LEASE:
        fleet.queued_sessions.leave(event.session_id)
        fleet.spare_wanted.pop(event.session_id, None)
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
    """Give the slots that have come up to the sessions that wait, the longest waiting first.

    A batch's slot may be theirs later than when they asked: its car was silent then, say.
    """
    if fleet.queued_sessions and fleet.index.opened:
        _serve(fleet)
    # Also what was passed over meanwhile: those who wait did not want it.
    fleet.index.opened.clear()


Turn = tuple[int, ModelId, SessionLease, Iterator[SessionLease]]
"""Since when it waits, for which model, the session, and those behind it."""


def _serve(fleet: FleetState) -> None:
    """Serve those who are first in the lines of their models, the longest waiting of them first.

    A slot that one of them excludes may be for somebody behind it. A slot that did not come up
    just now is for none of them, or it would have had it.
    """
    index = fleet.index
    turns = _first_turns(fleet)
    served = []
    while turns and index.still_open():
        _, model_id, session, line = turns[0]
        if _place(fleet, session):
            served.append(session.session_id)
        elif not (session.excluded and index.can_use(index.shapes[model_id], index.still_open())):
            heapq.heappop(turns)
            continue
        turn = _turn(line)
        if turn is None:
            heapq.heappop(turns)
        else:
            heapq.heapreplace(turns, turn)
    for session_id in served:
        fleet.queued_sessions.leave(session_id)


def _first_turns(fleet: FleetState) -> list[Turn]:
    """A heap of those who are first in lines where somebody may be served."""
    index, queue = fleet.index, fleet.queued_sessions
    opened = index.still_open()
    models = [one for one in queue.models() if index.can_use(index.shapes[one], opened)]
    turns = [turn for model_id in models if (turn := _turn(queue.line(model_id))) is not None]
    heapq.heapify(turns)
    return turns


def _turn(line: Iterator[SessionLease]) -> Turn | None:
    session = next(line, None)
    if session is None:
        return None
    return session.asked_ms, session.model_id, session, line


def serve_spare(fleet: FleetState) -> None:
    """Give canaries what nobody else has wanted, or nothing: they neither wait nor preempt."""
    if not fleet.spare_wanted:
        return
    wanted, fleet.spare_wanted = fleet.spare_wanted, {}
    for session in wanted.values():
        loaded, _, _ = fleet.index.feasible_tiers(fleet.index.shapes[session.model_id])
        vehicle = _free_vehicle(fleet, loaded, session)
        if vehicle is not None:
            _grant(fleet, vehicle, session, NO_LEASE)
        else:
            detail = "no free slot has the model in memory"
            _tell_refused(fleet, session, Refused.NO_SLOT_SPARE, detail, 0)


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
    fleet.queued_sessions.leave(session_id)
    wait_ms = max(1_000, _wait_ms(fleet, session))
    _tell_refused(fleet, session, Refused.NO_SLOT_FREE, "no slot became free", wait_ms)


def session_returned(
    fleet: FleetState,
    vehicle: VehicleRecord,
    lease: LeaseRecord,
    result: AttemptResult,
    asked_micro: int,
) -> None:
    """A car has told the whole answer: it is credited, and the time that it took is learnt.

    A canary's token is paid, but says little of what customers' requests take.
    """
    assert lease.session is not None
    vehicle.energy_mwh += result.energy_mwh
    vehicle.runtime_ms += result.runtime_ms
    tokens = result.prompt_tokens + result.completion_tokens
    earned_micro = reward_micro(fleet.settings.plan, result.energy_mwh, tokens)
    vehicle.reward_micro += max(earned_micro, fleet.meet(lease, asked_micro))
    if lease.session.only_spare:
        vehicle.canaries_answered += 1
    else:
        fleet.pardon(vehicle)
        vehicle.units_succeeded += 1
        fleet.index.shapes[lease.model_id].durations.learn(result.runtime_ms, tokens)
    fleet.close_lease(lease)


def _refusal(fleet: FleetState, session: SessionLease) -> tuple[Refused, str] | None:
    """Why no car of the fleet could ever serve it."""
    return admission_refusal(
        [fleet.models.get(session.model_id)],
        session.endpoint,
        [kind for kind, group in fleet.index.groups.items() if group.known],
        len(fleet.vehicles),
        len(fleet.vehicles) - len(fleet.group_of),
    )


def _place(fleet: FleetState, session: SessionLease) -> bool:
    """Grant it the slot on which its first token is likely to come soonest, if there is any.

    To load a model takes seconds to a minute, to preempt a batch's lease milliseconds.
    """
    shape = fleet.index.shapes[session.model_id]
    for groups in fleet.index.feasible_tiers(shape):
        vehicle = _free_vehicle(fleet, groups, session)
        replaces = NO_LEASE
        if vehicle is None:
            found = _lease_to_preempt(fleet, groups, session)
            if found is None:
                continue
            replaces = found.lease_id
            vehicle = fleet.lose_lease(found, LeaseEnding.PREEMPTED, fleet.now_ms)
        _grant(fleet, vehicle, session, replaces)
        return True
    return False


def _free_vehicle(
    fleet: FleetState, groups: list[VehicleGroup], session: SessionLease
) -> VehicleRecord | None:
    """A ready car of the best group that has one which the session does not exclude."""
    for group in groups:
        passed_over: list[VehicleRecord] = []
        found = fleet.take_ready(group) if group.ready_count else None
        while found is not None and found.vehicle_id in session.excluded:
            passed_over.append(found)
            found = fleet.take_ready(group)
        for vehicle in reversed(passed_over):
            fleet.refresh(vehicle)
        if found is not None:
            return found
    return None


def _lease_to_preempt(
    fleet: FleetState, groups: list[VehicleGroup], session: SessionLease
) -> LeaseRecord | None:
    """The batch's lease that loses least: the latest one on the best car."""
    for group in groups:
        for lease_id in reversed(group.batch_leases):
            lease = fleet.leases[lease_id]
            if lease.vehicle_id not in session.excluded:
                return lease
    return None


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
    fleet.queued_sessions.join(session)
    end_ms = session.asked_ms + settings.session_wait_ms
    fleet.deadlines.add(end_ms, DeadlineKind.SESSION_QUEUE, session.session_id)
    _tell_queued(fleet, session, wait_ms)


def _wait_ms(fleet: FleetState, session: SessionLease) -> int:
    """About how long until a slot is free for it, if sessions take what they usually do."""
    shape = fleet.index.shapes[session.model_id]
    fleet.index.learn_supply(shape)
    ahead = fleet.queued_sessions.place_of(session)
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
