"""Messages of live sessions: between gateway and shard, and straight between gateway and car.

A gateway listens on `live.<gateway_id>` to the shard and on `v.*.live.<gateway_id>` to cars. A
car speaks on `v.<vehicle_id>.live.<gateway_id>`, and hears on its down subject; the bus vouches
for both. Whatever is not of the session's present lease is dropped.
"""

import msgspec

from terafleet.core.ids import CustomerId, GatewayId, LeaseId, ModelId, SessionId, VehicleId
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.session_events import Piece

NO_LEASE = LeaseId(0)

BODY_BYTES_MAX = 4 * 1024 * 1024
"""The largest request of a session; it rides in one message, with the delivered tokens."""

BEAT_MS = 400
"""How often a car says that it is at work while it has no piece to send."""

START_WAIT_MS = 5_000
"""How long a car keeps a lease for a request, or a request for its lease, before it lets go."""


def fleet_subject(gateway_id: str) -> str:
    """Where a gateway hears the shard."""
    return f"live.{gateway_id}"


def vehicle_subject(vehicle_id: str, gateway_id: str) -> str:
    """Where a gateway hears one car."""
    return f"v.{vehicle_id}.live.{gateway_id}"


def vehicle_subjects(gateway_id: str) -> str:
    """Where a gateway hears all cars."""
    return f"v.*.live.{gateway_id}"


def publish_subjects(vehicle_id: str) -> str:
    """Where a car may speak to gateways."""
    return f"v.{vehicle_id}.live.*"


def vehicle_of(subject: str) -> VehicleId:
    """The car that a message on a vehicle subject comes from."""
    return VehicleId(subject.split(".")[1])


class LeaseWanted(msgspec.Struct, frozen=True, tag=True):
    """A gateway asks the shard for a slot; `tokens` is the predicted work.

    With `only_spare` it wants a free slot where the model is in memory and which nobody else
    wants, or is refused at once (`no_slot_spare`). Answered on the gateway's subject, with the
    number `ask`, by `SlotGranted`, `SlotQueued` (then by another one), or `SlotRefused`.
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


class LeaseUnwanted(msgspec.Struct, frozen=True, tag=True):
    """A gateway wants a session's slot no more, or (`lease_id` 0) waits for none."""

    session_id: SessionId
    lease_id: LeaseId


AnyFromGateway = LeaseWanted | LeaseUnwanted


class FromFleet(msgspec.Struct, frozen=True, tag=True):
    """What a shard tells a gateway about a session."""

    session_id: SessionId


class SlotGranted(FromFleet, frozen=True):
    """The session's lease; the car knows of it too. Such requests take `duration_ms_max`."""

    ask: int
    lease_id: LeaseId
    vehicle_id: VehicleId
    epoch: int
    duration_ms_max: int


class SlotQueued(FromFleet, frozen=True):
    """No slot is free: about `wait_ms`, at most `wait_ms_max`."""

    ask: int
    wait_ms: int
    wait_ms_max: int


class SlotRefused(FromFleet, frozen=True):
    """No slot; `retry_after_ms` 0 says that waiting does not help."""

    ask: int
    refused: Refused
    detail: str
    retry_after_ms: int


class SlotLost(FromFleet, frozen=True):
    """The lease has ended before its session."""

    lease_id: LeaseId
    ending: LeaseEnding


AnyFromFleet = SlotGranted | SlotQueued | SlotRefused | SlotLost


class FromCar(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What a car sends to a gateway; `number` counts the messages of pieces before it."""

    session_id: SessionId
    lease_id: LeaseId
    number: int


class PiecesSent(FromCar, frozen=True):
    """Some of the answer."""

    pieces: tuple[Piece, ...]


class AtWork(FromCar, frozen=True):
    """A sign of life between pieces."""


class AnswerEnded(FromCar, frozen=True):
    """The whole answer has been sent."""

    prompt_tokens: int
    completion_tokens: int


class ModelRefused(FromCar, frozen=True):
    """The model can't take the request; a code of the table of errors."""

    code: str
    message: str
    param: str | None


class CarLeft(FromCar, frozen=True):
    """The car gives the session up: its owner is back, say."""

    ending: LeaseEnding


AnyFromCar = PiecesSent | AtWork | AnswerEnded | ModelRefused | CarLeft

FROM_GATEWAY_DECODER = msgspec.msgpack.Decoder(AnyFromGateway)
FROM_FLEET_DECODER = msgspec.msgpack.Decoder(AnyFromFleet)
FROM_CAR_DECODER = msgspec.msgpack.Decoder(AnyFromCar)
ENCODER = msgspec.msgpack.Encoder()
