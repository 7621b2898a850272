"""Messages between a vehicle agent and the control plane.

A car speaks on `v.<vehicle_id>.up` and listens on `v.<vehicle_id>.down`, and may do nothing else.
Times called `sent_ms` are the car's own clock and come back unchanged; no clock is compared
with another's.
"""

import msgspec

from terafleet.core.capability import Capability
from terafleet.core.events import HeldLease
from terafleet.core.ids import (
    Epoch,
    GatewayId,
    LeaseId,
    ModelId,
    ReceiptId,
    SessionId,
    VehicleId,
    WorkUnitId,
)
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.work import AttemptResult, Figure

PROTOCOL = 3
"""The version an agent says in its hello; another one is told to update."""

INLINE_BYTES_MAX = 65_536
"""Inputs and outputs up to this size ride in the message; larger ones go over HTTP."""

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"""The greatest message of the bus; senders split before it."""


def up_subject(vehicle_id: str) -> str:
    """Where a car speaks."""
    return f"v.{vehicle_id}.up"


def down_subject(vehicle_id: str) -> str:
    """Where a car listens."""
    return f"v.{vehicle_id}.down"


UP_SUBJECTS = "v.*.up"
"""Where the control plane hears all cars."""


def vehicle_of(subject: str) -> VehicleId:
    """The car that a message on an up subject comes from; the bus vouches for it."""
    return VehicleId(subject[2:-3])


class UpMessage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What a car sends."""


class Hello(UpMessage, frozen=True):
    """The first message after each connection: who runs here, what it can, what it still holds."""

    protocol: int
    boot_id: str
    agent_version: str
    capability: Capability
    refusals: tuple[Refusal, ...]
    held: tuple[HeldLease, ...]


class Heartbeat(UpMessage, frozen=True):
    """A sign of life; answered with `HeartbeatAnswer`, which renews the car's leases.

    A car that `is_holding` has leases or may get some: it is heard often from here on.
    """

    epoch: Epoch
    sent_ms: int
    is_holding: bool


class PermitReport(UpMessage, frozen=True):
    """The guard's answer has changed; no refusals is a permit."""

    epoch: Epoch
    refusals: tuple[Refusal, ...]


class CapabilityReport(UpMessage, frozen=True):
    """What the car can run has changed."""

    epoch: Epoch
    capability: Capability


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """What became of attempts of a lease, or of the lease itself (`ids.WHOLE_LEASE`).

    Exactly one of `failure`, `ending` and `results` holds; `receipt_id` is the number of the
    first unit. `payload` holds the outputs of the results (`parcel`), `digest` its SHA-256. A
    single output that is too large for it was put to the address of the grant before, and
    `digest` is its own. `asked_micro` is the least that the owner asks for what it tells of. The
    car keeps a receipt until it is acknowledged.
    """

    lease_id: LeaseId
    receipt_id: ReceiptId
    failure: Failure | None = None
    ending: LeaseEnding | None = None
    detail: str = ""
    energy_mwh: Figure = 0
    results: tuple[AttemptResult, ...] = ()
    digest: bytes = b""
    payload: bytes = b""
    asked_micro: Figure = 0


class Receipts(UpMessage, frozen=True):
    """Some receipts at once."""

    epoch: Epoch
    receipts: tuple[Receipt, ...]


class LoadFailed(UpMessage, frozen=True):
    """A model that the car was asked to keep can't be fetched or loaded; it gives up on it."""

    epoch: Epoch
    model_id: ModelId
    failure: Failure
    detail: str


class Goodbye(UpMessage, frozen=True):
    """The agent stops cleanly and holds nothing."""

    epoch: Epoch


FromVehicle = Hello | Heartbeat | PermitReport | CapabilityReport | Receipts | LoadFailed | Goodbye


class DownMessage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What a car hears."""


class Welcome(DownMessage, frozen=True):
    """The answer to a hello with that `boot_id`: the epoch, and the times that hold.

    A lease ends in the car `lease_ms - margin_ms` after the car sent the last heartbeat that
    was answered, or after it sent the hello that this answers. An owner's asking price is met up
    to `asking_micro_per_hour_max`.
    """

    epoch: Epoch
    boot_id: str
    lease_ms: int
    margin_ms: int
    heartbeat_ms: int
    heartbeat_refusing_ms: int
    asking_micro_per_hour_max: int


class HeartbeatAnswer(DownMessage, frozen=True):
    """The heartbeat with that `sent_ms` was heard; the leases stand anew from then."""

    epoch: Epoch
    sent_ms: int
    earned_micro: int = 0


class OfferedUnit(msgspec.Struct, frozen=True, array_like=True):
    """One unit of a grant; an empty `input_address` means that `payload` is the whole input.

    `digest` is the SHA-256 of the input.
    """

    unit_id: WorkUnitId
    requests: int
    digest: bytes
    payload: bytes
    input_address: str


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """A lease of one slot with its units, to be attempted in their order.

    Outputs that are too large to ride in a receipt go below `outputs_address`, each under its
    `ids.large_output_name` (`addresses.address_below`). A live session's lease has its
    `session_id` and the one unit `ids.SESSION_UNIT`; it may take the place of another lease.
    """

    lease_id: LeaseId
    model_id: ModelId
    manifest_address: str
    outputs_address: str
    endpoint: str
    units: tuple[OfferedUnit, ...]
    session_id: SessionId = SessionId("")
    replaces: LeaseId = LeaseId(0)


class Grants(DownMessage, frozen=True):
    """Some leases at once."""

    epoch: Epoch
    grants: tuple[Grant, ...]


class Revoke(DownMessage, frozen=True):
    """Leases that are over."""

    epoch: Epoch
    lease_ids: tuple[LeaseId, ...]
    ending: LeaseEnding


class KeptModel(msgspec.Struct, frozen=True, array_like=True):
    """A model that stays in memory, and where its manifest is."""

    model_id: ModelId
    manifest_address: str


class SetPolicy(DownMessage, frozen=True):
    """The owner policy that was set for this car, as JSON; empty takes it back.

    The car keeps it, and lays its owner's own file over it.
    """

    epoch: Epoch
    policy: bytes


class KeepLoaded(DownMessage, frozen=True):
    """The models, and no others, that the car shall keep in memory while it permits.

    A new epoch begins with none; the control plane tells them anew after its welcome.
    """

    epoch: Epoch
    models: tuple[KeptModel, ...]


class StartSession(DownMessage, frozen=True):
    """A gateway sends the request of a session's lease, and the tokens that were told before."""

    epoch: Epoch
    lease_id: LeaseId
    session_id: SessionId
    gateway_id: GatewayId
    body: bytes
    delivered: tuple[int, ...]


class StopSession(DownMessage, frozen=True):
    """A gateway wants nothing more of a session's lease."""

    lease_id: LeaseId


class Acknowledge(DownMessage, frozen=True):
    """Receipts that are kept: the car may forget them."""

    receipts: tuple[tuple[LeaseId, ReceiptId], ...]


class Fenced(DownMessage, frozen=True):
    """The epoch is over; 0 fences whatever the car has. The agent drops its leases."""

    epoch: Epoch
    reason: str


class HelloWanted(DownMessage, frozen=True):
    """The agent shall say hello anew, as after a connection; its leases stand meanwhile."""


ToVehicle = (
    HelloWanted
    | Welcome
    | HeartbeatAnswer
    | Grants
    | Revoke
    | SetPolicy
    | KeepLoaded
    | StartSession
    | StopSession
    | Acknowledge
    | Fenced
)


FROM_VEHICLE_DECODER = msgspec.msgpack.Decoder(FromVehicle)
TO_VEHICLE_DECODER = msgspec.msgpack.Decoder(ToVehicle)
ENCODER = msgspec.msgpack.Encoder()
