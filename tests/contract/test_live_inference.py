"""Live inference as the official client sees it: chats, completions and embeddings."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pytest
import pytest_asyncio

from terafleet.protocol.live import LiveChat, LiveCompletion
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from tests.contract import live_oracle as oracle
from tests.contract.customer_stage import START_MS, until
from tests.contract.fake_live_fleet import LEFT, QUEUED, Plan
from tests.contract.live_gateway import (
    EMBEDDER,
    WRITER,
    Gateway,
    Server,
    data_of,
    live_server,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Wo steht das Auto?\n"}]},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with live_server() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(server: Server) -> AsyncIterator[Gateway]:
    async with server.open() as opened:
        yield opened


def chat_texts(**parameters: Any) -> list[oracle.Text]:
    body = {"model": WRITER, "messages": MESSAGES, **parameters}
    return oracle.texts_of(msgspec.convert(body, LiveChat))


def completion_texts(**parameters: Any) -> list[oracle.Text]:
    return oracle.texts_of(msgspec.convert({"model": WRITER, **parameters}, LiveCompletion))


async def test_a_chat_at_once(gateway: Gateway) -> None:
    answer = await gateway.client.chat.completions.create(model=WRITER, messages=MESSAGES)
    (right,) = chat_texts()
    assert (answer.object, answer.model, answer.system_fingerprint) == (
        "chat.completion",
        WRITER,
        None,
    )
    assert answer.id.startswith("chatcmpl-")
    assert answer.created == START_MS // 1_000
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", right.whole)
    assert (choice.message.tool_calls, choice.message.refusal) == (None, None)
    assert answer.usage is not None
    used = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
    assert used == (oracle.PROMPT_TOKENS, len(right.words), oracle.PROMPT_TOKENS + len(right.words))


async def test_a_chat_in_events(gateway: Gateway) -> None:
    stream = await gateway.client.chat.completions.create(
        model=WRITER, messages=MESSAGES, stream=True, max_tokens=5
    )
    chunks = [chunk async for chunk in stream]
    (right,) = chat_texts(max_tokens=5)
    assert {(chunk.id, chunk.object, chunk.model) for chunk in chunks} == {
        (chunks[0].id, "chat.completion.chunk", WRITER)
    }
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.role for delta in deltas[1:]] == [None] * 6
    assert [delta.content for delta in deltas[1:]] == [*right.words, None]
    ends = [chunk.choices[0].finish_reason for chunk in chunks]
    assert ends == [None] * 6 + ["length"]
    assert all(chunk.usage is None for chunk in chunks)


async def test_the_exact_form_of_a_stream(gateway: Gateway) -> None:
    body = {"model": WRITER, "messages": MESSAGES, "max_tokens": 1}
    events = await gateway.events(CHAT_COMPLETIONS, body)
    (right,) = chat_texts(max_tokens=1)
    assert events[-1] == "data: [DONE]"
    first, second, third = map(data_of, events[:-1])
    shared = {
        "id": first["id"],
        "object": "chat.completion.chunk",
        "created": START_MS // 1_000,
        "model": WRITER,
        "system_fingerprint": None,
    }
    begin = {"role": "assistant", "content": "", "refusal": None}
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
    assert first == {**shared, "choices": [{**choice, "delta": begin}]}
    assert second == {**shared, "choices": [{**choice, "delta": {"content": right.whole}}]}
    last = {**choice, "delta": {}, "finish_reason": "length"}
    assert third == {**shared, "choices": [last]}


async def test_the_usage_comes_last_if_it_is_wanted(gateway: Gateway) -> None:
    for endpoint, asked in (
        (CHAT_COMPLETIONS, {"messages": MESSAGES}),
        (COMPLETIONS, {"prompt": "a"}),
    ):
        body = {"model": WRITER, "max_tokens": 3, **asked}
        options = {"stream_options": {"include_usage": True}}
        *chunks, last, done = await gateway.events(endpoint, {**body, **options})
        assert done == "data: [DONE]"
        assert all(data_of(chunk)["usage"] is None for chunk in chunks)
        assert data_of(last)["choices"] == []
        assert data_of(last)["usage"] == {
            "prompt_tokens": oracle.PROMPT_TOKENS,
            "completion_tokens": 3,
            "total_tokens": oracle.PROMPT_TOKENS + 3,
        }
        assert "terafleet" not in data_of(last)


async def test_several_chats_side_by_side(gateway: Gateway) -> None:
    answer = await gateway.client.chat.completions.create(
        model=WRITER, messages=MESSAGES, n=3, max_completion_tokens=4
    )
    right = [text.whole for text in chat_texts(n=3, max_completion_tokens=4)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == right
    stream = await gateway.client.chat.completions.create(
        model=WRITER, messages=MESSAGES, n=3, max_completion_tokens=4, stream=True
    )
    told, roles = [""] * 3, [0] * 3
    async for chunk in stream:
        (choice,) = chunk.choices
        told[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role == "assistant"
    assert (told, roles) == (right, [1, 1, 1])


async def test_logprobs_of_a_chat(gateway: Gateway) -> None:
    (right,) = chat_texts()
    answer = await gateway.client.chat.completions.create(
        model=WRITER, messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.token for entry in logprobs.content] == list(right.words)
    stream = await gateway.client.chat.completions.create(
        model=WRITER, messages=MESSAGES, logprobs=True, stream=True
    )
    tokens = []
    async for chunk in stream:
        told = chunk.choices[0].logprobs
        if told is not None and told.content is not None:
            tokens += [(entry.token, entry.logprob) for entry in told.content]
    assert tokens == [(word, oracle.logprob(word)) for word in right.words]


async def test_completions_of_several_prompts(gateway: Gateway) -> None:
    prompts = ["Once upon", "Far away"]
    answer = await gateway.client.completions.create(
        model=WRITER, prompt=prompts, n=2, max_tokens=3, logprobs=1
    )
    texts = completion_texts(prompt=prompts, n=2, max_tokens=3)
    assert (answer.object, answer.id.partition("-")[0]) == ("text_completion", "cmpl")
    assert [choice.text for choice in answer.choices] == [text.whole for text in texts]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 4
    for choice, text in zip(answer.choices, texts, strict=True):
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == list(text.words)
        check_offsets(choice.text, choice.logprobs)


def check_offsets(text: str, logprobs: Any) -> None:
    for place, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert text[place : place + len(token)] == token
    assert len(logprobs.top_logprobs) == len(logprobs.token_logprobs) == len(logprobs.tokens)


async def test_a_completion_in_events(gateway: Gateway) -> None:
    gateway.fleet.usual = Plan(tokens_per_piece=2)
    stream = await gateway.client.completions.create(
        model=WRITER, prompt=[1, 2, 3], max_tokens=9, stream=True, logprobs=0
    )
    chunks = [chunk async for chunk in stream]
    (right,) = completion_texts(prompt=[1, 2, 3], max_tokens=9)
    assert "".join(chunk.choices[0].text for chunk in chunks) == right.whole
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    for chunk in chunks[:-1]:
        logprobs = chunk.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.text_offset is not None
        for place, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
            assert right.whole[place : place + len(token)] == token


TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


async def test_a_tool_is_called(gateway: Gateway) -> None:
    answer = await gateway.client.chat.completions.create(
        model=WRITER, messages=MESSAGES, tools=[TOOL]
    )
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.id, call.function.name) == ("call_1", "weather")
    assert call.function.arguments == oracle.ARGUMENTS
    arguments, names = "", []
    stream = await gateway.client.chat.completions.create(
        model=WRITER, messages=MESSAGES, tools=[TOOL], stream=True
    )
    async for chunk in stream:
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.function is not None
            arguments += delta.function.arguments or ""
            names += [delta.function.name] if delta.function.name else []
    assert (arguments, names) == (oracle.ARGUMENTS, ["weather"])


@pytest.mark.parametrize("value", ["one text", ["two", "texts"], [5, 6, 7], [[1, 2], [3]]], ids=str)
async def test_embeddings(gateway: Gateway, value: Any) -> None:
    right = oracle.vectors_of({"input": value})
    packed = await gateway.client.embeddings.create(model=EMBEDDER, input=value)
    plain = await gateway.client.embeddings.create(
        model=EMBEDDER, input=value, encoding_format="float", dimensions=3
    )
    for answer in (packed, plain):
        assert [entry.embedding for entry in answer.data] == right
        assert [entry.index for entry in answer.data] == list(range(len(right)))
        assert (answer.model, answer.usage.prompt_tokens) == (EMBEDDER, oracle.PROMPT_TOKENS)
    first, second = gateway.fleet.bodies()
    assert (first["encoding_format"], second["encoding_format"]) == ("base64", "float")
    assert second["dimensions"] == 3


async def test_base64_is_passed_on(gateway: Gateway) -> None:
    body = {"model": EMBEDDER, "input": "x", "encoding_format": "base64"}
    answer = await gateway.http.post(EMBEDDINGS, json=body)
    (entry,) = answer.json()["data"]
    numbers = struct.unpack("<3f", base64.b64decode(entry["embedding"]))
    assert list(numbers) == oracle.vectors_of(body)[0]


async def test_what_the_car_gets(gateway: Gateway) -> None:
    await gateway.client.chat.completions.create(
        model=WRITER,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        user="somebody",
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["\n\n", "end"],
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        logit_bias={"15": -100},
        response_format={"type": "text"},
        max_tokens=6,
    )
    await until(lambda: bool(gateway.fleet.started))
    (body,) = gateway.fleet.bodies()
    assert body == {
        "model": WRITER,
        "messages": MESSAGES,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["\n\n", "end"],
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "logit_bias": {"15": -100},
        "response_format": {"type": "text"},
        "max_tokens": 6,
    }
    (wanted,) = gateway.fleet.wanted
    assert (wanted.customer_id, wanted.endpoint) == ("cust-alice", CHAT_COMPLETIONS)
    # 4 for the request, 28 characters, 6 tokens of output.
    assert wanted.tokens == 4 + 7 + 6


async def test_the_body_for_the_car_is_one_line(gateway: Gateway) -> None:
    body = b'{ "model":\n"embedder",\r\n "input": [\n "a\\nb"\n] }'
    answer = await gateway.http.post(EMBEDDINGS, content=body)
    assert answer.status_code == 200, answer.text
    assert gateway.fleet.started[0].body == b'{"model":"embedder","input":["a\\nb"]}'


async def test_predicted_work(gateway: Gateway) -> None:
    complete = gateway.client.completions.create
    await complete(model=WRITER, prompt="x" * 40, n=3)
    await complete(model=WRITER, prompt=[[1] * 10, [2] * 5], max_tokens=8)
    await gateway.client.chat.completions.create(model=WRITER, messages=MESSAGES)
    await gateway.client.embeddings.create(model=EMBEDDER, input=["x" * 8, "y" * 4])
    tokens = [wanted.tokens for wanted in gateway.fleet.wanted]
    assert tokens == [4 + 10 + 3 * 16, 4 + 15 + 2 * 8, 4 + 7 + 256, 4 + 3]


async def test_a_queue_is_told_as_a_comment(gateway: Gateway) -> None:
    gateway.fleet.plans.append(Plan(answer=QUEUED, wait_ms=120))
    body = {"model": WRITER, "prompt": "a", "max_tokens": 2}
    events = await gateway.events(COMPLETIONS, body)
    assert events[0] == ": queued, about 1 s"
    assert events[-1] == "data: [DONE]"
    gateway.fleet.plans.append(Plan(answer=QUEUED, wait_ms=50))
    stream = await gateway.client.completions.create(
        model=WRITER, prompt="a", max_tokens=2, stream=True
    )
    told = "".join([chunk.choices[0].text async for chunk in stream])
    assert told == completion_texts(prompt="a", max_tokens=2)[0].whole


async def test_moves_are_told_to_who_asks(gateway: Gateway) -> None:
    explain = {"Terafleet-Explain": "1"}
    asked = {"model": WRITER, "prompt": "a", "max_tokens": 4}
    for more in ({}, {"stream_options": {"include_usage": True}}):
        gateway.fleet.plans += [Plan(messages=1, ending=LEFT), Plan(messages=2, ending=LEFT)]
        events = await gateway.events(COMPLETIONS, {**asked, **more}, **explain)
        last = data_of(events[-2])
        assert (last["choices"], last["terafleet"]) == ([], {"moves": 2})
        assert ("usage" in last) is bool(more)
    for path, body in (
        (COMPLETIONS, asked),
        (CHAT_COMPLETIONS, {"model": WRITER, "messages": MESSAGES}),
        (EMBEDDINGS, {"model": EMBEDDER, "input": "a"}),
    ):
        gateway.fleet.plans.append(Plan(messages=0, ending=LEFT))
        told = await gateway.http.post(path, json=body, headers=explain)
        assert told.json()["terafleet"] == {"moves": 1}
        plain = await gateway.http.post(path, json=body)
        assert "terafleet" not in plain.json()
        assert {**told.json(), "id": 0} == {**plain.json(), "id": 0, "terafleet": {"moves": 1}}


async def test_a_raw_answer_has_a_request_id(gateway: Gateway) -> None:
    raw = await gateway.client.chat.completions.with_raw_response.create(
        model=WRITER, messages=MESSAGES
    )
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().choices[0].message.content == chat_texts()[0].whole
    made = gateway.client.chat.completions.with_streaming_response.create(
        model=WRITER, messages=MESSAGES, stream=True
    )
    async with made as response:
        assert response.headers["x-request-id"].startswith("req_")
        lines = [line async for line in response.iter_lines()]
    assert lines[-2:] == ["data: [DONE]", ""]


async def test_the_client_without_an_event_loop(gateway: Gateway) -> None:
    def ask() -> tuple[str | None, str, int, list[str]]:
        with gateway.blocking_client() as client:
            whole = client.chat.completions.create(model=WRITER, messages=MESSAGES)
            stream = client.chat.completions.create(model=WRITER, messages=MESSAGES, stream=True)
            told = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            vectors = client.embeddings.create(model=EMBEDDER, input=["a", "b"]).data
            names = [model.id for model in client.models.list()]
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="nobody", prompt="a")
            return whole.choices[0].message.content, told, len(vectors), names

    content, told, vectors, names = await asyncio.to_thread(ask)
    assert content == told == chat_texts()[0].whole
    assert vectors == 2
    assert WRITER in names
