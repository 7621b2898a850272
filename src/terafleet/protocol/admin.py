"""Resources that operators read and change over HTTP, under `/admin/v1`; used by CLI and SDK."""

import msgspec

from terafleet.protocol.manifest import Manifest
from terafleet.protocol.shard import ShardStatus, StoryLine, VehicleView, WarmView

ADMIN_PATH = "/admin/v1"
KEYS_PATH = f"{ADMIN_PATH}/keys"
CODES_PATH = f"{ADMIN_PATH}/enrolment_codes"
MODELS_PATH = f"{ADMIN_PATH}/models"
MODEL_FILES_PATH = f"{ADMIN_PATH}/objects/model"
VEHICLES_PATH = f"{ADMIN_PATH}/vehicles"
STATUS_PATH = f"{ADMIN_PATH}/status"
STORY_PATH = f"{ADMIN_PATH}/story"


def key_path(key_id: str) -> str:
    """An API key: DELETE revokes it."""
    return f"{KEYS_PATH}/{key_id}"


def model_file_path(sha256: str) -> str:
    """A file of models, by its content: PUT stores it, HEAD and GET say whether it is there."""
    return f"{MODEL_FILES_PATH}/{sha256}"


def model_path(model_id: str) -> str:
    """A model: DELETE removes it."""
    return f"{MODELS_PATH}/{model_id}"


def warm_path(model_id: str) -> str:
    """In how many slots a model stays in memory: PUT says it."""
    return f"{MODELS_PATH}/{model_id}/warm"


POLICY_BYTES_MAX = 65_536
"""How large an owner policy may be, as JSON."""


def vehicle_path(vehicle_id: str, change: str = "") -> str:
    """A car: DELETE removes it; the changes `drain` and `undrain` are POSTs.

    `policy` is its owner policy: GET, PUT, DELETE.
    """
    return f"{VEHICLES_PATH}/{vehicle_id}/{change}" if change else f"{VEHICLES_PATH}/{vehicle_id}"


def story_path(about: str) -> str:
    """The history of one thing; `limit` in the query is how many lines at most."""
    return f"{STORY_PATH}/{about}"


class KeyCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask for an API key; `role` is `customer` or `operator`.

    With `customer_id` it is one more key of that customer; without, of a customer of its own.
    """

    name: str
    role: str = "customer"
    customer_id: str | None = None


class KeyView(msgspec.Struct, frozen=True):
    """A key without its secret; `hint` is how its secret begins."""

    key_id: str
    name: str
    role: str
    customer_id: str
    hint: str
    created_ms: int
    revoked_ms: int


class KeyCreated(msgspec.Struct, frozen=True):
    """The only time that a key's secret is shown."""

    key: KeyView
    secret: str


class KeyList(msgspec.Struct, frozen=True):
    """All keys."""

    keys: tuple[KeyView, ...]


class CodeCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask for a one-time enrolment code."""

    valid_s: int = 86_400


class CodeCreated(msgspec.Struct, frozen=True):
    """The only time that a code is shown."""

    code: str
    expires_ms: int


class ModelFileView(msgspec.Struct, frozen=True):
    """A stored file of models."""

    sha256: str
    size_bytes: int


class ModelCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Publish a model whose files have all been put as objects."""

    manifest: Manifest


class ModelView(msgspec.Struct, frozen=True):
    """A model of the catalogue."""

    model_id: str
    manifest: Manifest
    created_ms: int


class ModelWarm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In how many slots of the fleet a model shall stay in memory; 0 is nowhere."""

    slots: int


class ModelList(msgspec.Struct, frozen=True):
    """All models, and what becomes of those that shall stay in memory.

    `warm` is null while the fleet's shard does not answer.
    """

    models: tuple[ModelView, ...]
    warm: tuple[WarmView, ...] | None = ()


class ModelRemoved(msgspec.Struct, frozen=True):
    """A model is removed; `files_deleted` are the SHA-256 of files that no model needs."""

    model_id: str
    files_deleted: tuple[str, ...]


class VehiclesPage(msgspec.Struct, frozen=True):
    """All cars."""

    vehicles: tuple[VehicleView, ...]


class VehicleChanged(msgspec.Struct, frozen=True):
    """What an operator wanted of a car is done and kept."""

    vehicle_id: str


class StoryPage(msgspec.Struct, frozen=True):
    """What the journal tells about one thing, oldest first."""

    lines: tuple[StoryLine, ...]
    is_complete: bool


class Status(msgspec.Struct, frozen=True):
    """How the control plane is."""

    version: str
    is_bus_connected: bool
    shard: ShardStatus | None
    objects_bytes_free: int | None
    is_storage_full: bool
