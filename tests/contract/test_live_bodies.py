"""What a live request may ask, what is refused and by which name, and what can move."""

from typing import Any

import msgspec
import pytest

from terafleet.protocol.errors import ERRORS
from terafleet.protocol.live import (
    LiveBody,
    LiveChat,
    LiveCompletion,
    LiveFault,
    can_move,
    choices_of,
    live_body,
    output_tokens_max,
    stops_of,
)
from terafleet.protocol.live_schemas import (
    DEPTH_MAX,
    ENTRIES_MAX,
    PATTERN_CHARACTERS_MAX,
    REPETITIONS_MAX,
    repetitions_of,
)
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS

TOOL = {"type": "function", "function": {"name": "open_door", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "open_door", "arguments": "{}"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "door", "schema": {"type": "object"}}}


def completion(**changes: Any) -> LiveBody | LiveFault:
    """A completion with changes."""
    body = {"model": "m", "prompt": "Once", **changes}
    return live_body(COMPLETIONS, msgspec.json.encode(body))


def chat(**changes: Any) -> LiveBody | LiveFault:
    """A chat with changes."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **changes}
    return live_body(CHAT_COMPLETIONS, msgspec.json.encode(body))


def asked(outcome: LiveBody | LiveFault) -> LiveBody:
    """A body that must be right."""
    assert isinstance(outcome, LiveCompletion | LiveChat), outcome
    return outcome


def nested(depth: int) -> dict[str, Any]:
    """A JSON schema with so many levels."""
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": None},
        {"logprobs": 5, "n": 2, "seed": 7, "stop": ["a", "b"], "user": "someone"},
        {"prompt": [1, 2]},
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2, 3]]},
        {"logit_bias": {"15": -100}},
    ],
)
def test_a_completion_may_ask(changes: dict[str, Any]) -> None:
    assert isinstance(completion(**changes), LiveCompletion)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"logprobs": True, "top_logprobs": 20},
        {"max_completion_tokens": 5},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": SCHEMA},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "open_door"}}},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [CALL]}]},
        {"messages": [{"role": "assistant", "content": "", "refusal": None, "tool_calls": None}]},
        {"messages": [{"role": "tool", "content": "done", "tool_call_id": "call_1"}]},
    ],
)
def test_a_chat_may_ask(changes: dict[str, Any]) -> None:
    assert isinstance(chat(**changes), LiveChat)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"echo": True}, "unsupported_parameter", "echo"),
        ({"best_of": 2}, "unsupported_parameter", "best_of"),
        ({"tools": [TOOL]}, "unsupported_parameter", "tools"),
        ({"logprobs": 6}, "invalid_value", "logprobs"),
        ({"logprobs": True}, "invalid_value", "logprobs"),
        ({"prompt": None}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 64, "n": 3}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 2**40}, "invalid_value", "max_tokens"),
        ({"logit_bias": {"word": 5}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {str(one): 1 for one in range(2000)}}, "invalid_value", "logit_bias"),
        ({"prompt": [1, -1]}, "invalid_value", "prompt"),
        ({"prompt": [[2**40]]}, "invalid_value", "prompt"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "invalid_value", "stream_options"),
    ],
)
def test_a_wrong_completion_is_refused_by_name(
    changes: dict[str, Any], code: str, param: str
) -> None:
    fault = completion(**changes)
    assert isinstance(fault, LiveFault)
    assert (fault.code, fault.param) == (code, param)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"functions": []}, "unsupported_parameter", "functions"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "critic", "content": ""}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "assistant"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": "", "name": "x"}]}, "invalid_value", "messages"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "invalid_value", "max_tokens"),
        ({"response_format": {"type": "poem"}}, "invalid_value", "response_format"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format"),
        ({"tools": []}, "invalid_value", "tools"),
        ({"tools": [TOOL, TOOL]}, "invalid_value", "tools"),
        ({"tool_choice": "auto"}, "invalid_value", "tool_choice"),
        ({"parallel_tool_calls": True}, "invalid_value", "parallel_tool_calls"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "invalid_value",
            "tool_choice",
        ),
    ],
)
def test_a_wrong_chat_is_refused_by_name(changes: dict[str, Any], code: str, param: str) -> None:
    fault = chat(**changes)
    assert isinstance(fault, LiveFault)
    assert (fault.code, fault.param) == (code, param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model":"\xff"}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    fault = live_body(COMPLETIONS, body)
    assert isinstance(fault, LiveFault)
    assert fault.code in {"invalid_request", "invalid_value"}
    assert fault.code in ERRORS


def test_a_missing_parameter_is_named() -> None:
    assert live_body(COMPLETIONS, b'{"model":"m"}') == LiveFault(
        "missing_parameter", "The parameter prompt is required.", "prompt"
    )


def test_a_long_name_is_not_repeated_whole() -> None:
    fault = completion(**{"x" * 5000: 1})
    assert isinstance(fault, LiveFault)
    assert len(fault.message) < 500
    assert len(fault.param or "") < 500


def test_other_endpoints_stream_nothing() -> None:
    fault = live_body(EMBEDDINGS, b'{"model":"m","input":"a"}')
    assert isinstance(fault, LiveFault)
    assert fault.code == "unsupported_endpoint"


@pytest.mark.parametrize(("depth", "is_taken"), [(DEPTH_MAX, True), (500, False)])
def test_schemas_are_not_nested_for_ever(depth: int, is_taken: bool) -> None:
    described = {"name": "deep", "schema": nested(depth)}
    outcome = chat(response_format={"type": "json_schema", "json_schema": described})
    assert isinstance(outcome, LiveChat) == is_taken
    function = {"name": "deep", "parameters": nested(depth)}
    outcome = chat(tools=[{"type": "function", "function": function}])
    assert isinstance(outcome, LiveChat) == is_taken


def enum(values: int) -> dict[str, Any]:
    return {"enum": [f"value {number}" for number in range(values)]}


def pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{text}$"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (enum(ENTRIES_MAX), None),
        (enum(ENTRIES_MAX + 1), "512 entries"),
        ({"properties": {f"p{number}": {} for number in range(ENTRIES_MAX + 1)}}, "512 entries"),
        ({"anyOf": [enum(ENTRIES_MAX)] * 9}, "4096 values"),
        (pattern(f"a{{{REPETITIONS_MAX}}}"), None),
        (pattern("(a?){200}a{200}"), "more than 128 times"),
        ({"properties": {"a": pattern("(.{0,30}){0,30}")}}, "more than 128 times"),
        (pattern("[" * PATTERN_CHARACTERS_MAX), "1024 characters"),
        ({"pattern": 5}, None),
    ],
)
def test_schemas_that_would_keep_a_car_busy_for_ever_are_refused(
    schema: dict[str, Any], words: str | None
) -> None:
    described = {"name": "large", "schema": schema}
    outcome = chat(response_format={"type": "json_schema", "json_schema": described})
    if words is None:
        assert isinstance(outcome, LiveChat)
        return
    assert isinstance(outcome, LiveFault)
    assert (outcome.code, outcome.param) == ("invalid_value", "response_format")
    assert words in outcome.message


@pytest.mark.parametrize(
    ("text", "repetitions"),
    [
        ("abc*d+e?", 0),
        (r"\d{4}-\d{2}-\d{2}", 8),
        (r"(\d{1,3}\.){3}\d{1,3}", 12),
        ("(.{0,30}){5,}", 150),
        ("((a{2}b){3}c{4}){5}", 50),
        (r"[{9}]\{9\}(){2}", 2),
        ("a{0}b{000000000300}", 300),
        ("a{" + "9" * 900 + "}", 9_999_999),
        (")){3}(((a{2}", 5),
    ],
)
def test_repetitions_in_each_other_multiply(text: str, repetitions: int) -> None:
    assert repetitions_of(text) == repetitions


PERSON = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 1},
        "name": {"type": ["string", "null"], "pattern": "^[A-Z]+$", "title": "a name"},
        "format": {"anyOf": [{"const": 1}, {"$ref": "#/$defs/day"}]},
        "pets": {"type": "array", "items": {"enum": ["cat"]}, "maxItems": 3},
    },
    "required": ["age"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "string", "format": "date"}},
}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (PERSON, None),
        ({"type": "object", "minProperties": 1}, "minProperties"),
        ({"type": "number", "minimum": 1}, "minimum"),
        ({"type": "string", "pattern": "a"}, "begins with"),
        ({"type": "string", "format": "email"}, "formats"),
        ({"type": "nonsense"}, "no such type"),
        ({"oneOf": []}, "oneOf"),
        ({"anyOf": 1}, "is an object"),
        ({"type": "array", "items": True}, "is an object"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "held to not"),
        ({"type": "object", "additionalProperties": {"if": {}}}, "held to if"),
    ],
)
def test_a_strict_schema_is_kept_to_or_refused(schema: dict[str, Any], words: str | None) -> None:
    for is_strict in (True, False, None):
        described = {"name": "a", "schema": schema, "strict": is_strict}
        function = {"name": "a", "parameters": schema, "strict": is_strict}
        outcomes = {
            "response_format": chat(
                response_format={"type": "json_schema", "json_schema": described}
            ),
            "tools": chat(tools=[{"type": "function", "function": function}]),
        }
        for param, outcome in outcomes.items():
            if is_strict and words is not None:
                assert isinstance(outcome, LiveFault)
                assert (outcome.code, outcome.param) == ("invalid_value", param)
                assert words in outcome.message
            else:
                assert isinstance(outcome, LiveChat)


def test_a_text_alone_can_move_and_nothing_else() -> None:
    assert can_move(asked(completion(n=1, logprobs=2, stop="x", seed=1, frequency_penalty=1)))
    assert can_move(asked(completion(prompt=["a"])))
    assert can_move(asked(chat(response_format={"type": "text"}, logprobs=True)))
    assert not can_move(asked(completion(n=2)))
    assert not can_move(asked(completion(prompt=["a", "b"])))
    assert not can_move(asked(chat(n=2)))
    assert not can_move(asked(chat(response_format={"type": "json_object"})))
    assert not can_move(asked(chat(response_format=SCHEMA)))
    assert not can_move(asked(chat(tools=[TOOL], tool_choice="none")))


def test_what_an_answer_may_have_is_known() -> None:
    assert choices_of(asked(completion(prompt=["a", "b"], n=3))) == 6
    assert output_tokens_max(asked(completion())) == 16
    assert output_tokens_max(asked(completion(max_tokens=5))) == 5
    assert output_tokens_max(asked(chat())) is None
    assert output_tokens_max(asked(chat(max_completion_tokens=7))) == 7
    assert stops_of(asked(completion(stop=["a", "", "b"]))) == ("a", "b")
    assert stops_of(asked(completion(stop="a"))) == ("a",)
