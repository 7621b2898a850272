"""Batches and models over HTTP, as the official client sees them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types import Batch

from terafleet.control.gateway.batches import batch_object
from terafleet.core.ids import BatchId, CustomerId
from terafleet.core.reasons import Refused, Waiting
from terafleet.core.work import BatchState
from terafleet.protocol.openai import COMPLETIONS, EMBEDDINGS, completion_window, window_ms
from terafleet.protocol.shard import Answered, BatchView, CreateBatch
from tests.contract.customer_stage import (
    ALICE,
    MINI,
    SECOND,
    WRITER,
    Server,
    Service,
    line,
    lines,
    secret_of,
    server,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_server() -> AsyncIterator[Server]:
    async with server() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(open_server: Server) -> AsyncIterator[Service]:
    async with open_server.open() as running:
        yield running


async def finish(gateway: Service, batch_id: str) -> Batch:
    """Let the cars do the batch, and wait for its files."""
    await gateway.until(batch_id, "in_progress")
    outcomes = await gateway.shard.compute(batch_id)
    gateway.shard.ask(gateway.shard.assemble_of(batch_id, outcomes))
    return await gateway.until(batch_id, "completed")


async def content(gateway: Service, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    read = await gateway.alice.files.content(file_id)
    return [json.loads(text) for text in read.text.splitlines()]


async def test_a_batch_from_file_to_results(gateway: Service) -> None:
    file_id = await gateway.upload(lines(20))
    made = await gateway.alice.batches.create(
        input_file_id=file_id,
        endpoint=EMBEDDINGS,
        completion_window="24h",
        metadata={"night": "one", "größe": "7"},
    )
    assert (made.object, made.status, made.completion_window) == ("batch", "validating", "24h")
    assert (made.endpoint, made.input_file_id) == (EMBEDDINGS, file_id)
    assert made.metadata == {"night": "one", "größe": "7"}
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == 86_400
    done = await finish(gateway, made.id)
    assert (done.error_file_id, done.errors) == (None, None)
    assert done.completed_at is not None
    results = await content(gateway, done.output_file_id)
    assert [result["custom_id"] for result in results] == [f"request-{n}" for n in range(20)]
    assert len({result["id"] for result in results}) == 20
    for result in results:
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        assert result["response"]["body"]["data"][0]["embedding"] == [0.25, -1.5]
    output = await gateway.alice.files.retrieve(done.output_file_id or "")
    assert (output.purpose, output.filename) == ("batch_output", f"{made.id}_output.jsonl")


async def test_a_malformed_line_fails_alone_with_its_number(gateway: Service) -> None:
    body = b"\n".join(
        [line("good-1"), b"{not json", line("no-model", model=""), b"", line("good-2"), b"[]"]
    )
    made = await gateway.batch(await gateway.upload(body))
    assert made.request_counts is not None
    assert made.request_counts.total == 5
    done = await finish(gateway, made.id)
    assert done.request_counts is not None
    assert done.request_counts.failed == 3
    good = await content(gateway, done.output_file_id)
    assert [result["custom_id"] for result in good] == ["good-1", "good-2"]
    bad = await content(gateway, done.error_file_id)
    assert [result["error"]["line"] for result in bad] == [2, 3, 6]
    assert [result["custom_id"] for result in bad] == [None, "no-model", None]
    codes = ["invalid_json_line", "invalid_value", "invalid_json_line"]
    assert [result["error"]["code"] for result in bad] == codes
    assert all(f"Line {result['error']['line']}" in result["error"]["message"] for result in bad)
    assert all(result["response"] is None for result in bad)


async def test_a_line_over_the_limit_fails_alone(gateway: Service) -> None:
    body = line("long", text="x" * (1024 * 1024)) + b"\n" + line("short")
    done = await finish(gateway, (await gateway.batch(await gateway.upload(body))).id)
    (bad,) = await content(gateway, done.error_file_id)
    assert (bad["error"]["code"], bad["error"]["line"]) == ("line_too_long", 1)
    assert len(await content(gateway, done.output_file_id)) == 1


async def test_lines_with_an_unknown_model_fail_alone(gateway: Service) -> None:
    body = b"\n".join([line("a"), line("b", model="nobody"), line("c", model=WRITER)])
    done = await finish(gateway, (await gateway.batch(await gateway.upload(body))).id)
    bad = await content(gateway, done.error_file_id)
    codes = ["model_not_found", "unsupported_endpoint"]
    assert [result["error"]["code"] for result in bad] == codes
    assert [result["custom_id"] for result in bad] == ["b", "c"]
    assert gateway.shard.created[done.id].model_ids == (gateway.stage.model_id(MINI),)


async def test_a_batch_may_use_several_models(gateway: Service) -> None:
    models = [MINI, SECOND, SECOND, MINI, "gone", SECOND]
    gateway.stage.catalogue.remove_model(gateway.stage.model_id(WRITER), 1)
    body = b"\n".join(line(f"r{n}", model=model) for n, model in enumerate(models))
    done = await finish(gateway, (await gateway.batch(await gateway.upload(body))).id)
    results = await content(gateway, done.output_file_id)
    assert [result["custom_id"] for result in results] == ["r0", "r3", "r1", "r2", "r5"]
    for result in results:
        asked = models[int(result["custom_id"][1:])]
        assert result["response"]["body"]["model"] == asked
    assert len(await content(gateway, done.error_file_id)) == 1


OTHER = line("other", url=COMPLETIONS)
BAD_BATCHES = {
    "mixed endpoints": (line("a") + b"\n" + OTHER, "mismatched_endpoint", "Line 2"),
    "other endpoint": (OTHER, "mismatched_endpoint", "Line 1"),
    "unknown endpoint in a line": (
        line("a") + b"\n" + line("b", url="/v1/images/edits"),
        "mismatched_endpoint",
        "/v1/images/edits",
    ),
    "duplicates": (lines(3) + b"\n\n" + line("request-1"), "duplicate_custom_id", "request-1"),
    "a duplicate of a refused line": (
        line("a") + b"\n" + line("a", model=""),
        "duplicate_custom_id",
        "line 1 and in line 2",
    ),
    "all malformed": (line("") + b"\n" + line("b", text=""), "invalid_file", "Line 2: input"),
    "too many models": (
        b"\n".join(line(str(number), model=f"model-{number}") for number in range(17)),
        "invalid_file",
        "16 models",
    ),
    "a model of another endpoint": (line(model=WRITER), "unsupported_endpoint", WRITER),
}


@pytest.mark.parametrize("kind", BAD_BATCHES)
async def test_a_file_without_use_is_refused_at_once(gateway: Service, kind: str) -> None:
    body, code, words = BAD_BATCHES[kind]
    file_id = await gateway.upload(body)
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.batch(file_id)
    assert refused.value.code == code
    assert words in refused.value.message
    assert gateway.shard.created == {}


async def test_a_duplicate_is_told_with_both_lines(gateway: Service) -> None:
    file_id = await gateway.upload(lines(3) + b"\n\n" + line("request-1"))
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.batch(file_id)
    assert "line 2" in refused.value.message
    assert "line 5" in refused.value.message


async def test_an_unknown_model_is_named(gateway: Service) -> None:
    file_id = await gateway.upload(lines(3, model="nobody"))
    with pytest.raises(openai.NotFoundError) as refused:
        await gateway.batch(file_id)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert "nobody" in refused.value.message


BAD_BODIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unsupported endpoint": ({"endpoint": "/v1/responses"}, "unsupported_endpoint", "endpoint"),
    "no endpoint": ({"endpoint": None}, "missing_parameter", "endpoint"),
    "no file": ({"input_file_id": None}, "missing_parameter", "input_file_id"),
    "a number as file": ({"input_file_id": 7}, "invalid_value", "input_file_id"),
    "no window": ({"completion_window": None}, "missing_parameter", "completion_window"),
    "long window": ({"completion_window": "25h"}, "invalid_value", "completion_window"),
    "window in days": ({"completion_window": "1d"}, "invalid_value", "completion_window"),
    "unknown": ({"colour": "red"}, "unsupported_parameter", "colour"),
    "expiry": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 3_600}},
        "unsupported_parameter",
        "output_expires_after",
    ),
    "metadata": ({"metadata": "text"}, "invalid_value", "metadata"),
    "many pairs": ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
    "long key": ({"metadata": {"k" * 65: ""}}, "invalid_value", "metadata"),
    "long value": ({"metadata": {"k": "v" * 513}}, "invalid_value", "metadata"),
    "number as value": ({"metadata": {"k": 1}}, "invalid_value", "metadata"),
}


@pytest.mark.parametrize("kind", BAD_BODIES)
async def test_a_bad_parameter_is_refused_by_name(gateway: Service, kind: str) -> None:
    changes, code, param = BAD_BODIES[kind]
    good = {"input_file_id": "file-1", "endpoint": EMBEDDINGS, "completion_window": "24h"}
    answer = await gateway.http.post("/v1/batches", json={**good, **changes})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 50_000])
async def test_a_body_that_is_no_object_is_refused(gateway: Service, body: bytes) -> None:
    answer = await gateway.http.post("/v1/batches", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_only_own_input_files_make_a_batch(gateway: Service) -> None:
    file_id = await gateway.upload(lines(2))
    for client, wanted in ((gateway.bob, file_id), (gateway.alice, "file-none")):
        with pytest.raises(openai.NotFoundError) as refused:
            await client.batches.create(
                input_file_id=wanted, endpoint=EMBEDDINGS, completion_window="24h"
            )
        assert (refused.value.code, refused.value.param) == ("file_not_found", "input_file_id")
    done = await finish(gateway, (await gateway.batch(file_id)).id)
    with pytest.raises(openai.BadRequestError) as unfit:
        await gateway.batch(done.output_file_id or "")
    assert (unfit.value.code, unfit.value.param) == ("unsupported_purpose", "input_file_id")


REFUSALS = {
    Refused.NO_FEASIBLE_VEHICLE: (422, "no_feasible_vehicle"),
    Refused.FLEET_EMPTY: (422, "fleet_empty"),
    Refused.STORAGE_FULL: (507, "storage_full"),
    Refused.OVERLOADED: (503, "overloaded"),
    Refused.MODEL_UNKNOWN: (404, "model_not_found"),
    Refused.ENDPOINT_UNSUPPORTED: (400, "unsupported_endpoint"),
}


@pytest.mark.parametrize("reason", REFUSALS)
async def test_the_words_of_the_shard_come_back_at_once(gateway: Service, reason: Refused) -> None:
    words = "the best of 3 vehicles lends 512 MB of memory, 900 MB are needed"
    gateway.shard.refuse[CreateBatch] = Answered(reason, words)
    file_id = await gateway.upload(lines(1))
    with pytest.raises(openai.APIStatusError) as refused:
        await gateway.batch(file_id)
    assert (refused.value.status_code, refused.value.code) == REFUSALS[reason]
    assert words in refused.value.message


async def test_a_full_disk_is_said(gateway: Service) -> None:
    file_id = await gateway.upload(lines(1))
    gateway.stage.is_full = True
    with pytest.raises(openai.APIStatusError) as refused:
        await gateway.batch(file_id)
    assert (refused.value.status_code, refused.value.code) == (507, "storage_full")


async def test_a_silent_shard_is_said(gateway: Service) -> None:
    file_id = await gateway.upload(lines(1))
    await gateway.shard.stop()
    with pytest.raises(openai.InternalServerError) as refused:
        await gateway.batch(file_id)
    assert (refused.value.status_code, refused.value.code) == (503, "shard_unavailable")
    assert refused.value.response.headers["retry-after"]


async def test_a_batch_that_was_admitted_is_told_even_if_the_shard_falls_silent(
    gateway: Service,
) -> None:
    file_id = await gateway.upload(lines(4))
    gateway.shard.silent_after = CreateBatch
    gateway.shard.wants_cuts = False
    made = await gateway.batch(file_id)
    assert made.id in gateway.shard.created
    assert made.status == "validating"
    assert made.request_counts is not None
    assert made.request_counts.total == 4


async def test_a_batch_says_why_it_waits(gateway: Service) -> None:
    made = await gateway.batch(await gateway.upload(lines(2)))
    await gateway.until(made.id, "in_progress")
    waiting = Waiting.ALL_VEHICLES_REFUSE
    gateway.shard.set_view(made.id, waiting=waiting, units=9, units_ended=4)
    found = await gateway.alice.batches.retrieve(made.id)
    assert found.model_extra is not None
    expected = {"waiting": "all_vehicles_refuse", "units": 9, "units_ended": 4}
    assert found.model_extra["terafleet"] == expected


async def test_batches_are_listed_newest_first_in_pages(gateway: Service) -> None:
    file_id = await gateway.upload(lines(1))
    ids = [(await gateway.batch(file_id)).id for _ in range(5)]
    page = await gateway.alice.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (ids[:2:-1], True)
    assert [batch.id async for batch in gateway.alice.batches.list(limit=2)] == ids[::-1]
    assert (await gateway.bob.batches.list()).data == []
    wrong = await gateway.http.get("/v1/batches", params={"limit": 101})
    assert wrong.json()["error"]["param"] == "limit"


async def test_a_batch_is_cancelled(gateway: Service) -> None:
    made = await gateway.batch(await gateway.upload(lines(2)))
    await gateway.until(made.id, "in_progress")
    cancelled = await gateway.alice.batches.cancel(made.id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None


async def test_a_batch_that_has_ended_is_not_cancelled(gateway: Service) -> None:
    done = await finish(gateway, (await gateway.batch(await gateway.upload(lines(1)))).id)
    with pytest.raises(openai.ConflictError) as refused:
        await gateway.alice.batches.cancel(done.id)
    assert refused.value.code == "batch_ended"


async def test_nobody_sees_the_batch_of_another(gateway: Service) -> None:
    made = await gateway.batch(await gateway.upload(lines(1)))
    for attempt in (
        gateway.bob.batches.retrieve(made.id),
        gateway.bob.batches.cancel(made.id),
        gateway.alice.batches.retrieve("batch_none"),
        gateway.alice.batches.cancel("batch_none"),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            await attempt
        assert refused.value.code == "batch_not_found"


async def test_a_deleted_input_file_does_not_stop_its_batch(gateway: Service) -> None:
    gateway.shard.wants_cuts = False
    file_id = await gateway.upload(lines(3))
    made = await gateway.batch(file_id)
    await gateway.alice.files.delete(file_id)
    with pytest.raises(openai.NotFoundError):
        await gateway.alice.files.content(file_id)
    assert (await gateway.alice.files.list()).data == []
    with pytest.raises(openai.NotFoundError):
        await gateway.batch(file_id)
    gateway.shard.ask(gateway.shard.cut_of(made.id))
    done = await finish(gateway, made.id)
    assert len(await content(gateway, done.output_file_id)) == 3
    assert await gateway.stage.objects.info(f"file/{file_id}") is None


async def test_only_a_good_key_makes_batches(gateway: Service) -> None:
    body = {"input_file_id": "x", "endpoint": EMBEDDINGS, "completion_window": "24h"}
    wrong = {"authorization": f"Bearer {secret_of('nobody')}"}
    answer = await gateway.http.post("/v1/batches", json=body, headers=wrong)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    gateway.stage.catalogue.revoke_key("alice", 1)
    with pytest.raises(openai.AuthenticationError) as refused:
        await gateway.client(ALICE).batches.list()
    assert refused.value.code == "revoked_api_key"
    assert gateway.shard.asked == []


async def test_models_are_listed_and_found(gateway: Service) -> None:
    found = [model.id async for model in gateway.alice.models.list()]
    assert sorted(found) == sorted([MINI, SECOND, WRITER])
    model = await gateway.alice.models.retrieve(SECOND)
    assert (model.id, model.object, model.owned_by) == (SECOND, "model", "terafleet")
    assert model.model_extra is not None
    facts = {"model_id": gateway.stage.model_id(SECOND), "endpoints": [EMBEDDINGS]}
    assert model.model_extra["terafleet"] == facts
    plain = await gateway.http.get(f"/v1/models/{SECOND}")
    assert plain.json()["id"] == SECOND
    gateway.stage.catalogue.remove_model(gateway.stage.model_id(SECOND), 1)
    with pytest.raises(openai.NotFoundError) as refused:
        await gateway.alice.models.retrieve(SECOND)
    assert refused.value.code == "model_not_found"


def view(state: BatchState, **changes: Any) -> BatchView:
    known: dict[str, Any] = dict.fromkeys(BatchView.__struct_fields__, 0)
    known |= {"batch_id": BatchId("batch_1"), "customer_id": CustomerId("c"), "state": state}
    known |= {"endpoint": EMBEDDINGS, "input_file_id": "file-1", "waiting": None}
    known |= {"output_file_id": "", "error_file_id": "", "errors": b"", "metadata": b""}
    known |= {"created_ms": 1_000_500, "expires_ms": 1_000_500 + 5_400_000}
    return BatchView(**{**known, **changes})


ENDS = {
    BatchState.COMPLETED: "completed_at",
    BatchState.FAILED: "failed_at",
    BatchState.EXPIRED: "expired_at",
    BatchState.CANCELLED: "cancelled_at",
}


@pytest.mark.parametrize("state", BatchState)
async def test_every_state_has_its_own_time(state: BatchState) -> None:
    told = batch_object(view(state, ended_ms=2_000_900 if state in ENDS else 0))
    assert (told.status, told.created_at, told.completion_window) == (state.value, 1_000, "90m")
    for end, field in ENDS.items():
        assert getattr(told, field) == (2_000 if end is state else None)


async def test_what_is_empty_is_null() -> None:
    told = batch_object(view(BatchState.VALIDATING))
    assert (told.output_file_id, told.error_file_id, told.errors) == (None, None, None)
    assert (told.in_progress_at, told.finalizing_at, told.cancelling_at) == (None, None, None)
    assert told.metadata is None


async def test_usage_is_added_up() -> None:
    told = batch_object(view(BatchState.COMPLETED, prompt_tokens=7, completion_tokens=5))
    assert told.usage is not None
    assert (told.usage.input_tokens, told.usage.output_tokens, told.usage.total_tokens) == (
        7,
        5,
        12,
    )


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("24h", 1_440), ("1h", 60), ("90m", 90), ("1m", 1), ("1440m", 1_440), ("60m", 60)],
)
async def test_windows_that_are_kept(text: str, minutes: int) -> None:
    length_ms = window_ms(text)
    assert length_ms == minutes * 60_000
    assert window_ms(completion_window(length_ms)) == length_ms


@pytest.mark.parametrize("text", ["", "24", "h", "0m", "0h", "25h", "1441m", "1d", "24H", " 24h"])
async def test_windows_that_are_not_kept(text: str) -> None:
    assert window_ms(text) is None


async def test_an_answer_with_an_error_goes_into_the_error_file(gateway: Service) -> None:
    made = await gateway.batch(await gateway.upload(lines(2)))
    await gateway.until(made.id, "in_progress")
    fault = {"error": {"message": "too long", "code": "context_length_exceeded"}}

    def give(_: dict[str, object]) -> dict[str, object]:
        return {"status_code": 400, "body": fault}

    outcomes = await gateway.shard.compute(made.id, give)
    gateway.shard.ask(gateway.shard.assemble_of(made.id, outcomes))
    done = await gateway.until(made.id, "completed")
    assert done.output_file_id is None
    bad = await content(gateway, done.error_file_id)
    assert [result["response"]["status_code"] for result in bad] == [400, 400]
    assert bad[0]["response"]["body"] == fault
    assert bad[0]["error"] is None
