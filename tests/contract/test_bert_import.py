"""An imported encoder computes what its makers published, and odd models are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from terafleet.agent.runtime_host.embedder import Embedder
from terafleet.control.model_import.bert import (
    BertImport,
    ImportReason,
    ImportRefused,
    import_bert,
)
from terafleet.protocol.model_files.onnx import OnnxHeader, check_onnx
from tests.contract.bert_reference import ReferenceBert, unit
from tests.contract.models_on_disk import minilm_model, published_minilm
from tests.contract.small_bert import (
    CONFIG,
    HEADS,
    HIDDEN,
    POSITIONS,
    TOKENIZER,
    add_pooling,
    publish,
    small_weights,
)

TEXTS = ["Car parked.", "a", "charge charge parked car a car . . parked", "unknown words"]
# "Car parked." as the tiny vocabulary numbers it, between the special tokens.
FIRST_TOKENS = [2, 4, 5, 6, 9, 3]


def imported(folder: Path, target: Path) -> BertImport:
    """What an import made."""
    outcome = import_bert(folder, target)
    assert isinstance(outcome, BertImport), outcome
    return outcome


def refusal_of(folder: Path, target: Path) -> ImportRefused:
    """Why an import made nothing."""
    outcome = import_bert(folder, target)
    assert isinstance(outcome, ImportRefused), outcome
    assert not target.exists()
    return outcome


def test_a_small_model_gives_the_means_of_the_formula(tmp_path: Path) -> None:
    weights = small_weights()
    made = imported(publish(tmp_path / "in", weights), tmp_path / "out")
    assert (made.dimensions, made.tokens_max) == (HIDDEN, POSITIONS)
    assert sorted(made.files) == sorted(file.name for file in (tmp_path / "out").iterdir())
    states = ReferenceBert(weights, HEADS, 1e-12).states(FIRST_TOKENS)
    vector = Embedder(tmp_path / "out").embed([TEXTS[0]])[0]
    np.testing.assert_allclose(vector, unit(states.mean(axis=0)), atol=1e-5)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    imported(publish(tmp_path / "in", small_weights()), tmp_path / "out")
    embedder = Embedder(tmp_path / "out")
    together = embedder.embed(TEXTS)
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    "modules", [("Transformer", "Pooling", "Normalize"), ("Transformer", "Pooling")]
)
def test_the_first_token_can_stand_for_the_text(tmp_path: Path, modules: tuple[str, ...]) -> None:
    weights = small_weights()
    folder = publish(tmp_path / "in", weights)
    add_pooling(folder, "cls_token", *modules)
    imported(folder, tmp_path / "out")
    first = ReferenceBert(weights, HEADS, 1e-12).states(FIRST_TOKENS)[0]
    expected = unit(first) if "Normalize" in modules else first
    vector = Embedder(tmp_path / "out").embed([TEXTS[0]])[0]
    np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_weights_of_half_precision_and_other_heads_are_read(tmp_path: Path) -> None:
    weights = {name: values.astype(np.float16) for name, values in small_weights().items()}
    extra = {"pooler.dense.weight": np.zeros((HIDDEN, HIDDEN), np.float16)}
    folder = publish(tmp_path / "in", {**weights, **extra}, prefix="bert.")
    imported(folder, tmp_path / "out")
    states = ReferenceBert(weights, HEADS, 1e-12).states(FIRST_TOKENS)
    vector = Embedder(tmp_path / "out").embed([TEXTS[0]])[0]
    np.testing.assert_allclose(vector, unit(states.mean(axis=0)), atol=1e-5)


def test_the_file_is_well_formed_and_standard(tmp_path: Path) -> None:
    imported(publish(tmp_path / "in", small_weights()), tmp_path / "out")
    path = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    with path.open("rb") as file:
        header = check_onnx(file, path.stat().st_size)
    assert isinstance(header, OnnxHeader), header


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    folder = publish(tmp_path / "in", small_weights())
    imported(folder, tmp_path / "one")
    imported(folder, tmp_path / "two")
    for name in ("model.onnx", "tokenizer.json", "terafleet.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_minilm_agrees_with_the_formula(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = minilm_model(tmp_path_factory)
    weights = load_file(published_minilm() / "model.safetensors")
    weights.pop("embeddings.position_ids", None)
    tokenizer = Tokenizer.from_file(str(published_minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    texts = ["A parked car computes.", "Ein geparktes Auto rechnet manchmal, öfter.", "x"]
    vectors = Embedder(model.folder).embed(texts)
    reference = ReferenceBert(weights, 12, 1e-12)
    for text, vector in zip(texts, vectors, strict=True):
        states = reference.states(tokenizer.encode(text).ids)
        expected = unit(states.mean(axis=0))
        np.testing.assert_allclose(vector, expected, atol=1e-6)
        assert float(vector @ expected) > 1 - 1e-6


def test_minilm_reads_as_its_card_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    embedder = Embedder(minilm_model(tmp_path_factory).folder)
    assert (embedder.dimensions, embedder.tokens_max) == (384, 256)
    # The first values for this text are published in many places.
    vector = embedder.embed(["This is an example sentence"])[0]
    np.testing.assert_allclose(vector[:3], [0.0677, 0.0635, 0.0487], atol=1e-4)


def change_config(**fields: Any) -> Callable[[Path], None]:
    """Other values in `config.json`."""

    def change(folder: Path) -> None:
        (folder / "config.json").write_bytes(msgspec.json.encode({**CONFIG, **fields}))

    return change


def change_weights(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Other tensors."""

    def apply(folder: Path) -> None:
        weights: dict[str, Any] = dict(small_weights())
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    """Another file, or another content."""

    def apply(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return apply


def tokenizer_with(word: str, number: int) -> bytes:
    """The tokenizer with one more word."""
    model = TOKENIZER["model"]
    return msgspec.json.encode(
        {**TOKENIZER, "model": {**model, "vocab": {**model["vocab"], word: number}}}
    )


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_config(model_type="roberta"), ImportReason.CONFIG_UNSUPPORTED),
        (change_config(hidden_act="relu"), ImportReason.CONFIG_UNSUPPORTED),
        (change_config(position_embedding_type="relative_key"), ImportReason.CONFIG_UNSUPPORTED),
        (change_config(is_decoder=True), ImportReason.CONFIG_UNSUPPORTED),
        (change_config(pruned_heads={"0": [1]}), ImportReason.CONFIG_UNSUPPORTED),
        (change_config(num_attention_heads=5), ImportReason.CONFIG_UNSUPPORTED),
        (change_config(num_hidden_layers=0), ImportReason.CONFIG_UNSUPPORTED),
        (change_config(hidden_size="24"), ImportReason.CONFIG_UNSUPPORTED),
        (change_config(num_hidden_layers=3), ImportReason.TENSOR_MISSING),
        (change_config(num_hidden_layers=1), ImportReason.TENSOR_UNKNOWN),
        (change_config(intermediate_size=41), ImportReason.TENSOR_UNUSABLE),
        (change_config(vocab_size=9), ImportReason.TOKENIZER_UNSUPPORTED),
        (change_weights(lambda w: w.pop(QUERY)), ImportReason.TENSOR_MISSING),
        (
            change_weights(lambda w: w.update({QUERY: w[QUERY].astype(np.float64)})),
            ImportReason.TENSOR_UNUSABLE,
        ),
        (change_weights(lambda w: w[QUERY].fill(np.nan)), ImportReason.TENSOR_UNUSABLE),
        (write("config.json", b"["), ImportReason.CONFIG_UNSUPPORTED),
        (write("config.json", b'{"a":' + b"[" * 100_000), ImportReason.CONFIG_UNSUPPORTED),
        (write("model.safetensors", b"nothing"), ImportReason.FILE_UNREADABLE),
        (write("tokenizer.json", b"{}"), ImportReason.TOKENIZER_UNSUPPORTED),
        (write("tokenizer.json", tokenizer_with("b", 10)), ImportReason.TOKENIZER_UNSUPPORTED),
        (
            write("sentence_bert_config.json", b'{"do_lower_case":true}'),
            ImportReason.CONFIG_UNSUPPORTED,
        ),
        (
            write("1_Pooling/config.json", b'{"pooling_mode_max_tokens":true}'),
            ImportReason.POOLING_UNSUPPORTED,
        ),
        (write("1_Pooling/config.json", b"{}"), ImportReason.POOLING_UNSUPPORTED),
        (
            write("modules.json", b'[{"type":"a.Transformer"},{"type":"a.Dense"}]'),
            ImportReason.POOLING_UNSUPPORTED,
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), ImportReason.FILE_UNREADABLE),
    ],
)
def test_a_model_that_would_be_misread_is_refused(
    tmp_path: Path, change: Callable[[Path], None], reason: ImportReason
) -> None:
    folder = publish(tmp_path / "in", small_weights())
    change(folder)
    assert refusal_of(folder, tmp_path / "out").reason == reason
