"""The gateway takes work of shards: each once at a time, again after a fault, in order by batch."""

from collections.abc import AsyncIterator

import pytest

from terafleet.control.gateway.plan import plan_name
from terafleet.control.gateway.work import GatewayWorkHandler
from terafleet.core.ids import BatchId
from terafleet.core.reasons import Refused
from terafleet.core.work import BatchState
from terafleet.protocol.shard import (
    GATEWAY_WORK_SUBJECT,
    Answered,
    BatchFilesWritten,
    Forget,
    SubmitUnits,
)
from tests.contract.customer_stage import Stage, lines, stage, until

BATCH = BatchId("batch_1")
FILE = f"file-of-{BATCH}"


@pytest.fixture
async def made() -> AsyncIterator[Stage]:
    async with stage() as running:
        yield running


def count(made: Stage, kind: type) -> int:
    return sum(isinstance(asked, kind) for asked in made.shard.asked)


def is_so_far(made: Stage, state: BatchState) -> bool:
    return made.shard.views[BATCH].state is state


async def test_work_is_taken_from_the_bus(made: Stage) -> None:
    await made.admit(lines(10))
    made.shard.ask(made.shard.cut_of(BATCH))
    await until(lambda: is_so_far(made, BatchState.IN_PROGRESS))
    outcomes = await made.shard.compute(BATCH)
    made.shard.ask(made.shard.assemble_of(BATCH, outcomes))
    await until(lambda: is_so_far(made, BatchState.COMPLETED))
    made.shard.ask(Forget(BATCH, FILE))
    await made.work.finish()
    assert made.shard.views[BATCH].output_file_id


async def test_the_same_work_is_done_once_at_a_time(made: Stage) -> None:
    await made.admit(lines(10))
    for _ in range(5):
        made.shard.ask(made.shard.cut_of(BATCH))
    await until(lambda: is_so_far(made, BatchState.IN_PROGRESS))
    await made.work.finish()
    assert count(made, SubmitUnits) == 1
    made.shard.ask(made.shard.cut_of(BATCH))
    await until(lambda: count(made, SubmitUnits) == 2)


async def test_work_is_tried_again_after_a_fault(made: Stage) -> None:
    await made.admit(lines(10))
    made.shard.refuse_once[SubmitUnits] = Answered(Refused.OVERLOADED)
    made.shard.ask(made.shard.cut_of(BATCH))
    await until(lambda: is_so_far(made, BatchState.IN_PROGRESS))
    assert count(made, SubmitUnits) == 2


async def test_work_that_stays_impossible_is_left_to_the_shard(made: Stage) -> None:
    await made.admit(lines(10))
    made.shard.refuse[SubmitUnits] = Answered(Refused.OVERLOADED)
    made.shard.ask(made.shard.cut_of(BATCH))
    await until(lambda: count(made, SubmitUnits) == 3)
    await made.work.finish()
    assert count(made, SubmitUnits) == 3


async def test_a_batch_is_forgotten_after_its_cut_and_not_in_its_midst(made: Stage) -> None:
    await made.admit(lines(1_000))
    made.shard.ask(made.shard.cut_of(BATCH))
    made.shard.ask(Forget(BATCH, FILE))
    await until(lambda: is_so_far(made, BatchState.IN_PROGRESS))
    await made.work.finish()
    assert await made.objects.info(plan_name(BATCH)) is None
    assert await made.objects.info(f"in/{BATCH}") is None


async def test_one_batch_that_breaks_does_not_stop_the_others(made: Stage) -> None:
    await made.admit(lines(10))
    await made.admit(lines(10), "batch_2")

    async def broken() -> AsyncIterator[bytes]:
        yield b"no plan at all"

    await made.objects.write(plan_name(BATCH), broken())
    made.shard.ask(made.shard.cut_of(BATCH))
    made.shard.ask(made.shard.cut_of("batch_2"))
    await until(lambda: made.shard.views["batch_2"].state is BatchState.IN_PROGRESS)
    await made.work.finish()
    assert is_so_far(made, BatchState.VALIDATING)


async def test_what_can_not_be_read_is_passed_over(made: Stage) -> None:
    await made.admit(lines(10))
    for body in (b"", b"\xc1", b"\x81\xa4type\xa5Other"):
        made.bus.publish(GATEWAY_WORK_SUBJECT, body)
    made.shard.ask(made.shard.cut_of(BATCH))
    await until(lambda: is_so_far(made, BatchState.IN_PROGRESS))


async def test_gateways_share_the_work(made: Stage) -> None:
    second = GatewayWorkHandler(made.context, retry_ms=())
    await second.start()
    for number in range(6):
        await made.admit(lines(3), f"batch_{number}")
        made.shard.ask(made.shard.cut_of(f"batch_{number}"))
    await until(lambda: count(made, SubmitUnits) == 6)
    await second.finish()
    await second.close()
    made.shard.ask(made.shard.cut_of("batch_0"))
    await until(lambda: count(made, SubmitUnits) == 7)


async def test_closing_leaves_work_to_others(made: Stage) -> None:
    await made.admit(lines(5_000))
    made.shard.ask(made.shard.cut_of(BATCH))
    await until(lambda: bool(made.work._doing))
    await made.work.close()
    assert count(made, SubmitUnits) == 0
    assert await made.objects.info(plan_name(BATCH)) is None
    assert count(made, BatchFilesWritten) == 0
