"""Whatever happens to cars and messages: the customer's text is the right one, or an error."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from terafleet.core.reasons import Refused
from terafleet.protocol.errors import ERRORS, ErrorReply
from terafleet.protocol.live import LiveBody, LiveChat, LiveCompletion, can_move
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS
from tests.contract import live_oracle as oracle
from tests.contract.fake_live_fleet import (
    LEASE_LOST,
    LEFT,
    LOST_ASK,
    QUEUED,
    REFUSED,
    SILENT,
    Plan,
)
from tests.contract.live_gateway import HASTY, WRITER, Gateway, Server, data_of, live_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = 60
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Erzähl."}]}
STORY: dict[str, Any] = {"prompt": "Es war einmal"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with live_server() as opened:
        yield opened


NUMBERS = st.integers(-1, 12)
MISHAPS = {
    "answer": st.sampled_from([*[""] * 8, QUEUED, LOST_ASK]),
    "wait_ms": st.integers(1, 30),
    "lost": NUMBERS,
    "twice": NUMBERS,
    "tokens_per_piece": st.integers(1, 4),
    "pause_s": st.sampled_from([0, 0, 0.001]),
}
LEAVING = st.builds(
    Plan, messages=NUMBERS, ending=st.sampled_from([LEFT, LEFT, LEASE_LOST, SILENT]), **MISHAPS
)
PLANS = st.lists(LEAVING | st.builds(Plan, **MISHAPS), max_size=5)
BODIES = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 12)},
    optional={"n": st.integers(1, 3), "seed": st.just(5), "logprobs": st.booleans()},
)


def request_of(endpoint: str, parameters: dict[str, Any]) -> tuple[dict[str, Any], LiveBody]:
    """The body of a request, and the same as a car reads it."""
    is_chat = endpoint == CHAT_COMPLETIONS
    body = {"model": WRITER, **(CHAT if is_chat else STORY), **parameters}
    if not is_chat and "logprobs" in body:
        body["logprobs"] = int(body["logprobs"])
    kind: type[LiveChat] | type[LiveCompletion] = LiveChat if is_chat else LiveCompletion
    return body, msgspec.convert(body, kind)


def text_in(choice: dict[str, Any]) -> str:
    """What a choice says, whole or in a chunk."""
    holder = choice.get("message") or choice.get("delta") or choice
    return holder.get("content") or holder.get("text") or ""


class Heard:
    """What a customer heard: the texts, why they ended, and the error if there was one."""

    def __init__(self, choices: int) -> None:
        self.texts = [""] * choices
        self.ends: list[str | None] = [None] * choices
        self.logprobs: list[list[str]] = [[] for _ in range(choices)]
        self.error = ""
        self.usage: dict[str, int] = {}

    def hear(self, answer: dict[str, Any]) -> None:
        """A whole answer, or a chunk."""
        self.usage = answer.get("usage") or {}
        for choice in answer["choices"]:
            index = choice["index"]
            assert self.ends[index] is None, "more comes behind the end"
            self.texts[index] += text_in(choice)
            self.ends[index] = choice["finish_reason"]
            told = choice["logprobs"] or {}
            self.logprobs[index] += told.get("tokens") or []
            self.logprobs[index] += [entry["token"] for entry in told.get("content") or []]

    def fail(self, reply: bytes, status: int | None) -> None:
        """An error in OpenAI's form."""
        error = msgspec.json.decode(reply, type=ErrorReply).error
        assert status in (None, ERRORS[error.code].status)
        self.error = error.code


async def hear(gateway: Gateway, endpoint: str, body: dict[str, Any], choices: int) -> Heard:
    """Ask, and take down all that comes."""
    heard = Heard(choices)
    answer = await gateway.http.post(endpoint, json=body)
    if answer.status_code != httpx.codes.OK:
        heard.fail(answer.content, answer.status_code)
    elif not body.get("stream"):
        heard.hear(answer.json())
    else:
        *events, last = answer.text.removesuffix("\n\n").split("\n\n")
        for event in events:
            if not event.startswith(": "):
                heard.hear(data_of(event))
        if last != "data: [DONE]":
            heard.fail(last.removeprefix("data: ").encode(), None)
    return heard


@given(
    endpoint=st.sampled_from([COMPLETIONS, CHAT_COMPLETIONS]),
    parameters=BODIES,
    is_streamed=st.booleans(),
    plans=PLANS,
)
@example(
    endpoint=COMPLETIONS,
    parameters={"max_tokens": 12},
    is_streamed=True,
    plans=[
        Plan(messages=3, ending=LEFT),
        Plan(lost=2),
        Plan(messages=2, ending=SILENT),
        Plan(answer=LOST_ASK),
        # All is told, and the car is lost before it says so.
        Plan(messages=6, ending=LEASE_LOST, twice=1),
    ],
)
@example(
    endpoint=CHAT_COMPLETIONS,
    parameters={"max_tokens": 4, "logprobs": True},
    is_streamed=True,
    plans=[Plan(messages=5, ending=LEFT), Plan(messages=1, ending=SILENT)],
)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_the_text_is_right_or_an_error_is_told(
    server: Server,
    endpoint: str,
    parameters: dict[str, Any],
    is_streamed: bool,
    plans: list[Plan],
) -> None:
    body, request = request_of(endpoint, parameters)
    right = oracle.texts_of(request)
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with server.open() as gateway:
        gateway.fleet.plans += plans
        heard = await hear(gateway, endpoint, sent if is_streamed else body, len(right))
    for told, text in zip(heard.texts, right, strict=True):
        assert text.whole.startswith(told)
    if heard.error:
        assert heard.error == "session_failed"
        assert not can_move(request)
        assert is_streamed or len(plans) > HASTY.restarts_max
        return
    assert heard.texts == [text.whole for text in right]
    assert heard.ends == ["length"] * len(right)
    assert heard.usage["completion_tokens"] == sum(len(text.words) for text in right)
    if body.get("logprobs") or (endpoint == COMPLETIONS and "logprobs" in body):
        assert heard.logprobs == [list(text.words) for text in right]


async def test_who_moves_waits_for_a_slot(server: Server) -> None:
    body, request = request_of(COMPLETIONS, {"max_tokens": 8, "stream": True})
    full = Plan(answer=REFUSED, refused=Refused.NO_SLOT_FREE, wait_ms=500)
    async with server.open() as gateway:
        gateway.fleet.plans += [Plan(messages=4, ending=LEFT), full, full, full]
        heard = await hear(gateway, COMPLETIONS, body, 1)
        assert heard.texts == [oracle.texts_of(request)[0].whole]
        left, *others = [wanted.excluded for wanted in gateway.fleet.wanted]
        assert left == ()
        assert others == [("veh-0",)] * 4
        # What is told already is not asked for again.
        tokens = [wanted.tokens for wanted in gateway.fleet.wanted]
        assert tokens == [tokens[0]] + [tokens[0] - 4] * 4


async def test_many_streams_at_once(server: Server) -> None:
    body, request = request_of(CHAT_COMPLETIONS, {"max_tokens": 10, "stream": True})
    right = oracle.texts_of(request)[0].whole
    async with server.open() as gateway:
        gateway.fleet.plans += [Plan(messages=number % 11, ending=LEFT) for number in range(40)]
        asking = [hear(gateway, CHAT_COMPLETIONS, body, 1) for _ in range(30)]
        texts = [heard.texts for heard in await asyncio.gather(*asking)]
    assert texts == [[right]] * 30
