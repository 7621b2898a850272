"""The catalogue in PostgreSQL: every change is on the server's disk when its method returns."""

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import asyncpg

from terafleet.control.adapters.catalogue_tables import (
    POSTGRESQL_FORMAT_VERSION,
    POSTGRESQL_SCHEMA,
    POSTGRESQL_TABLES,
    first_row,
    model_row,
)
from terafleet.control.ports import (
    CatalogueFull,
    CatalogueUnavailable,
    CatalogueUnreadable,
    CodeRow,
    FileRow,
    KeyRow,
    ModelRow,
    VehicleRow,
)
from terafleet.engine.ports import (
    StorageDamaged,
    StorageFull,
    StorageUnavailable,
    StorageVersionUnknown,
)
from terafleet.engine.postgresql_connections import Connection, Connections
from terafleet.engine.postgresql_schema import make_or_check

R = TypeVar("R")
Value = str | int | bytes
Rows = Sequence[Sequence[Any]]

ANSWER_S = 3.0
"""Gateways look keys up in their event loop, which stands still while a server does not answer."""

KEPT_S = 1.0
"""How long API keys and models that were looked up are good for: each request asks for both."""

KEPT_MAX = 10_000

NUL = "\0"
"""No text in PostgreSQL has this character, so nothing is found under a name that has it."""


class PostgresqlCatalogue:
    """Keeps the promises of `Catalogue` in the schema `terafleet_catalogue` of a database.

    May be used by several threads, and by several gateways: what one of them changes counts for the
    others within a second, for itself at once.
    """

    def __init__(self, url: str) -> None:
        """Open, and make the tables if there are none; `url` is `postgresql://user@host/database`.

        Raises CatalogueUnavailable, CatalogueUnreadable, CatalogueFull.
        """
        self._kept: dict[tuple[Value, ...], tuple[Rows, float]] = {}
        with _mapped():
            self._connections = Connections(url, POSTGRESQL_SCHEMA, _prepare, ANSWER_S)

    def add_file(self, row: FileRow) -> None:
        """Keep a file's row. Raises ValueError if the id is taken."""
        self._insert("file", row.file_id, row.customer_id, row.filename, row.purpose,
                     row.size_bytes, row.created_ms, row.object_name, row.summary)  # fmt: skip

    def file(self, file_id: str) -> FileRow | None:
        """One file, or None."""
        return first_row(FileRow, self._rows("SELECT * FROM file WHERE file_id = $1", file_id))

    def files(
        self, customer_id: str, purpose: str, after: str, limit: int, is_ascending: bool
    ) -> Sequence[FileRow]:
        """A customer's files by time, behind the file `after`; an empty purpose is any."""
        wanted = "SELECT * FROM file WHERE customer_id = $1 AND ($2 = '' OR purpose = $2)"
        values: list[Value] = [customer_id, purpose, limit]
        if after:
            # No row compares with the NULL of an unknown position.
            wanted += f" AND (created_ms, file_id) {'>' if is_ascending else '<'} ({_POSITION})"
            values.append(after)
        direction = "ASC" if is_ascending else "DESC"
        wanted += f" ORDER BY created_ms {direction}, file_id {direction} LIMIT $3"
        return [FileRow(*row) for row in self._rows(wanted, *values)]

    def delete_file(self, file_id: str) -> bool:
        """Remove a file's row; whether there was one."""
        return self._change("DELETE FROM file WHERE file_id = $1", file_id)

    def add_key(self, row: KeyRow) -> None:
        """Keep an API key. Raises ValueError if its id or its secret is taken."""
        self._insert("api_key", row.key_id, row.secret_sha256, row.hint, row.name, row.role,
                     row.customer_id, row.created_ms, row.revoked_ms)  # fmt: skip

    def key_by_secret(self, secret_sha256: bytes) -> KeyRow | None:
        """The key with this secret, also a revoked one, or None."""
        wanted = "SELECT * FROM api_key WHERE secret_sha256 = $1"
        return first_row(KeyRow, self._kept_rows(wanted, secret_sha256))

    def keys(self) -> Sequence[KeyRow]:
        """All keys, also revoked ones, oldest first."""
        wanted = "SELECT * FROM api_key ORDER BY created_ms, key_id"
        return [KeyRow(*row) for row in self._rows(wanted)]

    def revoke_key(self, key_id: str, at_ms: int) -> bool:
        """Revoke a key; whether it was good until then."""
        statement = "UPDATE api_key SET revoked_ms = $2 WHERE key_id = $1 AND revoked_ms = 0"
        return self._change(statement, key_id, at_ms)

    def add_code(self, row: CodeRow) -> None:
        """Keep an enrolment code. Raises ValueError if it is taken."""
        self._insert("enrolment_code", row.code_sha256, row.created_ms, row.expires_ms,
                     row.used_ms, row.vehicle_id)  # fmt: skip

    def use_code(self, code_sha256: bytes, vehicle: VehicleRow, at_ms: int) -> str | None:
        """Use a code up and enrol the car in one step; else the error's code, nothing changed.

        Raises ValueError if the car's id is taken.
        """

        async def work(connection: Connection) -> str | None:
            async with connection.transaction():
                found = await connection.fetchrow(
                    "SELECT used_ms, expires_ms FROM enrolment_code WHERE code_sha256 = $1"
                    " FOR UPDATE",
                    code_sha256,
                )
                if found is None:
                    return "enrolment_code_invalid"
                used_ms, expires_ms = found
                if used_ms:
                    return "enrolment_code_used"
                if expires_ms <= at_ms:
                    return "enrolment_code_expired"
                await connection.execute(
                    "UPDATE enrolment_code SET used_ms = $2, vehicle_id = $3"
                    " WHERE code_sha256 = $1",
                    *(code_sha256, at_ms, vehicle.vehicle_id),
                )
                await connection.execute(
                    "INSERT INTO vehicle VALUES ($1, $2, $3, $4, $5)",
                    *(vehicle.vehicle_id, vehicle.name, vehicle.public_key),
                    *(vehicle.enrolled_ms, vehicle.removed_ms),
                )
            return None

        return self._in_turn(work)

    def vehicle(self, vehicle_id: str) -> VehicleRow | None:
        """One car, also a removed one, or None."""
        wanted = "SELECT * FROM vehicle WHERE vehicle_id = $1"
        return first_row(VehicleRow, self._rows(wanted, vehicle_id))

    def vehicles(self) -> Sequence[VehicleRow]:
        """The cars that are not removed, oldest first."""
        wanted = "SELECT * FROM vehicle WHERE removed_ms = 0 ORDER BY enrolled_ms, vehicle_id"
        return [VehicleRow(*row) for row in self._rows(wanted)]

    def remove_vehicle(self, vehicle_id: str, at_ms: int) -> bool:
        """Remove a car for good; whether it was enrolled until then."""
        statement = "UPDATE vehicle SET removed_ms = $2 WHERE vehicle_id = $1 AND removed_ms = 0"
        return self._change(statement, vehicle_id, at_ms)

    def add_model(self, row: ModelRow) -> str | None:
        """Add, or the error's code (`model_name_taken`); a removed model comes back.

        The same model again is no error and changes nothing.
        """

        async def work(connection: Connection) -> str | None:
            async with connection.transaction():
                # Two gateways that add the same name must not both find it free.
                await connection.execute("LOCK TABLE model IN SHARE ROW EXCLUSIVE MODE")
                holders = await connection.fetch(
                    "SELECT model_id FROM model"
                    " WHERE removed_ms = 0 AND (model_id = $1 OR name = $2)",
                    *(row.model_id, row.name),
                )
                if any(model_id == row.model_id for (model_id,) in holders):
                    return None
                if holders:
                    return "model_name_taken"
                await connection.execute("DELETE FROM model WHERE model_id = $1", row.model_id)
                await connection.execute(
                    "INSERT INTO model VALUES ($1, $2, $3, $4, $5, $6)",
                    *(row.model_id, row.name, row.signed.manifest, row.signed.signature),
                    *(row.created_ms, row.removed_ms),
                )
            return None

        return self._in_turn(work)

    def model(self, model_id: str) -> ModelRow | None:
        """One model, also a removed one, or None."""
        rows = self._rows("SELECT * FROM model WHERE model_id = $1", model_id)
        return model_row(rows[0]) if rows else None

    def model_by_name(self, name: str) -> ModelRow | None:
        """The model that has this name at present, or None."""
        rows = self._kept_rows("SELECT * FROM model WHERE name = $1 AND removed_ms = 0", name)
        return model_row(rows[0]) if rows else None

    def models(self) -> Sequence[ModelRow]:
        """The models that are not removed, oldest first."""
        wanted = "SELECT * FROM model WHERE removed_ms = 0 ORDER BY created_ms, model_id"
        return [model_row(row) for row in self._rows(wanted)]

    def remove_model(self, model_id: str, at_ms: int) -> bool:
        """Remove a model, so that its name is free again; whether it was there until then."""
        statement = "UPDATE model SET removed_ms = $2 WHERE model_id = $1 AND removed_ms = 0"
        return self._change(statement, model_id, at_ms)

    def close(self) -> None:
        """Let go of the server; all that was written stays."""
        self._connections.close()

    def _kept_rows(self, wanted: str, *values: Value) -> Rows:
        """Rows as they are, or were a moment ago."""
        rows, until_s = self._kept.get((wanted, *values), ((), 0.0))
        if time.monotonic() < until_s:
            return rows
        rows = self._rows(wanted, *values)
        if len(self._kept) >= KEPT_MAX:
            self._kept.clear()
        self._kept[wanted, *values] = rows, time.monotonic() + KEPT_S
        return rows

    def _rows(self, wanted: str, *values: Value) -> Rows:
        if _has_nul(values):
            return ()
        with _mapped():
            return self._connections.beside(lambda connection: connection.fetch(wanted, *values))

    def _insert(self, table: str, *values: Value) -> None:
        places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
        statement = f"INSERT INTO {table} VALUES ({places})"  # noqa: S608 - names of our own.
        self._in_turn(lambda connection: connection.execute(statement, *values))

    def _change(self, statement: str, *values: Value) -> bool:
        if _has_nul(values):
            return False
        done = self._in_turn(lambda connection: connection.execute(statement, *values))
        # PostgreSQL answers in words: "UPDATE 1".
        return not str(done).endswith(" 0")

    def _in_turn(self, work: Callable[[Connection], Awaitable[R]]) -> R:
        try:
            with _mapped():
                return self._connections.in_turn(work)
        finally:
            self._kept.clear()


_POSITION = "SELECT created_ms, file_id FROM file WHERE file_id = $4 AND customer_id = $1"


async def _prepare(connection: Connection) -> None:
    await make_or_check(connection, POSTGRESQL_SCHEMA, POSTGRESQL_FORMAT_VERSION, POSTGRESQL_TABLES)


def _has_nul(values: Sequence[Value]) -> bool:
    return any(isinstance(value, str) and NUL in value for value in values)


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """What the connections say becomes what callers of a catalogue expect."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise ValueError(f"the id is taken: {error.constraint_name}") from error
    except StorageUnavailable as fault:
        raise CatalogueUnavailable(str(fault)) from fault
    except StorageFull as fault:
        raise CatalogueFull(str(fault)) from fault
    except (StorageVersionUnknown, StorageDamaged) as fault:
        raise CatalogueUnreadable(str(fault)) from fault
