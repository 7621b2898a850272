"""Deliveries: receipts with their parcels at once, large outputs before their receipts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from terafleet.agent.results import address_name
from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.guard_receipts import receipt_of_ending, receipt_of_failure, receipt_of_results
from terafleet.core.ids import WHOLE_LEASE, LeaseId, ReceiptId, WorkUnitId, output_name
from terafleet.core.reasons import Failure, LeaseEnding
from tests.contract.agent_stage import FakeGateway, until
from tests.contract.performer_stage import LINE, Stage, large, put_path

KEY = (LeaseId(1), ReceiptId(1))
PUT = put_path(1, 1)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with FakeGateway().open() as gateway, Stage(tmp_path, gateway).open() as opened:
        yield opened


async def finished(stage: Stage, output: bytes = LINE * 3, lease: int = 1) -> fx.SendReceipt:
    """Have an attempt finished with this output; how a guard hands it in."""
    if not stage.performer.loaded:
        await stage.loaded()
    count = len(stage.of(ev.AttemptsFinished))
    stage.runtime.answer(await stage.started(lease), output)
    return receipt_of_results(await stage.heard(ev.AttemptsFinished, count + 1))


def stored(stage: Stage) -> list[str]:
    """The names of all blobs in the record."""
    return list(stage.store.blob_names(""))


async def test_a_parcel_rides_in_its_receipt(stage: Stage) -> None:
    effect = await finished(stage)
    stage.perform(effect)
    (receipt,) = stage.receipts
    assert (receipt.lease_id, receipt.receipt_id) == KEY
    assert (receipt.failure, receipt.ending) == (None, None)
    assert (receipt.payload, receipt.digest) == (effect.parcel, effect.digest)
    assert [one.unit_id for one in receipt.results] == [1]
    assert not stored(stage), "the event itself holds what is small"


async def test_a_groups_receipts_are_handed_in_together(stage: Stage) -> None:
    effect = await finished(stage)
    lease_id = LeaseId(2)
    broke = ev.AttemptBroke(0, lease_id, WorkUnitId(3), Failure.RUNTIME_CRASHED, "late", 17)
    stage.perform(
        effect,
        receipt_of_ending(lease_id, LeaseEnding.OWNER_RETURNED, "back"),
        receipt_of_failure(broke),
    )
    assert stage.batches == [3]
    _, ending, failure = stage.receipts
    assert (ending.receipt_id, ending.ending) == (WHOLE_LEASE, LeaseEnding.OWNER_RETURNED)
    assert (ending.detail, ending.results, ending.payload) == ("back", (), b"")
    assert (failure.receipt_id, failure.failure) == (3, Failure.RUNTIME_CRASHED)
    assert (failure.detail, failure.energy_mwh) == ("late", 17)


async def test_a_large_output_is_put_before_its_receipt_leaves(stage: Stage) -> None:
    effect = await finished(stage, large())
    stage.gateway.refuse(PUT, "storage_full", times=2)
    stage.perform(effect)
    assert not stage.receipts
    await until(lambda: stage.receipts)
    assert stage.gateway.objects[PUT] == large()
    assert stage.gateway.paths("PUT") == [PUT] * 3
    (receipt,) = stage.receipts
    assert (receipt.payload, receipt.digest) == (b"", effect.digest)
    assert (receipt.failure, receipt.results) == (None, effect.results)


async def test_no_other_receipt_waits_for_a_large_output(stage: Stage) -> None:
    waiting, ready = await finished(stage, large()), await finished(stage, lease=2)
    stage.gateway.gate.clear()
    stage.perform(waiting, ready)
    await until(lambda: stage.gateway.paths("PUT"))
    assert [receipt.lease_id for receipt in stage.receipts] == [2]
    stage.gateway.gate.set()
    await until(lambda: len(stage.receipts) == 2)


async def test_an_output_without_a_place_to_go_is_a_failure(stage: Stage) -> None:
    effect = await finished(stage, large())
    stage.gateway.refuse(PUT, "address_expired")
    stage.perform(effect)
    await until(lambda: stage.receipts)
    (receipt,) = stage.receipts
    assert (receipt.lease_id, receipt.receipt_id) == KEY
    assert receipt.failure is Failure.OUTPUT_INCOMPLETE
    assert "address_expired" in receipt.detail
    assert (receipt.energy_mwh, receipt.payload, receipt.results) == (40, b"", ())


async def test_an_output_that_is_put_already_is_not_put_twice_at_once(stage: Stage) -> None:
    effect = await finished(stage, large())
    stage.gateway.gate.clear()
    stage.perform(effect)
    stage.perform(effect)
    stage.gateway.gate.set()
    await until(lambda: stage.receipts)
    await stage.quiet()
    assert stage.gateway.paths("PUT") == [PUT]
    assert stage.batches == [1]


async def test_after_a_restart_outputs_come_from_the_record(stage: Stage) -> None:
    small, big = await finished(stage, lease=2), await finished(stage, large())
    anew = stage.new_deliveries()
    anew.send([small, big])
    await until(lambda: len(stage.receipts) == 2)
    assert [receipt.payload for receipt in stage.receipts] == [small.parcel, b""]
    assert stage.gateway.objects[PUT] == large()
    anew.forget([(LeaseId(2), ReceiptId(1)), KEY])
    assert not stored(stage), "it knows of the large one from its receipt"


async def test_an_output_that_is_not_in_the_record_any_more_is_a_failure(stage: Stage) -> None:
    effect = await finished(stage, large())
    stage.perform(fx.ForgetReceipts((KEY,)), effect)
    await until(lambda: stage.receipts)
    assert stage.receipts[0].failure is Failure.OUTPUT_INCOMPLETE
    assert "output_missing" in stage.receipts[0].detail
    assert not stage.gateway.paths("PUT")


async def test_an_acknowledged_output_is_deleted_and_no_other(stage: Stage) -> None:
    first, other = await finished(stage, large()), await finished(stage, large("y"), lease=12)
    stage.perform(first, other)
    await until(lambda: len(stage.receipts) == 2)
    kept = (LeaseId(12), ReceiptId(1))
    assert len(stored(stage)) == 4
    stage.perform(fx.ForgetReceipts((KEY,)))
    assert stored(stage) == [output_name(*kept), address_name(*kept)]
    assert stage.store.blob(output_name(*kept)) == large("y")
    stage.perform(fx.ForgetReceipts((KEY, kept)))
    assert not stored(stage)


async def test_a_parcel_leaves_nothing_to_delete(stage: Stage) -> None:
    stage.perform(await finished(stage))
    stage.perform(fx.ForgetReceipts((KEY, (LeaseId(1), WHOLE_LEASE))))
    assert not stage.discarded


async def test_an_output_that_comes_too_late_is_deleted_and_goes_nowhere(stage: Stage) -> None:
    await finished(stage, large())
    assert stored(stage) == [output_name(*KEY), address_name(*KEY)]
    stage.perform(fx.ForgetReceipts((KEY,)))
    assert not stored(stage)
    await stage.quiet()
    assert not stage.receipts
    assert not stage.gateway.paths("PUT")


async def test_forgetting_ends_a_put_that_can_not_succeed(stage: Stage) -> None:
    effect = await finished(stage, large())
    stage.gateway.refuse(PUT, "overloaded", times=1_000_000)
    stage.perform(effect)
    await until(lambda: len(stage.gateway.paths("PUT")) > 2)
    stage.perform(fx.ForgetReceipts((KEY,)))
    await stage.quiet()
    asked = len(stage.gateway.paths("PUT"))
    await stage.quiet()
    assert len(stage.gateway.paths("PUT")) == asked
    assert not stage.receipts
    assert not stored(stage)
