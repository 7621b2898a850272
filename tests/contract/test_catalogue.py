"""What every catalogue promises; and what the one on disk promises beyond that."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from terafleet.control.adapters.catalogue_memory import MemoryCatalogue
from terafleet.control.adapters.catalogue_postgresql import PostgresqlCatalogue
from terafleet.control.adapters.catalogue_sqlite import SqliteCatalogue
from terafleet.control.adapters.catalogue_tables import APPLICATION_ID, FORMAT_VERSION
from terafleet.control.ports import (
    Catalogue,
    CatalogueFull,
    CatalogueUnreadable,
    CodeRow,
    FileRow,
    KeyRow,
    ModelRow,
    VehicleRow,
)
from terafleet.protocol.manifest import SignedManifest
from tests.postgresql_server import PostgresqlDatabase

SOON_S = 10.0

FileKey = tuple[int, str]
Opener = Callable[[], Catalogue]

# A server says that its disk is full with the code 53100; when it is, this trigger decides.
SMALL_DISK = """
CREATE FUNCTION find_no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT sum(octet_length(summary)) FROM terafleet_catalogue.file) > 40000 THEN
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER small_disk AFTER INSERT ON terafleet_catalogue.file
FOR EACH ROW EXECUTE FUNCTION find_no_room();
"""


def opener(request: pytest.FixtureRequest, path: Path, is_small: bool = False) -> Opener:
    """Opens catalogues of the kind that the test is about, and always the same one."""
    if request.param == "memory":
        return lambda: MemoryCatalogue(rows_max=5 if is_small else None)
    if request.param == "sqlite":
        return lambda: SqliteCatalogue(path / "catalogue.db", pages_max=16 if is_small else None)
    database: PostgresqlDatabase = request.getfixturevalue("postgresql_database")
    PostgresqlCatalogue(database.url).close()
    if is_small:
        database.sql(SMALL_DISK)
    return lambda: PostgresqlCatalogue(database.url)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalogue]:
    found = opener(request, tmp_path)()
    yield found
    found.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalogue]:
    """A catalogue with room for a few files."""
    found = opener(request, tmp_path, is_small=True)()
    yield found
    found.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens the same catalogue, as often as it is called."""
    return opener(request, tmp_path)


def file_row(file_id: str, created_ms: int = 1, customer_id: str = "cust_1") -> FileRow:
    return FileRow(
        file_id, customer_id, "a name.jsonl", "batch", 10, created_ms, f"file/{file_id}", b'{"a":1}'
    )


def key_row(number: int) -> KeyRow:
    return KeyRow(f"key_{number}", bytes([number]) * 32, "tf-abcd", "n", "customer", "c", number)


def vehicle_row(vehicle_id: str = "veh-abcdefghij") -> VehicleRow:
    return VehicleRow(vehicle_id, "a car", "UABC", 5)


def code_row(number: int = 1, expires_ms: int = 100) -> CodeRow:
    return CodeRow(bytes([number]) * 32, 1, expires_ms)


def model_row(model_id: str, name: str, created_ms: int = 1) -> ModelRow:
    return ModelRow(model_id, name, SignedManifest(b"manifest \x00", b"signature \xff"), created_ms)


def test_a_file_is_kept_as_it_was_given(catalogue: Catalogue) -> None:
    row = file_row("file-1")
    catalogue.add_file(row)
    assert catalogue.file("file-1") == row
    assert catalogue.file("file-2") is None
    assert catalogue.delete_file("file-1")
    assert not catalogue.delete_file("file-1")
    assert catalogue.file("file-1") is None


def test_an_id_is_given_once(catalogue: Catalogue) -> None:
    catalogue.add_file(file_row("file-1"))
    catalogue.add_key(key_row(1))
    catalogue.add_code(code_row(1))
    with pytest.raises(ValueError, match="taken"):
        catalogue.add_file(replace(file_row("file-1"), filename="other"))
    with pytest.raises(ValueError, match="taken"):
        catalogue.add_key(replace(key_row(1), secret_sha256=b"other"))
    with pytest.raises(ValueError, match="taken"):
        catalogue.add_key(replace(key_row(1), key_id="other"))
    with pytest.raises(ValueError, match="taken"):
        catalogue.add_code(code_row(1))
    assert catalogue.file("file-1") == file_row("file-1")
    assert catalogue.keys() == [key_row(1)]


def test_files_come_in_pages_by_time(catalogue: Catalogue) -> None:
    for file_id, created_ms in (("c", 1), ("a", 2), ("b", 2), ("d", 3)):
        catalogue.add_file(file_row(file_id, created_ms))
    catalogue.add_file(file_row("x", 2, customer_id="cust_2"))
    catalogue.add_file(replace(file_row("o", 2), purpose="batch_output"))

    def ids(purpose: str, after: str, limit: int, is_ascending: bool) -> str:
        rows = catalogue.files("cust_1", purpose, after, limit, is_ascending)
        return "".join(row.file_id for row in rows)

    assert ids("", "", 10, is_ascending=True) == "cabod"
    assert ids("", "", 10, is_ascending=False) == "dobac"
    assert ids("batch", "", 10, is_ascending=True) == "cabd"
    assert ids("batch", "", 2, is_ascending=True) == "ca"
    assert ids("batch", "a", 2, is_ascending=True) == "bd"
    assert ids("batch", "b", 2, is_ascending=False) == "ac"
    assert ids("batch", "o", 9, is_ascending=False) == "bac"
    assert ids("batch", "c", 9, is_ascending=False) == ""
    assert ids("batch", "unknown", 9, is_ascending=True) == ""
    assert ids("", "x", 9, is_ascending=True) == "", "another customer's file is no position"


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    keys=st.sets(
        st.tuples(st.integers(0, 5), st.text("abc", min_size=1, max_size=3)), max_size=12
    ).filter(lambda keys: len({file_id for _, file_id in keys}) == len(keys)),
    page=st.integers(1, 5),
    is_ascending=st.booleans(),
)
def test_pages_one_after_the_other_give_all_files_once(
    catalogue: Catalogue, keys: set[FileKey], page: int, is_ascending: bool
) -> None:
    expected = [file_id for _, file_id in sorted(keys, reverse=not is_ascending)]
    for created_ms, file_id in keys:
        catalogue.add_file(file_row(file_id, created_ms))
    seen: list[str] = []
    while rows := catalogue.files("cust_1", "", seen[-1] if seen else "", page, is_ascending):
        seen += [row.file_id for row in rows]
    # The next example finds the catalogue empty.
    for file_id in expected:
        assert catalogue.delete_file(file_id)
    assert seen == expected


def test_nothing_is_found_under_a_name_that_no_id_has(catalogue: Catalogue) -> None:
    for name in ("", "a\0b", "\0", "x" * 10_000, "'; DROP TABLE file; --", "\U0001f697"):
        assert catalogue.file(name) is None
        assert catalogue.vehicle(name) is None
        assert catalogue.model(name) is None
        assert catalogue.model_by_name(name) is None
        assert not catalogue.revoke_key(name, 5)
        assert not catalogue.remove_vehicle(name, 5)
        assert not catalogue.remove_model(name, 5)
        assert not catalogue.delete_file(name)
        assert not catalogue.files("cust_1", name, name, 5, is_ascending=True)


def test_a_key_is_found_by_its_secret(catalogue: Catalogue) -> None:
    catalogue.add_key(key_row(2))
    catalogue.add_key(key_row(1))
    assert catalogue.key_by_secret(key_row(1).secret_sha256) == key_row(1)
    assert catalogue.key_by_secret(b"\x09" * 32) is None
    assert catalogue.keys() == [key_row(1), key_row(2)]


def test_a_revoked_key_stays_and_keeps_the_first_time(catalogue: Catalogue) -> None:
    catalogue.add_key(key_row(1))
    assert catalogue.revoke_key("key_1", 50)
    assert not catalogue.revoke_key("key_1", 60)
    assert not catalogue.revoke_key("key_2", 60)
    assert catalogue.key_by_secret(key_row(1).secret_sha256) == replace(key_row(1), revoked_ms=50)
    assert catalogue.keys() == [replace(key_row(1), revoked_ms=50)]


def test_a_code_is_used_once(catalogue: Catalogue) -> None:
    catalogue.add_code(code_row(1))
    assert catalogue.use_code(code_row(1).code_sha256, vehicle_row(), 99) is None
    assert catalogue.vehicle("veh-abcdefghij") == vehicle_row()
    other = vehicle_row("veh-otherother")
    assert catalogue.use_code(code_row(1).code_sha256, other, 99) == "enrolment_code_used"
    assert catalogue.use_code(code_row(1).code_sha256, other, 500) == "enrolment_code_used"
    assert catalogue.use_code(b"\x07" * 32, other, 99) == "enrolment_code_invalid"
    assert catalogue.vehicle("veh-otherother") is None
    assert catalogue.vehicles() == [vehicle_row()]


def test_a_code_expires(catalogue: Catalogue) -> None:
    catalogue.add_code(code_row(1, expires_ms=100))
    used = catalogue.use_code(code_row(1).code_sha256, vehicle_row(), 100)
    assert used == "enrolment_code_expired"
    assert catalogue.vehicles() == []
    assert catalogue.use_code(code_row(1).code_sha256, vehicle_row(), 99) is None


def test_a_taken_vehicle_id_leaves_the_code_unused(catalogue: Catalogue) -> None:
    catalogue.add_code(code_row(1))
    catalogue.add_code(code_row(2))
    catalogue.use_code(code_row(1).code_sha256, vehicle_row(), 50)
    with pytest.raises(ValueError, match="taken"):
        catalogue.use_code(code_row(2).code_sha256, replace(vehicle_row(), name="other"), 50)
    other = vehicle_row("veh-otherother")
    assert catalogue.use_code(code_row(2).code_sha256, other, 50) is None
    assert catalogue.vehicle("veh-abcdefghij") == vehicle_row()


def test_a_removed_vehicle_is_known_but_not_listed(catalogue: Catalogue) -> None:
    catalogue.add_code(code_row(1))
    catalogue.use_code(code_row(1).code_sha256, vehicle_row(), 50)
    assert catalogue.remove_vehicle("veh-abcdefghij", 70)
    assert not catalogue.remove_vehicle("veh-abcdefghij", 80)
    assert not catalogue.remove_vehicle("veh-unknownnnn", 80)
    assert catalogue.vehicle("veh-abcdefghij") == replace(vehicle_row(), removed_ms=70)
    assert catalogue.vehicles() == []


def test_a_model_is_found_by_id_and_by_name(catalogue: Catalogue) -> None:
    row = model_row("1", "mini")
    assert catalogue.add_model(row) is None
    assert catalogue.model("1") == row
    assert catalogue.model_by_name("mini") == row
    assert catalogue.models() == [row]
    assert catalogue.model("2") is None
    assert catalogue.model_by_name("maxi") is None


def test_the_same_model_again_changes_nothing(catalogue: Catalogue) -> None:
    assert catalogue.add_model(model_row("1", "mini", created_ms=1)) is None
    assert catalogue.add_model(model_row("1", "mini", created_ms=9)) is None
    assert catalogue.models() == [model_row("1", "mini", created_ms=1)]


def test_a_name_belongs_to_one_model_until_it_is_removed(catalogue: Catalogue) -> None:
    first, second = model_row("1", "mini"), model_row("2", "mini", created_ms=2)
    assert catalogue.add_model(first) is None
    assert catalogue.add_model(second) == "model_name_taken"
    assert catalogue.model("2") is None
    assert catalogue.remove_model("1", 50)
    assert not catalogue.remove_model("1", 60)
    assert catalogue.model_by_name("mini") is None
    assert catalogue.models() == []
    assert catalogue.model("1") == replace(first, removed_ms=50)
    assert catalogue.add_model(second) is None
    assert catalogue.add_model(first) == "model_name_taken"
    assert catalogue.remove_model("2", 70)
    assert catalogue.add_model(first) is None
    assert catalogue.models() == [first], "a removed model comes back"


def test_a_full_catalogue_refuses_and_goes_on_when_there_is_room(small: Catalogue) -> None:
    catalogue = small
    added: list[str] = []

    def fill() -> None:
        for number in range(100):
            row = replace(file_row(f"file-{number}"), summary=bytes(2_000))
            catalogue.add_file(row)
            added.append(row.file_id)

    with pytest.raises(CatalogueFull):
        fill()
    listed = [row.file_id for row in catalogue.files("cust_1", "", "", 1_000, is_ascending=True)]
    assert sorted(listed) == sorted(added), "what was acknowledged is there, and nothing else"
    assert added
    with pytest.raises(CatalogueFull):
        catalogue.add_file(replace(file_row("file-x"), summary=bytes(50_000)))
    for file_id in added:
        assert catalogue.delete_file(file_id)
    catalogue.add_file(file_row("file-y"))
    assert catalogue.file("file-y") == file_row("file-y")


# What only the catalogues on disk promise.


def test_all_of_it_is_there_after_a_restart(open_again: Opener) -> None:
    before = open_again()
    before.add_file(file_row("file-1"))
    before.add_key(key_row(1))
    before.add_code(code_row(1))
    before.use_code(code_row(1).code_sha256, vehicle_row(), 50)
    before.add_model(model_row("1", "mini"))
    # Not closed: a process that was killed closes nothing.
    after = open_again()
    assert after.file("file-1") == file_row("file-1")
    assert after.keys() == [key_row(1)]
    assert after.vehicles() == [vehicle_row()]
    assert after.models() == [model_row("1", "mini")]
    used = after.use_code(code_row(1).code_sha256, vehicle_row("veh-otherother"), 50)
    assert used == "enrolment_code_used"
    before.close()
    after.close()


def test_of_many_who_use_a_code_at_once_one_wins(open_again: Opener) -> None:
    catalogues = [open_again() for _ in range(2)]
    for round_number in range(5):
        row = CodeRow(bytes([round_number]) * 32, 1, 100)
        catalogues[0].add_code(row)
        answers: list[str | None] = []
        barrier = threading.Barrier(8)

        def use(number: int, row: CodeRow = row, barrier: threading.Barrier = barrier) -> None:
            vehicle = vehicle_row(f"veh-{row.code_sha256[0]}-{number}")
            barrier.wait()
            catalogue = catalogues[number % 2]
            answers.append(catalogue.use_code(row.code_sha256, vehicle, 50))  # noqa: B023

        threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers, key=str) == [None, *["enrolment_code_used"] * 7]
        assert len(catalogues[0].vehicles()) == round_number + 1
    for catalogue in catalogues:
        catalogue.close()


def test_what_one_gateway_changes_counts_for_another_one_soon(open_again: Opener) -> None:
    here, there = open_again(), open_again()
    here.add_key(key_row(1))
    here.add_model(model_row("1", "mini"))
    for _ in range(2):
        assert there.key_by_secret(key_row(1).secret_sha256) == key_row(1)
        assert there.model_by_name("mini") == model_row("1", "mini")
        assert there.model_by_name("maxi") is None
    assert here.revoke_key("key_1", 50)
    assert here.remove_model("1", 50)
    here.add_model(model_row("2", "maxi"))

    def is_seen() -> bool:
        key = there.key_by_secret(key_row(1).secret_sha256)
        assert key is not None
        names = (there.model_by_name("mini"), there.model_by_name("maxi"))
        return key.revoked_ms == 50 and names == (None, model_row("2", "maxi"))

    until_s = time.monotonic() + SOON_S
    while not is_seen():
        assert time.monotonic() < until_s
        time.sleep(0.02)
    here.close()
    there.close()


def test_of_two_models_with_one_name_that_come_at_once_one_is_added(open_again: Opener) -> None:
    catalogues = [open_again() for _ in range(2)]
    for round_number in range(5):
        answers: list[str | None] = []
        barrier = threading.Barrier(2)

        def add(number: int, name: str, barrier: threading.Barrier = barrier) -> None:
            row = model_row(f"{name}-{number}", name)
            barrier.wait()
            answers.append(catalogues[number].add_model(row))  # noqa: B023

        threads = [
            threading.Thread(target=add, args=(number, f"model-{round_number}"))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers, key=str) == [None, "model_name_taken"]
    for catalogue in catalogues:
        catalogue.close()


# What only the catalogue in a file promises.


def written(path: Path, statement: str) -> bytes:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    return path.read_bytes()


def another_version(path: Path) -> bytes:
    SqliteCatalogue(path).close()
    return written(path, f"PRAGMA user_version = {FORMAT_VERSION + 1}")


def another_program(path: Path) -> bytes:
    written(path, "CREATE TABLE other (a)")
    return written(path, "PRAGMA application_id = 77")


def another_table(path: Path) -> bytes:
    return written(path, "CREATE TABLE other (a)")


def no_database(path: Path) -> bytes:
    path.write_bytes(b"this is not a database, " * 100)
    return path.read_bytes()


@pytest.mark.parametrize("make", [another_version, another_program, another_table, no_database])
def test_a_foreign_file_is_refused_and_not_touched(
    make: Callable[[Path], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "catalogue.db"
    before = make(path)
    with pytest.raises(CatalogueUnreadable):
        SqliteCatalogue(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["catalogue.db"]


def test_the_file_is_marked_and_durable(tmp_path: Path) -> None:
    catalogue = SqliteCatalogue(tmp_path / "catalogue.db")
    connection = sqlite3.connect(tmp_path / "catalogue.db")
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT_VERSION,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    catalogue.close()


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    catalogue = SqliteCatalogue(tmp_path / "catalogue.db")
    catalogue.add_key(key_row(1))
    other = sqlite3.connect(tmp_path / "catalogue.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM api_key")
    assert catalogue.key_by_secret(key_row(1).secret_sha256) == key_row(1)
    other.execute("ROLLBACK")
    other.close()
    catalogue.close()
