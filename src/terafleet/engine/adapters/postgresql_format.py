"""The format of the PostgreSQL record: its tables, its statements, and who may write it."""

import asyncpg

from terafleet.engine.ports import StorageUnavailable, StoreInUse
from terafleet.engine.postgresql_connections import Connection
from terafleet.engine.postgresql_schema import make_or_check

SCHEMA = "terafleet_record"
FORMAT_VERSION = 1
WRITER_LOCK = 0x5446_4C54_0000_0001
"""The number of the advisory lock that the writer of a database's record holds."""

# Names and ids are sorted by their bytes, as Python and SQLite do. What is large is mostly
# compressed or random already, so the server need not try.
TABLES = (
    "CREATE TABLE format (version bigint NOT NULL, writer bigint NOT NULL DEFAULT 0)",
    """
    CREATE TABLE journal (
      sequence bigint PRIMARY KEY,
      at_ms bigint NOT NULL,
      schema bigint NOT NULL,
      events bytea NOT NULL,
      effects bytea NOT NULL
    )
    """,
    """
    CREATE TABLE snapshots (
      sequence bigint PRIMARY KEY,
      at_ms bigint NOT NULL,
      schema bigint NOT NULL
    )
    """,
    """
    CREATE TABLE snapshot_pieces (
      sequence bigint REFERENCES snapshots ON DELETE CASCADE,
      piece bigint,
      body bytea NOT NULL,
      PRIMARY KEY (sequence, piece)
    )
    """,
    """
    CREATE TABLE records (
      kind text COLLATE "C",
      id text COLLATE "C",
      parent text COLLATE "C" NOT NULL,
      sort bigint NOT NULL,
      body bytea NOT NULL,
      PRIMARY KEY (kind, id)
    )
    """,
    "CREATE INDEX records_sorted ON records (kind, sort, id)",
    "CREATE INDEX records_of_parent ON records (kind, parent, sort, id)",
    """
    CREATE TABLE blobs (
      name text COLLATE "C" PRIMARY KEY,
      body bytea NOT NULL
    )
    """,
    "ALTER TABLE snapshot_pieces ALTER body SET STORAGE EXTERNAL",
    "ALTER TABLE blobs ALTER body SET STORAGE EXTERNAL",
)

# One statement is one transaction and one round trip. Its parts do not see each other's
# changes, so no row may be named by two of them.
COMMIT = """
WITH entry AS (
  INSERT INTO journal (sequence, at_ms, schema, events, effects)
  SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[])
), record AS (
  INSERT INTO records (kind, id, parent, sort, body)
  SELECT * FROM unnest($6::text[], $7::text[], $8::text[], $9::bigint[], $10::bytea[])
  ON CONFLICT (kind, id) DO UPDATE
  SET parent = excluded.parent, sort = excluded.sort, body = excluded.body
), record_gone AS (
  DELETE FROM records USING unnest($11::text[], $12::text[]) AS gone (kind, id)
  WHERE records.kind = gone.kind AND records.id = gone.id
), blob AS (
  INSERT INTO blobs (name, body) SELECT * FROM unnest($13::text[], $14::bytea[])
  ON CONFLICT (name) DO UPDATE SET body = excluded.body
)
DELETE FROM blobs WHERE name = ANY ($15::text[])
"""

LAST_SEQUENCE = """
SELECT greatest((SELECT max(sequence) FROM journal), (SELECT max(sequence) FROM snapshots), 0)
"""

AT_MS = """
SELECT coalesce((SELECT at_ms FROM journal WHERE sequence = $1),
                (SELECT at_ms FROM snapshots WHERE sequence = $1), 0)
"""
DELETE_OLDER_SNAPSHOTS = """
DELETE FROM snapshots WHERE sequence NOT IN
  (SELECT sequence FROM snapshots ORDER BY sequence DESC LIMIT $1)
"""

TRIM = """
DELETE FROM journal WHERE sequence IN
  (SELECT sequence FROM journal
   WHERE sequence <= (SELECT min(sequence) FROM snapshots) AND at_ms < $1
   ORDER BY sequence LIMIT $2)
"""

ENTRIES = """
SELECT sequence, at_ms, schema, events, effects FROM
  (SELECT *, sum(octet_length(events) + octet_length(effects)) OVER
             (ORDER BY sequence ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
   FROM (SELECT * FROM journal WHERE sequence > $1 ORDER BY sequence LIMIT $2) AS page) AS summed
WHERE coalesce(bytes_before, 0) < $3 ORDER BY sequence
"""

BLOB_NAMES = """
SELECT name FROM blobs WHERE name >= $1 AND name IS DISTINCT FROM $2 AND name < $3
ORDER BY name LIMIT $4
"""

DELETE_BLOBS = """
DELETE FROM blobs WHERE name IN
  (SELECT name FROM blobs WHERE name >= $1 AND name < $2 ORDER BY name LIMIT $3)
"""


async def open_for_writing(connection: Connection, writer: int) -> int:
    """Hold the record as long as the connection lasts; the number of this opening.

    `writer` is 0 at the first opening, then what that returned: a connection that comes back may
    find that somebody else had the record meanwhile. Raises StoreInUse, StorageUnavailable and
    StorageVersionUnknown, with nothing changed.
    """
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", WRITER_LOCK)
    except asyncpg.LockNotAvailableError as error:
        if writer and writer == await connection.fetchval("SELECT writer FROM format"):
            message = "the server has not yet let go of the connection before"
            raise StorageUnavailable(message) from error
        raise StoreInUse("another control plane holds its lock") from error
    await make_or_check(connection, SCHEMA, FORMAT_VERSION, TABLES)
    if not writer:
        counted = "UPDATE format SET writer = writer + 1 RETURNING writer"
        return int(await connection.fetchval(counted))
    if writer != await connection.fetchval("SELECT writer FROM format"):
        raise StoreInUse("another control plane has opened the record since")
    return writer
