"""Finds out what kind of model lies at a path, checks its files strictly, and plans its manifest.

Nothing is sent from here, and nothing of a model is run.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from terafleet.cli.failure import CommandFailed, files_mapped
from terafleet.cli.words import MODEL_FILE_ADVICE
from terafleet.protocol.manifest import Manifest, ManifestFile
from terafleet.protocol.model_files.gguf import GgufHeader, GgufPooling, check_gguf
from terafleet.protocol.model_files.onnx import OnnxHeader, check_onnx
from terafleet.protocol.model_files.refusal import ModelFileRefused
from terafleet.protocol.model_files.safetensors import SafetensorsHeader, check_safetensors
from terafleet.protocol.model_files.sniff import ModelFormat, sniff
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS

MODEL_FILE, TOKENIZER_FILE, DESCRIPTION_FILE = "model.onnx", "tokenizer.json", "terafleet.json"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"

CONTEXT_TOKENS = 2_048
"""What a language model reads at most unless it is asked otherwise."""

TOKENS_MIN = 8
"""An encoder that reads less reads little more than its special tokens."""

# What runs beside a model, and the intermediate results of its largest batch.
_RUNTIME_MB, _BATCH_MB = 64, 64
_FLOAT_BYTES, _CACHE_BYTES = 4, 2
_MIB = 1024 * 1024
_TEXT_BYTES_MAX = 64 * _MIB
_ONNX_INPUTS, _ONNX_OUTPUT = {"input_ids", "attention_mask"}, "embedding"
_WEIGHT_ENDINGS = (
    *(".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".keras"),
    *(".tflite", ".ort", ".onnx", ".gguf", ".ggml", ".safetensors"),
)
_SHARDS = "*-of-*.safetensors"

# Architectures of llama.cpp that read a text as a whole and can't write one.
_ENCODERS = frozenset(
    {"bert", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2",
     "jina-bert-v3", "eurobert", "gemma-embedding", "t5encoder"}
)  # fmt: skip
# The numbers that llama.cpp gives to the ways of pooling.
_POOLING_NUMBERS = {GgufPooling.MEAN: 1, GgufPooling.CLASSIFIER: 2, GgufPooling.LAST: 3}


class Wishes(msgspec.Struct, frozen=True):
    """What the person wants otherwise than the model says; 0 and False want nothing."""

    tokens_max: int = 0
    context_tokens: int = 0
    memory_mb: int = 0
    embeddings: bool = False


class ModelPlan(msgspec.Struct, frozen=True):
    """What is to be published but its name, where its files lie, and figures for a person."""

    runtime: str
    endpoints: tuple[str, ...]
    memory_mb: int
    options: dict[str, int]
    paths: dict[str, Path]
    source: str
    facts: tuple[tuple[str, str], ...]

    def manifest(self, name: str, files: tuple[ManifestFile, ...]) -> Manifest:
        """The manifest with a name and the digests of its files."""
        return Manifest(
            name=name,
            runtime=self.runtime,
            endpoints=self.endpoints,
            memory_mb=self.memory_mb,
            files=files,
            options=self.options,
            source=self.source,
        )


class EncoderDescription(msgspec.Struct, frozen=True):
    """`terafleet.json` of an encoder, as the runtime `onnx` reads it."""

    dimensions: int
    tokens_max: int
    truncate: int
    format: int = 1


def plan_of_file(path: Path, wishes: Wishes) -> ModelPlan:
    """The plan for a model that is one file. Raises CommandFailed."""
    found = format_of(path)
    if found is ModelFormat.GGUF:
        return _gguf_plan(path, wishes)
    message = (
        f"{path.name} is an {found.upper()} file."
        if found is ModelFormat.ONNX
        else (f"{path.name} is a file of weights.")
    )
    advice = "Give the folder that it lies in; its tokenizer and description belong to the model."
    raise CommandFailed("folder_needed", message, advice)


def plan_of_encoder(folder: Path, wishes: Wishes, source: str = "") -> ModelPlan:
    """The plan for a folder with an encoder in the form of the runtime. Raises CommandFailed."""
    header = checked_onnx(folder / MODEL_FILE)
    if set(header.inputs) != _ONNX_INPUTS or _ONNX_OUTPUT not in header.outputs:
        inputs, outputs = ", ".join(header.inputs), ", ".join(header.outputs)
        message = f"{MODEL_FILE} goes from {inputs} to {outputs}."
        advice = f"Export a graph from input_ids and attention_mask to {_ONNX_OUTPUT}."
        raise CommandFailed("graph_unsupported", message, advice)
    _check_json(folder / TOKENIZER_FILE)
    description = _description(folder / DESCRIPTION_FILE)
    tokens_max = _tokens_max(wishes, description.tokens_max)
    weights_mb = header.initializer_bytes // _MIB
    return ModelPlan(
        runtime="onnx",
        endpoints=(EMBEDDINGS,),
        memory_mb=wishes.memory_mb or _RUNTIME_MB + _BATCH_MB + 2 * weights_mb,
        options={"tokens_max": tokens_max, "truncate": description.truncate},
        paths={name: folder / name for name in (MODEL_FILE, TOKENIZER_FILE, DESCRIPTION_FILE)},
        source=source,
        facts=(
            ("dimensions", str(description.dimensions)),
            ("reads", f"{tokens_max} tokens"),
        ),
    )


def is_encoder_folder(folder: Path) -> bool:
    """Whether a folder holds a model in the form of the runtime `onnx`."""
    return (folder / MODEL_FILE).is_file() and (folder / DESCRIPTION_FILE).is_file()


def check_published_folder(folder: Path) -> None:
    """Check that a folder holds a model as its makers publish it. Raises CommandFailed."""
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise _no_model(folder)
    checked_safetensors(weights)
    for name in (CONFIG_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            advice = f"A model folder has {CONFIG_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE}."
            raise CommandFailed("file_missing", f"{folder} has no {name}.", advice)
        _check_json(folder / name)


def format_of(path: Path) -> ModelFormat:
    """The format that a file has by its content. Raises CommandFailed."""
    with _opened(path) as (file, size_bytes):
        found = sniff(file, size_bytes)
    if isinstance(found, ModelFileRefused):
        raise refused(path, found)
    return found


def checked_safetensors(path: Path) -> SafetensorsHeader:
    """The header of a file of weights. Raises CommandFailed."""
    _check_is(path, ModelFormat.SAFETENSORS)
    with _opened(path) as (file, size_bytes):
        header = check_safetensors(file, size_bytes)
    if isinstance(header, ModelFileRefused):
        raise refused(path, header)
    return header


def checked_onnx(path: Path) -> OnnxHeader:
    """The header of a graph. Raises CommandFailed."""
    _check_is(path, ModelFormat.ONNX)
    with _opened(path) as (file, size_bytes):
        header = check_onnx(file, size_bytes)
    if isinstance(header, ModelFileRefused):
        raise refused(path, header)
    return header


def refused(path: Path, refusal: ModelFileRefused) -> CommandFailed:
    """A refused file as the failure of a command."""
    message = f"{path.name} is refused: {refusal.detail}."
    return CommandFailed(refusal.reason, message, MODEL_FILE_ADVICE.get(refusal.reason, ""))


def _gguf_plan(path: Path, wishes: Wishes) -> ModelPlan:
    with _opened(path) as (file, size_bytes):
        header = check_gguf(file, size_bytes)
    if isinstance(header, ModelFileRefused):
        raise refused(path, header)
    context_tokens = _context_tokens(wishes, header)
    endpoints, options = _abilities(header, wishes)
    options["context_tokens"] = context_tokens
    memory_mb = wishes.memory_mb or _gguf_memory_mb(header, size_bytes, context_tokens)
    return ModelPlan(
        runtime="llama",
        endpoints=endpoints,
        memory_mb=memory_mb,
        options=options,
        paths={"model.gguf": path},
        source=header.name or "",
        facts=(
            ("architecture", header.architecture),
            ("parameters", f"{header.parameters:,}"),
            ("reads", f"{context_tokens} tokens"),
        ),
    )


def _abilities(header: GgufHeader, wishes: Wishes) -> tuple[tuple[str, ...], dict[str, int]]:
    """The endpoints that a language model serves, and the options that this takes."""
    if header.pooling is GgufPooling.RANK:
        message = "This model ranks texts, and there is no endpoint for that yet."
        raise CommandFailed("model_unsupported", message)
    is_encoder = header.architecture in _ENCODERS or header.pooling in _POOLING_NUMBERS
    if is_encoder or wishes.embeddings:
        pooling = _POOLING_NUMBERS.get(header.pooling or GgufPooling.MEAN, 1)
        options = {"embeddings": 1, "pooling": pooling}
    else:
        options = {}
    writes = () if is_encoder else (COMPLETIONS,)
    chats = (CHAT_COMPLETIONS,) if writes and header.has_chat_template else ()
    embeds = (EMBEDDINGS,) if options else ()
    return (*embeds, *writes, *chats), options


def _gguf_memory_mb(header: GgufHeader, size_bytes: int, context_tokens: int) -> int:
    """The file, and for each token of the context a key and a value of every layer.

    Models that share keys between heads need less than this; they say so nowhere that all agree.
    """
    width, layers = header.embedding_length or 0, header.block_count or 0
    cache_bytes = context_tokens * 2 * width * layers * _CACHE_BYTES
    logits_bytes = (header.vocabulary_size or 0) * _FLOAT_BYTES * 512
    return _RUNTIME_MB + -(-(size_bytes + cache_bytes + logits_bytes) // _MIB)


def _context_tokens(wishes: Wishes, header: GgufHeader) -> int:
    if wishes.tokens_max:
        message = "--tokens-max is for encoders; a GGUF file has --context-tokens."
        raise CommandFailed("option_unsupported", message)
    limit = header.context_length or max(wishes.context_tokens, CONTEXT_TOKENS)
    if wishes.context_tokens > limit:
        message = f"The model reads {limit} tokens at most, not {wishes.context_tokens}."
        raise CommandFailed("option_unsupported", message)
    return wishes.context_tokens or min(limit, CONTEXT_TOKENS)


def _tokens_max(wishes: Wishes, limit: int) -> int:
    if wishes.context_tokens or wishes.embeddings:
        message = "--context-tokens and --embeddings are for GGUF files; this is an encoder."
        raise CommandFailed("option_unsupported", message)
    if wishes.tokens_max > limit:
        message = f"The model reads {limit} tokens at most, not {wishes.tokens_max}."
        raise CommandFailed("option_unsupported", message)
    return wishes.tokens_max or limit


def _description(path: Path) -> EncoderDescription:
    try:
        with files_mapped():
            description = msgspec.json.decode(path.read_bytes(), type=EncoderDescription)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandFailed("description_invalid", f"{path.name}: {error}.") from error
    if description.format != 1 or description.tokens_max < 1 or description.truncate not in (0, 1):
        message = f"{path.name} describes no encoder of this version."
        raise CommandFailed("description_invalid", message)
    return description


def _check_json(path: Path) -> None:
    with _opened(path) as (file, size_bytes):
        body = file.read(_TEXT_BYTES_MAX + 1) if size_bytes <= _TEXT_BYTES_MAX else b""
    try:
        msgspec.json.decode(body.decode(), type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{path.name} is not JSON: {error}."
        raise CommandFailed("malformed", message, MODEL_FILE_ADVICE["malformed"]) from error


def _check_is(path: Path, wanted: ModelFormat) -> None:
    found = format_of(path)
    if found is not wanted:
        message = f"The name of {path.name} says {wanted}, its content is {found}."
        raise CommandFailed("name_deceives", message)


def _no_model(folder: Path) -> CommandFailed:
    """Why there is no model in a folder, by what there is instead."""
    if any(folder.glob(_SHARDS)):
        message = f"The weights in {folder} are split over several files."
        return CommandFailed("sharded", message, f"Merge them into one {WEIGHTS_FILE}.")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in _WEIGHT_ENDINGS:
            with _opened(path) as (file, size_bytes):
                found = sniff(file, size_bytes)
            if isinstance(found, ModelFileRefused):
                return refused(path, found)
            if found is ModelFormat.GGUF:
                advice = f"Give the file itself: {path}"
                return CommandFailed("file_needed", f"{folder} holds a GGUF file.", advice)
    message = f"{folder} holds no model."
    advice = (
        f"A folder needs {CONFIG_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE}, or {MODEL_FILE}, "
        f"{TOKENIZER_FILE} and {DESCRIPTION_FILE}; a GGUF file is given itself."
    )
    return CommandFailed("no_model", message, advice)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size in bytes. Raises CommandFailed when it can't be read."""
    with files_mapped(), path.open("rb") as file:
        yield file, path.stat().st_size
