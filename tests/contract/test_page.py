"""The owner's page: what it says, to whom, and that nothing that is sent to it does any harm."""

import asyncio
import base64
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from html.parser import HTMLParser
from http import HTTPStatus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from terafleet.agent import page as page_module
from terafleet.agent.history import AttemptRow, HistoryUnreadable, Outcome
from terafleet.agent.page import CONNECTIONS_MAX, HOST, OwnersPage, PageSources
from terafleet.agent.page_request import (
    HEAD_BYTES_MAX,
    PageRequest,
    RequestRefused,
    parse_head,
)
from terafleet.agent.page_text import POLICY, escaped, page
from tests.contract.agent_stage import until
from tests.contract.owner_stage import AT_MS, LOW, UNPLUGGED, a_status, refusing

NASTY = "<script>alert('x')</script>&\"\x1b[2J\u202e\n"
ROW = AttemptRow(AT_MS, Outcome.ANSWERED, "", "batch", "/v1/embeddings", "m" * 64, 1_500, 900, 3)


def head(*lines: str) -> bytes:
    """A request's head."""
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


GOOD = head("GET / HTTP/1.1", "Host: localhost:8611", "Accept: */*")


@pytest.mark.parametrize(
    ("text", "path", "is_head"),
    [
        (GOOD, "/", False),
        (head("HEAD /status.json HTTP/1.1", "Host: 127.0.0.1"), "/status.json", True),
        (head("GET /a?b=c HTTP/1.0", "host:\t[::1]:99 "), "/a?b=c", False),
        (head("GET / HTTP/1.1", "HOST: LOCALHOST", "Content-Length: 0"), "/", False),
    ],
)
def test_what_browsers_send_is_read(text: bytes, path: str, is_head: bool) -> None:
    assert parse_head(text) == PageRequest(path, is_head)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"", 400),
        (b"\r\n\r\n", 400),
        (GOOD[:-2], 400),
        (GOOD.replace(b"\r\n", b"\n"), 400),
        (b" " + GOOD, 400),
        (head("GET  / HTTP/1.1", "Host: localhost"), 400),
        (head("get / HTTP/1.1", "Host: localhost"), 400),
        (head("GET / HTTP/2.0", "Host: localhost"), 400),
        (head("GET http://localhost/ HTTP/1.1", "Host: localhost"), 400),
        (head("GET /\xff HTTP/1.1", "Host: localhost"), 400),
        (head("GET / HTTP/1.1", "Host: localhost", "Host: localhost"), 400),
        (head("GET / HTTP/1.1", "Host : localhost"), 400),
        (head("GET / HTTP/1.1", "Host: localhost", " folded"), 400),
        (head("GET / HTTP/1.1", "Host: localhost", "X: a\x00b"), 400),
        (head("GET / HTTP/1.1", "Host: localhost", "X: a\rb"), 400),
        (head("GET / HTTP/1.1", "Host: localhost", "Content-Length: 5"), 400),
        (head("GET / HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked"), 400),
        (head("GET / HTTP/1.1", "Host: localhost", *["X: y"] * 64), 400),
        (head("GET / HTTP/1.1"), 421),
        (head("GET / HTTP/1.1", "Host:"), 421),
        (head("GET / HTTP/1.1", "Host: evil.example:8611"), 421),
        (head("GET / HTTP/1.1", "Host: localhost.evil.example"), 421),
        (head("GET / HTTP/1.1", "Host: 127.0.0.1.nip.io"), 421),
        (head("GET / HTTP/1.1", "Host: evil@localhost"), 421),
        (head("GET / HTTP/1.1", "Host: 192.168.0.7"), 421),
        (head("POST / HTTP/1.1", "Host: localhost"), 405),
        (head("OPTIONS / HTTP/1.1", "Host: localhost"), 405),
        (head("GET /" + "a" * 300 + " HTTP/1.1", "Host: localhost"), 414),
        (head("GET / HTTP/1.1", "Host: localhost", "X: " + "y" * HEAD_BYTES_MAX), 431),
    ],
)
def test_what_is_odd_or_from_elsewhere_is_refused(text: bytes, status: int) -> None:
    assert parse_head(text) == RequestRefused(HTTPStatus(status))


@given(st.binary(max_size=300))
@example(GOOD)
def test_any_bytes_have_an_answer(text: bytes) -> None:
    assert isinstance(parse_head(text), PageRequest | RequestRefused)


PARTS = st.sampled_from(
    [b"GET", b"HEAD", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\n", b"Host: ", b"localhost", b":", b"\0"]
)


@given(st.lists(PARTS, max_size=20).map(b"".join))
def test_any_pieces_of_a_request_have_an_answer(text: bytes) -> None:
    found = parse_head(text + b"\r\n\r\n")
    if isinstance(found, PageRequest):
        assert b"Host: localhost" in text
        assert found.path.startswith("/")


class Elements(HTMLParser):
    """Which elements and attributes a page has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_the_car_does_and_took() -> None:
    shown = Elements(page(a_status(), [ROW], AT_MS))
    for fact in (
        "Asta computes: 1 attempt at hand",
        "2 h 0 min, 34 attempts",
        "120.0 Wh by the computer",
        "80.0 Wh of 5.00 kWh",
        "30.0 min of 82.0 min",
        "12.0 MB of 5.0 GB",
        "34.0 MB, no cap",
        "worth 0.0231: battery 0.0200, electronics 0.0030, flash 0.0001",
        "0.0900",
        "12.4000",
        "71 %",
        "strong",
        "batch embeddings",
        "minilm",
        "answered, 3 answers",
    ):
        assert fact in shown.text
    assert "progress" in shown.names


def test_the_page_says_why_not_since_when_and_until_when() -> None:
    shown = Elements(page(refusing(UNPLUGGED, LOW, policy_faults=("x: y",)), [], AT_MS))
    assert "Asta does not compute" in shown.text
    assert "the car is not plugged in since 11:01; until it is plugged in" in shown.text
    assert "48 % since 10:06; permits again at 55 % or more" in shown.text
    assert "The policy has a fault: x: y" in shown.text
    assert "There were none." in shown.text


def test_every_value_is_escaped() -> None:
    row = AttemptRow(AT_MS, Outcome.FAILED, NASTY, "batch", NASTY, NASTY)
    status = refusing(UNPLUGGED, name=NASTY, policy_faults=(NASTY,), isolation_level=NASTY)
    text = page(status, [row], AT_MS)
    shown = Elements(text)
    assert "script" not in shown.names
    assert not {name for name in shown.attributes if name.startswith("on") or name == "style"}
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>alert('x')</script>" in shown.text


@given(st.text())
def test_any_text_is_shown_as_text(text: str) -> None:
    found = Elements(f"<p>{escaped(text)}</p>")
    assert found.names == {"p"}
    assert found.text == "".join(one if one.isprintable() else "\ufffd" for one in text)


def test_the_policy_allows_the_pages_own_style_and_nothing_else() -> None:
    text = page(a_status(), [], AT_MS)
    found = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert found
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in POLICY
    assert "default-src 'none'" in POLICY


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Car:
    """What a page shows: its status, and attempts that may be unreadable."""

    def __init__(self) -> None:
        self.found: list[AttemptRow] | HistoryUnreadable = [ROW]
        self.reads = 0

    def read(self, limit: int) -> list[AttemptRow] | HistoryUnreadable:
        self.reads += 1
        return self.found[:limit] if isinstance(self.found, list) else self.found


@asynccontextmanager
async def served(car: Car, port: int) -> AsyncIterator[OwnersPage]:
    """A page that is served while the context lasts."""
    shown = OwnersPage(port, PageSources(a_status, lambda: AT_MS, car.read))
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    running = asyncio.create_task(shown.run())
    try:
        await until(lambda: shown.url or running.done())
        yield shown
    finally:
        running.cancel()
        await asyncio.wait({running})
        await until(lambda: len(asyncio.all_tasks()) == 1)
    assert not shown.url
    assert errors == []


async def answer(port: int, text: bytes, is_ended: bool = True) -> bytes:
    """All that comes back for some bytes."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(text)
        if is_ended:
            writer.write_eof()
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_it_is_served_with_headers_that_keep_others_out() -> None:
    port = free_port()
    async with served(Car(), port) as shown:
        assert shown.url == f"http://127.0.0.1:{port}/"
        top, _, body = (await answer(port, GOOD, is_ended=False)).partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 200 OK\r\n")
        for name in (
            f"Content-Security-Policy: {POLICY}",
            "X-Content-Type-Options: nosniff",
            "X-Frame-Options: DENY",
            "Cross-Origin-Resource-Policy: same-origin",
            "Cache-Control: no-store",
            "Connection: close",
            f"Content-Length: {len(body)}",
        ):
            assert name.encode() in top
        assert b"Asta computes" in body
        without = await answer(port, GOOD.replace(b"GET", b"HEAD"))
        assert without == top + b"\r\n\r\n"


async def test_programs_have_the_same_as_json() -> None:
    car, port = Car(), free_port()
    async with served(car, port):
        for path in ("/status.json", "/attempts.json", "/attempts.json"):
            found = await answer(port, head(f"GET {path} HTTP/1.1", "Host: localhost"))
            told = json.loads(found.partition(b"\r\n\r\n")[2])
            if path == "/status.json":
                assert (told["name"], told["at_ms"]) == ("Asta", AT_MS)
            else:
                assert told["attempts"][0]["outcome"] == "answered"
        assert car.reads == 1, "the record is not read anew for each"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (head("GET /else HTTP/1.1", "Host: localhost"), b"404"),
        (head("GET /../etc/passwd HTTP/1.1", "Host: localhost"), b"404"),
        (head("GET / HTTP/1.1", "Host: evil.example"), b"421"),
        (head("DELETE / HTTP/1.1", "Host: localhost"), b"405"),
        (b"\x16\x03\x01 tls\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000, b"431"),
    ],
)
async def test_what_is_refused_gets_its_status(text: bytes, status: bytes) -> None:
    port = free_port()
    async with served(Car(), port):
        found = await answer(port, text, is_ended=False)
        assert found.split(b" ", 2)[1] == status or (status == b"431" and not found)
        assert (b"Allow: GET, HEAD" in found) == (status == b"405")
        assert (await answer(port, GOOD)).startswith(b"HTTP/1.1 200")


async def test_a_record_that_cant_be_read_leaves_the_page() -> None:
    car, port = Car(), free_port()
    car.found = HistoryUnreadable("damaged")
    async with served(car, port):
        with capture_logs() as lines:
            assert b"There were none." in await answer(port, GOOD)
    assert [line["event"] for line in lines] == ["attempts_unreadable"]


async def test_whoever_is_slow_or_one_too_many_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "PATIENCE_S", 0.3)
    port = free_port()
    async with served(Car(), port):
        slow = [await asyncio.open_connection(HOST, port) for _ in range(CONNECTIONS_MAX)]
        assert await answer(port, GOOD) == b"", "one too many"
        for reader, writer in slow:
            writer.write(b"GET / HTT")
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert (await answer(port, GOOD)).startswith(b"HTTP/1.1 200")


async def test_a_stop_cuts_who_is_connected() -> None:
    port = free_port()
    async with served(Car(), port):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"GET /")
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


async def test_a_port_in_use_is_no_reason_to_stop() -> None:
    port = free_port()
    async with served(Car(), port):
        other = OwnersPage(port, PageSources(a_status, lambda: AT_MS, Car().read))
        with capture_logs() as lines:
            await other.run()
        assert [line["event"] for line in lines] == ["no_page"]
        assert other.url == ""


async def test_port_0_is_no_page() -> None:
    off = OwnersPage(0, PageSources(a_status, lambda: AT_MS, Car().read))
    await off.run()
    assert off.url == ""


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_bytes_end_within_the_patience(pieces: list[bytes]) -> None:
    async def send() -> None:
        port = free_port()
        async with served(Car(), port):
            found = await answer(port, b"".join(pieces))
            assert found == b"" or found.startswith(b"HTTP/1.1 ")
            assert len(found) < 100_000

    asyncio.run(send())
