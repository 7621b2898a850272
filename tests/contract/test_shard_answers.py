"""What a shard answers: refusals in words, batches, vehicles, outputs, and stories."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from terafleet.bus.adapters.memory import MemoryBus
from terafleet.bus.ports import NoAnswer
from terafleet.control.shard.links import Links, LinkSettings
from terafleet.control.shard.performer import Addresses, Performer, PerformerHooks
from terafleet.control.shard.service import OUTPUTS_BYTES_MAX, Answers, ShardView
from terafleet.core.effects import AssembleOutput, UnitOutcome
from terafleet.core.fleet import Fleet
from terafleet.core.ids import (
    WHOLE_LEASE,
    BatchId,
    CustomerId,
    LeaseId,
    ReceiptId,
    VehicleId,
    WorkUnitId,
    output_name,
)
from terafleet.core.reasons import Failure, Refusal, Refused, UnitEnding, Waiting
from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.ports import Blob, JournalEntry
from terafleet.protocol import agent as wire
from terafleet.protocol import shard as q
from terafleet.protocol.parcel import pack
from tests.contract.agent_stage import until
from tests.contract.shard_stage import (
    CUSTOMER,
    LINES,
    SECRET,
    SETTINGS,
    ShardStage,
    receipt_of,
    reopen_memory,
    settings_of,
    units_of,
)

BATCH = BatchId("batch_1")


@pytest.fixture
async def quick() -> AsyncIterator[ShardStage]:
    """A stage whose record is in memory, for what is the same on any record."""
    made = ShardStage(reopen_memory())
    yield made
    await made.close()


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
    policy = q.SetVehiclePolicy(car.vehicle_id, b'{"is_paused": true}')
    assert await quick.gateway.ask(policy, q.Answered) == q.Answered()
    await until(lambda: car.all(wire.SetPolicy))
    assert car.all(wire.SetPolicy)[-1] == wire.SetPolicy(car.epoch, policy.policy)
    asked = q.GetVehiclePolicy(car.vehicle_id)
    found = await quick.gateway.ask(asked, q.VehiclePolicy)
    assert found.policy == policy.policy
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


def view_of(parcels: dict[tuple[int, int], bytes]) -> ShardView:
    """What may be read of a shard that keeps these parcels, by lease and receipt."""
    store = MemoryStore()
    blobs = [
        Blob(output_name(LeaseId(lease_id), ReceiptId(receipt_id)), body)
        for (lease_id, receipt_id), body in parcels.items()
    ]
    store.commit([JournalEntry(1, 1, 1, b"", b"")], [], blobs)
    fleet = Fleet()
    stage = ShardStage(reopen_memory())
    links = Links(stage.gateway.bus, lambda *_: True, lambda: 0, LinkSettings())
    return ShardView(fleet, store, links, 0)


def parcel_of(outputs: dict[int, bytes]) -> bytes:
    """A parcel with these outputs, by unit."""
    return pack((WorkUnitId(unit_id), body) for unit_id, body in outputs.items())


def asked(*outputs: tuple[int, int, int]) -> q.GetOutputs:
    """A question for outputs by lease, receipt and unit."""
    return q.GetOutputs(
        tuple(
            (LeaseId(lease_id), ReceiptId(receipt_id), WorkUnitId(unit_id))
            for lease_id, receipt_id, unit_id in outputs
        )
    )


def test_outputs_come_in_the_order_of_the_question() -> None:
    several = parcel_of({3: b"three", 1: b"one", 4: b""})
    view = view_of({(1, 3): several, (2, 2): parcel_of({2: b"two"}), (3, 1): parcel_of({1: b"1"})})
    question = asked((2, 2, 2), (1, 3, 1), (3, 1, 1), (1, 3, 3), (7, 7, 7), (1, 3, 4))
    assert view.outputs(question).bodies == (b"two", b"one", b"1", b"three", None, b"")
    assert view.outputs(asked()).bodies == ()


def test_what_a_receipt_did_not_bring_is_empty_and_what_no_receipt_brought_is_an_object() -> None:
    view = view_of({(1, 3): parcel_of({3: b"three"}), (2, 5): b"no parcel at all", (2, 6): b""})
    question = asked((1, 3, 4), (1, 3, 3), (2, 5, 5), (2, 6, 6), (1, 4, 4), (2, 3, 3))
    assert view.outputs(question).bodies == (b"", b"three", b"", b"", None, None)


def test_as_many_outputs_as_fit_into_a_message() -> None:
    third = b"x" * (OUTPUTS_BYTES_MAX // 3)
    alone = view_of({(number, number): parcel_of({number: third}) for number in range(5)})
    together = view_of({(1, 0): parcel_of(dict.fromkeys(range(5), third))})
    for view, lease_ids, receipt_ids in (
        (alone, range(5), range(5)),
        (together, [1] * 5, [0] * 5),
    ):
        outputs = list(zip(lease_ids, receipt_ids, range(5), strict=True))
        assert view.outputs(asked(*outputs)).bodies == (third,) * 3
        assert view.outputs(asked(*outputs[3:])).bodies == (third,) * 2


def test_an_output_that_is_larger_than_that_comes_alone() -> None:
    huge = b"x" * (OUTPUTS_BYTES_MAX + 1)
    view = view_of({(1, 1): parcel_of({1: huge, 2: b"two"})})
    assert view.outputs(asked((1, 1, 1), (1, 1, 2))).bodies == (huge,)


def test_the_words_to_many_lost_units_fit_into_one_message() -> None:
    stage = ShardStage(reopen_memory())
    asked: list[bytes] = []

    class Listening(MemoryBus):
        def publish(self, subject: str, body: bytes, reply: str = "") -> None:
            assert (subject, reply) == (q.GATEWAY_WORK_SUBJECT, "")
            assert len(body) <= wire.MESSAGE_BYTES_MAX
            asked.append(body)

    bus = Listening(stage.broker)
    links = Links(bus, lambda *_: True, lambda: 0, LinkSettings())
    addresses = Addresses(SECRET, lambda: 0)
    answers = Answers(bus, "boot")
    hooks = PerformerHooks(discard=lambda _: None, stands=lambda _: True)
    performer = Performer(links, bus, stage.objects, addresses, answers, hooks)
    words = "ü" * 500
    nowhere = (LeaseId(0), WHOLE_LEASE, VehicleId(""))
    ending = UnitEnding.FAILED_ON_SEVERAL_VEHICLES
    for count, told in ((50_000, "ü" * 41), (3, words)):
        outcomes = [
            UnitOutcome(WorkUnitId(2**40 + at), 1, *nowhere, ending, words) for at in range(count)
        ]
        performer.perform([AssembleOutput(BATCH, CUSTOMER, "file", tuple(outcomes))])
        work = q.WORK_DECODER.decode(asked.pop())
        assert isinstance(work, q.Assemble)
        assert {one.detail for one in work.outcomes} == {told}
        assert len(work.outcomes) == count


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


async def test_a_receipt_of_several_units_is_told_under_each_of_them(quick: ShardStage) -> None:
    quick.settings = settings_of(3)
    await quick.open()
    car = await quick.add_car("a")
    await quick.gateway.create("batch_1", LINES)
    await until(lambda: car.leases)
    receipt = car.finish(2)
    assert receipt is not None
    await until(lambda: not car.kept)
    granted = "lease-1 granted to veh-a (epoch 1): units 1 to 3 of batch_1"
    handed_in = "veh-a handed in units 1 to 2 under lease-1: 2 answers in 20 ms, 6 mWh"
    assert await quick.story("unit-1") == [granted, handed_in]
    assert await quick.story("unit-2") == [granted, handed_in]
    assert await quick.story("unit-3") == [granted]
    assert await quick.story("lease-1") == [granted, handed_in]
    car.hand_in(receipt_of(LeaseId(99), {WorkUnitId(2): b"", WorkUnitId(3): b""}))
    await until(lambda: (99, 2) in car.acknowledged())
    late = "veh-a handed in units 2 to 3 under lease-99: 2 answers in 20 ms, 6 mWh"
    dropped = "outputs from unit-2 on under lease-99 dropped: they count for nothing"
    assert await quick.story("lease-99") == [late, dropped]
    assert await quick.story("unit-2") == [granted, handed_in, late, dropped]
    assert await quick.story("unit-3") == [granted, late]
    assert set(await quick.story("veh-a")) >= {granted, handed_in, late}


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
