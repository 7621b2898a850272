"""The shard's links: what a receipt tells the fleet, and what of it is not believed."""

import hashlib

import msgspec
import pytest

from terafleet.control.shard.links import DETAIL_CHARACTERS_MAX
from terafleet.core import events as ev
from terafleet.core.ids import WHOLE_LEASE, Epoch, ReceiptId, WorkUnitId, output_name
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.core.work import AttemptResult
from terafleet.engine.ports import Blob
from terafleet.protocol import agent as wire
from terafleet.protocol.parcel import pack
from tests.contract.links_stage import LEASE, UNIT, VEHICLE, Stage

FIGURE_MAX = 10**12
RECEIPT = ReceiptId(UNIT)
FIGURES = ("answers", "answers_failed", "prompt_tokens", "completion_tokens", "energy_mwh")
OF_ONE = AttemptResult(UNIT, 2, 1, 3, 4, 5, 6)
OF_ANOTHER = AttemptResult(WorkUnitId(UNIT + 1), 7, 0, 8, 9, 10, 11)
OF_A_THIRD = AttemptResult(WorkUnitId(UNIT + 5), 0, 0, 0, 0, 0, FIGURE_MAX)
ALL = (OF_ONE, OF_ANOTHER, OF_A_THIRD)


@pytest.fixture
async def stage() -> Stage:
    made = Stage()
    await made.open()
    return made


def receipt(*results: AttemptResult, **fields: object) -> wire.Receipt:
    """The receipt of these results; its payload, if one is told, matches its digest."""
    payload = fields.get("payload", b"")
    assert isinstance(payload, bytes)
    made = wire.Receipt(
        LEASE, RECEIPT, results=results, digest=hashlib.sha256(payload).digest(), payload=payload
    )
    return msgspec.structs.replace(made, **fields)


def parcel_of(*results: AttemptResult) -> bytes:
    """A parcel with an output for each of these."""
    return pack((result.unit_id, b"output of %d\n" % result.unit_id) for result in results)


async def hand_in(stage: Stage, *receipts: wire.Receipt) -> Epoch:
    """A car hands receipts in."""
    epoch = await stage.connect()
    await stage.say(wire.Receipts(epoch, receipts))
    return epoch


@pytest.mark.parametrize("results", [(OF_ONE,), ALL], ids=["one", "several"])
async def test_results_come_with_their_outputs_in_one_blob(
    stage: Stage, results: tuple[AttemptResult, ...]
) -> None:
    payload = parcel_of(*results)
    epoch = await hand_in(stage, receipt(*results, payload=payload))
    now_ms = stage.clock.now_ms()
    assert stage.events == [ev.AttemptsReturned(now_ms, VEHICLE, epoch, LEASE, results)]
    assert stage.blobs == [Blob(output_name(LEASE, RECEIPT), payload)]


async def test_a_large_output_was_put_before_its_receipt(stage: Stage) -> None:
    epoch = await hand_in(stage, receipt(OF_ONE, digest=b"of the object"))
    now_ms = stage.clock.now_ms()
    assert stage.events == [ev.AttemptsReturned(now_ms, VEHICLE, epoch, LEASE, (OF_ONE,))]
    assert stage.blobs == []


def too_large(*results: AttemptResult) -> wire.Receipt:
    """A receipt with one byte more than may ride in it."""
    return receipt(*results, payload=bytes(wire.INLINE_BYTES_MAX + 1))


FAULTY = {
    "the outputs do not match their digest": receipt(*ALL, payload=b"{}", digest=b"another"),
    "the outputs are too large to ride in a receipt": too_large(*ALL),
    "the outputs are missing": receipt(*ALL),
}


@pytest.mark.parametrize("words", FAULTY)
async def test_outputs_that_can_not_be_taken_fail_every_unit(stage: Stage, words: str) -> None:
    epoch = await hand_in(stage, FAULTY[words])
    lease = (stage.clock.now_ms(), VEHICLE, epoch, LEASE)
    why = (Failure.OUTPUT_INCOMPLETE, words)
    assert stage.events == [
        ev.AttemptFailed(*lease, result.unit_id, *why, result.energy_mwh) for result in ALL
    ]
    assert stage.blobs == []


@pytest.mark.parametrize(
    "faulty", [receipt(OF_ONE, payload=b"{}", digest=b"another"), too_large(OF_ONE)]
)
async def test_one_output_that_can_not_be_taken_fails_its_unit(
    stage: Stage, faulty: wire.Receipt
) -> None:
    await hand_in(stage, faulty)
    assert [event.unit_id for event in stage.told(ev.AttemptFailed)] == [UNIT]
    assert (len(stage.events), stage.blobs) == (1, [])


async def test_outputs_may_be_as_large_as_a_receipt_can_hold(stage: Stage) -> None:
    payload = bytes(wire.INLINE_BYTES_MAX)
    await hand_in(stage, receipt(*ALL, payload=payload))
    assert len(stage.told(ev.AttemptsReturned)) == 1
    assert stage.blobs == [Blob(output_name(LEASE, RECEIPT), payload)]


async def test_the_outputs_lie_under_the_first_result_whatever_the_receipt_is_called(
    stage: Stage,
) -> None:
    payload = parcel_of(OF_ANOTHER)
    named = receipt(OF_ANOTHER, payload=payload, receipt_id=ReceiptId(999))
    await hand_in(stage, named)
    assert [blob.name for blob in stage.blobs] == [output_name(LEASE, ReceiptId(UNIT + 1))]


async def test_a_failure_is_told_with_its_reason(stage: Stage) -> None:
    failed = receipt(failure=Failure.OUT_OF_MEMORY, detail="why", energy_mwh=5)
    epoch = await hand_in(stage, failed)
    attempt = (stage.clock.now_ms(), VEHICLE, epoch, LEASE, UNIT)
    assert stage.events == [ev.AttemptFailed(*attempt, Failure.OUT_OF_MEMORY, "why", 5)]


async def test_a_lease_that_is_given_back_is_told_with_its_reason(stage: Stage) -> None:
    ending = LeaseEnding.OWNER_RETURNED
    released = receipt(receipt_id=WHOLE_LEASE, ending=ending, detail="why", energy_mwh=5)
    epoch = await hand_in(stage, released)
    lease = (stage.clock.now_ms(), VEHICLE, epoch, LEASE)
    assert stage.events == [ev.LeaseReleased(*lease, ending, "why", 5)]


async def test_a_receipt_about_nothing_tells_nothing(stage: Stage) -> None:
    await hand_in(stage, receipt(), receipt(payload=b"outputs of nobody"))
    assert (stage.events, stage.blobs) == ([], [])


async def test_receipts_keep_their_order(stage: Stage) -> None:
    numbers = (3, 1, 2)
    failure = Failure.STOPPED
    receipts = [receipt(receipt_id=ReceiptId(number), failure=failure) for number in numbers]
    await hand_in(stage, *receipts)
    assert tuple(event.unit_id for event in stage.told(ev.AttemptFailed)) == numbers


@pytest.mark.parametrize("said", [0, 17, FIGURE_MAX])
async def test_figures_within_reason_are_taken_as_they_are(stage: Stage, said: int) -> None:
    result = AttemptResult(UNIT, said, said, said, said, said, said)
    await hand_in(
        stage,
        receipt(result),
        receipt(failure=Failure.STOPPED, energy_mwh=said),
        receipt(ending=LeaseEnding.OVERDUE, energy_mwh=said),
    )
    returned, failed, released = stage.events
    assert isinstance(returned, ev.AttemptsReturned)
    assert returned.results == (result,)
    assert isinstance(failed, ev.AttemptFailed)
    assert isinstance(released, ev.LeaseReleased)
    assert failed.energy_mwh == released.energy_mwh == said


@pytest.mark.parametrize("said", [-1, FIGURE_MAX + 1, 2**63])
@pytest.mark.parametrize("field", [*FIGURES, "runtime_ms"])
async def test_a_figure_beyond_reason_refuses_the_whole_message(
    stage: Stage, field: str, said: int
) -> None:
    good = receipt(OF_ONE, payload=parcel_of(OF_ONE))
    payload = parcel_of(OF_ONE, OF_ANOTHER)
    forged = msgspec.structs.replace(OF_ANOTHER, **{field: said})
    await hand_in(stage, good, receipt(OF_ONE, forged, payload=payload))
    assert (stage.events, stage.blobs) == ([], [])
    assert stage.car.heard == []


@pytest.mark.parametrize("said", [-1, FIGURE_MAX + 1])
@pytest.mark.parametrize(
    "lost", [receipt(failure=Failure.STOPPED), receipt(ending=LeaseEnding.OVERDUE)]
)
async def test_energy_beyond_reason_refuses_it_too(
    stage: Stage, lost: wire.Receipt, said: int
) -> None:
    await hand_in(stage, msgspec.structs.replace(lost, energy_mwh=said))
    assert stage.events == []


async def test_long_words_are_cut(stage: Stage) -> None:
    long = "x" * 10_000
    await hand_in(
        stage,
        receipt(failure=Failure.STOPPED, detail=long),
        receipt(ending=LeaseEnding.OVERDUE, detail=long),
    )
    failed, released = stage.events
    assert isinstance(failed, ev.AttemptFailed)
    assert isinstance(released, ev.LeaseReleased)
    assert failed.detail == released.detail == long[:DETAIL_CHARACTERS_MAX]
