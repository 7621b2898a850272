"""Everything that can happen to a car's guard.

`at_ms` is the agent's clock: milliseconds that never run backwards while the agent runs.
"""

import msgspec

from terafleet.core.ids import SESSION_UNIT, Epoch, LeaseId, ModelId, ReceiptId, WorkUnitId
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.core.work import AttemptResult

SCHEMA = 5
"""The number of this vocabulary; a journal of another number is not replayed."""


class GuardEvent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """What all events have."""

    at_ms: int

    @property
    def is_urgent(self) -> bool:
        """Whether owner or customer wait for what comes of it: then it waits for no disk."""
        return False


class AgentStarted(GuardEvent, frozen=True):
    """The agent's process has begun, with these settings; nothing that ran before runs any more.

    `computer_mw` is what the computer draws for work while all slots are busy.
    """

    policy: OwnerPolicy
    slots: int
    computer_mw: int = 0


class AgentStopping(GuardEvent, frozen=True):
    """The agent is asked to stop; it gives back what it holds."""


class GuardTimeAdvanced(GuardEvent, frozen=True):
    """A deadline of the guard has come."""


class ReadingsChanged(GuardEvent, frozen=True):
    """The sensors were read."""

    readings: Readings

    @property
    def is_urgent(self) -> bool:
        """It may be the owner."""
        return True


class PolicyChanged(GuardEvent, frozen=True):
    """The owner allows something else."""

    policy: OwnerPolicy


class Consumed(GuardEvent, frozen=True):
    """The agent and its children have written to the flash, and used the link, since last told."""

    flash_bytes: int
    link_bytes: int


class LinkWelcomed(GuardEvent, frozen=True):
    """The control plane has answered the hello that was sent at `sent_ms`.

    Owners' asking prices are met up to `asking_micro_per_hour_max`.
    """

    epoch: Epoch
    sent_ms: int
    lease_ms: int
    margin_ms: int
    asking_micro_per_hour_max: int


class HeartbeatAnswered(GuardEvent, frozen=True):
    """The control plane has heard the heartbeat that was sent at `sent_ms`."""

    epoch: Epoch
    sent_ms: int


class LinkFenced(GuardEvent, frozen=True):
    """The epoch is over: the control plane holds none of its leases any more."""

    epoch: Epoch


class LeasedUnit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A unit under a lease in the car; the shell keeps its input by the attempt's name."""

    unit_id: WorkUnitId
    requests: int


class LeaseGranted(GuardEvent, frozen=True):
    """The control plane has granted a slot's lease, in place of the one `replaces` (0 for none)."""

    epoch: Epoch
    lease_id: LeaseId
    model_id: ModelId
    endpoint: str
    units: tuple[LeasedUnit, ...]
    replaces: LeaseId = LeaseId(0)

    @property
    def is_urgent(self) -> bool:
        """A session's is: a customer waits."""
        return any(unit.unit_id == SESSION_UNIT for unit in self.units[:1])


class LeaseRevoked(GuardEvent, frozen=True):
    """The control plane has ended a lease."""

    lease_id: LeaseId
    ending: LeaseEnding


class WarmModelsChanged(GuardEvent, frozen=True):
    """The control plane wants these models, and no others, in memory while the car permits."""

    epoch: Epoch
    model_ids: tuple[ModelId, ...]


class ModelReady(GuardEvent, frozen=True):
    """A model stands in the runtime's memory."""

    model_id: ModelId


class ModelUnavailable(GuardEvent, frozen=True):
    """A model could not be fetched, or not be loaded."""

    model_id: ModelId
    failure: Failure
    detail: str


class AttemptsFinished(GuardEvent, frozen=True):
    """The runtime has given outputs for attempts of a lease, at least one.

    `parcel` holds them; a single large one lies stored instead, under the name of its receipt
    (`ids.output_name`). `digest` is the SHA-256 of either.
    """

    lease_id: LeaseId
    results: tuple[AttemptResult, ...]
    digest: bytes
    parcel: bytes


class AttemptBroke(GuardEvent, frozen=True):
    """The runtime has given no output for an attempt; no other of its lease runs any more."""

    lease_id: LeaseId
    unit_id: WorkUnitId
    failure: Failure
    detail: str
    energy_mwh: int


class RuntimeExited(GuardEvent, frozen=True):
    """The runtime's process is gone, its memory given back; wanted or not."""

    detail: str


class ReceiptsAcknowledged(GuardEvent, frozen=True):
    """The control plane keeps these receipts."""

    receipts: tuple[tuple[LeaseId, ReceiptId], ...]


AnyGuardEvent = (
    AgentStarted
    | AgentStopping
    | GuardTimeAdvanced
    | ReadingsChanged
    | PolicyChanged
    | Consumed
    | LinkWelcomed
    | HeartbeatAnswered
    | LinkFenced
    | LeaseGranted
    | LeaseRevoked
    | WarmModelsChanged
    | ModelReady
    | ModelUnavailable
    | AttemptsFinished
    | AttemptBroke
    | RuntimeExited
    | ReceiptsAcknowledged
)
