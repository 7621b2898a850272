"""An application behind the real HTTP server, on a free port of loopback."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.types import ASGIApp

from terafleet.control.http_server import Bounds, HttpServer

USUAL = Bounds()


@asynccontextmanager
async def served(app: ASGIApp, bounds: Bounds = USUAL) -> AsyncIterator[tuple[HttpServer, str]]:
    """The server, and its address."""
    # Named as TCP, since asyncio turns Nagle's waiting off for such sockets only.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = HttpServer(app, bounds)
    serving = asyncio.create_task(server.serve([listener]))
    await server.ready.wait()
    try:
        yield server, url
    finally:
        server.should_exit = True
        await serving
