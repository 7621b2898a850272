"""Writes a tiny BERT with random weights as it would be published."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "car", "park", "##ed", "charge", "a", "."]
HIDDEN, INNER, HEADS, LAYERS, POSITIONS = 24, 40, 3, 2, 16

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "vocab_size": len(WORDS),
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "use_cache": True,
}

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 12},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    },
    "added_tokens": [],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
        },
    },
    "decoder": None,
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {word: number for number, word in enumerate(WORDS)},
    },
}

Weights = dict[str, npt.NDArray[Any]]


def small_weights(seed: int = 7) -> Weights:
    """Weights of the right shapes; layers differ, so that a mix-up is seen."""
    chance = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    normals = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{name}.attention.{part}.weight"] = (HIDDEN, HIDDEN)
            shapes[f"{name}.attention.{part}.bias"] = (HIDDEN,)
        shapes[f"{name}.intermediate.dense.weight"] = (INNER, HIDDEN)
        shapes[f"{name}.intermediate.dense.bias"] = (INNER,)
        shapes[f"{name}.output.dense.weight"] = (HIDDEN, INNER)
        shapes[f"{name}.output.dense.bias"] = (HIDDEN,)
        normals += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name in normals:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (HIDDEN,)
    return {
        name: chance.normal(0.0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()
    }


def publish(folder: Path, weights: Weights, prefix: str = "", **config: Any) -> Path:
    """Write the model into a new folder as its makers would; `config` changes single fields."""
    folder.mkdir(parents=True)
    settings = {**CONFIG, **config}
    (folder / "config.json").write_bytes(msgspec.json.encode(settings))
    (folder / "tokenizer.json").write_bytes(msgspec.json.encode(TOKENIZER))
    named = {f"{prefix}{name}": values for name, values in weights.items()}
    save_file(named, folder / "model.safetensors")
    return folder


def add_pooling(folder: Path, mode: str, *modules: str) -> None:
    """Write what a library for sentences adds: how to pool, and what texts go through."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_bytes(
        msgspec.json.encode({"word_embedding_dimension": HIDDEN, f"pooling_mode_{mode}": True})
    )
    entries = [{"idx": 0, "type": f"sentence_transformers.models.{name}"} for name in modules]
    (folder / "modules.json").write_bytes(msgspec.json.encode(entries))
