"""Decides whether a manifest and its files make a model that may be sent to cars."""

import io
import re
from collections.abc import Callable
from typing import BinaryIO, cast

import msgspec

from terafleet.control.ports import ObjectMissing
from terafleet.protocol.admin import RUNTIMES
from terafleet.protocol.manifest import Manifest, ManifestFile
from terafleet.protocol.model_files.gguf import check_gguf
from terafleet.protocol.model_files.onnx import check_onnx
from terafleet.protocol.model_files.refusal import ModelFileRefused
from terafleet.protocol.model_files.safetensors import check_safetensors
from terafleet.protocol.model_files.sniff import ModelFormat, sniff
from terafleet.protocol.openai import BATCH_ENDPOINTS

FORMAT = 1
FILES_MAX = 64
FILE_BYTES_MAX = 64 * 1024**3
OPTIONS_MAX = 32
MEMORY_MB_MAX = 1024 * 1024
SOURCE_CHARACTERS_MAX = 1024
TEXT_BYTES_MAX = 64 * 1024 * 1024
"""The largest tokenizers are a third of it."""

READ_BYTES_MAX = 64 * 1024

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
_WEIGHTS_OF_RUNTIME = {"llama": (".gguf",), "onnx": (".onnx", ".safetensors"), "noop": ()}

ReadNow = Callable[[str, int, int], bytes]
"""`Objects.read_now`: name, offset and length; it may be called in a thread."""


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


def file_fault(file: ManifestFile, read_now: ReadNow) -> str | None:
    """Why a stored file is not taken, in words, or None. Blocks: for a thread."""
    body = cast(BinaryIO, io.BufferedReader(_ObjectReader(file, read_now), READ_BYTES_MAX))
    ending = _ending(file.name)
    expected = _FORMAT_OF_ENDING.get(ending)
    if expected is None:
        fault = _text_fault(body.read(), is_json=ending == _JSON_ENDING)
        return fault and f"{file.name}: {fault}"
    found = sniff(body, file.size_bytes)
    if isinstance(found, ModelFileRefused):
        return f"{file.name}: {found.detail}"
    if found is not expected:
        return f"{file.name}: the name says {expected}, the content is {found}"
    header = _CHECKS[found](body, file.size_bytes)
    return f"{file.name}: {header.detail}" if isinstance(header, ModelFileRefused) else None


class _ObjectReader(io.RawIOBase):
    """A stored object as a file that is read from any place."""

    def __init__(self, file: ManifestFile, read_now: ReadNow) -> None:
        super().__init__()
        self._name = f"model/{file.sha256}"
        self._size_bytes = file.size_bytes
        self._read_now = read_now
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}
        self._position = max(0, begin[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), READ_BYTES_MAX)
        try:
            body = self._read_now(self._name, self._position, count)
        except ObjectMissing as error:
            raise OSError("the file is gone") from error
        buffer[: len(body)] = body
        self._position += len(body)
        return len(body)


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
    weights = _WEIGHTS_OF_RUNTIME[manifest.runtime]
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


def _text_fault(body: bytes, is_json: bool) -> str | None:
    try:
        text = body.decode()
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
