"""Serves the owner's page on the car itself: on the loopback address, to few, and read-only."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.history import AttemptRow, HistoryUnreadable
from terafleet.agent.page_request import (
    HEAD_BYTES_MAX,
    METHODS,
    PageRequest,
    RequestRefused,
    parse_head,
)
from terafleet.agent.page_text import POLICY, page
from terafleet.agent.status import AgentStatus

HOST = "127.0.0.1"
PATIENCE_S = 5.0
"""From a connection's begin to its end."""
CONNECTIONS_MAX = 8
ATTEMPTS_SHOWN = 30
ATTEMPTS_LISTED = 200
"""On the page, and in `/attempts.json`; at the most."""
ATTEMPTS_KEPT_S = 5.0
"""So long the attempts that were read are shown again: to read them anew takes the disk's time."""

_HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
)
_HTML = "text/html; charset=utf-8"
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"

log: FilteringBoundLogger = structlog.get_logger()

Attempts = Sequence[AttemptRow]


class PageSources(NamedTuple):
    """Where the page has its contents from.

    `read_attempts` reads up to so many, newest first, and may block; it is called in a thread.
    """

    look: Callable[[], AgentStatus]
    now_ms: Callable[[], int]
    read_attempts: Callable[[int], list[AttemptRow] | HistoryUnreadable]


class _Answer(NamedTuple):
    status: HTTPStatus
    kind: str = _TEXT
    body: bytes = b""


class OwnersPage:
    """The page. What goes wrong with it never ends the agent."""

    def __init__(self, port: int, sources: PageSources) -> None:
        """`port` 0 is none: no page is served."""
        self._port = port
        self._sources = sources
        self._open: set[asyncio.Task[None]] = set()
        self._attempts: Attempts = ()
        self._attempts_until_s = 0.0
        self._reading = asyncio.Lock()
        self.url = ""
        """Where it is, empty while it is not served."""

    async def run(self) -> None:
        """Serve until cancelled; without a port that is free there is no page, and it ends."""
        if not self._port:
            return
        try:
            listening = _listening(self._port)
        except OSError as error:
            log.warning("no_page", port=self._port, cause=error.strerror)
            return
        with listening:
            server = await asyncio.start_server(
                self._connected, sock=listening, limit=HEAD_BYTES_MAX
            )
            self.url = f"http://{HOST}:{self._port}/"
            log.info("page_served", url=self.url)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.url = ""
                server.close()
                for task in self._open:
                    task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection has a task of its own"
        if len(self._open) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._serve(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # Whoever is slow, or goes, gets nothing more. The end of the page ends this task too,
            # and nobody waits for it; a cancelled one would be told as an error by the streams.
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = parse_head(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError:
            asked = RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        answer = await self._answer(asked)
        is_head = isinstance(asked, PageRequest) and asked.is_head
        writer.write(_head(answer) + (b"" if is_head else answer.body))
        await writer.drain()

    async def _answer(self, asked: PageRequest | RequestRefused) -> _Answer:
        if isinstance(asked, RequestRefused):
            return _refusal(asked.status)
        match asked.path:
            case "/":
                attempts = await self._newest_attempts()
                text = page(self._status(), attempts[:ATTEMPTS_SHOWN], self._sources.now_ms())
                return _Answer(HTTPStatus.OK, _HTML, text.encode())
            case "/status.json":
                return _Answer(HTTPStatus.OK, _JSON, msgspec.json.encode(self._status()))
            case "/attempts.json":
                rows = await self._newest_attempts()
                return _Answer(HTTPStatus.OK, _JSON, msgspec.json.encode({"attempts": rows}))
            case _:
                return _refusal(HTTPStatus.NOT_FOUND)

    def _status(self) -> AgentStatus:
        return msgspec.structs.replace(self._sources.look(), at_ms=self._sources.now_ms())

    async def _newest_attempts(self) -> Attempts:
        """The attempts; where the record can't be read, those of before."""
        loop = asyncio.get_running_loop()
        async with self._reading:
            if loop.time() >= self._attempts_until_s:
                found = await asyncio.to_thread(self._sources.read_attempts, ATTEMPTS_LISTED)
                if isinstance(found, HistoryUnreadable):
                    log.warning("attempts_unreadable", cause=found.detail)
                else:
                    self._attempts = found
                self._attempts_until_s = loop.time() + ATTEMPTS_KEPT_S
        return self._attempts


def _listening(port: int) -> socket.socket:
    """A socket that listens on the loopback address. Raises OSError."""
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(CONNECTIONS_MAX)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _refusal(status: HTTPStatus) -> _Answer:
    return _Answer(status, _TEXT, f"{status.value} {status.phrase}\n".encode())


def _head(answer: _Answer) -> bytes:
    headers = [
        ("Content-Type", answer.kind),
        ("Content-Length", str(len(answer.body))),
        *_HEADERS,
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", ", ".join(METHODS)))
    lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
