"""Makes an ONNX sentence encoder out of a published BERT model, without its training library.

It doesn't check the form of the files it reads; whoever calls it does that first.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
import onnx
import safetensors

from terafleet.control.model_import.bert_graph import Array, BertShape, bert_graph

FILES: Final = ("model.onnx", "tokenizer.json", "terafleet.json")
"""What an imported model consists of."""

# Heads for other purposes than sentence vectors, and a table of the numbers 0, 1, 2 …
_UNUSED_TENSORS = ("pooler.", "cls.", "embeddings.position_ids")
_USABLE_TYPES = ("F32", "F16")
# The runtime with its libraries, and the intermediate results of its largest batch.
_RUNTIME_MB, _BATCH_MB = 64, 64
_MIB = 1024 * 1024
_FLOAT_BYTES = 4
_DETAIL_CHARACTERS_MAX = 400
_JSON_BYTES_MAX = 64 * 1024 * 1024

_Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_StructT = TypeVar("_StructT", bound=msgspec.Struct)


class ImportReason(StrEnum):
    """Why a model is not taken."""

    FILE_UNREADABLE = "file_unreadable"
    CONFIG_UNSUPPORTED = "config_unsupported"
    POOLING_UNSUPPORTED = "pooling_unsupported"
    TENSOR_MISSING = "tensor_missing"
    TENSOR_UNKNOWN = "tensor_unknown"
    TENSOR_UNUSABLE = "tensor_unusable"
    TOKENIZER_UNSUPPORTED = "tokenizer_unsupported"


class ImportRefused(msgspec.Struct, frozen=True):
    """A model that is not taken: the reason, and a sentence for a person."""

    reason: ImportReason
    detail: str


class BertImport(msgspec.Struct, frozen=True):
    """What was made: the encoder's figures, its `files`, and what a manifest needs to know.

    `options` are for the runtime `onnx`. `memory_mb` is an estimate for one attempt at a time.
    """

    dimensions: int
    tokens_max: int
    files: tuple[str, ...]
    options: dict[str, int]
    memory_mb: int


class _Config(msgspec.Struct, frozen=True):
    """`config.json`: what the graph is written for; fields that don't matter to it are ignored."""

    model_type: Literal["bert"]
    hidden_act: Literal["gelu"]
    hidden_size: _Positive
    intermediate_size: _Positive
    num_attention_heads: _Positive
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=128)]
    vocab_size: _Positive
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=3, le=1_000_000)]
    type_vocab_size: _Positive
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0, lt=1e-2)] = 1e-12
    position_embedding_type: Literal["absolute"] | None = "absolute"
    pruned_heads: dict[str, Any] = {}
    is_decoder: bool = False
    add_cross_attention: bool = False


class _Pooling(msgspec.Struct, frozen=True):
    """`1_Pooling/config.json`."""

    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False


class _Module(msgspec.Struct, frozen=True):
    """An entry of `modules.json`."""

    type: str


class _Modules(msgspec.Struct, frozen=True):
    """`modules.json`, wrapped: what a text goes through."""

    modules: list[_Module]


class _Reading(msgspec.Struct, frozen=True):
    """`sentence_bert_config.json`: how texts are read."""

    max_seq_length: _Positive | None = None
    do_lower_case: bool = False


class _Description(msgspec.Struct, frozen=True):
    """`terafleet.json`, as the runtime `onnx` reads it."""

    format: int
    dimensions: int
    tokens_max: int
    truncate: int


class _RefusedError(Exception):
    """Ends an import; `import_bert` turns it into its `ImportRefused`."""

    def __init__(self, reason: ImportReason, detail: str) -> None:
        super().__init__(detail)
        self.refusal = ImportRefused(reason, detail[:_DETAIL_CHARACTERS_MAX])


def import_bert(folder: Path, target: Path) -> BertImport | ImportRefused:
    """Write the encoder of the published model in `folder` as `FILES` into `target`.

    `folder` holds `config.json`, `model.safetensors` and `tokenizer.json`, and may hold
    `modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json`; without the first
    two the vectors are means of unit length. What is longer than the model reads is cut, as the
    published library does. Raises OSError where `target` can't be written.
    """
    try:
        config = _config(folder)
        tokens_max = _tokens_max(folder, config)
        shape = _shape(folder, config)
        tokenizer = _tokenizer(folder / "tokenizer.json", config.vocab_size)
        weights = _weights(folder / "model.safetensors", config)
    except _RefusedError as error:
        return error.refusal
    target.mkdir(parents=True, exist_ok=True)
    onnx.save_model(bert_graph(shape, weights), target / "model.onnx")
    (target / "tokenizer.json").write_bytes(tokenizer)
    description = _Description(1, config.hidden_size, tokens_max, truncate=1)
    (target / "terafleet.json").write_bytes(msgspec.json.encode(description))
    return BertImport(
        dimensions=config.hidden_size,
        tokens_max=tokens_max,
        files=FILES,
        options={"tokens_max": tokens_max, "truncate": 1},
        memory_mb=_memory_mb(weights),
    )


def _config(folder: Path) -> _Config:
    config = _required(folder / "config.json", _Config)
    problems = {
        "heads were pruned": bool(config.pruned_heads),
        "it is a decoder": config.is_decoder or config.add_cross_attention,
        "the heads don't divide the width": config.hidden_size % config.num_attention_heads != 0,
    }
    for problem, is_there in problems.items():
        if is_there:
            raise _RefusedError(ImportReason.CONFIG_UNSUPPORTED, f"config.json: {problem}")
    return config


def _tokens_max(folder: Path, config: _Config) -> int:
    reading = _optional(folder / "sentence_bert_config.json", _Reading) or _Reading()
    if reading.do_lower_case:
        detail = "sentence_bert_config.json: do_lower_case is not supported"
        raise _RefusedError(ImportReason.CONFIG_UNSUPPORTED, detail)
    positions = config.max_position_embeddings
    return min(reading.max_seq_length or positions, positions)


def _shape(folder: Path, config: _Config) -> BertShape:
    pooling, is_normalized = _pooling(folder)
    return BertShape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        hidden=config.hidden_size,
        layer_norm_epsilon=config.layer_norm_eps,
        pooling=pooling,
        is_normalized=is_normalized,
    )


def _pooling(folder: Path) -> tuple[Literal["mean", "cls"], bool]:
    """How tokens become one vector, and whether it is brought to unit length."""
    modules = _modules(folder / "modules.json")
    settings = _optional(folder / "1_Pooling" / "config.json", _Pooling)
    is_normalized = modules is None or "Normalize" in modules
    if settings is None:
        return "mean", is_normalized
    modes = [name for name, is_chosen in msgspec.structs.asdict(settings).items() if is_chosen]
    if modes == ["pooling_mode_mean_tokens"]:
        return "mean", is_normalized
    if modes == ["pooling_mode_cls_token"]:
        return "cls", is_normalized
    detail = f"1_Pooling/config.json: {', '.join(modes) or 'no mode that is known'}"
    raise _RefusedError(ImportReason.POOLING_UNSUPPORTED, detail)


def _modules(path: Path) -> list[str] | None:
    if not path.exists():
        return None
    modules = _decoded(path, b'{"modules":' + _bytes(path) + b"}", _Modules).modules
    names = [module.type.rpartition(".")[2] for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        detail = f"modules.json: {', '.join(names)}"
        raise _RefusedError(ImportReason.POOLING_UNSUPPORTED, detail)
    return names


def _tokenizer(path: Path, vocabulary: int) -> bytes:
    """The tokenizer without the padding and cutting that it was saved with."""
    try:
        tokenizer = msgspec.json.decode(_bytes(path), type=dict[str, Any])
        entries = tokenizer["model"]["vocab"]
        ids = list(entries.values()) if isinstance(entries, dict) else list(range(len(entries)))
        ids += [token["id"] for token in tokenizer.get("added_tokens", [])]
        highest = max(ids)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        detail = f"tokenizer.json: {error!r}"
        raise _RefusedError(ImportReason.TOKENIZER_UNSUPPORTED, detail) from error
    if highest >= vocabulary:
        detail = f"tokenizer.json: token {highest} of a vocabulary of {vocabulary}"
        raise _RefusedError(ImportReason.TOKENIZER_UNSUPPORTED, detail)
    return msgspec.json.encode({**tokenizer, "padding": None, "truncation": None})


def _weights(path: Path, config: _Config) -> dict[str, Array]:
    """The tensors of the graph by name, as 32-bit numbers, every shape as the config says."""
    shapes = _expected_shapes(config)
    weights: dict[str, Array] = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for stored_name in file.keys():  # noqa: SIM118 - the file is no mapping.
                name = stored_name.removeprefix("bert.")
                if name in shapes:
                    weights[name] = _weight(file, stored_name, shapes[name])
                elif not name.startswith(_UNUSED_TENSORS):
                    raise _RefusedError(ImportReason.TENSOR_UNKNOWN, stored_name)
    except (OSError, safetensors.SafetensorError) as error:
        detail = f"{path.name}: {error}"
        raise _RefusedError(ImportReason.FILE_UNREADABLE, detail) from error
    for name in shapes:
        if name not in weights:
            raise _RefusedError(ImportReason.TENSOR_MISSING, name)
    return weights


def _weight(file: Any, name: str, shape: tuple[int, ...]) -> Array:
    stored = file.get_slice(name)
    if stored.get_dtype() not in _USABLE_TYPES or tuple(stored.get_shape()) != shape:
        found = f"{stored.get_dtype()} {tuple(stored.get_shape())}"
        detail = f"{name} is {found}, not {' or '.join(_USABLE_TYPES)} {shape}"
        raise _RefusedError(ImportReason.TENSOR_UNUSABLE, detail)
    values: Array = file.get_tensor(name).astype(np.float32)
    if not np.isfinite(values).all():
        raise _RefusedError(ImportReason.TENSOR_UNUSABLE, f"{name} has values that are not finite")
    return values


def _expected_shapes(config: _Config) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    linears = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    for layer in range(config.num_hidden_layers):
        for name, shape in linears.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (hidden,)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (hidden,)
    return shapes


def _memory_mb(weights: Mapping[str, Array]) -> int:
    """The file and its weights stand in memory together while the model is loaded."""
    weights_mb = sum(values.size for values in weights.values()) * _FLOAT_BYTES // _MIB
    return _RUNTIME_MB + _BATCH_MB + 2 * weights_mb


def _required(path: Path, kind: type[_StructT]) -> _StructT:
    return _decoded(path, _bytes(path), kind)


def _optional(path: Path, kind: type[_StructT]) -> _StructT | None:
    return _required(path, kind) if path.exists() else None


def _decoded(path: Path, raw: bytes, kind: type[_StructT]) -> _StructT:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        detail = f"{path.name}: {error}"
        raise _RefusedError(ImportReason.CONFIG_UNSUPPORTED, detail) from error


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_JSON_BYTES_MAX + 1)
    except OSError as error:
        detail = f"{path.name}: {error.strerror}"
        raise _RefusedError(ImportReason.FILE_UNREADABLE, detail) from error
    if len(raw) > _JSON_BYTES_MAX:
        detail = f"{path.name}: more than {_JSON_BYTES_MAX} bytes"
        raise _RefusedError(ImportReason.FILE_UNREADABLE, detail)
    return raw
