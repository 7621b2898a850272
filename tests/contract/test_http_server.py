"""What connections to the HTTP server may cost, and what clients get that are slow or strange."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from litestar.types import Receive, Send

from terafleet.control.http_server import Bounds, HttpServer
from terafleet.protocol.errors import ERRORS, ErrorReply
from tests.contract.http_stage import served

PATIENCE_S = 15.0
QUICK = Bounds(wait_s=0.4, body_patience_s=0.4, reader_patience_s=1.0, stop_patience_s=2)
GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: test\r\n"

Answer = Callable[[Any, Receive, Send], Awaitable[None]]


class Program:
    """An application that answers with what it was sent, unless a test has a better answer."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, list[tuple[bytes, bytes]]]] = []
        self.left = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Start, stop, or answer."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert scope["type"] == "http"
        self.asked.append((scope["method"], list(scope["headers"])))
        answer = self.answers.pop(0) if self.answers else self.echo
        await answer(scope, receive, send)

    async def echo(self, _: Any, receive: Receive, send: Send) -> None:
        """Say the body again."""
        body, more = b"", True
        while more:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body, more = body + message["body"], message["more_body"]
        await say(send, b"said " + body)

    async def wait(self, _: Any, receive: Receive, __: Send) -> None:
        """Say nothing until the client leaves."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left += 1

    async def chatter(self, scope: Any, receive: Receive, send: Send) -> None:
        """Say more than anybody takes."""
        leaving = asyncio.create_task(self.wait(scope, receive, send))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not leaving.done():
                await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
        finally:
            leaving.cancel()


async def say(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Served:
    """A server, the program that it serves, and connections to it."""

    def __init__(self, program: Program, server: HttpServer, port: int) -> None:
        self.program = program
        self.server = server
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, sent: bytes = b"") -> "Client":
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(writer)
        writer.write(sent)
        return Client(reader, writer)

    async def asks(self, sent: bytes) -> bytes:
        """All that is answered until the connection ends."""
        return await (await self.connect(sent)).all()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def all(self) -> bytes:
        """What comes until the end, be it a rude one."""
        told = b""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while part := await self.reader.read(65_536):
                    told += part
            except ConnectionError:
                pass
        return told

    async def one(self) -> bytes:
        """The body of one answer."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            return await self.reader.readexactly(length)


@asynccontextmanager
async def serving(bounds: Bounds = QUICK) -> AsyncIterator[Served]:
    program = Program()
    async with served(program, bounds) as (server, url):
        opened = Served(program, server, int(url.rpartition(":")[2]))
        try:
            yield opened
        finally:
            opened.close()


async def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


def error_in(told: bytes) -> str:
    """The code of an error that is the only answer on its connection."""
    head, _, body = told.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-type: application/json" in head
    error = msgspec.json.decode(body, type=ErrorReply).error
    assert head.startswith(b"HTTP/1.1 %d " % ERRORS[error.code].status)
    return error.code


# Time.


async def test_a_request_that_does_not_come_ends_its_connection() -> None:
    async with serving() as stage:
        idle = [await stage.connect(sent) for sent in (b"", b"GET", GET[:-2], GET + b"GET")]
        assert [await client.all() for client in idle[:3]] == [b""] * 3
        assert (await idle[3].all()).count(b"HTTP/1.1") == 1
        assert stage.server.server_state.waiting == {}
        assert await stage.asks(CLOSING), "others are served"


async def test_a_drop_now_and_then_does_not_prolong_a_head() -> None:
    async with serving() as stage:
        client = await stage.connect(b"GET / HTTP/1.1\r\nname: ")

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.1)
                client.writer.write(b"a")

        dripping = asyncio.create_task(drip())
        assert await client.all() == b""
        dripping.cancel()


async def test_who_was_answered_may_ask_again() -> None:
    async with serving(msgspec.structs.replace(QUICK, wait_s=PATIENCE_S)) as stage:
        client = await stage.connect()
        for _ in range(5):
            client.writer.write(GET)
            assert await client.one() == b"said "


@pytest.mark.parametrize("kind", [b"content-length: 1000\r\n\r\nab", b"transfer-encoding: chunked"])
async def test_a_body_that_comes_too_slowly_is_refused(kind: bytes) -> None:
    async with serving() as stage:
        client = await stage.connect(POST + kind + b"\r\n\r\n")
        assert error_in(await client.all()) == "invalid_request"
        await until(lambda: stage.program.left == 1)


async def test_a_body_that_comes_steadily_is_taken() -> None:
    async with serving(msgspec.structs.replace(QUICK, body_bytes_per_s=100)) as stage:
        client = await stage.connect(POST + b"content-length: 2000\r\nconnection: close\r\n\r\n")
        for _ in range(20):
            client.writer.write(b"x" * 100)
            await asyncio.sleep(0.1)
        assert (await client.all()).endswith(b"x" * 2_000)


async def test_nobody_is_late_while_the_server_does_not_read() -> None:
    async with serving() as stage:

        async def busy(scope: Any, receive: Receive, send: Send) -> None:
            await asyncio.sleep(2.5)
            await stage.program.echo(scope, receive, send)

        stage.program.answers.append(busy)
        body = bytes(300_000)
        head = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        assert (await stage.asks(POST + head + body)).endswith(body)


async def test_who_takes_nothing_of_an_answer_is_left() -> None:
    async with serving() as stage:
        stage.program.answers.append(stage.program.chatter)
        client = await stage.connect(GET)
        await asyncio.wait_for(client.reader.readexactly(10), PATIENCE_S)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: not stage.server.server_state.connections)


async def test_a_stop_waits_for_nobody_who_does_not_get_on() -> None:
    async with serving(Bounds(stop_patience_s=1)) as stage:
        stage.program.answers.append(stage.program.chatter)
        reader = await stage.connect(GET)
        reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await stage.connect(POST + b"content-length: 1000\r\n\r\nab")
        await stage.connect(GET[:10])
        await until(lambda: len(stage.program.asked) == 2)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 10


# Numbers.


async def test_who_waits_longest_makes_room() -> None:
    async with serving(Bounds(connections_max=3, stop_patience_s=1)) as stage:
        first, second = await stage.connect(), await stage.connect(GET[:10])
        third = await stage.connect(GET)
        assert await third.one() == b"said "
        fourth = await stage.connect(GET)
        assert await fourth.one() == b"said "
        assert await first.all() == b""
        fifth = await stage.connect(GET)
        assert await fifth.one() == b"said "
        assert await second.all() == b""
        fourth.writer.write(GET)
        assert await fourth.one() == b"said ", "it has not waited longest"


async def test_where_all_are_busy_who_comes_last_is_told_so() -> None:
    async with serving(Bounds(connections_max=2, stop_patience_s=1)) as stage:
        stage.program.answers += [stage.program.wait] * 2
        busy = [await stage.connect(GET) for _ in range(2)]
        await until(lambda: len(stage.program.asked) == 2)
        told = await stage.asks(CLOSING)
        assert error_in(told) == "overloaded"
        assert b"\r\nretry-after: 2\r\n" in told
        busy[0].writer.close()
        await until(lambda: stage.program.left == 1)
        assert b"said" in await stage.asks(CLOSING)


async def test_many_behind_each_other_are_served_in_their_order_but_not_for_ever() -> None:
    bounds = Bounds(pipelined_max=3, stop_patience_s=1)
    requests = [POST + b"content-length: 1\r\n\r\n%d" % number for number in range(4)]
    async with serving(bounds) as stage:
        client = await stage.connect(b"".join(requests))
        assert [await client.one() for _ in range(4)] == [b"said %d" % at for at in range(4)]
        stage.program.answers.append(stage.program.wait)
        assert await stage.asks(b"".join(requests) + GET) == b""
        await until(lambda: stage.program.left == 1)


async def test_who_leaves_with_requests_behind_each_other_is_seen_to_leave() -> None:
    async with serving(Bounds(stop_patience_s=1)) as stage:
        stage.program.answers.append(stage.program.wait)
        client = await stage.connect(GET)
        await until(lambda: len(stage.program.asked) == 1)
        client.writer.write(GET)
        await asyncio.sleep(0.1)
        client.writer.transport.abort()
        await until(lambda: stage.program.left == 1)
        assert len(stage.program.asked) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nlong: " + b"x" * 1_000_000,
        b"GET /" + b"x" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
    ],
    ids=["value", "address", "lines"],
)
async def test_a_head_has_its_bound(head: bytes) -> None:
    async with serving() as stage:
        told = await stage.asks(head)
        # A client that goes on sending may see its connection end before it reads why.
        assert not told or error_in(told) == "invalid_request"
        assert stage.program.asked == []


@pytest.mark.parametrize(
    ("soft", "hard", "connections"), [(1_024, 1_024, 384), (1_024, 8_192, 3_968), (100, 100, 1)]
)
def test_connections_leave_files_for_record_and_bus(soft: int, hard: int, connections: int) -> None:
    program = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from terafleet.control.http_server import bounds_here\n"
        "print(bounds_here().connections_max, *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert told.stdout.split() == [b"%d" % number for number in (connections, hard, hard)]


# What is strange.


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT test:1 HTTP/1.1\r\nhost: test\r\n\r\n",
        POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\na",
        POST + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\na",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_request_is_refused_in_the_form_of_all_errors(sent: bytes) -> None:
    async with serving() as stage:
        assert error_in(await stage.asks(sent)) == "invalid_request"


UPGRADE = POST + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: A\r\n"


@pytest.mark.parametrize(
    ("parts", "answers"),
    [
        ([b"content-length: 5\r\n\r\nhello"], [b"said hello"]),
        ([b"content-length: 5\r\n\r\n", b"hel", b"lo"], [b"said hello"]),
        ([b"content-length: 35\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 0\r\n"], None),
        (
            [b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + GET],
            [b"said hello", b"said "],
        ),
        ([b"\r\n", UPGRADE + b"content-length: 1\r\n\r\nx"], [b"said ", b"said x"]),
    ],
)
async def test_who_offers_another_protocol_is_served_in_this_one(
    parts: list[bytes], answers: list[bytes] | None
) -> None:
    async with serving(Bounds(stop_patience_s=1)) as stage:
        client = await stage.connect(UPGRADE + parts[0])
        for part in parts[1:]:
            await asyncio.sleep(0.05)
            client.writer.write(part)
        if answers is None:
            assert (await client.one()).startswith(b"said POST")
            assert len(stage.program.asked) == 1, "a body is no request"
            return
        assert [await client.one() for _ in answers] == answers
        names = {name for _, headers in stage.program.asked for name, _ in headers}
        assert b"upgrade" not in names


async def test_headers_behind_a_body_are_passed_over() -> None:
    async with serving(Bounds(stop_patience_s=1)) as stage:
        trailer = b"5\r\nhello\r\n0\r\nauthorization: Bearer x\r\n\r\n"
        client = await stage.connect(POST + b"transfer-encoding: chunked\r\n\r\n" + trailer)
        assert await client.one() == b"said hello"
        ((_, headers),) = stage.program.asked
        assert [name for name, _ in headers] == [b"host", b"transfer-encoding"]
