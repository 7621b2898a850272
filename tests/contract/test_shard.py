"""A whole shard: batches from the question to the file, restarts in the middle, what it tells."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from terafleet.bus.ports import NoAnswer
from terafleet.control.shard.journal import FLEET_CODEC
from terafleet.control.shard.links import Links, LinkSettings
from terafleet.control.shard.service import OUTPUTS_BYTES_MAX, ShardView
from terafleet.core.fleet import Fleet
from terafleet.core.ids import BatchId, CustomerId, LeaseId, VehicleId, WorkUnitId, output_name
from terafleet.core.reasons import Failure, LeaseEnding, Refusal, Refused, Waiting
from terafleet.core.work import BatchState
from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.ports import Blob, JournalEntry, Store
from terafleet.protocol import agent as wire
from terafleet.protocol import shard as q
from terafleet.protocol.addresses import address_fault
from tests.contract.agent_stage import until
from tests.contract.shard_stage import CUSTOMER, SECRET, SETTINGS, FakeCar, ShardStage

LINES = [f"line {number}\n".encode() for number in range(6)]
ANSWERS = b"".join(LINES).upper()
BATCH = BatchId("batch_1")

Reopen = Callable[[], Store]


def memory() -> Reopen:
    """A store in memory that opens as itself again."""
    store = MemoryStore()
    return lambda: store


@pytest.fixture(params=["memory", "sqlite"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ShardStage]:
    reopens: dict[str, Callable[[], Reopen]] = {
        "memory": memory,
        "sqlite": lambda: lambda: SqliteStore(tmp_path / "record.db", "NORMAL"),
    }
    made = ShardStage(reopens[request.param]())
    yield made
    await made.close()


@pytest.fixture
async def quick() -> AsyncIterator[ShardStage]:
    """A stage whose record is in memory, for what is the same on any record."""
    made = ShardStage(memory())
    yield made
    await made.close()


def units_of(car: FakeCar) -> list[WorkUnitId]:
    """The units that a car holds."""
    return [unit.unit_id for units in car.leases.values() for unit in units]


# A batch.


async def test_a_batch_from_the_question_to_the_file(stage: ShardStage) -> None:
    await stage.open()
    for name in ("a", "b"):
        await stage.add_car(name, works=True)
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
    now_s = 0
    for address, method in (
        (large_unit.input_address, "GET"),
        (small_unit.output_address, "PUT"),
        (car.all(wire.Grants)[0].grants[0].manifest_address, "GET"),
    ):
        assert address_fault(SECRET, method, address, now_s) is None  # type: ignore[arg-type]
    assert car.all(wire.Grants)[0].epoch == car.epoch


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
    car.hand_in(wire.Receipt(lease_id, WorkUnitId(-1), ending=ending))
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
    car.kept[receipt.lease_id, receipt.unit_id] = receipt
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
    offered = wire.OfferedUnit(WorkUnitId(5), 1, b"", b"", "", "")
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
    await stage.open()
    car = await stage.add_car("a")
    await stage.gateway.create("batch_1", LINES)
    await until(lambda: car.leases)
    receipt = car.finish()
    assert receipt is not None
    await until(lambda: not car.kept)
    await stage.abandon()
    kept = output_name(receipt.lease_id, receipt.unit_id)
    orphans = [
        output_name(LeaseId(9), WorkUnitId(999)),
        output_name(LeaseId(99), receipt.unit_id),
        output_name(LeaseId(99), WorkUnitId(receipt.unit_id + 1)),
    ]
    store = stage.reopen()
    sequence = store.recover().last_sequence + 1
    at_ms = store.recover().last_at_ms
    nothing = (FLEET_CODEC.encode_events([]), FLEET_CODEC.encode_effects([]))
    entry = JournalEntry(sequence, at_ms, FLEET_CODEC.schema, *nothing)
    store.commit(entry, [], [Blob(name, b"orphan") for name in orphans])
    store.close()
    await stage.begin()
    await until(lambda: list(stage.store.blob_names("out/")) == [kept])


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
    receipt = wire.Receipt(
        lease_id,
        units_of(car)[0],
        answers=1,
        digest=hashlib.sha256(forged).digest(),
        payload=forged,
    )
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


# What is asked.


async def test_a_full_record_takes_no_more_batches_but_goes_on(quick: ShardStage) -> None:
    await quick.open()
    store = quick.store
    assert isinstance(store, MemoryStore)
    car = await quick.add_car("a")
    await quick.gateway.create("batch_1", LINES[:1])
    await until(lambda: car.leases)
    await quick.close()
    limits = {"bytes_free_min": 1_000_000, "bytes_free_enough": 2_000_000}
    engine = msgspec.structs.replace(SETTINGS.engine, **limits)
    quick.settings = msgspec.structs.replace(SETTINGS, engine=engine)
    store.capacity_bytes = 900_000
    await quick.begin()
    await until(lambda: quick.storage == [True])
    answer = await quick.gateway.create("batch_2", LINES)
    assert answer.refused is Refused.STORAGE_FULL
    assert "disk" in answer.detail
    status = await quick.gateway.ask(q.GetStatus(), q.ShardStatus)
    assert status.is_storage_full
    assert status.bytes_free is not None
    car.finish()
    await until(lambda: BATCH in quick.gateway.files)
    store.capacity_bytes = None
    await until(lambda: quick.storage == [True, False])
    assert await quick.gateway.create("batch_2", LINES) == q.Answered()


async def test_a_full_inbox_refuses_with_words(quick: ShardStage) -> None:
    engine = msgspec.structs.replace(SETTINGS.engine, inbox_max=1)
    quick.settings = msgspec.structs.replace(SETTINGS, engine=engine)
    await quick.open()
    answers = await asyncio.gather(
        *(
            quick.gateway.ask(q.EnrolVehicle(VehicleId(f"veh-{number}"), "a"), q.Answered)
            for number in range(3)
        )
    )
    refused = [answer for answer in answers if answer.refused]
    assert {answer.refused for answer in refused} == {Refused.OVERLOADED}
    assert len(refused) == 2
    assert refused[0].detail == "the inbox is full"


async def test_refusals_of_the_fleet_reach_the_gateway_in_words(quick: ShardStage) -> None:
    await quick.open()
    answer = await quick.gateway.create("batch_1", LINES)
    assert answer.refused is Refused.FLEET_EMPTY
    assert answer.detail
    question = q.GetBatch(BATCH, CUSTOMER)
    unknown = await quick.gateway.ask(question, q.Answered)
    assert unknown.refused is Refused.BATCH_UNKNOWN
    gone = await quick.gateway.ask(q.RemoveVehicle(VehicleId("veh-none")), q.Answered)
    assert gone.refused is Refused.VEHICLE_UNKNOWN


async def test_a_customer_reads_only_their_own_batches(quick: ShardStage) -> None:
    await quick.open(works=False)
    await quick.add_car("a")
    for number in range(5):
        await quick.gateway.create(f"batch_{number}", LINES)
    another = CustomerId("another")
    refused = await quick.gateway.ask(q.GetBatch(BATCH, another), q.Answered)
    assert refused.refused is Refused.BATCH_UNKNOWN
    foreign = await quick.gateway.ask(q.ListBatches(another, "", 10), q.BatchList)
    assert (foreign.batches, foreign.has_more) == ((), False)
    unknown = await quick.gateway.ask(q.ListBatches(another, "batch_1", 10), q.Answered)
    assert unknown.refused is Refused.BATCH_UNKNOWN
    seen: list[str] = []
    after = ""
    while True:
        page = await quick.gateway.ask(q.ListBatches(CUSTOMER, after, 2), q.BatchList)
        seen += [view.batch_id for view in page.batches]
        if not page.has_more:
            break
        after = seen[-1]
    everything = await quick.gateway.ask(q.ListBatches(CUSTOMER, "", 10_000), q.BatchList)
    assert seen == [view.batch_id for view in everything.batches]
    assert sorted(seen) == [f"batch_{number}" for number in range(5)]


async def test_an_operator_sees_the_fleet(quick: ShardStage) -> None:
    await quick.open()
    car = await quick.add_car("a", slots=2)
    await quick.gateway.create("batch_1", LINES)
    await until(lambda: units_of(car))
    car.say(wire.Heartbeat(car.epoch, 1, True))
    await until(lambda: car.all(wire.HeartbeatAnswer))
    (view,) = (await quick.gateway.ask(q.ListVehicles(), q.VehicleList)).vehicles
    assert (view.vehicle_id, view.name, view.state) == (car.vehicle_id, "a", "leased")
    assert (view.slots, view.leases, view.device) == (2, len(car.leases), "phone")
    assert view.heard_ms > 0
    status = await quick.gateway.ask(q.GetStatus(), q.ShardStatus)
    assert status.vehicles == {"leased": 1}
    assert status.units_running == len(units_of(car))
    assert status.units_waiting + status.units_running == len(LINES)
    assert status.batches_open == 1
    assert status.journal_sequence > 0
    assert status.figures["commits_failed"] == 0
    drained = q.DrainVehicle(car.vehicle_id, True)
    assert await quick.gateway.ask(drained, q.Answered) == q.Answered()
    (view,) = (await quick.gateway.ask(q.ListVehicles(), q.VehicleList)).vehicles
    assert view.state == "draining"
    assert await quick.gateway.ask(q.RemoveVehicle(car.vehicle_id), q.Answered) == q.Answered()
    await until(lambda: not car.epoch)


async def test_a_batch_that_waits_says_why(quick: ShardStage) -> None:
    await quick.open()
    car = await quick.add_car("a")
    car.say(wire.PermitReport(car.epoch, (Refusal.UNPLUGGED,)))
    await quick.gateway.create("batch_1", LINES)
    await until(lambda: quick.shard.fleet.state.units)
    assert (await quick.gateway.view("batch_1")).waiting is Waiting.ALL_VEHICLES_REFUSE


async def test_what_is_no_question_gets_no_answer(quick: ShardStage) -> None:
    await quick.open()
    for body in (b"", b"\xff", wire.ENCODER.encode(wire.HelloWanted())):
        with pytest.raises(NoAnswer):
            await quick.gateway.bus.request(q.SHARD_SUBJECT, body, 20)
    assert await quick.gateway.ask(q.GetStatus(), q.ShardStatus)


# Outputs.


def view_of(bodies: dict[tuple[int, int], bytes]) -> ShardView:
    """What may be read of a shard that keeps these outputs."""
    store = MemoryStore()
    blobs = [
        Blob(output_name(LeaseId(lease_id), WorkUnitId(unit_id)), body)
        for (lease_id, unit_id), body in bodies.items()
    ]
    store.commit(JournalEntry(1, 1, 1, b"", b""), [], blobs)
    fleet = Fleet()
    stage = ShardStage(memory())
    links = Links(stage.gateway.bus, lambda *_: True, lambda: 0, LinkSettings())
    return ShardView(fleet, store, links, 0)


def asked(*attempts: tuple[int, int]) -> q.GetOutputs:
    """A question for outputs."""
    return q.GetOutputs(
        tuple((LeaseId(lease_id), WorkUnitId(unit_id)) for lease_id, unit_id in attempts)
    )


def test_outputs_come_in_the_order_of_the_question() -> None:
    view = view_of({(1, 1): b"one", (2, 2): b"two"})
    assert view.outputs(asked((2, 2), (7, 7), (1, 1))).bodies == (b"two", None, b"one")
    assert view.outputs(asked()).bodies == ()


def test_as_many_outputs_as_fit_into_a_message() -> None:
    third = b"x" * (OUTPUTS_BYTES_MAX // 3)
    view = view_of({(number, number): third for number in range(5)})
    attempts = [(number, number) for number in range(5)]
    assert len(view.outputs(asked(*attempts)).bodies) == 3
    assert len(view.outputs(asked(*attempts[3:])).bodies) == 2


def test_an_output_that_is_larger_than_that_comes_alone() -> None:
    huge = b"x" * (OUTPUTS_BYTES_MAX + 1)
    view = view_of({(1, 1): huge, (2, 2): b"two"})
    assert view.outputs(asked((1, 1), (2, 2))).bodies == (huge,)


# Stories.


async def test_the_story_of_a_batch_a_unit_a_lease_and_a_vehicle(quick: ShardStage) -> None:
    await quick.open()
    car = await quick.add_car("a")
    await quick.gateway.create("batch_1", LINES[:2])
    await until(lambda: car.leases)
    car.fail(Failure.OUT_OF_MEMORY, "9 of 8 GB")
    for _ in range(2):
        await until(lambda: car.leases)
        car.finish()
        await until(lambda: not car.kept)
    await until(lambda: quick.gateway.asked_for(q.Forget))
    assert await quick.story("batch_1") == BATCH_STORY
    assert await quick.story("unit-1") == UNIT_STORY
    assert await quick.story("lease-1") == LEASE_STORY
    told = await quick.story("veh-a")
    assert told[:3] == [
        "veh-a enrolled as a",
        "veh-a said hello (agent process boot-a)",
        "epoch 1 of veh-a begins",
    ]
    assert set(UNIT_STORY) <= set(told)


GRANTED_1 = "lease-1 granted to veh-a (epoch 1): unit-1 of batch_1"
FAILED_1 = "veh-a failed unit-1 under lease-1: out_of_memory: 9 of 8 GB"
GRANTED_2 = "lease-2 granted to veh-a (epoch 1): unit-1 of batch_1"
UNIT_STORY = [
    GRANTED_1,
    FAILED_1,
    GRANTED_2,
    "veh-a handed in unit-1 under lease-2: 1 answers in 10 ms, 3 mWh",
]
LEASE_STORY = [GRANTED_1, FAILED_1]
BATCH_STORY = [
    "batch_1 asked for: 2 requests to /v1/embeddings",
    "a gateway is asked to cut batch_1",
    "batch_1 is validating: 0 of 2 requests done",
    "batch_1 cut into 2 units",
    GRANTED_1,
    "batch_1 is in_progress: 0 of 2 requests done",
    GRANTED_2,
    "batch_1 is in_progress: 0 of 2 requests done",
    "lease-3 granted to veh-a (epoch 1): unit-2 of batch_1",
    "batch_1 is in_progress: 1 of 2 requests done",
    "a gateway is asked to write the files of batch_1",
    "batch_1 is finalizing: 2 of 2 requests done",
    "batch_1: files written",
    "inputs and outputs of batch_1's units are forgotten",
    "batch_1 is completed: 2 of 2 requests done",
]


async def test_a_story_gives_its_newest_lines(quick: ShardStage) -> None:
    await quick.open()
    await quick.add_car("a", works=True)
    await quick.gateway.create("batch_1", LINES)
    await until(lambda: quick.gateway.asked_for(q.Forget))
    whole = await quick.gateway.ask(q.GetStory("batch_1", 10_000), q.Story)
    assert whole.is_complete
    newest = await quick.gateway.ask(q.GetStory("batch_1", 2), q.Story)
    assert newest.lines == whole.lines[-2:]
    assert not newest.is_complete
    moments = [(line.sequence, line.at_ms) for line in whole.lines]
    assert moments == sorted(moments)


async def test_of_what_never_was_there_is_no_story(quick: ShardStage) -> None:
    await quick.open()
    story = await quick.gateway.ask(q.GetStory("lease-99", 10), q.Story)
    assert story == q.Story((), True)
