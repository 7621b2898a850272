"""Decides whether a model that came over the network may be loaded: signature, manifest, files.

Everything here was checked before it was signed; a car believes it only after its own look.
"""

import hashlib
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from terafleet.core.ids import ModelId
from terafleet.protocol.manifest import Manifest, ManifestFile, SignedManifest, model_id_of
from terafleet.protocol.model_files.gguf import check_gguf
from terafleet.protocol.model_files.onnx import check_onnx
from terafleet.protocol.model_files.refusal import ModelFileRefused
from terafleet.protocol.model_files.safetensors import check_safetensors
from terafleet.protocol.model_files.sniff import ModelFormat, sniff

FORMAT = 1
FILES_MAX = 64
OPTIONS_MAX = 32
TEXT_BYTES_MAX = 64 * 1024 * 1024
"""The largest tokenizers are a third of it."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECKS: dict[ModelFormat, Callable[[BinaryIO, int], object]] = {
    ModelFormat.GGUF: check_gguf,
    ModelFormat.ONNX: check_onnx,
    ModelFormat.SAFETENSORS: check_safetensors,
}
_FORMAT_OF_ENDING = {
    ".gguf": ModelFormat.GGUF,
    ".onnx": ModelFormat.ONNX,
    ".safetensors": ModelFormat.SAFETENSORS,
}
_JSON_ENDING, _TEXT_ENDING = ".json", ".txt"
_ENDINGS = frozenset((*_FORMAT_OF_ENDING, _JSON_ENDING, _TEXT_ENDING))


class ModelReason(StrEnum):
    """Every reason for which a model can't be had."""

    ADDRESS_MISSING = "address_missing"
    FETCH_FAILED = "fetch_failed"
    SIGNATURE_WRONG = "signature_wrong"
    MANIFEST_DIGEST_WRONG = "manifest_digest_wrong"
    MANIFEST_INVALID = "manifest_invalid"
    FILE_DIGEST_WRONG = "file_digest_wrong"
    FILE_REFUSED = "file_refused"
    TOO_LARGE = "too_large"
    DISK_FULL = "disk_full"
    DISK_FAILED = "disk_failed"


class ModelFault(msgspec.Struct, frozen=True):
    """Why a model can't be had, and a sentence for a person."""

    reason: ModelReason
    detail: str


def checked_manifest(
    signed: SignedManifest, model_id: ModelId, manifest_key: bytes
) -> Manifest | ModelFault:
    """The manifest, if the fleet has signed it and it is that model's."""
    try:
        Ed25519PublicKey.from_public_bytes(manifest_key).verify(signed.signature, signed.manifest)
    except InvalidSignature:
        return ModelFault(ModelReason.SIGNATURE_WRONG, "the fleet's key did not sign the manifest")
    if model_id_of(signed.manifest) != model_id:
        return ModelFault(ModelReason.MANIFEST_DIGEST_WRONG, "the manifest of another model")
    try:
        manifest = msgspec.json.decode(signed.manifest, type=Manifest)
    except msgspec.MsgspecError as error:
        return ModelFault(ModelReason.MANIFEST_INVALID, str(error))
    fault = _manifest_fault(manifest)
    return ModelFault(ModelReason.MANIFEST_INVALID, fault) if fault else manifest


def checked_file(path: Path, file: ManifestFile) -> ModelFault | None:
    """What is wrong with a file on the disk, its bytes or its header. Blocks; raises OSError."""
    with path.open("rb") as body:
        size_bytes = body.seek(0, 2)
        body.seek(0)
        digest = hashlib.file_digest(body, "sha256").hexdigest()
        if (size_bytes, digest) != (file.size_bytes, file.sha256):
            return ModelFault(ModelReason.FILE_DIGEST_WRONG, f"{file.name} has other bytes")
        body.seek(0)
        fault = _header_fault(body, file)
    return ModelFault(ModelReason.FILE_REFUSED, f"{file.name}: {fault}") if fault else None


def _manifest_fault(manifest: Manifest) -> str:
    if manifest.format != FORMAT:
        return f"format {manifest.format} is not {FORMAT}"
    if len(manifest.files) > FILES_MAX or len(manifest.options) > OPTIONS_MAX:
        return "more files or options than a model has"
    names = [file.name.lower() for file in manifest.files]
    if len(set(names)) < len(names):
        return "two files have the same name"
    for file in manifest.files:
        is_plain = _FILE_NAME.fullmatch(file.name) and _ending(file) in _ENDINGS
        if not is_plain or _SHA256.fullmatch(file.sha256) is None or file.size_bytes < 1:
            return f"no file of a model: {file.name[:64]!a}"
    return ""


def _ending(file: ManifestFile) -> str:
    return Path(file.name).suffix.lower()


def _header_fault(body: BinaryIO, file: ManifestFile) -> str:
    """Why a file is not what its name says, or empty."""
    ending = _ending(file)
    expected = _FORMAT_OF_ENDING.get(ending)
    if expected is None:
        return _text_fault(body, file.size_bytes, is_json=ending == _JSON_ENDING)
    found = sniff(body, file.size_bytes)
    if isinstance(found, ModelFileRefused):
        return f"{found.reason}: {found.detail}"
    if found is not expected:
        return f"the name says {expected}, the content is {found}"
    body.seek(0)
    header = _CHECKS[found](body, file.size_bytes)
    return f"{header.reason}: {header.detail}" if isinstance(header, ModelFileRefused) else ""


def _text_fault(body: BinaryIO, size_bytes: int, is_json: bool) -> str:
    if size_bytes > TEXT_BYTES_MAX:
        return f"a text of more than {TEXT_BYTES_MAX} bytes"
    try:
        text = body.read().decode()
        if is_json:
            msgspec.json.decode(text, type=msgspec.Raw)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        return str(error)
    except RecursionError:
        return "nested too deeply"
    return ""
