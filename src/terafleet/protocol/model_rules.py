"""What manifests and files of models must be like; gateway and car ask the same of them."""

import re
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from terafleet.protocol.manifest import Manifest, ManifestFile
from terafleet.protocol.model_files.gguf import check_gguf
from terafleet.protocol.model_files.onnx import check_onnx
from terafleet.protocol.model_files.refusal import ModelFileRefused
from terafleet.protocol.model_files.safetensors import check_safetensors
from terafleet.protocol.model_files.sniff import ModelFormat, sniff
from terafleet.protocol.openai import BATCH_ENDPOINTS

WEIGHTS_OF_RUNTIME = {"onnx": (".onnx", ".safetensors"), "llama": (".gguf",), "noop": ()}
"""The runtimes that there are, and how the names of their weights end."""

RUNTIMES = tuple(WEIGHTS_OF_RUNTIME)

FORMAT = 1
FILES_MAX = 64
FILE_BYTES_MAX = 64 * 1024**3
OPTIONS_MAX = 32
MEMORY_MB_MAX = 1024 * 1024
SOURCE_CHARACTERS_MAX = 1024
TEXT_BYTES_MAX = 64 * 1024 * 1024
"""The largest tokenizers are a third of it."""

_MODEL_NAME = re.compile(
    r"(?=.{1,128}\Z)[A-Za-z0-9][A-Za-z0-9._:-]*(/[A-Za-z0-9][A-Za-z0-9._:-]*)*"
)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_OPTION_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_FORMAT_OF_ENDING = {
    ".gguf": ModelFormat.GGUF,
    ".onnx": ModelFormat.ONNX,
    ".safetensors": ModelFormat.SAFETENSORS,
}
_CHECKS: dict[ModelFormat, Callable[[BinaryIO, int], object]] = {
    ModelFormat.GGUF: check_gguf,
    ModelFormat.ONNX: check_onnx,
    ModelFormat.SAFETENSORS: check_safetensors,
}
_JSON_ENDING, _TEXT_ENDING = ".json", ".txt"


class ManifestFault(msgspec.Struct, frozen=True):
    """What is wrong with a manifest: the field, and a sentence."""

    param: str
    message: str


def manifest_fault(manifest: Manifest) -> ManifestFault | None:
    """The first thing that is wrong with a manifest itself, or None; looks at no file."""
    for param, is_right, message in (
        ("format", manifest.format == FORMAT, f"The format must be {FORMAT}."),
        ("name", _fits(_MODEL_NAME, manifest.name),
         "A model's name has up to 128 letters, digits, and . _ : - / between them."),
        ("runtime", manifest.runtime in RUNTIMES, f"The runtime must be of {', '.join(RUNTIMES)}."),
        ("endpoints", _is_choice(manifest.endpoints, BATCH_ENDPOINTS),
         f"The endpoints must be some of {', '.join(BATCH_ENDPOINTS)}, each once."),
        ("memory_mb", 1 <= manifest.memory_mb <= MEMORY_MB_MAX,
         f"The memory must be from 1 to {MEMORY_MB_MAX} MB."),
        ("source", len(manifest.source) <= SOURCE_CHARACTERS_MAX and _is_plain(manifest.source),
         f"The source must be one line of up to {SOURCE_CHARACTERS_MAX} characters."),
        ("options", _are_options(manifest.options),
         f"There are at most {OPTIONS_MAX} options, words in lower case with numbers from 0 up."),
    ):  # fmt: skip
        if not is_right:
            return ManifestFault(f"manifest.{param}", message)
    return _files_fault(manifest)


def content_fault(body: BinaryIO, file: ManifestFile) -> str | None:
    """Why a file's content is not what its name says, in words, or None.

    `body` stands at its beginning and can seek. Weights: format and header; texts: all of it.
    """
    ending = _ending(file.name)
    expected = _FORMAT_OF_ENDING.get(ending)
    if expected is None:
        return _text_fault(body, file.size_bytes, is_json=ending == _JSON_ENDING)
    found = sniff(body, file.size_bytes)
    if isinstance(found, ModelFileRefused):
        return found.detail
    if found is not expected:
        return f"the name says {expected}, the content is {found}"
    body.seek(0)
    header = _CHECKS[found](body, file.size_bytes)
    return header.detail if isinstance(header, ModelFileRefused) else None


def _files_fault(manifest: Manifest) -> ManifestFault | None:
    param = "manifest.files"
    names = [file.name.lower() for file in manifest.files]
    if len(names) > FILES_MAX or len(set(names)) < len(names):
        message = f"There are at most {FILES_MAX} files, no two with the same name."
        return ManifestFault(param, message)
    for file in manifest.files:
        fault = _file_entry_fault(file)
        if fault:
            return ManifestFault(param, fault)
    weights = WEIGHTS_OF_RUNTIME[manifest.runtime]
    if weights and not any(_ending(name) in weights for name in names):
        endings = " or ".join(weights)
        message = f"The runtime {manifest.runtime} needs a file that ends in {endings}."
        return ManifestFault(param, message)
    return None


def _file_entry_fault(file: ManifestFile) -> str | None:
    if not _fits(_FILE_NAME, file.name):
        return "A file's name has up to 128 letters, digits, and . _ - after the first."
    if not _fits(_SHA256, file.sha256):
        return f"The sha256 of {file.name} must be 64 hex digits in lower case."
    ending = _ending(file.name)
    if ending not in (*_FORMAT_OF_ENDING, _JSON_ENDING, _TEXT_ENDING):
        known = ", ".join((*_FORMAT_OF_ENDING, _JSON_ENDING, _TEXT_ENDING))
        return f"The name {file.name} must end in one of {known}."
    size_bytes_max = FILE_BYTES_MAX if ending in _FORMAT_OF_ENDING else TEXT_BYTES_MAX
    if not 1 <= file.size_bytes <= size_bytes_max:
        return f"The size of {file.name} must be from 1 to {size_bytes_max} bytes."
    return None


def _text_fault(body: BinaryIO, size_bytes: int, *, is_json: bool) -> str | None:
    if size_bytes > TEXT_BYTES_MAX:
        return f"a text of more than {TEXT_BYTES_MAX} bytes"
    try:
        text = body.read().decode()
        if is_json:
            msgspec.json.decode(text)
    except UnicodeDecodeError:
        return "this is not text in UTF-8"
    except msgspec.DecodeError as error:
        return f"this is not JSON: {error}"
    except RecursionError:
        return "this is nested too deeply"
    return None


def _ending(name: str) -> str:
    return "." + name.lower().rpartition(".")[2]


def _fits(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.fullmatch(text) is not None


def _is_choice(chosen: tuple[str, ...], allowed: tuple[str, ...]) -> bool:
    return bool(chosen) and set(chosen) <= set(allowed) and len(set(chosen)) == len(chosen)


def _is_plain(text: str) -> bool:
    return not text or text.isprintable()


def _are_options(options: dict[str, int]) -> bool:
    return len(options) <= OPTIONS_MAX and all(
        _fits(_OPTION_NAME, name) and 0 <= value < 2**31 for name, value in options.items()
    )
