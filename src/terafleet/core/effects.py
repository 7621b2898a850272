"""Everything the fleet can ask of its shell.

`when` says what an effect waits for: `commit` leaves after the transaction that holds its event,
`later` too, but nobody hurries for it: the transaction may wait a moment for more, `record` is
written in that transaction, `now` waits for nothing.
"""

from typing import ClassVar, Literal

import msgspec

from terafleet.core.ids import (
    BatchId,
    CustomerId,
    Epoch,
    GatewayId,
    LeaseId,
    ModelId,
    ReceiptId,
    RequestId,
    SessionId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.reasons import LeaseEnding, Refused, UnitEnding, Waiting
from terafleet.core.work import BatchState

When = Literal["now", "commit", "later", "record"]


class Effect(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """What all effects have."""

    when: ClassVar[When] = "commit"


class WelcomeVehicle(Effect, frozen=True):
    """Tell an agent its epoch, for how long its leases stand without a word, and what is paid.

    `asking_micro_per_hour_max` is what the owner's asking price is met up to.
    """

    vehicle_id: VehicleId
    epoch: Epoch
    boot_id: str
    lease_ms: int
    margin_ms: int
    asking_micro_per_hour_max: int


class FenceVehicle(Effect, frozen=True):
    """Tell an epoch that it is over: a newer one has taken its place, or the car was removed."""

    vehicle_id: VehicleId
    epoch: Epoch


class AskHello(Effect, frozen=True):
    """Ask an agent to say hello anew, with what it holds; its epoch may have missed something."""

    vehicle_id: VehicleId


class GrantedUnit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A unit under a grant and where its input is, within the batch's object."""

    unit_id: WorkUnitId
    requests: int
    offset: int
    length: int
    digest: bytes


class GrantLease(Effect, frozen=True):
    """Give a slot of a car the units to attempt, in their order."""

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    batch_id: BatchId
    model_id: ModelId
    endpoint: str
    units: tuple[GrantedUnit, ...]


class GrantSession(Effect, frozen=True):
    """Give a slot of a car to a live session, in place of the lease `replaces` (0 for none).

    It waits for no record: if it is lost with the process, the lease is unknown at the next hello.
    """

    when: ClassVar[When] = "now"

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    model_id: ModelId
    endpoint: str
    session_id: SessionId
    replaces: LeaseId


class OfferPolicy(Effect, frozen=True):
    """Tell a car the owner policy that was set for it; empty is none any more.

    If it is lost, the next welcome brings it again.
    """

    vehicle_id: VehicleId
    epoch: Epoch
    policy: bytes


class KeepLoaded(Effect, frozen=True):
    """Tell a car which models, and no others, it shall keep in memory while it permits.

    It waits for the record as the welcome does, before which the car would not hear it.
    """

    vehicle_id: VehicleId
    epoch: Epoch
    model_ids: tuple[ModelId, ...]


class TellGranted(Effect, frozen=True):
    """Tell a gateway where its session may run; such requests take `duration_ms_max` at most."""

    when: ClassVar[When] = "now"

    gateway_id: GatewayId
    session_id: SessionId
    ask: int
    lease_id: LeaseId
    vehicle_id: VehicleId
    epoch: Epoch
    duration_ms_max: int


class TellQueued(Effect, frozen=True):
    """Tell a gateway that its session waits for a slot, for about `wait_ms`."""

    when: ClassVar[When] = "now"

    gateway_id: GatewayId
    session_id: SessionId
    ask: int
    wait_ms: int
    wait_ms_max: int


class TellRefused(Effect, frozen=True):
    """Tell a gateway that there is no slot; `retry_after_ms` 0 says that waiting is of no use."""

    when: ClassVar[When] = "now"

    gateway_id: GatewayId
    session_id: SessionId
    ask: int
    refused: Refused
    detail: str
    retry_after_ms: int


class TellLost(Effect, frozen=True):
    """Tell a gateway that the lease of its session has ended."""

    when: ClassVar[When] = "now"

    gateway_id: GatewayId
    session_id: SessionId
    lease_id: LeaseId
    ending: LeaseEnding


class RevokeLease(Effect, frozen=True):
    """Tell a car that a lease is over."""

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    ending: LeaseEnding


class AcknowledgeReceipt(Effect, frozen=True):
    """Tell a car that a receipt is kept."""

    when: ClassVar[When] = "later"

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    receipt_id: ReceiptId


class DropOutputs(Effect, frozen=True):
    """Forget the outputs that a receipt brought: they count for nothing."""

    lease_id: LeaseId
    receipt_id: ReceiptId


class AnswerRequest(Effect, frozen=True):
    """Answer the question that an event asked; no refusal is a yes."""

    request_id: RequestId
    refused: Refused | None
    detail: str


class CutBatch(Effect, frozen=True):
    """Ask a gateway to cut a batch.

    `tokens_per_s` and `slots` go into the size of the units, see `work.unit_cost`.
    """

    batch_id: BatchId
    input_file_id: str
    endpoint: str
    tokens_per_s: int
    slots: int


class UnitOutcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a unit ended: which receipt brought its output, or why there is none (`ending`)."""

    unit_id: WorkUnitId
    requests: int
    lease_id: LeaseId
    receipt_id: ReceiptId
    vehicle_id: VehicleId
    ending: UnitEnding | None
    detail: str


class AssembleOutput(Effect, frozen=True):
    """Ask a gateway to write a batch's files from its units' outputs, in the order of the cut."""

    batch_id: BatchId
    customer_id: CustomerId
    input_file_id: str
    outcomes: tuple[UnitOutcome, ...]


class ForgetBatch(Effect, frozen=True):
    """Remove the inputs and outputs of a batch's units; its files stay."""

    batch_id: BatchId
    input_file_id: str
    outputs: tuple[tuple[LeaseId, ReceiptId], ...]


class RecordBatch(Effect, frozen=True):
    """Write what a customer reads about a batch."""

    when: ClassVar[When] = "record"

    batch_id: BatchId
    customer_id: CustomerId
    endpoint: str
    input_file_id: str
    state: BatchState
    created_ms: int
    in_progress_ms: int
    finalizing_ms: int
    ended_ms: int
    cancelling_ms: int
    expires_ms: int
    requests: int
    requests_completed: int
    requests_failed: int
    units: int
    units_ended: int
    waiting: Waiting | None
    output_file_id: str
    error_file_id: str
    errors: bytes
    metadata: bytes
    prompt_tokens: int
    completion_tokens: int


FleetEffect = (
    WelcomeVehicle
    | FenceVehicle
    | AskHello
    | GrantLease
    | GrantSession
    | OfferPolicy
    | KeepLoaded
    | TellGranted
    | TellQueued
    | TellRefused
    | TellLost
    | RevokeLease
    | AcknowledgeReceipt
    | DropOutputs
    | AnswerRequest
    | CutBatch
    | AssembleOutput
    | ForgetBatch
    | RecordBatch
)
