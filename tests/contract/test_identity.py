"""The car's identity: enrolled once with a code, kept private, renewed in time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from terafleet.agent.gateway import Gateway
from terafleet.agent.identity import (
    ENROLMENT_FILE,
    KEY_FILE,
    Identity,
    IdentityRefused,
    enrol,
    load_identity,
)
from terafleet.bus.credentials import KeyKind, decode_public_key
from terafleet.protocol.fleet_http import (
    ENROL_PATH,
    RENEW_PATH,
    EnrolRequest,
    RenewRequest,
    renew_text,
)
from tests.contract.agent_stage import (
    LIFE_S,
    NOW_S,
    VEHICLE,
    FakeGateway,
    an_enrolment,
    answer,
    until,
)


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway().open() as opened:
        yield opened


async def enrolled(gateway: FakeGateway, folder: Path) -> Identity:
    answer(gateway, ENROL_PATH, an_enrolment())
    outcome = await enrol(folder, gateway.url, "code", "a car", lambda: NOW_S)
    assert outcome == an_enrolment()
    return loaded(folder)


def loaded(folder: Path, wall_s: Callable[[], float] = lambda: NOW_S) -> Identity:
    identity = load_identity(folder, wall_s)
    assert isinstance(identity, Identity), identity
    return identity


def code_of(outcome: object) -> str:
    assert isinstance(outcome, IdentityRefused), outcome
    return outcome.code


async def test_a_car_enrols_with_a_key_that_it_keeps_to_itself(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    folder = tmp_path / "car"
    answer(gateway, ENROL_PATH, an_enrolment())
    await enrol(folder, gateway.url, " code\n", "a car", lambda: NOW_S)
    request = msgspec.json.decode(gateway.heard[0].body, type=EnrolRequest)
    assert (request.code, request.name) == ("code", "a car")
    identity = loaded(folder)
    assert identity.enrolment.vehicle_id == VEHICLE
    assert identity.enrolment.gateway_url == gateway.url
    assert identity.enrolment.name == "a car"
    credentials = identity.credentials()
    assert credentials.jwt == "first"
    public_key = Ed25519PublicKey.from_public_bytes(
        decode_public_key(request.public_key, KeyKind.USER)
    )
    public_key.verify(credentials.sign(b"challenge"), b"challenge")
    for name in (KEY_FILE, ENROLMENT_FILE):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "code", ["enrolment_code_invalid", "enrolment_code_used", "enrolment_code_expired"]
)
async def test_a_refused_code_has_a_name_and_an_advice(
    gateway: FakeGateway, tmp_path: Path, code: str
) -> None:
    gateway.refuse(ENROL_PATH, code)
    outcome = await enrol(tmp_path, gateway.url, "code", "a car")
    assert code_of(outcome) == code
    assert isinstance(outcome, IdentityRefused)
    assert outcome.advice
    assert code_of(load_identity(tmp_path)) == "not_enrolled"
    # The second try shows the same key: the first may have gone through unheard.
    await enrolled(gateway, tmp_path)
    keys = {msgspec.json.decode(one.body, type=EnrolRequest).public_key for one in gateway.heard}
    assert len(keys) == 1


async def test_a_gateway_that_is_not_there_has_a_name(tmp_path: Path) -> None:
    async with FakeGateway().open() as gone:
        url = gone.url
    assert code_of(await enrol(tmp_path, url, "code", "a car")) == "gateway_unreachable"


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>",
        b"{}",
        msgspec.json.encode(an_enrolment(vehicle_id="a.b")),
        msgspec.json.encode(an_enrolment(bus_urls=())),
        msgspec.json.encode(an_enrolment(manifest_key=b"short")),
        b"x" * 2_000_000,
    ],
)
async def test_an_odd_answer_is_refused_and_nothing_kept(
    gateway: FakeGateway, tmp_path: Path, reply: bytes
) -> None:
    gateway.answers[ENROL_PATH].append((200, reply))
    outcome = await enrol(tmp_path, gateway.url, "code", "a car")
    assert code_of(outcome) in ("gateway_odd", "reply_too_large")
    assert not (tmp_path / ENROLMENT_FILE).exists()


async def test_an_enrolled_folder_is_not_enrolled_again(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    await enrolled(gateway, tmp_path)
    asked = len(gateway.heard)
    assert code_of(await enrol(tmp_path, gateway.url, "code", "car")) == "already_enrolled"
    assert len(gateway.heard) == asked


async def test_damaged_files_have_a_name(gateway: FakeGateway, tmp_path: Path) -> None:
    await enrolled(gateway, tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    assert code_of(load_identity(tmp_path)) == "key_unusable"
    (tmp_path / KEY_FILE).unlink()
    assert code_of(load_identity(tmp_path)) == "key_unusable"
    (tmp_path / ENROLMENT_FILE).write_bytes(b"{")
    assert code_of(load_identity(tmp_path)) == "enrolment_unusable"


async def test_a_renewal_is_signed_by_the_cars_key_and_kept(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    identity = await enrolled(gateway, tmp_path)
    answer(gateway, RENEW_PATH, an_enrolment("second", expires_s=NOW_S + 2 * LIFE_S))
    way = Gateway(gateway.url)
    assert await identity.renew(way) is None
    await way.close()
    public = msgspec.json.decode(gateway.heard[0].body, type=EnrolRequest).public_key
    request = msgspec.json.decode(gateway.heard[1].body, type=RenewRequest)
    public_key = Ed25519PublicKey.from_public_bytes(decode_public_key(public, KeyKind.USER))
    public_key.verify(request.signature, renew_text(VEHICLE, NOW_S))
    assert identity.credentials().jwt == "second"
    assert loaded(tmp_path).credentials().jwt == "second"
    assert loaded(tmp_path).enrolment.gateway_url == gateway.url
    assert loaded(tmp_path).enrolment.name == identity.enrolment.name != ""


async def test_a_renewal_for_another_car_is_refused(gateway: FakeGateway, tmp_path: Path) -> None:
    identity = await enrolled(gateway, tmp_path)
    answer(gateway, RENEW_PATH, an_enrolment("second", vehicle_id="veh-zzzzzzzzzz"))
    way = Gateway(gateway.url)
    fault = await identity.renew(way)
    await way.close()
    assert fault is not None
    assert fault.code == "gateway_odd"
    assert identity.credentials().jwt == "first"


class Days:
    """A wall clock that moves only while somebody sleeps, and notes the sleeps."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)
        self.slept_s: list[float] = []

    def wall_s(self) -> float:
        return self.now_s

    async def sleep(self, pause_s: float) -> None:
        self.slept_s.append(pause_s)
        await asyncio.sleep(0)
        self.now_s += pause_s


async def test_the_credential_is_renewed_within_two_thirds_of_its_life(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    await enrolled(gateway, tmp_path)
    days = Days()
    identity = loaded(tmp_path, days.wall_s)
    renewed_s: list[float] = []
    for number in range(3):
        expires_s = NOW_S + (number + 2) * LIFE_S
        answer(gateway, RENEW_PATH, an_enrolment(f"renewal {number}", expires_s=expires_s))

    async def sleep(pause_s: float) -> None:
        if len(gateway.paths("POST")) - 1 > len(renewed_s):
            renewed_s.append(days.now_s)
        await days.sleep(pause_s)

    way = Gateway(gateway.url)
    keeping = asyncio.create_task(identity.keep_fresh(way, sleep, chance=lambda: 0.0))
    await until(lambda: len(renewed_s) >= 3)
    keeping.cancel()
    await asyncio.wait({keeping})
    await way.close()
    assert NOW_S < renewed_s[0] < NOW_S + LIFE_S * 2 / 3
    assert max(days.slept_s) <= 600, "a car that slept notices soon"
    assert renewed_s == sorted(renewed_s)


async def test_a_failed_renewal_is_tried_again_with_growing_pauses(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    await enrolled(gateway, tmp_path)
    days = Days()
    identity = loaded(tmp_path, days.wall_s)
    gateway.refuse(RENEW_PATH, "overloaded", times=100)
    identity.renew_soon()
    way = Gateway(gateway.url)
    keeping = asyncio.create_task(identity.keep_fresh(way, days.sleep, chance=lambda: 0.0))
    await until(lambda: len(days.slept_s) >= 9)
    keeping.cancel()
    await asyncio.wait({keeping})
    await way.close()
    assert days.slept_s[:9] == [10, 20, 40, 80, 160, 320, 600, 600, 600]


async def test_a_refusal_of_the_bus_renews_at_once_but_not_without_end(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    identity = await enrolled(gateway, tmp_path)
    for number in range(10):
        answer(gateway, RENEW_PATH, an_enrolment(f"renewal {number}"))
    waits: list[float] = []
    gate = asyncio.Event()

    async def sleep(pause_s: float) -> None:
        waits.append(pause_s)
        await gate.wait()

    way = Gateway(gateway.url)
    keeping = asyncio.create_task(identity.keep_fresh(way, sleep, chance=lambda: 0.0))
    await until(lambda: waits)
    assert gateway.paths("POST") == [ENROL_PATH]
    identity.renew_soon()
    await until(lambda: len(waits) == 2)
    identity.renew_soon()
    await asyncio.sleep(0.05)
    keeping.cancel()
    await asyncio.wait({keeping})
    await way.close()
    assert gateway.paths("POST") == [ENROL_PATH, RENEW_PATH]
    assert waits[1] >= 5
