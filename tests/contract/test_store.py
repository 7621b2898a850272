"""What every store promises, held by one suite."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.adapters.postgresql import PostgresqlStore
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.ports import Blob, JournalEntry, Record, StorageFull, Store
from tests.postgresql_server import PostgresqlDatabase

BIG = 200_000

# A server says that its disk is full with the code 53100; which statement meets it is chance.
FULL_DISK = f"""
CREATE FUNCTION find_no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON terafleet_record.journal FOR EACH ROW
WHEN (octet_length(NEW.events) >= {BIG}) EXECUTE FUNCTION find_no_room();
CREATE TRIGGER full_disk BEFORE INSERT ON terafleet_record.blobs FOR EACH ROW
WHEN (octet_length(NEW.body) >= {BIG}) EXECUTE FUNCTION find_no_room();
"""


class Ground(Protocol):
    """Where the stores of one test live."""

    tells_room: bool
    """Whether the stores know how much room there is."""

    def open(self) -> Store:
        """Open the same record again; the store before it was closed or abandoned."""
        ...

    def fill(self) -> None:
        """Leave no room for anything big."""
        ...

    def make_room(self) -> None:
        """Lift the limit."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class MemoryGround:
    tells_room = True

    def __init__(self) -> None:
        self._store = MemoryStore()

    def open(self) -> Store:
        return self._store

    def fill(self) -> None:
        self._store.capacity_bytes = BIG // 2

    def make_room(self) -> None:
        self._store.capacity_bytes = None

    def close(self) -> None:
        self._store.close()


class SqliteGround:
    tells_room = True

    def __init__(self, folder: Path) -> None:
        self._path = folder / "record.db"
        self._store: SqliteStore | None = None

    def open(self) -> Store:
        self.close()
        self._store = SqliteStore(self._path, "NORMAL")
        return self._store

    def fill(self) -> None:
        assert self._store is not None
        self._store.limit_bytes(1)

    def make_room(self) -> None:
        assert self._store is not None
        self._store.limit_bytes(None)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


class PostgresqlGround:
    tells_room = False

    def __init__(self, database: PostgresqlDatabase) -> None:
        self._database = database
        self._store: PostgresqlStore | None = None

    def open(self) -> Store:
        self.close()
        self._store = PostgresqlStore(self._database.url)
        return self._store

    def fill(self) -> None:
        self._database.sql(FULL_DISK)

    def make_room(self) -> None:
        self._database.sql("DROP FUNCTION find_no_room CASCADE")

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    grounds: dict[str, Callable[[], Ground]] = {
        "memory": MemoryGround,
        "sqlite": lambda: SqliteGround(tmp_path),
        "postgresql": lambda: PostgresqlGround(request.getfixturevalue("postgresql_database")),
    }
    made = grounds[request.param]()
    yield made
    made.close()


@pytest.fixture
def store(ground: Ground) -> Store:
    return ground.open()


def entry(sequence: int, size: int = 0) -> JournalEntry:
    return JournalEntry(sequence, 1000 * sequence, 7, b"e" * size + b"%d" % sequence, b"f")


def commit(store: Store, first: int, last: int) -> None:
    for sequence in range(first, last + 1):
        store.commit([entry(sequence)], [], [])


def test_a_fresh_store_holds_nothing(store: Store) -> None:
    recovered = store.recover()
    assert recovered.snapshot is None
    assert list(recovered.entries) == []
    assert (recovered.last_sequence, recovered.last_at_ms) == (0, 0)
    assert store.record("k", "id") is None
    assert store.records("k") == []
    assert store.blob("b") is None
    assert store.delete_blobs("") == 0
    assert store.trim_journal(10**15) == 0


def test_what_was_committed_is_there_after_opening_again(ground: Ground) -> None:
    store = ground.open()
    store.commit([entry(1)], [Record("k", "a", b"body", "parent", 5)], [Blob("n/1", b"blob")])
    store.commit([entry(2)], [], [])
    again = ground.open()
    recovered = again.recover()
    assert list(recovered.entries) == [entry(1), entry(2)]
    assert (recovered.last_sequence, recovered.last_at_ms) == (2, 2000)
    assert again.record("k", "a") == Record("k", "a", b"body", "parent", 5)
    assert again.blob("n/1") == b"blob"


def test_recovery_begins_at_the_newest_snapshot(ground: Ground) -> None:
    store = ground.open()
    commit(store, 1, 3)
    store.save_snapshot(2, 7, b"two")
    store.save_snapshot(3, 8, b"three")
    commit(store, 4, 5)
    recovered = ground.open().recover()
    assert (recovered.snapshot, recovered.snapshot_schema) == (b"three", 8)
    assert [e.sequence for e in recovered.entries] == [4, 5]
    assert (recovered.last_sequence, recovered.last_at_ms) == (5, 5000)


def test_a_snapshot_alone_remembers_sequence_and_time(ground: Ground) -> None:
    store = ground.open()
    commit(store, 1, 4)
    store.save_snapshot(4, 7, b"four")
    store.save_snapshot(4, 7, b"four again")
    while store.trim_journal(10**15):
        pass
    assert list(store.entries()) == []
    store = ground.open()
    recovered = store.recover()
    assert recovered.snapshot == b"four again"
    assert (recovered.last_sequence, recovered.last_at_ms) == (4, 4000)
    store.save_snapshot(4, 7, b"four a third time")
    assert ground.open().recover().last_at_ms == 4000


def test_trim_takes_only_what_is_old_and_covered_by_every_kept_snapshot(store: Store) -> None:
    commit(store, 1, 6)
    assert store.trim_journal(10**15) == 0
    store.save_snapshot(3, 7, b"")
    store.save_snapshot(5, 7, b"")
    assert store.trim_journal(2000) == 1
    assert [e.sequence for e in store.entries()] == [2, 3, 4, 5, 6]
    gone = 0
    while count := store.trim_journal(10**15):
        gone += count
    assert gone == 2
    assert [e.sequence for e in store.entries()] == [4, 5, 6]
    store.save_snapshot(6, 7, b"")
    assert store.trim_journal(10**15) == 2
    assert [e.sequence for e in store.entries(1)] == [6]
    commit(store, 7, 7)
    assert store.recover().last_sequence == 7


def test_a_long_journal_is_read_and_trimmed_in_pages(store: Store) -> None:
    commit(store, 1, 1201)
    assert [e.sequence for e in store.entries(10)] == list(range(11, 1202))
    reading = store.entries()
    assert next(reading).sequence == 1
    commit(store, 1202, 1202)
    store.save_snapshot(1202, 7, b"")
    gone = 0
    while count := store.trim_journal(10**15):
        gone += count
    assert gone == 1202
    sequences = [e.sequence for e in reading]
    assert sequences == list(range(2, len(sequences) + 2)), "no entry is skipped on the way"


def test_a_gap_in_the_journal_is_a_bug(store: Store) -> None:
    commit(store, 1, 1)
    for wrong in (1, 3):
        with pytest.raises(AssertionError):
            store.commit([entry(wrong)], [Record("k", "a", b"x")], [])
    assert store.record("k", "a") is None
    with pytest.raises(AssertionError):
        store.save_snapshot(2, 7, b"of the future")


def test_several_entries_are_one_transaction(ground: Ground) -> None:
    store = ground.open()
    store.commit([entry(1), entry(2)], [Record("k", "a", b"1")], [Blob("n", b"1")])
    for wrong in ([], [entry(4)], [entry(3), entry(5)], [entry(2), entry(3)]):
        with pytest.raises(AssertionError):
            store.commit(wrong, [Record("k", "a", b"2")], [])
    ground.fill()
    with pytest.raises(StorageFull):
        store.commit([entry(3), entry(4, size=BIG)], [Record("k", "a", b"3")], [])
    ground.make_room()
    again = ground.open()
    assert [one.sequence for one in again.entries()] == [1, 2]
    assert again.record("k", "a") == Record("k", "a", b"1")


def test_the_last_record_of_a_commit_wins(store: Store) -> None:
    store.commit(
        [entry(1)],
        [Record("k", "a", b"1"), Record("k", "a", b"2", "p", 9), Record("k", "b", b"1")],
        [Blob("n", b"1"), Blob("n", b"2")],
    )
    assert store.record("k", "a") == Record("k", "a", b"2", "p", 9)
    assert store.blob("n") == b"2"
    store.commit([entry(2)], [Record("k", "a", b"3"), Record("k", "a", None)], [])
    store.commit([entry(3)], [Record("k", "b", None), Record("k", "b", b"back")], [])
    assert store.record("k", "a") is None
    assert store.records("k") == [Record("k", "b", b"back")]


def test_a_blob_without_a_body_deletes_and_the_last_of_a_name_wins(store: Store) -> None:
    store.commit([entry(1)], [], [Blob("a", b"1"), Blob("b", b"1"), Blob("c", b"1")])
    store.commit(
        [entry(2)],
        [],
        [Blob("a", None), Blob("b", None), Blob("b", b"2"), Blob("c", b"2"), Blob("c", None),
         Blob("never", None), Blob("empty", b"")],
    )  # fmt: skip
    bodies = {name: store.blob(name) for name in ("a", "b", "c", "never", "empty")}
    assert bodies == {"a": None, "b": b"2", "c": None, "never": None, "empty": b""}


def test_records_are_listed_newest_first_in_pages(store: Store) -> None:
    records = [
        Record("k", f"id-{n:02d}", b"%d" % n, parent="even" if n % 2 == 0 else "", sort=n // 3)
        for n in range(20)
    ]
    store.commit([entry(1)], [*records, Record("other", "x", b"")], [])
    expected = sorted(records, key=lambda record: (record.sort, record.id), reverse=True)
    assert store.records("k") == expected
    assert store.records("k", limit=3) == expected[:3]
    for parent in (None, "", "even"):
        of_parent = [r for r in expected if parent is None or r.parent == parent]
        listed: list[Record] = []
        while page := store.records(
            "k", parent, (listed[-1].sort, listed[-1].id) if listed else None, limit=3
        ):
            assert len(page) <= 3
            listed += page
        assert listed == of_parent
    store.commit([entry(2)], [Record("k", "id-00", b"moved", parent="even", sort=99)], [])
    assert store.records("k", limit=1)[0].id == "id-00"
    assert len(store.records("k")) == 20


def test_blobs_go_by_prefix_and_by_nothing_else(store: Store) -> None:
    names = ["a", "a/", "a/1", "a/\U0001f697", "a0", "ab", "b", "A/1", "a%"]
    store.commit([entry(1)], [], [Blob(name, name.encode()) for name in names])
    assert store.delete_blobs("a/") == 3
    assert store.delete_blobs("a/") == 0
    left = {name for name in names if store.blob(name) is not None}
    assert left == {"a", "a0", "ab", "b", "A/1", "a%"}
    assert store.delete_blobs("a%") == 1
    assert store.delete_blobs("") == 5


def test_blobs_are_named_by_prefix_and_in_their_order(store: Store) -> None:
    names = ["b", "a/\U0001f697", "a/", "ab", "a/1", "a", "a/10", "A/1", "a%", "a/Z", "a/ä", "a0"]
    store.commit([entry(1)], [], [Blob(name, b"x") for name in names])
    assert list(store.blob_names("a/")) == ["a/", "a/1", "a/10", "a/Z", "a/ä", "a/\U0001f697"]
    assert list(store.blob_names("")) == sorted(names)
    assert list(store.blob_names("a%")) == ["a%"]
    assert list(store.blob_names("c")) == []
    store.commit([entry(2)], [], [Blob("a/1", None)])
    assert "a/1" not in store.blob_names("a/")


def test_many_names_come_in_pages_while_the_store_goes_on(store: Store) -> None:
    names = [f"n/{number:06d}" for number in range(20_001)]
    store.commit([entry(1)], [], [Blob(name, b"") for name in names])
    reading = store.blob_names("n/")
    assert next(reading) == names[0]
    store.commit([entry(2)], [], [Blob(names[0], None), Blob("n/", b"")])
    assert list(reading) == names[1:]


def test_many_blobs_go_at_once(store: Store) -> None:
    store.commit([entry(1)], [], [Blob(f"n/{i}", b"x" * 20_000) for i in range(600)])
    assert store.delete_blobs("n/") == 600


def test_full_storage_leaves_nothing_half_done(ground: Ground) -> None:
    store = ground.open()
    before = Record("k", "a", b"before")
    store.commit([entry(1)], [before], [Blob("n", b"before")])
    ground.fill()
    group = (
        [entry(2, size=10)],
        [Record("k", "a", b"after"), Record("k", "b", b"x" * BIG)],
        [Blob("n", b"after"), Blob("big", b"x" * BIG)],
    )
    for _ in range(2):
        with pytest.raises(StorageFull):
            store.commit(*group)
        assert store.records("k") == [before]
        assert (store.blob("n"), store.blob("big")) == (b"before", None)
        assert [e.sequence for e in store.entries()] == [1]
        assert store.recover().last_sequence == 1
        bytes_free = store.bytes_free()
        assert (bytes_free is not None) is ground.tells_room
        assert bytes_free is None or bytes_free < BIG
    ground.make_room()
    store.commit(*group)
    again = ground.open()
    assert again.record("k", "a") == Record("k", "a", b"after")
    assert again.blob("big") == b"x" * BIG
    assert again.recover().last_sequence == 2


def test_reading_goes_on_while_the_store_is_full(ground: Ground) -> None:
    store = ground.open()
    commit(store, 1, 3)
    ground.fill()
    with pytest.raises(StorageFull):
        store.commit([entry(4, size=BIG)], [], [])
    assert [e.sequence for e in store.entries()] == [1, 2, 3]


record_lists = st.lists(
    st.builds(
        Record,
        kind=st.sampled_from(["k", "l"]),
        id=st.sampled_from(["a", "b", "ä", "Z", ""]),
        body=st.none() | st.binary(max_size=4),
        parent=st.sampled_from(["", "p", "q"]),
        sort=st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=6,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=st.lists(record_lists, max_size=6))
def test_all_stores_list_alike(store: Store, commits: list[list[Record]]) -> None:
    """The examples share a record, each with kinds of its own."""
    memory = MemoryStore()
    begin = store.recover().last_sequence
    for number, records in enumerate(commits, start=1):
        memory.commit([entry(number)], records, [])
        named = [replace(record, kind=f"{record.kind}-{begin}") for record in records]
        store.commit([entry(begin + number)], named, [])
    for kind in ("k", "l"):
        for parent in (None, "", "p"):
            expected = memory.records(kind, parent)
            assert listed(store, f"{kind}-{begin}", parent) == listed(memory, kind, parent)
            for at in expected:
                after = (at.sort, at.id)
                found = listed(store, f"{kind}-{begin}", parent, after)
                assert found == listed(memory, kind, parent, after)


def listed(
    store: Store, kind: str, parent: str | None, after: tuple[int, str] | None = None
) -> list[Record]:
    """The records of a kind, without its name."""
    return [replace(record, kind="") for record in store.records(kind, parent, after)]
