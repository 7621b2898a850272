"""Who this car is: its key, its enrolment, and the credential that is renewed before it ends.

The private key is made here and never leaves the car.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.files import replace_file
from terafleet.agent.gateway import GATEWAY_ODD, Gateway, GatewayFault
from terafleet.agent.waking import Sleep, wait_at_most
from terafleet.bus.credentials import KeyFileUnsafe, KeyInvalid, KeyKind, NKey, UserCredentials
from terafleet.protocol.fleet_http import (
    ENROL_PATH,
    RENEW_PATH,
    Enrolment,
    EnrolRequest,
    RenewRequest,
    renew_text,
)

KEY_FILE = "vehicle.nk"
ENROLMENT_FILE = "enrolment.json"
ENROLMENT_BYTES_MAX = 65_536

NOT_ENROLLED = "not_enrolled"
ALREADY_ENROLLED = "already_enrolled"
KEY_UNUSABLE = "key_unusable"
ENROLMENT_UNUSABLE = "enrolment_unusable"
FOLDER_UNUSABLE = "folder_unusable"

LOOK_S_MAX = 600.0
"""Timers stand still while a car sleeps, so the wall clock is asked at least so often."""
RENEWED_AFTER = 0.6
"""The share of a credential's life after which it is renewed; the rest is for retries."""
RETRY_S_MIN = 5.0
RETRY_S_MAX = 600.0
KEY_BYTES = 32
_CHANCE = secrets.SystemRandom()
_VEHICLE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

ADVICE = {
    NOT_ENROLLED: "enrol this car first, with a code of the fleet's operator",
    ALREADY_ENROLLED: "this data folder belongs to an enrolled car; take another one",
    "enrolment_code_invalid": "the code is not one of this fleet; look whether all of it is there",
    "enrolment_code_used": "a code enrols one car only; ask the operator for another one",
    "enrolment_code_expired": "ask the operator for a fresh code",
    "gateway_unreachable": "look at the network and at the gateway's address",
}
"""What a person can do about a refusal, by its code."""

log: FilteringBoundLogger = structlog.get_logger()


class IdentityRefused(msgspec.Struct, frozen=True):
    """Why a car has no identity: the gateway's code or one of this module's, and the detail."""

    code: str
    detail: str

    @property
    def advice(self) -> str:
        """A sentence for a person, or empty."""
        return ADVICE.get(self.code, "")


class KeptEnrolment(Enrolment, frozen=True):
    """The enrolment as it is kept: with the gateway it came from, and when (seconds since 1970).

    `name` is what people called the car when it joined.
    """

    gateway_url: str = ""
    obtained_s: int = 0
    name: str = ""


async def enrol(
    data_folder: Path,
    gateway_url: str,
    code: str,
    name: str,
    wall_s: Callable[[], float] = time.time,
) -> Enrolment | IdentityRefused:
    """Make a key, show the one-time code, and keep what the gateway gives.

    A key that is there already is used: a try that failed half-way may be repeated.
    """
    if (data_folder / ENROLMENT_FILE).exists():
        return IdentityRefused(ALREADY_ENROLLED, str(data_folder))
    key = _key_made(data_folder)
    if isinstance(key, IdentityRefused):
        return key
    gateway = Gateway(gateway_url)
    try:
        request = EnrolRequest(code.strip(), key.public, name)
        enrolment = await gateway.post(ENROL_PATH, request, Enrolment)
    finally:
        await gateway.close()
    if isinstance(enrolment, GatewayFault):
        return IdentityRefused(enrolment.code, enrolment.detail)
    fault = enrolment_fault(enrolment)
    if fault:
        return IdentityRefused(GATEWAY_ODD, fault)
    try:
        _keep(data_folder, _kept(enrolment, gateway_url, round(wall_s()), name))
    except OSError as error:
        return IdentityRefused(FOLDER_UNUSABLE, f"{data_folder}: {error.strerror}")
    return enrolment


def load_identity(
    data_folder: Path, wall_s: Callable[[], float] = time.time
) -> "Identity | IdentityRefused":
    """The identity that `enrol` left in the folder."""
    path = data_folder / ENROLMENT_FILE
    try:
        with path.open("rb") as file:
            text = file.read(ENROLMENT_BYTES_MAX)
        kept = msgspec.json.decode(text, type=KeptEnrolment)
    except FileNotFoundError:
        return IdentityRefused(NOT_ENROLLED, str(data_folder))
    except OSError as error:
        return IdentityRefused(ENROLMENT_UNUSABLE, f"{path}: {error.strerror}")
    except msgspec.MsgspecError as error:
        return IdentityRefused(ENROLMENT_UNUSABLE, f"{path}: {error}")
    fault = enrolment_fault(kept)
    if fault:
        return IdentityRefused(ENROLMENT_UNUSABLE, fault)
    key = _key_kept(data_folder)
    if isinstance(key, IdentityRefused):
        return key
    return Identity(data_folder, key, kept, wall_s)


class Identity:
    """An enrolled car's key and credential."""

    def __init__(
        self, data_folder: Path, key: NKey, kept: KeptEnrolment, wall_s: Callable[[], float]
    ) -> None:
        self._data_folder = data_folder
        self._key = key
        self._kept = kept
        self._wall_s = wall_s
        self._wanted = asyncio.Event()

    @property
    def enrolment(self) -> KeptEnrolment:
        """What the fleet gave; a renewal changes it."""
        return self._kept

    def credentials(self) -> UserCredentials:
        """What to log in with at this moment."""
        return UserCredentials(self._kept.credential, self._key.sign)

    def renew_soon(self) -> None:
        """The bus refuses the credential: renew it without waiting for its time."""
        self._wanted.set()

    async def renew(self, gateway: Gateway) -> GatewayFault | None:
        """Ask for a fresh credential and keep it."""
        at_s = round(self._wall_s())
        vehicle_id = self._kept.vehicle_id
        request = RenewRequest(vehicle_id, at_s, self._key.sign(renew_text(vehicle_id, at_s)))
        enrolment = await gateway.post(RENEW_PATH, request, Enrolment)
        if isinstance(enrolment, GatewayFault):
            return enrolment
        fault = enrolment_fault(enrolment)
        if fault or enrolment.vehicle_id != vehicle_id:
            return GatewayFault(GATEWAY_ODD, fault or "the enrolment of another car")
        self._kept = _kept(enrolment, self._kept.gateway_url, at_s, self._kept.name)
        try:
            _keep(self._data_folder, self._kept)
        except OSError as error:
            # It holds for this process; after a restart the one before is renewed again.
            log.warning("enrolment_not_kept", cause=error.strerror)
        return None

    async def keep_fresh(
        self,
        gateway: Gateway,
        sleep: Sleep = asyncio.sleep,
        chance: Callable[[], float] = _CHANCE.random,
    ) -> None:
        """Renew before two thirds of the credential's life are over, until cancelled."""
        failures = 0
        while True:
            left_s = self._due_s() - self._wall_s()
            if left_s > 0 and not self._wanted.is_set():
                await wait_at_most(self._wanted, min(left_s, LOOK_S_MAX), sleep)
                continue
            fault = await self.renew(gateway)
            if fault is None:
                failures = 0
            else:
                failures += 1
                log.warning("credential_not_renewed", cause=fault.code, detail=fault.detail)
            # Also after a success: a bus that goes on refusing must not make us ask without end.
            retry_s = min(RETRY_S_MAX, RETRY_S_MIN * 2 ** min(failures, 16))
            await sleep(retry_s * (1 - chance() / 2))
            if fault is None:
                self._wanted.clear()

    def _due_s(self) -> float:
        """When to renew, in seconds since 1970: before two thirds of the credential's life."""
        life_s = max(0, self._kept.expires_s - self._kept.obtained_s)
        return self._kept.obtained_s + life_s * RENEWED_AFTER


def enrolment_fault(enrolment: Enrolment) -> str:
    """What makes an enrolment unusable, in words, or empty."""
    if _VEHICLE_ID.fullmatch(enrolment.vehicle_id) is None:
        return "the vehicle's id is not one"
    if not enrolment.bus_urls:
        return "no address of the bus"
    if len(enrolment.manifest_key) != KEY_BYTES:
        return "the key of the manifests is not one"
    return ""


def _kept(enrolment: Enrolment, gateway_url: str, obtained_s: int, name: str) -> KeptEnrolment:
    return KeptEnrolment(
        **{name: getattr(enrolment, name) for name in Enrolment.__struct_fields__},
        gateway_url=gateway_url,
        obtained_s=obtained_s,
        name=name,
    )


def _keep(data_folder: Path, kept: KeptEnrolment) -> None:
    replace_file(data_folder / ENROLMENT_FILE, msgspec.json.encode(kept))


def _key_made(data_folder: Path) -> NKey | IdentityRefused:
    """The folder's key; a fresh one where there is none."""
    try:
        data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (data_folder / KEY_FILE).exists():
            NKey.generate(KeyKind.USER).save(data_folder / KEY_FILE)
    except OSError as error:
        return IdentityRefused(FOLDER_UNUSABLE, f"{data_folder}: {error.strerror}")
    return _key_kept(data_folder)


def _key_kept(data_folder: Path) -> NKey | IdentityRefused:
    path = data_folder / KEY_FILE
    try:
        key = NKey.load(path)
    except OSError as error:
        return IdentityRefused(KEY_UNUSABLE, f"{path}: {error.strerror}")
    except (KeyFileUnsafe, KeyInvalid) as error:
        return IdentityRefused(KEY_UNUSABLE, str(error))
    if key.kind is not KeyKind.USER:
        return IdentityRefused(KEY_UNUSABLE, f"{path} holds no car's key")
    return key
