"""Measures durable work units per second, end to end: everything is real but the work itself."""

import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from terafleet.bus.credentials import OperatorKeys
from terafleet.bus.ports import Bus, Message
from terafleet.cli.bench.against_bare import PARKED
from terafleet.cli.local_fleet import LocalFleet
from terafleet.control.app import connect_bus, open_objects
from terafleet.core.events import UnitSpec
from terafleet.core.ids import BatchId, CustomerId, ModelId, input_name
from terafleet.core.settings import FleetSettings
from terafleet.protocol import shard as q
from terafleet.protocol.manifest import Manifest

CARS = 4
SLOTS = 64
UNITS_PER_BATCH = 50_000
MANY = 16
INPUT = b"{}\n"
ENDPOINT = "/v1/embeddings"
QUESTION_MS = 60_000
READY_S = 30.0
RUN_S_MAX = 240.0


def measure_dispatch(units: int) -> dict[str, Any]:
    """Units per second with one unit a lease, and with sixteen."""
    one = _run(units, 1)
    many = _run(2 * units, MANY)
    return {
        "units_per_s": one,
        f"units_per_s_{MANY}_a_lease": many,
        "dispatch_cars": CARS,
        "dispatch_slots": SLOTS,
    }


def _run(units: int, per_lease: int) -> float:
    settings = FleetSettings(units_per_lease_max=per_lease)
    plane = {"gateway_work_at_once": 0, "shard": {"fleet": msgspec.to_builtins(settings)}}
    with (
        tempfile.TemporaryDirectory(prefix="terafleet-bench-") as temporary,
        LocalFleet(Path(temporary), plane) as fleet,
    ):
        fleet.start_plane()
        for number in range(CARS):
            car = {
                "slots": SLOTS,
                "memory_mb": 1_024,
                "runtimes": ["noop"],
                "vehicle": {"file": "timetable.json"},
                "policy": {"yield": {"settle_ms": 0}},
            }
            fleet.enrol(f"car-{number}", car, PARKED)
            fleet.start_car(f"car-{number}")
        with fleet.admin() as admin:
            manifest = Manifest("noop", "noop", (ENDPOINT,), 1, (), {})
            model_id = ModelId(admin.create_model(manifest).model_id)
        return asyncio.run(_drive(fleet, model_id, max(1, units // UNITS_PER_BATCH)))


class _Gateway:
    """Plays a gateway on the bus: cuts each batch at once and takes its outcome."""

    def __init__(self, bus: Bus, model_id: ModelId, batches: int) -> None:
        self._bus = bus
        self._left = batches
        self._tasks: set[asyncio.Task[Any]] = set()
        self.done = asyncio.Event()
        digest = hashlib.sha256(INPUT).digest()
        self._units = tuple(
            UnitSpec(model_id, 1, 100, number * len(INPUT), len(INPUT), digest)
            for number in range(UNITS_PER_BATCH)
        )

    async def ask(self, question: q.AnyQuestion) -> Any:
        """Ask the shard."""
        body = q.ENCODER.encode(question)
        return q.REPLY_DECODER.decode(await self._bus.request(q.SHARD_SUBJECT, body, QUESTION_MS))

    def take(self, message: Message) -> None:
        """Do what the shard asks of a gateway."""
        work = q.WORK_DECODER.decode(message.body)
        if isinstance(work, q.Cut):
            self._spawn(q.SubmitUnits(work.batch_id, self._units, 0))
        elif isinstance(work, q.Assemble):
            self._left -= 1
            if self._left == 0:
                self.done.set()
            self._spawn(q.BatchFilesWritten(work.batch_id, "", ""))

    async def finish(self) -> None:
        """Wait for the answers to what was still asked."""
        await asyncio.gather(*self._tasks)

    def _spawn(self, question: q.AnyQuestion) -> None:
        task = asyncio.create_task(self.ask(question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _drive(fleet: LocalFleet, model_id: ModelId, batches: int) -> float:
    keys = OperatorKeys.load(fleet.data / "bus" / "operator.keys")
    bus = await connect_bus([f"nats://127.0.0.1:{fleet.bus_port}"], keys, "bench")
    gateway = _Gateway(bus, model_id, batches)
    await bus.subscribe(q.GATEWAY_WORK_SUBJECT, gateway.take, q.GATEWAY_GROUP)
    await _wait_for_cars(gateway)
    objects = open_objects(fleet.data / "objects")
    names = [BatchId(f"batch_{number}") for number in range(batches)]
    for name in names:
        await objects.write(input_name(name), _inputs())
    started_s = time.perf_counter()
    for name in names:
        await gateway.ask(
            q.CreateBatch(
                name,
                CustomerId("bench"),
                ENDPOINT,
                (model_id,),
                UNITS_PER_BATCH,
                86_400_000,
                "file",
                json.dumps({}).encode(),
            )
        )
    async with asyncio.timeout(RUN_S_MAX):
        await gateway.done.wait()
    seconds = time.perf_counter() - started_s
    await gateway.finish()
    await bus.close()
    return batches * UNITS_PER_BATCH / seconds


async def _wait_for_cars(gateway: _Gateway) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            listed = await gateway.ask(q.ListVehicles())
            if sum(one.state == "idle" for one in listed.vehicles) == CARS:
                return
            await asyncio.sleep(0.1)


async def _inputs() -> AsyncIterator[bytes]:
    yield INPUT * UNITS_PER_BATCH
