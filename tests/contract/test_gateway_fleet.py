"""What vehicle agents can do over HTTP: enrol, renew, fetch models, get and put blobs."""

import asyncio
import hashlib
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.bus.credentials import KeyKind, NKey, UserClaims, verify_user_jwt
from terafleet.control.adapters.objects_folder import FolderObjects
from terafleet.control.gateway.attempts import ATTEMPTS_MAX, SOURCES_MAX, WINDOW_MS, Attempts
from terafleet.control.gateway.bodies import body_chunks
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.fleet_objects import OBJECT_BYTES_MAX
from terafleet.control.gateway.keys import code_row, enrolment_code
from terafleet.control.gateway.ranges import ByteRange, RangeUnsatisfiable, requested_range
from terafleet.core.ids import LeaseId, VehicleId, WorkUnitId, output_name
from terafleet.protocol.addresses import Method, sign_address
from terafleet.protocol.fleet_http import (
    Enrolment,
    EnrolRequest,
    RenewRequest,
    model_path,
    object_path,
    renew_text,
)
from terafleet.protocol.manifest import ModelOffer
from terafleet.protocol.shard import EnrolVehicle
from tests.contract.gateway_app import CREDENTIAL_S, START_MS, Stage, code_of, decoded, serving
from tests.contract.model_bodies import mini, publish

NOW_S = START_MS // 1_000
OUTPUT = output_name(LeaseId(7), WorkUnitId(5))


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


async def test_an_output_is_put_and_got() -> None:
    stage = Stage()
    body = secrets.token_bytes(3_000_000)
    async with serving(stage) as client:
        address = signed(stage, "PUT", object_path(OUTPUT))
        assert (await client.put(address, content=chunks(body))).status_code == 204
        assert (await client.put(address, content=body)).status_code == 204, "again is harmless"
        assert code_of(await client.get(address)) == "signature_wrong"
        response = await client.get(signed(stage, "GET", object_path(OUTPUT)))
        assert response.content == body
        assert response.headers["content-length"] == str(len(body))
        response = await client.put(signed(stage, "GET", object_path(OUTPUT)), content=b"x")
        assert code_of(response) == "signature_wrong"
        assert await stage.objects.read(OUTPUT) == body


async def test_nothing_but_outputs_can_be_put() -> None:
    stage = Stage()
    names = ("in/b", "model/abc", "out", "output/1", "out/../in/x", "out//x", "out/X", "out/.x")
    async with serving(stage) as client:
        for name in names:
            target = signed(stage, "PUT", object_path(name)).encode()
            response = await client.put("/", content=b"x", extensions={"target": target})
            assert code_of(response) == "signature_wrong", name
        response = await client.put(object_path(OUTPUT), content=b"x")
        assert code_of(response) == "signature_wrong"
    for name in ("in/b", "in/x", "out/x", OUTPUT):
        assert await stage.objects.info(name) is None


async def test_an_output_has_a_largest_size() -> None:
    stage = Stage()
    piece = bytes(1024 * 1024)

    async def too_long() -> AsyncIterator[bytes]:
        for _ in range(OBJECT_BYTES_MAX // len(piece)):
            yield piece
        yield b"1"

    async with serving(stage) as client:
        address = signed(stage, "PUT", object_path(OUTPUT))
        headers = {"content-length": str(OBJECT_BYTES_MAX + 1)}
        refused = await announce(client, address, headers)
        assert b" 413 " in refused
        assert b"file_too_large" in refused
        try:
            response = await client.put(address, content=too_long())
        except httpx.TransportError:
            pass  # The connection may be closed while we are still sending.
        else:
            assert code_of(response) == "file_too_large"
    assert await stage.objects.info(OUTPUT) is None


async def announce(client: httpx.AsyncClient, address: str, headers: dict[str, str]) -> bytes:
    """What comes back when the head of a PUT was sent and nothing else."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    lines = [f"PUT {address} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


@pytest.mark.parametrize("is_folder", [False, True])
async def test_ranges_of_objects(is_folder: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage()
        objects: Any = FolderObjects(Path(folder)) if is_folder else stage.objects
        stage.context = msgspec.structs.replace(stage.context, objects=objects)
        body = secrets.token_bytes(2_500_000)
        await objects.write("in/b", chunks(body))
        async with serving(stage) as client:
            await check_ranges(client, signed(stage, "GET", object_path("in/b")), body)
            part = body[1_000_000:1_600_000]
            address = signed(stage, "GET", object_path("in/b", 1_000_000, 600_000))
            await check_ranges(client, address, part)
            rest = signed(stage, "GET", object_path("in/b", 2_400_000, -1))
            assert (await client.get(rest)).content == body[2_400_000:]
            behind = signed(stage, "GET", object_path("in/b", 9_000_000, 10))
            assert (await client.get(behind)).content == b""
            missing = signed(stage, "GET", object_path("in/c"))
            assert code_of(await client.get(missing)) == "not_found"


async def check_ranges(client: httpx.AsyncClient, address: str, body: bytes) -> None:
    whole = await client.get(address)
    assert whole.status_code == 200
    assert whole.content == body
    assert whole.headers["accept-ranges"] == "bytes"
    etag = whole.headers["etag"]
    size = len(body)
    for header, begin, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, size),
        ("bytes=100-199", 100, 200),
        (f"bytes={size - 1}-", size - 1, size),
        ("bytes=300000-599999", 300_000, 600_000),
        ("bytes=-5", size - 5, size),
        (f"bytes=5-{size + 10}", 5, size),
    ):
        response = await client.get(address, headers={"range": header, "if-range": etag})
        assert response.status_code == 206
        assert response.content == body[begin:end]
        assert response.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
        assert response.headers["content-length"] == str(end - begin)
    for header in ("bytes=5-4", "bytes=a-b", "bytes=0-1,3-4", "items=0-1", "bytes=-"):
        response = await client.get(address, headers={"range": header})
        assert (response.status_code, len(response.content)) == (200, size)
    changed = {"range": "bytes=5-", "if-range": '"another"'}
    assert len((await client.get(address, headers=changed)).content) == size
    response = await client.get(address, headers={"range": f"bytes={size}-"})
    assert code_of(response) == "range_unsatisfiable"
    assert response.headers["content-range"] == f"bytes */{size}"


@given(size=st.integers(0, 20), first=st.integers(0, 25), last=st.integers(0, 25))
def test_a_range_gives_what_slices_give(size: int, first: int, last: int) -> None:
    body = bytes(range(size))
    for header, expected in (
        (f"bytes={first}-{last}", body[first : last + 1]),
        (f"bytes={first}-", body[first:]),
        (f"bytes=-{last}", body[-last:] if last else b""),
    ):
        found = requested_range(header, size)
        if found is None:
            assert header.endswith(f"-{last}")
            assert last < first
        elif isinstance(found, RangeUnsatisfiable):
            assert expected == b""
        else:
            assert isinstance(found, ByteRange)
            assert found.length >= 1
            assert body[found.offset : found.offset + found.length] == expected


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    class Silent:
        async def stream(self) -> AsyncIterator[bytes]:
            yield b"begin"
            await asyncio.Event().wait()

    silent: Any = Silent()
    body = body_chunks(silent, silence_s=0.01)
    assert await anext(body) == b"begin"
    with pytest.raises(ApiError, match="did not come"):
        await anext(body)


async def test_a_client_that_goes_away_does_no_harm() -> None:
    stage = Stage()
    await stage.objects.write("in/b", chunks(bytes(30_000_000)))
    async with serving(stage) as client:
        address = signed(stage, "GET", object_path("in/b"))
        for _ in range(3):
            async with client.stream("GET", address) as response:
                await anext(response.aiter_raw())
        assert (await client.get("/healthz")).status_code == 200
