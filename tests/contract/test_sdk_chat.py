"""Chats through the SDK: with the real gateway, and with what sends no good answer."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from terafleet.core.session_events import Piece
from terafleet.protocol.errors import error_reply
from terafleet.protocol.live import LiveChat, LiveCompletion
from terafleet.sdk import (
    Ended,
    FleetClient,
    Message,
    Queued,
    Said,
    Sampling,
    TerafleetError,
    Text,
    errors,
)
from terafleet.sdk.chat import ANSWER_CHARACTERS_MAX
from terafleet.sdk.server_events import (
    LINE_BYTES_MAX,
    Comment,
    Event,
    EventsOdd,
    events_of,
)
from tests.contract import live_oracle as oracle
from tests.contract.chat_stage import LiveThread, Opened, live_thread, scripted, streamed
from tests.contract.customer_stage import ALICE
from tests.contract.fake_live_fleet import LEFT, MODEL_REFUSES, QUEUED, REFUSED, Plan
from tests.contract.live_gateway import EMBEDDER, WRITER

WAIT_S = 10.0
ASKED = [Message("system", "Be brief."), Message("user", "Wo steht das Auto?\n")]


@pytest.fixture(scope="module")
def thread() -> Iterator[LiveThread]:
    with live_thread() as running:
        yield running


@pytest.fixture
def gateway(thread: LiveThread) -> Iterator[Opened]:
    with thread.open() as opened:
        yield opened


@pytest.fixture
def alice(gateway: Opened) -> Iterator[FleetClient]:
    with FleetClient(gateway.url, ALICE) as client:
        yield client


def right_chat(**parameters: Any) -> oracle.Text:
    body = {"model": WRITER, "messages": msgspec.to_builtins(ASKED), **parameters}
    (text,) = oracle.texts_of(msgspec.convert(body, LiveChat))
    return text


def text_of(said: list[Said]) -> str:
    return "".join(one.text for one in said if isinstance(one, Text))


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)


def test_a_chat_comes_piece_by_piece_and_says_how_it_ends(alice: FleetClient) -> None:
    right = right_chat()
    *texts, ended = alice.chat(WRITER, ASKED)
    assert texts == [Text(word) for word in right.words]
    assert isinstance(ended, Ended)
    assert (ended.finish_reason, ended.moves) == ("stop", 0)
    assert ended.usage is not None
    assert ended.usage.total_tokens == oracle.PROMPT_TOKENS + len(right.words)


def test_a_text_is_completed(alice: FleetClient) -> None:
    (right,) = oracle.texts_of(LiveCompletion(model=WRITER, prompt="Once ", max_tokens=5))
    said = list(alice.complete(WRITER, "Once ", Sampling(max_tokens=5)))
    assert text_of(said) == right.whole
    assert isinstance(said[-1], Ended)
    assert said[-1].finish_reason == "length"


def test_what_is_wished_arrives_and_nothing_else(alice: FleetClient, gateway: Opened) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=3, seed=7, stop=("!",))
    list(alice.chat(WRITER, ASKED, sampling))
    list(alice.chat(WRITER, ASKED))
    wished, usual = gateway.fleet.bodies()
    messages = msgspec.to_builtins(ASKED)
    assert usual == {"model": WRITER, "messages": messages}
    assert wished == {
        **usual,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 3,
        "seed": 7,
        "stop": ["!"],
    }


def test_an_answer_that_moves_is_the_same_and_says_so(alice: FleetClient, gateway: Opened) -> None:
    gateway.fleet.plans += [Plan(messages=2, ending=LEFT), Plan(messages=3, ending=LEFT)]
    said = list(alice.chat(WRITER, ASKED))
    assert text_of(said) == right_chat().whole
    assert isinstance(said[-1], Ended)
    assert said[-1].moves == 2


def test_who_waits_for_a_slot_is_told_how_long(alice: FleetClient, gateway: Opened) -> None:
    gateway.fleet.plans.append(Plan(answer=QUEUED, wait_ms=60))
    first, *rest = alice.chat(WRITER, ASKED)
    assert first == Queued(1)
    assert text_of(rest) == right_chat().whole


def test_a_full_fleet_says_when_to_ask_again(alice: FleetClient, gateway: Opened) -> None:
    gateway.fleet.plans.append(Plan(answer=REFUSED, detail="all slots are taken", wait_ms=1_500))
    with pytest.raises(errors.Overloaded, match="All slots are taken") as caught:
        list(alice.chat(WRITER, ASKED))
    assert (caught.value.code, caught.value.retry_after_ms) == ("no_slot_free", 1_500)


def test_what_can_not_be_asked(alice: FleetClient, gateway: Opened) -> None:
    with pytest.raises(errors.NotFound) as caught:
        list(alice.chat("nobody", ASKED))
    assert caught.value.code == "model_not_found"
    with pytest.raises(errors.RequestInvalid) as odd:
        list(alice.chat(EMBEDDER, ASKED))
    assert odd.value.code == "unsupported_endpoint"
    with pytest.raises(errors.RequestInvalid) as wrong:
        list(alice.chat(WRITER, ASKED, Sampling(temperature=9.0)))
    assert wrong.value.param == "temperature"
    gateway.fleet.plans.append(Plan(messages=0, ending=MODEL_REFUSES))
    with pytest.raises(errors.RequestInvalid) as long:
        list(alice.chat(WRITER, ASKED))
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_told_as_no_wish(number: float, alice: FleetClient) -> None:
    with pytest.raises(errors.RequestInvalid) as caught:
        list(alice.chat(WRITER, ASKED, Sampling(temperature=number)))
    assert caught.value.param == "temperature"


def test_half_a_character_is_refused_before_anything_is_sent(
    alice: FleetClient, gateway: Opened
) -> None:
    with pytest.raises(errors.RequestInvalid, match="characters"):
        list(alice.chat(WRITER, [Message("user", "\udcff")]))
    assert gateway.fleet.wanted == []


def test_who_closes_the_answer_stops_the_car(alice: FleetClient, gateway: Opened) -> None:
    gateway.fleet.usual = Plan(pause_s=0.05)
    with closing(alice.chat(WRITER, ASKED)) as said:
        assert isinstance(next(said), Text)
        assert gateway.fleet.running == 1
    until(lambda: bool(gateway.fleet.stopped))
    until(lambda: gateway.fleet.running == 0)


def test_an_answer_that_fails_says_why_after_what_has_come(
    alice: FleetClient, gateway: Opened
) -> None:
    pieces = (Piece(0, (1,), "so far"), Piece(0, (2,), "", finish_reason="sunset"))
    gateway.fleet.plans.append(Plan(pieces=pieces))
    said = alice.chat(WRITER, ASKED)
    assert next(said) == Text("so far")
    with pytest.raises(errors.AnswerLost, match="unknown reason") as caught:
        next(said)
    assert caught.value.code == "session_failed"


# What is no good answer.


def chunk(choices: object = (), **more: object) -> bytes:
    """An event with a chunk of a chat."""
    value = {"id": "c", "created": 1, "model": "m", "choices": choices, **more}
    return b"data: " + msgspec.json.encode(value | {"object": "chat.completion.chunk"}) + b"\n\n"


def choice(text: str = "", reason: str | None = None, index: int = 0, **delta: object) -> object:
    return {"index": index, "delta": {"content": text, **delta}, "finish_reason": reason}


HELLO, STOP = chunk([choice("Hello")]), chunk([choice(reason="stop")])
DONE = b"data: [DONE]\n\n"
CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}


def answer_of(answer: bytes) -> tuple[list[Said], TerafleetError | None]:
    """What is said by a server, up to the error that ends it."""
    said: list[Said] = []
    with scripted(answer) as server, FleetClient(server.url, "tf-x") as client:
        try:
            for one in client.chat("m", ASKED):
                said.append(one)  # noqa: PERF402 - it ends with an error.
        except TerafleetError as error:
            return said, error
    return said, None


def test_a_good_answer_of_a_stranger() -> None:
    parts = [b": still here\n\n", b": queued, about 12 s\r\n\r\n", HELLO, STOP, DONE]
    said, error = answer_of(streamed(parts))
    assert error is None
    assert said == [Queued(12), Text("Hello"), Ended("stop", None, None)]


@pytest.mark.parametrize(
    ("parts", "cause"),
    [
        ([HELLO, STOP], "broke off before its end"),
        ([HELLO, STOP, b"data: [DONE]\n"], "broke off before its end"),
        ([], "broke off before its end"),
    ],
)
def test_an_end_that_is_missing_is_an_error(parts: list[bytes], cause: str) -> None:
    for is_whole, words in ((True, cause), (False, "broke off")):
        said, error = answer_of(streamed(parts, is_whole=is_whole))
        assert isinstance(error, errors.Unreachable)
        assert words in error.message
        assert said == ([Text("Hello")] if parts else [])


@pytest.mark.parametrize(
    ("parts", "cause"),
    [
        ([HELLO, DONE], "why it ends"),
        ([HELLO, STOP, HELLO, DONE], "behind its end"),
        ([chunk([choice("x", index=1)]), DONE], "more than one text"),
        ([chunk([choice(tool_calls=[CALL])]), DONE], "tool"),
        ([chunk([choice(reason="sunset" * 1_000)]), DONE], "sunset"),
        ([b"data: {}\n\n", DONE], "required field"),
        ([b"data: no json\n\n", DONE], "JSON"),
        ([b'data: {"error": {"message": 1}}\n\n'], "Expected"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], ""),
        ([b"<html>\n\n"], "no event"),
        ([b"data: \xff\n\n"], "UTF-8"),
        ([b"data: " + b"x" * LINE_BYTES_MAX], "more than 1048576 bytes"),
        ([b"data: x\n" * (LINE_BYTES_MAX // 7 + 1)], "an event has more than"),
        ([b"\x1f\x8b\x08\x00 zipped\n\n"], "UTF-8"),
    ],
)
def test_what_is_no_answer(parts: list[bytes], cause: str) -> None:
    said, error = answer_of(streamed(parts))
    assert isinstance(error, errors.AnswerOdd)
    assert cause in error.message
    assert len(error.message) < 600
    assert not any(isinstance(one, Ended) for one in said)


def test_an_answer_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ANSWER_CHARACTERS_MAX >= 2**25
    monkeypatch.setattr("terafleet.sdk.chat.ANSWER_CHARACTERS_MAX", 12)
    said, error = answer_of(streamed([HELLO] * 3))
    assert isinstance(error, errors.AnswerOdd)
    assert said == [Text("Hello")] * 2


def test_something_else_than_a_stream() -> None:
    said, error = answer_of(streamed([b"{}"], kind="application/json"))
    assert isinstance(error, errors.AnswerOdd)
    assert said == []
    (first, *_), error = answer_of(streamed([HELLO, STOP, DONE], kind="Text/Event-Stream; x=y"))
    assert (first, error) == (Text("Hello"), None)


@pytest.mark.parametrize(
    ("code", "leaf"),
    [
        ("session_failed", errors.AnswerLost),
        ("deadline_exceeded", errors.AnswerLost),
        ("reader_too_slow", errors.AnswerLost),
        ("shard_unavailable", errors.Overloaded),
        ("context_length_exceeded", errors.RequestInvalid),
        ("new_code", errors.ControlPlaneBroken),
    ],
)
def test_an_error_in_the_stream_is_raised_with_its_code(
    code: str, leaf: type[TerafleetError]
) -> None:
    told = msgspec.to_builtins(error_reply("internal_error", "words"))
    told["error"]["code"] = code
    said, error = answer_of(streamed([HELLO, b"data: " + msgspec.json.encode(told) + b"\n\n"]))
    assert said == [Text("Hello")]
    assert type(error) is leaf
    assert (error.code, error.message) == (code, "words")


def test_a_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terafleet.sdk.gateway.TIMEOUT", httpx.Timeout(0.2))
    unended = streamed([HELLO]).removesuffix(b"0\r\n\r\n")
    with scripted(unended, keeps_open=True) as server, FleetClient(server.url, "tf-x") as client:
        said = client.chat("m", ASKED)
        assert next(said) == Text("Hello")
        with pytest.raises(errors.Unreachable, match="broke off: timed out"):
            next(said)
        assert server.has_hung_up.wait(WAIT_S)


def test_one_connection_serves_a_whole_conversation() -> None:
    answer = streamed([HELLO, STOP, DONE])
    with scripted(answer, keeps_open=True) as server, FleetClient(server.url, "tf-x") as client:
        for _ in range(3):
            assert text_of(list(client.chat("m", ASKED))) == "Hello"
        assert server.connections == 1


def test_what_comes_behind_the_end_is_nobodys() -> None:
    unended = streamed([HELLO, STOP, DONE, HELLO]).removesuffix(b"0\r\n\r\n")
    with scripted(unended, keeps_open=True) as server, FleetClient(server.url, "tf-x") as client:
        assert text_of(list(client.chat("m", ASKED))) == "Hello"
        assert server.has_hung_up.wait(WAIT_S)


# The form of the stream.

STREAM = (
    "\ufeffdata: one\n\n"
    ": a comment\r\n"
    "data: größer\rdata:電\r\r"
    "event: x\r\nid: 7\nretry: 10\n\n"
    "data\n\n"
    ":\n"
    "data:  spaced \r\n\r\n"
    "data: not whole\n"
).encode()

MEANT = [
    Event("one"),
    Comment("a comment"),
    Event("größer\n電"),
    Event(""),
    Comment(""),
    Event(" spaced "),
]


@given(some.lists(some.integers(0, len(STREAM))))
def test_however_a_stream_is_cut_it_means_the_same(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[begin:end] for begin, end in itertools.pairwise(places)]
    assert list(events_of(chunks)) == MEANT


@given(some.lists(some.binary(max_size=64)))
def test_any_bytes_are_events_or_odd(chunks: list[bytes]) -> None:
    with suppress(EventsOdd):
        assert all(isinstance(one, Comment | Event) for one in events_of(chunks))


def test_an_event_comes_as_soon_as_it_is_whole() -> None:
    taken: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        for part in (b"data: a\n", b"\n", b"data: b\n\n"):
            taken.append(part)
            yield part

    assert next(events_of(chunks())) == Event("a")
    assert len(taken) == 2


def test_the_longest_line_and_one_byte_more() -> None:
    line = b"data: " + b"x" * (LINE_BYTES_MAX - 7) + b"\n"
    (event,) = events_of([line, b"\n"])
    assert isinstance(event, Event)
    with pytest.raises(EventsOdd):
        list(events_of([b"x" + line, b"\n"]))
