"""Bodies of live requests that can't be honoured: each gets an error that names what is wrong."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terafleet.control.gateway.app import BODY_BYTES_MAX
from terafleet.protocol.errors import ERRORS, ErrorReply
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from tests.contract.gateway_app import code_of
from tests.contract.live_gateway import EMBEDDER, WRITER, Gateway, Server, live_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": WRITER, "prompt": "a"},
    CHAT_COMPLETIONS: {"model": WRITER, "messages": [{"role": "user", "content": "a"}]},
    EMBEDDINGS: {"model": EMBEDDER, "input": "a"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    async with live_server() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(server: Server) -> AsyncIterator[Gateway]:
    async with server.open() as opened:
        yield opened


async def refused(gateway: Gateway, path: str, content: bytes) -> tuple[str, str | None]:
    """The code and the parameter of an error; no car hears of the request."""
    answer = await gateway.http.post(path, content=content)
    code_of(answer)
    assert gateway.fleet.wanted == []
    assert len(answer.content) < 2_000
    error = msgspec.json.decode(answer.content, type=ErrorReply).error
    return error.code, error.param


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (COMPLETIONS, {"best_of": 2}, "unsupported_parameter", "best_of"),
    (COMPLETIONS, {"echo": True}, "unsupported_parameter", "echo"),
    (COMPLETIONS, {"suffix": "x"}, "unsupported_parameter", "suffix"),
    (COMPLETIONS, {"max_completion_tokens": 3}, "unsupported_parameter", "max_completion_tokens"),
    (COMPLETIONS, {"prompt": None}, "invalid_value", "prompt"),
    (COMPLETIONS, {"n": 200}, "invalid_value", "n"),
    (COMPLETIONS, {"stream": "yes"}, "invalid_value", "stream"),
    (COMPLETIONS, {"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    (CHAT_COMPLETIONS, {"functions": []}, "unsupported_parameter", "functions"),
    (CHAT_COMPLETIONS, {"store": True}, "unsupported_parameter", "store"),
    (CHAT_COMPLETIONS, {"temperature": 3}, "invalid_value", "temperature"),
    (CHAT_COMPLETIONS, {"messages": []}, "invalid_value", "messages"),
    (CHAT_COMPLETIONS, {"messages": [{"role": "bird"}]}, "invalid_value", "messages"),
    (CHAT_COMPLETIONS, {"tool_choice": "auto"}, "invalid_value", "tool_choice"),
    (CHAT_COMPLETIONS, {"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    (EMBEDDINGS, {"stream": True}, "unsupported_parameter", "stream"),
    (EMBEDDINGS, {"encoding_format": "hex"}, "invalid_value", "encoding_format"),
    (EMBEDDINGS, {"dimensions": 0}, "invalid_value", "dimensions"),
    (EMBEDDINGS, {"input": ""}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": []}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": [[]]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": ["a", ""]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": ["a", 1]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": [1, [2]]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": [-1]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": ["a"] * 2049}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": {"a": 1}}, "invalid_value", "input"),
    (EMBEDDINGS, {"model": 7}, "invalid_value", "model"),
]


@pytest.mark.parametrize(("path", "changes", "code", "param"), WRONG, ids=str)
async def test_a_wrong_parameter_is_named(
    gateway: Gateway, path: str, changes: dict[str, Any], code: str, param: str
) -> None:
    body = msgspec.json.encode({**BODIES[path], **changes})
    assert await refused(gateway, path, body) == (code, param)


@pytest.mark.parametrize("path", BODIES)
async def test_a_parameter_that_is_missing_is_named(gateway: Gateway, path: str) -> None:
    for name in BODIES[path]:
        body = {other: value for other, value in BODIES[path].items() if other != name}
        assert await refused(gateway, path, msgspec.json.encode(body)) == (
            "missing_parameter",
            name,
        )


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"model": "\xff"}', b"[" * 100_000],
    ids=lambda content: repr(content[:8]),
)
async def test_what_is_no_body_is_refused(gateway: Gateway, path: str, content: bytes) -> None:
    code, param = await refused(gateway, path, content)
    assert code in {"invalid_request", "invalid_value"}
    assert param is None


@pytest.mark.parametrize("path", BODIES)
async def test_a_body_over_the_limit_is_refused(gateway: Gateway, path: str) -> None:
    body = msgspec.json.encode({**BODIES[path], "user": "x" * BODY_BYTES_MAX})
    assert await refused(gateway, path, body) == ("file_too_large", None)

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), 65_536):
            yield body[begin : begin + 65_536]

    # Without a length in its header.
    answer = await gateway.http.post(path, content=pieces())
    assert code_of(answer) == "file_too_large"


async def test_a_body_up_to_the_limit_is_taken(gateway: Gateway) -> None:
    body = msgspec.json.encode({**BODIES[EMBEDDINGS], "input": "x"})
    padded = body.replace(b'"x"', b'"' + b"x" * (BODY_BYTES_MAX - len(body) + 1) + b'"')
    assert len(padded) == BODY_BYTES_MAX
    answer = await gateway.http.post(EMBEDDINGS, content=padded)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", BODIES)
async def test_strangers_learn_nothing(gateway: Gateway, path: str) -> None:
    for headers in ({"authorization": ""}, {"authorization": "Bearer tf-" + "x" * 43}):
        answer = await gateway.http.post(path, content=b"{", headers=headers)
        assert code_of(answer) == "invalid_api_key"
    assert (await gateway.http.get(path)).status_code == 405


async def test_the_official_client_is_told_the_parameter(gateway: Gateway) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await gateway.client.chat.completions.create(
            model=WRITER, messages=[{"role": "user", "content": "a"}], service_tier="flex"
        )
    assert (error.value.code, error.value.param) == ("unsupported_parameter", "service_tier")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        *("model", "prompt", "messages", "input", "stream", "n", "max_tokens", "temperature"),
        *("stop", "seed", "logprobs", "top_logprobs", "logit_bias", "stream_options", "tools"),
        *("tool_choice", "response_format", "encoding_format", "dimensions", "user", "top_p"),
    ]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"])},
        optional={"content": JSON, "tool_calls": JSON, "tool_call_id": st.text(max_size=3)},
    ),
    max_size=3,
)
SCHEMAS = st.fixed_dictionaries({"name": st.just("a"), "schema": JSON})
FORMATS = st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": SCHEMAS})
LIKELY = {
    "messages": MESSAGES,
    "response_format": FORMATS,
    "stream": st.booleans(),
    "n": st.integers(0, 4),
    "max_tokens": st.integers(-1, 20),
    "prompt": st.text(max_size=5) | st.lists(st.integers() | st.text(max_size=3), max_size=4),
    "input": st.text(max_size=5) | st.lists(st.integers() | st.text(max_size=3), max_size=4),
}
CHANGES = st.dictionaries(NAMES | st.text(max_size=6), JSON, max_size=2)


@given(
    path=st.sampled_from(list(BODIES)),
    likely=st.fixed_dictionaries({}, optional=LIKELY),
    changes=CHANGES,
)
@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
async def test_whatever_is_sent_there_is_an_answer_or_its_fault(
    server: Server, path: str, likely: dict[str, Any], changes: dict[str, Any]
) -> None:
    known = BODIES[path].keys() | {"n", "max_tokens", "stream"}
    # A strange parameter would hide what is behind it.
    body = {**BODIES[path], **{name: likely[name] for name in likely if name in known}, **changes}
    async with server.open() as gateway:
        await check_answered(gateway, path, json.dumps(body).encode(errors="surrogatepass"))


@given(path=st.sampled_from(list(BODIES)), content=st.binary(max_size=60))
@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
async def test_whatever_bytes_are_sent_their_fault_is_told(
    server: Server, path: str, content: bytes
) -> None:
    async with server.open() as gateway:
        await check_answered(gateway, path, content)


async def check_answered(gateway: Gateway, path: str, content: bytes) -> None:
    answer = await gateway.http.post(path, content=content)
    assert answer.status_code < 500, (content, answer.text)
    if answer.status_code == 200:
        assert answer.text.endswith("data: [DONE]\n\n") or answer.json()["object"]
        return
    error = msgspec.json.decode(answer.content, type=ErrorReply).error
    assert ERRORS[error.code].status == answer.status_code
    assert len(answer.content) < 2_000
