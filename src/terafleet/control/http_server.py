"""Serves the gateway over HTTP with bounds on what connections may cost, whoever opens them.

It knows no route. What uvicorn leaves open is closed here; its version is pinned, since some of
what is overridden is no public part of it.
"""

import asyncio
import contextlib
import math
import resource
import socket
from collections.abc import Iterator
from typing import Final, NoReturn

import httptools
import msgspec
import structlog
import uvicorn
from litestar.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from terafleet.control.gateway.errors import RETRY_AFTER_S
from terafleet.core.units import MS_PER_S
from terafleet.protocol.errors import ERRORS, error_reply

FILES_MAX: Final = 65_536
FILES_RESERVED: Final = 256
"""How many files the process may open at most, and what of it is not for connections: the record,
the bus, libraries. A connection has two, for a request may read or write an object."""

READ_AHEAD_BYTES_MAX: Final = 64 * 1024
"""What may come while requests wait behind another one."""

SWEEP_TICKS: Final = 10
FULL_TOLD_TICKS: Final = 600
"""uvicorn ticks every 100 ms."""

_log = structlog.get_logger(__name__)


class Bounds(msgspec.Struct, frozen=True):
    """What a connection may cost; times in seconds.

    Within `wait_s` of being free for a request a connection has sent the whole head of one, or it
    ends. A body may be late by `body_patience_s`, and by a second more for each
    `body_bytes_per_s` that came. A client that takes nothing of its answer is left after
    `reader_patience_s`. Behind a request that is being answered `pipelined_max` others may wait.
    """

    connections_max: int = 8_192
    wait_s: float = 75.0
    head_bytes_max: int = 64 * 1024
    body_patience_s: float = 75.0
    body_bytes_per_s: int = 1_024
    reader_patience_s: float = 60.0
    pipelined_max: int = 16
    stop_patience_s: int = 5


def bounds_here() -> Bounds:
    """The bounds that the files allow which this process may open; it takes all that it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = FILES_MAX if soft == resource.RLIM_INFINITY else soft
    connections = (files - FILES_RESERVED) // 2
    return Bounds(connections_max=max(1, min(Bounds().connections_max, connections)))


class Connections(ServerState):
    """All connections of a server, and which of them owe it a head or a body."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self.bounds = bounds
        self.waiting: dict[BoundedHttp, float] = {}
        """Since when each waits, the longest waiting first."""
        self.receiving: set[BoundedHttp] = set()
        """Those whose body has not come whole."""
        self._turned_away = 0

    def has_room(self) -> bool:
        """Whether the newest connection may stay; who waits longest makes room for it."""
        if len(self.connections) <= self.bounds.connections_max:
            return True
        self._turned_away += 1
        longest = next(iter(self.waiting), None)
        if longest is not None:
            del self.waiting[longest]
            longest.transport.abort()
        return longest is not None

    def sweep(self, now_s: float, passed_s: float) -> None:
        """End what has had its time; `passed_s` since the last sweep."""
        until_s = now_s - self.bounds.wait_s
        for connection in [one for one, since_s in self.waiting.items() if since_s <= until_s]:
            del self.waiting[connection]
            connection.transport.close()
        for connection in list(self.receiving):
            connection.let_pass(passed_s)

    def tell_full(self) -> None:
        """Say in the log that connections were too many, if they were."""
        if self._turned_away:
            _log.warning("connections_full", turned_away=self._turned_away)
            self._turned_away = 0


class _Flow(FlowControl):
    """Does not read on for ever while requests wait behind another one."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.ahead_bytes = 0

    def resume_reading(self) -> None:
        """Go on, unless too much has come ahead of its time."""
        if self.ahead_bytes <= READ_AHEAD_BYTES_MAX:
            super().resume_reading()


class _Refused(Exception):
    """What a connection sends is not taken; raised through the parser."""


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    server_state: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport)
        self._state = self.server_state
        self._bounds = self._state.bounds
        self._running: RequestResponseCycle | None = None
        self._is_in_head = True
        self._head_bytes = 0
        self._wants_upgrade = False
        self._why = ""
        self._patience_s = 0.0
        self._came_bytes = 0
        if self._state.has_room():
            self._wait()
        else:
            self._refuse("overloaded", "There are too many connections; come again in a moment.")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, also for a request that others wait behind."""
        super().connection_lost(exc)
        self._state.waiting.pop(self, None)
        self._state.receiving.discard(self)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()

    def shutdown(self) -> None:
        """The server stops: what has not come by now comes no more."""
        super().shutdown()
        if self in self._state.receiving:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request have come."""
        self._unset_keepalive_if_required()
        self._came_bytes += len(data)
        was_in_head = self._is_in_head
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response(self._why or "This can't be read as an HTTP request.")
            return
        if self.pipeline:
            # Read on, since who leaves is noticed by reading only.
            self.flow.ahead_bytes += len(data)
            self.flow.resume_reading()
        # A head may begin behind something else; the bytes before it are not counted.
        self._head_bytes += len(data) if was_in_head else 0
        if self._is_in_head and self._head_bytes > self._bounds.head_bytes_max:
            self.send_400_response("The head of the request is too large.")

    def send_400_response(self, msg: str) -> None:
        """Refuse what was sent, in the form of all errors."""
        self._refuse("invalid_request", msg)

    def let_pass(self, passed_s: float) -> None:
        """Time has passed while a body was coming; nobody is late while we do not read."""
        came_s = self._came_bytes / self._bounds.body_bytes_per_s
        self._came_bytes = 0
        if not self.flow.read_paused:
            self._patience_s = min(
                self._patience_s + came_s - passed_s, self._bounds.body_patience_s
            )
        if self._patience_s < 0:
            self.send_400_response("The body of the request did not come.")

    # What the parser finds.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those behind a body are passed over."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self.parser.should_upgrade():
            self._wants_upgrade = True
            return
        if len(self.pipeline) >= self._bounds.pipelined_max:
            self._stop("Too many requests wait on one connection.")
        super().on_headers_complete()
        self._is_in_head = False
        self._head_bytes = 0
        self._patience_s = self._bounds.body_patience_s
        self._state.waiting.pop(self, None)
        self._state.receiving.add(self)

    def on_message_complete(self) -> None:
        """The body is whole."""
        if not self._wants_upgrade:
            super().on_message_complete()
            self._state.receiving.discard(self)

    def on_response_complete(self) -> None:
        """All was answered."""
        self.flow.ahead_bytes = 0
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            self._wait()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # Steps.

    def _wait(self) -> None:
        """It is free for a request from now on, and behind all others that wait."""
        self._state.waiting.pop(self, None)
        self._state.waiting[self] = self.loop.time()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            (parsed,) = upgrade.args
            self._ignore_upgrade(data[parsed:])

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request as if it asked for no other protocol, as RFC 9110 (7.8) allows.

        The parser takes all that comes behind such a head for the other protocol: a body would
        be lost, or read as a request.
        """
        self._wants_upgrade = False
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._why = "This is no proxy."
            raise httptools.HttpParserError(self._why)
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")
        if rest:
            self._feed(rest)

    def _may_speak(self, running: RequestResponseCycle | None) -> bool:
        if self._is_in_head:
            return running is None or running.response_complete
        return running is self.cycle and running is not None and not running.response_started

    def _stop(self, why: str) -> NoReturn:
        self._why = why
        raise _Refused(why)

    def _refuse(self, code: str, message: str) -> None:
        """Say why, unless it could be taken for the answer to something else, and hang up."""
        running = self._running
        if not self._may_speak(running):
            self.transport.abort()
            return
        if running is not None:
            running.disconnected = True
        body = msgspec.json.encode(error_reply(code, message))
        head = [STATUS_LINE[ERRORS[code].status], b"content-type: application/json\r\n"]
        if code == "overloaded":
            head.append(b"retry-after: %d\r\n" % RETRY_AFTER_S)
        head.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body))
        self.transport.write(b"".join([*head, body]))
        self.transport.close()


class HttpServer(uvicorn.Server):
    """Serves an application, says when it does, and leaves signals to who runs it."""

    server_state: Connections

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        super().__init__(
            Config(
                app,
                http=BoundedHttp,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                # Nothing asks for a client's address, so what a proxy says of it need not be read.
                proxy_headers=False,
                timeout_keep_alive=math.ceil(bounds.wait_s),
                timeout_graceful_shutdown=bounds.stop_patience_s,
            )
        )
        self.server_state = Connections(bounds)
        self.ready = asyncio.Event()
        self._swept_s = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
        for listener in sockets or []:
            if user_timeout is not None:
                # Each connection has it from its listener: Linux ends one whose client takes
                # nothing for so long, however much is still to be sent (tcp(7)).
                patience_ms = int(self.server_state.bounds.reader_patience_s * MS_PER_S)
                listener.setsockopt(socket.IPPROTO_TCP, user_timeout, patience_ms)
        self._swept_s = asyncio.get_running_loop().time()
        await super().startup(sockets)
        self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        """What is to be done ten times a second."""
        if counter % SWEEP_TICKS == 0:
            now_s = asyncio.get_running_loop().time()
            passed_s, self._swept_s = now_s - self._swept_s, now_s
            self.server_state.sweep(now_s, passed_s)
        if counter % FULL_TOLD_TICKS == 0:
            self.server_state.tell_full()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield
