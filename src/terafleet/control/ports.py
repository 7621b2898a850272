"""The interfaces that the control plane's shells need from the world."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from terafleet.protocol.manifest import SignedManifest


class ObjectMissing(Exception):
    """No object of that name."""


class ObjectsFull(Exception):
    """The place of the objects can't grow; nothing of the object was kept."""


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object that is whole: its size and the SHA-256 of its bytes."""

    name: str
    size_bytes: int
    sha256: str


class Objects(Protocol):
    """Large immutable bytes by name: files of customers, inputs of units, files of models.

    Names are lower-case words, digits, `-`, `_`, `.` and slashes. An object appears whole or not
    at all; writing a name again replaces it.
    """

    async def write(self, name: str, chunks: AsyncIterator[bytes]) -> ObjectInfo:
        """Store durably. Raises ObjectsFull; then, or on any other fault, nothing is kept."""
        ...

    async def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """Some bytes. Raises ObjectMissing; a range beyond the end gives what there is."""
        ...

    def stream(self, name: str, offset: int = 0, length: int = -1) -> AsyncIterator[bytes]:
        """Bytes in pieces of about a mebibyte. Raises ObjectMissing at the first piece."""
        ...

    def read_now(self, name: str, offset: int, length: int) -> bytes:
        """Some bytes without waiting, for small pieces (up to 64 KiB). Raises ObjectMissing."""
        ...

    async def info(self, name: str) -> ObjectInfo | None:
        """What is stored under a name, or None."""
        ...

    async def delete(self, name: str) -> bool:
        """Remove; whether there was anything."""
        ...

    async def delete_folder(self, prefix: str) -> int:
        """Remove all whose names begin so: `word/word/`, or more; how many there were."""
        ...

    def bytes_free(self) -> int | None:
        """Room left, or None without a limit."""
        ...


class FileRow(msgspec.Struct, frozen=True):
    """A customer's file; `summary` is what was seen of a batch file when it came (JSON)."""

    file_id: str
    customer_id: str
    filename: str
    purpose: str
    size_bytes: int
    created_ms: int
    object_name: str
    summary: bytes = b"{}"


class KeyRow(msgspec.Struct, frozen=True):
    """An API key; only the SHA-256 of its secret is stored."""

    key_id: str
    secret_sha256: bytes
    hint: str
    name: str
    role: str
    customer_id: str
    created_ms: int
    revoked_ms: int = 0


class CodeRow(msgspec.Struct, frozen=True):
    """An enrolment code; only its SHA-256 is stored."""

    code_sha256: bytes
    created_ms: int
    expires_ms: int
    used_ms: int = 0
    vehicle_id: str = ""


class VehicleRow(msgspec.Struct, frozen=True):
    """An enrolled car: its name and the public half of its key."""

    vehicle_id: str
    name: str
    public_key: str
    enrolled_ms: int
    removed_ms: int = 0


class ModelRow(msgspec.Struct, frozen=True):
    """A model of the catalogue; `removed_ms` keeps its name free again."""

    model_id: str
    name: str
    signed: SignedManifest
    created_ms: int
    removed_ms: int = 0


class CatalogueFull(Exception):
    """The catalogue can't grow; nothing was written."""


class CatalogueUnavailable(CatalogueFull):
    """The catalogue's server is out of reach; whether a change was written is not known."""


class CatalogueUnreadable(Exception):
    """It is of another version of the format, or no catalogue at all; nothing was touched."""


class Catalogue(Protocol):
    """What the gateways keep: files, API keys, enrolment codes, enrolled vehicles, models.

    Every method is one durable step; writers raise CatalogueFull when the disk is full. Where
    the catalogue is on a server, every method may raise CatalogueUnavailable.
    """

    def add_file(self, row: FileRow) -> None: ...
    def file(self, file_id: str) -> FileRow | None: ...
    def files(
        self, customer_id: str, purpose: str, after: str, limit: int, is_ascending: bool
    ) -> Sequence[FileRow]: ...
    def delete_file(self, file_id: str) -> bool: ...

    def add_key(self, row: KeyRow) -> None: ...
    def key_by_secret(self, secret_sha256: bytes) -> KeyRow | None: ...
    def keys(self) -> Sequence[KeyRow]: ...
    def revoke_key(self, key_id: str, at_ms: int) -> bool: ...

    def add_code(self, row: CodeRow) -> None: ...
    def use_code(self, code_sha256: bytes, vehicle: VehicleRow, at_ms: int) -> str | None:
        """Use a code up and enrol the car in one step; else the error's code, nothing changed."""
        ...

    def vehicle(self, vehicle_id: str) -> VehicleRow | None: ...
    def vehicles(self) -> Sequence[VehicleRow]: ...
    def remove_vehicle(self, vehicle_id: str, at_ms: int) -> bool: ...

    def add_model(self, row: ModelRow) -> str | None:
        """Add, or the error's code (`model_name_taken`); the same model again is no error."""
        ...

    def model(self, model_id: str) -> ModelRow | None: ...
    def model_by_name(self, name: str) -> ModelRow | None: ...
    def models(self) -> Sequence[ModelRow]: ...
    def remove_model(self, model_id: str, at_ms: int) -> bool: ...

    def close(self) -> None: ...
