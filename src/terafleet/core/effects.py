"""Everything the fleet can ask of its shell.

`when` says what an effect waits for: `commit` leaves after the transaction that holds its event,
`record` is written in that transaction, `now` waits for nothing.
"""

from typing import ClassVar, Literal

import msgspec

from terafleet.core.ids import (
    BatchId,
    CustomerId,
    Epoch,
    LeaseId,
    ModelId,
    RequestId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.reasons import LeaseEnding, Refused, UnitEnding, Waiting
from terafleet.core.work import BatchState

When = Literal["now", "commit", "record"]


class Effect(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """What all effects have."""

    when: ClassVar[When] = "commit"


class WelcomeVehicle(Effect, frozen=True):
    """Tell an agent its epoch, and for how long its leases stand without a word."""

    vehicle_id: VehicleId
    epoch: Epoch
    boot_id: str
    lease_ms: int
    margin_ms: int


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


class RevokeLease(Effect, frozen=True):
    """Tell a car that a lease is over."""

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    ending: LeaseEnding


class AcknowledgeReceipt(Effect, frozen=True):
    """Tell a car that a receipt is kept; `unit_id` -1 is the receipt of the lease itself."""

    vehicle_id: VehicleId
    epoch: Epoch
    lease_id: LeaseId
    unit_id: WorkUnitId


class DropOutput(Effect, frozen=True):
    """Forget an output that counts for nothing."""

    lease_id: LeaseId
    unit_id: WorkUnitId


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
    """How a unit ended: under which lease its output lies, or why there is none (`ending`)."""

    unit_id: WorkUnitId
    requests: int
    lease_id: LeaseId
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
    outputs: tuple[tuple[LeaseId, WorkUnitId], ...]


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
    | RevokeLease
    | AcknowledgeReceipt
    | DropOutput
    | AnswerRequest
    | CutBatch
    | AssembleOutput
    | ForgetBatch
    | RecordBatch
)
