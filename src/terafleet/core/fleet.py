"""The fleet's machine: one handler for each event, one entry, and what must always hold."""

from collections.abc import Callable
from typing import Any

from terafleet.core import events as ev
from terafleet.core import fleet_batches as batches
from terafleet.core import fleet_leases as leases
from terafleet.core import fleet_sessions as sessions
from terafleet.core import fleet_vehicles as vehicles
from terafleet.core import fleet_warm as warm
from terafleet.core.deadlines import Deadline, DeadlineKind
from terafleet.core.effects import FleetEffect
from terafleet.core.fleet_image import image_of, restore
from terafleet.core.fleet_laws import check
from terafleet.core.fleet_state import FleetState
from terafleet.core.ids import BatchId, SessionId, VehicleId


class Fleet:
    """The machine that decides over all vehicles and all work of a shard.

    See `core.machine.Machine` for what it keeps to. `state` may be read between two events.
    """

    def __init__(self, image: bytes | None = None) -> None:
        self.state = restore(image) if image else FleetState()

    def handle(self, *events: ev.FleetEvent) -> list[FleetEffect]:
        """Take facts in their order; then pair what waits with who is ready, once for all."""
        state = self.state
        for event in events:
            state.now_ms = max(state.now_ms, event.at_ms)
            _HANDLERS[type(event)](state, event)
        warm.keep_warm(state)
        sessions.serve_queue(state)
        leases.match(state)
        sessions.serve_spare(state)
        state.record_touched()
        effects, state.effects = state.effects, []
        return effects

    def next_deadline_ms(self) -> int | None:
        """When time alone changes something."""
        return self.state.deadlines.next_ms()

    def snapshot(self) -> bytes:
        """The whole state; a machine made from it goes on exactly as this one."""
        return image_of(self.state)

    def check_invariants(self) -> None:
        """Assert what must always hold."""
        check(self.state)


def _time_advanced(state: FleetState, event: ev.TimeAdvanced) -> None:
    for deadline in state.deadlines.due(event.at_ms):
        _look_at(state, deadline)
    for lease_id in state.deadlines.leases_due(event.at_ms):
        leases.lease_overdue(state, lease_id)


def _look_at(state: FleetState, deadline: Deadline) -> None:
    match deadline.kind:
        case DeadlineKind.SILENCE:
            vehicles.silence_ended(state, VehicleId(deadline.about))
        case DeadlineKind.QUARANTINE:
            vehicles.quarantine_ended(state, VehicleId(deadline.about))
        case DeadlineKind.BATCH_WINDOW:
            batches.window_ended(state, BatchId(deadline.about))
        case DeadlineKind.GATEWAY:
            batches.gateway_overdue(state, BatchId(deadline.about))
        case DeadlineKind.SESSION_QUEUE:
            sessions.queue_ended(state, SessionId(deadline.about))
        case DeadlineKind.WARM:
            warm.deadline_came(state, deadline.about)


_HANDLERS: dict[type, Callable[[FleetState, Any], None]] = {
    ev.TimeAdvanced: _time_advanced,
    ev.ShardStarted: vehicles.shard_started,
    ev.VehicleEnrolled: vehicles.vehicle_enrolled,
    ev.VehicleRemoved: vehicles.vehicle_removed,
    ev.VehicleConnected: vehicles.vehicle_connected,
    ev.CapabilityChanged: vehicles.capability_changed,
    ev.PermitChanged: vehicles.permit_changed,
    ev.VehicleSilent: vehicles.vehicle_silent,
    ev.VehicleHeard: vehicles.vehicle_heard,
    ev.VehicleLeft: vehicles.vehicle_left,
    ev.VehiclePolicySet: vehicles.policy_set,
    ev.VehicleDrained: vehicles.vehicle_drained,
    ev.ModelAdded: batches.model_added,
    ev.ModelRemoved: batches.model_removed,
    ev.ModelWarmed: warm.model_warmed,
    ev.LoadFailed: warm.load_failed,
    ev.BatchCreated: batches.batch_created,
    ev.BatchSubmitted: batches.batch_submitted,
    ev.BatchRejected: batches.batch_rejected,
    ev.BatchCancelled: batches.batch_cancelled,
    ev.BatchAssembled: batches.batch_assembled,
    ev.SessionWanted: sessions.session_wanted,
    ev.SessionUnwanted: sessions.session_unwanted,
    ev.AttemptsReturned: leases.attempts_returned,
    ev.AttemptFailed: leases.attempt_failed,
    ev.LeaseReleased: leases.lease_released,
}
