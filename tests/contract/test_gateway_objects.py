"""Large blobs of cars over HTTP: outputs are put once, into a car's folder; parts are got."""

import asyncio
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

from terafleet.control.adapters.objects_folder import FolderObjects
from terafleet.control.gateway.bodies import body_chunks
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.fleet_objects import OBJECT_BYTES_MAX
from terafleet.control.gateway.ranges import ByteRange, RangeUnsatisfiable, requested_range
from terafleet.control.shard.performer import Addresses
from terafleet.core.ids import (
    BatchId,
    LeaseId,
    VehicleId,
    WorkUnitId,
    input_name,
    large_output_name,
    vehicle_outputs_folder,
)
from terafleet.protocol.addresses import Method, address_below, sign_address
from terafleet.protocol.fleet_http import OBJECTS_PATH, object_path
from tests.contract.gateway_app import Stage, code_of, serving

BATCH, VEHICLE = BatchId("batch_0a1b"), VehicleId("veh-abcdefghij")
FOLDER = vehicle_outputs_folder(BATCH, VEHICLE)
NAME = large_output_name(LeaseId(7), WorkUnitId(5))
OUTPUT = f"{FOLDER}{NAME}"


def signed(stage: Stage, method: Method, path: str) -> str:
    return sign_address(stage.context.address_secret, method, path, stage.now_ms // 1_000 + 60)


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), 100_000):
        yield body[begin : begin + 100_000]


async def open_folder(stage: Stage, batch_id: BatchId = BATCH, vehicle_id: str = VEHICLE) -> str:
    """The address that a shard gives a car for its outputs of a batch that is being done."""
    await stage.objects.write(input_name(batch_id), chunks(b"the inputs"))
    addresses = Addresses(stage.context.address_secret, lambda: stage.now_ms)
    return addresses.outputs(batch_id, VehicleId(vehicle_id))


async def put(client: httpx.AsyncClient, target: str, body: bytes = b"x") -> httpx.Response:
    """Put to an address exactly as it is written."""
    return await client.put("/", content=body, extensions={"target": target.encode()})


def outputs(stage: Stage) -> list[str]:
    """The names of all outputs that are stored."""
    return [name for name in stage.objects._objects if name.startswith("out")]


async def test_an_output_is_put_and_got() -> None:
    stage = Stage()
    body = secrets.token_bytes(3_000_000)
    async with serving(stage) as client:
        address = address_below(await open_folder(stage), NAME)
        assert (await client.put(address, content=chunks(body))).status_code == 204
        assert code_of(await client.get(address)) == "signature_wrong"
        response = await client.get(signed(stage, "GET", object_path(OUTPUT)))
        assert response.content == body
        assert response.headers["content-length"] == str(len(body))
        response = await client.put(signed(stage, "GET", object_path(OUTPUT)), content=b"x")
        assert code_of(response) == "signature_wrong"
        reading = signed(stage, "GET", object_path(FOLDER))
        assert code_of(await client.put(address_below(reading, NAME))) == "signature_wrong"
        assert code_of(await client.get(address_below(reading, NAME))) == "signature_wrong"
        assert await stage.objects.read(OUTPUT) == body


@pytest.mark.parametrize("is_folder", [False, True])
async def test_a_second_put_changes_nothing(is_folder: bool, tmp_path: Path) -> None:
    stage = Stage()
    if is_folder:
        objects: Any = FolderObjects(tmp_path)
        stage.objects = objects
        stage.context = msgspec.structs.replace(stage.context, objects=objects)
    body = secrets.token_bytes(3_000_000)
    async with serving(stage) as client:
        address = address_below(await open_folder(stage), NAME)
        assert (await client.put(address, content=chunks(body))).status_code == 204
        for another in (body, b"", b"forged", bytes(5_000_000)):
            assert (await client.put(address, content=another)).status_code == 204
            assert await stage.objects.read(OUTPUT) == body


async def test_a_put_that_was_broken_off_may_be_done_again() -> None:
    stage = Stage()

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(200_000)
        raise ConnectionResetError("the car is out of reach")

    async with serving(stage) as client:
        address = address_below(await open_folder(stage), NAME)
        with pytest.raises(ConnectionResetError):
            await client.put(address, content=broken())
        assert (await client.put(address, content=b"whole")).status_code == 204
        assert await stage.objects.read(OUTPUT) == b"whole"


async def test_cars_leases_and_units_have_each_their_own_output() -> None:
    stage = Stage()
    puts = [
        (VEHICLE, "7-5"), (VEHICLE, "7-6"), (VEHICLE, "8-5"), ("veh-other", "7-5"),
        (VEHICLE, "75-1"), (VEHICLE, f"{2**63 - 1}-{2**63 - 1}"),
    ]  # fmt: skip
    async with serving(stage) as client:
        for vehicle_id, name in puts:
            folder = await open_folder(stage, BATCH, vehicle_id)
            body = f"{vehicle_id} {name}".encode()
            assert (await put(client, address_below(folder, name), body)).status_code == 204
    for vehicle_id, name in puts:
        stored = await stage.objects.read(f"out/{BATCH}/{vehicle_id}/{name}")
        assert stored == f"{vehicle_id} {name}".encode()


ELSEWHERE = [
    "7-5/6", "sub/7-5", "../7-5", "..", ".", "../veh-other/7-5", "%2e%2e/veh-other/7-5",
    "..%2fveh-other%2f7-5", "%2e%2e%2fveh-other%2f7-5", "/7-5", "./7-5", "", "%2f",
    "7", "7-", "-5", "7-5-6", "-7-5", "7--5", "+7-5", "7-5.x", ".7-5", "x-y", "7-a", "7_5",
    "7-5%00", "7-5%0a", "7-5%20", "%37-5", "7%2d5", "7-5;", "7-5=",
    f"{10**19}-5", f"7-{10**19}", "7-5" + "0" * 200, "incoming=", "out=batch",
]  # fmt: skip


async def test_nothing_but_an_output_of_the_car_can_be_put_below_its_folder() -> None:
    stage = Stage()
    async with serving(stage) as client:
        folder = await open_folder(stage)
        for name in ELSEWHERE:
            response = await put(client, address_below(folder, name))
            assert code_of(response) == "signature_wrong", name
    assert outputs(stage) == []
    assert await stage.objects.read(input_name(BATCH)) == b"the inputs"


FOREIGN = [
    f"out/{BATCH}/veh-other/{NAME}", f"out/batch_other/{VEHICLE}/{NAME}",
    f"out/{BATCH}x/{VEHICLE}/{NAME}", f"out/{BATCH}/{NAME}", f"out/{NAME}", f"in/{NAME}",
    f"out/{BATCH}/{VEHICLE}x/{NAME}", f"{FOLDER}/{NAME}", f"./{OUTPUT}", f"../objects/{OUTPUT}",
    f"OUT/{BATCH}/{VEHICLE}/{NAME}", f"out/{BATCH}/%76eh-abcdefghij/{NAME}",
]  # fmt: skip


async def test_the_address_of_a_folder_is_good_for_no_other() -> None:
    stage = Stage()
    async with serving(stage) as client:
        _, _, query = (await open_folder(stage)).partition("?")
        await open_folder(stage, BatchId("batch_other"))
        for name in FOREIGN:
            path = f"{OBJECTS_PATH}/{name}"
            for target in (f"{path}?{query}", f"{path}?{query}&{query}", f"{path}?", path):
                assert code_of(await put(client, target)) == "signature_wrong", target
    assert outputs(stage) == []


async def test_what_is_signed_must_be_a_folder_of_outputs() -> None:
    stage = Stage()
    await open_folder(stage)
    folders = (
        "in/", "model/", "out/", f"out/{BATCH}/", f"{FOLDER}sub/", f"plan/{BATCH}/{VEHICLE}/",
        f"out/{BATCH}/{VEHICLE}/../", "out/batch/veh-a/", "out/batch_A/veh-a/", "out/batch_1/car/",
    )  # fmt: skip
    async with serving(stage) as client:
        for folder in folders:
            address = signed(stage, "PUT", object_path(folder))
            response = await put(client, address_below(address, NAME))
            assert code_of(response) == "signature_wrong", folder
        for whole in (object_path(OUTPUT), object_path(f"in/{BATCH}")):
            assert code_of(await put(client, signed(stage, "PUT", whole))) == "signature_wrong"
        response = await client.put(object_path(OUTPUT), content=b"x")
        assert code_of(response) == "signature_wrong"
    assert outputs(stage) == []
    assert await stage.objects.read(input_name(BATCH)) == b"the inputs"


async def test_the_address_of_a_folder_expires() -> None:
    stage = Stage()
    async with serving(stage) as client:
        address = address_below(await open_folder(stage), NAME)
        stage.now_ms += 3_600_000
        assert (await client.put(address, content=b"x")).status_code == 204
        stage.now_ms += 1_000
        assert code_of(await client.put(address, content=b"y")) == "address_expired"
    assert await stage.objects.read(OUTPUT) == b"x"


async def test_a_batch_that_has_ended_takes_no_more_outputs() -> None:
    stage = Stage()
    async with serving(stage) as client:
        folder = await open_folder(stage)
        assert (await client.put(address_below(folder, "7-5"), content=b"x")).status_code == 204
        await stage.objects.delete(input_name(BATCH))
        for name in ("7-5", "7-6"):
            response = await client.put(address_below(folder, name), content=bytes(3_000_000))
            assert code_of(response) == "batch_ended"
        another = await open_folder(stage, BatchId("batch_0a1b2"))
        assert (await client.put(address_below(another, "7-5"), content=b"x")).status_code == 204
    assert outputs(stage) == [OUTPUT, f"out/batch_0a1b2/{VEHICLE}/7-5"]


async def test_an_output_has_a_largest_size() -> None:
    stage = Stage()
    piece = bytes(1024 * 1024)

    async def too_long() -> AsyncIterator[bytes]:
        for _ in range(OBJECT_BYTES_MAX // len(piece)):
            yield piece
        yield b"1"

    async with serving(stage) as client:
        address = address_below(await open_folder(stage), "7-5")
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
