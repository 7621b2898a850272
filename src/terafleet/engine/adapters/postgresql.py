"""The record in PostgreSQL: one connection writes and holds the lock, others read beside it."""

from collections.abc import Iterator, Sequence
from typing import Any

from terafleet.engine.adapters import postgresql_format as sql
from terafleet.engine.ports import (
    Blob,
    JournalEntry,
    Record,
    Recovered,
    StorageDamaged,
    check_sequence,
)
from terafleet.engine.postgresql_connections import Connection, Connections

ANSWER_S = 15.0
SNAPSHOTS_KEPT = 2
PAGE_ENTRIES = 500
PAGE_NAMES = 10_000
PAGE_BYTES = 8 * 1024 * 1024
PIECE_BYTES = 4 * 1024 * 1024
DELETE_ROWS = 1_000

NAME_AFTER_ALL = "\U0010ffff"
"""Sorts after every character of a name: Unicode assigns no meaning to it."""

NUL = "\0"
"""No text in PostgreSQL has this character, so nothing is found under a name that has it."""

SELECT_RECORD = "SELECT kind, id, body, parent, sort FROM records"


class PostgresqlStore:
    """A durable record in the schema `terafleet_record` of a database.

    `commit`, `trim_journal` and `delete_blobs` take their turns on one connection, which holds
    an advisory lock of the database: who loses the connection writes nothing before it has the
    lock again. Snapshots and readers have connections of their own, which hold nobody up.
    """

    def __init__(self, url: str) -> None:
        """Open or create; `url` is `postgresql://user@host/database`.

        Raises StorageUnavailable, StorageVersionUnknown, StoreInUse, StorageFull.
        """
        self._last_sequence = 0
        self._writer = 0
        self._is_sure = True
        """Whether the record certainly ends at `_last_sequence`."""
        self._connections = Connections(url, sql.SCHEMA, self._prepare, ANSWER_S)
        try:
            self._last_sequence = self._connections.in_turn(_last_sequence)
        except BaseException:
            self.close()
            raise
        self._is_sure = True

    def recover(self) -> Recovered:
        """The newest snapshot that joins the journal, and the entries behind it."""
        return self._connections.beside(self._recover)

    def commit(
        self, entries: Sequence[JournalEntry], records: Sequence[Record], blobs: Sequence[Blob]
    ) -> None:
        """Write all of it durably or none of it. Raises StorageFull, StorageUnavailable.

        After StorageUnavailable it may have been written; the next commit, which must have the
        same entries, finds that out first.
        """
        check_sequence(self._last_sequence, entries)
        values = (*_columns_of(entries), *_changes(records, blobs))

        async def work(connection: Connection) -> None:
            if not self._is_sure and await self._has(connection, entries[-1].sequence):
                return
            self._is_sure = False
            await connection.execute(sql.COMMIT, *values)
            self._is_sure = True

        self._connections.in_turn(work)
        self._last_sequence = entries[-1].sequence

    def save_snapshot(self, sequence: int, schema: int, body: bytes) -> None:
        """Keep a snapshot and the one before it. Raises StorageFull, StorageUnavailable.

        Commits go on meanwhile. It is sent in pieces, and counts once the last one is there.
        """
        assert sequence <= self._last_sequence, "a snapshot of what was committed"
        pieces = memoryview(body)

        async def work(connection: Connection) -> None:
            async with connection.transaction():
                at_ms = await connection.fetchval(sql.AT_MS, sequence)
                await connection.execute("DELETE FROM snapshots WHERE sequence = $1", sequence)
                row = (sequence, at_ms, schema)
                await connection.execute("INSERT INTO snapshots VALUES ($1, $2, $3)", *row)
                insert = "INSERT INTO snapshot_pieces VALUES ($1, $2, $3)"
                for number, begin in enumerate(range(0, len(pieces), PIECE_BYTES)):
                    piece = pieces[begin : begin + PIECE_BYTES]
                    await connection.execute(insert, sequence, number, piece)
                await connection.execute(sql.DELETE_OLDER_SNAPSHOTS, SNAPSHOTS_KEPT)

        self._connections.beside(work)

    def trim_journal(self, before_ms: int) -> int:
        """Forget entries older than `before_ms` that every kept snapshot covers; how many went.

        One short transaction: call it again until it returns 0. Raises StorageFull.
        """
        return self._delete(sql.TRIM, before_ms, DELETE_ROWS)

    def record(self, kind: str, record_id: str) -> Record | None:
        """One record, or None."""
        rows = self._rows(f"{SELECT_RECORD} WHERE kind = $1 AND id = $2", kind, record_id)
        return Record(*rows[0]) if rows else None

    def records(
        self,
        kind: str,
        parent: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """Records of a kind, newest `sort` first (then id descending), after a position."""
        query = f"{SELECT_RECORD} WHERE kind = $1"
        values: list[str | int] = [kind, limit]
        if parent is not None:
            values.append(parent)
            query += f" AND parent = ${len(values)}"
        if after is not None:
            values.extend(after)
            query += f" AND (sort, id) < (${len(values) - 1}, ${len(values)})"
        query += " ORDER BY sort DESC, id DESC LIMIT $2"
        return [Record(*row) for row in self._rows(query, *values)]

    def blob(self, name: str) -> bytes | None:
        """One blob, or None."""
        rows = self._rows("SELECT body FROM blobs WHERE name = $1", name)
        return rows[0][0] if rows else None

    def blob_names(self, prefix: str) -> Iterator[str]:
        """The names that start with `prefix`, in their order; each page is a read of its own."""
        last, end = None, prefix + NAME_AFTER_ALL
        while page := self._rows(sql.BLOB_NAMES, last or prefix, last, end, PAGE_NAMES):
            for (name,) in page:
                yield name
            (last,) = page[-1]

    def delete_blobs(self, prefix: str) -> int:
        """Remove all blobs whose name starts with `prefix`; how many went. Raises StorageFull."""
        total = 0
        end = prefix + NAME_AFTER_ALL
        # Each page is a turn of its own, so that a commit that waits comes in between.
        while count := self._delete(sql.DELETE_BLOBS, prefix, end, DELETE_ROWS):
            total += count
        return total

    def entries(self, after_sequence: int = 0) -> Iterator[JournalEntry]:
        """The journal in order; each page is a read of its own, so that nothing waits for it."""
        while page := self._rows(sql.ENTRIES, after_sequence, PAGE_ENTRIES, PAGE_BYTES):
            for row in page:
                yield JournalEntry(*row)
            after_sequence = page[-1][0]

    def bytes_free(self) -> int | None:
        """None: the server does not tell how much room its disk has."""
        return None

    def close(self) -> None:
        """Let go of the record; all that was committed stays. No other call may be under way."""
        self._connections.close()

    async def _prepare(self, connection: Connection) -> None:
        """Take the record with a connection that is to write, at first and after each loss."""
        self._writer = await sql.open_for_writing(connection, self._writer)
        self._is_sure = False

    async def _has(self, connection: Connection, sequence: int) -> bool:
        """Whether a commit up to `sequence` whose answer was lost has happened.

        Raises StorageDamaged for a record that ends elsewhere than where this process left it:
        a copy that lags behind has taken its place, say.
        """
        last = await _last_sequence(connection)
        if last not in (sequence, self._last_sequence):
            raise StorageDamaged(f"the record ends at {last}, expected {self._last_sequence}")
        return last == sequence

    async def _recover(self, connection: Connection) -> Recovered:
        first, at_ms = await connection.fetchrow(
            "SELECT min(sequence), coalesce(max(at_ms), 0) FROM journal"
        )
        snapshots = await connection.fetch(
            "SELECT sequence, at_ms, schema FROM snapshots ORDER BY sequence DESC"
        )
        for sequence, snapshot_at_ms, schema in snapshots:
            if sequence == self._last_sequence or (first is not None and first <= sequence + 1):
                return Recovered(
                    snapshot=await _snapshot_body(connection, sequence),
                    snapshot_schema=schema,
                    entries=self.entries(sequence),
                    last_sequence=self._last_sequence,
                    last_at_ms=max(at_ms, snapshot_at_ms),
                )
        if self._last_sequence and first != 1:
            raise StorageDamaged(f"no snapshot, and the journal begins at {first}")
        return Recovered(None, 0, self.entries(), self._last_sequence, at_ms)

    def _rows(self, query: str, *values: str | int | None) -> Sequence[tuple[Any, ...]]:
        if any(isinstance(value, str) and NUL in value for value in values):
            return ()
        return self._connections.beside(lambda connection: connection.fetch(query, *values))

    def _delete(self, statement: str, *values: str | int) -> int:
        done = self._connections.in_turn(lambda connection: connection.execute(statement, *values))
        # PostgreSQL answers in words: "DELETE 12".
        return int(done.rpartition(" ")[2])


async def _last_sequence(connection: Connection) -> int:
    return int(await connection.fetchval(sql.LAST_SEQUENCE))


async def _snapshot_body(connection: Connection, sequence: int) -> bytes:
    query = "SELECT body FROM snapshot_pieces WHERE sequence = $1 AND piece = $2"
    pieces: list[bytes] = []
    while (piece := await connection.fetchval(query, sequence, len(pieces))) is not None:
        pieces.append(piece)
    return b"".join(pieces)


def _columns_of(entries: Sequence[JournalEntry]) -> Iterator[list[Any]]:
    yield [entry.sequence for entry in entries]
    yield [entry.at_ms for entry in entries]
    yield [entry.schema for entry in entries]
    yield [entry.events for entry in entries]
    yield [entry.effects for entry in entries]


def _changes(records: Sequence[Record], blobs: Sequence[Blob]) -> Iterator[list[Any]]:
    """The columns of what is to be there, and the names of what is to go."""
    newest = {(record.kind, record.id): record for record in records}.values()
    kept = [record for record in newest if record.body is not None]
    gone = [record for record in newest if record.body is None]
    yield [record.kind for record in kept]
    yield [record.id for record in kept]
    yield [record.parent for record in kept]
    yield [record.sort for record in kept]
    yield [record.body for record in kept]
    yield [record.kind for record in gone]
    yield [record.id for record in gone]
    named = {blob.name: blob.body for blob in blobs}
    yield [name for name, body in named.items() if body is not None]
    yield [body for body in named.values() if body is not None]
    yield [name for name, body in named.items() if body is None]
