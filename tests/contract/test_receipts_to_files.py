"""A shard and a gateway together: from what cars hand in to the files that a customer reads."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from terafleet.bus.adapters.memory import MemoryBus
from terafleet.control.adapters.catalogue_memory import MemoryCatalogue
from terafleet.control.gateway.context import GatewayContext, GatewayLimits
from terafleet.control.gateway.stored_files import delete_file
from terafleet.control.gateway.work import GatewayWorkHandler
from terafleet.control.ports import FileRow
from terafleet.core.capability import ModelNeeds
from terafleet.core.ids import (
    WHOLE_LEASE,
    BatchId,
    LeaseId,
    ModelId,
    VehicleId,
    WorkUnitId,
    large_output_name,
    vehicle_outputs_folder,
)
from terafleet.core.reasons import LeaseEnding
from terafleet.core.work import BatchState
from terafleet.protocol import agent as wire
from terafleet.protocol import shard as q
from terafleet.protocol.manifest import SignedManifest
from terafleet.protocol.parcel import pack
from tests.contract.agent_stage import until
from tests.contract.customer_stage import MINI, line, model_row
from tests.contract.fake_shard import embedded
from tests.contract.live_stage import live_sessions
from tests.contract.shard_stage import (
    CUSTOMER,
    EMBEDDINGS,
    SECRET,
    WINDOW_MS,
    FakeCar,
    ShardStage,
    receipt_of,
    reopen_memory,
    result_of,
    settings_of,
)

BATCH = BatchId("batch_1")
FILE = FileRow("file-in", CUSTOMER, "in.jsonl", "batch", 0, 0, "file/file-in")
REQUESTS = 400
SLOTS = 4
Lines = list[dict[str, Any]]


def answers_to(payload: bytes) -> bytes:
    """What a car answers to the input of a unit: a good line for each."""
    answers = [embedded(msgspec.json.decode(text)) for text in payload.splitlines()]
    return b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers)


def ids_of(unit: wire.OfferedUnit) -> set[str]:
    """The requests of a unit, by the names that the customer gave them."""
    texts = [msgspec.json.decode(text)["input"] for text in unit.payload.splitlines()]
    return {text.partition(" ")[0] for text in texts}


def ids(file: Lines) -> list[str]:
    return [found["custom_id"] for found in file]


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


class House:
    """A shard, a gateway that does its work, one batch and one car."""

    def __init__(self) -> None:
        settings = settings_of(4)
        # Nothing that is asked of the gateway is asked a second time.
        fleet = msgspec.structs.replace(settings.fleet, gateway_retry_ms=WINDOW_MS)
        self.stage = ShardStage(reopen_memory(), msgspec.structs.replace(settings, fleet=fleet))
        self.objects = self.stage.objects
        self.catalogue = MemoryCatalogue()
        self.context = GatewayContext(
            bus=MemoryBus(self.stage.broker),
            live=live_sessions(MemoryBus(self.stage.broker)),
            catalogue=self.catalogue,
            objects=self.objects,
            limits=GatewayLimits(),
            address_secret=SECRET,
            manifest_key=b"",
            bus_urls=(),
            now_ms=lambda: 1_000_000,
            new_id=lambda: "",
            sign_manifest=lambda manifest: SignedManifest(manifest, b""),
            issue_credential=lambda _, __: ("", 0),
            is_storage_full=lambda: False,
        )
        self.work = GatewayWorkHandler(self.context, retry_ms=(0, 0))

    async def open(self, *, works: bool = True) -> FakeCar:
        """All are there, and the batch is admitted; cut as well, if the gateway works."""
        await self.context.bus.connect()
        await self.stage.open(works=False)
        row = model_row(MINI, EMBEDDINGS)
        self.catalogue.add_model(row)
        needs = ModelNeeds(ModelId(row.model_id), MINI, "onnx", 500, (EMBEDDINGS,))
        await self.context.ask(q.AddModel(needs), q.Answered)
        car = await self.stage.add_car("a", SLOTS)
        car.answer = answers_to
        body = b"\n".join(line(f"r{n}", text=f"r{n} {'x' * 100}") for n in range(REQUESTS))
        await self.objects.write(FILE.object_name, pieces(body))
        self.catalogue.add_file(FILE)
        if works:
            await self.work.start()
        created = q.CreateBatch(
            BATCH, CUSTOMER, EMBEDDINGS, (needs.model_id,), REQUESTS, WINDOW_MS, FILE.file_id, b""
        )
        await self.context.ask(created, q.Answered)
        if works:
            await until(lambda: len(car.leases) == SLOTS)
        return car

    async def finish_all(self, car: FakeCar) -> None:
        """The car does all that is left, a lease to a receipt."""
        car.works = True
        car.units_per_receipt = 99
        while car.finish(99):
            pass
        await until(lambda: self.batch().state is BatchState.COMPLETED)
        await self.work.finish()

    def batch(self) -> q.BatchView:
        """What the customer reads of the batch."""
        record = self.stage.store.record("batch", BATCH)
        assert record is not None
        assert record.body is not None
        return msgspec.msgpack.decode(record.body, type=q.BatchView)

    async def files(self) -> tuple[Lines, Lines]:
        """The lines of the output file and of the error file."""
        view = self.batch()
        return await self._lines(view.output_file_id), await self._lines(view.error_file_id)

    async def _lines(self, file_id: str) -> Lines:
        row = self.catalogue.file(file_id) if file_id else None
        body = await self.objects.read(row.object_name) if row else b""
        return [json.loads(text) for text in body.splitlines()]

    def objects_of_batch(self) -> list[str]:
        """What is stored for the batch's units."""
        return [name for name in self.objects._objects if not name.startswith("file/")]


def leases(car: FakeCar) -> list[tuple[LeaseId, int]]:
    """The leases that a car holds, and how many units each has."""
    return [(lease_id, len(units)) for lease_id, units in car.leases.items()]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    await made.work.close()
    await made.stage.close()


async def test_outputs_that_came_together_lie_in_the_file_each_in_its_place(house: House) -> None:
    car = await house.open()
    assert max(count for _, count in leases(car)) > 1
    await house.finish_all(car)
    good, bad = await house.files()
    assert ids(good) == [f"r{number}" for number in range(REQUESTS)]
    assert bad == []
    view = house.batch()
    assert (view.requests_completed, view.requests_failed) == (REQUESTS, 0)
    assert view.units_ended == view.units > len(car.acknowledged()) > 0
    assert car.done == dict.fromkeys(range(1, view.units + 1), 1)


async def test_a_damaged_parcel_costs_its_own_requests_only(house: House) -> None:
    car = await house.open()
    garbage, lacking, *_ = [lease_id for lease_id, count in leases(car) if count > 1]
    all_damaged = car.take(garbage, 99)
    car.hand_in(handed_in(garbage, all_damaged, b"\xff garbage"))
    some = car.take(lacking, 99)
    parcel = pack((one.unit_id, answers_to(one.payload)) for one in some[1:])
    car.hand_in(handed_in(lacking, some, parcel))
    await house.finish_all(car)
    good, bad = await house.files()
    lost = set().union(*map(ids_of, [*all_damaged, some[0]]))
    assert set(ids(bad)) == lost
    assert {found["error"]["code"] for found in bad} == {"output_damaged"}
    assert ids(good) == [f"r{number}" for number in range(REQUESTS) if f"r{number}" not in lost]
    assert len(good) + len(bad) == REQUESTS


def handed_in(lease_id: LeaseId, units: list[wire.OfferedUnit], parcel: bytes) -> wire.Receipt:
    """The receipt of units with all their answers, as the car says, and this parcel."""
    made = receipt_of(lease_id, dict.fromkeys((one.unit_id for one in units), b""), parcel)
    results = tuple(result_of(one.unit_id, one.requests) for one in units)
    return msgspec.structs.replace(made, results=results)


async def put(house: House, vehicle_id: VehicleId, key: tuple[int, int], body: bytes) -> None:
    """An output lies among the objects, where its car may put it; `key` is lease and unit."""
    folder = vehicle_outputs_folder(BATCH, vehicle_id)
    name = large_output_name(LeaseId(key[0]), WorkUnitId(key[1]))
    await house.objects.write(f"{folder}{name}", pieces(body))


async def test_large_outputs_stand_among_the_small_ones(house: House) -> None:
    car = await house.open()
    lease_id = next(lease_id for lease_id, count in leases(car) if count > 1)
    (large,) = car.take(lease_id, 1)
    await put(house, car.vehicle_id, (lease_id, large.unit_id), answers_to(large.payload))
    car.hand_in(handed_in(lease_id, [large], b""))
    never_put = next(iter(car.leases))
    (lost,) = car.take(never_put, 1)
    car.hand_in(handed_in(never_put, [lost], b""))
    await house.finish_all(car)
    good, bad = await house.files()
    assert set(ids(bad)) == ids_of(lost)
    assert len(good) + len(bad) == REQUESTS
    assert ids_of(large) <= set(ids(good))


async def test_nothing_is_left_of_a_batch_but_its_files(house: House) -> None:
    car = await house.open()
    lease_id = next(iter(car.leases))
    (large,) = car.take(lease_id, 1)
    await put(house, car.vehicle_id, (lease_id, large.unit_id), answers_to(large.payload))
    for vehicle_id in (car.vehicle_id, VehicleId("veh-gone")):
        for key in ((99, large.unit_id), (99, 98)):
            await put(house, vehicle_id, key, b"never counted")
    car.hand_in(handed_in(lease_id, [large], b""))
    assert len(house.objects_of_batch()) == 7, "inputs, plan, and outputs"
    await house.finish_all(car)
    await until(lambda: not house.objects_of_batch())
    car.say(wire.PermitReport(car.epoch, ()))
    await until(lambda: not list(house.stage.store.blob_names("out/")))
    good, bad = await house.files()
    assert (len(good), bad) == (REQUESTS, [])
    assert await house.objects.info(FILE.object_name) is not None


async def test_a_deleted_file_goes_with_a_batch_that_is_cancelled_before_its_cut(
    house: House,
) -> None:
    await house.open(works=False)
    await delete_file(house.context, FILE)
    assert await house.objects.info(FILE.object_name) is not None, "the batch waits for it"
    await house.work.start()
    await house.context.ask(q.CancelBatch(BATCH, CUSTOMER), q.Answered)
    await until(lambda: house.batch().state is BatchState.CANCELLED)
    await until(lambda: not house.objects._objects)
    assert house.catalogue._files == {}


async def test_a_lease_that_was_given_back_in_part_is_done_elsewhere(house: House) -> None:
    """The units that its receipt did not bring wait again; those that it brought stay."""
    car = await house.open()
    lease_id, count = next(one for one in leases(car) if one[1] > 1)
    car.finish(count - 1)
    await until(lambda: not car.kept)
    (last,) = car.take(lease_id, 1)
    released = wire.Receipt(lease_id, WHOLE_LEASE, ending=LeaseEnding.OWNER_RETURNED)
    car.hand_in(released)
    await until(lambda: (lease_id, -1) in car.acknowledged())
    await house.finish_all(car)
    good, bad = await house.files()
    assert ids(good) == [f"r{number}" for number in range(REQUESTS)]
    assert bad == []
    assert car.done[last.unit_id] == 1
