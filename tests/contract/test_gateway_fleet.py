"""What vehicle agents can do over HTTP: enrol, renew, fetch models."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator

import httpx
import msgspec

from terafleet.bus.credentials import KeyKind, NKey, UserClaims, verify_user_jwt
from terafleet.control.gateway.attempts import ATTEMPTS_MAX, SOURCES_MAX, WINDOW_MS, Attempts
from terafleet.control.gateway.keys import code_row, enrolment_code
from terafleet.core.ids import VehicleId
from terafleet.protocol.addresses import Method, sign_address
from terafleet.protocol.fleet_http import (
    Enrolment,
    EnrolRequest,
    RenewRequest,
    model_path,
    renew_text,
)
from terafleet.protocol.manifest import ModelOffer
from terafleet.protocol.shard import EnrolVehicle
from tests.contract.gateway_app import CREDENTIAL_S, START_MS, Stage, code_of, decoded, serving
from tests.contract.model_bodies import mini, publish

NOW_S = START_MS // 1_000


def new_code(stage: Stage, valid_ms: int = 60_000) -> str:
    code = enrolment_code(secrets.token_bytes(20))
    stage.catalogue.add_code(code_row(code, stage.now_ms, stage.now_ms + valid_ms))
    return code


async def post(client: httpx.AsyncClient, path: str, body: msgspec.Struct) -> httpx.Response:
    return await client.post(f"/fleet/v1/{path}", content=msgspec.json.encode(body))


async def enrol(client: httpx.AsyncClient, stage: Stage, key: NKey) -> Enrolment:
    request = EnrolRequest(new_code(stage), key.public, "a car")
    enrolment = decoded(await post(client, "enrol", request), Enrolment)
    assert isinstance(enrolment, Enrolment)
    return enrolment


def renewal(vehicle_id: str, key: NKey, at_s: int = NOW_S) -> RenewRequest:
    signature = key.sign(renew_text(VehicleId(vehicle_id), at_s))
    return RenewRequest(VehicleId(vehicle_id), at_s, signature)


def claims_of(stage: Stage, enrolment: Enrolment) -> UserClaims:
    account = stage.operator_keys.account.public
    claims = verify_user_jwt(enrolment.credential, account, stage.now_ms // 1_000)
    assert isinstance(claims, UserClaims)
    return claims


def signed(stage: Stage, method: Method, path: str) -> str:
    return sign_address(stage.context.address_secret, method, path, stage.now_ms // 1_000 + 60)


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), 100_000):
        yield body[begin : begin + 100_000]


async def test_a_car_enrols() -> None:
    stage = Stage()
    key = NKey.generate()
    async with serving(stage) as client:
        enrolment = await enrol(client, stage, key)
    assert enrolment.vehicle_id.startswith("veh-")
    assert len(enrolment.vehicle_id) == 14
    assert enrolment.vehicle_id[4:].isalpha()
    assert enrolment.bus_urls == stage.context.bus_urls
    assert enrolment.manifest_key == stage.context.manifest_key
    assert enrolment.expires_s == NOW_S + CREDENTIAL_S
    claims = claims_of(stage, enrolment)
    assert (claims.public_key, claims.name) == (key.public, enrolment.vehicle_id)
    (row,) = stage.catalogue.vehicles()
    assert (row.vehicle_id, row.public_key) == (enrolment.vehicle_id, key.public)
    assert stage.shard.asked(EnrolVehicle) == [EnrolVehicle(enrolment.vehicle_id, "a car")]


async def test_a_car_that_lost_the_answer_gets_it_again_and_nobody_else_does() -> None:
    stage = Stage()
    key = NKey.generate()
    code = new_code(stage)
    request = EnrolRequest(code, key.public, "a car")
    async with serving(stage) as client:
        await stage.shard.bus.close()
        assert code_of(await post(client, "enrol", request)) == "shard_unavailable"
        await stage.shard.start()
        stage.now_ms += 30 * 60_000
        first = decoded(await post(client, "enrol", request), Enrolment)
        again = decoded(await post(client, "enrol", request), Enrolment)
        assert again.vehicle_id == first.vehicle_id
        assert len(stage.catalogue.vehicles()) == 1
        other = EnrolRequest(code, NKey.generate().public, "a car")
        assert code_of(await post(client, "enrol", other)) == "enrolment_code_used"
        stage.now_ms += 31 * 60_000
        assert code_of(await post(client, "enrol", request)) == "enrolment_code_used"


async def test_a_removed_car_can_not_come_back_with_its_code() -> None:
    stage = Stage()
    key = NKey.generate()
    request = EnrolRequest(new_code(stage), key.public, "a car")
    async with serving(stage) as client:
        enrolment = decoded(await post(client, "enrol", request), Enrolment)
        stage.catalogue.remove_vehicle(enrolment.vehicle_id, stage.now_ms)
        assert code_of(await post(client, "enrol", request)) == "enrolment_code_used"


async def test_of_many_cars_with_one_code_one_enrols() -> None:
    stage = Stage()
    code = new_code(stage)
    requests = [EnrolRequest(code, NKey.generate().public, "a car") for _ in range(10)]
    async with serving(stage) as client:
        answers = await asyncio.gather(*(post(client, "enrol", request) for request in requests))
    assert sorted(answer.status_code for answer in answers) == [200] + [403] * 9
    assert len(stage.catalogue.vehicles()) == 1


async def test_wrong_codes_are_refused() -> None:
    stage = Stage()
    key = NKey.generate().public
    expired = new_code(stage, valid_ms=0)
    async with serving(stage) as client:
        for code, expected in (
            ("no-such-code", "enrolment_code_invalid"),
            (expired, "enrolment_code_expired"),
            ("", "invalid_value"),
            ("a" * 65, "invalid_value"),
        ):
            response = await post(client, "enrol", EnrolRequest(code, key, "a car"))
            assert code_of(response) == expected
    assert stage.shard.questions == []


async def test_what_is_not_a_cars_public_key_is_refused_and_costs_no_code() -> None:
    stage = Stage()
    code = new_code(stage)
    good = NKey.generate()
    last = "A" if good.public[-1] != "A" else "B"
    async with serving(stage) as client:
        for public_key in (
            "",
            good.seed,
            good.public[:-1],
            good.public[:-1] + last,
            good.public.lower(),
            f"{good.public} ",
            good.public + "A",
            NKey.generate(KeyKind.ACCOUNT).public,
            NKey.generate(KeyKind.OPERATOR).public,
            "U" * 56,
            "ä" * 56,
        ):
            response = await post(client, "enrol", EnrolRequest(code, public_key, "a car"))
            assert code_of(response) == "invalid_value", public_key
            assert response.json()["error"]["param"] == "public_key"
        for name in ("", "a" * 101, "a\nb"):
            response = await post(client, "enrol", EnrolRequest(code, good.public, name))
            assert response.json()["error"]["param"] == "name"
        response = await post(client, "enrol", EnrolRequest(code, good.public, "a car"))
        assert response.status_code == 200


async def test_the_bodies_of_these_routes_are_small() -> None:
    stage = Stage()
    async with serving(stage) as client:
        for path in ("enrol", "renew"):
            response = await client.post(f"/fleet/v1/{path}", content=b" " * 10_000)
            assert code_of(response) == "file_too_large"


async def test_a_car_renews_its_credential() -> None:
    stage = Stage()
    key = NKey.generate()
    async with serving(stage) as client:
        enrolment = await enrol(client, stage, key)
        stage.now_ms += 3_600_000
        request = renewal(enrolment.vehicle_id, key, NOW_S + 3_600)
        renewed = decoded(await post(client, "renew", request), Enrolment)
        assert renewed.expires_s == enrolment.expires_s + 3_600
        claims = claims_of(stage, renewed)
        assert (claims.public_key, claims.name) == (key.public, enrolment.vehicle_id)
        again = decoded(await post(client, "renew", request), Enrolment)
        assert claims_of(stage, again).public_key == key.public


async def test_a_renewal_must_be_signed_by_the_car_at_this_time() -> None:
    stage = Stage()
    key, other = NKey.generate(), NKey.generate()
    async with serving(stage) as client:
        vehicle_id = (await enrol(client, stage, key)).vehicle_id
        other_id = (await enrol(client, stage, other)).vehicle_id
        for away_s in (-301, 301):
            response = await post(client, "renew", renewal(vehicle_id, key, NOW_S + away_s))
            assert code_of(response) == "signature_wrong"
        for away_s in (-300, 300):
            response = await post(client, "renew", renewal(vehicle_id, key, NOW_S + away_s))
            assert response.status_code == 200
        good = renewal(vehicle_id, key)
        for request, expected in (
            (renewal(vehicle_id, other), "signature_wrong"),
            (RenewRequest(vehicle_id, NOW_S + 1, good.signature), "signature_wrong"),
            (RenewRequest(vehicle_id, NOW_S, b""), "signature_wrong"),
            (RenewRequest(vehicle_id, NOW_S, good.signature[:-1]), "signature_wrong"),
            (RenewRequest(vehicle_id, NOW_S, good.signature + b"\0"), "signature_wrong"),
            (RenewRequest(other_id, NOW_S, good.signature), "signature_wrong"),
            (renewal("veh-unknownnnn", key), "vehicle_not_found"),
            (renewal("../veh", key), "vehicle_not_found"),
            (renewal(vehicle_id, key, 2**70), "signature_wrong"),
        ):
            assert code_of(await post(client, "renew", request)) == expected
        stage.catalogue.remove_vehicle(vehicle_id, stage.now_ms)
        assert code_of(await post(client, "renew", good)) == "vehicle_not_found"


async def test_who_guesses_is_slowed_down_and_who_knows_is_not() -> None:
    stage = Stage()
    key = NKey.generate()
    async with serving(stage) as client:
        vehicle_id = (await enrol(client, stage, key)).vehicle_id
        for _ in range(2 * ATTEMPTS_MAX):
            response = await post(client, "renew", renewal(vehicle_id, key))
            assert response.status_code == 200
        guess = EnrolRequest("a-guess", key.public, "a car")
        for _ in range(ATTEMPTS_MAX):
            assert code_of(await post(client, "enrol", guess)) == "enrolment_code_invalid"
        response = await post(client, "enrol", guess)
        assert code_of(response) == "overloaded"
        assert response.headers["retry-after"] == "60"
        stage.now_ms += WINDOW_MS
        assert code_of(await post(client, "enrol", guess)) == "enrolment_code_invalid"


def test_attempts_take_bounded_memory() -> None:
    attempts = Attempts()
    for number in range(SOURCES_MAX + 10):
        for _ in range(ATTEMPTS_MAX):
            attempts.failed(f"source {number}", 0)
    assert attempts.wait_ms("source 0", 1) == 0
    assert attempts.wait_ms(f"source {SOURCES_MAX}", 1) == WINDOW_MS - 1
    assert attempts.wait_ms(f"source {SOURCES_MAX}", WINDOW_MS) == 0


async def test_a_car_fetches_a_model_with_signed_addresses() -> None:
    stage = Stage()
    files = mini()
    async with serving(stage, stage.add_key("operator")) as client:
        view = await publish(client, files)
        del client.headers["authorization"]
        path = model_path(view.model_id)
        assert code_of(await client.get(path)) == "signature_wrong"
        offer = decoded(await client.get(signed(stage, "GET", path)), ModelOffer)
        row = stage.catalogue.model(view.model_id)
        assert row is not None
        assert offer.signed == row.signed
        for file in view.manifest.files:
            response = await client.get(offer.addresses[file.name])
            assert response.content == files[file.name]
            assert hashlib.sha256(response.content).hexdigest() == file.sha256
        stage.catalogue.remove_model(view.model_id, stage.now_ms)
        offered = await client.get(signed(stage, "GET", path))
        assert offered.status_code == 200, "accepted work on a removed model goes on"
        response = await client.get(signed(stage, "GET", model_path("0" * 64)))
        assert code_of(response) == "model_not_found"
        stage.now_ms += 3_601_000
        assert code_of(await client.get(offer.addresses["model.onnx"])) == "address_expired"
