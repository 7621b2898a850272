"""What a shard does with receipts: each counts whole and once, and what is stored stays."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from terafleet.core.ids import (
    BatchId,
    LeaseId,
    ReceiptId,
    WorkUnitId,
    large_output_name,
    output_name,
    vehicle_outputs_folder,
)
from terafleet.core.reasons import Failure
from terafleet.core.work import AttemptResult, BatchState
from terafleet.protocol import agent as wire
from terafleet.protocol import shard as q
from terafleet.protocol.parcel import pack
from tests.contract.agent_stage import until
from tests.contract.shard_stage import (
    CUSTOMER,
    FakeCar,
    ShardStage,
    receipt_of,
    reopen_memory,
    result_of,
    settings_of,
    units_of,
)

LINES = [f"line {number}\n".encode() for number in range(8)]
ANSWERS = b"".join(LINES).upper()
BATCH = BatchId("batch_1")
LEASE = LeaseId(1)


@pytest.fixture
async def stage() -> AsyncIterator[ShardStage]:
    made = ShardStage(reopen_memory(), settings_of(4))
    yield made
    await made.close()


def unit(number: int) -> WorkUnitId:
    """The id of a unit."""
    return WorkUnitId(number)


def of_units(*numbers: int, body: bytes = b"FORGED\n") -> wire.Receipt:
    """A receipt of the first lease whose outputs are all the same."""
    return receipt_of(LEASE, {unit(number): body for number in numbers})


async def begun(stage: ShardStage) -> FakeCar:
    """A car that holds the first four of a batch's eight units."""
    await stage.open()
    car = await stage.add_car("a")
    await stage.gateway.create("batch_1", LINES)
    await until(lambda: car.leases)
    assert units_of(car) == [1, 2, 3, 4]
    return car


async def hand_in(car: FakeCar, *receipts: wire.Receipt) -> None:
    """Hand receipts in, each in a message of its own, and wait until each is acknowledged."""
    for receipt in receipts:
        count = len(car.acknowledged())
        car.hand_in(receipt)
        await until(lambda: len(car.acknowledged()) > count)  # noqa: B023
        assert car.acknowledged()[count:] == [(receipt.lease_id, receipt.receipt_id)]


async def finish_all(stage: ShardStage, car: FakeCar) -> None:
    """Do what is left, one unit to a receipt; the file is what it would be without any fault."""
    car.works = True
    while car.finish():
        pass
    await until(lambda: BATCH in stage.gateway.files)
    assert stage.gateway.files[BATCH] == ANSWERS
    view = await stage.gateway.view("batch_1")
    assert (view.requests_completed, view.requests_failed) == (len(LINES), 0)


def stored(stage: ShardStage) -> dict[str, bytes | None]:
    """The parcels in the record."""
    return {name: stage.store.blob(name) for name in stage.store.blob_names("out/")}


async def vehicle(stage: ShardStage, at: int = 0) -> q.VehicleView:
    """What an operator sees of a car."""
    return (await stage.gateway.ask(q.ListVehicles(), q.VehicleList)).vehicles[at]


async def test_all_units_of_a_receipt_count_at_once(stage: ShardStage) -> None:
    car = await begun(stage)
    receipt = car.finish(3)
    assert receipt is not None
    await until(lambda: not car.kept)
    assert car.acknowledged() == [(LEASE, 1)]
    assert stored(stage) == {output_name(LEASE, ReceiptId(1)): receipt.payload}
    view = await stage.gateway.view("batch_1")
    assert (view.requests_completed, view.prompt_tokens, view.units_ended) == (3, 15, 3)
    seen = await vehicle(stage)
    assert (seen.units_succeeded, seen.energy_mwh, seen.runtime_ms) == (3, 9, 30)
    assert (seen.leases, seen.attempts_lost) == (1, {}), "the fourth unit still runs"
    asked = tuple((LEASE, ReceiptId(1), unit(number)) for number in (3, 1, 2, 4))
    outputs = await stage.gateway.ask(q.GetOutputs(asked), q.Outputs)
    assert outputs.bodies == (*(LINES[at].upper() for at in (2, 0, 1)), b"")
    await finish_all(stage, car)


async def test_a_receipt_that_comes_again_changes_nothing(stage: ShardStage) -> None:
    car = await begun(stage)
    receipt = car.finish(2)
    assert receipt is not None
    await until(lambda: not car.kept)
    before, seen = stored(stage), await vehicle(stage)
    await hand_in(car, receipt, of_units(1, 2), of_units(1, 2, body=b""), receipt)
    assert stored(stage) == before
    assert await vehicle(stage) == replace(seen, heard_ms=(await vehicle(stage)).heard_ms)
    await finish_all(stage, car)


@pytest.mark.parametrize(
    "numbers",
    [
        (1,), (2,), (2, 1), (1, 2, 3), (1, 3), (2, 3), (1, 5), (1, 1), (2, 2), (2, 4, 3), (6,),
        (5, 6), (3, 1), (4, 2),
    ],
    ids=str,
)  # fmt: skip
async def test_a_receipt_that_overlaps_one_that_counted_counts_for_nothing(
    stage: ShardStage, numbers: tuple[int, ...]
) -> None:
    car = await begun(stage)
    assert car.finish(2) is not None
    await until(lambda: not car.kept)
    before, seen = stored(stage), await vehicle(stage)
    for _ in range(2):
        forged = [(unit(number), b"FORGED\n") for number in numbers]
        results = tuple(result_of(unit(number)) for number in numbers)
        parcel = pack(forged)
        digest = hashlib.sha256(parcel).digest()
        await hand_in(
            car,
            wire.Receipt(
                LEASE, ReceiptId(numbers[0]), results=results, digest=digest, payload=parcel
            ),
        )
    assert stored(stage) == before
    assert units_of(car) == [3, 4], "its lease stands"
    assert (await vehicle(stage)).units_succeeded == seen.units_succeeded == 2
    await finish_all(stage, car)


async def test_of_two_receipts_of_one_message_the_first_counts(stage: ShardStage) -> None:
    car = await begun(stage)
    await hand_in(
        car,
        of_units(1, 2, body=b"GOOD\n"),
        of_units(1, 2, body=b"FORGED\n"),
        of_units(1, 2, 3, body=b"FORGED\n"),
    )
    parcels = stored(stage)
    assert len(parcels) == 1
    (body,) = parcels.values()
    assert body is not None
    assert b"GOOD" in body
    assert b"FORGED" not in body
    assert (await vehicle(stage)).units_succeeded == 2


async def test_a_unit_counts_once_in_a_receipt(stage: ShardStage) -> None:
    car = await begun(stage)
    twice = of_units(4)
    await hand_in(car, replace(twice, results=twice.results * 2))
    assert (await vehicle(stage)).units_succeeded == 0
    assert stored(stage) == {}


def miscounted(*numbers: int) -> wire.Receipt:
    """A receipt in which the last unit has an answer too many."""
    made = of_units(*numbers)
    return replace(made, results=(*made.results[:-1], result_of(unit(numbers[-1]), answers=2)))


ALL = of_units(1, 2, 3)
FAULTY = {
    "wrong digest": (replace(ALL, digest=bytes(32)), "the outputs do not match their digest"),
    "no digest": (replace(ALL, digest=b""), "the outputs do not match their digest"),
    "no payload": (replace(ALL, payload=b""), "the outputs are missing"),
    "too large": (
        receipt_of(LEASE, dict.fromkeys((unit(1), unit(2), unit(3)), bytes(30_000))),
        "the outputs are too large to ride in a receipt",
    ),
    "wrong count": (miscounted(1, 2, 3), "2 answers to 1 requests"),
}


@pytest.mark.parametrize("kind", FAULTY)
async def test_every_unit_of_a_faulty_receipt_fails_and_waits_again(
    stage: ShardStage, kind: str
) -> None:
    car = await begun(stage)
    receipt, words = FAULTY[kind]
    car.hand_in(receipt)
    await until(lambda: (LEASE, 1) in car.acknowledged())
    seen = await vehicle(stage)
    assert seen.attempts_lost == {Failure.OUTPUT_INCOMPLETE: 3}
    assert (seen.units_succeeded, seen.energy_mwh, seen.energy_lost_mwh) == (0, 0, 9)
    view = await stage.gateway.view("batch_1")
    assert (view.requests_completed, view.units_ended) == (0, 0)
    await until(lambda: not stored(stage))
    told = await stage.story("unit-2")
    assert (words in told[-1]) == (kind != "wrong count"), told
    assert units_of(car) == [1, 2, 3, 4], "the fourth unit was not in it, and still runs"
    car.take(LEASE, 3)
    other = await stage.add_car("b", works=True)
    await until(lambda: other.done[unit(1)] and other.done[unit(2)] and other.done[unit(3)])
    await finish_all(stage, car)


@pytest.mark.parametrize("said", [-1, 10**12 + 1])
async def test_a_figure_beyond_reason_changes_nothing(stage: ShardStage, said: int) -> None:
    car = await begun(stage)
    seen = await vehicle(stage)
    status = await stage.gateway.ask(q.GetStatus(), q.ShardStatus)
    ones = result_of(unit(2))
    for forged in (replace(ones, energy_mwh=said), replace(ones, prompt_tokens=said)):
        two = of_units(1, 2)
        car.hand_in(of_units(3), replace(two, results=(two.results[0], forged)))
    car.say(wire.Heartbeat(car.epoch, 1, True))
    await until(lambda: car.all(wire.HeartbeatAnswer))
    assert car.acknowledged() == []
    assert stored(stage) == {}
    again = await vehicle(stage)
    assert again == replace(seen, heard_ms=again.heard_ms)
    now = await stage.gateway.ask(q.GetStatus(), q.ShardStatus)
    assert now.journal_sequence == status.journal_sequence
    assert units_of(car) == [1, 2, 3, 4]
    await finish_all(stage, car)


async def test_a_large_output_is_put_and_the_others_ride(stage: ShardStage) -> None:
    """The third unit's output is an object, where the grant's address says."""
    car = await begun(stage)
    car.finish(2)
    await until(lambda: not car.kept)
    (large,) = car.take(LEASE, 1)
    folder = vehicle_outputs_folder(BATCH, car.vehicle_id)
    grant = car.all(wire.Grants)[0].grants[0]
    assert f"/{folder}?" in grant.outputs_address

    async def pieces() -> AsyncIterator[bytes]:
        yield large.payload.upper()

    await stage.objects.write(f"{folder}{large_output_name(LEASE, unit(3))}", pieces())
    receipt = wire.Receipt(LEASE, ReceiptId(3), results=(result_of(unit(3)),), digest=b"its own")
    await hand_in(car, receipt)
    assert list(stored(stage)) == [output_name(LEASE, ReceiptId(1))]
    asked = ((LEASE, ReceiptId(3), unit(3)), (LEASE, ReceiptId(1), unit(2)))
    outputs = await stage.gateway.ask(q.GetOutputs(asked), q.Outputs)
    assert outputs.bodies == (None, LINES[1].upper())
    await finish_all(stage, car)


@pytest.mark.parametrize("payload", [b"garbage", pack(()), pack([(unit(2), b"TWO\n")])])
async def test_the_shard_never_looks_into_a_parcel(stage: ShardStage, payload: bytes) -> None:
    car = await begun(stage)
    outputs = dict.fromkeys((unit(1), unit(2)), b"")
    await hand_in(car, receipt_of(LEASE, outputs, payload))
    assert (await vehicle(stage)).units_succeeded == 2
    assert stored(stage) == {output_name(LEASE, ReceiptId(1)): payload}
    asked = tuple((LEASE, ReceiptId(1), unit(number)) for number in (1, 2))
    outputs_found = await stage.gateway.ask(q.GetOutputs(asked), q.Outputs)
    assert outputs_found.bodies == (b"", b"TWO\n" if b"TWO" in payload else b"")


async def test_a_receipt_counts_under_its_own_lease_only(stage: ShardStage) -> None:
    car = await begun(stage)
    other = await stage.add_car("b")
    await until(lambda: other.leases)
    (second,) = other.leases
    theirs = units_of(other)
    mixed = receipt_of(second, {theirs[0]: b"FORGED\n", unit(1): b"FORGED\n"})
    await hand_in(other, mixed)
    await hand_in(other, receipt_of(LEASE, {theirs[0]: b"FORGED\n"}), of_units(1, 2))
    await hand_in(car, receipt_of(second, {theirs[0]: b"FORGED\n"}))
    assert stored(stage) == {}
    assert [(await vehicle(stage, at)).units_succeeded for at in range(2)] == [0, 0]
    assert (units_of(car), units_of(other)) == ([1, 2, 3, 4], theirs)


async def test_a_receipt_that_comes_after_the_end_is_acknowledged_and_dropped(
    stage: ShardStage,
) -> None:
    car = await begun(stage)
    held = {one.unit_id: b"LATE\n" for one in car.leases[LEASE]}
    car.finish(1)
    await until(lambda: not car.kept)
    assert await stage.gateway.ask(q.CancelBatch(BATCH, CUSTOMER), q.Answered) == q.Answered()
    await until(lambda: stage.gateway.asked_for(q.Forget))
    await hand_in(car, receipt_of(LEASE, held), of_units(2, 3))
    assert (await stage.gateway.view("batch_1")).state is BatchState.CANCELLED
    assert (await stage.gateway.view("batch_1")).requests_completed == 1
    car.say(wire.PermitReport(car.epoch, ()))
    await until(lambda: not stored(stage))
    assert stage.gateway.files[BATCH] == LINES[0].upper()


async def test_results_of_many_units_need_not_fill_the_bounds(stage: ShardStage) -> None:
    """The largest figures that a car may claim add up without harm."""
    car = await begun(stage)
    most = 10**12
    made = of_units(1, 2, 3, 4)
    results = tuple(
        AttemptResult(one.unit_id, 1, 0, most, most, most, most) for one in made.results
    )
    await hand_in(car, replace(made, results=results))
    assert (await stage.gateway.view("batch_1")).prompt_tokens == 4 * most
    assert (await vehicle(stage)).energy_mwh == 4 * most
