"""What vehicle agents do over HTTP: enrol, renew their credential, and fetch a model's offer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from litestar import Request, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from terafleet.bus.credentials import KeyInvalid, KeyKind, decode_public_key
from terafleet.control.gateway.attempts import Attempts
from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.fleet_objects import (
    OBJECT_ROUTES,
    check_address,
    model_of,
    signed_files,
)
from terafleet.control.gateway.keys import code_sha256, vehicle_id_of
from terafleet.control.ports import VehicleRow
from terafleet.core.ids import VehicleId
from terafleet.core.units import MS_PER_MINUTE, MS_PER_S
from terafleet.protocol.fleet_http import (
    ENROL_PATH,
    MODELS_PATH,
    RENEW_PATH,
    Enrolment,
    EnrolRequest,
    RenewRequest,
    renew_text,
)
from terafleet.protocol.manifest import ModelOffer
from terafleet.protocol.shard import Answered, EnrolVehicle

ATTEMPTS_KEY = "attempts"
"""Where the application keeps the Attempts of the routes that need no key."""

SMALL_BODY_BYTES_MAX = 8 * 1024
CODE_CHARACTERS_MAX = 64
VEHICLE_NAME_CHARACTERS_MAX = 100

ENROL_AGAIN_MS = 60 * MS_PER_MINUTE
"""So long a car gets the same answer to the same question: the first may have been lost."""

CLOCK_DIFFERENCE_S_MAX = 300

_VEHICLE_ID = re.compile(r"veh-[a-z]{10}")


@post(ENROL_PATH, status_code=200, request_max_body_size=SMALL_BODY_BYTES_MAX)
async def enrol(
    data: JSONBody[EnrolRequest],
    request: Request[Any, Any, Any],
    context: NamedDependency[GatewayContext],
) -> Enrolment:
    """Let a car join the fleet with its one-time code and the key that it made."""
    _check_enrolment(data)
    with _counted(request, context):
        vehicle = _admitted(data, context)
    # The code is used up by now. A car that gets no answer here asks again, and so does this.
    await context.ask(EnrolVehicle(VehicleId(vehicle.vehicle_id), vehicle.name), Answered)
    return _enrolment(vehicle, context)


@post(RENEW_PATH, status_code=200, request_max_body_size=SMALL_BODY_BYTES_MAX)
async def renew(
    data: JSONBody[RenewRequest],
    request: Request[Any, Any, Any],
    context: NamedDependency[GatewayContext],
) -> Enrolment:
    """Give a car a fresh credential for the key that it enrolled with.

    A signature that is sent again makes one more credential for the same key, which is of no use
    to anybody without that key.
    """
    with _counted(request, context):
        vehicle = _recognised(data, context)
    return _enrolment(vehicle, context)


@get(f"{MODELS_PATH}/{{model_id:str}}")
async def get_model_offer(
    model_id: FromPath[str],
    request: Request[Any, Any, Any],
    context: NamedDependency[GatewayContext],
) -> ModelOffer:
    """What a car needs to fetch a model; the address must be signed."""
    check_address(request, context, "GET")
    row = model_of(model_id, context)
    return ModelOffer(row.signed, signed_files(row, context))


fleet_router = Router(
    "/", route_handlers=[enrol, renew, get_model_offer, *OBJECT_ROUTES], tags=["fleet"]
)


@contextmanager
def _counted(request: Request[Any, Any, Any], context: GatewayContext) -> Iterator[None]:
    """Turn away who has failed too often; count it when what is done within fails."""
    attempts = request.app.state[ATTEMPTS_KEY]
    assert isinstance(attempts, Attempts)
    source = request.client.host if request.client is not None else ""
    wait_ms = attempts.wait_ms(source, context.now_ms())
    if wait_ms:
        wait_s = -(-wait_ms // MS_PER_S)
        message = f"There were too many failed attempts; try again in {wait_s} s."
        raise ApiError("overloaded", message, headers={"retry-after": str(wait_s)})
    try:
        yield
    except ApiError:
        attempts.failed(source, context.now_ms())
        raise


def _check_enrolment(data: EnrolRequest) -> None:
    if not 0 < len(data.code) <= CODE_CHARACTERS_MAX:
        message = f"A code has 1 to {CODE_CHARACTERS_MAX} characters."
        raise ApiError("invalid_value", message, "code")
    if not (0 < len(data.name) <= VEHICLE_NAME_CHARACTERS_MAX and data.name.isprintable()):
        message = f"A name is one line of 1 to {VEHICLE_NAME_CHARACTERS_MAX} characters."
        raise ApiError("invalid_value", message, "name")
    try:
        decode_public_key(data.public_key, KeyKind.USER)
    except KeyInvalid as error:
        raise ApiError("invalid_value", f"The public key: {error}.", "public_key") from error


def _admitted(data: EnrolRequest, context: GatewayContext) -> VehicleRow:
    """The car that this code and key stand for. Raises ApiError."""
    vehicle_id = vehicle_id_of(data.code, data.public_key)
    now_ms = context.now_ms()
    vehicle = VehicleRow(vehicle_id, data.name, data.public_key, now_ms)
    code = context.catalogue.use_code(code_sha256(data.code), vehicle, now_ms)
    if code is None:
        return vehicle
    # The id follows from code and key, so only the car that used this code up finds itself.
    known = context.catalogue.vehicle(vehicle_id)
    is_again = known is not None and now_ms - known.enrolled_ms <= ENROL_AGAIN_MS
    if code == "enrolment_code_used" and known is not None and is_again and not known.removed_ms:
        return known
    messages = {
        "enrolment_code_invalid": "There is no such enrolment code.",
        "enrolment_code_used": "This enrolment code has been used.",
        "enrolment_code_expired": "This enrolment code has expired.",
    }
    raise ApiError(code, messages[code], "code")


def _recognised(data: RenewRequest, context: GatewayContext) -> VehicleRow:
    """The car that signed this request. Raises ApiError."""
    difference_s = abs(data.at_s - context.now_ms() // MS_PER_S)
    if difference_s > CLOCK_DIFFERENCE_S_MAX:
        message = f"The request was signed {difference_s} s away from the time here."
        raise ApiError("signature_wrong", message, "at_s")
    is_id = _VEHICLE_ID.fullmatch(data.vehicle_id) is not None
    row = context.catalogue.vehicle(data.vehicle_id) if is_id else None
    if row is None:
        raise ApiError("vehicle_not_found", "There is no such car.", "vehicle_id")
    key = Ed25519PublicKey.from_public_bytes(decode_public_key(row.public_key, KeyKind.USER))
    try:
        key.verify(data.signature, renew_text(data.vehicle_id, data.at_s))
    except InvalidSignature as error:
        message = "The signature is not of the key that this car enrolled with."
        raise ApiError("signature_wrong", message, "signature") from error
    if row.removed_ms:
        raise ApiError("vehicle_not_found", "This car has been removed.", "vehicle_id")
    return row


def _enrolment(vehicle: VehicleRow, context: GatewayContext) -> Enrolment:
    credential, expires_s = context.issue_credential(vehicle.vehicle_id, vehicle.public_key)
    return Enrolment(
        vehicle_id=VehicleId(vehicle.vehicle_id),
        bus_urls=context.bus_urls,
        credential=credential,
        expires_s=expires_s,
        manifest_key=context.manifest_key,
    )
