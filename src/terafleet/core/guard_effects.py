"""Everything the guard can ask of its shell; `when` as in `effects`."""

from enum import StrEnum

import msgspec

from terafleet.core.effects import When
from terafleet.core.ids import SESSION_UNIT, LeaseId, ModelId, ReceiptId, WorkUnitId
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.work import AttemptResult

SESSION = ReceiptId(SESSION_UNIT)


class GuardState(StrEnum):
    """What the guard is about; docs/states/guard.md has a sentence for each."""

    REFUSING = "refusing"
    SETTLING = "settling"
    PERMITTING = "permitting"
    YIELDING = "yielding"


class GuardEffect(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """What all effects have."""

    @property
    def when(self) -> When:
        """What it waits for, as in `effects`."""
        return "now"


class PrepareModel(GuardEffect, frozen=True):
    """Fetch a model if it is not on the disk, start the runtime if it is not up, and load it.

    Ends in `ModelReady` or `ModelUnavailable`.
    """

    model_id: ModelId


class ReportLoadFailure(GuardEffect, frozen=True):
    """Tell the control plane that a model which it wants in memory can't be had or loaded.

    If it is lost, the control plane waits for the model until its patience ends.
    """

    model_id: ModelId
    failure: Failure
    detail: str


class StartAttempts(GuardEffect, frozen=True):
    """Give the inputs of a lease's units to the runtime, one after the other.

    Each ends in `AttemptsFinished`, perhaps with others of the lease, or in `AttemptBroke`, after
    which no other one begins.
    """

    lease_id: LeaseId
    unit_ids: tuple[WorkUnitId, ...]
    model_id: ModelId
    endpoint: str


class StopAttempts(GuardEffect, frozen=True):
    """Give up the attempts of a lease; nothing of them is wanted any more."""

    lease_id: LeaseId


class ForgetLease(GuardEffect, frozen=True):
    """Drop a lease's inputs: no attempt of it will begin any more."""

    lease_id: LeaseId


class SuspendRuntime(GuardEffect, frozen=True):
    """Take the runtime off the processor, before anything else."""


class ResumeRuntime(GuardEffect, frozen=True):
    """Let a suspended runtime go on where it was."""


class KillRuntime(GuardEffect, frozen=True):
    """End the runtime and give its memory back; ends in `RuntimeExited`."""


class ReportPermit(GuardEffect, frozen=True):
    """Tell the control plane, and whoever looks at the car, what the guard is about."""

    state: GuardState
    refusals: tuple[Refusal, ...]


class SendReceipt(GuardEffect, frozen=True):
    """Hand in what became of attempts of a lease, or of the lease itself.

    Exactly one of `failure`, `ending` and `results` holds. The guard keeps it until it is
    acknowledged. Results without a parcel have one large output, stored under `ids.output_name`.
    `asked_micro` is the least that the owner asks for what it tells of.
    """

    lease_id: LeaseId
    receipt_id: ReceiptId
    failure: Failure | None
    ending: LeaseEnding | None
    detail: str
    energy_mwh: int
    results: tuple[AttemptResult, ...]
    digest: bytes
    parcel: bytes
    asked_micro: int = 0

    @property
    def when(self) -> When:
        """A batch waits for it; a session's customer has all, and only the owner's pay is left."""
        return "later" if self.receipt_id == SESSION else "commit"


class ForgetReceipts(GuardEffect, frozen=True):
    """Receipts are acknowledged, or not wanted: their stored outputs may go.

    If the record should lose it, they are handed in and acknowledged once more.
    """

    receipts: tuple[tuple[LeaseId, ReceiptId], ...]


AnyGuardEffect = (
    PrepareModel
    | ReportLoadFailure
    | StartAttempts
    | StopAttempts
    | ForgetLease
    | SuspendRuntime
    | ResumeRuntime
    | KillRuntime
    | ReportPermit
    | SendReceipt
    | ForgetReceipts
)
