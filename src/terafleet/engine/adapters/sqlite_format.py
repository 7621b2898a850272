"""The format of the SQLite record: its tables, its version, and who may open it."""

import fcntl
import os
import sqlite3
import struct
from pathlib import Path
from typing import Literal

from terafleet.engine.ports import StorageVersionUnknown, StoreInUse

Synchronous = Literal["FULL", "NORMAL"]

APPLICATION_ID = 0x5446_4C54
FORMAT_VERSION = 1
BUSY_S = 30.0
CACHE_KIB = 8192
WAL_CHECKPOINT_PAGES = 1000
WAL_BYTES_KEPT = 64 * 1024 * 1024

# https://www.sqlite.org/fileformat.html section 1.3: the magic string, then user_version at
# offset 60 and application_id at offset 68, both big-endian.
HEADER_BYTES = 100
MAGIC = b"SQLite format 3\0"
VERSION_OFFSET = 60
APPLICATION_OFFSET = 68

TABLES = """
CREATE TABLE journal (
    sequence INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    schema INTEGER NOT NULL,
    events BLOB NOT NULL,
    effects BLOB NOT NULL
) STRICT;
CREATE TABLE snapshots (
    sequence INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    schema INTEGER NOT NULL,
    file TEXT NOT NULL,
    size INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;
CREATE TABLE records (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    parent TEXT NOT NULL,
    sort INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;
CREATE INDEX records_sorted ON records (kind, sort, id);
CREATE INDEX records_of_parent ON records (kind, parent, sort, id);
CREATE TABLE blobs (
    name TEXT PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;
"""


def check_format(path: Path) -> None:
    """Raises StorageVersionUnknown unless the file is absent, empty or of this format.

    It reads the header as plain bytes, because SQLite would already write beside a file
    that it opens.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except FileNotFoundError:
        return
    if not header:
        return
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise StorageVersionUnknown(f"{path} is no SQLite database")
    (version,) = struct.unpack_from(">I", header, VERSION_OFFSET)
    (application,) = struct.unpack_from(">I", header, APPLICATION_OFFSET)
    if application != APPLICATION_ID:
        raise StorageVersionUnknown(f"{path} belongs to another application")
    if version != FORMAT_VERSION:
        raise StorageVersionUnknown(f"{path} has format {version}, not {FORMAT_VERSION}")


def lock(path: Path) -> int:
    """Hold the record until the descriptor that is returned is closed. Raises StoreInUse."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreInUse(f"another process has {path} open") from error
    return descriptor


def unlock(descriptor: int) -> None:
    """Let go at once, even if a forked child has not yet closed its copy of the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def open_writer(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    """The connection that writes; makes the tables in a file that is absent or empty."""
    # SQLite gives the files beside the database the database's own mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(
        path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            _create(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can only read."""
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _create(connection: sqlite3.Connection) -> None:
    """One transaction before the switch to WAL, so that the file's header names the format.

    `check_format` reads that header and does not look into a WAL.
    """
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(
        f"""BEGIN EXCLUSIVE;
        PRAGMA application_id = {APPLICATION_ID};
        PRAGMA user_version = {FORMAT_VERSION};
        {TABLES}
        COMMIT;"""
    )
