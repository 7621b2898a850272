"""The shard's links on a bus in memory, with cars that a test plays and a list for the fleet."""

from collections.abc import Sequence
from typing import TypeVar

from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.bus.ports import Message
from terafleet.control.shard.links import Links, LinkSettings
from terafleet.core import events as ev
from terafleet.core.capability import Capability
from terafleet.core.effects import WelcomeVehicle
from terafleet.core.events import HeldLease
from terafleet.core.ids import Epoch, LeaseId, ModelId, VehicleId, WorkUnitId
from terafleet.core.reasons import Refusal
from terafleet.engine.clock import ManualClock
from terafleet.engine.ports import Blob
from terafleet.protocol import agent as wire
from tests.contract.virtual_time import VirtualTime

VEHICLE, OTHER = VehicleId("veh-abcdefghij"), VehicleId("veh-klmnopqrst")
CAPABILITY = Capability(("onnx",), 4_000, 2, (ModelId("m"),), "phone")
SETTINGS = LinkSettings()
LEASE_MS, MARGIN_MS = 20_000, 4_000
UNPLUGGED = (Refusal.UNPLUGGED,)
LEASE, UNIT = LeaseId(7), WorkUnitId(12)

E = TypeVar("E", bound=ev.Event)


class FakeCar:
    """A car that says what the test wants and notes what it hears."""

    def __init__(self, broker: MemoryBroker, vehicle_id: VehicleId) -> None:
        self.vehicle_id = vehicle_id
        self.bus = MemoryBus(broker)
        self.heard: list[wire.ToVehicle] = []

    async def open(self) -> None:
        """Connect and listen."""
        await self.bus.connect()
        await self.bus.subscribe(wire.down_subject(self.vehicle_id), self._take)

    def say(self, message: wire.UpMessage | bytes) -> None:
        """Send a message, or any bytes."""
        body = message if isinstance(message, bytes) else wire.ENCODER.encode(message)
        self.bus.publish(wire.up_subject(self.vehicle_id), body)

    def hello(
        self,
        refusals: tuple[Refusal, ...] = (),
        capability: Capability = CAPABILITY,
        protocol: int = wire.PROTOCOL,
    ) -> None:
        """Say hello, holding one lease."""
        held = (HeldLease(LEASE, (UNIT,)),)
        self.say(wire.Hello(protocol, "boot", "0.1.0", capability, refusals, held))

    def _take(self, message: Message) -> None:
        self.heard.append(wire.TO_VEHICLE_DECODER.decode(message.body))


class Stage:
    """Links with a list in place of the fleet, whose inbox may be full."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_000_000)
        self.time = VirtualTime()
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.car, self.other = FakeCar(self.broker, VEHICLE), FakeCar(self.broker, OTHER)
        self.events: list[ev.FleetEvent] = []
        self.blobs: list[Blob] = []
        self.is_full = False
        self.epochs = 0
        self.links = Links(self.bus, self._submit, self.clock.now_ms, SETTINGS)

    def _submit(self, event: ev.FleetEvent, blobs: Sequence[Blob]) -> bool:
        if not self.is_full:
            self.events.append(event)
            self.blobs += blobs
        return not self.is_full

    async def open(self) -> None:
        """Everybody listens."""
        await self.bus.connect()
        await self.bus.subscribe(wire.UP_SUBJECTS, self.links.receive)
        await self.car.open()
        await self.other.open()

    async def settle(self) -> None:
        """Let everything arrive that is on its way."""
        await self.time.settle()

    def welcome(self, vehicle_id: VehicleId = VEHICLE) -> Epoch:
        """The fleet begins an epoch."""
        self.epochs += 1
        epoch = Epoch(self.epochs)
        self.links.welcome(WelcomeVehicle(vehicle_id, epoch, "boot", LEASE_MS, MARGIN_MS, 7))
        return epoch

    async def connect(
        self, refusals: tuple[Refusal, ...] = (), car: FakeCar | None = None
    ) -> Epoch:
        """A car says hello and is welcomed; what was heard and told is forgotten."""
        chosen = car or self.car
        chosen.hello(refusals)
        await self.settle()
        epoch = self.welcome(chosen.vehicle_id)
        await self.settle()
        chosen.heard.clear()
        self.events.clear()
        return epoch

    async def say(self, message: wire.UpMessage | bytes) -> None:
        """The car says something, and it arrives."""
        self.car.say(message)
        await self.settle()

    def told(self, kind: type[E]) -> list[E]:
        """The events of a kind that the fleet was told."""
        return [event for event in self.events if isinstance(event, kind)]

    def pass_ms(self, duration_ms: int) -> None:
        """Let time pass, and look for silence."""
        self.clock.advance(duration_ms)
        self.links.look_for_silence()
