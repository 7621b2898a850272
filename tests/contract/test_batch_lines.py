"""The lines of batches: what is taken, what is refused by name, and that nothing ever raises."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.control.gateway.context import GatewayLimits
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.lines import RefusedLine, TakenLine, check_line
from terafleet.control.gateway.splitting import Line, LineSplitter
from terafleet.control.gateway.summary import SUMMARY_DECODER, FileLook, FileSummary
from terafleet.core.work import predicted_cost
from terafleet.protocol.errors import ERRORS
from terafleet.protocol.openai import BATCH_ENDPOINTS, CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from tests.contract.customer_stage import line

BYTES_MAX = 1024 * 1024

BODIES: dict[str, dict[str, Any]] = {
    EMBEDDINGS: {"model": "m", "input": "hello"},
    COMPLETIONS: {"model": "m", "prompt": "hello"},
    CHAT_COMPLETIONS: {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
}


def text_of(url: str = EMBEDDINGS, fields: dict[str, Any] | None = None, **body: Any) -> bytes:
    """A line with a body that is good but for `body`, and with other fields where given."""
    value = {"custom_id": "a", "method": "POST", "url": url, "body": {**BODIES[url], **body}}
    return json.dumps({**value, **(fields or {})}).encode()


def check(text: bytes, number: int = 7) -> TakenLine | RefusedLine:
    return check_line(Line(number, text), BYTES_MAX)


def taken(text: bytes) -> tuple[TakenLine, dict[str, Any]]:
    found = check(text)
    assert isinstance(found, TakenLine), found
    return found, json.loads(found.body_bytes)


def refused(text: bytes) -> RefusedLine:
    found = check(text)
    assert isinstance(found, RefusedLine), found
    assert found.line_number == 7
    assert "Line 7" in found.message
    assert found.code in ERRORS
    return found


@pytest.mark.parametrize("url", BATCH_ENDPOINTS)
def test_a_plain_line_is_taken(url: str) -> None:
    found, body = taken(text_of(url))
    assert (found.custom_id, found.endpoint, found.model) == ("a", url, "m")
    assert body == BODIES[url]


GOOD = [
    (EMBEDDINGS, {"input": ["a", "b"]}),
    (EMBEDDINGS, {"input": [1, 2, 3]}),
    (EMBEDDINGS, {"input": [[1, 2], [3]]}),
    (EMBEDDINGS, {"input": ["a"] * 2_048}),
    (EMBEDDINGS, {"encoding_format": "base64", "dimensions": 256}),
    (COMPLETIONS, {"max_tokens": 1, "temperature": 0, "top_p": 1.0, "seed": 5, "stop": "."}),
    (COMPLETIONS, {"stop": ["a", "b", "c", "d"], "presence_penalty": -2, "frequency_penalty": 2}),
    (CHAT_COMPLETIONS, {"messages": [{"role": "system", "content": ""}], "max_tokens": 9}),
    (CHAT_COMPLETIONS, {"messages": [{"role": "user", "content": "ü\u2028"}]}),
    (
        CHAT_COMPLETIONS,
        {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]},
    ),
]


@pytest.mark.parametrize(("url", "parameters"), GOOD)
def test_what_can_be_honoured_is_sent_on(url: str, parameters: dict[str, Any]) -> None:
    found, body = taken(text_of(url, **parameters))
    assert body == {**BODIES[url], **parameters}
    assert b"\n" not in found.body_bytes


NEUTRAL = [
    (EMBEDDINGS, {"user": "person-1", "dimensions": None}),
    (COMPLETIONS, {"n": 1, "best_of": 1, "echo": False, "stream": False, "user": None}),
    (CHAT_COMPLETIONS, {"n": 1, "logprobs": False, "stream": None, "stop": None, "user": "p"}),
]


@pytest.mark.parametrize(("url", "parameters"), NEUTRAL)
def test_what_changes_nothing_is_not_sent_on(url: str, parameters: dict[str, Any]) -> None:
    assert taken(text_of(url, **parameters))[1] == BODIES[url]


def test_the_limit_of_an_answer_has_one_name() -> None:
    body = taken(text_of(CHAT_COMPLETIONS, max_completion_tokens=12))[1]
    assert body == {**BODIES[CHAT_COMPLETIONS], "max_tokens": 12}
    both = refused(text_of(CHAT_COMPLETIONS, max_completion_tokens=12, max_tokens=12))
    assert (both.code, both.param) == ("invalid_value", "max_tokens")


BAD_PARAMETERS = [
    (EMBEDDINGS, {"input": ""}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": []}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": ["a", ""]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": ["a"] * 2_049}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": ["a", 1]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": [1, -1]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": [True]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": [[1], []]}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": {"text": "a"}}, "invalid_value", "input"),
    (EMBEDDINGS, {"input": None}, "missing_parameter", "input"),
    (EMBEDDINGS, {"model": ""}, "invalid_value", "model"),
    (EMBEDDINGS, {"model": None}, "missing_parameter", "model"),
    (EMBEDDINGS, {"model": 7}, "invalid_value", "model"),
    (EMBEDDINGS, {"model": "m" * 257}, "invalid_value", "model"),
    (EMBEDDINGS, {"encoding_format": "hex"}, "invalid_value", "encoding_format"),
    (EMBEDDINGS, {"dimensions": 0}, "invalid_value", "dimensions"),
    (EMBEDDINGS, {"user": 1}, "invalid_value", "user"),
    (EMBEDDINGS, {"stream": False}, "unsupported_parameter", "stream"),
    (COMPLETIONS, {"prompt": ["a", "b"]}, "invalid_value", "prompt"),
    (COMPLETIONS, {"prompt": ""}, "invalid_value", "prompt"),
    (COMPLETIONS, {"stream": True}, "unsupported_parameter", "stream"),
    (COMPLETIONS, {"n": 2}, "unsupported_parameter", "n"),
    (COMPLETIONS, {"n": True}, "unsupported_parameter", "n"),
    (COMPLETIONS, {"logprobs": 0}, "unsupported_parameter", "logprobs"),
    (COMPLETIONS, {"suffix": "x"}, "unsupported_parameter", "suffix"),
    (COMPLETIONS, {"logit_bias": {}}, "unsupported_parameter", "logit_bias"),
    (COMPLETIONS, {"temperature": 2.1}, "invalid_value", "temperature"),
    (COMPLETIONS, {"temperature": "1"}, "invalid_value", "temperature"),
    (COMPLETIONS, {"max_tokens": 0}, "invalid_value", "max_tokens"),
    (COMPLETIONS, {"max_tokens": 1.5}, "invalid_value", "max_tokens"),
    (COMPLETIONS, {"stop": ["a"] * 5}, "invalid_value", "stop"),
    (COMPLETIONS, {"seed": 2**32 - 1}, "invalid_value", "seed"),
    (COMPLETIONS, {"seed": -1}, "invalid_value", "seed"),
    (COMPLETIONS, {"top_p": 0}, "invalid_value", "top_p"),
    (CHAT_COMPLETIONS, {"messages": []}, "invalid_value", "messages"),
    (CHAT_COMPLETIONS, {"messages": "hello"}, "invalid_value", "messages"),
    (
        CHAT_COMPLETIONS,
        {"messages": [{"role": "tool", "content": "x"}]},
        "invalid_value",
        "messages",
    ),
    (
        CHAT_COMPLETIONS,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "invalid_value",
        "messages",
    ),
    (CHAT_COMPLETIONS, {"tools": []}, "unsupported_parameter", "tools"),
    (CHAT_COMPLETIONS, {"logprobs": True}, "unsupported_parameter", "logprobs"),
    (CHAT_COMPLETIONS, {"x" * 900: 1}, "unsupported_parameter", "x" * 64),
]


@pytest.mark.parametrize(("url", "parameters", "code", "param"), BAD_PARAMETERS)
def test_what_can_not_be_honoured_is_refused_by_name(
    url: str, parameters: dict[str, Any], code: str, param: str
) -> None:
    found = refused(text_of(url, **parameters))
    assert (found.code, found.param) == (code, param)
    assert param in found.message
    assert (found.custom_id, found.endpoint) == ("a", url)
    assert len(found.message) < 500


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"custom_id": ""}, "invalid_value", "custom_id"),
    ({"custom_id": "i" * 513}, "invalid_value", "custom_id"),
    ({"custom_id": 5}, "invalid_value", "custom_id"),
    ({"custom_id": None}, "missing_parameter", "custom_id"),
    ({"method": "GET"}, "invalid_value", "method"),
    ({"method": None}, "missing_parameter", "method"),
    ({"url": "/v1/responses"}, "unsupported_endpoint", "url"),
    ({"url": ["/v1/embeddings"]}, "unsupported_endpoint", "url"),
    ({"url": None}, "missing_parameter", "url"),
    ({"body": "text"}, "invalid_value", "body"),
    ({"body": None}, "missing_parameter", "body"),
    ({"priority": 1}, "unsupported_parameter", "priority"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_FIELDS)
def test_the_fields_of_a_line_are_checked(fields: dict[str, Any], code: str, param: str) -> None:
    found = refused(text_of(fields=fields))
    assert (found.code, found.param) == (code, param)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"text"',
        b"not json",
        b'{"custom_id": "\xff"}',
        b'{"custom_id": "\\ud800"}',
        b'{"custom_id": 1e999}',
        b'{"custom_id": NaN}',
        b"{} {}",
        b'{"a":' * 50_000,
        b"[" * 50_000,
        text_of()[:-1],
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    found = refused(text)
    assert (found.code, found.custom_id) == ("invalid_json_line", None)


def test_a_long_line_is_refused() -> None:
    assert refused(b"x" * (BYTES_MAX + 1)).code == "line_too_long"
    just_fits = text_of(input="x" * (BYTES_MAX - len(text_of()) + len("hello")))
    assert len(just_fits) == BYTES_MAX
    assert isinstance(check(just_fits), TakenLine)


def test_costs_are_predicted_from_text_and_limit() -> None:
    assert taken(text_of(input="x" * 40))[0].cost == predicted_cost(40, 0)
    assert taken(text_of(input=["x" * 40] * 3))[0].cost == predicted_cost(120, 0)
    assert taken(text_of(input=[5] * 10))[0].cost == predicted_cost(40, 0)
    assert taken(text_of(input=[[5] * 10, [6]]))[0].cost == predicted_cost(44, 0)
    assert taken(text_of(COMPLETIONS, max_tokens=9))[0].cost == predicted_cost(5, 9)
    assert taken(text_of(COMPLETIONS))[0].cost == predicted_cost(5, 256)
    parts = [{"type": "text", "text": "x" * 8}]
    messages = [{"role": "user", "content": parts}, {"role": "user", "content": "yyyy"}]
    assert taken(text_of(CHAT_COMPLETIONS, messages=messages))[0].cost == predicted_cost(12, 256)


@given(st.binary())
def test_arbitrary_bytes_never_raise(text: bytes) -> None:
    found = check(text)
    if isinstance(found, RefusedLine):
        assert found.code in ERRORS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PARAMETER_NAMES = st.sampled_from(
    ["input", "prompt", "messages", "model", "max_tokens", "stop", "n", "stream", "user", "seed"]
)


@given(
    st.sampled_from(BATCH_ENDPOINTS),
    st.dictionaries(PARAMETER_NAMES | st.text(), JSON, max_size=3),
    st.dictionaries(st.sampled_from(["custom_id", "method", "url", "body"]), JSON, max_size=1),
)
def test_a_line_that_is_taken_comes_back_as_it_was(
    url: str, parameters: dict[str, Any], fields: dict[str, Any]
) -> None:
    try:
        text = text_of(url, fields, **parameters)
        original = json.loads(text)
    except ValueError:
        return
    found = check(text)
    if isinstance(found, TakenLine):
        assert found.custom_id == original["custom_id"]
        kept = msgspec.json.decode(found.body_bytes)
        assert {name: original["body"][name] for name in kept} == kept
    else:
        assert found.code in ERRORS
        assert found.param is None or found.param in found.message


TEXTS = st.text(min_size=1, max_size=20)


@given(st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=5)), TEXTS.filter(str.isprintable))
def test_good_embeddings_round_trip(given_input: Any, custom_id: str) -> None:
    found, body = taken(text_of(fields={"custom_id": custom_id}, input=given_input))
    assert body == {"model": "m", "input": given_input}
    assert found.custom_id == custom_id


@given(st.binary(max_size=200).map(lambda raw: raw.replace(b"x", b"\n")), st.data())
def test_lines_do_not_depend_on_the_pieces(body: bytes, data: st.DataObject) -> None:
    whole = LineSplitter(10)
    expected = [*whole.feed(body), *whole.end()]
    cut_up = LineSplitter(10)
    found = []
    rest = body
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        found += cut_up.feed(rest[:count])
        rest = rest[count:]
    assert [*found, *cut_up.end()] == expected
    by_hand = [
        Line(number, text[:11])
        for number, text in enumerate(body.split(b"\n"), 1)
        if text[:11] and not text[:11].isspace()
    ]
    assert expected == by_hand


def look(body: bytes, limits: GatewayLimits | None = None) -> FileSummary:
    looking = FileLook(limits or GatewayLimits())
    for begin in range(0, len(body), 100):
        looking.feed(body[begin : begin + 100])
    looking.end()
    encoded = msgspec.json.encode(looking.summary)
    return SUMMARY_DECODER.decode(encoded)


def test_a_summary_says_what_was_seen() -> None:
    body = b"\n".join(
        [
            line("a", model="one"),
            b"",
            line("b", model="two"),
            b"garbage",
            line("c", model="one", url=COMPLETIONS),
            line("a", model="two"),
            line("d", url="/v1/other"),
        ]
    )
    found = look(body)
    assert (found.requests, found.refused) == (6, 2)
    endpoints = [(seen.endpoint, seen.lines, seen.first_line) for seen in found.endpoints]
    assert endpoints == [(EMBEDDINGS, 3, 1), (COMPLETIONS, 1, 5), ("/v1/other", 1, 7)]
    models = [(seen.name, seen.lines, seen.first_line) for seen in found.models]
    assert models == [("one", 2, 1), ("two", 2, 3)]
    assert [(error.line_number, error.code) for error in found.errors] == [
        (4, "invalid_json_line"),
        (7, "unsupported_endpoint"),
    ]
    (duplicate,) = found.duplicates
    assert (duplicate.custom_id, duplicate.first_line, duplicate.second_line) == ("a", 1, 6)


def test_a_summary_stays_small() -> None:
    body = b"\n".join(
        [
            *(line(f"m{number}", model=f"model-{number}") for number in range(100)),
            *(line(f"u{number}", url=f"/v{number}") for number in range(100)),
            *(line("same") for _ in range(100)),
        ]
    )
    found = look(body)
    assert (found.requests, found.refused) == (300, 100)
    assert len(msgspec.json.encode(found)) < 10_000
    assert [seen.lines for seen in found.endpoints[:1]] == [200]


def code_of_look(body: bytes) -> str:
    try:
        look(body)
    except ApiError as error:
        return error.code
    return ""


@given(st.binary(max_size=400))
def test_a_look_at_arbitrary_bytes_refuses_by_name(body: bytes) -> None:
    assert code_of_look(body) in ("", "invalid_file", "empty_file")
    assert code_of_look(body + b"\n" + line()) in ("", "invalid_file")


def test_a_file_of_garbage_is_refused_before_its_end() -> None:
    looking = FileLook(GatewayLimits())
    with pytest.raises(ApiError) as refusal:
        looking.feed(b"name,text\n" * 10)
    assert refusal.value.code == "invalid_file"
    too_many = FileLook(GatewayLimits(file_requests_max=10))
    with pytest.raises(ApiError) as refusal:
        too_many.feed(b"\n".join(line(str(number)) for number in range(12)))
    assert refusal.value.code == "too_many_requests_in_file"


def test_a_long_line_without_end_takes_no_memory() -> None:
    splitter = LineSplitter(1_000)
    for _ in range(1_000):
        assert splitter.feed(b"x" * 10_000) == []
    (cut_off,) = splitter.end()
    assert len(cut_off.text) == 1_001
