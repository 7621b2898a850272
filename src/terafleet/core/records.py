"""The fleet's records: what it remembers of each vehicle, lease, work unit and batch.

They are mutable, private to the machine, and hold ids in place of each other, so that a snapshot
is their plain encoding.
"""

from collections.abc import Iterator
from enum import StrEnum

import msgspec

from terafleet.core.capability import Capability
from terafleet.core.ids import (
    WHOLE_LEASE,
    BatchId,
    CustomerId,
    Epoch,
    GatewayId,
    LeaseId,
    ModelId,
    ReceiptId,
    SessionId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.reasons import Refusal, UnitEnding
from terafleet.core.work import BatchState, UnitState

NOT_READY = -1


class VehicleState(StrEnum):
    """What a vehicle is to the fleet; docs/states/vehicle.md has a sentence for each."""

    OFFLINE = "offline"
    REFUSING = "refusing"
    IDLE = "idle"
    LEASED = "leased"
    DRAINING = "draining"


class VehicleRecord(msgspec.Struct, array_like=True):
    """A car. `epoch` 0 is offline; `ready_level` is its place in the index of ready cars.

    It permitted for `stay_ms` in stays that `departures` ended, and since `staying_since_ms` (0:
    it does not); see `availability`. `keeps` is what its epoch was last asked to keep loaded.
    `policy` is the owner policy that an operator set for it, None if nobody ever did.
    """

    vehicle_id: VehicleId
    name: str
    epoch: Epoch = Epoch(0)
    boot_id: str = ""
    capability: Capability | None = None
    refusals: tuple[Refusal, ...] = ()
    is_silent: bool = False
    silent_end_ms: int = 0
    is_draining: bool = False
    leases: dict[LeaseId, None] = {}
    ready_level: int = NOT_READY
    failures_in_row: int = 0
    quarantined_until_ms: int = 0
    speeds: dict[ModelId, int] = {}
    units_succeeded: int = 0
    attempts_lost: dict[str, int] = {}
    energy_mwh: int = 0
    energy_lost_mwh: int = 0
    runtime_ms: int = 0
    lost_ms: int = 0
    reward_micro: int = 0
    canaries_answered: int = 0
    stay_ms: int = 0
    departures: int = 0
    staying_since_ms: int = 0
    keeps: tuple[ModelId, ...] = ()
    policy: bytes | None = None

    @property
    def state(self) -> VehicleState:
        """Derived, so that it can't disagree with what it says."""
        if not self.epoch or self.is_silent:
            return VehicleState.OFFLINE
        if self.is_draining:
            return VehicleState.DRAINING
        if self.refusals:
            return VehicleState.REFUSING
        return VehicleState.LEASED if self.leases else VehicleState.IDLE

    def is_ready(self) -> bool:
        """Whether a lease may be granted to it, but for quarantine."""
        return (
            self.epoch != 0
            and not self.is_silent
            and not self.refusals
            and not self.is_draining
            and self.capability is not None
            and len(self.leases) < self.capability.slots
        )


class UnitRecord(msgspec.Struct, array_like=True, gc=False):
    """A work unit. `lease_id` is the lease that runs it, or under which it succeeded, or 0.

    `receipt_id` is the receipt that brought its output, `vehicle_id` the car that sent it.
    """

    unit_id: WorkUnitId
    batch_id: BatchId
    model_id: ModelId
    requests: int
    cost: int
    offset: int
    length: int
    digest: bytes
    state: UnitState = UnitState.WAITING
    lease_id: LeaseId = LeaseId(0)
    receipt_id: ReceiptId = WHOLE_LEASE
    vehicle_id: VehicleId = VehicleId("")
    failures: int = 0
    failed_on: tuple[VehicleId, ...] = ()

    def has_output(self, lease_id: LeaseId, receipt_id: ReceiptId) -> bool:
        """Whether its canonical result came with that receipt."""
        is_from_there = self.lease_id == lease_id and self.receipt_id == receipt_id
        return is_from_there and self.state is UnitState.SUCCEEDED


class SessionLease(msgspec.Struct, frozen=True, array_like=True):
    """The live session that a lease is for, or that waits for one; `tokens` is its predicted work.

    `number` counts up in the line of those who wait for its model; with `only_spare` it is a
    canary's.
    """

    session_id: SessionId
    gateway_id: GatewayId
    ask: int
    customer_id: CustomerId
    model_id: ModelId
    endpoint: str
    tokens: int
    excluded: tuple[VehicleId, ...]
    asked_ms: int
    only_spare: bool = False
    number: int = 0


class LeaseRecord(msgspec.Struct, array_like=True):
    """An active lease: the units not yet handed in, in their order; ended leases are forgotten.

    A session's lease has `ids.SESSION_UNIT` in place of units, and no batch. When its gateway
    wants it no more (`is_unwanted`), its car still has to say what it did. `met_micro` is what was
    met so far of what its owner asked.
    """

    lease_id: LeaseId
    vehicle_id: VehicleId
    batch_id: BatchId
    model_id: ModelId
    unit_ids: dict[WorkUnitId, None]
    granted_ms: int
    progress_ms: int
    overdue_ms: int
    session: SessionLease | None = None
    is_unwanted: bool = False
    met_micro: int = 0


class WarmChoice(msgspec.Struct, array_like=True):
    """A car that shall keep a model: its slots, and until when the model must stand in its memory.

    `due_ms` 0 says that it stands there.
    """

    slots: int
    due_ms: int = 0


class WarmRecord(msgspec.Struct, array_like=True):
    """A model that the operator wants in memory in `slots` slots, and the cars chosen for it.

    Cars that could not load it are passed over until the time beside them.
    """

    model_id: ModelId
    slots: int = 0
    slots_chosen: int = 0
    chosen: dict[VehicleId, WarmChoice] = {}
    passed_over: dict[VehicleId, int] = {}

    @property
    def slots_loaded(self) -> int:
        """How many slots have the model in memory."""
        return sum(choice.slots for choice in self.chosen.values() if not choice.due_ms)


class UnitLoss(msgspec.Struct, frozen=True, array_like=True):
    """Why a unit of a batch has no result."""

    ending: UnitEnding
    detail: str


class BatchRecord(msgspec.Struct, array_like=True):
    """A batch not yet forgotten; its units are numbered from `first_unit_id`."""

    batch_id: BatchId
    customer_id: CustomerId
    endpoint: str
    input_file_id: str
    model_ids: tuple[ModelId, ...]
    metadata: bytes
    requests: int
    created_ms: int
    expires_ms: int
    state: BatchState = BatchState.VALIDATING
    end: BatchState = BatchState.COMPLETED
    in_progress_ms: int = 0
    finalizing_ms: int = 0
    cancelling_ms: int = 0
    ended_ms: int = 0
    first_unit_id: WorkUnitId = WorkUnitId(0)
    units: int = 0
    units_open: int = 0
    units_running: int = 0
    requests_completed: int = 0
    requests_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    losses: dict[WorkUnitId, UnitLoss] = {}
    output_file_id: str = ""
    error_file_id: str = ""
    errors: bytes = b""
    ask_again_ms: int = 0

    def unit_ids(self) -> Iterator[WorkUnitId]:
        """The numbers of its units, in the order of the cut."""
        return map(WorkUnitId, range(self.first_unit_id, self.first_unit_id + self.units))
