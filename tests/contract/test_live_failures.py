"""What a customer is told when a live request gets no whole answer, and what hanging up does."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pytest
import pytest_asyncio

from terafleet.control.gateway.live.sessions import PIECES_WAITING_MAX
from terafleet.core.reasons import Refused
from terafleet.core.session_events import Piece, SessionSettings
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from tests.contract import live_oracle as oracle
from tests.contract.customer_stage import until
from tests.contract.fake_live_fleet import (
    LEFT,
    LOST_ASK,
    MODEL_REFUSES,
    QUEUED,
    RAW,
    REFUSED,
    SILENT,
    Plan,
)
from tests.contract.gateway_app import code_of
from tests.contract.live_gateway import (
    BIG_WRITER,
    EMBEDDER,
    HASTY,
    WRITER,
    Gateway,
    Server,
    data_of,
    live_server,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED: dict[str, Any] = {"model": WRITER, "prompt": "Once", "max_tokens": 4}
CHAT: dict[str, Any] = {"model": WRITER, "messages": [{"role": "user", "content": "hi"}]}
VECTORS: dict[str, Any] = {"model": EMBEDDER, "input": ["a", "b"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with live_server() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(server: Server) -> AsyncIterator[Gateway]:
    async with server.open() as opened:
        yield opened


def refusal(refused: Refused, wait_ms: int = 0, detail: str = "it is so") -> Plan:
    return Plan(answer=REFUSED, refused=refused, wait_ms=wait_ms, detail=detail)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_no_slot_is_told_with_the_time_to_wait(gateway: Gateway, is_streamed: bool) -> None:
    gateway.fleet.plans.append(refusal(Refused.NO_SLOT_FREE, 2_100, "all slots are busy"))
    with pytest.raises(openai.RateLimitError) as refused:
        await gateway.client.completions.create(**ASKED, stream=is_streamed)
    error = refused.value
    assert (error.code, error.type) == ("no_slot_free", "overloaded_error")
    assert "All slots are busy." in error.message
    assert error.response.headers["retry-after"] == "3"
    assert error.response.headers["retry-after-ms"] == "2100"


async def test_a_client_that_asks_again_gets_its_answer(gateway: Gateway) -> None:
    gateway.fleet.plans += [refusal(Refused.NO_SLOT_FREE, 30)] * 2
    patient = gateway.client.with_options(max_retries=2)
    answer = await patient.completions.create(**ASKED)
    assert answer.choices[0].finish_reason == "length"
    assert len(gateway.fleet.wanted) == 3


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (Refused.NO_VEHICLE_PERMITS, "no_vehicle_permits"),
        (Refused.OVERLOADED, "overloaded"),
        (Refused.FLEET_EMPTY, "fleet_empty"),
        (Refused.MODEL_UNKNOWN, "model_not_found"),
        (Refused.ENDPOINT_UNSUPPORTED, "unsupported_endpoint"),
    ],
)
async def test_other_refusals_have_their_codes(
    gateway: Gateway, refused: Refused, code: str
) -> None:
    gateway.fleet.plans += [refusal(refused), refusal(refused, 4_000, "")]
    answer = await gateway.http.post(COMPLETIONS, json=ASKED)
    assert code_of(answer) == code
    assert "retry-after-ms" not in answer.headers
    later = await gateway.http.post(COMPLETIONS, json={**ASKED, "stream": True})
    assert code_of(later) == code
    assert later.headers["retry-after"] == "4"


async def test_a_model_that_no_car_can_run(gateway: Gateway) -> None:
    gateway.fleet.plans.append(refusal(Refused.NO_FEASIBLE_VEHICLE, 0, "the nearest lacks memory"))
    with pytest.raises(openai.NotFoundError) as refused:
        await gateway.client.completions.create(**{**ASKED, "model": BIG_WRITER})
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert refused.value.message.count("The nearest lacks memory.") == 1
    assert f"The nearest are {WRITER}." in refused.value.message


async def test_an_unknown_model(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await gateway.client.chat.completions.create(**{**CHAT, "model": "org/writr"})
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert f"The nearest are {WRITER}, {BIG_WRITER}." in refused.value.message
    long = await gateway.http.post(EMBEDDINGS, json={**VECTORS, "model": "x" * 500_000})
    assert code_of(long) == "model_not_found"
    assert len(long.content) < 1_000
    assert gateway.fleet.wanted == []


async def test_a_model_that_does_something_else(gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.client.chat.completions.create(**{**CHAT, "model": EMBEDDER})
    assert (refused.value.code, refused.value.param) == ("unsupported_endpoint", "model")


async def test_a_silent_fleet(gateway: Gateway) -> None:
    gateway.fleet.usual = Plan(answer=LOST_ASK)
    answer = await gateway.http.post(COMPLETIONS, json={**ASKED, "stream": True})
    assert code_of(answer) == "shard_unavailable"
    assert answer.headers["retry-after"]
    assert len(gateway.fleet.wanted) > 1
    assert gateway.fleet.withdrawn != []


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_what_the_model_can_not_take(gateway: Gateway, is_streamed: bool) -> None:
    gateway.fleet.plans.append(Plan(messages=0, ending=MODEL_REFUSES))
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.client.completions.create(**ASKED, stream=is_streamed)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert "The model can't." in refused.value.message


@pytest.mark.parametrize("code", ["invalid_api_key", "storage_full", "internal_error", "invented"])
async def test_a_car_can_blame_nothing_but_the_request(gateway: Gateway, code: str) -> None:
    gateway.fleet.plans.append(Plan(messages=0, ending=MODEL_REFUSES, code=code))
    answer = await gateway.http.post(COMPLETIONS, json=ASKED)
    assert code_of(answer) == "session_failed"


@pytest.mark.parametrize("ending", [LEFT, SILENT])
@pytest.mark.parametrize("asked", [{"n": 2}, {"prompt": ["a", "b"]}], ids=str)
async def test_what_can_not_move_ends_with_an_error(
    gateway: Gateway, ending: str, asked: dict[str, Any]
) -> None:
    gateway.fleet.plans += [Plan(messages=2, ending=ending)] * (HASTY.restarts_max + 2)
    answer = await gateway.http.post(COMPLETIONS, json={**ASKED, **asked})
    assert code_of(answer) == "session_failed"
    events = await gateway.events(COMPLETIONS, {**ASKED, **asked})
    assert [data_of(event)["choices"][0]["index"] for event in events[:-1]] == [0, 1]
    error = data_of(events[-1])["error"]
    assert (error["code"], error["type"], error["param"]) == (
        "session_failed",
        "server_error",
        None,
    )


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT_COMPLETIONS, EMBEDDINGS])
async def test_a_whole_answer_that_can_not_move_begins_anew(gateway: Gateway, path: str) -> None:
    bodies = {COMPLETIONS: {**ASKED, "n": 2}, CHAT_COMPLETIONS: {**CHAT, "n": 2, "max_tokens": 3}}
    body = bodies.get(path, VECTORS)
    right = (await gateway.http.post(path, json=body)).json()
    gateway.fleet.plans += [Plan(messages=1, ending=LEFT), Plan(messages=1, ending=SILENT)]
    answer = await gateway.http.post(path, json=body, headers={"terafleet-explain": "1"})
    told = answer.json()
    assert told.pop("terafleet") == {"moves": 2}
    same = ("choices", "usage", "data")
    assert [told.get(name) for name in same] == [right.get(name) for name in same]
    assert [start.delivered for start in gateway.fleet.started] == [()] * 4
    assert gateway.fleet.wanted[-1].excluded == ("veh-0", "veh-1")


async def test_an_error_in_a_stream_reaches_the_program(gateway: Gateway) -> None:
    gateway.fleet.plans.append(Plan(messages=3, ending=LEFT))
    stream = await gateway.client.completions.create(**ASKED, n=2, stream=True)
    assert [(await anext(stream)).choices[0].index for _ in range(3)] == [0, 1, 0]
    with pytest.raises(openai.APIError, match="could not go on") as failed:
        await anext(stream)
    assert failed.value.code == "session_failed"


async def test_whoever_moves_too_often_is_told(gateway: Gateway) -> None:
    gateway.fleet.usual = Plan(messages=0, ending=LEFT)
    assert code_of(await gateway.http.post(CHAT_COMPLETIONS, json=CHAT)) == "session_failed"
    assert len(gateway.fleet.started) == HASTY.moves_max + 1


async def test_a_refusal_behind_a_queue_is_an_event(gateway: Gateway) -> None:
    gateway.fleet.plans += [
        Plan(answer=QUEUED, wait_ms=10, messages=0, ending=LEFT),
        refusal(Refused.NO_FEASIBLE_VEHICLE),
    ]
    events = await gateway.events(COMPLETIONS, ASKED)
    assert events[0] == ": queued, about 1 s"
    assert data_of(events[-1])["error"]["code"] == "model_not_found"
    assert len(events) == 2


GARBAGE = {
    "no_such_text": Piece(7, (), "x"),
    "a_text_before_the_first": Piece(-1, (), "x"),
    "an_unknown_end": Piece(0, (), "x", finish_reason="tired"),
    "probabilities_that_are_none": Piece(0, (), "x", logprobs=b'{"content": 1}'),
    "an_event_in_probabilities": Piece(0, (), "x", logprobs=b"\n\ndata: [DONE]\n\n"),
    "a_call_that_is_none": Piece(0, (), "x", tool_calls=b'[{"index": "a"}]'),
    "a_call_without_end": Piece(0, (), "x", tool_calls=b"["),
    "a_call_with_a_great_number": Piece(0, (), "x", tool_calls=b'[{"index": 1000000000}]'),
    "nothing_of_an_end": Piece(0, (), "x"),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_of_a_car_is_an_error(gateway: Gateway, name: str) -> None:
    pieces = (GARBAGE[name],)
    gateway.fleet.plans += [Plan(pieces=pieces), Plan(pieces=(Piece(0, (), "good"), *pieces))]
    assert code_of(await gateway.http.post(CHAT_COMPLETIONS, json=CHAT)) == "session_failed"
    events = await gateway.events(CHAT_COMPLETIONS, CHAT)
    assert data_of(events[-1])["error"]["code"] == "session_failed"
    assert b"[DONE]" not in msgspec.json.encode(events)


async def test_garbage_in_a_completion_is_an_error(gateway: Gateway) -> None:
    pieces = (Piece(0, (), "x", logprobs=b'{"tokens": ["x"]}'),)
    gateway.fleet.plans.append(Plan(pieces=pieces))
    assert code_of(await gateway.http.post(COMPLETIONS, json=ASKED)) == "session_failed"


def line(status_code: int, body: Any) -> tuple[Piece, ...]:
    text = msgspec.json.encode({"status_code": status_code, "body": body}).decode()
    return (Piece(0, (), text, finish_reason="stop"),)


VECTOR = {"object": "embedding", "index": 0, "embedding": [0.5]}
ONE_OF_TWO = {"object": "list", "data": [VECTOR], "model": EMBEDDER, "usage": {}}


@pytest.mark.parametrize(
    "pieces",
    [
        (Piece(0, (), "no JSON", finish_reason="stop"),),
        line(200, []),
        line(200, ONE_OF_TWO),
        line(200, {**ONE_OF_TWO, "data": [VECTOR, VECTOR]}),
        line(500, {"error": "no form"}),
    ],
)
async def test_garbage_for_embeddings_is_an_error(
    gateway: Gateway, pieces: tuple[Piece, ...]
) -> None:
    gateway.fleet.plans.append(Plan(pieces=pieces))
    assert code_of(await gateway.http.post(EMBEDDINGS, json=VECTORS)) == "session_failed"


async def test_an_error_for_embeddings_keeps_its_code(gateway: Gateway) -> None:
    error = {
        "message": "This has 700 tokens, the model reads 512.",
        "type": "invalid_request_error",
        "param": "input",
        "code": "context_length_exceeded",
    }
    gateway.fleet.plans.append(Plan(pieces=line(400, {"error": error})))
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.client.embeddings.create(**VECTORS)
    assert refused.value.body == error


async def test_embeddings_in_two_pieces_are_put_together(gateway: Gateway) -> None:
    text = oracle.embeddings_line(VECTORS)
    pieces = (Piece(0, (), text[:50]), Piece(0, (), text[50:], finish_reason="stop"))
    gateway.fleet.plans.append(Plan(pieces=pieces))
    answer = await gateway.client.embeddings.create(**VECTORS, encoding_format="float")
    assert [entry.embedding for entry in answer.data] == oracle.vectors_of(VECTORS)


# Hanging up.


SLOW = Plan(pause_s=0.05)
STOPPED_S_MAX = 0.1


async def check_stopped(gateway: Gateway, left_s: float) -> None:
    await until(lambda: len(gateway.fleet.stopped) == 1)
    (stopped_s,) = gateway.fleet.stopped.values()
    # The machine of a test can be busy for a while; what is measured is printed elsewhere.
    assert stopped_s - left_s < 10 * STOPPED_S_MAX
    await until(lambda: gateway.fleet.running == 0)


async def test_closing_a_stream_stops_the_car(gateway: Gateway) -> None:
    gateway.fleet.usual = SLOW
    stream = await gateway.client.completions.create(**{**ASKED, "max_tokens": 900}, stream=True)
    await anext(aiter(stream))
    left_s = time.monotonic()
    await stream.close()
    await check_stopped(gateway, left_s)


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS])
async def test_hanging_up_before_the_answer_stops_the_car(gateway: Gateway, path: str) -> None:
    gateway.fleet.usual = Plan(pause_s=30)
    body = {**ASKED, "max_tokens": 900} if path == COMPLETIONS else VECTORS
    asking = asyncio.create_task(gateway.http.post(path, json=body))
    await until(lambda: len(gateway.fleet.started) == 1)
    left_s = time.monotonic()
    asking.cancel()
    await check_stopped(gateway, left_s)


async def test_hanging_up_in_the_queue_withdraws_the_question(gateway: Gateway) -> None:
    gateway.fleet.plans.append(Plan(answer=QUEUED, wait_ms=300))
    async with gateway.http.stream("POST", COMPLETIONS, json={**ASKED, "stream": True}) as answer:
        assert (await anext(answer.aiter_lines())).startswith(": queued")
    await until(lambda: len(gateway.fleet.withdrawn) == 1)
    # The slot comes all the same, and is given back.
    await until(lambda: len(gateway.fleet.stopped) == 1)
    assert gateway.fleet.started == []


class Reader:
    """A client that reads its answer when a test wants it to."""

    def __init__(self, gateway: Gateway, body: dict[str, Any]) -> None:
        self._port = int(gateway.url.rpartition(":")[2])
        self._key = gateway.http.headers["authorization"]
        self._body = msgspec.json.encode(body)

    async def __aenter__(self) -> asyncio.StreamReader:
        # A small buffer of the reader, so that the sender's are full soon.
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1_024)
        head = (
            f"POST {COMPLETIONS} HTTP/1.1\r\nhost: test\r\nauthorization: {self._key}\r\n"
            f"content-length: {len(self._body)}\r\nconnection: close\r\n\r\n"
        )
        self._writer.write(head.encode() + self._body)
        return reader

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()


async def test_who_does_not_read_is_left_with_a_reason(server: Server) -> None:
    async with server.open(SessionSettings()) as gateway:
        chatter = Piece(0, (), "x" * 20_000)
        many = 2 * PIECES_WAITING_MAX
        gateway.fleet.usual = Plan(pieces=(chatter,) * many, ending=RAW)
        async with Reader(gateway, {**ASKED, "stream": True}) as reader:
            await until(lambda: len(gateway.fleet.stopped) == 1)
            told = await asyncio.wait_for(reader.read(-1), 30)
        assert 0 < told.count(b'"text":') < many
        last = told.decode().rpartition("data: ")[2].partition("\n")[0]
        assert data_of(f"data: {last}")["error"]["code"] == "reader_too_slow"
