"""A car whose runtime keeps the cores busy, in a fleet of its own, and what takes it off them."""

import os
import random
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from openai import OpenAI

from terafleet.agent.app import RECORD_FILE, RECORD_FOLDER
from terafleet.agent.service import guard_codec
from terafleet.agent.status import read_status
from terafleet.cli.bench.yield_processes import cpu_ns_of, descendants, look
from terafleet.cli.bench.yield_watch import Seen, undelayed, watch
from terafleet.cli.demo import play
from terafleet.cli.demo.screen import Screen
from terafleet.cli.demo.stage import parked
from terafleet.cli.local_fleet import LocalFleet
from terafleet.core.guard_events import ReadingsChanged
from terafleet.core.reasons import LeaseEnding
from terafleet.engine.clock import NS_PER_MS, elapsed_ns
from terafleet.protocol.openai import EMBEDDINGS
from terafleet.protocol.shard import VehicleView

CAR: Final = "car"
PARKED: Final = {"steps": [parked(80.0)]}
DRIVER_IN: Final = {"steps": [{**parked(80.0), "is_driver_present": True}]}
THREADS_MAX: Final = 8
SAMPLE_MS: Final = 20
"""How often the car looks at its timetable: part of the file's way, not of the yield."""

TEXT: Final = "The car is parked, and it computes while it charges. " * 40
TEXTS_A_REQUEST, REQUESTS = 32, 64
BUSY_NS: Final = 150 * NS_PER_MS
"""So much processor time for each thread after the model was loaded is work, and no loading."""

LATER_S_MAX: Final = 0.15
"""The driver comes at any moment of the work: so much later at most, by chance."""

READY_S: Final = 60.0
PATIENCE_S: Final = 10.0
LOOK_S: Final = 0.03
STEP_NS_MAX: Final = NS_PER_MS // 2


class YieldsFailed(Exception):
    """The measurement could not go on, or would say nothing; the message says why."""


class Taken(msgspec.Struct, frozen=True):
    """A busy runtime was taken off the computer: from `began_ns`, of `elapsed_ns`, on.

    `held_bytes` is what it held. At `gone_ns` no process below the agent was left, nor one that
    had ended; it is 0 where the agent had ended itself.
    """

    began_ns: int
    held_bytes: int
    seen: Seen
    gone_ns: int = 0


class BusyCar:
    """One car, a control plane with work for it without end, and a driver who comes by chance."""

    def __init__(self, seed: int, *, may_wrap: bool = True) -> None:
        """Without `may_wrap` the agent finds no bubblewrap: its runtime has only its own walls."""
        self._chance = random.Random(seed)  # noqa: S311 - it casts a driver, it guards nothing.
        self._temporary = tempfile.TemporaryDirectory(prefix="terafleet-bench-")
        self._work = Path(self._temporary.name)
        self._fleet = LocalFleet(self._work / "fleet")
        self._threads = min(THREADS_MAX, play.cores())
        self._wall_ahead_ns = 0
        self._may_wrap = may_wrap
        self.is_undelayed = True
        """Whether each watch went before all others on the processors."""

    def __enter__(self) -> "BusyCar":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._fleet.stop()
        self._temporary.cleanup()

    def yield_to_driver(self) -> Taken:
        """A driver comes while the runtime is busy, and leaves when all of it is off."""
        taken = self._taken(lambda: self._fleet.write_timetable(CAR, DRIVER_IN))
        self._until(lambda: not descendants(self._agent_id), "something of the runtime is left")
        gone_ns = elapsed_ns()
        self._until_unloaded()
        self._fleet.write_timetable(CAR, PARKED)
        return msgspec.structs.replace(taken, gone_ns=gone_ns)

    def kill_agent(self) -> Taken:
        """The agent ends without a word while the runtime is busy, and is started again."""
        taken = self._taken(lambda: os.kill(self._agent_id, signal.SIGKILL))
        self._fleet.cars[CAR].process.wait()
        self._start_agent()
        self._until_unloaded()
        return taken

    def drivers_read_ns(self) -> list[int]:
        """When the agent read each time that a driver is there, by its record, in `elapsed_ns`.

        Its own clock counts whole milliseconds: it was up to one later. Raises YieldsFailed if the
        wall clock was set meanwhile, which the agent's clock follows from its start.
        """
        if abs(time.time_ns() - elapsed_ns() - self._wall_ahead_ns) > STEP_NS_MAX:
            raise YieldsFailed("the wall clock was set meanwhile; measure again")
        path = self._fleet.car_folder(CAR) / RECORD_FOLDER / RECORD_FILE
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            rows = connection.execute("SELECT events FROM journal ORDER BY sequence").fetchall()
        finally:
            connection.close()
        codec = guard_codec()
        events = (event for (body,) in rows for event in codec.decode_events(body))
        read_ns = []
        was_there: bool | None = False
        for event in events:
            if isinstance(event, ReadingsChanged):
                is_there = event.readings.is_driver_present
                if is_there and not was_there:
                    read_ns.append(event.readings.at_ms * NS_PER_MS - self._wall_ahead_ns)
                was_there = is_there
        return read_ns

    @property
    def isolation_level(self) -> str:
        """What the agent says of the walls around its runtime; empty where it says nothing."""
        status = read_status(self._fleet.car_folder(CAR))
        return status.isolation_level if status is not None else ""

    def attempts_lost(self) -> int:
        """How many attempts the fleet lost to drivers: that there was work each time."""
        return self._view().attempts_lost.get(LeaseEnding.OWNER_RETURNED, 0)

    def _start(self) -> None:
        model = play.import_model(Screen(is_json=True), self._work)
        self._fleet.start_plane()
        play.add_model(self._fleet, model)
        self._fleet.enrol(CAR, self._settings(), PARKED)
        self._wall_ahead_ns = time.time_ns() - elapsed_ns()
        self._start_agent()
        play.wait_until_ready(self._fleet, 1)
        with self._fleet.admin() as admin:
            secret = admin.create_key("bench", "customer").secret
        with OpenAI(base_url=f"{self._fleet.url}/v1", api_key=secret) as client:
            file = client.files.create(file=("texts.jsonl", _lines()), purpose="batch")
            client.batches.create(
                input_file_id=file.id, endpoint=EMBEDDINGS, completion_window="24h"
            )

    def _start_agent(self) -> None:
        """The agent looks for bubblewrap on its path, and for nothing else."""
        path = os.environ.get("PATH", "")
        os.environ["PATH"] = path if self._may_wrap else ""
        try:
            self._fleet.start_car(CAR)
        finally:
            os.environ["PATH"] = path

    def _settings(self) -> dict[str, Any]:
        return {
            "slots": 1,
            "runtime_threads": self._threads,
            "memory_mb": 2_048,
            "runtimes": ["onnx"],
            "vehicle": {"file": "timetable.json", "sample_ms": SAMPLE_MS},
            "policy": {"yield": {"settle_ms": 0}},
        }

    def _taken(self, end: Callable[[], object]) -> Taken:
        """Let something end the runtime at a moment when it is busy, and watch it go."""
        processes = self._busy_processes()
        time.sleep(self._chance.uniform(0.0, LATER_S_MAX))
        held_bytes = sum(one.resident_bytes for one in map(look, processes) if one is not None)
        with undelayed() as is_undelayed:
            began_ns = elapsed_ns()
            end()
            seen = watch(processes, PATIENCE_S)
        self.is_undelayed &= is_undelayed
        if not seen.is_over:
            raise YieldsFailed(f"the runtime has not ended within {PATIENCE_S} s")
        return Taken(began_ns, held_bytes, seen)

    def _busy_processes(self) -> Sequence[int]:
        """The processes of the runtime, once the model is loaded and they are at work on it."""
        self._until(lambda: bool(self._view().loaded), "the model was never loaded")
        processes = descendants(self._agent_id)
        busy_ns = sum(map(cpu_ns_of, processes)) + BUSY_NS * self._threads
        self._until(lambda: sum(map(cpu_ns_of, processes)) > busy_ns, "the runtime has no work")
        return processes

    def _until_unloaded(self) -> None:
        """Wait until the fleet has heard that the runtime is gone: what it says next is new."""
        self._until(lambda: not self._view().loaded, "the fleet has not heard of the end")

    @property
    def _agent_id(self) -> int:
        return self._fleet.cars[CAR].process.pid

    def _view(self) -> VehicleView:
        with self._fleet.admin() as admin:
            return admin.vehicles().vehicles[0]

    def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline_s = time.monotonic() + READY_S
        while not holds():
            if time.monotonic() > deadline_s:
                raise YieldsFailed(f"{otherwise}: {self._fleet.cars[CAR].last_words()}")
            time.sleep(LOOK_S)


def _lines() -> bytes:
    """A batch file whose every request takes a core some seconds."""
    body = {"model": play.MODEL, "input": [TEXT] * TEXTS_A_REQUEST}
    request = {"method": "POST", "url": EMBEDDINGS, "body": body}
    lines = [{"custom_id": f"request-{number}", **request} for number in range(REQUESTS)]
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
