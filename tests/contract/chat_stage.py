"""For tests of chats: the gateway with a fake fleet in a thread, and a server of one answer."""

import asyncio
import re
import socket
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog

from tests.contract.fake_live_fleet import FakeFleet
from tests.contract.live_gateway import HASTY, Gateway, Server, live_server

T = TypeVar("T")

WAIT_S = 20.0
REQUEST_BYTES_MAX = 65_536


class Opened:
    """A gateway that a client can ask, and the fleet behind it."""

    def __init__(self, thread: "LiveThread", gateway: Gateway) -> None:
        self._thread = thread
        self.url = gateway.url
        self.fleet: FakeFleet = gateway.fleet

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop of the gateway, and wait for it."""
        return self._thread.run(work)


class LiveThread:
    """One HTTP server in a thread; stages stand behind it one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._serving = live_server()
        self._server: Server = self.run(self._serving.__aenter__())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    @contextmanager
    def open(self) -> Iterator[Opened]:
        """A fresh stage; when it ends nothing may be on its way."""
        opening = self._server.open(HASTY)
        gateway = self.run(opening.__aenter__())
        try:
            yield Opened(self, gateway)
        finally:
            self.run(opening.__aexit__(None, None, None))

    def stop(self) -> None:
        """Stop, and end the thread."""
        self.run(self._serving.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()


@contextmanager
def live_thread() -> Iterator[LiveThread]:
    """A gateway in a thread, as long as it is wanted; its log runs into nothing."""
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    thread = LiveThread()
    try:
        yield thread
    finally:
        thread.stop()
        structlog.configure(**before)


class Scripted:
    """Something on loopback that says the same to every request; counts who came."""

    def __init__(self, answer: bytes, keeps_open: bool) -> None:
        self._answer = answer
        self._keeps_open = keeps_open
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.has_hung_up = threading.Event()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT_S)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                self._answer_all(connection)

    def _answer_all(self, connection: socket.socket) -> None:
        """Answer each request; without `keeps_open` the first, and hang up."""
        try:
            while _request(connection):
                connection.sendall(self._answer)
                if not self._keeps_open:
                    return
        except ConnectionError:
            pass
        self.has_hung_up.set()


def _request(connection: socket.socket) -> bool:
    """Whether a whole request has come before the end."""
    received = b""
    while chunk := connection.recv(REQUEST_BYTES_MAX):
        received += chunk
        head, separator, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if separator and len(body) >= (int(length[1]) if length else 0):
            return True
    return False


@contextmanager
def scripted(answer: bytes, keeps_open: bool = False) -> Iterator[Scripted]:
    """A server of one answer, as long as it is wanted."""
    server = Scripted(answer, keeps_open)
    try:
        yield server
    finally:
        server.stop()


def streamed(
    parts: Sequence[bytes], is_whole: bool = True, kind: str = "text/event-stream"
) -> bytes:
    """A stream over HTTP; without `is_whole` its connection is lost in the middle of it."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part]
    return b"".join([head.encode(), *chunks, b"0\r\n\r\n" if is_whole else b"1f\r\nda"])
