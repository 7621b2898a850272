"""A store in memory, for tests and simulation; it can be full on demand."""

import heapq
import threading
from collections.abc import Iterator, Sequence

from terafleet.engine.ports import (
    Blob,
    JournalEntry,
    Record,
    Recovered,
    StorageFull,
    check_sequence,
)

SNAPSHOTS_KEPT = 2
PAGE_ENTRIES = 500


class MemoryStore:
    """Keeps everything in dictionaries; survives `close`, so that a restart can be played.

    `capacity_bytes` bounds the bodies of all that it holds.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        """Begin empty."""
        self.capacity_bytes = capacity_bytes
        self._failures = 0
        self._bytes_used = 0
        self._entries: list[JournalEntry] = []
        self._snapshots: list[tuple[int, int, int, bytes]] = []
        self._records: dict[str, dict[str, Record]] = {}
        self._blobs: dict[str, bytes] = {}
        # A snapshot may be saved by another thread than the one that commits.
        self._lock = threading.Lock()

    def fail_next(self, count: int = 1) -> None:
        """Let the next `count` commits or snapshots raise StorageFull."""
        self._failures = count

    def recover(self) -> Recovered:
        """The newest snapshot and the entries behind it."""
        sequence, at_ms, schema, body = 0, 0, 0, None
        if self._snapshots:
            sequence, at_ms, schema, body = self._snapshots[-1]
        if self._entries:
            at_ms = max(at_ms, self._entries[-1].at_ms)
        return Recovered(
            snapshot=body,
            snapshot_schema=schema,
            entries=self.entries(sequence),
            last_sequence=self._last_sequence(),
            last_at_ms=at_ms,
        )

    def commit(
        self, entries: Sequence[JournalEntry], records: Sequence[Record], blobs: Sequence[Blob]
    ) -> None:
        """Write all of it or none of it. Raises StorageFull."""
        with self._lock:
            check_sequence(self._last_sequence(), entries)
            newest = {(record.kind, record.id): record for record in records}
            named = {blob.name: blob.body for blob in blobs}
            size = sum(len(entry.events) + len(entry.effects) for entry in entries)
            size += sum(self._growth(record) for record in newest.values())
            for name, body in named.items():
                size += len(body or b"") - len(self._blobs.get(name, b""))
            self._take_room(size)
            self._entries.extend(entries)
            for name, body in named.items():
                self._put_blob(name, body)
            for record in newest.values():
                self._put(record)

    def save_snapshot(self, sequence: int, schema: int, body: bytes) -> None:
        """Keep a snapshot and the one before it. Raises StorageFull."""
        with self._lock:
            assert sequence <= self._last_sequence(), "a snapshot of what was committed"
            others = [old for old in self._snapshots if old[0] != sequence]
            kept = others[1 - SNAPSHOTS_KEPT :]
            size = sum(len(old[3]) for old in kept) - sum(len(old[3]) for old in self._snapshots)
            self._take_room(len(body) + size)
            self._snapshots = [*kept, (sequence, self._at_ms(sequence), schema, body)]

    def trim_journal(self, before_ms: int) -> int:
        """Forget entries older than `before_ms` that every kept snapshot covers."""
        with self._lock:
            covered = self._snapshots[0][0] if self._snapshots else 0
            count = 0
            while (
                count < len(self._entries)
                and self._entries[count].sequence <= covered
                and self._entries[count].at_ms < before_ms
            ):
                count += 1
            for entry in self._entries[:count]:
                self._bytes_used -= len(entry.events) + len(entry.effects)
            del self._entries[:count]
            return count

    def record(self, kind: str, record_id: str) -> Record | None:
        """One record, or None."""
        return self._records.get(kind, {}).get(record_id)

    def records(
        self,
        kind: str,
        parent: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """Records of a kind, newest `sort` first (then id descending), after a position."""
        with self._lock:
            found = [
                record
                for record in self._records.get(kind, {}).values()
                if (parent is None or record.parent == parent)
                and (after is None or (record.sort, record.id) < after)
            ]
        return heapq.nlargest(limit, found, key=lambda record: (record.sort, record.id))

    def blob(self, name: str) -> bytes | None:
        """One blob, or None."""
        return self._blobs.get(name)

    def blob_names(self, prefix: str) -> Iterator[str]:
        """The names that start with `prefix`, in their order, as they were at the first."""
        with self._lock:
            names = [name for name in self._blobs if name.startswith(prefix)]
        yield from sorted(names)

    def delete_blobs(self, prefix: str) -> int:
        """Remove all blobs whose name starts with `prefix`; how many went."""
        with self._lock:
            names = [name for name in self._blobs if name.startswith(prefix)]
            for name in names:
                self._bytes_used -= len(self._blobs.pop(name))
            return len(names)

    def entries(self, after_sequence: int = 0) -> Iterator[JournalEntry]:
        """The journal in order; pages are copied so that it may grow and be trimmed meanwhile."""
        while page := self._page(after_sequence):
            yield from page
            after_sequence = page[-1].sequence

    def bytes_free(self) -> int | None:
        """What `capacity_bytes` leaves; None without it."""
        if self.capacity_bytes is None:
            return None
        return max(0, self.capacity_bytes - self._bytes_used)

    def close(self) -> None:
        """Nothing to let go of; all that was committed stays in this object."""

    def _page(self, after_sequence: int) -> list[JournalEntry]:
        with self._lock:
            if not self._entries:
                return []
            begin = max(0, after_sequence + 1 - self._entries[0].sequence)
            return self._entries[begin : begin + PAGE_ENTRIES]

    def _at_ms(self, sequence: int) -> int:
        for entry in reversed(self._entries):
            if entry.sequence == sequence:
                return entry.at_ms
        return next((old[1] for old in self._snapshots if old[0] == sequence), 0)

    def _last_sequence(self) -> int:
        in_journal = self._entries[-1].sequence if self._entries else 0
        in_snapshot = self._snapshots[-1][0] if self._snapshots else 0
        return max(in_journal, in_snapshot)

    def _growth(self, record: Record) -> int:
        old = self._records.get(record.kind, {}).get(record.id)
        return len(record.body or b"") - len(old.body or b"" if old is not None else b"")

    def _put(self, record: Record) -> None:
        records = self._records.setdefault(record.kind, {})
        if record.body is None:
            records.pop(record.id, None)
        else:
            records[record.id] = record

    def _put_blob(self, name: str, body: bytes | None) -> None:
        if body is None:
            self._blobs.pop(name, None)
        else:
            self._blobs[name] = body

    def _take_room(self, size: int) -> None:
        if self._failures > 0:
            self._failures -= 1
            raise StorageFull("asked to fail")
        if self.capacity_bytes is not None and self._bytes_used + size > self.capacity_bytes:
            raise StorageFull(f"{self._bytes_used + size} of {self.capacity_bytes} bytes")
        self._bytes_used += size
