"""A whole fleet on this computer: a control plane and cars, each a process of its own.

For the demo, the benchmarks and the system tests. All processes end with this one.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec

from terafleet.agent.identity import IdentityRefused, enrol
from terafleet.bus import die_with_parent
from terafleet.sdk.admin import AdminClient

START_S = 30.0
STOP_S = 10.0
LOOK_AGAIN_S = 0.05


class LocalFleetFailed(Exception):
    """A part of the local fleet did not start or ended; the message holds its last words."""


PORTS = range(20_000, 32_000)
"""Below those that the system gives to outgoing connections: a port of ours must still be free
when its program comes back after a crash."""


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on at this moment."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Child:
    """One process of the fleet, with its log."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        launcher = [sys.executable, "-I", "-S", str(Path(die_with_parent.__file__))]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*launcher, str(os.getpid()), sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it without a warning (SIGKILL), as a crash or a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        if self.is_running:
            self.kill()

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-8:])


def _is_ready(client: httpx.Client) -> bool:
    """Whether the gateway is up and the shard answers it; the port is open long before."""
    try:
        return all(client.get(path).is_success for path in ("/", "/readyz"))
    except httpx.TransportError:
        return False


def _toml(settings: Mapping[str, Any], path: str = "") -> str:
    """Settings and their tables as TOML; scalars and lists of them are written as in JSON."""
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    scalars = {name: value for name, value in settings.items() if name not in tables}
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in scalars.items()]
    for name, table in tables.items():
        lines += [f"[{path}{name}]", _toml(table, f"{path}{name}.")]
    return "\n".join(lines) + "\n"


class LocalFleet:
    """A control plane and its cars below one folder, on the loopback address."""

    def __init__(self, folder: Path, plane: Mapping[str, Any] | None = None) -> None:
        """`plane` are settings of `ControlSettings` beyond folder and ports."""
        self.folder = folder
        self.port, self.bus_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.plane: Child | None = None
        self.cars: dict[str, Child] = {}
        self._plane_settings = dict(plane or {})
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def data(self) -> Path:
        """The control plane's data folder."""
        return self.folder / "control"

    @property
    def operator_key(self) -> str:
        """The operator's API key."""
        return (self.data / "operator.key").read_text(encoding="utf-8").strip()

    def admin(self) -> AdminClient:
        """A client of the operator's."""
        return AdminClient(self.url, self.operator_key)

    def start_plane(self) -> None:
        """Start the control plane, also again, and wait until it answers."""
        settings = {
            "data": str(self.data),
            "listen_port": self.port,
            "bus_listen_port": self.bus_port,
            "log_level": "warning",
            **self._plane_settings,
        }
        arguments = ["-m", "terafleet.cli.plane", msgspec.json.encode(settings).decode()]
        self.plane = Child("control plane", arguments, self.folder / "control.log")
        deadline_s = time.monotonic() + START_S
        with httpx.Client(base_url=self.url, trust_env=False) as client:
            while not _is_ready(client):
                if not self.plane.is_running or time.monotonic() > deadline_s:
                    raise LocalFleetFailed(f"the control plane: {self.plane.last_words()}")
                time.sleep(LOOK_AGAIN_S)

    def car_folder(self, name: str) -> Path:
        """A car's data folder."""
        return self.folder / "cars" / name

    def enrol(self, name: str, settings: Mapping[str, Any], timetable: Mapping[str, Any]) -> str:
        """Enrol a car with a fresh one-time code; returns its id."""
        folder = self.car_folder(name)
        folder.mkdir(parents=True)
        self.write_timetable(name, timetable)
        # Many cars on one computer would want the same port for their owners' pages.
        text = _toml({"page_port": 0, **settings})
        (folder / "agent.toml").write_text(text, encoding="utf-8")
        with self.admin() as admin:
            code = admin.create_code().code
        enrolment = asyncio.run(enrol(folder, self.url, code, name))
        if isinstance(enrolment, IdentityRefused):
            raise LocalFleetFailed(f"{name} can't enrol: {enrolment.code} {enrolment.detail}")
        return enrolment.vehicle_id

    def write_timetable(self, name: str, timetable: Mapping[str, Any]) -> None:
        """Let a car follow another timetable from now on."""
        path = self.car_folder(name) / "timetable.json"
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(timetable))
        fresh.replace(path)

    def start_car(self, name: str) -> Child:
        """Start a car's agent, also again."""
        folder = self.car_folder(name)
        arguments = ["-m", "terafleet.cli", "vehicle", "run", "--data", str(folder)]
        self.cars[name] = Child(name, arguments, folder / "agent.log")
        return self.cars[name]

    def stop(self) -> None:
        """End all processes: cars first, so that they can say goodbye."""
        for car in self.cars.values():
            if car.is_running:
                car.process.send_signal(signal.SIGTERM)
        for car in self.cars.values():
            car.stop()
        if self.plane is not None:
            self.plane.stop()

    def __enter__(self) -> "LocalFleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
