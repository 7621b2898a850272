"""The language model streams, and an answer goes on elsewhere as if nothing had happened."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from terafleet.agent.ports import RuntimeModel, SessionPiece
from terafleet.agent.runtime_host.llama import LlamaModel, loader
from terafleet.agent.runtime_host.models import LiveEnd, LiveRequest, ModelFailed
from terafleet.core.reasons import Failure
from terafleet.protocol.live import LiveFault
from tests.contract.chain_model import byte_ids, chain_model, character_spelled, number_spelled
from tests.contract.models_on_disk import STORIES_TEXT, stories_model

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"model": "m", "temperature": 0}
STORY = {**GREEDY, "prompt": "Once upon a time", "max_tokens": 60}
HELLO = [{"role": "user", "content": "Once upon a time"}]
TELL = {**GREEDY, "messages": HELLO, "max_tokens": 60}
CONTEXT = 256

Pieces = list[SessionPiece]


def never() -> bool:
    """Nobody stops it."""
    return False


def streamed(
    model: LlamaModel,
    endpoint: str,
    body: dict[str, Any],
    delivered: Sequence[int] = (),
    is_stopped: Callable[[], bool] = never,
) -> tuple[Pieces, LiveEnd | LiveFault]:
    """All pieces of an answer and its end."""
    pieces: Pieces = []
    request = LiveRequest(endpoint, msgspec.json.encode(body), tuple(delivered))
    return pieces, model.stream(request, pieces.append, is_stopped)


def answered(
    model: LlamaModel, endpoint: str, body: dict[str, Any], delivered: Sequence[int] = ()
) -> tuple[Pieces, LiveEnd]:
    """The same of an answer that must come to its end."""
    pieces, end = streamed(model, endpoint, body, delivered)
    assert isinstance(end, LiveEnd), end
    return pieces, end


def text_of(pieces: Pieces) -> str:
    """The text that a customer gets."""
    return "".join(piece.text for piece in pieces)


def tokens_of(pieces: Pieces) -> list[int]:
    """The tokens that a customer has."""
    return [token for piece in pieces for token in piece.token_ids]


def assert_goes_on(
    model: LlamaModel, endpoint: str, body: dict[str, Any], step: int = 1
) -> tuple[Pieces, LiveEnd]:
    """Cut an answer behind its pieces, and compare the two halves with the whole."""
    whole, end = answered(model, endpoint, body)
    for cut in range(0, len(whole), step):
        begin = whole[:cut]
        rest, rest_end = answered(model, endpoint, body, tokens_of(begin))
        assert text_of(begin) + text_of(rest) == text_of(whole), cut
        assert tokens_of(begin) + tokens_of(rest) == tokens_of(whole), cut
        assert (rest[-1].finish_reason, rest_end) == (whole[-1].finish_reason, end), cut
    return whole, end


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    """The tiny model, two texts at a time."""
    model = stories_model(tmp_path_factory)
    options = {"context_tokens": CONTEXT, "sequences": 2}
    loaded = loader(threads=1, slots=1)(model.folder, options)
    assert isinstance(loaded, LlamaModel)
    return loaded


def chained(model: RuntimeModel) -> LlamaModel:
    """A model that says its chain, loaded."""
    loaded = loader(threads=1, slots=1)(model.folder, model.options)
    assert isinstance(loaded, LlamaModel)
    return loaded


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    """A model that says `aé😀b` over and over, a byte a token."""
    folder = tmp_path_factory.mktemp("chains") / "numbered"
    return chained(chain_model(folder, "llama", number_spelled(["\u2581x"]), byte_ids("aé😀b")))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    """A model that says `h 😀ab` over and over, with tokens that are no whole characters."""
    folder = tmp_path_factory.mktemp("chains") / "printed"
    vocabulary = character_spelled([b" \xf0\x9f", b"ab"])
    chain = [*byte_ids("h"), 259, 3 + 0x98, 3 + 0x80, 260]
    return chained(chain_model(folder, "gpt2", vocabulary, chain))


def test_a_text_comes_a_token_at_a_time(stories: LlamaModel) -> None:
    pieces, end = answered(stories, COMPLETIONS, STORY)
    assert STORIES_TEXT.startswith(text_of(pieces))
    assert [len(piece.token_ids) for piece in pieces] == [1] * 60 + [0]
    assert [piece.finish_reason for piece in pieces] == [""] * 60 + ["length"]
    assert end == LiveEnd(5, 60)


def test_a_chat_says_what_it_says_in_a_batch(stories: LlamaModel) -> None:
    body = {"model": "m", "messages": HELLO, "max_tokens": 40, "seed": 3}
    pieces, end = answered(stories, CHAT, body)
    answers = stories.serve(msgspec.json.encode(body), CHAT, never)
    batch = msgspec.json.decode(answers.payload)["body"]
    assert text_of(pieces) == batch["choices"][0]["message"]["content"]
    assert (end.prompt_tokens, end.completion_tokens) == (
        batch["usage"]["prompt_tokens"],
        batch["usage"]["completion_tokens"],
    )


@pytest.mark.parametrize(
    ("endpoint", "body", "step"),
    [
        (COMPLETIONS, STORY, 1),
        (COMPLETIONS, {**STORY, "prompt": [1, 403, 407, 261, 378]}, 7),
        (COMPLETIONS, {**STORY, "frequency_penalty": 1.5, "presence_penalty": 0.5}, 3),
        (COMPLETIONS, {**STORY, "logit_bias": {"317": -100}}, 5),
        (CHAT, TELL, 1),
        (CHAT, {**TELL, "frequency_penalty": 1.0}, 5),
    ],
)
def test_a_greedy_text_goes_on_behind_every_token(
    stories: LlamaModel, endpoint: str, body: dict[str, Any], step: int
) -> None:
    assert_goes_on(stories, endpoint, body, step)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ([" Lily"], ", there was a little girl named"),
        ("girl named Lily. She", ", there was a little "),
        (["y. S", "ily. She loved"], ", there was a little girl named Lil"),
        (["there was a big", "nothing"], None),
    ],
)
def test_a_stop_may_lie_across_a_cut(
    stories: LlamaModel, stop: str | list[str], text: str | None
) -> None:
    whole, _ = assert_goes_on(stories, COMPLETIONS, {**STORY, "stop": stop}, 2)
    if text is None:
        assert (len(text_of(whole)), whole[-1].finish_reason) == (
            len(text_of(answered(stories, COMPLETIONS, STORY)[0])),
            "length",
        )
    else:
        assert (text_of(whole), whole[-1].finish_reason) == (text, "stop")


def test_the_batch_and_the_stream_stop_at_the_same_place(stories: LlamaModel) -> None:
    body = {**STORY, "stop": ["ball. She", "big, red"]}
    answers = stories.serve(msgspec.json.encode(body), COMPLETIONS, never)
    batch = msgspec.json.decode(answers.payload)["body"]
    pieces, end = answered(stories, COMPLETIONS, body)
    assert text_of(pieces) == batch["choices"][0]["text"]
    assert end.completion_tokens == batch["usage"]["completion_tokens"]


def test_characters_of_several_tokens_are_never_cut(numbered: LlamaModel) -> None:
    whole, end = assert_goes_on(numbered, COMPLETIONS, {**GREEDY, "prompt": "x", "max_tokens": 37})
    # The last 😀 does not come to its end.
    assert text_of(whole) == "aé😀b" * 4 + "aé"
    assert tokens_of(whole) == byte_ids("aé😀b" * 4 + "aé")
    assert end.completion_tokens == 37


def test_tokens_that_are_no_characters_are_named(printed: LlamaModel) -> None:
    whole, _ = assert_goes_on(printed, COMPLETIONS, {**GREEDY, "prompt": "x", "max_tokens": 17})
    assert text_of(whole) == "h 😀ab" * 3 + "h"
    assert tokens_of(whole) == [107, 259, 155, 131, 260] * 3 + [107]


def test_bytes_that_are_no_text_still_go_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("chains") / "broken"
    first_of_three = 3 + 0xE2
    chain = [*byte_ids("a"), first_of_three, *byte_ids("b")]
    model = chained(chain_model(folder, "llama", number_spelled(["\u2581x"]), chain))
    body = {**GREEDY, "prompt": "x", "max_tokens": 10}
    whole, _ = answered(model, COMPLETIONS, body)
    # Where a character of three bytes has begun, llama.cpp waits for three bytes.
    assert text_of(whole) == "a" + "\ufffdba" * 3
    # The tokens are those of what the customer sees.
    assert tokens_of(whole) == byte_ids(text_of(whole))
    for cut in range(3):
        rest, _ = answered(model, COMPLETIONS, body, tokens_of(whole[:cut]))
        # A replacement has two tokens more than what it replaces.
        assert text_of(whole).startswith(text_of(whole[:cut]) + text_of(rest))
        assert len(tokens_of(rest)) > 0


def test_what_was_delivered_counts_as_written(stories: LlamaModel) -> None:
    whole, _ = answered(stories, COMPLETIONS, STORY)
    body = {**STORY, "max_tokens": 20}
    rest, end = answered(stories, COMPLETIONS, body, tokens_of(whole)[:15])
    assert (len(tokens_of(rest)), end) == (5, LiveEnd(5, 20))
    for delivered in (20, 25):
        nothing, end = answered(stories, COMPLETIONS, body, tokens_of(whole)[:delivered])
        assert nothing == [SessionPiece(0, (), "", finish_reason="length")]
        assert end == LiveEnd(5, delivered)


def test_a_text_ends_with_its_context_wherever_it_goes_on(stories: LlamaModel) -> None:
    body = {**TELL, "max_tokens": None, "logit_bias": {"1": -100, "2": -100}}
    whole, end = answered(stories, CHAT, body)
    assert whole[-1].finish_reason == "length"
    assert end.prompt_tokens + end.completion_tokens == CONTEXT
    for left in (0, 1, 2, 50):
        tokens = tokens_of(whole)
        rest, rest_end = answered(stories, CHAT, body, tokens[: len(tokens) - left])
        assert tokens_of(rest) == tokens[len(tokens) - left :]
        assert (rest[-1].finish_reason, rest_end) == ("length", end)


def test_the_token_that_ends_a_text_is_told_with_the_end(stories: LlamaModel) -> None:
    end_token = 2
    body = {**STORY, "logit_bias": {str(end_token): 100}}
    whole, end = answered(stories, COMPLETIONS, body)
    assert (len(whole), whole[0].text, whole[0].finish_reason) == (1, "", "stop")
    assert end.completion_tokens == 1


def test_a_sample_repeats_itself_with_its_seed(stories: LlamaModel) -> None:
    body = {"model": "m", "prompt": "Once", "max_tokens": 24, "seed": 5}
    whole, _ = answered(stories, COMPLETIONS, body)
    assert answered(stories, COMPLETIONS, body)[0] == whole
    assert text_of(answered(stories, COMPLETIONS, {**body, "seed": 6})[0]) != text_of(whole)
    delivered = tokens_of(whole)[:10]
    rest, end = answered(stories, COMPLETIONS, body, delivered)
    assert answered(stories, COMPLETIONS, body, delivered)[0] == rest
    assert end.completion_tokens == 24
    # The numbers drawn behind a cut are not those of the beginning.
    repeated = answered(stories, COMPLETIONS, {**body, "prompt": [1, *delivered]})[0]
    assert tokens_of(rest) != tokens_of(repeated)[: len(tokens_of(rest))]


def test_no_text_waits_for_another(stories: LlamaModel) -> None:
    begun = [threading.Event(), threading.Event()]

    def take(piece: SessionPiece) -> None:
        begun[piece.index].set()
        assert begun[1 - piece.index].wait(timeout=20), "the other text does not begin"

    request = LiveRequest(COMPLETIONS, msgspec.json.encode({**STORY, "n": 2}), ())
    assert isinstance(stories.stream(request, take, never), LiveEnd)


def test_several_texts_are_told_each_by_its_number(stories: LlamaModel) -> None:
    body = {**STORY, "prompt": ["Once", "Lily"], "n": 2, "seed": 1, "temperature": 1}
    pieces, end = answered(stories, COMPLETIONS, body)
    assert end.completion_tokens == 240
    texts = [text_of([piece for piece in pieces if piece.index == index]) for index in range(4)]
    answers = stories.serve(msgspec.json.encode(body), COMPLETIONS, never)
    batch = msgspec.json.decode(answers.payload)["body"]["choices"]
    assert texts == [choice["text"] for choice in batch]
    reasons = [(piece.index, piece.finish_reason) for piece in pieces if piece.finish_reason]
    assert sorted(reasons) == [(index, "length") for index in range(4)]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (COMPLETIONS, {**STORY, "n": 2}),
        (CHAT, {**TELL, "n": 2}),
        (CHAT, {**TELL, "response_format": {"type": "json_object"}}),
    ],
)
def test_what_cannot_move_does_not_go_on(
    stories: LlamaModel, endpoint: str, body: dict[str, Any]
) -> None:
    pieces, end = streamed(stories, endpoint, body, [261])
    assert isinstance(end, LiveFault)
    assert (pieces, end.code) == ([], "invalid_request")


def test_a_schema_is_obeyed(stories: LlamaModel) -> None:
    properties = {"age": {"type": "integer", "minimum": 1, "maximum": 9}, "ok": {"type": "boolean"}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["age", "ok"],
        "additionalProperties": False,
    }
    described = {"name": "person", "schema": schema}
    chat = {**TELL, "response_format": {"type": "json_schema", "json_schema": described}}
    pieces, end = answered(stories, CHAT, {**chat, "max_tokens": 150})
    said = msgspec.json.decode(text_of(pieces))
    assert (set(said), 1 <= said["age"] <= 9, type(said["ok"])) == ({"age", "ok"}, True, bool)
    assert (pieces[-1].finish_reason, len(pieces) > 5) == ("stop", True)
    assert 0 < end.completion_tokens <= 150

    wrong = {"name": "person", "schema": {"type": "nonsense"}}
    chat["response_format"] = {"type": "json_schema", "json_schema": wrong}
    fault = streamed(stories, CHAT, chat)[1]
    assert isinstance(fault, LiveFault)
    assert (fault.code, fault.param) == ("invalid_request", "response_format")
    assert "nonsense" in fault.message


TOOLS_TEMPLATE = """
{%- if tools %}{{ '<|im_start|>system\\nCall <tool_call>{"name":, "arguments":}</tool_call>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{%- endfor %}{{ '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}{{ '<|im_start|>assistant' }}
{%- for call in message.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{%- endfor %}{{ '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}
"""
TOOL = {
    "type": "function",
    "function": {
        "name": "open_door",
        "parameters": {
            "type": "object",
            "properties": {"is_wide": {"type": "boolean"}},
            "required": ["is_wide"],
        },
    },
}
CALLED = (
    "<tool", "_call>\n", '{"name', '": ', '"open', '_door"', ', "arg', "uments", '":', ' {"is',
    '_wide": t', "rue}", "}\n", "</tool_call>",
)  # fmt: skip


@pytest.mark.parametrize(
    "choice", [None, "required", {"type": "function", "function": {"name": "open_door"}}]
)
def test_a_tool_is_called(tmp_path_factory: pytest.TempPathFactory, choice: object) -> None:
    folder = tmp_path_factory.mktemp("tools") / "model"
    vocabulary = number_spelled(["\u2581", *[one.replace(" ", "\u2581") for one in CALLED]])
    chain = [*range(260, 260 + len(CALLED)), 2]
    model = chained(chain_model(folder, "llama", vocabulary, chain, TOOLS_TEMPLATE))
    body = {**TELL, "tools": [TOOL]}
    if choice is not None:
        body["tool_choice"] = choice
    pieces, end = answered(model, CHAT, body)
    deltas = [
        one for piece in pieces if piece.tool_calls for one in msgspec.json.decode(piece.tool_calls)
    ]
    assert deltas[0]["function"]["name"] == "open_door"
    arguments = "".join(delta["function"].get("arguments", "") for delta in deltas)
    assert msgspec.json.decode(arguments) == {"is_wide": True}
    assert (text_of(pieces), pieces[-1].finish_reason) == ("", "tool_calls")
    assert end.completion_tokens == len(CALLED) + 1


def test_a_model_that_knows_no_tools_is_not_given_any(stories: LlamaModel) -> None:
    fault = streamed(stories, CHAT, {**TELL, "tools": [TOOL]})[1]
    assert isinstance(fault, LiveFault)
    assert (fault.code, fault.param) == ("unsupported_parameter", "tools")


@pytest.mark.parametrize("alternatives", [0, 3])
def test_probabilities_come_with_their_tokens(stories: LlamaModel, alternatives: int) -> None:
    chat = {**TELL, "max_tokens": 5, "logprobs": True, "top_logprobs": alternatives}
    pieces, _ = answered(stories, CHAT, chat)
    for piece in pieces[:-1]:
        (entry,) = msgspec.json.decode(piece.logprobs)["content"]
        assert entry["token"] == piece.text
        assert len(entry["top_logprobs"]) == alternatives
    completion = {**STORY, "max_tokens": 5, "logprobs": alternatives}
    pieces, _ = answered(stories, COMPLETIONS, completion)
    for piece in pieces[:-1]:
        told = msgspec.json.decode(piece.logprobs)
        assert (told["tokens"], told["text_offset"]) == ([piece.text], [0])
        assert told["token_logprobs"][0] <= 0
        assert len(told["top_logprobs"][0] if alternatives else ()) == alternatives
    assert pieces[-1].logprobs == b""


@pytest.mark.parametrize(
    ("endpoint", "body", "code", "param"),
    [
        (COMPLETIONS, {**STORY, "prompt": "word " * 500}, "context_length_exceeded", "prompt"),
        (CHAT, {**TELL, "messages": HELLO * 99}, "context_length_exceeded", "messages"),
        (COMPLETIONS, {**STORY, "prompt": [10**6]}, "invalid_request", None),
        (COMPLETIONS, {**STORY, "echo": True}, "unsupported_parameter", "echo"),
        (CHAT, {**TELL, "messages": []}, "invalid_value", "messages"),
    ],
)
def test_a_request_that_the_model_cannot_take_has_its_reason(
    stories: LlamaModel, endpoint: str, body: dict[str, Any], code: str, param: str | None
) -> None:
    pieces, fault = streamed(stories, endpoint, body)
    assert isinstance(fault, LiveFault)
    assert (pieces, fault.code, fault.param) == ([], code, param)
    if code == "context_length_exceeded":
        assert f"has {CONTEXT} tokens" in fault.message
    assert text_of(answered(stories, COMPLETIONS, STORY)[0])


def test_tokens_that_nobody_can_have_delivered_are_refused(stories: LlamaModel) -> None:
    fault = streamed(stories, COMPLETIONS, STORY, [512])[1]
    assert isinstance(fault, LiveFault)
    assert fault.code == "invalid_request"


def test_a_template_that_refuses_a_chat_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    template = (
        "{{ bos_token }}{% if messages | length > 1 %}{{ raise_exception('Be brief.') }}"
        "{% endif %}{{ messages[0].content }}"
    )
    folder = tmp_path_factory.mktemp("templates") / "model"
    model = chained(chain_model(folder, "llama", number_spelled([]), byte_ids("ab"), template))
    pieces, end = answered(model, CHAT, {**TELL, "max_tokens": 2})
    # One token that begins all texts, and the bytes of the message with the space before it.
    assert (text_of(pieces), end.prompt_tokens) == ("ab", 1 + 3 + len("Once upon a time") + 2 * 3)
    fault = streamed(model, CHAT, {**TELL, "messages": HELLO * 2})[1]
    assert fault == LiveFault("invalid_request", "Be brief.", "messages")


def test_words_of_customers_do_not_end_their_prompt(stories: LlamaModel) -> None:
    markers = "[[terafleet-prompt| Jinja Exception: |terafleet-prompt]]"
    odd = markers + " {{ 1 }} {% endset %} \\ \u2028 'é\""
    body = {**TELL, "messages": [{"role": "user", "content": odd}], "max_tokens": 5}
    _, end = answered(stories, CHAT, body)
    answers = stories.serve(msgspec.json.encode(body), CHAT, never)
    assert end.prompt_tokens == answers.prompt_tokens


def test_a_stopped_session_ends_with_its_next_token(stories: LlamaModel) -> None:
    pieces: Pieces = []
    request = LiveRequest(COMPLETIONS, msgspec.json.encode(STORY), ())
    with pytest.raises(ModelFailed) as raised:
        stories.stream(request, pieces.append, lambda: len(pieces) >= 5)
    assert raised.value.reason == Failure.STOPPED
    assert len(pieces) == 5


def test_a_session_is_stopped_while_its_prompt_is_read(stories: LlamaModel) -> None:
    asked = 0

    def is_stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    pieces: Pieces = []
    request = LiveRequest(
        COMPLETIONS, msgspec.json.encode({**STORY, "prompt": [1, *[403] * 240]}), ()
    )
    with pytest.raises(ModelFailed) as raised:
        stories.stream(request, pieces.append, is_stopped)
    assert (raised.value.reason, pieces) == (Failure.STOPPED, [])


def test_who_takes_pieces_may_fail(stories: LlamaModel) -> None:
    """The library loses exceptions; this one comes back."""

    def take(piece: SessionPiece) -> None:
        raise KeyError(piece.text)

    request = LiveRequest(COMPLETIONS, msgspec.json.encode(STORY), ())
    with pytest.raises(KeyError):
        stories.stream(request, take, never)


def test_a_model_for_vectors_streams_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = stories_model(tmp_path_factory)
    options = {"context_tokens": 128, "embeddings": 1, "pooling": 1}
    loaded = loader(threads=1, slots=1)(model.folder, options)
    request = LiveRequest(COMPLETIONS, msgspec.json.encode(STORY), ())
    with pytest.raises(ModelFailed) as raised:
        loaded.stream(request, lambda _piece: None, never)
    assert raised.value.reason == Failure.RUNTIME_REFUSED
