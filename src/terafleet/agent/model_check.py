"""Decides whether a model that came over the network may be loaded: signature, manifest, files.

Everything here was checked before it was signed; a car believes it only after its own look.
"""

import hashlib
from enum import StrEnum
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from terafleet.core.ids import ModelId
from terafleet.protocol.manifest import Manifest, ManifestFile, SignedManifest, model_id_of
from terafleet.protocol.model_rules import content_fault, manifest_fault


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
    fault = manifest_fault(manifest)
    return ModelFault(ModelReason.MANIFEST_INVALID, fault.message) if fault else manifest


def checked_file(path: Path, file: ManifestFile) -> ModelFault | None:
    """What is wrong with a file on the disk, its bytes or its header. Blocks; raises OSError."""
    with path.open("rb") as body:
        size_bytes = body.seek(0, 2)
        body.seek(0)
        digest = hashlib.file_digest(body, "sha256").hexdigest()
        if (size_bytes, digest) != (file.size_bytes, file.sha256):
            return ModelFault(ModelReason.FILE_DIGEST_WRONG, f"{file.name} has other bytes")
        body.seek(0)
        fault = content_fault(body, file)
    return ModelFault(ModelReason.FILE_REFUSED, f"{file.name}: {fault}") if fault else None
