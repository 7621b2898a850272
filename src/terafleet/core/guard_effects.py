"""Everything the guard can ask of its shell; `when` as in `effects`."""

from enum import StrEnum
from typing import ClassVar

import msgspec

from terafleet.core.effects import When
from terafleet.core.ids import LeaseId, ModelId, WorkUnitId
from terafleet.core.reasons import Failure, LeaseEnding, Refusal


class GuardState(StrEnum):
    """What the guard is about; docs/states/guard.md has a sentence for each."""

    REFUSING = "refusing"
    SETTLING = "settling"
    PERMITTING = "permitting"
    YIELDING = "yielding"


class GuardEffect(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """What all effects have."""

    when: ClassVar[When] = "now"


class PrepareModel(GuardEffect, frozen=True):
    """Fetch a model if it is not on the disk, start the runtime if it is not up, and load it.

    Ends in `ModelReady` or `ModelUnavailable`.
    """

    model_id: ModelId


class StartAttempt(GuardEffect, frozen=True):
    """Give a unit's input to the runtime; ends in `AttemptFinished` or `AttemptBroke`."""

    lease_id: LeaseId
    unit_id: WorkUnitId
    model_id: ModelId
    endpoint: str


class StopAttempt(GuardEffect, frozen=True):
    """Give up an attempt; nothing of it is wanted any more."""

    lease_id: LeaseId
    unit_id: WorkUnitId


class ForgetLease(GuardEffect, frozen=True):
    """Drop a lease's inputs: no attempt of it will begin any more."""

    lease_id: LeaseId


class SuspendRuntime(GuardEffect, frozen=True):
    """Take the runtime off the processor, before anything else."""


class KillRuntime(GuardEffect, frozen=True):
    """End the runtime and give its memory back; ends in `RuntimeExited`."""


class ReportPermit(GuardEffect, frozen=True):
    """Tell the control plane, and whoever looks at the car, what the guard is about."""

    state: GuardState
    refusals: tuple[Refusal, ...]


class SendReceipt(GuardEffect, frozen=True):
    """Hand in what became of an attempt, or of a lease (`unit_id` -1).

    The guard keeps it until it is acknowledged. A result's output lies stored under
    `ids.output_name`.
    """

    when: ClassVar[When] = "commit"

    lease_id: LeaseId
    unit_id: WorkUnitId
    failure: Failure | None
    ending: LeaseEnding | None
    detail: str
    answers: int
    answers_failed: int
    prompt_tokens: int
    completion_tokens: int
    energy_mwh: int
    runtime_ms: int
    digest: bytes


class ForgetReceipt(GuardEffect, frozen=True):
    """A receipt is acknowledged: its stored output may go."""

    when: ClassVar[When] = "commit"

    lease_id: LeaseId
    unit_id: WorkUnitId


AnyGuardEffect = (
    PrepareModel
    | StartAttempt
    | StopAttempt
    | ForgetLease
    | SuspendRuntime
    | KillRuntime
    | ReportPermit
    | SendReceipt
    | ForgetReceipt
)
