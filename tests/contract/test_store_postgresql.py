"""What only the store in PostgreSQL promises: lock, format, and what a lost server means."""

import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from asyncpg import DataError, InterfaceError

from terafleet.engine.adapters.postgresql import PIECE_BYTES, PostgresqlStore
from terafleet.engine.ports import (
    Blob,
    JournalEntry,
    Record,
    StorageDamaged,
    StorageFull,
    StorageUnavailable,
    StorageVersionUnknown,
    StoreInUse,
)
from terafleet.engine.postgresql_connections import Connection, Connections
from tests.contract.socket_middleman import Middleman
from tests.postgresql_server import PORT, PostgresqlDatabase

R = TypeVar("R")

WAIT_S = 20.0
LAST = "SELECT max(sequence) FROM terafleet_record.journal"


def entry(sequence: int, size: int = 1) -> JournalEntry:
    return JournalEntry(sequence, 1000 * sequence, 1, b"e" * size, b"")


def commit(store: PostgresqlStore, first: int, last: int, size: int = 1) -> None:
    for sequence in range(first, last + 1):
        store.commit([entry(sequence, size)], [], [])


def sequences(store: PostgresqlStore) -> list[int]:
    return [each.sequence for each in store.entries()]


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def is_reachable(store: PostgresqlStore) -> bool:
    try:
        store.blob("any")
    except StorageUnavailable:
        return False
    return True


def in_the_end(call: Callable[[], R]) -> R:
    """What a call gives once the server can be reached."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(StorageUnavailable):
            return call()
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def commit_in_the_end(store: PostgresqlStore, group: list[JournalEntry]) -> int:
    """Commit as the engine does, again and again; how often it did not go through."""
    deadline_s = time.monotonic() + WAIT_S
    failures = 0
    while True:
        try:
            store.commit(group, [Record("k", "newest", b"%d" % group[-1].sequence)], [])
        except StorageUnavailable:
            assert time.monotonic() < deadline_s
            failures += 1
            time.sleep(0.01)
        else:
            return failures


@pytest.fixture
def store(postgresql_database: PostgresqlDatabase) -> Iterator[PostgresqlStore]:
    made = PostgresqlStore(postgresql_database.url)
    yield made
    made.close()


@pytest.fixture
def middleman(postgresql_database: PostgresqlDatabase, tmp_path: Path) -> Iterator[Middleman]:
    name = f".s.PGSQL.{PORT}"
    made = Middleman(tmp_path / name, postgresql_database.server.folder / name)
    yield made
    made.close()


@pytest.fixture
def far(
    middleman: Middleman, postgresql_database: PostgresqlDatabase, tmp_path: Path
) -> Iterator[PostgresqlStore]:
    """A store whose way to the server leads over the middleman."""
    del middleman
    made = PostgresqlStore(postgresql_database.server.url(postgresql_database.name, tmp_path))
    yield made
    made.close()


# The lock and the format.


def test_only_one_store_at_a_time(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    with pytest.raises(StoreInUse):
        PostgresqlStore(postgresql_database.url)
    commit(store, 1, 1)
    store.close()
    store.close()
    again = PostgresqlStore(postgresql_database.url)
    assert again.recover().last_sequence == 1
    again.close()


@pytest.mark.parametrize("is_other_there", [True, False])
def test_who_lost_the_record_to_another_writes_nothing_more(
    far: PostgresqlStore,
    middleman: Middleman,
    postgresql_database: PostgresqlDatabase,
    is_other_there: bool,
) -> None:
    commit(far, 1, 1)
    middleman.cut(is_refusing=True)
    until(lambda: not is_reachable(far))
    other = PostgresqlStore(postgresql_database.url)
    commit(other, 2, 2)
    if not is_other_there:
        other.close()
    middleman.let_pass()
    with pytest.raises(StoreInUse):
        commit_in_the_end(far, [entry(2)])
    other.close()
    for _ in range(2):
        with pytest.raises(StoreInUse):
            far.commit([entry(2)], [], [])
    assert postgresql_database.sql(LAST) == "2"


def newer(database: PostgresqlDatabase) -> None:
    PostgresqlStore(database.url).close()
    database.sql("UPDATE terafleet_record.format SET version = 2")


def without_version(database: PostgresqlDatabase) -> None:
    database.sql("CREATE SCHEMA terafleet_record; CREATE TABLE terafleet_record.format (x int)")


def foreign(database: PostgresqlDatabase) -> None:
    database.sql("CREATE SCHEMA terafleet_record; CREATE TABLE terafleet_record.journal (x int)")


@pytest.mark.parametrize("make", [newer, without_version, foreign])
def test_what_is_not_of_this_format_is_refused_and_left_alone(
    make: Callable[[PostgresqlDatabase], None], postgresql_database: PostgresqlDatabase
) -> None:
    make(postgresql_database)
    columns = (
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'terafleet_record' ORDER BY 1, 2"
    )
    before = postgresql_database.sql(columns)
    for _ in range(2):
        with pytest.raises(StorageVersionUnknown, match="terafleet_record"):
            PostgresqlStore(postgresql_database.url)
    assert postgresql_database.sql(columns) == before


def test_a_database_in_another_encoding_is_refused(postgresql_database: PostgresqlDatabase) -> None:
    server = postgresql_database.server
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StorageVersionUnknown, match="LATIN1"):
        PostgresqlStore(server.url("latin"))
    server.sql("DROP DATABASE latin")


def test_a_schema_that_was_made_for_us_is_taken(postgresql_database: PostgresqlDatabase) -> None:
    postgresql_database.sql(
        "CREATE ROLE modest LOGIN; CREATE SCHEMA terafleet_record AUTHORIZATION modest"
    )
    url = postgresql_database.url.replace("postgres@", "modest@")
    try:
        made = PostgresqlStore(url)
        commit(made, 1, 1)
        made.close()
        postgresql_database.sql("DROP SCHEMA terafleet_record CASCADE")
        with pytest.raises(StorageUnavailable, match="CREATE SCHEMA terafleet_record"):
            PostgresqlStore(url)
    finally:
        postgresql_database.sql("DROP OWNED BY modest; DROP ROLE modest")


def test_names_are_sorted_by_their_bytes_whatever_the_database_says(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    commit(store, 1, 1)
    others = postgresql_database.sql(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'terafleet_record' AND data_type = 'text'"
        " AND collation_name IS DISTINCT FROM 'C'"
    )
    assert others == ""


# The server goes away.


def test_a_commit_whose_answer_was_lost_is_not_done_twice(
    far: PostgresqlStore, middleman: Middleman, postgresql_database: PostgresqlDatabase
) -> None:
    commit(far, 1, 1)
    group = [entry(2), entry(3)]
    with ThreadPoolExecutor(1) as thread:
        middleman.hold_answers()
        committing = thread.submit(far.commit, group, [Record("k", "a", b"1")], [])
        until(lambda: postgresql_database.sql(LAST) == "3")
        cut_off(middleman, committing)
    postgresql_database.sql("UPDATE terafleet_record.records SET body = 'seen'")
    commit_in_the_end(far, group)
    commit(far, 4, 5)
    assert sequences(far) == [1, 2, 3, 4, 5]
    found = far.record("k", "a")
    assert found is not None
    assert found.body == b"seen", "its records were not written again either"


def test_a_commit_that_never_came_to_the_server_is_done(
    far: PostgresqlStore, middleman: Middleman
) -> None:
    commit(far, 1, 1)
    with ThreadPoolExecutor(1) as thread:
        middleman.hold_questions()
        committing = thread.submit(far.commit, [entry(2)], [], [Blob("b", b"2")])
        cut_off(middleman, committing)
    commit_in_the_end(far, [entry(2)])
    assert sequences(far) == [1, 2]


def cut_off(middleman: Middleman, committing: "Future[None]") -> None:
    """Cut the way, so that a commit that is under way gets no answer."""
    middleman.cut()
    with pytest.raises(StorageUnavailable):
        committing.result(WAIT_S)
    middleman.let_pass()


def test_kills_of_the_server_lose_nothing_and_double_nothing(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    server = postgresql_database.server
    failures: list[int] = []
    last = 0
    is_over = threading.Event()

    def commit_all() -> None:
        nonlocal last
        while not is_over.is_set():
            failures.append(commit_in_the_end(store, [entry(last + 1, 5_000), entry(last + 2)]))
            last += 2

    def has_come_to(sequence: int) -> bool:
        return last >= sequence

    with ThreadPoolExecutor(1) as thread:
        committing = thread.submit(commit_all)
        for _ in range(3):
            until(partial(has_come_to, last + 40))
            server.kill()
            server.start()
        until(partial(has_come_to, last + 10))
        is_over.set()
        committing.result(WAIT_S)
    assert sum(count > 0 for count in failures) == 3, "each kill was met by one commit"
    assert sequences(store) == list(range(1, last + 1))
    newest = store.record("k", "newest")
    assert newest is not None
    assert newest.body == b"%d" % last


def test_while_the_server_is_away_nobody_waits_and_then_all_goes_on(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    commit(store, 1, 2)
    postgresql_database.server.kill()
    try:
        until(lambda: not is_reachable(store))
        begin_s = time.monotonic()
        for call in (
            lambda: store.commit([entry(3)], [], []),
            lambda: store.save_snapshot(2, 1, b"two"),
            lambda: store.trim_journal(10**15),
            lambda: store.records("k"),
            lambda: next(store.entries()),
        ):
            for _ in range(20):
                with pytest.raises(StorageUnavailable):
                    call()
        assert time.monotonic() - begin_s < WAIT_S / 4
    finally:
        postgresql_database.server.start()
    until(lambda: is_reachable(store))
    store.save_snapshot(2, 1, b"two")
    commit(store, 3, 3)
    assert sequences(store) == [1, 2, 3]


def test_a_server_that_is_away_is_said_at_the_start(
    postgresql_database: PostgresqlDatabase, tmp_path: Path
) -> None:
    with pytest.raises(StorageUnavailable):
        PostgresqlStore(postgresql_database.server.url("any", tmp_path))
    with pytest.raises(StorageUnavailable, match='"no_such_database" does not exist'):
        PostgresqlStore(postgresql_database.server.url("no_such_database"))


def test_a_record_that_is_older_than_what_was_written_is_not_gone_on_with(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    commit(store, 1, 3)
    postgresql_database.sql("DELETE FROM terafleet_record.journal WHERE sequence = 3")
    postgresql_database.server.kill()
    postgresql_database.server.start()
    with pytest.raises(StorageDamaged, match="ends at 2, expected 3"):
        commit_in_the_end(store, [entry(4)])


def test_a_server_that_takes_no_changes_is_as_one_that_is_away(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    name = postgresql_database.name
    commit(store, 1, 1)
    postgresql_database.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    postgresql_database.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name LIKE 'terafleet%'"
    )
    until(lambda: is_reachable(store))
    with pytest.raises(StorageUnavailable, match="read-only"):
        store.commit([entry(2)], [], [])
    postgresql_database.server.sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    commit_in_the_end(store, [entry(2)])
    assert sequences(store) == [1, 2]


def test_a_server_that_does_not_answer_is_waited_for_once(
    middleman: Middleman, postgresql_database: PostgresqlDatabase, tmp_path: Path
) -> None:
    async def prepare(_: Connection) -> None:
        return

    def number(connection: Connection) -> Awaitable[int]:
        answer: Awaitable[int] = connection.fetchval("SELECT 1")
        return answer

    url = postgresql_database.server.url(postgresql_database.name, tmp_path)
    connections = Connections(url, "public", prepare, answer_s=0.2)
    assert connections.in_turn(number) == connections.beside(number) == 1
    middleman.hold_answers()
    begin_s = time.monotonic()
    for use in (connections.beside, connections.in_turn, connections.beside):
        with pytest.raises(StorageUnavailable, match="does not answer"):
            use(number)
    assert 0.2 <= time.monotonic() - begin_s < WAIT_S / 4
    middleman.cut()
    middleman.let_pass()
    assert in_the_end(lambda: connections.in_turn(number)) == 1
    connections.close()


# Snapshots, and what else is large.


def test_two_snapshots_are_kept_and_come_back_whole(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    commit(store, 1, 3)
    large = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"the end"
    for sequence in (1, 2, 3):
        store.save_snapshot(sequence, 1, large + b"%d" % sequence)
    assert store.recover().snapshot == large + b"3"
    kept = postgresql_database.sql(
        "SELECT sequence, count(*) FROM terafleet_record.snapshot_pieces GROUP BY 1 ORDER BY 1"
    )
    assert kept == "2|3\n3|3"


def test_a_snapshot_that_found_no_room_leaves_the_ones_before(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    commit(store, 1, 2)
    store.save_snapshot(1, 1, b"one")
    postgresql_database.sql(
        """
        CREATE FUNCTION find_no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100';
        END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON terafleet_record.snapshot_pieces FOR EACH ROW
        WHEN (NEW.piece = 1) EXECUTE FUNCTION find_no_room();
        """
    )
    with pytest.raises(StorageFull) as full:
        store.save_snapshot(2, 1, b"x" * (PIECE_BYTES + 1))
    assert not isinstance(full.value, StorageUnavailable)
    assert store.recover().snapshot == b"one"
    commit(store, 3, 3)


def test_without_a_snapshot_the_journal_must_reach_back_to_its_begin(
    store: PostgresqlStore, postgresql_database: PostgresqlDatabase
) -> None:
    commit(store, 1, 5)
    store.save_snapshot(2, 1, b"two")
    postgresql_database.sql("DELETE FROM terafleet_record.journal WHERE sequence <= 3")
    with pytest.raises(StorageDamaged, match="begins at 4"):
        store.recover()


def test_a_journal_of_large_entries_is_read_in_small_pages(store: PostgresqlStore) -> None:
    commit(store, 1, 12, size=3_000_000)
    assert [len(each.events) for each in store.entries(2)] == [3_000_000] * 10


def test_a_bug_in_a_commit_leaves_nothing_and_does_not_block_the_next(
    store: PostgresqlStore,
) -> None:
    with pytest.raises((DataError, InterfaceError)):
        store.commit([entry(1)], [Record("k", "a", b""), Record("k", "b", b"", sort=2**63)], [])
    assert store.records("k") == []
    commit(store, 1, 1)
    assert sequences(store) == [1]


def test_deleting_many_blobs_lets_commits_in_between(store: PostgresqlStore) -> None:
    store.commit([entry(1)], [], [Blob(f"b/{i:05d}", b"x") for i in range(20_000)])
    deleting = threading.Thread(target=store.delete_blobs, args=("b/",))
    deleting.start()
    sequence = 1
    between = 0
    while deleting.is_alive():
        sequence += 1
        store.commit([entry(sequence)], [], [])
        left = store.blob("b/00000") is not None, store.blob("b/19999") is not None
        between += left == (False, True)
    deleting.join()
    assert between > 0
    assert store.delete_blobs("b/") == 0
