"""The manifest of a model: what its files are, what it needs; content-addressed and signed."""

import hashlib

import msgspec

from terafleet.core.capability import ModelNeeds
from terafleet.core.ids import ModelId


class ManifestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: a plain name without folders, its size in bytes and its SHA-256 in hex."""

    name: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model is. `options` are integers for its runtime; `memory_mb` with working memory."""

    name: str
    runtime: str
    endpoints: tuple[str, ...]
    memory_mb: int
    files: tuple[ManifestFile, ...]
    options: dict[str, int]
    source: str = ""
    format: int = 1


class SignedManifest(msgspec.Struct, frozen=True):
    """A manifest as the bytes that were signed, and the Ed25519 signature over them."""

    manifest: bytes
    signature: bytes


class ModelOffer(msgspec.Struct, frozen=True):
    """What a car gets for a model: the signed manifest and an address for each of its files."""

    signed: SignedManifest
    addresses: dict[str, str]


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one form of a manifest that is hashed and signed: JSON, keys in order."""
    return msgspec.json.encode(manifest, order="deterministic")


def model_id_of(manifest: bytes) -> ModelId:
    """A model's identity: the SHA-256 of its manifest's bytes."""
    return ModelId(hashlib.sha256(manifest).hexdigest())


def needs_of(manifest: Manifest, model_id: ModelId) -> ModelNeeds:
    """What the fleet must know of a model."""
    return ModelNeeds(
        model_id=model_id,
        name=manifest.name,
        runtime=manifest.runtime,
        memory_mb=manifest.memory_mb,
        endpoints=manifest.endpoints,
    )


def object_name(file: ManifestFile) -> str:
    """Where a model's file lies among the objects: by its content, so that models share files."""
    return f"model/{file.sha256}"
