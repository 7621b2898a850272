"""A real fleet of processes for the system tests, small and quick."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from openai import OpenAI

from terafleet.cli.local_fleet import LocalFleet
from terafleet.protocol.manifest import Manifest

ENDPOINT: Final = "/v1/embeddings"
MODEL = "noop"
PATIENCE_S = 90.0
ENDS = ("completed", "failed", "expired", "cancelled")

PARKED: dict[str, Any] = {
    "at_s": 0,
    "is_parked": True,
    "is_driver_present": False,
    "is_plugged_in": True,
    "soc_percent": 80.0,
    "temperature_c": 20.0,
}


def car_settings(slots: int = 2) -> dict[str, Any]:
    """A car with the runtime that does nothing, whose owner settles at once."""
    return {
        "slots": slots,
        "memory_mb": 512,
        "runtimes": ["noop"],
        "vehicle": {"file": "timetable.json", "sample_ms": 200},
        "policy": {"settle_ms": 0},
    }


class FleetStage:
    """A control plane with cars that answer at once, a customer, and what they need."""

    def __init__(self, folder: Path) -> None:
        self.fleet = LocalFleet(folder)

    def start(self, cars: int, slots: int = 2) -> None:
        """Start the control plane and so many cars."""
        self.fleet.start_plane()
        with self.fleet.admin() as admin:
            admin.create_model(Manifest(MODEL, "noop", (ENDPOINT,), 1, (), {}))
        for number in range(cars):
            self.fleet.enrol(f"car-{number}", car_settings(slots), {"steps": [PARKED]})
            self.fleet.start_car(f"car-{number}")
        self.until(lambda: self.states().count("idle") == cars, "all cars idle")

    def client(self) -> OpenAI:
        """A customer with a key of their own."""
        with self.fleet.admin() as admin:
            secret = admin.create_key("customer", "customer").secret
        return OpenAI(base_url=f"{self.fleet.url}/v1", api_key=secret, max_retries=8)

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
        file = client.files.create(file=("b.jsonl", batch_file(requests)), purpose="batch")
        return client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"
        )

    def finish(self, client: OpenAI, batch_id: str) -> Any:
        """Wait until a batch has ended."""
        self.until(lambda: client.batches.retrieve(batch_id).status in ENDS, f"{batch_id} ends")
        return client.batches.retrieve(batch_id)


def batch_file(requests: int) -> bytes:
    """A batch file for the model that does nothing."""
    return b"".join(
        msgspec.json.encode(
            {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": ENDPOINT,
                "body": {"model": MODEL, "input": f"text number {number}"},
            }
        )
        + b"\n"
        for number in range(requests)
    )


def answered(client: OpenAI, batch: Any) -> list[str]:
    """The `custom_id`s of a batch's output file, each as often as it is there."""
    content = client.files.content(batch.output_file_id).content
    return [msgspec.json.decode(line)["custom_id"] for line in content.splitlines()]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[FleetStage]:
    """A stage whose processes all end with the test."""
    made = FleetStage(tmp_path)
    with made.fleet:
        yield made
