"""A real fleet of processes for the system tests, small and quick."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from openai import OpenAI

from terafleet.agent.adapters.runtime.worker import worker_behind
from terafleet.cli.local_fleet import LocalFleet
from terafleet.protocol.manifest import Manifest
from terafleet.protocol.shard import VehicleView
from tests.conftest import children_of

ENDPOINT: Final = "/v1/embeddings"
MODEL = "noop"
PATIENCE_S = 90.0
COMMAND_S = 60.0
ENDS = ("completed", "failed", "expired", "cancelled")

PARKED: dict[str, Any] = {
    "at_s": 0,
    "is_parked": True,
    "is_driver_present": False,
    "is_plugged_in": True,
    "soc_percent": 80.0,
    "compute_temperature_c": 20.0,
}


def car_settings(slots: int = 2, runtime: str = "noop") -> dict[str, Any]:
    """A car, with the runtime that does nothing or another, whose owner settles at once."""
    return {
        "slots": slots,
        "memory_mb": 512,
        "runtimes": [runtime],
        "vehicle": {"file": "timetable.json", "sample_ms": 200},
        "policy": {"yield": {"settle_ms": 0}},
    }


class FleetStage:
    """A control plane with cars that answer at once, a customer, and what they need."""

    def __init__(self, folder: Path, plane: Mapping[str, Any] | None = None) -> None:
        """`plane` are settings of `ControlSettings` beyond folder and ports."""
        self.fleet = LocalFleet(folder, plane)
        self._clients: list[OpenAI] = []

    def __enter__(self) -> "FleetStage":
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self.fleet.stop()

    def start(self, cars: int, slots: int = 2) -> None:
        """Start the control plane and so many cars."""
        self.fleet.start_plane()
        with self.fleet.admin() as admin:
            admin.create_model(Manifest(MODEL, "noop", (ENDPOINT,), 1, (), {}))
        for number in range(cars):
            self.add_car(f"car-{number}", car_settings(slots))
        self.until(lambda: self.states().count("idle") == cars, "all cars idle")

    def add_car(self, name: str, settings: Mapping[str, Any]) -> str:
        """Enrol a parked car and start its agent. Returns its id."""
        vehicle_id = self.fleet.enrol(name, settings, {"steps": [PARKED]})
        self.fleet.start_car(name)
        return vehicle_id

    def turn(self, car: str, **said: Any) -> None:
        """From the next sample on a car's sensors say something else than that it is parked."""
        self.fleet.write_timetable(car, {"steps": [{**PARKED, **said}]})

    def client(self, retries: int = 8) -> OpenAI:
        """A customer with a key of their own."""
        with self.fleet.admin() as admin:
            secret = admin.create_key("customer", "customer").secret
        return self.client_with(secret, retries)

    def client_with(self, secret: str, retries: int = 8) -> OpenAI:
        """A customer who has this key; it is closed with the stage."""
        client = OpenAI(base_url=f"{self.fleet.url}/v1", api_key=secret, max_retries=retries)
        self._clients.append(client)
        return client

    def command(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run `terafleet` with the operator's key of this fleet, as a person would."""
        return command(*arguments, TERAFLEET_DATA=str(self.fleet.data), **variables)

    def bus_process(self) -> int:
        """The process of the NATS server."""
        assert self.fleet.plane is not None
        return the_child(self.fleet.plane.process.pid, b"nats-server")

    def runtime_process(self, car: str) -> int:
        """The process that runs a car's models."""
        child = the_child(self.fleet.cars[car].process.pid, b"runtime_host")
        process_id = worker_of(child)
        assert process_id is not None, f"the runtime of {car} is not there yet"
        return process_id

    def has_runtime(self, car: str) -> bool:
        """Whether there is such a process."""
        children = children_of(self.fleet.cars[car].process.pid)
        return any(
            b"runtime_host" in words and worker_of(child) is not None
            for child, words in children.items()
        )

    def vehicle(self, name: str) -> VehicleView:
        """What the operator sees of a car."""
        with self.fleet.admin() as admin:
            return next(one for one in admin.vehicles().vehicles if one.name == name)

    def states(self) -> list[str]:
        """What the cars are about."""
        with self.fleet.admin() as admin:
            return [one.state for one in admin.vehicles().vehicles]

    def lost(self) -> dict[str, int]:
        """Attempts lost, by reason, of all cars."""
        found: dict[str, int] = {}
        with self.fleet.admin() as admin:
            for one in admin.vehicles().vehicles:
                for reason, count in one.attempts_lost.items():
                    found[reason] = found.get(reason, 0) + count
        return found

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds, or fail with the last words of all processes."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > deadline_s:
                plane = self.fleet.plane
                words = [plane.last_words() if plane else ""]
                words += [car.last_words() for car in self.fleet.cars.values()]
                pytest.fail(f"never: {what}\n" + "\n".join(words))
            time.sleep(0.1)

    def until_done(self, client: OpenAI, batch_id: str, requests: int) -> None:
        """Wait until so many requests of a batch are completed."""

        def is_done() -> bool:
            counts = client.batches.retrieve(batch_id).request_counts
            return counts is not None and counts.completed >= requests

        self.until(is_done, f"{requests} requests of {batch_id}")

    def submit(self, client: OpenAI, requests: int) -> Any:
        """Submit a batch of so many requests, named `request-0` and so on."""
        return submit_file(client, batch_file(requests))

    def finish(self, client: OpenAI, batch_id: str) -> Any:
        """Wait until a batch has ended."""
        self.until(lambda: client.batches.retrieve(batch_id).status in ENDS, f"{batch_id} ends")
        return client.batches.retrieve(batch_id)


def command(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `terafleet` in a process of its own; none of this process's settings reach it."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("TERAFLEET_")
    }
    return subprocess.run(
        [sys.executable, "-m", "terafleet.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env={**inherited, **variables},
    )


def worker_of(process_id: int) -> int | None:
    """The process that a runtime's program runs in: the one inside, where it is wrapped."""
    is_wrapped = Path(f"/proc/{process_id}/comm").read_text() == "bwrap\n"
    return worker_behind(process_id) if is_wrapped else process_id


def the_child(process_id: int, word: bytes) -> int:
    """The one child of a process that has a word in its command line."""
    found = [child for child, words in children_of(process_id).items() if word in words]
    assert len(found) == 1, f"{word!r} is {len(found)} times among the children of {process_id}"
    return found[0]


def cpu_ticks(process_id: int) -> int | None:
    """Processor time of a process, or None once it is gone; one that is a zombie is."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    # State, and user and system time, from proc_pid_stat(5).
    return None if fields[0] in "ZX" else int(fields[11]) + int(fields[12])


def is_alive(process_id: int) -> bool:
    """Whether a process runs or could run."""
    return cpu_ticks(process_id) is not None


def kill(process_id: int) -> None:
    """End a process without a warning."""
    os.kill(process_id, signal.SIGKILL)


def line_of(custom_id: str, body: Mapping[str, Any], endpoint: str = ENDPOINT) -> bytes:
    """One line of a batch file."""
    line = {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}
    return msgspec.json.encode(line) + b"\n"


def batch_file(requests: int) -> bytes:
    """A batch file for the model that does nothing."""
    return b"".join(
        line_of(f"request-{number}", {"model": MODEL, "input": f"text number {number}"})
        for number in range(requests)
    )


def submit_file(client: OpenAI, body: bytes, endpoint: str = ENDPOINT, window: str = "24h") -> Any:
    """Send a file and make a batch of it."""
    file = client.files.create(file=("batch.jsonl", body), purpose="batch")
    # Other windows than OpenAI's own are an extension, of which its client knows nothing.
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window=window,  # type: ignore[arg-type]
    )


def answered(client: OpenAI, batch: Any) -> list[str]:
    """The `custom_id`s of a batch's output file, each as often as it is there."""
    return [line["custom_id"] for line in lines_of(client, batch.output_file_id)]


def lines_of(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a file that the control plane has written; none for no file."""
    if file_id is None:
        return []
    content = client.files.content(file_id).content
    return [msgspec.json.decode(line) for line in content.splitlines()]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[FleetStage]:
    """A stage whose processes all end with the test."""
    with FleetStage(tmp_path) as made:
        yield made
