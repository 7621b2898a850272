"""Makes a schema of tables in a PostgreSQL database, or finds that they are of this version."""

from collections.abc import Sequence

import asyncpg

from terafleet.engine.ports import StorageUnavailable, StorageVersionUnknown
from terafleet.engine.postgresql_connections import Connection

SERVER_VERSION_MIN = 14
MAKING_LOCK = 0x5446_4C54_0000_0000
"""`TFLT`: the number of the advisory lock of whoever makes tables in a database."""

NOT_PERMITTED = "the user may not make the schema {0}; as its owner say: CREATE SCHEMA {0}"


async def make_or_check(
    connection: Connection, schema: str, version: int, tables: Sequence[str]
) -> None:
    """Make the tables in a schema that is absent or empty, else look whose they are.

    `tables` are statements; the first one makes the table `format`, whose column `version` is
    written here. Raises StorageVersionUnknown, with nothing changed, and StorageUnavailable
    where the database is of no use.
    """
    await _check_server(connection)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", MAKING_LOCK)
            if await _is_made(connection, schema, version):
                return
            if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", schema):
                await connection.execute(f"CREATE SCHEMA {schema}")
            for statement in tables:
                await connection.execute(statement)
            await connection.execute("INSERT INTO format (version) VALUES ($1)", version)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StorageUnavailable(NOT_PERMITTED.format(schema)) from error


async def _check_server(connection: Connection) -> None:
    found = connection.get_server_version()
    if found.major < SERVER_VERSION_MIN:
        raise StorageVersionUnknown(
            f"the server is PostgreSQL {found.major}, and {SERVER_VERSION_MIN} is needed"
        )
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise StorageVersionUnknown(f"the database has the encoding {encoding}, not UTF8")


async def _is_made(connection: Connection, schema: str, version: int) -> bool:
    """Whether the tables are there; raises StorageVersionUnknown for what is not ours."""
    rows = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace($1)", schema
    )
    if not rows:
        return False
    try:
        found = await connection.fetchval("SELECT version FROM format")
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        found = None
    if found is None:
        raise StorageVersionUnknown(f"the schema {schema} belongs to another application")
    if found != version:
        raise StorageVersionUnknown(f"the schema {schema} has format {found}, not {version}")
    return True
