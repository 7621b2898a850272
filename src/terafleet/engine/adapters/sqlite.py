"""The record in SQLite: one connection writes, others read; snapshots are files beside it."""

import errno
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from terafleet.engine.adapters.snapshot_files import SnapshotFiles
from terafleet.engine.adapters.sqlite_format import (
    Synchronous,
    check_format,
    lock,
    open_reader,
    open_writer,
    unlock,
)
from terafleet.engine.ports import (
    Blob,
    JournalEntry,
    Record,
    Recovered,
    StorageDamaged,
    StorageFull,
    check_sequence,
)

SNAPSHOTS_KEPT = 2
PAGE_ENTRIES = 500
PAGE_NAMES = 10_000
PAGE_BYTES = 8 * 1024 * 1024
DELETE_ROWS = 256
DELETE_BYTES = 4 * 1024 * 1024
DELETE_PAUSE_S = 0.001
DISK_FULL_BYTES = 4 * 1024 * 1024
"""With less free, SQLite's "disk I/O error" is taken for a full disk."""

NAME_AFTER_ALL = "\U0010ffff"
"""Sorts after every character of a name: Unicode assigns no meaning to it."""

FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT))
PRIMARY_CODE = 0xFF

UPSERT_RECORD = """
INSERT INTO records (kind, id, parent, sort, body) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (kind, id) DO UPDATE
SET parent = excluded.parent, sort = excluded.sort, body = excluded.body
"""
UPSERT_BLOB = """
INSERT INTO blobs (name, body) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET body = excluded.body
"""
SELECT_RECORD = "SELECT kind, id, body, parent, sort FROM records"

logger = logging.getLogger(__name__)


class SqliteStore:
    """A durable record in one folder: `path`, and SQLite's and our files beside it.

    `commit`, `save_snapshot`, `trim_journal` and `delete_blobs` exclude each other; reading
    may go on beside them in any number of threads, each call seeing a whole transaction.
    """

    def __init__(self, path: Path, synchronous: Synchronous = "FULL") -> None:
        """Open or create. Raises StorageVersionUnknown, StoreInUse, StorageFull, StorageDamaged.

        "FULL" loses nothing at a power cut, "NORMAL" perhaps the last transactions.
        """
        self._path = path
        self._files = SnapshotFiles(path)
        self._readers: deque[sqlite3.Connection] = deque()
        self._writing_lock = threading.Lock()
        self._page_count_max: int | None = None
        self._is_closed = False
        check_format(path)
        self._lock_descriptor = lock(path)
        try:
            with self._mapped():
                self._writer = open_writer(path, synchronous)
        except BaseException:
            unlock(self._lock_descriptor)
            raise
        try:
            with self._mapped():
                self._page_bytes = self._pragma("page_size")
                self._last_sequence = self._read_last_sequence()
                named = self._writer.execute("SELECT file FROM snapshots").fetchall()
            self._files.keep_only({name for (name,) in named})
        except BaseException:
            self.close()
            raise

    def recover(self) -> Recovered:
        """The newest whole snapshot that joins the journal, and the entries behind it."""
        with self._reading() as connection:
            snapshots = connection.execute(
                "SELECT sequence, at_ms, schema, file, digest FROM snapshots ORDER BY 1 DESC"
            ).fetchall()
            first, at_ms = connection.execute(
                "SELECT min(sequence), coalesce(max(at_ms), 0) FROM journal"
            ).fetchone()
        for sequence, snapshot_at_ms, schema, name, digest in snapshots:
            joins = sequence == self._last_sequence or (first is not None and first <= sequence + 1)
            body = self._files.read(name, digest) if joins else None
            if body is not None:
                return Recovered(
                    snapshot=body,
                    snapshot_schema=schema,
                    entries=self.entries(sequence),
                    last_sequence=self._last_sequence,
                    last_at_ms=max(at_ms, snapshot_at_ms),
                )
            logger.error("snapshot_damaged sequence=%d file=%s", sequence, name)
        if self._last_sequence and first != 1:
            raise StorageDamaged(f"no snapshot, and the journal begins at {first}")
        return Recovered(None, 0, self.entries(), self._last_sequence, at_ms)

    def commit(
        self, entries: Sequence[JournalEntry], records: Sequence[Record], blobs: Sequence[Blob]
    ) -> None:
        """Write all of it durably or none of it. Raises StorageFull."""
        check_sequence(self._last_sequence, entries)
        newest = {(record.kind, record.id): record for record in records}.values()
        named = {blob.name: blob for blob in blobs}.values()
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO journal (sequence, at_ms, schema, events, effects)"
                " VALUES (?, ?, ?, ?, ?)",
                ((e.sequence, e.at_ms, e.schema, e.events, e.effects) for e in entries),
            )
            if newest:
                connection.executemany(
                    UPSERT_RECORD,
                    (
                        (r.kind, r.id, r.parent, r.sort, r.body)
                        for r in newest
                        if r.body is not None
                    ),
                )
                connection.executemany(
                    "DELETE FROM records WHERE kind = ? AND id = ?",
                    ((r.kind, r.id) for r in newest if r.body is None),
                )
            if named:
                connection.executemany(
                    UPSERT_BLOB, ((b.name, b.body) for b in named if b.body is not None)
                )
                connection.executemany(
                    "DELETE FROM blobs WHERE name = ?", ((b.name,) for b in named if b.body is None)
                )
        self._last_sequence = entries[-1].sequence

    def save_snapshot(self, sequence: int, schema: int, body: bytes) -> None:
        """Keep a snapshot and the one before it. Raises StorageFull.

        Commits go on while the file is written; only its row is a transaction.
        """
        assert sequence <= self._last_sequence, "a snapshot of what was committed"
        with self._mapped():
            name, digest = self._files.write(sequence, body)
        with self._transaction() as connection:
            before = connection.execute("SELECT sequence, file FROM snapshots").fetchall()
            (at_ms,) = connection.execute(
                "SELECT coalesce((SELECT at_ms FROM journal WHERE sequence = :sequence),"
                " (SELECT at_ms FROM snapshots WHERE sequence = :sequence), 0)",
                {"sequence": sequence},
            ).fetchone()
            connection.execute(
                "INSERT OR REPLACE INTO snapshots (sequence, at_ms, schema, file, size, digest)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (sequence, at_ms, schema, name, len(body), digest),
            )
            connection.execute(
                "DELETE FROM snapshots WHERE sequence NOT IN"
                " (SELECT sequence FROM snapshots ORDER BY sequence DESC LIMIT ?)",
                (SNAPSHOTS_KEPT,),
            )
            after = connection.execute("SELECT sequence, file FROM snapshots").fetchall()
        for gone in {file for _, file in before} - {file for _, file in after}:
            self._files.delete(gone)

    def trim_journal(self, before_ms: int) -> int:
        """Forget entries older than `before_ms` that every kept snapshot covers; how many went.

        One short transaction: call it again until it returns 0. Raises StorageFull.
        """
        return self._delete_page(
            "SELECT sequence, length(events) + length(effects) FROM journal"
            " WHERE sequence <= (SELECT min(sequence) FROM snapshots) AND at_ms < ?"
            " ORDER BY sequence LIMIT ?",
            (before_ms, DELETE_ROWS),
            "DELETE FROM journal WHERE sequence = ?",
        )

    def record(self, kind: str, record_id: str) -> Record | None:
        """One record, or None."""
        with self._reading() as connection:
            row = connection.execute(
                f"{SELECT_RECORD} WHERE kind = ? AND id = ?", (kind, record_id)
            ).fetchone()
        return Record(*row) if row is not None else None

    def records(
        self,
        kind: str,
        parent: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """Records of a kind, newest `sort` first (then id descending), after a position."""
        query = f"{SELECT_RECORD} WHERE kind = ?"
        values: list[str | int] = [kind]
        if parent is not None:
            query += " AND parent = ?"
            values.append(parent)
        if after is not None:
            query += " AND (sort, id) < (?, ?)"
            values.extend(after)
        query += " ORDER BY sort DESC, id DESC LIMIT ?"
        with self._reading() as connection:
            rows = connection.execute(query, (*values, limit)).fetchall()
        return [Record(*row) for row in rows]

    def blob(self, name: str) -> bytes | None:
        """One blob, or None."""
        with self._reading() as connection:
            row = connection.execute("SELECT body FROM blobs WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row is not None else None

    def blob_names(self, prefix: str) -> Iterator[str]:
        """The names that start with `prefix`, in their order; each page is a read of its own."""
        last = None
        while page := self._names_page(prefix, last):
            yield from page
            last = page[-1]

    def delete_blobs(self, prefix: str) -> int:
        """Remove all blobs whose name starts with `prefix`; how many went. Raises StorageFull."""
        total = 0
        while count := self._delete_page(
            "SELECT name, length(body) FROM blobs WHERE name >= ? AND name < ? LIMIT ?",
            (prefix, prefix + NAME_AFTER_ALL, DELETE_ROWS),
            "DELETE FROM blobs WHERE name = ?",
        ):
            total += count
            # Locks are not fair; the pause lets a waiting commit in between.
            time.sleep(DELETE_PAUSE_S)
        return total

    def entries(self, after_sequence: int = 0) -> Iterator[JournalEntry]:
        """The journal in order; each page is a read of its own, so that nothing waits for it."""
        while page := self._page(after_sequence):
            yield from page
            after_sequence = page[-1].sequence

    def bytes_free(self) -> int | None:
        """Room left: on the disk, and in pages of the database that are free again.

        Free pages count only while the disk still has room for SQLite's WAL.
        """
        disk = os.statvfs(self._path.parent)
        disk_bytes = disk.f_bavail * disk.f_frsize
        with self._reading() as connection:
            (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
        room = disk_bytes
        if disk_bytes > DISK_FULL_BYTES:
            room += free_pages * self._page_bytes
        if self._page_count_max is not None:
            left = max(0, self._page_count_max - pages) + free_pages
            room = min(room, left * self._page_bytes)
        return room

    def limit_bytes(self, bytes_max: int | None) -> None:
        """Let the database grow no further than this, or than it is; None lifts the limit."""
        with self._writing_lock, self._mapped():
            pages = 0xFFFF_FFFE if bytes_max is None else max(1, bytes_max // self._page_bytes)
            granted = self._pragma(f"max_page_count = {pages}")
            self._page_count_max = None if bytes_max is None else granted

    def close(self) -> None:
        """Let go of the record; all that was committed stays. No other call may be under way."""
        if self._is_closed:
            return
        self._is_closed = True
        while self._readers:
            self._readers.pop().close()
        with self._writing_lock:
            self._writer.close()
        unlock(self._lock_descriptor)

    def _page(self, after_sequence: int) -> list[JournalEntry]:
        """The entries that follow, as many as fit a page, at least one if there is one."""
        page: list[JournalEntry] = []
        size = 0
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT sequence, at_ms, schema, events, effects FROM journal"
                " WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (after_sequence, PAGE_ENTRIES),
            )
            for row in rows:
                page.append(JournalEntry(*row))
                size += len(row[3]) + len(row[4])
                if size >= PAGE_BYTES:
                    break
            rows.close()
        return page

    def _names_page(self, prefix: str, last: str | None) -> list[str]:
        """The names that follow `last`, or the first ones, as many as fit a page."""
        begin = prefix if last is None else last
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT name FROM blobs WHERE name >= ? AND name IS NOT ? AND name < ?"
                " ORDER BY name LIMIT ?",
                (begin, last, prefix + NAME_AFTER_ALL, PAGE_NAMES),
            ).fetchall()
        return [name for (name,) in rows]

    def _delete_page(self, select: str, values: tuple[str | int, ...], delete: str) -> int:
        """Delete the first rows that `select` names with their sizes, bounded in bytes too."""
        with self._transaction() as connection:
            size = 0
            keys: list[tuple[str | int]] = []
            for key, row_bytes in connection.execute(select, values).fetchall():
                keys.append((key,))
                size += row_bytes
                if size >= DELETE_BYTES:
                    break
            connection.executemany(delete, keys)
        return len(keys)

    def _read_last_sequence(self) -> int:
        (last,) = self._writer.execute(
            "SELECT max(coalesce((SELECT max(sequence) FROM journal), 0),"
            " coalesce((SELECT max(sequence) FROM snapshots), 0))"
        ).fetchone()
        return int(last)

    def _pragma(self, pragma: str) -> int:
        (value,) = self._writer.execute(f"PRAGMA {pragma}").fetchone()
        return int(value)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing_lock, self._mapped():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread has at the moment."""
        assert not self._is_closed, "the store is closed"
        with self._mapped():
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = open_reader(self._path)
            try:
                yield connection
            finally:
                self._readers.append(connection)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Turn SQLite's and the system's errors into those of the port."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE
            if code == sqlite3.SQLITE_FULL or (
                code == sqlite3.SQLITE_IOERR and self._is_disk_full()
            ):
                raise StorageFull(str(error)) from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise StorageDamaged(str(error)) from error
            raise
        except OSError as error:
            if error.errno in FULL_ERRNOS:
                raise StorageFull(str(error)) from error
            raise

    def _is_disk_full(self) -> bool:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize < DISK_FULL_BYTES
