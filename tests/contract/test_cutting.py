"""Cutting a batch: the inputs of its units, its plan, and what the shard is told."""

import hashlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from terafleet.control.adapters.objects_memory import MemoryObjects
from terafleet.control.gateway.assembling import handle_forget
from terafleet.control.gateway.context import (
    GatewayLimits,
    ShardRefused,
    ShardUnavailable,
)
from terafleet.control.gateway.cutting import handle_cut
from terafleet.control.gateway.plan import read_plan
from terafleet.control.gateway.stored_files import delete_file
from terafleet.control.ports import ObjectsFull
from terafleet.core.ids import BatchId
from terafleet.core.reasons import Refused
from terafleet.core.work import BatchState
from terafleet.protocol.openai import COMPLETIONS, BatchErrors
from terafleet.protocol.shard import Answered, Forget, ListBatches, RejectBatch, SubmitUnits
from tests.contract.customer_stage import MINI, SECOND, WRITER, Stage, line, lines, stage

BATCH = BatchId("batch_1")
INPUT, PLAN, FILE = f"in/{BATCH}", f"plan/{BATCH}", f"file/file-of-{BATCH}"


@pytest.fixture
async def made() -> AsyncIterator[Stage]:
    async with stage() as running:
        yield running


async def cut(made: Stage, slots: int = 1, batch_id: str = BATCH) -> None:
    made.shard.slots = slots
    await handle_cut(made.context, made.shard.cut_of(batch_id))


def submitted(made: Stage) -> SubmitUnits:
    (question,) = [asked for asked in made.shard.asked if isinstance(asked, SubmitUnits)]
    return question


async def bodies(made: Stage) -> list[list[bytes]]:
    """The lines of the input of each unit."""
    found = []
    for unit in submitted(made).units:
        body = await made.objects.read(INPUT, unit.offset, unit.length)
        assert hashlib.sha256(body).digest() == unit.digest
        assert body.endswith(b"\n")
        found.append(body.splitlines())
        assert len(found[-1]) == unit.requests
    return found


async def exists(made: Stage, name: str) -> bool:
    return await made.objects.info(name) is not None


async def test_units_hold_all_requests_in_their_order(made: Stage) -> None:
    await made.admit(lines(1_000, text="x" * 100))
    await cut(made, slots=4)
    units = submitted(made).units
    assert len(units) > 10
    assert sum(unit.requests for unit in units) == 1_000
    assert [unit.offset for unit in units[1:]] == [unit.offset + unit.length for unit in units[:-1]]
    stored = await made.objects.info(INPUT)
    assert stored is not None
    assert stored.size_bytes == units[-1].offset + units[-1].length
    assert {unit.model_id for unit in units} == {made.model_id(MINI)}
    assert {unit.cost for unit in units[:-1]} == {units[0].requests * 29}
    body = {"model": MINI, "input": "x" * 100}
    assert all(msgspec.json.decode(text) == body for unit in await bodies(made) for text in unit)
    plan = await read_plan(made.objects, BATCH)
    assert plan is not None
    assert list(plan.custom_ids) == [f"request-{n}" for n in range(1_000)]
    assert list(plan.line_numbers) == list(range(1, 1_001))
    assert plan.units == units


async def test_more_slots_make_more_units(made: Stage) -> None:
    await made.admit(lines(500), "batch_1")
    await made.admit(lines(500), "batch_2")
    await cut(made, 1, "batch_1")
    await cut(made, 10, "batch_2")
    assert len(made.shard.units["batch_2"]) > len(made.shard.units["batch_1"])


async def test_requests_of_one_model_stand_together(made: Stage) -> None:
    models = [SECOND, MINI, MINI, SECOND, MINI]
    await made.admit(b"\n".join(line(f"r{n}", model) for n, model in enumerate(models)))
    await cut(made)
    units = submitted(made).units
    assert [unit.model_id for unit in units] == [made.model_id(SECOND), made.model_id(MINI)]
    texts = [[msgspec.json.decode(text)["model"] for text in unit] for unit in await bodies(made)]
    assert texts == [[SECOND] * 2, [MINI] * 3]
    plan = await read_plan(made.objects, BATCH)
    assert plan is not None
    assert list(plan.custom_ids) == ["r0", "r3", "r1", "r2", "r4"]


async def test_refused_lines_are_in_the_plan_and_not_in_the_units(made: Stage) -> None:
    body = [line("a"), b"garbage", line("b", "nobody"), line("c", WRITER)]
    await made.admit(b"\n".join([*body, line("d", WRITER, url=COMPLETIONS), b"", line("e")]))
    await cut(made)
    assert submitted(made).requests_failed == 4
    plan = await read_plan(made.objects, BATCH)
    assert plan is not None
    assert list(plan.custom_ids) == ["a", "e"]
    assert [(refused.line_number, refused.code) for refused in plan.refused] == [
        (2, "invalid_json_line"),
        (3, "model_not_found"),
        (4, "unsupported_endpoint"),
        (5, "mismatched_endpoint"),
    ]


async def test_a_second_cut_submits_the_same(made: Stage) -> None:
    await made.admit(lines(100))
    await cut(made, slots=1)
    first = submitted(made)
    made.shard.asked.clear()
    made.catalogue.remove_model(made.model_id(MINI), 1)
    await cut(made, slots=50)
    assert submitted(made) == first


async def test_a_cut_that_was_broken_off_is_begun_anew(made: Stage) -> None:
    await made.admit(lines(10))
    await made.shard.stop()
    with pytest.raises(ShardUnavailable):
        await cut(made)
    await made.objects.delete(PLAN)
    await made.shard.start()
    await cut(made)
    assert sum(unit.requests for unit in submitted(made).units) == 10


async def test_a_file_without_any_use_is_rejected(made: Stage) -> None:
    await made.admit(lines(30, model="nobody"))
    await cut(made)
    (rejected,) = [asked for asked in made.shard.asked if isinstance(asked, RejectBatch)]
    errors = msgspec.json.decode(rejected.errors, type=BatchErrors)
    assert len(errors.data) == 20
    assert (errors.data[0].code, errors.data[0].line) == ("model_not_found", 1)
    assert made.shard.views[BATCH].state is BatchState.FAILED
    assert not await exists(made, INPUT)
    assert not await exists(made, PLAN)


async def test_a_file_that_is_gone_is_rejected(made: Stage) -> None:
    await made.admit(lines(3))
    await made.objects.delete(FILE)
    await cut(made)
    (rejected,) = [asked for asked in made.shard.asked if isinstance(asked, RejectBatch)]
    assert msgspec.json.decode(rejected.errors, type=BatchErrors).data[0].code == "file_not_found"
    assert not await exists(made, INPUT)


@pytest.mark.parametrize("reason", [Refused.BATCH_UNKNOWN, Refused.BATCH_ENDED])
async def test_nothing_is_left_of_a_batch_that_has_ended(made: Stage, reason: Refused) -> None:
    await made.admit(lines(3))
    made.shard.refuse[SubmitUnits] = Answered(reason)
    await cut(made)
    assert not await exists(made, INPUT)
    assert not await exists(made, PLAN)


async def test_what_an_earlier_cut_stored_is_not_taken_from_it(made: Stage) -> None:
    await made.admit(lines(3))
    await cut(made)
    made.shard.refuse[SubmitUnits] = Answered(Refused.BATCH_ENDED)
    await cut(made)
    assert await exists(made, PLAN)


async def test_a_shard_that_is_busy_is_asked_again(made: Stage) -> None:
    await made.admit(lines(3))
    made.shard.refuse[SubmitUnits] = Answered(Refused.OVERLOADED)
    with pytest.raises(ShardRefused):
        await cut(made)
    assert await exists(made, PLAN)


async def test_a_full_disk_leaves_nothing() -> None:
    body = lines(200)
    async with stage(objects=MemoryObjects(bytes_max=len(body) + 1_000)) as made:
        await made.admit(body)
        with pytest.raises(ObjectsFull):
            await cut(made)
        assert not await exists(made, INPUT)
        assert made.shard.units == {}


async def test_lines_are_cut_by_the_limits_of_the_gateway() -> None:
    async with stage(GatewayLimits(line_bytes_max=500)) as made:
        await made.admit(line("short") + b"\n" + line("long", text="x" * 500))
        await cut(made)
        assert (len(submitted(made).units), submitted(made).requests_failed) == (1, 1)


async def delete(made: Stage, batch_id: str = BATCH) -> None:
    row = made.catalogue.file(f"file-of-{batch_id}")
    assert row is not None
    await delete_file(made.context, row)


async def test_a_file_goes_at_once_if_no_batch_waits_for_it(made: Stage) -> None:
    await made.admit(lines(3))
    await cut(made)
    await delete(made)
    assert not await exists(made, FILE)
    assert made.catalogue.file(f"file-of-{BATCH}") is None


async def test_a_deleted_file_stays_until_its_last_batch_is_cut(made: Stage) -> None:
    await made.admit(lines(3))
    await made.admit(lines(3), "batch_2")
    made.shard.set_view("batch_2", input_file_id=f"file-of-{BATCH}")
    await delete(made)
    assert made.catalogue.file(f"file-of-{BATCH}") is None
    assert await exists(made, FILE)
    await cut(made)
    assert await exists(made, FILE), "the second batch still needs it"
    made.shard.set_view("batch_2", state=BatchState.CANCELLED)
    await cut(made)
    assert not await exists(made, FILE)
    assert deleted_rows(made) == []


def deleted_rows(made: Stage) -> list[str]:
    """The rows that stand for files which are deleted and still needed."""
    return [file_id for file_id in made.catalogue._files if "deleted" in file_id]


async def forget(made: Stage, batch_id: str = BATCH) -> None:
    """A batch has ended, without having been cut."""
    made.shard.set_view(batch_id, state=BatchState.CANCELLED)
    await handle_forget(made.context, Forget(BatchId(batch_id), f"file-of-{BATCH}"))


async def test_a_deleted_file_goes_with_a_batch_that_ends_before_its_cut(made: Stage) -> None:
    await made.admit(lines(3))
    await delete(made)
    assert await exists(made, FILE)
    for _ in range(2):
        await forget(made)
        assert not await exists(made, FILE)
        assert deleted_rows(made) == []


async def test_such_a_file_stays_while_another_batch_waits_for_it(made: Stage) -> None:
    await made.admit(lines(3))
    await made.admit(lines(3), "batch_2")
    made.shard.set_view("batch_2", input_file_id=f"file-of-{BATCH}")
    await delete(made)
    await forget(made)
    assert await exists(made, FILE)
    assert len(deleted_rows(made)) == 1
    await forget(made, "batch_2")
    assert not await exists(made, FILE)
    assert deleted_rows(made) == []


async def test_a_file_that_nobody_deleted_stays_when_its_batch_is_forgotten(made: Stage) -> None:
    await made.admit(lines(3))
    await forget(made)
    assert await exists(made, FILE)
    assert made.catalogue.file(f"file-of-{BATCH}") is not None


async def test_a_deleted_file_is_let_go_of_once_the_shard_speaks_again(made: Stage) -> None:
    await made.admit(lines(3))
    await delete(made)
    await made.shard.stop()
    with pytest.raises(ShardUnavailable):
        await forget(made)
    assert await exists(made, FILE)
    await made.shard.start()
    await forget(made)
    assert not await exists(made, FILE)


async def test_the_look_for_waiting_batches_ends_at_the_oldest_that_can_wait(made: Stage) -> None:
    for number in range(250):
        await made.admit(b"", f"batch_{number}")
        made.shard.set_view(f"batch_{number}", state=BatchState.COMPLETED)
    await delete(made, "batch_7")
    assert sum(isinstance(asked, ListBatches) for asked in made.shard.asked) == 3
    made.shard.asked.clear()
    made.now_ms += 3 * 86_400_000
    await delete(made, "batch_8")
    assert sum(isinstance(asked, ListBatches) for asked in made.shard.asked) == 1


async def test_a_file_is_not_deleted_while_the_shard_is_silent(made: Stage) -> None:
    await made.admit(lines(3))
    await made.shard.stop()
    with pytest.raises(ShardUnavailable):
        await delete(made)
    assert await exists(made, FILE)
    assert made.catalogue.file(f"file-of-{BATCH}") is not None
