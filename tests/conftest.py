"""What all tests share: the shared files, missing Debian packages, left-over processes, chance."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.postgresql_server import PostgresqlDatabase, PostgresqlMissing, PostgresqlServer

ROOT = Path(__file__).resolve().parents[1]

# Set by .ci/run, which installs the packages first: what they are missing for then fails.
ALL_PACKAGES_VARIABLE = "TERAFLEET_TESTS_HAVE_ALL_PACKAGES"

# Helpers of Python's multiprocessing that end with the process that started them.
PYTHONS_OWN = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
LEFT_OVER_PATIENCE_S = 3.0

# The machine of a build server is slow at times, so no example has a deadline; there the same
# examples are drawn each time, so that a change fails for what it changed.
hypothesis.settings.register_profile("here", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_configure(config: pytest.Config) -> None:
    """Say which marks there are."""
    config.addinivalue_line(
        "markers",
        "debian_package(name, program): needs a program that a Debian package brings; "
        "skipped without it, but for .ci/run, where it fails",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose Debian package is missing, or fail it where none may be missing."""
    for mark in item.iter_markers("debian_package"):
        name, program = mark.args[0], mark.kwargs["program"]
        if shutil.which(program) is not None:
            continue
        reason = f"needs {program}: apt-get install {name}"
        if os.environ.get(ALL_PACKAGES_VARIABLE):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """The path of a file in the folder `shared` beside the repository, or a skip without it."""

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / name
        if not path.exists():
            pytest.skip(f"needs the file shared/{name} beside the repository")
        return path

    return find


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server for the tests of this process; without one they skip, but for .ci/run: they fail."""
    try:
        server = PostgresqlServer()
    except PostgresqlMissing as fault:
        reason = f"needs the PostgreSQL server of the wheel, which can't run here: {fault}"
        if os.environ.get(ALL_PACKAGES_VARIABLE):
            pytest.fail(reason, pytrace=False)
        pytest.skip(f"{reason} (all else of the record is tested on SQLite and in memory)")
    yield server
    server.close()


@pytest.fixture
def postgresql_database(postgresql_server: PostgresqlServer) -> Iterator[PostgresqlDatabase]:
    """An empty database of the test's own."""
    with postgresql_server.database() as database:
        yield database


def children_of(process_id: int) -> dict[int, bytes]:
    """The living children of a process on Linux, with their command lines."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_bytes().rpartition(b")")[2].split()
            command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == process_id and fields[0] != b"Z":
            found[int(status.parent.name)] = command
    return found


def left_over(before: dict[int, bytes]) -> dict[int, bytes]:
    """The children that this process has got since and that have not ended by themselves."""
    deadline_s = time.monotonic() + LEFT_OVER_PATIENCE_S
    while True:
        found = {
            child: command
            for child, command in children_of(os.getpid()).items()
            if child not in before and not any(own in command for own in PYTHONS_OWN)
        }
        if not found or time.monotonic() > deadline_s:
            return found
        time.sleep(0.05)


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Fail, and end them, if processes that tests started outlive the tests."""
    before = children_of(os.getpid())
    yield
    found = left_over(before)
    for child in found:
        os.kill(child, signal.SIGKILL)
    assert not found, f"processes that no test ended: {found}"
