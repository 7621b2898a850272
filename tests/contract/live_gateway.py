"""A gateway over HTTP with a fake fleet behind it, and the official clients before it."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from litestar import Litestar
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.control.adapters.catalogue_memory import MemoryCatalogue
from terafleet.control.adapters.objects_memory import MemoryObjects
from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.auth import CONTEXT_KEY
from terafleet.control.gateway.context import GatewayContext, GatewayLimits
from terafleet.control.ports import KeyRow, ModelRow
from terafleet.core.session_events import SessionSettings
from terafleet.protocol.manifest import Manifest, SignedManifest, manifest_bytes, model_id_of
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from tests.contract.customer_stage import ALICE, START_MS, WAIT_S, until
from tests.contract.fake_live_fleet import FakeFleet
from tests.contract.http_stage import served
from tests.contract.live_stage import live_sessions

WRITER, BIG_WRITER, EMBEDDER = "org/writer", "org/writer-big", "embedder"

HASTY = SessionSettings(
    answer_ms=100,
    open_patience_ms=500,
    silence_ms=150,
    move_patience_ms=1_000,
    ask_again_ms=20,
    moves_max=16,
)
"""Sessions that find out within a test what they find out within seconds elsewhere."""


def model_row(name: str, memory_mb: int, *endpoints: str) -> ModelRow:
    """A model of the catalogue."""
    manifest = manifest_bytes(Manifest(name, "scripted", endpoints, memory_mb, (), {}))
    return ModelRow(model_id_of(manifest), name, SignedManifest(manifest, b""), START_MS)


class Stage:
    """A gateway's context with everything in memory, and a fleet that does what a test wants."""

    def __init__(self, settings: SessionSettings) -> None:
        broker = MemoryBroker()
        self.bus, self.fleet_bus = MemoryBus(broker), MemoryBus(broker)
        self.fleet = FakeFleet(self.fleet_bus)
        self.sessions = live_sessions(self.bus, settings)
        self.catalogue = MemoryCatalogue()
        digest = hashlib.sha256(ALICE.encode()).digest()
        row = KeyRow("alice", digest, ALICE[:6], "alice", "customer", "cust-alice", START_MS)
        self.catalogue.add_key(row)
        self.catalogue.add_model(model_row(WRITER, 100, COMPLETIONS, CHAT_COMPLETIONS))
        self.catalogue.add_model(model_row(BIG_WRITER, 900, COMPLETIONS, CHAT_COMPLETIONS))
        self.catalogue.add_model(model_row(EMBEDDER, 50, EMBEDDINGS))
        self.context = GatewayContext(
            bus=self.bus,
            live=self.sessions,
            catalogue=self.catalogue,
            objects=MemoryObjects(),
            limits=GatewayLimits(),
            address_secret=b"secret",
            manifest_key=b"",
            bus_urls=(),
            now_ms=lambda: START_MS,
            new_id=lambda: secrets.token_hex(12),
            sign_manifest=lambda manifest: SignedManifest(manifest, b""),
            issue_credential=lambda _, __: ("", 0),
            is_storage_full=lambda: False,
        )

    async def start(self) -> None:
        """Connect both sides."""
        await self.bus.connect()
        await self.fleet_bus.connect()
        await self.fleet.start()
        await self.sessions.start()

    async def stop(self) -> None:
        """End; nothing may be left on its way."""
        await until(lambda: len(self.sessions) == 0)
        await self.sessions.stop()
        await self.fleet.stop()
        await self.bus.close()
        await self.fleet_bus.close()
        assert self.fleet.faults == []


class Gateway:
    """A gateway that a test asks."""

    def __init__(self, made: Stage, url: str) -> None:
        self.stage = made
        self.fleet = made.fleet
        self.url = url
        headers = {"authorization": f"Bearer {ALICE}"}
        # There is no TLS on loopback, and reading all roots of trust takes a client 100 ms.
        self.http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=WAIT_S,
            verify=False,  # noqa: S501
        )
        self._transport = DefaultAsyncHttpxClient(verify=False)
        self.client = AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key=ALICE,
            max_retries=0,
            timeout=WAIT_S,
            http_client=self._transport,
        )

    def blocking_client(self) -> OpenAI:
        """The official client for programs without an event loop; the caller closes it."""
        return OpenAI(
            base_url=f"{self.url}/v1",
            api_key=ALICE,
            max_retries=0,
            timeout=WAIT_S,
            http_client=DefaultHttpxClient(verify=False),
        )

    async def events(self, path: str, body: dict[str, Any], **headers: str) -> list[str]:
        """What a stream says, event by event, and comments among them."""
        answer = await self.http.post(path, json={**body, "stream": True}, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.content.endswith(b"\n\n")
        return answer.content.decode().removesuffix("\n\n").split("\n\n")

    async def close(self) -> None:
        """Let go of the connections."""
        await self.http.aclose()
        await self._transport.aclose()


class Server:
    """An HTTP server of the gateway's application, which several stages use one after the other."""

    def __init__(self, app: Litestar, url: str) -> None:
        self._app = app
        self._url = url

    @asynccontextmanager
    async def open(self, settings: SessionSettings = HASTY) -> AsyncIterator[Gateway]:
        """A fresh stage behind the server: nothing of an earlier one is left."""
        made = Stage(settings)
        await made.start()
        self._app.state[CONTEXT_KEY] = made.context
        opened = Gateway(made, self._url)
        try:
            yield opened
        finally:
            await opened.close()
            await made.stop()


@asynccontextmanager
async def live_server() -> AsyncIterator[Server]:
    """A server on a free port of loopback."""
    app = create_app(Stage(HASTY).context)
    async with served(app) as (_, url):
        yield Server(app, url)


def data_of(event: str) -> Any:
    """The JSON of an event."""
    assert event.startswith("data: "), event
    return msgspec.json.decode(event.removeprefix("data: "))
