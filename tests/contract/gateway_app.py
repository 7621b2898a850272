"""A gateway on a free port of the loopback, with everything behind it in memory."""

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.bus.credentials import OperatorKeys
from terafleet.control.adapters.catalogue_memory import MemoryCatalogue
from terafleet.control.adapters.objects_memory import MemoryObjects
from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.context import GatewayContext, GatewayLimits
from terafleet.control.gateway.keys import KEY_RANDOM_BYTES, key_row, key_secret
from terafleet.protocol.errors import ERRORS, ErrorReply
from terafleet.protocol.manifest import SignedManifest
from tests.contract.fake_answers import FakeAnswers
from tests.contract.live_stage import live_sessions

START_MS = 1_800_000_000_000
CREDENTIAL_S = 86_400


class Stage:
    """All the parts of a gateway, and the knobs that a test turns."""

    def __init__(
        self,
        catalogue: MemoryCatalogue | None = None,
        objects: MemoryObjects | None = None,
        limits: GatewayLimits | None = None,
    ) -> None:
        broker = MemoryBroker()
        self.shard = FakeAnswers(broker)
        self.bus = MemoryBus(broker)
        self.catalogue = MemoryCatalogue() if catalogue is None else catalogue
        self.objects = MemoryObjects() if objects is None else objects
        self.now_ms = START_MS
        self.is_storage_full = False
        self.manifest_key = Ed25519PrivateKey.generate()
        self.operator_keys = OperatorKeys.generate()
        self.context = GatewayContext(
            bus=self.bus,
            live=live_sessions(self.bus),
            catalogue=self.catalogue,
            objects=self.objects,
            limits=limits or GatewayLimits(),
            address_secret=b"the secret of signed addresses",
            manifest_key=self.manifest_key.public_key().public_bytes_raw(),
            bus_urls=("nats://127.0.0.1:4222",),
            now_ms=lambda: self.now_ms,
            new_id=lambda: secrets.token_hex(12),
            sign_manifest=lambda body: SignedManifest(body, self.manifest_key.sign(body)),
            issue_credential=self._issue_credential,
            is_storage_full=lambda: self.is_storage_full,
        )

    async def start(self) -> None:
        await self.bus.connect()
        await self.shard.start()

    def add_key(self, role: str = "customer", customer_id: str = "cust_1") -> str:
        """Put an API key into the catalogue; its secret."""
        secret = key_secret(secrets.token_bytes(KEY_RANDOM_BYTES))
        key_id = f"key_{secrets.token_hex(4)}"
        self.catalogue.add_key(key_row(key_id, secret, "a key", role, customer_id, self.now_ms))
        return secret

    def _issue_credential(self, vehicle_id: str, public_key: str) -> tuple[str, int]:
        now_s = self.now_ms // 1_000
        publish, subscribe = (f"vehicle.{vehicle_id}.up",), (f"vehicle.{vehicle_id}.down",)
        keys = self.operator_keys
        jwt = keys.user_jwt(public_key, vehicle_id, publish, subscribe, CREDENTIAL_S, now_s)
        return jwt, now_s + CREDENTIAL_S


class Server:
    """Uvicorn in the event loop of the test."""

    def __init__(self, context: GatewayContext) -> None:
        # Named as TCP, since asyncio turns Nagle's waiting off for such sockets only.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            create_app(context), lifespan="off", ws="none", log_level="critical", access_log=False
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)

    async def __aenter__(self) -> Self:
        await self._server.startup(sockets=[self._socket])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._server.shutdown(sockets=[self._socket])


@asynccontextmanager
async def serving(stage: Stage, secret: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway; `secret` is its API key."""
    await stage.start()
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    async with Server(stage.context) as server:
        url = f"http://127.0.0.1:{server.port}"
        # Without TLS, whose preparation takes longer than most tests.
        transport = httpx.AsyncHTTPTransport(verify=False)
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=20, transport=transport
        ) as client:
            yield client


def code_of(response: httpx.Response) -> str:
    """The code of an error; that it is in OpenAI's form, with the status of its code."""
    error = msgspec.json.decode(response.content, type=ErrorReply).error
    assert response.headers["content-type"] == "application/json"
    assert response.status_code == ERRORS[error.code].status, response.text
    assert error.type == ERRORS[error.code].type
    assert error.message
    assert response.headers["x-request-id"].startswith("req_")
    return error.code


def decoded(response: httpx.Response, kind: type[Any]) -> Any:
    """A good answer as a struct."""
    assert response.is_success, response.text
    return msgspec.json.decode(response.content, type=kind)
