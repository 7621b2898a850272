"""The stage for tests of the customers' side: gateway over HTTP, fake shard, OpenAI's client."""

import asyncio
import hashlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import msgspec
import uvicorn
from litestar import Litestar
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types import Batch

from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.control.adapters.catalogue_memory import MemoryCatalogue
from terafleet.control.adapters.objects_memory import MemoryObjects
from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.auth import CONTEXT_KEY
from terafleet.control.gateway.context import GatewayContext, GatewayLimits
from terafleet.control.gateway.work import GatewayWorkHandler
from terafleet.control.ports import FileRow, KeyRow, ModelRow, Objects
from terafleet.core.ids import BatchId, CustomerId, ModelId
from terafleet.protocol.manifest import Manifest, SignedManifest, manifest_bytes, model_id_of
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from terafleet.protocol.shard import Answered, CreateBatch
from tests.contract.fake_shard import FakeShard
from tests.contract.live_stage import live_sessions

START_MS = 1_800_000_000_000
WAIT_S = 10.0

MINI, SECOND, WRITER = "mini", "org/second", "writer"
"""Two models that embed and one that writes."""


def secret_of(name: str) -> str:
    """An API key in the house's form."""
    return "tf-" + hashlib.sha256(name.encode()).hexdigest()[:43]


ALICE, BOB = secret_of("alice"), secret_of("bob")


def model_row(name: str, *endpoints: str) -> ModelRow:
    """A model of the catalogue."""
    manifest = manifest_bytes(Manifest(name, "scripted", endpoints, 100, (), {}))
    return ModelRow(model_id_of(manifest), name, SignedManifest(manifest, b""), START_MS)


def line(
    custom_id: object = "a", model: str = MINI, text: str = "hello", url: str = EMBEDDINGS
) -> bytes:
    """A line of a batch, good unless something else is asked for."""
    body = {"model": model, "input": text}
    if url == COMPLETIONS:
        body = {"model": model, "prompt": text}
    value = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return msgspec.json.encode(value)


def lines(count: int, **kind: str) -> bytes:
    """A good file with so many lines."""
    return b"\n".join(line(f"request-{number}", **kind) for number in range(count))


class Stage:
    """A gateway's context with everything in memory, its work handler, and a fake shard."""

    def __init__(self, limits: GatewayLimits, objects: Objects | None = None) -> None:
        broker = MemoryBroker()
        self.bus, shard_bus = MemoryBus(broker), MemoryBus(broker)
        self.buses = (self.bus, shard_bus)
        self.now_ms = START_MS
        self.is_full = False
        self.catalogue = MemoryCatalogue()
        self.objects = objects or MemoryObjects()
        self.shard = FakeShard(shard_bus, self.objects, self._now_ms)
        ids = (f"{number:024x}" for number in itertools.count(1))
        self.context = GatewayContext(
            bus=self.bus,
            live=live_sessions(self.bus),
            catalogue=self.catalogue,
            objects=self.objects,
            limits=limits,
            address_secret=b"secret",
            manifest_key=b"",
            bus_urls=(),
            now_ms=self._now_ms,
            new_id=lambda: next(ids),
            sign_manifest=lambda manifest: SignedManifest(manifest, b""),
            issue_credential=lambda _, __: ("", 0),
            is_storage_full=lambda: self.is_full,
        )
        self.work = GatewayWorkHandler(self.context, retry_ms=(0, 0))
        for name, secret in (("alice", ALICE), ("bob", BOB)):
            digest = hashlib.sha256(secret.encode()).digest()
            row = KeyRow(name, digest, secret[:6], name, "customer", f"cust-{name}", START_MS)
            self.catalogue.add_key(row)
        self.catalogue.add_model(model_row(MINI, EMBEDDINGS))
        self.catalogue.add_model(model_row(SECOND, EMBEDDINGS))
        self.catalogue.add_model(model_row(WRITER, COMPLETIONS, CHAT_COMPLETIONS))

    def _now_ms(self) -> int:
        self.now_ms += 1
        return self.now_ms

    def model_id(self, name: str) -> ModelId:
        """The id of a model of the catalogue."""
        row = self.catalogue.model_by_name(name)
        assert row is not None
        return ModelId(row.model_id)

    async def admit(self, body: bytes, batch_id: str = "batch_1") -> None:
        """A file lies there and a batch of it is admitted, without a gateway over HTTP."""

        async def pieces() -> AsyncIterator[bytes]:
            yield body

        stored = await self.objects.write(f"file/file-of-{batch_id}", pieces())
        row = FileRow(
            file_id=f"file-of-{batch_id}",
            customer_id="cust-alice",
            filename="in.jsonl",
            purpose="batch",
            size_bytes=len(body),
            created_ms=self.now_ms,
            object_name=stored.name,
        )
        self.catalogue.add_file(row)
        self.shard.wants_cuts = False
        question = CreateBatch(
            batch_id=BatchId(batch_id),
            customer_id=CustomerId("cust-alice"),
            endpoint=EMBEDDINGS,
            model_ids=(),
            requests=body.count(b"\n") + 1,
            window_ms=3_600_000,
            input_file_id=row.file_id,
            metadata=b"",
        )
        await self.context.ask(question, Answered)


@asynccontextmanager
async def stage(
    limits: GatewayLimits | None = None, objects: Objects | None = None
) -> AsyncIterator[Stage]:
    """A stage with its shard and its work handler running, without HTTP."""
    made = Stage(limits or GatewayLimits(), objects)
    for bus in made.buses:
        await bus.connect()
    await made.shard.start()
    await made.work.start()
    try:
        yield made
    finally:
        await made.work.close()
        for bus in made.buses:
            await bus.close()


class Service:
    """A stage whose gateway is open over HTTP, and the official client."""

    def __init__(self, made: Stage, url: str) -> None:
        self.stage = made
        self.shard = made.shard
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
        self.alice = self.client(ALICE)
        self.bob = self.client(BOB)

    def client(self, secret: str) -> AsyncOpenAI:
        """The official client with this API key."""
        return AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key=secret,
            max_retries=0,
            timeout=WAIT_S,
            http_client=self._transport,
        )

    async def upload(self, body: bytes, name: str = "in.jsonl") -> str:
        """Alice sends a file for a batch; its id."""
        stored = await self.alice.files.create(file=(name, body), purpose="batch")
        return stored.id

    async def batch(self, file_id: str) -> Batch:
        """Alice makes a batch of embeddings."""
        return await self.alice.batches.create(
            input_file_id=file_id, endpoint=EMBEDDINGS, completion_window="24h"
        )

    async def until(self, batch_id: str, status: str) -> Batch:
        """Wait until the batch is so far, or fail; what Alice reads then."""
        await until(lambda: self.shard.views[batch_id].state.value == status)
        return await self.alice.batches.retrieve(batch_id)

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
    async def open(self, limits: GatewayLimits | None = None) -> AsyncIterator[Service]:
        """A fresh stage behind the server: nothing of an earlier one is left."""
        async with stage(limits) as made:
            self._app.state[CONTEXT_KEY] = made.context
            running = Service(made, self._url)
            try:
                yield running
            finally:
                await running.close()


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    """A server on a free port of loopback."""
    app = create_app(Stage(GatewayLimits()).context)
    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    serving = asyncio.create_task(uvicorn_server.serve(sockets=[listener]))
    await until(lambda: uvicorn_server.started)
    try:
        yield Server(app, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        uvicorn_server.should_exit = True
        await serving
        listener.close()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until it is so, or fail."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)
