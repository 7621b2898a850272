"""Assembling a batch: every request gets one line in one file, whatever the cars hand in."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from terafleet.control.adapters.catalogue_memory import MemoryCatalogue
from terafleet.control.adapters.objects_memory import MemoryObjects
from terafleet.control.gateway.assembling import handle_assemble, handle_forget, read_answer
from terafleet.control.gateway.context import ShardUnavailable
from terafleet.control.gateway.cutting import handle_cut
from terafleet.control.ports import CatalogueFull, ObjectsFull
from terafleet.core.ids import (
    WHOLE_LEASE,
    BatchId,
    LeaseId,
    VehicleId,
    WorkUnitId,
    batch_outputs_folder,
)
from terafleet.core.reasons import Refused, UnitEnding
from terafleet.protocol.parcel import pack, unpack
from terafleet.protocol.shard import Answered, BatchFilesWritten, Forget, GetOutputs, Outcome
from tests.contract.customer_stage import SECOND, Stage, line, lines, stage
from tests.contract.fake_shard import Give, embedded

BATCH = BatchId("batch_1")
FILE = f"file-of-{BATCH}"
Lines = list[dict[str, Any]]


@pytest.fixture
async def made() -> AsyncIterator[Stage]:
    async with stage() as running:
        yield running


async def computed(
    made: Stage, body: bytes, slots: int = 1, give: Give = embedded
) -> list[Outcome]:
    """The outcomes of a batch that cars have done."""
    await made.admit(body)
    made.shard.slots = slots
    await handle_cut(made.context, made.shard.cut_of(BATCH))
    return await made.shard.compute(BATCH, give)


async def assemble(made: Stage, outcomes: list[Outcome]) -> tuple[Lines, Lines]:
    """The lines of the output file and of the error file."""
    await handle_assemble(made.context, made.shard.assemble_of(BATCH, outcomes))
    view = made.shard.views[BATCH]
    return await read(made, view.output_file_id), await read(made, view.error_file_id)


async def read(made: Stage, file_id: str) -> Lines:
    if not file_id:
        return []
    row = made.catalogue.file(file_id)
    assert row is not None
    body = await made.objects.read(row.object_name)
    assert (row.size_bytes, row.purpose) == (len(body), "batch_output")
    assert body.endswith(b"\n")
    return [json.loads(text) for text in body.splitlines()]


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


def lost_outcome(
    unit_id: WorkUnitId, requests: int, ending: UnitEnding, detail: str = ""
) -> Outcome:
    """The outcome of a unit that has no output."""
    nowhere = (LeaseId(0), WHOLE_LEASE, VehicleId(""))
    return Outcome(unit_id, requests, *nowhere, ending, detail)


def ids(*files: Lines) -> list[str]:
    return sorted(found["custom_id"] for file in files for found in file)


def codes(file: Lines) -> set[str]:
    return {found["error"]["code"] for found in file}


def expected_ids(count: int) -> list[str]:
    return sorted(f"request-{number}" for number in range(count))


async def test_outputs_become_lines_in_the_order_of_the_file(made: Stage) -> None:
    outcomes = await computed(made, lines(500), slots=10)
    assert len(outcomes) == 50
    good, bad = await assemble(made, outcomes)
    assert bad == []
    assert made.shard.views[BATCH].error_file_id == ""
    assert [found["custom_id"] for found in good] == [f"request-{n}" for n in range(500)]
    assert len({found["id"] for found in good}) == 500
    assert len({found["response"]["request_id"] for found in good}) == 500
    assert all(found["id"].startswith("batch_req_") for found in good)
    assert set(good[0]) == {"id", "custom_id", "response", "error"}


async def test_outputs_are_read_from_the_record_and_from_objects(made: Stage) -> None:
    outcomes = await computed(made, lines(200), slots=5)
    for outcome in outcomes[::3]:
        await made.shard.put_away(BATCH, outcome)
    good, bad = await assemble(made, outcomes)
    assert (ids(good), bad) == (expected_ids(200), [])
    assert [found["custom_id"] for found in good] == [f"request-{n}" for n in range(200)]


async def test_answers_with_an_error_go_into_the_error_file(made: Stage) -> None:
    def give(body: dict[str, object]) -> dict[str, object]:
        if body["input"] == "bad":
            return {"status_code": 400, "body": {"error": {"message": "no"}}}
        return embedded(body)

    texts = ["good", "bad", "good", "bad"]
    body = b"\n".join(line(f"r{n}", text=text) for n, text in enumerate(texts))
    good, bad = await assemble(made, await computed(made, body, give=give))
    assert (ids(good), ids(bad)) == (["r0", "r2"], ["r1", "r3"])
    assert bad[0]["response"]["status_code"] == 400
    assert bad[0]["response"]["body"] == {"error": {"message": "no"}}
    assert bad[0]["error"] is None


@pytest.mark.parametrize("ending", UnitEnding)
async def test_units_without_a_result_are_told_with_their_ending(
    made: Stage, ending: UnitEnding
) -> None:
    outcomes = await computed(made, lines(100), slots=2)
    lost = outcomes[1]
    outcomes[1] = lost_outcome(lost.unit_id, lost.requests, ending, "runtime_crashed")
    good, bad = await assemble(made, outcomes)
    assert len(bad) == lost.requests
    assert ids(good, bad) == expected_ids(100)
    assert codes(bad) == {ending.value}
    assert all("runtime_crashed" in found["error"]["message"] for found in bad)
    assert {found["response"] for found in bad} == {None}
    first = outcomes[0].requests
    assert [found["error"]["line"] for found in bad] == [
        number + 1 for number in range(first, first + lost.requests)
    ]


async def test_refused_lines_are_told_with_their_line(made: Stage) -> None:
    body = b"\n".join([line("a"), b"{", line("b", "nobody"), line("c", SECOND)])
    good, bad = await assemble(made, await computed(made, body))
    assert ids(good) == ["a", "c"]
    told = [(found["custom_id"], found["error"]["code"], found["error"]["line"]) for found in bad]
    assert told == [(None, "invalid_json_line", 2), ("b", "model_not_found", 3)]
    assert "Line 3" in bad[1]["error"]["message"]


GOOD_LINE = b'{"status_code":200,"body":{"object":"list"}}\n'
DAMAGES = {
    "empty": b"",
    "short": GOOD_LINE,
    "long": GOOD_LINE * 50,
    "cut off": GOOD_LINE * 2 + GOOD_LINE[:-9],
    "binary": b"\x00\xff\xfe" * 1_000,
    "no object": b"[]\n" * 3,
    "body is no object": b'{"status_code":200,"body":[1]}\n' * 3,
    "body is missing": b'{"status_code":200}\n' * 3,
    "wrong status": b'{"status_code":99,"body":{}}\n{"status_code":"200","body":{}}\n',
    "not utf-8": b'{"status_code":200,"body":{"a":"\xff"}}\n' * 3,
    "nested": b'{"status_code":200,"body":' + b'{"a":' * 100_000,
    "blank line": GOOD_LINE + b"\n" + GOOD_LINE,
    "more fields": b'{"status_code":200,"body":{},"extra":1}\n' * 3,
}


@pytest.mark.parametrize("is_object", [False, True], ids=["inline", "object"])
@pytest.mark.parametrize("kind", DAMAGES)
async def test_damaged_outputs_become_error_lines(made: Stage, kind: str, is_object: bool) -> None:
    (outcome,) = await computed(made, lines(3))
    made.shard.hand_in(outcome, DAMAGES[kind])
    if is_object:
        await made.shard.put_away(BATCH, outcome)
    good, bad = await assemble(made, [outcome])
    assert ids(good, bad) == expected_ids(3)
    assert codes(bad) <= {"output_damaged"}
    good_count = {"short": 1, "long": 3, "cut off": 2, "blank line": 2, "more fields": 3}
    assert len(good) == good_count.get(kind, 0)


async def of_receipts(made: Stage) -> list[list[Outcome]]:
    """The outcomes of a batch whose units came three to a receipt."""
    made.shard.units_per_receipt = 3
    outcomes = await computed(made, lines(500), slots=10)
    assert len(outcomes) > 9
    return [outcomes[at : at + 3] for at in range(0, len(outcomes), 3)]


async def test_a_receipt_may_have_brought_the_outputs_of_several_units(made: Stage) -> None:
    outcomes = [one for several in await of_receipts(made) for one in several]
    assert len(made.shard.parcels) == -(-len(outcomes) // 3)
    good, bad = await assemble(made, outcomes)
    assert bad == []
    assert [found["custom_id"] for found in good] == [f"request-{n}" for n in range(500)]


PARCELS = {
    "empty": pack(()),
    "binary": b"\x00\xff\xfe" * 1_000,
    "an output alone": b'{"status_code":200,"body":{}}\n' * 3,
    "cut off": pack([(WorkUnitId(4), b"{}\n"), (WorkUnitId(5), b"{}\n")])[:-4],
    "of other units": pack([(WorkUnitId(1), b"{}\n"), (WorkUnitId(99), b"{}\n")]),
    "outputs are no bytes": msgspec.msgpack.encode([(4, "text"), (5, 5), (6, None)]),
    "no pairs": msgspec.msgpack.encode([4, 5, 6]),
    "a map": msgspec.msgpack.encode({4: b"{}"}),
    "deep": b"\x91" * 60_000,
}


@pytest.mark.parametrize("kind", PARCELS)
async def test_a_parcel_that_is_none_takes_its_own_units_only(made: Stage, kind: str) -> None:
    receipts = await of_receipts(made)
    damaged = receipts[1]
    assert [outcome.unit_id for outcome in damaged] == [4, 5, 6]
    made.shard.parcels[damaged[0].lease_id, damaged[0].receipt_id] = PARCELS[kind]
    good, bad = await assemble(made, [one for several in receipts for one in several])
    begin = sum(one.requests for one in receipts[0])
    end = begin + sum(one.requests for one in damaged)
    assert [found["custom_id"] for found in bad] == [f"request-{n}" for n in range(begin, end)]
    assert codes(bad) == {"output_damaged"}
    assert ids(good, bad) == expected_ids(500)


async def test_a_parcel_without_an_output_takes_that_unit_only(made: Stage) -> None:
    receipts = await of_receipts(made)
    first, lacking, _ = receipts[1]
    key = (lacking.lease_id, lacking.receipt_id)
    parcel = unpack(made.shard.parcels[key])
    del parcel[lacking.unit_id]
    made.shard.parcels[key] = pack(parcel.items())
    good, bad = await assemble(made, [one for several in receipts for one in several])
    begin = first.requests + sum(one.requests for one in receipts[0])
    end = begin + lacking.requests
    assert [found["custom_id"] for found in bad] == [f"request-{n}" for n in range(begin, end)]
    assert codes(bad) == {"output_damaged"}
    assert ids(good, bad) == expected_ids(500)


async def test_large_outputs_are_told_apart_by_car_lease_and_unit(made: Stage) -> None:
    outcomes = await computed(made, lines(100), slots=2)
    first, second = outcomes[0], outcomes[1]
    for outcome in outcomes:
        await made.shard.put_away(BATCH, outcome)
    folder = batch_outputs_folder(BATCH)
    forged = b'{"status_code":200,"body":{"forged":true}}\n' * 100
    for name in (
        f"veh-thief/{first.lease_id}-{first.unit_id}",
        f"{first.vehicle_id}/{second.lease_id}-{first.unit_id}",
        f"{first.vehicle_id}/{first.lease_id}-{second.unit_id}",
    ):
        await made.objects.write(f"{folder}{name}", pieces(forged))
    good, bad = await assemble(made, outcomes)
    assert (ids(good), bad) == (expected_ids(100), [])
    assert all("forged" not in found["response"]["body"] for found in good)


async def test_a_missing_output_becomes_error_lines(made: Stage) -> None:
    outcomes = await computed(made, lines(100), slots=2)
    made.shard.parcels.pop((outcomes[0].lease_id, outcomes[0].receipt_id))
    good, bad = await assemble(made, outcomes)
    assert ids(good, bad) == expected_ids(100)
    assert len(bad) == outcomes[0].requests
    assert codes(bad) == {"output_damaged"}


async def test_outcomes_that_do_not_fit_the_plan_lose_no_request(made: Stage) -> None:
    outcomes = await computed(made, lines(100), slots=2)
    good, bad = await assemble(made, outcomes[:-1])
    assert ids(good, bad) == expected_ids(100)
    assert len(bad) == outcomes[-1].requests
    more = [*outcomes, lost_outcome(WorkUnitId(99), 7, UnitEnding.BATCH_EXPIRED)]
    good, bad = await assemble(made, more)
    assert (ids(good), bad) == (expected_ids(100), [])


async def test_assembling_twice_gives_the_same_files(made: Stage) -> None:
    body = lines(50) + b"\n{"
    outcomes = await computed(made, body)
    first = await assemble(made, outcomes)
    files = made.shard.views[BATCH].output_file_id, made.shard.views[BATCH].error_file_id
    assert all(files)
    assert await assemble(made, outcomes) == first
    assert (made.shard.views[BATCH].output_file_id, made.shard.views[BATCH].error_file_id) == files
    await handle_forget(made.context, Forget(BATCH, FILE))
    assert await assemble(made, outcomes) == first
    assert len(made.catalogue.files("cust-alice", "batch_output", "", 10, False)) == 2


async def test_a_lost_plan_is_told(made: Stage) -> None:
    outcomes = await computed(made, lines(5))
    await made.objects.delete(f"plan/{BATCH}")
    good, bad = await assemble(made, outcomes)
    assert good == []
    (told,) = bad
    assert "5 requests" in told["error"]["message"]


async def test_a_batch_without_units_has_no_files(made: Stage) -> None:
    await made.admit(lines(1))
    assert await assemble(made, []) == ([], [])
    written = made.shard.asked[-1]
    assert written == BatchFilesWritten(BATCH, "", "")


async def test_a_batch_that_has_ended_is_left_alone(made: Stage) -> None:
    outcomes = await computed(made, lines(5))
    made.shard.refuse[BatchFilesWritten] = Answered(Refused.BATCH_UNKNOWN)
    await handle_assemble(made.context, made.shard.assemble_of(BATCH, outcomes))


async def test_what_stands_in_the_way_is_raised_and_may_be_tried_again(made: Stage) -> None:
    outcomes = await computed(made, lines(5))
    work = made.shard.assemble_of(BATCH, outcomes)
    await made.shard.stop()
    with pytest.raises(ShardUnavailable):
        await handle_assemble(made.context, work)
    await made.shard.start()
    full = replace(made.context, catalogue=MemoryCatalogue(rows_max=0))
    with pytest.raises(CatalogueFull):
        await handle_assemble(full, work)
    assert made.shard.views[BATCH].output_file_id == ""
    good, _ = await assemble(made, outcomes)
    assert len(good) == 5


async def test_a_full_disk_is_raised() -> None:
    body = lines(100)
    objects = MemoryObjects(bytes_max=3 * len(body))
    async with stage(objects=objects) as made:
        outcomes = await computed(made, body)
        with pytest.raises(ObjectsFull):
            await handle_assemble(made.context, made.shard.assemble_of(BATCH, outcomes))
        assert made.shard.views[BATCH].output_file_id == ""


async def test_outputs_are_asked_for_in_groups(made: Stage) -> None:
    def give(body: dict[str, object]) -> dict[str, object]:
        return {"status_code": 200, "body": {"model": body["model"], "text": "x" * 20_000}}

    outcomes = await computed(made, lines(300, text="x" * 300), slots=50, give=give)
    good, bad = await assemble(made, outcomes)
    assert (len(good), bad) == (300, [])
    asked = [question for question in made.shard.asked if isinstance(question, GetOutputs)]
    assert len(asked) > len(outcomes) // 64 + 1, "some did not fit into one message"
    assert max(len(question.outputs) for question in asked) == 64


async def test_forgetting_removes_inputs_plan_and_all_large_outputs(made: Stage) -> None:
    outcomes = await computed(made, lines(100), slots=2)
    counted = [await made.shard.put_away(BATCH, outcome) for outcome in outcomes]
    await assemble(made, outcomes)
    batch, another = batch_outputs_folder(BATCH), batch_outputs_folder(BatchId(f"{BATCH}0"))
    never_counted = [f"{batch}veh-other/9-1", f"{batch}veh-other/9-2", f"{batch}veh-third/8-1"]
    others = [f"{another}veh-other/9-1", f"in/{BATCH}0", f"plan/{BATCH}0"]
    for name in (*never_counted, *others):
        await made.objects.write(name, pieces(b"output"))
    for _ in range(2):
        await handle_forget(made.context, Forget(BATCH, FILE))
    gone = [f"in/{BATCH}", f"plan/{BATCH}", *counted, *never_counted]
    assert [name for name in gone if await made.objects.info(name) is not None] == []
    kept = [f"file/{FILE}", *others]
    assert [name for name in kept if await made.objects.info(name) is None] == []
    assert made.catalogue.file(FILE) is not None
    assert len(await read(made, made.shard.views[BATCH].output_file_id)) == 100


@given(st.binary())
def test_arbitrary_answers_never_raise(text: bytes) -> None:
    answer = read_answer(text)
    if answer is not None:
        assert isinstance(json.loads(bytes(answer.body)), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.integers(0, 999), st.dictionaries(st.text(), JSON, max_size=4))
def test_a_good_answer_comes_back_as_it_was(status_code: int, body: dict[str, Any]) -> None:
    answer = read_answer(json.dumps({"status_code": status_code, "body": body}).encode())
    if 100 <= status_code <= 599:
        assert answer is not None
        assert (answer.status_code, json.loads(bytes(answer.body))) == (status_code, body)
    else:
        assert answer is None
