"""The catalogue in an SQLite file: every change is on the disk when its method returns.

Tested with SQLite 3.40 on local file systems; a file on a network share is not safe (SQLite says
so of its WAL mode).
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from terafleet.control.adapters.catalogue_tables import (
    APPLICATION_ID,
    FORMAT_VERSION,
    TABLES,
    first_row,
    model_row,
)
from terafleet.control.ports import (
    CatalogueFull,
    CatalogueUnreadable,
    CodeRow,
    FileRow,
    KeyRow,
    ModelRow,
    VehicleRow,
)

BUSY_TIMEOUT_S = 5.0
"""How long a change waits for another process's change."""


class SqliteCatalogue:
    """Keeps the promises of `Catalogue`; may be used by several threads.

    Readers have a connection of their own, so that they never wait for a writer's disk.
    """

    def __init__(self, path: Path, pages_max: int | None = None) -> None:
        """Open, and make the file if there is none. Raises CatalogueUnreadable, CatalogueFull.

        `pages_max` limits the file, in pages of 4 KiB.
        """
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        with _mapped():
            self._writer = _connect(path)
        try:
            with _mapped():
                _prepare(self._writer)
                if pages_max is not None:
                    self._writer.execute(f"PRAGMA max_page_count = {pages_max:d}")
            self._reader = _connect(path)
        except BaseException:
            self._writer.close()
            raise

    def add_file(self, row: FileRow) -> None:
        """Keep a file's row. Raises ValueError if the id is taken."""
        self._insert("file", row.file_id, row.customer_id, row.filename, row.purpose,
                     row.size_bytes, row.created_ms, row.object_name, row.summary)  # fmt: skip

    def file(self, file_id: str) -> FileRow | None:
        """One file, or None."""
        return first_row(FileRow, self._rows(f"{_FILES} WHERE file_id = ?", file_id))

    def files(
        self, customer_id: str, purpose: str, after: str, limit: int, is_ascending: bool
    ) -> Sequence[FileRow]:
        """A customer's files by time, behind the file `after`; an empty purpose is any."""
        wanted = f"{_FILES} WHERE customer_id = :customer AND (:purpose = '' OR purpose = :purpose)"
        if after:
            # No row compares with the NULL of an unknown position.
            wanted += f" AND (created_ms, file_id) {'>' if is_ascending else '<'} ({_POSITION})"
        direction = "ASC" if is_ascending else "DESC"
        wanted += f" ORDER BY created_ms {direction}, file_id {direction} LIMIT :limit"
        values = {"customer": customer_id, "purpose": purpose, "after": after, "limit": limit}
        with self._read_lock:
            return [FileRow(*row) for row in self._reader.execute(wanted, values)]

    def delete_file(self, file_id: str) -> bool:
        """Remove a file's row; whether there was one."""
        return self._change("DELETE FROM file WHERE file_id = ?", file_id)

    def add_key(self, row: KeyRow) -> None:
        """Keep an API key. Raises ValueError if its id or its secret is taken."""
        self._insert("api_key", row.key_id, row.secret_sha256, row.hint, row.name, row.role,
                     row.customer_id, row.created_ms, row.revoked_ms)  # fmt: skip

    def key_by_secret(self, secret_sha256: bytes) -> KeyRow | None:
        """The key with this secret, also a revoked one, or None."""
        return first_row(KeyRow, self._rows(f"{_KEYS} WHERE secret_sha256 = ?", secret_sha256))

    def keys(self) -> Sequence[KeyRow]:
        """All keys, also revoked ones, oldest first."""
        return [KeyRow(*row) for row in self._rows(f"{_KEYS} ORDER BY created_ms, key_id")]

    def revoke_key(self, key_id: str, at_ms: int) -> bool:
        """Revoke a key; whether it was good until then."""
        statement = "UPDATE api_key SET revoked_ms = ? WHERE key_id = ? AND revoked_ms = 0"
        return self._change(statement, at_ms, key_id)

    def add_code(self, row: CodeRow) -> None:
        """Keep an enrolment code. Raises ValueError if it is taken."""
        self._insert("enrolment_code", row.code_sha256, row.created_ms, row.expires_ms,
                     row.used_ms, row.vehicle_id)  # fmt: skip

    def use_code(self, code_sha256: bytes, vehicle: VehicleRow, at_ms: int) -> str | None:
        """Use a code up and enrol the car in one step; else the error's code, nothing changed.

        Raises ValueError if the car's id is taken.
        """
        with self._transaction() as writer:
            found = writer.execute(
                "SELECT used_ms, expires_ms FROM enrolment_code WHERE code_sha256 = ?",
                (code_sha256,),
            ).fetchone()
            if found is None:
                return "enrolment_code_invalid"
            used_ms, expires_ms = found
            if used_ms:
                return "enrolment_code_used"
            if expires_ms <= at_ms:
                return "enrolment_code_expired"
            writer.execute(
                "UPDATE enrolment_code SET used_ms = ?, vehicle_id = ? WHERE code_sha256 = ?",
                (at_ms, vehicle.vehicle_id, code_sha256),
            )
            writer.execute(
                "INSERT INTO vehicle VALUES (?, ?, ?, ?, ?)",
                (vehicle.vehicle_id, vehicle.name, vehicle.public_key, vehicle.enrolled_ms,
                 vehicle.removed_ms),
            )  # fmt: skip
        return None

    def vehicle(self, vehicle_id: str) -> VehicleRow | None:
        """One car, also a removed one, or None."""
        return first_row(VehicleRow, self._rows(f"{_VEHICLES} WHERE vehicle_id = ?", vehicle_id))

    def vehicles(self) -> Sequence[VehicleRow]:
        """The cars that are not removed, oldest first."""
        wanted = f"{_VEHICLES} WHERE removed_ms = 0 ORDER BY enrolled_ms, vehicle_id"
        return [VehicleRow(*row) for row in self._rows(wanted)]

    def remove_vehicle(self, vehicle_id: str, at_ms: int) -> bool:
        """Remove a car for good; whether it was enrolled until then."""
        statement = "UPDATE vehicle SET removed_ms = ? WHERE vehicle_id = ? AND removed_ms = 0"
        return self._change(statement, at_ms, vehicle_id)

    def add_model(self, row: ModelRow) -> str | None:
        """Add, or the error's code (`model_name_taken`); a removed model comes back.

        The same model again is no error and changes nothing.
        """
        with self._transaction() as writer:
            holders = writer.execute(
                "SELECT model_id FROM model WHERE removed_ms = 0 AND (model_id = ? OR name = ?)",
                (row.model_id, row.name),
            ).fetchall()
            if (row.model_id,) in holders:
                return None
            if holders:
                return "model_name_taken"
            writer.execute(
                "INSERT OR REPLACE INTO model VALUES (?, ?, ?, ?, ?, ?)",
                (row.model_id, row.name, row.signed.manifest, row.signed.signature,
                 row.created_ms, row.removed_ms),
            )  # fmt: skip
        return None

    def model(self, model_id: str) -> ModelRow | None:
        """One model, also a removed one, or None."""
        rows = self._rows(f"{_MODELS} WHERE model_id = ?", model_id)
        return model_row(rows[0]) if rows else None

    def model_by_name(self, name: str) -> ModelRow | None:
        """The model that has this name at present, or None."""
        rows = self._rows(f"{_MODELS} WHERE name = ? AND removed_ms = 0", name)
        return model_row(rows[0]) if rows else None

    def models(self) -> Sequence[ModelRow]:
        """The models that are not removed, oldest first."""
        wanted = f"{_MODELS} WHERE removed_ms = 0 ORDER BY created_ms, model_id"
        return [model_row(row) for row in self._rows(wanted)]

    def remove_model(self, model_id: str, at_ms: int) -> bool:
        """Remove a model, so that its name is free again; whether it was there until then."""
        statement = "UPDATE model SET removed_ms = ? WHERE model_id = ? AND removed_ms = 0"
        return self._change(statement, at_ms, model_id)

    def close(self) -> None:
        """Let go of the file; all that was written stays."""
        with self._read_lock:
            self._reader.close()
        with self._write_lock:
            self._writer.close()

    def _rows(self, wanted: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._read_lock:
            return self._reader.execute(wanted, values).fetchall()

    def _insert(self, table: str, *values: Any) -> None:
        places = ", ".join("?" * len(values))
        with self._transaction() as writer:
            writer.execute(f"INSERT INTO {table} VALUES ({places})", values)  # noqa: S608

    def _change(self, statement: str, *values: Any) -> bool:
        with self._transaction() as writer:
            return writer.execute(statement, values).rowcount > 0

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable step; whatever is raised in it, or by its end, has changed nothing."""
        with self._write_lock, _mapped():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction by itself.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise


_FILES = "SELECT * FROM file"
_POSITION = """
SELECT created_ms, file_id FROM file WHERE file_id = :after AND customer_id = :customer
"""
_KEYS = "SELECT * FROM api_key"
_VEHICLES = "SELECT * FROM vehicle"
_MODELS = "SELECT * FROM model"


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    # The record of enrolments and keys must survive a power cut; this is per connection.
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _prepare(writer: sqlite3.Connection) -> None:
    """Check what the file is before anything of it is changed; make the tables of a new one."""
    application_id = _number(writer, "application_id")
    format_version = _number(writer, "user_version")
    is_new = writer.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    if is_new and application_id == 0 and format_version == 0:
        _make_tables(writer)
    elif application_id != APPLICATION_ID:
        raise CatalogueUnreadable("the file is not a catalogue of Terafleet")
    elif format_version != FORMAT_VERSION:
        raise CatalogueUnreadable(
            f"the catalogue has format {format_version}, this version reads {FORMAT_VERSION}"
        )
    writer.execute("PRAGMA journal_mode = WAL")


def _make_tables(writer: sqlite3.Connection) -> None:
    writer.execute("BEGIN EXCLUSIVE")
    if _number(writer, "application_id") == 0:
        for statement in TABLES:
            writer.execute(statement)
        writer.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        writer.execute(f"PRAGMA user_version = {FORMAT_VERSION:d}")
    writer.execute("COMMIT")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    number: int = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    return number


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """SQLite's words for what its callers expect become theirs; anything else is a bug."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise ValueError(f"the id is taken: {error}") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            raise CatalogueFull(str(error)) from error
        if code == sqlite3.SQLITE_NOTADB:
            raise CatalogueUnreadable("the file is not a catalogue of Terafleet") from error
        raise
