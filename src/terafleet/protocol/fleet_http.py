"""What a vehicle agent asks of the gateway over HTTP: to enrol, to renew, and large blobs."""

import msgspec

from terafleet.core.ids import VehicleId

ENROL_PATH = "/fleet/v1/enrol"
RENEW_PATH = "/fleet/v1/renew"
MODELS_PATH = "/fleet/v1/models"
OBJECTS_PATH = "/fleet/v1/objects"


def model_path(model_id: str) -> str:
    """Where a `ModelOffer` is, as JSON; the address must be signed."""
    return f"{MODELS_PATH}/{model_id}"


def object_path(name: str, offset: int = 0, length: int = -1) -> str:
    """Where an object's bytes are; `length` -1 is the rest. HTTP ranges count from `offset`."""
    if offset == 0 and length == -1:
        return f"{OBJECTS_PATH}/{name}"
    return f"{OBJECTS_PATH}/{name}?offset={offset}&length={length}"


class EnrolRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A car shows its one-time code and the public half of the key that it made (NATS `U…`)."""

    code: str
    public_key: str
    name: str


class Enrolment(msgspec.Struct, frozen=True):
    """What a car needs to speak to the fleet.

    `credential` is the user JWT for the bus, good until `expires_s` (seconds since 1970);
    `manifest_key` the Ed25519 public key, 32 bytes, that model manifests are signed with.
    """

    vehicle_id: VehicleId
    bus_urls: tuple[str, ...]
    credential: str
    expires_s: int
    manifest_key: bytes


class RenewRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A car asks for a fresh credential; `signature` by its key over `renew_text`."""

    vehicle_id: VehicleId
    at_s: int
    signature: bytes


def renew_text(vehicle_id: VehicleId, at_s: int) -> bytes:
    """What a car signs to renew; good for a few minutes around `at_s`."""
    return f"terafleet renew {vehicle_id} {at_s}".encode()
