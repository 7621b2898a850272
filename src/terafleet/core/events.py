"""Everything that can happen to the fleet; facts in the past tense, each with its time.

`at_ms` is the shell's clock: milliseconds since 1970 that never run backwards.
"""

from typing import ClassVar

import msgspec

from terafleet.core.capability import Capability, ModelNeeds
from terafleet.core.ids import (
    BatchId,
    CustomerId,
    Epoch,
    GatewayId,
    LeaseId,
    ModelId,
    RequestId,
    SessionId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.settings import FleetSettings
from terafleet.core.work import AttemptResult

SCHEMA = 4
"""The number of this vocabulary; a journal of another number is not replayed."""


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """What all events have. For an urgent one somebody waits live: it waits for no disk."""

    at_ms: int
    is_urgent: ClassVar[bool] = False


class TimeAdvanced(Event, frozen=True):
    """A deadline of the machine has come."""


class ShardStarted(Event, frozen=True):
    """The control plane is up, with these settings; every vehicle counts as heard now."""

    settings: FleetSettings


class VehicleEnrolled(Event, frozen=True):
    """A car has joined the fleet for the first time."""

    vehicle_id: VehicleId
    name: str
    request_id: RequestId


class VehicleRemoved(Event, frozen=True):
    """The operator or the owner has taken a car out of the fleet for good."""

    vehicle_id: VehicleId
    request_id: RequestId


class HeldLease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A lease that a connecting agent still holds, and its attempts not yet handed in."""

    lease_id: LeaseId
    unit_ids: tuple[WorkUnitId, ...]


class VehicleConnected(Event, frozen=True):
    """An agent has said hello; a new epoch begins. `boot_id` names the agent's process."""

    vehicle_id: VehicleId
    boot_id: str
    capability: Capability
    refusals: tuple[Refusal, ...]
    held: tuple[HeldLease, ...]


class CapabilityChanged(Event, frozen=True):
    """A car can run something else than before (a model has come to its disk, say)."""

    vehicle_id: VehicleId
    epoch: Epoch
    capability: Capability


class PermitChanged(Event, frozen=True):
    """A guard has changed its answer; no refusals is a permit."""

    vehicle_id: VehicleId
    epoch: Epoch
    refusals: tuple[Refusal, ...]


class VehicleSilent(Event, frozen=True):
    """Nothing has come from an epoch since `heard_ms` for longer than it may be silent."""

    vehicle_id: VehicleId
    epoch: Epoch
    heard_ms: int


class VehicleHeard(Event, frozen=True):
    """A silent epoch speaks again."""

    vehicle_id: VehicleId
    epoch: Epoch


class VehicleLeft(Event, frozen=True):
    """An agent has said goodbye: it stopped cleanly and holds nothing."""

    vehicle_id: VehicleId
    epoch: Epoch


class VehiclePolicySet(Event, frozen=True):
    """The operator sets an owner policy for a car, as JSON; empty takes it back.

    The car lays its owner's own file over it.
    """

    vehicle_id: VehicleId
    policy: bytes
    request_id: RequestId


class VehicleDrained(Event, frozen=True):
    """The operator wants nothing new granted to a car, or (`is_draining` false) wants it back."""

    vehicle_id: VehicleId
    is_draining: bool
    request_id: RequestId


class ModelAdded(Event, frozen=True):
    """The catalogue has a model; adding it again changes nothing."""

    needs: ModelNeeds
    request_id: RequestId


class ModelRemoved(Event, frozen=True):
    """The catalogue has a model no longer; accepted work on it goes on."""

    model_id: ModelId
    request_id: RequestId


class ModelWarmed(Event, frozen=True):
    """The operator wants a model to stay in memory in so many slots of the fleet; 0 ends that."""

    model_id: ModelId
    slots: int
    request_id: RequestId


class LoadFailed(Event, frozen=True):
    """A car could not fetch or load a model that it was asked to keep."""

    vehicle_id: VehicleId
    epoch: Epoch
    model_id: ModelId
    failure: Failure
    detail: str


class BatchCreated(Event, frozen=True):
    """A customer wants a batch; its lines have been looked at, its units not yet cut."""

    batch_id: BatchId
    customer_id: CustomerId
    endpoint: str
    model_ids: tuple[ModelId, ...]
    requests: int
    window_ms: int
    input_file_id: str
    metadata: bytes
    request_id: RequestId


class UnitSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A cut work unit: `requests` lines, `cost` in predicted tokens, and where its input is."""

    model_id: ModelId
    requests: int
    cost: int
    offset: int
    length: int
    digest: bytes


class BatchSubmitted(Event, frozen=True):
    """A batch's units are cut and stored; `requests_failed` lines could not be taken."""

    batch_id: BatchId
    units: tuple[UnitSpec, ...]
    requests_failed: int
    request_id: RequestId


class BatchRejected(Event, frozen=True):
    """A batch's file has turned out not to be usable; `errors` is the API's own list, as JSON."""

    batch_id: BatchId
    errors: bytes
    request_id: RequestId


class BatchCancelled(Event, frozen=True):
    """The customer wants no more of a batch."""

    batch_id: BatchId
    customer_id: CustomerId
    request_id: RequestId


class BatchAssembled(Event, frozen=True):
    """The gateway has written a batch's files."""

    batch_id: BatchId
    output_file_id: str
    error_file_id: str
    request_id: RequestId


class SessionWanted(Event, frozen=True):
    """A gateway wants a slot for a live session, or asks again; `tokens` is the predicted work.

    Not on a car that is `excluded`: the session was there and had to leave. With `only_spare` it
    wants a free slot where its model is in memory and which nobody else wants, or none.
    """

    session_id: SessionId
    gateway_id: GatewayId
    ask: int
    customer_id: CustomerId
    model_id: ModelId
    endpoint: str
    tokens: int
    excluded: tuple[VehicleId, ...]
    only_spare: bool = False
    is_urgent: ClassVar[bool] = True


class SessionUnwanted(Event, frozen=True):
    """A gateway wants a session's lease no more, or (`lease_id` 0) waits for none."""

    session_id: SessionId
    lease_id: LeaseId


class AttemptsReturned(Event, frozen=True):
    """A car handed in outputs of a lease, at least one, with one receipt.

    The receipt is named by the first of them (`ids.ReceiptId`). They lie stored together under
    `ids.output_name`, or a single large one in the car's own folder
    (`ids.vehicle_outputs_folder`). `asked_micro` is the least that the owner asks for them.
    """

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    results: tuple[AttemptResult, ...]
    asked_micro: int = 0


class AttemptFailed(Event, frozen=True):
    """A car tried a unit and could not do it; `asked_micro` is what the attempt took from it."""

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    unit_id: WorkUnitId
    failure: Failure
    detail: str
    energy_mwh: int
    asked_micro: int = 0


class LeaseReleased(Event, frozen=True):
    """A car gave a lease back with work left.

    `energy_mwh` and `asked_micro` went into what is lost.
    """

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    ending: LeaseEnding
    detail: str
    energy_mwh: int
    asked_micro: int = 0


FleetEvent = (
    TimeAdvanced
    | ShardStarted
    | VehicleEnrolled
    | VehicleRemoved
    | VehicleConnected
    | CapabilityChanged
    | PermitChanged
    | VehicleSilent
    | VehicleHeard
    | VehicleLeft
    | VehiclePolicySet
    | VehicleDrained
    | ModelAdded
    | ModelRemoved
    | ModelWarmed
    | LoadFailed
    | BatchCreated
    | BatchSubmitted
    | BatchRejected
    | BatchCancelled
    | BatchAssembled
    | SessionWanted
    | SessionUnwanted
    | AttemptsReturned
    | AttemptFailed
    | LeaseReleased
)
