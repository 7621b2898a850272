"""A whole shard: batches from the question to the file, and restarts in the middle."""

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from terafleet.control.shard.journal import FLEET_CODEC
from terafleet.core.ids import (
    WHOLE_LEASE,
    BatchId,
    LeaseId,
    ReceiptId,
    WorkUnitId,
    large_output_name,
    output_name,
)
from terafleet.core.reasons import LeaseEnding, Refusal
from terafleet.core.work import BatchState
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.ports import Blob, JournalEntry
from terafleet.protocol import agent as wire
from terafleet.protocol import shard as q
from terafleet.protocol.addresses import address_below, address_fault, folder_fault
from terafleet.protocol.fleet_http import object_path
from tests.contract.agent_stage import until
from tests.contract.engine_stage import reopen_postgresql
from tests.contract.shard_stage import (
    CUSTOMER,
    LINES,
    SECRET,
    Reopen,
    ShardStage,
    receipt_of,
    reopen_memory,
    settings_of,
    units_of,
)

ANSWERS = b"".join(LINES).upper()
BATCH = BatchId("batch_1")


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ShardStage]:
    reopens: dict[str, Callable[[], Reopen]] = {
        "memory": reopen_memory,
        "sqlite": lambda: lambda: SqliteStore(tmp_path / "record.db", "NORMAL"),
        "postgresql": lambda: reopen_postgresql(request.getfixturevalue("postgresql_database")),
    }
    made = ShardStage(reopens[request.param]())
    yield made
    await made.close()


@pytest.fixture
async def quick() -> AsyncIterator[ShardStage]:
    """A stage whose record is in memory, for what is the same on any record."""
    made = ShardStage(reopen_memory())
    yield made
    await made.close()


# A batch.


@pytest.mark.parametrize("units_per_receipt", [1, 2])
async def test_a_batch_from_the_question_to_the_file(
    stage: ShardStage, units_per_receipt: int
) -> None:
    await stage.open()
    for name in ("a", "b"):
        car = await stage.add_car(name, works=True)
        car.units_per_receipt = units_per_receipt
    assert await stage.gateway.create("batch_1", LINES) == q.Answered()
    await until(lambda: stage.gateway.asked_for(q.Forget))
    assert stage.gateway.files[BATCH] == ANSWERS, "in the order of the cut"
    view = await stage.gateway.view("batch_1")
    assert (view.state, view.output_file_id) == (BatchState.COMPLETED, "file-out")
    assert (view.requests_completed, view.requests_failed, view.units) == (6, 0, 6)
    assert (view.prompt_tokens, view.metadata) == (30, b"{}")
    assert view.created_ms <= view.in_progress_ms <= view.finalizing_ms <= view.ended_ms
    assert stage.cars[0].done + stage.cars[1].done == dict.fromkeys(range(1, 7), 1)
    assert all(not car.kept for car in stage.cars), "every receipt is acknowledged"
    await stage.gateway.ask(q.ListVehicles(), q.VehicleList)
    stage.cars[0].say(wire.PermitReport(stage.cars[0].epoch, ()))
    await until(lambda: not list(stage.store.blob_names("out/")))
    assert not stage.shard.fleet.state.units


async def test_a_grant_carries_all_that_a_car_needs(quick: ShardStage) -> None:
    await quick.open()
    large = b"x" * (wire.INLINE_BYTES_MAX + 1)
    car = await quick.add_car("a", slots=2)
    await quick.gateway.create("batch_1", [b"small\n", large])
    await until(lambda: len(units_of(car)) == 2)
    small_unit, large_unit = [unit for units in car.leases.values() for unit in units]
    assert (small_unit.payload, small_unit.input_address) == (b"small\n", "")
    assert small_unit.digest == hashlib.sha256(b"small\n").digest()
    assert large_unit.payload == b""
    granted = car.all(wire.Grants)[0]
    grant = granted.grants[0]
    for address in (large_unit.input_address, grant.manifest_address):
        assert address_fault(SECRET, "GET", address, 0) is None
    for unit in (small_unit, large_unit):
        name = large_output_name(grant.lease_id, unit.unit_id)
        output = address_below(grant.outputs_address, name)
        assert folder_fault(SECRET, "PUT", output, 0) is None
        path, _, _ = output.partition("?")
        assert path == object_path(f"out/batch_1/veh-a/{grant.lease_id}-{unit.unit_id}")
    assert granted.epoch == car.epoch


async def test_a_car_that_gives_back_is_followed_by_another(quick: ShardStage) -> None:
    await quick.open()
    car = await quick.add_car("a")
    await quick.gateway.create("batch_1", LINES[:1])
    await until(lambda: car.leases)
    other = await quick.add_car("b", works=True)
    (lease_id,) = car.leases
    car.say(wire.PermitReport(car.epoch, (Refusal.DRIVER_PRESENT,)))
    car.leases.clear()
    ending = LeaseEnding.OWNER_RETURNED
    car.hand_in(wire.Receipt(lease_id, WHOLE_LEASE, ending=ending))
    await until(lambda: BATCH in quick.gateway.files)
    assert len(other.done) == 1
    assert car.all(wire.Acknowledge)


async def test_a_cancelled_batch_is_revoked_and_delivers_what_is_done(quick: ShardStage) -> None:
    await quick.open()
    car = await quick.add_car("a")
    await quick.gateway.create("batch_1", LINES)
    await until(lambda: car.leases)
    car.finish()
    question = q.CancelBatch(BATCH, CUSTOMER)
    assert await quick.gateway.ask(question, q.Answered) == q.Answered()
    await until(lambda: not car.leases)
    (revoke,) = car.all(wire.Revoke)
    assert revoke.ending is LeaseEnding.BATCH_CANCELLED
    await until(lambda: BATCH in quick.gateway.files)
    assert quick.gateway.files[BATCH] == LINES[0].upper()


async def test_a_batch_that_is_of_no_use_fails(quick: ShardStage) -> None:
    await quick.open(works=False)
    await quick.add_car("a")
    await quick.gateway.create("batch_1", LINES)
    answer = await quick.gateway.ask(q.RejectBatch(BATCH, b"[]"), q.Answered)
    assert answer == q.Answered()
    view = await quick.gateway.view("batch_1")
    assert (view.state, view.errors) == (BatchState.FAILED, b"[]")


async def test_a_gateway_that_comes_late_is_asked_again(quick: ShardStage) -> None:
    await quick.open(works=False)
    await quick.add_car("a", works=True)
    await quick.gateway.create("batch_1", LINES)
    await quick.gateway.open()
    await until(lambda: BATCH in quick.gateway.files)
    assert quick.gateway.files[BATCH] == ANSWERS


# A restart.


async def test_running_work_goes_on_over_a_restart(stage: ShardStage) -> None:
    await stage.open()
    cars = [await stage.add_car(name) for name in ("a", "b")]
    await stage.gateway.create("batch_1", LINES)
    await until(lambda: all(car.leases for car in cars))
    cars[0].finish()
    await until(lambda: not cars[0].kept)
    held = [units_of(car) for car in cars]
    granted = len(cars[0].all(wire.Grants))
    await stage.abandon()
    cars[1].finish()
    epochs = [car.epoch for car in cars]
    await stage.begin()
    await until(lambda: all(car.all(wire.HelloWanted) for car in cars))
    await until(lambda: all(car.epoch > epoch for car, epoch in zip(cars, epochs, strict=True)))
    assert [car.all(wire.Revoke) for car in cars] == [[], []]
    assert units_of(cars[0]) == held[0], "a restart of the control plane restarts no work"
    await until(lambda: not cars[1].kept)
    assert len(cars[0].all(wire.Grants)) == granted
    for car in cars:
        car.works = True
        while car.finish():
            pass
    await until(lambda: BATCH in stage.gateway.files)
    assert stage.gateway.files[BATCH] == ANSWERS
    assert cars[0].done + cars[1].done == dict.fromkeys(range(1, 7), 1), "nothing is done twice"
    vehicles = (await stage.gateway.ask(q.ListVehicles(), q.VehicleList)).vehicles
    assert [vehicle.attempts_lost for vehicle in vehicles] == [{}, {}]
    assert sum(vehicle.units_succeeded for vehicle in vehicles) == 6


async def test_a_result_that_was_kept_is_not_taken_twice(stage: ShardStage) -> None:
    """The acknowledgement is lost with the process that had kept the result."""
    await stage.open()
    car = await stage.add_car("a")
    await stage.gateway.create("batch_1", LINES[:2])
    await until(lambda: car.leases)
    receipt = car.finish()
    assert receipt is not None
    await until(lambda: not car.kept)
    await stage.abandon()
    car.kept[receipt.lease_id, receipt.receipt_id] = receipt
    await stage.begin()
    await until(lambda: not car.kept)
    while car.finish():
        pass
    car.works = True
    await until(lambda: BATCH in stage.gateway.files)
    assert stage.gateway.files[BATCH] == b"".join(LINES[:2]).upper()
    view = await stage.gateway.view("batch_1")
    assert (view.requests_completed, view.prompt_tokens) == (2, 10)


async def test_a_grant_that_was_lost_is_granted_again(stage: ShardStage) -> None:
    await stage.open()
    car = await stage.add_car("a")
    await stage.gateway.create("batch_1", LINES[:1])
    await until(lambda: car.leases)
    await stage.abandon()
    car.leases.clear()
    car.works = True
    await stage.begin()
    await until(lambda: BATCH in stage.gateway.files)
    (view,) = (await stage.gateway.ask(q.ListVehicles(), q.VehicleList)).vehicles
    assert view.attempts_lost == {LeaseEnding.LEASE_UNKNOWN: 1}


async def test_a_lease_that_the_fleet_has_forgotten_is_revoked_at_the_hello(
    quick: ShardStage,
) -> None:
    await quick.open()
    car = await quick.add_car("a")
    offered = wire.OfferedUnit(WorkUnitId(5), 1, b"", b"", "")
    car.leases[LeaseId(99)] = [offered]
    car.hello()
    await until(lambda: not car.leases)
    assert car.all(wire.Revoke)[0].ending is LeaseEnding.LEASE_UNKNOWN


async def test_a_clean_stop_leaves_nothing_to_replay(stage: ShardStage) -> None:
    await stage.open()
    await stage.add_car("a", works=True)
    await stage.gateway.create("batch_1", LINES)
    await until(lambda: stage.gateway.asked_for(q.Forget))
    await stage.close()
    store = stage.reopen()
    recovered = store.recover()
    assert recovered.snapshot == stage.shard.fleet.snapshot()
    assert list(recovered.entries) == []
    store.close()
    await stage.begin()
    assert (await stage.gateway.view("batch_1")).state is BatchState.COMPLETED


async def test_outputs_that_a_crash_left_behind_are_swept_and_no_others(stage: ShardStage) -> None:
    stage.settings = settings_of(3)
    await stage.open()
    car = await stage.add_car("a")
    await stage.gateway.create("batch_1", LINES)
    await until(lambda: car.leases)
    several, one = car.finish(2), car.finish()
    assert several is not None
    assert one is not None
    await until(lambda: not car.kept)
    await stage.abandon()
    lease_id = several.lease_id
    kept = [output_name(lease_id, receipt.receipt_id) for receipt in (several, one)]
    orphans = [
        output_name(LeaseId(9), ReceiptId(999)),
        output_name(LeaseId(99), several.receipt_id),
        output_name(LeaseId(99), ReceiptId(one.receipt_id + 1)),
        output_name(lease_id, ReceiptId(several.results[1].unit_id)),
        output_name(lease_id, WHOLE_LEASE),
    ]
    store = stage.reopen()
    sequence = store.recover().last_sequence + 1
    at_ms = store.recover().last_at_ms
    nothing = (FLEET_CODEC.encode_events([]), FLEET_CODEC.encode_effects([]))
    entry = JournalEntry(sequence, at_ms, FLEET_CODEC.schema, *nothing)
    store.commit([entry], [], [Blob(name, b"orphan") for name in orphans])
    store.close()
    await stage.begin()
    await until(lambda: sorted(stage.store.blob_names("out/")) == sorted(kept))
    car.works = True
    while car.finish():
        pass
    await until(lambda: BATCH in stage.gateway.files)
    assert stage.gateway.files[BATCH] == ANSWERS


# What a car may not do.


async def test_a_car_can_not_replace_or_drop_what_another_hands_in(quick: ShardStage) -> None:
    await quick.open()
    car = await quick.add_car("a")
    await quick.gateway.create("batch_1", LINES[:2])
    await until(lambda: car.leases)
    thief = await quick.add_car("b")
    await until(lambda: thief.leases)
    (lease_id,) = car.leases
    forged = b"FORGED\n"
    receipt = receipt_of(lease_id, {units_of(car)[0]: forged})
    for _ in range(2):
        acknowledged = len(thief.all(wire.Acknowledge))
        thief.hand_in(receipt)
        car.finish()
        await until(lambda: len(thief.all(wire.Acknowledge)) > acknowledged)  # noqa: B023
    await until(lambda: not car.kept)
    thief.finish()
    await until(lambda: BATCH in quick.gateway.files)
    assert quick.gateway.files[BATCH] == b"".join(LINES[:2]).upper()
    vehicles = (await quick.gateway.ask(q.ListVehicles(), q.VehicleList)).vehicles
    assert [vehicle.units_succeeded for vehicle in vehicles] == [1, 1]
