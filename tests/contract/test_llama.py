"""The language model answers completions and chats as OpenAI would, line by line."""

import base64
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from terafleet.agent.runtime_host.llama import LlamaModel, loader
from terafleet.agent.runtime_host.models import Answers, LiveEnd, LiveRequest, ModelFailed
from terafleet.core.reasons import Failure
from tests.contract.models_on_disk import STORIES_TEXT, stories_model

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
GREEDY = {"model": "stories", "temperature": 0}
HELLO = [{"role": "user", "content": "Once upon a time"}]

Serve = Callable[..., tuple[list[dict[str, Any]], Answers]]


def served(model: LlamaModel, endpoint: str, *bodies: object) -> list[dict[str, Any]]:
    """The answers to bodies."""
    return counted(model, endpoint, *bodies)[0]


def counted(
    model: LlamaModel, endpoint: str, *bodies: object
) -> tuple[list[dict[str, Any]], Answers]:
    """The answers to bodies, and what they counted."""
    payload = b"".join(msgspec.json.encode(body) + b"\n" for body in bodies)
    outcome = model.serve(payload, endpoint, lambda: False)
    return [msgspec.json.decode(line) for line in outcome.payload.splitlines()], outcome


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    """The tiny model, two texts at a time."""
    model = stories_model(tmp_path_factory)
    loaded = loader(threads=1, slots=1)(model.folder, {"context_tokens": 512, "sequences": 2})
    assert isinstance(loaded, LlamaModel)
    return loaded


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    """The tiny model, loaded for embeddings as means."""
    model = stories_model(tmp_path_factory)
    options = {"context_tokens": 128, "embeddings": 1, "pooling": 1}
    loaded = loader(threads=1, slots=1)(model.folder, options)
    assert isinstance(loaded, LlamaModel)
    return loaded


def test_the_greedy_text_is_the_published_one(stories: LlamaModel) -> None:
    body = {**GREEDY, "prompt": "Once upon a time", "max_tokens": 100}
    (answer,) = served(stories, COMPLETIONS, body)
    assert answer["status_code"] == 200
    text = answer["body"]["choices"][0]["text"]
    assert len(text) > 200
    assert STORIES_TEXT.startswith(text)


def test_a_completion_has_openais_form(stories: LlamaModel) -> None:
    (answer,), outcome = counted(stories, COMPLETIONS, {**GREEDY, "prompt": "Once"})
    body = answer["body"]
    assert (body["object"], body["model"]) == ("text_completion", "stories")
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 16, "total_tokens": 18}
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (2, 16)


def test_every_prompt_and_choice_is_counted(stories: LlamaModel) -> None:
    body = {**GREEDY, "prompt": ["Once", "Lily"], "n": 2, "max_tokens": 5}
    (answer,), outcome = counted(stories, COMPLETIONS, body)
    choices = answer["body"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert choices[0]["text"] == choices[1]["text"] != choices[2]["text"]
    assert outcome.completion_tokens == answer["body"]["usage"]["completion_tokens"] == 20
    alone = [
        counted(stories, COMPLETIONS, {**body, "prompt": prompt, "n": 1})[1].prompt_tokens
        for prompt in ("Once", "Lily")
    ]
    assert outcome.prompt_tokens == sum(alone)


def test_tokens_are_taken_for_texts(stories: LlamaModel) -> None:
    one, many = served(
        stories,
        COMPLETIONS,
        {**GREEDY, "prompt": [1, 403], "max_tokens": 4},
        {**GREEDY, "prompt": [[1, 403]], "max_tokens": 4},
    )
    assert one["body"]["choices"] == many["body"]["choices"]


def test_a_seed_repeats_a_text_and_its_choices_differ(stories: LlamaModel) -> None:
    body = {"model": "m", "prompt": "Once", "max_tokens": 24, "seed": 5, "n": 2}
    first, again = served(stories, COMPLETIONS, body, body)
    assert first["body"]["choices"] == again["body"]["choices"]
    texts = [choice["text"] for choice in first["body"]["choices"]]
    assert texts[0] != texts[1]


def test_a_text_ends_before_what_it_shall_not_say(stories: LlamaModel) -> None:
    body = {**GREEDY, "prompt": "Once upon a time", "max_tokens": 100, "stop": [" Lily"]}
    (answer,) = served(stories, COMPLETIONS, body)
    (choice,) = answer["body"]["choices"]
    assert (choice["text"], choice["finish_reason"]) == (
        ", there was a little girl named",
        "stop",
    )


def test_a_chat_has_openais_form(stories: LlamaModel) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Once upon a time"}]}]
    whole, pieces = served(
        stories,
        CHAT,
        {**GREEDY, "messages": HELLO, "max_completion_tokens": 6},
        {**GREEDY, "messages": parts, "max_tokens": 6},
    )
    body = whole["body"]
    assert body["object"] == "chat.completion"
    assert body["usage"]["completion_tokens"] == 6
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 6
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["logprobs"] is None
    assert pieces["body"]["choices"] == body["choices"]


@pytest.mark.parametrize("alternatives", [None, 0, 3])
def test_a_chat_tells_probabilities(stories: LlamaModel, alternatives: int | None) -> None:
    body = {**GREEDY, "messages": HELLO, "max_tokens": 4, "logprobs": True}
    if alternatives is not None:
        body["top_logprobs"] = alternatives
    (answer,) = served(stories, CHAT, body)
    (choice,) = answer["body"]["choices"]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert all(len(token["top_logprobs"]) == (alternatives or 0) for token in tokens)
    assert all(token["logprob"] <= 0 for token in tokens)


@pytest.mark.parametrize(
    ("endpoint", "change", "parameter", "code"),
    [
        (COMPLETIONS, {"tools": []}, "tools", "unsupported_parameter"),
        (COMPLETIONS, {"logprobs": 1}, "logprobs", "unsupported_parameter"),
        (COMPLETIONS, {"stream": True}, "stream", "unsupported_parameter"),
        (COMPLETIONS, {"prompt": []}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": ["a", 5]}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": None}, "prompt", "invalid_value"),
        (COMPLETIONS, {"temperature": 3}, "temperature", "invalid_value"),
        (COMPLETIONS, {"top_p": 0}, "top_p", "invalid_value"),
        (COMPLETIONS, {"n": 200}, "n", "invalid_value"),
        (COMPLETIONS, {"prompt": ["a"] * 100, "n": 2}, "n", "invalid_value"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens", "invalid_value"),
        (COMPLETIONS, {"stop": ["a"] * 5}, "stop", "invalid_value"),
        (COMPLETIONS, {"seed": 2**70}, "seed", "invalid_value"),
        (COMPLETIONS, {"prompt": "word " * 2000}, None, "context_length_exceeded"),
        (COMPLETIONS, {"prompt": [10**6]}, None, "invalid_request"),
        (CHAT, {"response_format": {}}, "response_format", "unsupported_parameter"),
        (CHAT, {"messages": []}, "messages", "invalid_value"),
        (CHAT, {"messages": [{"role": "tool", "content": ""}]}, "messages", "invalid_value"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages", "invalid_value"),
        (CHAT, {"top_logprobs": 30}, "top_logprobs", "invalid_value"),
    ],
)
def test_a_wrong_request_has_its_error_and_spoils_no_other(
    stories: LlamaModel, endpoint: str, change: dict[str, Any], parameter: str | None, code: str
) -> None:
    asked = {"prompt": "a"} if endpoint == COMPLETIONS else {"messages": HELLO}
    good = {**GREEDY, **asked, "max_tokens": 2}
    before, wrong, after = served(stories, endpoint, good, {**good, **change}, good)
    assert (before["status_code"], after["status_code"]) == (200, 200)
    error = wrong["body"]["error"]
    assert wrong["status_code"] == 400
    assert (error["param"], error["code"]) == (parameter, code)


def test_a_stopped_attempt_ends_within_a_text(stories: LlamaModel) -> None:
    asked = 0

    def is_stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20

    body = {**GREEDY, "prompt": "Once upon a time", "max_tokens": 400}
    with pytest.raises(ModelFailed) as raised:
        stories.serve(msgspec.json.encode(body), COMPLETIONS, is_stopped)
    assert raised.value.reason == Failure.STOPPED
    assert asked < 30


def test_an_attempt_can_be_stopped_while_a_prompt_is_read(stories: LlamaModel) -> None:
    asked = 0

    def is_stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    body = {**GREEDY, "prompt": [1, *[403] * 240], "max_tokens": 1}
    with pytest.raises(ModelFailed) as raised:
        stories.serve(msgspec.json.encode(body), COMPLETIONS, is_stopped)
    assert raised.value.reason == Failure.STOPPED
    # Once more at the end; the prompt has fifteen parts.
    assert asked == 5


def test_prompts_are_read_in_parts_that_are_over_soon(stories: LlamaModel) -> None:
    asked = 0

    def is_stopped() -> bool:
        nonlocal asked
        asked += 1
        return False

    prompt_tokens = 241
    body = {**GREEDY, "prompt": [1, *[403] * (prompt_tokens - 1)], "max_tokens": 1}
    request = LiveRequest(COMPLETIONS, msgspec.json.encode(body), ())
    assert isinstance(stories.stream(request, lambda _piece: None, is_stopped), LiveEnd)
    assert asked >= prompt_tokens // 16


def test_embeddings_are_numbers_or_base64(vectors: LlamaModel) -> None:
    numbers, encoded = served(
        vectors,
        EMBEDDINGS,
        {"model": "m", "input": ["car", "soup"]},
        {"model": "m", "input": "car", "encoding_format": "base64", "dimensions": 64},
    )
    first, second = (one["embedding"] for one in numbers["body"]["data"])
    assert len(first) == len(second) == 64
    assert first != second
    raw = base64.b64decode(encoded["body"]["data"][0]["embedding"])
    assert struct.unpack("<64f", raw) == pytest.approx(first, abs=1e-6)
    assert numbers["body"]["usage"]["prompt_tokens"] > 2


@pytest.mark.parametrize(
    ("change", "parameter", "code"),
    [
        ({"input": "word " * 500}, None, "context_length_exceeded"),
        ({"input": ""}, "input", "invalid_value"),
        ({"dimensions": 65}, "dimensions", "invalid_value"),
        ({"input": [512]}, None, "invalid_request"),
    ],
)
def test_wrong_inputs_have_their_error(
    vectors: LlamaModel, change: dict[str, Any], parameter: str | None, code: str
) -> None:
    good = {"model": "m", "input": "car"}
    wrong, after = served(vectors, EMBEDDINGS, {**good, **change}, good)
    assert after["status_code"] == 200
    error = wrong["body"]["error"]
    assert (error["param"], error["code"]) == (parameter, code)


def test_a_model_for_texts_makes_no_embeddings(stories: LlamaModel) -> None:
    with pytest.raises(ModelFailed, match="doesn't serve"):
        stories.serve(b'{"model":"m","input":"a"}', EMBEDDINGS, lambda: False)
