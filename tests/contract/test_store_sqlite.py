"""What only the store on disk promises: its format, its lock, its files, its readers."""

import sqlite3
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.ports import (
    Blob,
    JournalEntry,
    Record,
    StorageDamaged,
    StorageVersionUnknown,
    StoreInUse,
)

OPEN = """
import sys, pathlib
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.ports import StoreInUse
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record.db"


def entry(sequence: int, size: int = 1) -> JournalEntry:
    return JournalEntry(sequence, 1000 * sequence, 1, b"e" * size, b"")


def commit(store: SqliteStore, first: int, last: int, size: int = 1) -> None:
    for sequence in range(first, last + 1):
        store.commit([entry(sequence, size)], [], [])


def files_of(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def write_number(path: Path, offset: int, number: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(">I", number))


def make(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, 1, 1)
    store.close()


def make_newer(path: Path) -> None:
    make(path)
    write_number(path, 60, 2)


def make_foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def make_text(path: Path) -> None:
    path.write_text("not a database " * 20)


def make_short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0")


@pytest.mark.parametrize("made", [make_newer, make_foreign, make_text, make_short])
def test_what_is_not_of_this_format_is_refused_and_left_alone(
    made: Callable[[Path], None], path: Path
) -> None:
    made(path)
    before = files_of(path.parent)
    for _ in range(2):
        with pytest.raises(StorageVersionUnknown):
            SqliteStore(path)
    assert files_of(path.parent) == before


def test_an_empty_file_is_a_fresh_record(path: Path) -> None:
    path.touch()
    make(path)
    store = SqliteStore(path)
    assert store.recover().last_sequence == 1
    store.close()


def test_only_one_store_at_a_time(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(StoreInUse):
        SqliteStore(path)
    code = f"{OPEN}\ntry: SqliteStore(pathlib.Path(sys.argv[1]))\nexcept StoreInUse: sys.exit(7)"
    elsewhere = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=30)
    assert elsewhere.returncode == 7
    commit(store, 1, 1)
    store.close()
    store.close()
    SqliteStore(path).close()


def test_others_on_the_computer_cannot_read_the_files(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, 1, 1)
    store.save_snapshot(1, 1, b"state")
    names = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert len(names) == 5
    assert set(names.values()) == {0o600}
    store.close()


def snapshot_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob("record.db-snapshot-*"))


def test_two_snapshots_are_kept_and_leavings_go(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, 1, 3)
    for sequence in (1, 2, 3):
        store.save_snapshot(sequence, 1, b"%d" % sequence)
    kept = snapshot_files(path)
    assert [each.read_bytes() for each in kept] == [b"2", b"3"]
    store.close()
    leavings = path.parent / "record.db-snapshot-9-00000000.bin.partial"
    neighbour = path.parent / "other.db-snapshot-9-00000000.bin"
    for each in (leavings, neighbour):
        each.write_bytes(b"x")
    SqliteStore(path).close()
    assert snapshot_files(path) == kept
    assert neighbour.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_snapshot_gives_way_to_the_one_before(path: Path, damage: str) -> None:
    store = SqliteStore(path)
    commit(store, 1, 4)
    store.save_snapshot(2, 1, b"state two")
    store.save_snapshot(3, 1, b"state three")
    while store.trim_journal(10**15):
        pass
    store.close()
    newest = snapshot_files(path)[-1]
    if damage == "gone":
        newest.unlink()
    else:
        newest.write_bytes(b"state thre" if damage == "cut" else b"state thrEe")
    store = SqliteStore(path)
    recovered = store.recover()
    assert recovered.snapshot == b"state two"
    assert [each.sequence for each in recovered.entries] == [3, 4]
    assert recovered.last_sequence == 4
    store.close()


def test_without_a_whole_snapshot_the_journal_must_reach_back_to_its_begin(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, 1, 3)
    store.save_snapshot(2, 1, b"two")
    store.close()
    snapshot_files(path)[0].unlink()
    store = SqliteStore(path)
    assert store.recover().snapshot is None
    assert len(list(store.recover().entries)) == 3
    store.save_snapshot(2, 1, b"two")
    assert store.trim_journal(10**15) == 2
    snapshot_files(path)[0].unlink()
    with pytest.raises(StorageDamaged, match="begins at 3"):
        store.recover()
    store.close()


def test_a_snapshot_that_does_not_join_the_journal_is_no_beginning(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, 1, 5)
    store.save_snapshot(2, 1, b"two")
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM journal WHERE sequence <= 3")
    connection.commit()
    connection.close()
    store = SqliteStore(path)
    with pytest.raises(StorageDamaged, match="begins at 4"):
        store.recover()
    store.close()


def test_a_bug_in_a_commit_leaves_nothing_and_does_not_block_the_next(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(OverflowError):
        store.commit([entry(1)], [Record("k", "a", b""), Record("k", "b", b"", sort=2**63)], [])
    assert store.records("k") == []
    assert list(store.entries()) == []
    commit(store, 1, 1)
    assert [each.sequence for each in store.entries()] == [1]
    store.close()


def test_a_damaged_database_is_named(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, 1, 50, size=3000)
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    for _ in range(2):
        with pytest.raises(StorageDamaged):
            SqliteStore(path)


def test_a_reader_that_dawdles_lets_the_log_be_folded_in(path: Path) -> None:
    store = SqliteStore(path, "NORMAL")
    commit(store, 1, 20)
    reading = store.entries()
    next(reading)
    commit(store, 21, 400, size=100_000)
    log_bytes = (path.parent / "record.db-wal").stat().st_size
    assert log_bytes < 16_000_000, "380 entries of 100 kB went through it"
    assert sum(1 for _ in reading) == 399
    store.close()


def test_threads_read_whole_transactions_while_one_writes(path: Path) -> None:
    store = SqliteStore(path, "NORMAL")
    store.commit([entry(1)], [Record("k", "left", b"0"), Record("k", "right", b"0")], [])
    is_done = threading.Event()
    torn: list[list[Record]] = []
    reads: list[int] = []

    def read() -> None:
        count = 0
        while not is_done.is_set():
            records = store.records("k")
            count += 1
            if records[0].body != records[1].body:
                torn.append(records)
        reads.append(count)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for sequence in range(2, 200):
        body = b"%d" % sequence
        both = [Record("k", "left", body, sort=sequence), Record("k", "right", body)]
        store.commit([entry(sequence)], both, [Blob(f"b/{sequence}", body)])
    is_done.set()
    for reader in readers:
        reader.join()
    store.close()
    assert torn == []
    assert len(reads) == 3
    assert min(reads) > 0


def test_deleting_many_blobs_lets_commits_in_between(path: Path) -> None:
    store = SqliteStore(path, "NORMAL")
    store.commit([entry(1)], [], [Blob(f"b/{i}", b"x" * 60_000) for i in range(1000)])
    deleting = threading.Thread(target=store.delete_blobs, args=("b/",))
    deleting.start()
    sequence = 1
    between = 0
    while deleting.is_alive():
        sequence += 1
        store.commit([entry(sequence)], [], [])
        left = store.blob("b/0") is not None, store.blob("b/999") is not None
        between += left == (False, True)
    deleting.join()
    assert between > 0
    assert store.delete_blobs("b/") == 0
    store.close()
