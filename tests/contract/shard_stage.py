"""A whole shard on a bus in memory, with a gateway and cars that a test plays by hand."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

import msgspec

from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.bus.ports import Message, NoAnswer
from terafleet.control.adapters.objects_memory import MemoryObjects
from terafleet.control.shard.shard import Shard, ShardPorts, ShardSettings
from terafleet.core.capability import Capability, ModelNeeds
from terafleet.core.events import HeldLease, UnitSpec
from terafleet.core.ids import (
    BatchId,
    CustomerId,
    Epoch,
    LeaseId,
    ModelId,
    ReceiptId,
    VehicleId,
    WorkUnitId,
    batch_outputs_folder,
    input_name,
    large_output_name,
    vehicle_outputs_folder,
)
from terafleet.core.reasons import Failure, Refusal
from terafleet.core.settings import FleetSettings
from terafleet.core.work import AttemptResult
from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.ports import Store
from terafleet.engine.settings import EngineSettings
from terafleet.protocol import agent as wire
from terafleet.protocol import shard as q
from terafleet.protocol.parcel import pack
from tests.contract.agent_stage import until

EMBEDDINGS = "/v1/embeddings"
MODEL = ModelNeeds(ModelId("model"), "small", "onnx", 500, (EMBEDDINGS,))
CUSTOMER = CustomerId("customer")
SECRET = b"secret"
WINDOW_MS = 3_600_000
ANSWER_MS = 5_000


def settings_of(units_per_lease_max: int) -> ShardSettings:
    """A shard that grants so many units at a time."""
    return ShardSettings(
        fleet=FleetSettings(units_per_lease_max=units_per_lease_max, gateway_retry_ms=100),
        engine=EngineSettings(
            commits_in_thread=False,
            snapshots_by_fork=False,
            check_interval_ms=20,
            bytes_free_min=0,
            bytes_free_enough=0,
        ),
    )


SETTINGS = settings_of(2)

LINES = [f"line {number}\n".encode() for number in range(6)]
"""The inputs of a small batch."""

Reopen = Callable[[], Store]

R = TypeVar("R", bound=q.Reply)
W = TypeVar("W", bound=q.GatewayWork)
M = TypeVar("M", bound=wire.DownMessage)


class FakeGateway:
    """Asks the shard, and does the work that it gives: cuts a batch into units of one line."""

    def __init__(self, broker: MemoryBroker, objects: MemoryObjects) -> None:
        self.bus = MemoryBus(broker)
        self.objects = objects
        self.inputs: dict[BatchId, list[bytes]] = {}
        self.files: dict[BatchId, bytes] = {}
        self.work: list[q.GatewayWork] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, *, works: bool = True) -> None:
        """Connect, and take work if told."""
        await self.bus.connect()
        if works:
            await self.bus.subscribe(q.GATEWAY_WORK_SUBJECT, self._take, q.GATEWAY_GROUP)

    async def ask(self, question: q.Question, kind: type[R]) -> R:
        """Ask a question whose answer is of a kind."""
        body = await self.bus.request(q.SHARD_SUBJECT, q.ENCODER.encode(question), ANSWER_MS)
        answer = q.REPLY_DECODER.decode(body)
        assert isinstance(answer, kind), answer
        return answer

    async def create(self, name: str, inputs: list[bytes]) -> q.Answered:
        """Ask for a batch with these inputs."""
        batch_id = BatchId(name)
        self.inputs[batch_id] = inputs
        models, count, metadata = (MODEL.model_id,), len(inputs), b"{}"
        return await self.ask(
            q.CreateBatch(
                batch_id, CUSTOMER, EMBEDDINGS, models, count, WINDOW_MS, "file", metadata
            ),
            q.Answered,
        )

    async def view(self, name: str) -> q.BatchView:
        """What the customer reads."""
        return await self.ask(q.GetBatch(BatchId(name), CUSTOMER), q.BatchView)

    def asked_for(self, kind: type[W]) -> list[W]:
        """The work of a kind that came."""
        return [work for work in self.work if isinstance(work, kind)]

    def _take(self, message: Message) -> None:
        work = q.WORK_DECODER.decode(message.body)
        self.work.append(work)
        task = asyncio.create_task(self._do(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, work: q.AnyGatewayWork) -> None:
        match work:
            case q.Cut():
                await self._cut(work)
            case q.Assemble():
                await self._assemble(work)
            case q.Forget():
                await self.objects.delete(input_name(work.batch_id))
                await self.objects.delete_folder(batch_outputs_folder(work.batch_id))

    async def _cut(self, work: q.Cut) -> None:
        inputs = self.inputs[work.batch_id]
        await self.objects.write(input_name(work.batch_id), _pieces(inputs))
        specs, offset = [], 0
        for payload in inputs:
            digest = hashlib.sha256(payload).digest()
            specs.append(UnitSpec(MODEL.model_id, 1, 100, offset, len(payload), digest))
            offset += len(payload)
        await self.ask(q.SubmitUnits(work.batch_id, tuple(specs), 0), q.Answered)

    async def _assemble(self, work: q.Assemble) -> None:
        done = [one for one in work.outcomes if one.ending is None]
        outputs = []
        for one, body in zip(done, await self.outputs(done), strict=True):
            folder = vehicle_outputs_folder(work.batch_id, one.vehicle_id)
            name = f"{folder}{large_output_name(one.lease_id, one.unit_id)}"
            if body is None and await self.objects.info(name) is not None:
                body = await self.objects.read(name)
            outputs.append(body or b"missing\n")
        self.files[work.batch_id] = b"".join(outputs)
        await self.ask(q.BatchFilesWritten(work.batch_id, "file-out", ""), q.Answered)

    async def outputs(self, done: list[q.Outcome]) -> list[bytes | None]:
        """What the record has of these units."""
        asked = [(one.lease_id, one.receipt_id, one.unit_id) for one in done]
        bodies: list[bytes | None] = []
        while len(bodies) < len(asked):
            question = q.GetOutputs(tuple(asked[len(bodies) :]))
            bodies += (await self.ask(question, q.Outputs)).bodies
        return bodies


async def _pieces(inputs: list[bytes]) -> AsyncIterator[bytes]:
    for payload in inputs:
        yield payload


def result_of(unit_id: WorkUnitId, answers: int = 1) -> AttemptResult:
    """What a car says of a unit that it has done."""
    return AttemptResult(unit_id, answers, 0, 5, 0, 3, 10)


def receipt_of(
    lease_id: LeaseId, outputs: Mapping[WorkUnitId, bytes], payload: bytes | None = None
) -> wire.Receipt:
    """The receipt of outputs, one answer each, in a parcel unless it is to hold other bytes."""
    parcel = pack(outputs.items()) if payload is None else payload
    return wire.Receipt(
        lease_id,
        ReceiptId(next(iter(outputs))),
        results=tuple(map(result_of, outputs)),
        digest=hashlib.sha256(parcel).digest(),
        payload=parcel,
    )


class FakeCar:
    """A car that keeps to the protocol; it hands in what it was granted, when told or at once."""

    def __init__(self, broker: MemoryBroker, name: str, slots: int = 1) -> None:
        self.vehicle_id = VehicleId(f"veh-{name}")
        self.name = name
        self.bus = MemoryBus(broker)
        self.capability = Capability(("onnx",), 4_000, slots, (), "phone")
        self.refusals: tuple[Refusal, ...] = ()
        self.works = False
        self.units_per_receipt = 1
        self.answer: Callable[[bytes], bytes] = bytes.upper
        self.epoch = Epoch(0)
        self.leases: dict[LeaseId, list[wire.OfferedUnit]] = {}
        self.kept: dict[tuple[LeaseId, ReceiptId], wire.Receipt] = {}
        self.done: Counter[WorkUnitId] = Counter()
        self.heard: list[wire.ToVehicle] = []

    async def open(self) -> None:
        """Connect and say hello."""
        await self.bus.connect()
        await self.bus.subscribe(wire.down_subject(self.vehicle_id), self._take)
        self.hello()

    def say(self, message: wire.UpMessage) -> None:
        """Send a message."""
        self.bus.publish(wire.up_subject(self.vehicle_id), wire.ENCODER.encode(message))

    def hello(self) -> None:
        """Say what the car can and holds."""
        units = {lease_id: [one.unit_id for one in held] for lease_id, held in self.leases.items()}
        for receipt in self.kept.values():
            handed_in = [one.unit_id for one in receipt.results]
            units.setdefault(receipt.lease_id, []).extend(handed_in)
        held = tuple(HeldLease(lease_id, tuple(ids)) for lease_id, ids in units.items())
        boot_id = f"boot-{self.name}"
        self.say(wire.Hello(wire.PROTOCOL, boot_id, "0.1.0", self.capability, self.refusals, held))

    def all(self, kind: type[M]) -> list[M]:
        """The messages of a kind that came."""
        return [message for message in self.heard if isinstance(message, kind)]

    def acknowledged(self) -> list[tuple[LeaseId, ReceiptId]]:
        """The receipts that were acknowledged, as often as they were."""
        return [key for message in self.all(wire.Acknowledge) for key in message.receipts]

    def finish(self, count: int = 1) -> wire.Receipt | None:
        """Hand in so many attempts of a lease with one receipt: the inputs in capitals, mostly."""
        for lease_id in self.leases:
            units = self.take(lease_id, count)
            self.done.update(unit.unit_id for unit in units)
            receipt = receipt_of(lease_id, {one.unit_id: self.answer(one.payload) for one in units})
            results = tuple(result_of(one.unit_id, one.requests) for one in units)
            receipt = msgspec.structs.replace(receipt, results=results)
            self.kept[lease_id, receipt.receipt_id] = receipt
            self.hand_in(receipt)
            return receipt
        return None

    def take(self, lease_id: LeaseId, count: int) -> list[wire.OfferedUnit]:
        """Take the next units off a lease, to do with them what a test wants."""
        units = self.leases[lease_id]
        taken, units[:count] = units[:count], []
        if not units:
            del self.leases[lease_id]
        return taken

    def fail(self, failure: Failure, detail: str) -> None:
        """Hand in that the next attempt could not be done."""
        lease_id = next(iter(self.leases))
        (unit,) = self.take(lease_id, 1)
        receipt_id = ReceiptId(unit.unit_id)
        self.hand_in(wire.Receipt(lease_id, receipt_id, failure=failure, detail=detail))

    def hand_in(self, *receipts: wire.Receipt) -> None:
        """Send receipts."""
        self.say(wire.Receipts(self.epoch, receipts))

    def _take(self, message: Message) -> None:
        decoded: wire.ToVehicle = wire.TO_VEHICLE_DECODER.decode(message.body)
        self.heard.append(decoded)
        match decoded:
            case wire.Welcome():
                self.epoch = decoded.epoch
                self.hand_in(*self.kept.values())
            case wire.HelloWanted():
                self.hello()
            case wire.Fenced():
                if decoded.epoch in (0, self.epoch):
                    self.epoch = Epoch(0)
                    self.leases.clear()
            case wire.Grants():
                if decoded.epoch == self.epoch:
                    self._granted(decoded)
            case wire.Revoke():
                if decoded.epoch == self.epoch:
                    for lease_id in decoded.lease_ids:
                        self.leases.pop(lease_id, None)
            case wire.Acknowledge():
                for key in decoded.receipts:
                    self.kept.pop(key, None)

    def _granted(self, message: wire.Grants) -> None:
        for grant in message.grants:
            assert grant.lease_id not in self.leases
            self.leases[grant.lease_id] = list(grant.units)
            assert len(self.leases) <= self.capability.slots
        while self.works and self.finish(self.units_per_receipt):
            pass


class ShardStage:
    """One record, the shard that works on it at present, a gateway and cars."""

    def __init__(self, reopen: Reopen, settings: ShardSettings = SETTINGS) -> None:
        self.reopen = reopen
        self.settings = settings
        self.broker = MemoryBroker()
        self.objects = MemoryObjects()
        self.gateway = FakeGateway(self.broker, self.objects)
        self.cars: list[FakeCar] = []
        self.storage: list[bool] = []
        self.boots = 0
        self.running: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Put a shard on the record and let it work."""
        self.boots += 1
        self.bus = MemoryBus(self.broker)
        await self.bus.connect()
        self.store = self.reopen()
        ports = ShardPorts(self.bus, self.store, self.objects, SECRET, f"boot-{self.boots}")
        self.shard = Shard(ports, self.settings, self.storage.append)
        self.running = asyncio.create_task(self.shard.run())
        await self._until_it_answers()

    async def _until_it_answers(self) -> None:
        question = q.ENCODER.encode(q.GetStatus())
        async with asyncio.timeout(ANSWER_MS / 1_000):
            while True:
                try:
                    await self.bus.request(q.SHARD_SUBJECT, question, ANSWER_MS)
                except NoAnswer:
                    await asyncio.sleep(0)
                else:
                    return

    async def open(self, *, works: bool = True) -> None:
        """Begin, with a gateway and a model."""
        await self.begin()
        await self.gateway.open(works=works)
        await self.gateway.ask(q.AddModel(MODEL), q.Answered)

    async def add_car(self, name: str, slots: int = 1, *, works: bool = False) -> FakeCar:
        """A car is enrolled and welcomed."""
        car = FakeCar(self.broker, name, slots)
        car.works = works
        self.cars.append(car)
        await self.gateway.ask(q.EnrolVehicle(car.vehicle_id, name), q.Answered)
        await car.open()
        await until(lambda: car.epoch)
        return car

    async def abandon(self) -> None:
        """The process of the shard ends at this moment, with all that it had in mind."""
        assert self.running is not None
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running
        self.running = None
        self.broker.cut(self.bus)
        await self.bus.close()
        self.store.close()

    async def close(self) -> None:
        """Stop the shard cleanly."""
        if self.running is not None:
            await self.shard.stop()
            await self.running
            self.running = None

    async def story(self, about: str, limit: int = 100) -> list[str]:
        """What the journal tells about a thing."""
        story = await self.gateway.ask(q.GetStory(about, limit), q.Story)
        return [line.text for line in story.lines]


def units_of(car: FakeCar) -> list[WorkUnitId]:
    """The units that a car holds."""
    return [unit.unit_id for units in car.leases.values() for unit in units]


def reopen_memory() -> Reopen:
    """A store in memory that opens as itself again."""
    store = MemoryStore()
    return lambda: store
