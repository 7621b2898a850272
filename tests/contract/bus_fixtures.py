"""The worlds in which the tests of the bus run: one in memory, one with a real NATS server."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.bus.adapters.nats import NatsBus
from terafleet.bus.credentials import NKey, OperatorKeys, UserCredentials
from terafleet.bus.nats_server import NatsServer
from terafleet.bus.ports import Message

WAIT_S = 10


async def until(is_so: Callable[[], bool], wait_s: float = WAIT_S) -> None:
    """Wait until it is so, or fail."""
    deadline = time.monotonic() + wait_s
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)


class Listener:
    """A receiver that keeps what came."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def __call__(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        """What came, in the order in which it came."""
        return [message.body for message in self.messages]

    async def wait_for(self, count: int) -> list[bytes]:
        """Wait until this many have come; returns all that have."""
        await until(lambda: len(self.messages) >= count)
        return self.bodies


class BusWorld(Protocol):
    """Where buses can be made, and cut from each other."""

    def new_bus(
        self,
        publish: Sequence[str] = (">",),
        subscribe: Sequence[str] = (">",),
        inbox_prefix: str = "_INBOX",
    ) -> MemoryBus | NatsBus:
        """A bus that is not connected, with these permissions."""
        ...

    async def cut(self) -> None:
        """End all connections and let none begin."""
        ...

    async def mend(self) -> None:
        """Let connections begin again."""
        ...

    async def close(self) -> None:
        """Close all buses and what they need."""
        ...


class MemoryWorld:
    """Buses in memory."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.buses: list[MemoryBus] = []

    def new_bus(
        self,
        publish: Sequence[str] = (">",),
        subscribe: Sequence[str] = (">",),
        inbox_prefix: str = "_INBOX",
    ) -> MemoryBus:
        bus = MemoryBus(self.broker, publish, subscribe, inbox_prefix)
        self.buses.append(bus)
        return bus

    async def cut(self) -> None:
        for bus in self.buses:
            self.broker.cut(bus)

    async def mend(self) -> None:
        for bus in self.buses:
            self.broker.mend(bus)

    async def close(self) -> None:
        for bus in self.buses:
            await bus.close()


class NatsWorld:
    """Buses over a real server, in operator mode."""

    def __init__(self, data_dir: Path) -> None:
        self.keys = OperatorKeys.generate()
        self.server = NatsServer(data_dir, "127.0.0.1", lasting_port(), self.keys)
        self.buses: list[NatsBus] = []

    def new_bus(
        self,
        publish: Sequence[str] = (">",),
        subscribe: Sequence[str] = (">",),
        inbox_prefix: str = "_INBOX",
    ) -> NatsBus:
        credentials = issue(self.keys, publish, subscribe)
        return self.bus_with(lambda: credentials, inbox_prefix)

    def bus_with(
        self, credentials: Callable[[], UserCredentials], inbox_prefix: str = "_INBOX"
    ) -> NatsBus:
        """A bus that is not connected, with these credentials."""
        bus = NatsBus([self.server.url], credentials, "test", inbox_prefix)
        self.buses.append(bus)
        return bus

    async def cut(self) -> None:
        process_id = self.server.process_id
        assert process_id is not None
        os.kill(process_id, signal.SIGKILL)
        await self.server.stop()
        await until(lambda: not any(bus.is_connected for bus in self.buses))

    async def mend(self) -> None:
        await self.server.start()

    async def close(self) -> None:
        for bus in self.buses:
            await bus.close()
        await self.server.stop()


def lasting_port() -> int:
    """A free port to which a server can come back.

    It lies below those that the system gives to outgoing connections (Linux: from 32768), one of
    which could take it while the server is down.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def issue(
    keys: OperatorKeys,
    publish: Sequence[str],
    subscribe: Sequence[str],
    ttl_s: int = 600,
    issued_s: int | None = None,
) -> UserCredentials:
    """Credentials of a fresh user."""
    key = NKey.generate()
    now_s = int(time.time()) if issued_s is None else issued_s
    jwt = keys.user_jwt(key.public, "test", publish, subscribe, ttl_s=ttl_s, now_s=now_s)
    return UserCredentials(jwt, key.sign)


@contextlib.asynccontextmanager
async def nats_world(data_dir: Path) -> AsyncIterator[NatsWorld]:
    """A running server, and all buses closed at the end."""
    world = NatsWorld(data_dir)
    await world.server.start()
    try:
        yield world
    finally:
        await world.close()
