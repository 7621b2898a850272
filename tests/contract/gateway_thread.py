"""The real gateway over memory in a thread, for tests of clients that wait for their answers."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar

import uvicorn
from litestar import Litestar

from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.auth import CONTEXT_KEY
from terafleet.control.gateway.context import GatewayContext
from tests.contract import customer_stage, gateway_app

T = TypeVar("T")

WAIT_S = 20.0


class Opened:
    """A gateway that a client can ask: its stage, and where it is."""

    def __init__(self, thread: "GatewayThread", stage: Any) -> None:
        self.url = thread.url
        self.stage = stage
        self.shard = stage.shard
        self.run = thread.run


class GatewayThread:
    """One HTTP server on loopback; stages stand behind it one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._app: Litestar
        self._serving: AbstractAsyncContextManager[str]
        self.url = ""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop of the gateway, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    @contextmanager
    def operators(self) -> Iterator[Opened]:
        """A stage whose shard gives the answers that a test puts there."""
        stage = gateway_app.Stage()
        self.run(stage.start())
        yield self._opened(stage, stage.context)

    @contextmanager
    def customers(self) -> Iterator[Opened]:
        """A stage with customers, models, and a shard that keeps batches."""
        made = customer_stage.stage()
        stage = self.run(made.__aenter__())
        try:
            yield self._opened(stage, stage.context)
        finally:
            self.run(made.__aexit__(None, None, None))

    def start(self) -> None:
        """Listen."""
        self._serving = self._served()
        self.url = self.run(self._serving.__aenter__())

    def stop(self) -> None:
        """Stop, and end the thread."""
        self.run(self._serving.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def _opened(self, stage: Any, context: GatewayContext) -> Opened:
        self._app.state[CONTEXT_KEY] = context
        return Opened(self, stage)

    @asynccontextmanager
    async def _served(self) -> AsyncIterator[str]:
        self._app = create_app(gateway_app.Stage().context)
        # Named as TCP, since asyncio turns Nagle's waiting off for such sockets only.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(self._app, log_config=None, lifespan="off", ws="none")
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await server.shutdown(sockets=[listener])


@contextmanager
def gateway_thread() -> Iterator[GatewayThread]:
    """A gateway in a thread, as long as it is wanted."""
    thread = GatewayThread()
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()
