"""A link with a guard's shadow behind it and a control plane in front of it, on virtual time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from terafleet.agent.link import Link, LinkHooks
from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.bus.ports import Bus, Message
from terafleet.core import guard_events as ev
from terafleet.core.capability import Capability
from terafleet.core.events import HeldLease
from terafleet.core.ids import Epoch, LeaseId
from terafleet.core.reasons import Refusal
from terafleet.protocol import agent as wire
from tests.contract.agent_stage import VEHICLE
from tests.contract.virtual_time import VirtualTime

LEASE_MS, MARGIN_MS = 20_000, 4_000
BEAT_MS, BEAT_REFUSING_MS = 4_000, 60_000
ASKING = 1_000_000

M = TypeVar("M", bound=wire.UpMessage)
E = TypeVar("E", bound=ev.GuardEvent)


class FakeGuard:
    """What a link reads of a guard."""

    def __init__(self) -> None:
        self.refusals: tuple[Refusal, ...] = (Refusal.UNPLUGGED,)
        self.leases: tuple[HeldLease, ...] = ()

    @property
    def is_holding(self) -> bool:
        """As the guard has it."""
        return not self.refusals or bool(self.leases)

    def held(self) -> tuple[HeldLease, ...]:
        """What the test says."""
        return self.leases


class FakePlane:
    """A control plane that hears one car and answers as the test wants."""

    def __init__(self, broker: MemoryBroker, time: VirtualTime) -> None:
        self.bus = MemoryBus(broker)
        self.time = time
        self.heard: list[tuple[int, wire.FromVehicle]] = []
        self.epoch = Epoch(0)
        self.answers_hello = True
        self.answers_beats = True

    async def open(self) -> None:
        """Listen."""
        await self.bus.connect()
        await self.bus.subscribe(wire.UP_SUBJECTS, self._take)

    def say(self, message: wire.DownMessage | bytes) -> None:
        """Send the car a message, or any bytes."""
        body = message if isinstance(message, bytes) else wire.ENCODER.encode(message)
        self.bus.publish(wire.down_subject(VEHICLE), body)

    def welcome(self, boot_id: str) -> None:
        """Begin another epoch."""
        self.epoch = Epoch(self.epoch + 1)
        times = (LEASE_MS, MARGIN_MS, BEAT_MS, BEAT_REFUSING_MS)
        self.say(wire.Welcome(self.epoch, boot_id, *times, ASKING))

    def all(self, kind: type[M]) -> list[M]:
        """The messages of a kind that came."""
        return [message for _, message in self.heard if isinstance(message, kind)]

    def times(self, kind: type[wire.UpMessage]) -> list[int]:
        """When messages of a kind came."""
        return [at_ms for at_ms, message in self.heard if isinstance(message, kind)]

    def _take(self, message: Message) -> None:
        assert wire.vehicle_of(message.subject) == VEHICLE
        decoded: wire.FromVehicle = wire.FROM_VEHICLE_DECODER.decode(message.body)
        self.heard.append((self.time.now_ms(), decoded))
        if isinstance(decoded, wire.Hello) and self.answers_hello:
            self.welcome(decoded.boot_id)
        if isinstance(decoded, wire.Heartbeat) and self.answers_beats:
            if decoded.epoch == self.epoch:
                self.say(wire.HeartbeatAnswer(self.epoch, decoded.sent_ms))
            else:
                self.say(wire.Fenced(decoded.epoch, "epoch_over"))


class Stage:
    """Everything around one link."""

    def __init__(self) -> None:
        self.time = VirtualTime()
        self.broker = MemoryBroker()
        self.plane = FakePlane(self.broker, self.time)
        self.guard = FakeGuard()
        self.events: list[ev.AnyGuardEvent] = []
        self.grants: list[wire.Grant] = []
        self.kept: list[wire.KeptModel] = []
        self.policies: list[bytes] = []
        self.capability = Capability(("onnx",), 1_024, 2)
        self.refused = 0
        self.buses: list[MemoryBus] = []
        self.connect_errors: list[Exception] = []
        self.sessions_begun: list[wire.StartSession] = []
        self.sessions_ended: list[LeaseId] = []
        hooks = LinkHooks(
            guard=self.guard,
            submit=self._submit,
            capability=lambda: self.capability,
            take_grant=self.grants.append,
            take_kept=self.kept.append,
            take_policy=self.policies.append,
            refused=self._refuse,
            start_session=self.sessions_begun.append,
            stop_session=self.sessions_ended.append,
        )
        time = self.time
        self.link = Link(VEHICLE, self._connect, time.clock, hooks, time.sleep, lambda: 0.0)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Stage"]:
        """Run the link while the context lasts."""
        await self.plane.open()
        running = asyncio.create_task(self.link.run())
        await self.time.settle()
        try:
            yield self
            assert not running.done(), running
        finally:
            running.cancel()
            await asyncio.wait({running})

    @property
    def bus(self) -> MemoryBus:
        """The car's newest connection."""
        return self.buses[-1]

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind that the guard got."""
        return [event for event in self.events if isinstance(event, kind)]

    def permit(self) -> None:
        """The guard permits from here on."""
        self.guard.refusals = ()
        self.link.report_permit(())

    def refuse(self, *refusals: Refusal) -> None:
        """The guard refuses from here on."""
        self.guard.refusals = refusals
        self.link.report_permit(refusals)

    async def _connect(self) -> Bus:
        if self.connect_errors:
            raise self.connect_errors.pop(0)
        bus = MemoryBus(
            self.broker,
            publish=(wire.up_subject(VEHICLE),),
            subscribe=(wire.down_subject(VEHICLE),),
        )
        await bus.connect()
        self.buses.append(bus)
        return bus

    def _submit(self, event: ev.AnyGuardEvent) -> bool:
        self.events.append(event)
        return True

    def _refuse(self) -> None:
        self.refused += 1
