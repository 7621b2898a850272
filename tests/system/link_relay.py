"""Stands between a car and its bus, and can hold all that they say: a link that is a black hole."""

import asyncio
import contextlib

PIECE_BYTES = 65536


class LinkRelay:
    """A port of the loopback address that leads to another one; lives in one event loop.

    While it holds, connections stand and nothing passes; what waited comes late and in order.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._passes = asyncio.Event()
        self._passes.set()
        self._leading: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen at a free port."""
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def hold(self) -> None:
        """Let nothing pass in either direction."""
        self._passes.clear()

    def let_pass(self) -> None:
        """Let all pass, first what was held."""
        self._passes.set()

    async def stop(self) -> None:
        """Cut what is open."""
        self._server.close()
        for task in self._leading:
            task.cancel()
        await asyncio.gather(*self._leading, return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._lead(reader, writer))
        self._leading.add(task)
        task.add_done_callback(self._leading.discard)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                behind = await asyncio.open_connection("127.0.0.1", self._target_port)
            except OSError:
                # The bus is not there at this moment.
                return
            with contextlib.closing(behind[1]):
                await asyncio.gather(self._pass(reader, behind[1]), self._pass(behind[0], writer))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(target):
            while piece := await source.read(PIECE_BYTES):
                await self._passes.wait()
                target.write(piece)
                await target.drain()
