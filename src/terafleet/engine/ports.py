"""The interface to the record: journal, snapshots, records and small blobs in one transaction."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec


class JournalEntry(msgspec.Struct, frozen=True):
    """One handled group of events and its effects, both as bytes of the machine's codec."""

    sequence: int
    at_ms: int
    schema: int
    events: bytes
    effects: bytes


class Record(msgspec.Struct, frozen=True):
    """A document that people read: the newest state of one thing; `body` None deletes it.

    `parent` groups records of a kind (a batch's owner, say); `sort` orders them in lists.
    """

    kind: str
    id: str
    body: bytes | None
    parent: str = ""
    sort: int = 0


class Blob(msgspec.Struct, frozen=True):
    """Opaque bytes under a name, small enough to live in the record; `body` None deletes it."""

    name: str
    body: bytes | None


class Recovered(msgspec.Struct, frozen=True):
    """What a store held when it was opened: the newest snapshot and the journal behind it."""

    snapshot: bytes | None
    snapshot_schema: int
    entries: Iterator[JournalEntry]
    last_sequence: int
    last_at_ms: int


def check_sequence(last_sequence: int, entries: Sequence[JournalEntry]) -> None:
    """Assert that entries go on where the journal ends: it has no gaps."""
    assert entries, "a commit without entries"
    for sequence, entry in enumerate(entries, last_sequence + 1):
        assert entry.sequence == sequence, "the journal has no gaps"


class StorageFull(Exception):
    """The record cannot grow; the transaction did not happen and may be tried again."""


class StorageUnavailable(StorageFull):
    """The record's server is out of reach; it is met as a full record is, and ends by itself.

    Whether a commit happened is not known then. The same commit again is right in both cases.
    """


class StorageDamaged(Exception):
    """The record cannot be read, or no whole snapshot joins what is left of the journal."""


class StorageVersionUnknown(Exception):
    """The data were written by another version of the format; nothing was touched."""


class StoreInUse(Exception):
    """Another process, or another store in this one, has the record open for writing."""


class Store(Protocol):
    """A durable record with one writer and any number of readers.

    Where the record is on a server, every method may raise StorageUnavailable.
    """

    def recover(self) -> Recovered:
        """The state to begin from."""
        ...

    def commit(
        self, entries: Sequence[JournalEntry], records: Sequence[Record], blobs: Sequence[Blob]
    ) -> None:
        """Write all of it durably or none of it. Raises StorageFull, StorageUnavailable.

        Entries are in their order, at least one; of records and blobs of one name the last holds.
        After StorageUnavailable only the same entries may come next.
        """
        ...

    def save_snapshot(self, sequence: int, schema: int, body: bytes) -> None:
        """Keep a snapshot taken after `sequence`; older snapshots go. Raises StorageFull."""
        ...

    def trim_journal(self, before_ms: int) -> int:
        """Forget entries older than `before_ms` that the snapshot covers; how many went."""
        ...

    def record(self, kind: str, record_id: str) -> Record | None:
        """One record, or None."""
        ...

    def records(
        self,
        kind: str,
        parent: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """Records of a kind, newest `sort` first (then id descending), after a position."""
        ...

    def blob(self, name: str) -> bytes | None:
        """One blob, or None."""
        ...

    def blob_names(self, prefix: str) -> Iterator[str]:
        """The names that start with `prefix`, in their order; does not hold the writer up.

        Blobs that come or go meanwhile may or may not be named.
        """
        ...

    def delete_blobs(self, prefix: str) -> int:
        """Remove all blobs whose name starts with `prefix`; how many went."""
        ...

    def entries(self, after_sequence: int = 0) -> Iterator[JournalEntry]:
        """The journal in order, for stories and replay; does not hold the writer up."""
        ...

    def bytes_free(self) -> int | None:
        """Room left where the record grows, in bytes; None where it has no limit."""
        ...

    def close(self) -> None:
        """Let go of the record; all that was committed stays."""
        ...
