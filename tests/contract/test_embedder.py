"""The encoder answers `/v1/embeddings` as OpenAI would, line by line."""

import base64
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from terafleet.agent.runtime_host.embedder import Embedder
from terafleet.agent.runtime_host.models import ModelFailed
from terafleet.control.model_import.bert import import_bert
from terafleet.core.reasons import Failure
from tests.contract.models_on_disk import minilm_model
from tests.contract.small_bert import HIDDEN, POSITIONS, WORDS, publish, small_weights

ENDPOINT = "/v1/embeddings"
LONG = "park " * POSITIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder."""
    base = tmp_path_factory.mktemp("encoder")
    import_bert(publish(base / "published", small_weights()), base / "model")
    return base / "model"


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    """The tiny encoder in memory."""
    return Embedder(folder)


def lines(*bodies: object) -> bytes:
    """Bodies as JSON Lines, those that are bytes as they are."""
    encoded = [one if isinstance(one, bytes) else msgspec.json.encode(one) for one in bodies]
    return b"\n".join(encoded) + b"\n"


def answers(embedder: Embedder, *bodies: object) -> list[dict[str, Any]]:
    """The answers to bodies."""
    payload, _tokens = embedder.answer(lines(*bodies), ENDPOINT)
    assert payload.endswith(b"\n")
    return [msgspec.json.decode(line) for line in payload.splitlines()]


def vectors(answer: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The vectors of an answer, which must be a success."""
    assert answer["status_code"] == 200, answer
    return np.array([one["embedding"] for one in answer["body"]["data"]], np.float32)


def test_a_text_has_its_vector_in_openais_form(embedder: Embedder) -> None:
    (answer,) = answers(embedder, {"input": "car", "model": "small", "user": "someone"})
    body = answer["body"]
    assert list(body) == ["object", "data", "model", "usage"]
    assert (body["object"], body["model"]) == ("list", "small")
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    (entry,) = body["data"]
    assert (entry["object"], entry["index"]) == ("embedding", 0)
    np.testing.assert_array_equal(vectors(answer), embedder.embed(["car"]))


def test_numbers_have_nine_digits_and_lose_nothing(embedder: Embedder) -> None:
    payload, _tokens = embedder.answer(lines({"input": "car", "model": "m"}), ENDPOINT)
    text = payload.decode().partition('"embedding":[')[2].partition("]")[0]
    for number in text.split(","):
        digits = number.partition("e")[0].lstrip("-0.").replace(".", "")
        assert len(digits) <= 9


def test_several_inputs_keep_their_order(embedder: Embedder) -> None:
    texts = ["car", LONG, "a", "charge the parked car .", "car"]
    (answer,) = answers(embedder, {"input": texts, "model": "m"})
    assert [one["index"] for one in answer["body"]["data"]] == [0, 1, 2, 3, 4]
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(vectors(answer), alone, atol=1e-6)


def test_requests_keep_their_order_and_their_usage(embedder: Embedder) -> None:
    bodies = [{"input": text, "model": "m"} for text in (LONG, "a", "car charge")]
    replies = answers(embedder, *bodies)
    assert [one["body"]["usage"]["total_tokens"] for one in replies] == [POSITIONS, 3, 4]
    _payload, prompt_tokens = embedder.answer(lines(*bodies), ENDPOINT)
    assert prompt_tokens == POSITIONS + 3 + 4


def test_tokens_are_taken_for_texts(embedder: Embedder) -> None:
    ids = [WORDS.index(word) for word in ("car", "park", "##ed")]
    one, several, text = answers(
        embedder,
        {"input": ids, "model": "m"},
        {"input": [ids, ids], "model": "m"},
        {"input": "car parked", "model": "m"},
    )
    np.testing.assert_allclose(vectors(one), vectors(text), atol=1e-6)
    np.testing.assert_allclose(vectors(several)[1:], vectors(text), atol=1e-6)


def test_base64_holds_the_same_numbers(embedder: Embedder) -> None:
    numbers, encoded = answers(
        embedder,
        {"input": "car", "model": "m", "encoding_format": "float"},
        {"input": "car", "model": "m", "encoding_format": "base64", "dimensions": HIDDEN},
    )
    raw = base64.b64decode(encoded["body"]["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), vectors(numbers)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("body", "parameter", "code"),
    [
        (b"{", None, "invalid_json_line"),
        (b'{"unknown":' + b"[" * 100_000, "unknown", "unsupported_parameter"),
        (b'{"input":"\xff","model":"m"}', None, "invalid_json_line"),
        (b"", None, "invalid_json_line"),
        (b"[]", None, "invalid_value"),
        ({"model": "m"}, "input", "missing_parameter"),
        ({"input": "a"}, "model", "missing_parameter"),
        ({"input": "a", "model": "m", "precision": 8}, "precision", "unsupported_parameter"),
        ({"input": "a", "model": 5}, "model", "invalid_value"),
        ({"input": "", "model": "m"}, "input", "invalid_value"),
        ({"input": [], "model": "m"}, "input", "invalid_value"),
        ({"input": ["a", ""], "model": "m"}, "input", "invalid_value"),
        ({"input": ["a", 5], "model": "m"}, "input", "invalid_value"),
        ({"input": [[]], "model": "m"}, "input", "invalid_value"),
        ({"input": [len(WORDS)], "model": "m"}, "input", "invalid_value"),
        ({"input": [-1], "model": "m"}, "input", "invalid_value"),
        ({"input": [2**63], "model": "m"}, "input", "invalid_value"),
        ({"input": [True], "model": "m"}, "input", "invalid_value"),
        ({"input": ["a"] * 2049, "model": "m"}, "input", "invalid_value"),
        ({"input": "a", "model": "m", "dimensions": 5}, "dimensions", "invalid_value"),
        (
            {"input": "a", "model": "m", "encoding_format": "hex"},
            "encoding_format",
            "invalid_value",
        ),
    ],
)
def test_a_wrong_request_has_its_error_and_spoils_no_other(
    embedder: Embedder, body: object, parameter: str | None, code: str
) -> None:
    good = {"input": "car", "model": "m"}
    before, wrong, after = answers(embedder, good, body, good)
    assert vectors(before).shape == vectors(after).shape == (1, HIDDEN)
    error = wrong["body"]["error"]
    assert wrong["status_code"] == 400
    assert (error["param"], error["code"]) == (parameter, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_what_is_too_long_is_cut_as_the_model_was_made(embedder: Embedder) -> None:
    (answer,) = answers(embedder, {"input": LONG, "model": "m"})
    fitting = "park " * (POSITIONS - 2)
    np.testing.assert_allclose(vectors(answer), embedder.embed([fitting]), atol=1e-6)


def test_what_is_too_long_is_refused_where_the_manifest_says_so(folder: Path) -> None:
    strict = Embedder(folder, options={"truncate": 0})
    long, short = answers(
        strict, {"input": ["a", LONG], "model": "m"}, {"input": "a", "model": "m"}
    )
    assert long["status_code"] == 400
    assert long["body"]["error"]["code"] == "context_length_exceeded"
    assert vectors(short).shape == (1, HIDDEN)


def test_the_manifest_can_only_lower_the_length(folder: Path) -> None:
    assert Embedder(folder, options={"tokens_max": 5}).tokens_max == 5
    assert Embedder(folder, options={"tokens_max": 5000}).tokens_max == POSITIONS


def test_nothing_is_answered_with_nothing(embedder: Embedder) -> None:
    assert embedder.answer(b"", ENDPOINT) == (b"", 0)
    assert embedder.embed([]).shape == (0, HIDDEN)


def test_a_stopped_attempt_ends_between_batches(embedder: Embedder) -> None:
    asked = 0

    def is_stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    body = {"input": [LONG] * 200, "model": "m"}
    with pytest.raises(ModelFailed) as raised:
        embedder.answer(lines(body), ENDPOINT, is_stopped)
    assert raised.value.reason == Failure.STOPPED
    assert asked == 3


def test_a_model_that_gives_no_numbers_fails_the_attempt(tmp_path: Path) -> None:
    weights = small_weights()
    weights["embeddings.LayerNorm.bias"].fill(3e38)
    import_bert(publish(tmp_path / "in", weights), tmp_path / "out")
    with pytest.raises(ModelFailed) as raised:
        Embedder(tmp_path / "out").embed(["car"])
    assert raised.value.reason == Failure.RUNTIME_REFUSED


def test_another_number_of_threads_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = minilm_model(tmp_path_factory)
    texts = ["A car.", "Parked cars compute while their owners sleep. " * 20, "x"]
    one, two = Embedder(model.folder, 1).embed(texts), Embedder(model.folder, 2).embed(texts)
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_texts_that_mean_the_same_lie_near(tmp_path_factory: pytest.TempPathFactory) -> None:
    embedder = Embedder(minilm_model(tmp_path_factory).folder)
    near, same, far = embedder.embed(
        ["The car is being charged.", "The vehicle's battery is filling.", "I like soup."]
    )
    assert near @ same > near @ far + 0.3
