"""The tables of the catalogue; columns are in the order of the rows of `control.ports`."""

from collections.abc import Sequence
from typing import Any, TypeVar

from terafleet.control.ports import ModelRow
from terafleet.protocol.manifest import SignedManifest

R = TypeVar("R")

APPLICATION_ID = 0x54464361
"""`TFCa`: marks the file as a catalogue, for us and for `file`(1)."""

FORMAT_VERSION = 1

MODEL_BY_NAME = "CREATE UNIQUE INDEX model_by_name ON model (name) WHERE removed_ms = 0"
FILE_BY_TIME = "CREATE INDEX file_by_time ON file (customer_id, created_ms, file_id)"

TABLES = (
    """
    CREATE TABLE file (
      file_id TEXT NOT NULL PRIMARY KEY,
      customer_id TEXT NOT NULL,
      filename TEXT NOT NULL,
      purpose TEXT NOT NULL,
      size_bytes INTEGER NOT NULL,
      created_ms INTEGER NOT NULL,
      object_name TEXT NOT NULL,
      summary BLOB NOT NULL
    ) STRICT
    """,
    FILE_BY_TIME,
    """
    CREATE TABLE api_key (
      key_id TEXT NOT NULL UNIQUE,
      secret_sha256 BLOB PRIMARY KEY,
      hint TEXT NOT NULL,
      name TEXT NOT NULL,
      role TEXT NOT NULL,
      customer_id TEXT NOT NULL,
      created_ms INTEGER NOT NULL,
      revoked_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE enrolment_code (
      code_sha256 BLOB PRIMARY KEY,
      created_ms INTEGER NOT NULL,
      expires_ms INTEGER NOT NULL,
      used_ms INTEGER NOT NULL,
      vehicle_id TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE vehicle (
      vehicle_id TEXT PRIMARY KEY,
      name TEXT NOT NULL,
      public_key TEXT NOT NULL,
      enrolled_ms INTEGER NOT NULL,
      removed_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE model (
      model_id TEXT NOT NULL PRIMARY KEY,
      name TEXT NOT NULL,
      manifest BLOB NOT NULL,
      signature BLOB NOT NULL,
      created_ms INTEGER NOT NULL,
      removed_ms INTEGER NOT NULL
    ) STRICT
    """,
    MODEL_BY_NAME,
)
"""For SQLite."""

POSTGRESQL_SCHEMA = "terafleet_catalogue"
POSTGRESQL_FORMAT_VERSION = 1

# The same tables in another dialect; ids are sorted by their bytes, as in SQLite.
POSTGRESQL_TABLES = (
    "CREATE TABLE format (version bigint NOT NULL)",
    """
    CREATE TABLE file (
      file_id text COLLATE "C" PRIMARY KEY,
      customer_id text NOT NULL,
      filename text NOT NULL,
      purpose text NOT NULL,
      size_bytes bigint NOT NULL,
      created_ms bigint NOT NULL,
      object_name text NOT NULL,
      summary bytea NOT NULL
    )
    """,
    FILE_BY_TIME,
    """
    CREATE TABLE api_key (
      key_id text COLLATE "C" NOT NULL UNIQUE,
      secret_sha256 bytea PRIMARY KEY,
      hint text NOT NULL,
      name text NOT NULL,
      role text NOT NULL,
      customer_id text NOT NULL,
      created_ms bigint NOT NULL,
      revoked_ms bigint NOT NULL
    )
    """,
    """
    CREATE TABLE enrolment_code (
      code_sha256 bytea PRIMARY KEY,
      created_ms bigint NOT NULL,
      expires_ms bigint NOT NULL,
      used_ms bigint NOT NULL,
      vehicle_id text NOT NULL
    )
    """,
    """
    CREATE TABLE vehicle (
      vehicle_id text COLLATE "C" PRIMARY KEY,
      name text NOT NULL,
      public_key text NOT NULL,
      enrolled_ms bigint NOT NULL,
      removed_ms bigint NOT NULL
    )
    """,
    """
    CREATE TABLE model (
      model_id text COLLATE "C" PRIMARY KEY,
      name text NOT NULL,
      manifest bytea NOT NULL,
      signature bytea NOT NULL,
      created_ms bigint NOT NULL,
      removed_ms bigint NOT NULL
    )
    """,
    MODEL_BY_NAME,
)


def first_row(kind: type[R], rows: Sequence[Sequence[Any]]) -> R | None:
    """The first of some rows of a table as its Struct, or None."""
    return kind(*rows[0]) if rows else None


def model_row(row: Sequence[Any]) -> ModelRow:
    """A row of the table `model`, whose manifest and signature are one field here."""
    model_id, name, manifest, signature, created_ms, removed_ms = row
    return ModelRow(model_id, name, SignedManifest(manifest, signature), created_ms, removed_ms)
