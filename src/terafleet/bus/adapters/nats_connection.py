"""One connection to one NATS server: begins with a login, ends once, never comes back.

The library can reconnect by itself; that is not used: it would keep an expired credential's
refusal as the end of everything, send what was published in between, and tell nobody of some ends.
"""

import asyncio
import base64
import contextlib
import re
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as NatsSubscription
from nats.aio.transport import TcpTransport
from nats.protocol.command import pub_cmd

from terafleet.bus.credentials import UserCredentials
from terafleet.bus.ports import BusRefused, BusUnavailable, Message, Refusal, RefusedAction

CONNECT_TIMEOUT_S = 5
CLOSE_TIMEOUT_S = 2
# The library waits in vain for the end of a connection whose TLS failed.
GIVE_UP_TIMEOUT_S = 0.2
# A server that falls silent is noticed after two to three of these. The server pings only who was
# silent for longer (see nats_server), so that an idle connection costs one exchange in seven
# seconds: 0.2 kbit/s with the headers of TCP and IP.
PING_INTERVAL_S = 7
PINGS_UNANSWERED_MAX = 2
# More than this waiting to be sent means that the connection does not carry it.
WAITING_BYTES_MAX = 64 * 1024 * 1024
# The library does not tell of every end of a connection, so it is also asked.
LOOK_AFTER_S = 1
# Far longer than any connection takes to be found dead; see `round_trip`.
_PONG_TIMEOUT_S = 3600

_REFUSAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
_ACTIONS = {"publish": RefusedAction.PUBLISH, "subscription": RefusedAction.SUBSCRIBE}
# What a server writes about credentials that it does not accept (nats-server, server/errors.go).
_LOGIN_REFUSED = re.compile(
    r"authorization violation|authentication (?:expired|revoked)", re.IGNORECASE
)
_NOBODY_LISTENS = re.compile(rb"NATS/1\.0 503\b")

Take = Callable[[Message, bool], None]
"""Takes a message; the flag says that it is only the server's word that nobody listens."""

T = TypeVar("T")


class _Client(Client):
    """The library's client with its pings in line, and with a shorter way for messages.

    It writes a ping to the socket past the commands that still wait, so the answer would prove
    nothing about them. And on its own way a message passes through two tasks and their queues,
    which takes longer than all the rest of its journey.
    """

    def __init__(self) -> None:
        super().__init__()
        self.takers: dict[int, Take] = {}

    def send(self, subject: str, body: bytes, reply: str) -> None:
        """Write a message in its place behind what was written before. Raises BusUnavailable."""
        if self._writer.transport.is_closing():
            # The library learns of the end in one of the next turns.
            raise BusUnavailable("not connected")
        command = pub_cmd(subject, reply, body)
        if self._pending:
            _run_to_end(self._send_command(command))
        else:
            # The event loop gathers what is written in one of its turns.
            self._writer.write(command)

    @property
    def waiting_bytes(self) -> int:
        """How much has been written and has not left."""
        return self.pending_data_size + self._writer.transport.get_write_buffer_size()

    @property
    def _writer(self) -> asyncio.StreamWriter:
        """What the library writes to; it drops it when the connection ends."""
        assert isinstance(self._transport, TcpTransport)
        assert self._transport._io_writer is not None
        return self._transport._io_writer

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        take = self.takers.get(sid)
        if take is not None:
            message = Message(subject.decode(), data, reply.decode())
            is_nobody = not data and _NOBODY_LISTENS.match(headers or b"") is not None
            # The library would catch what a receiver raises; in a turn of its own it reaches the
            # event loop's exception handler, as it must.
            asyncio.get_running_loop().call_soon(take, message, is_nobody)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        waiting = future or asyncio.get_running_loop().create_future()
        self._pongs.append(waiting)
        await self._send_command(b"PING\r\n")
        await self._flush_pending()


class Connection:
    """One connection to one server."""

    def __init__(
        self, name: str, tls: ssl.SSLContext | None, refused: Callable[[Refusal], None]
    ) -> None:
        """`refused` hears in the event loop what the server does not allow."""
        self._name = name
        self._tls = tls
        self._refused = refused
        self._client = _Client()
        self._ended = asyncio.Event()
        self._round_trips: set[asyncio.Task[None]] = set()
        self._last_error: Exception | None = None

    async def open(self, url: str, credentials: UserCredentials) -> None:
        """Log in. Raises BusUnavailable or BusRefused; afterwards the connection is of no use."""

        def sign(nonce: str) -> bytes:
            return base64.b64encode(credentials.sign(nonce.encode()))

        is_open = False
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._client.connect(
                    [url],
                    name=self._name,
                    user_jwt_cb=credentials.jwt.encode,
                    signature_cb=sign,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_end,
                    closed_cb=self._on_end,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    ping_interval=PING_INTERVAL_S,
                    max_outstanding_pings=PINGS_UNANSWERED_MAX,
                    pending_size=0,
                    skip_subject_validation=True,
                    tls=self._tls,
                    # Else someone on the way could answer "no TLS here" and the client would agree.
                    tls_handshake_first=url.startswith("tls://"),
                )
            is_open = self.is_alive
        except (nats.errors.Error, OSError, ValueError) as error:  # ValueError: an endless line.
            cause = self._last_error or error
            if _LOGIN_REFUSED.search(str(error)):
                raise BusRefused(f"{url}: {error}") from error
            raise BusUnavailable(f"{url}: {_in_words(cause)}") from error
        finally:
            if not is_open:
                await self.close(GIVE_UP_TIMEOUT_S)
        if not is_open:
            raise BusUnavailable(f"{url}: the connection ended at once")

    @property
    def is_alive(self) -> bool:
        """Whether messages can leave at this moment."""
        return self._client.is_connected and not self._ended.is_set()

    @property
    def failure(self) -> str:
        """What went wrong last, in words for people."""
        error = self._client.last_error or self._last_error
        return "no answer in time" if error is None else _in_words(error)

    async def end(self) -> None:
        """Wait until this connection has ended, by whatever cause."""
        while self.is_alive:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AFTER_S):
                    await self._ended.wait()
        self._mark_ended()

    def publish(self, subject: str, body: bytes, reply: str) -> None:
        """Put a message in line. Raises BusUnavailable, or ValueError if it is too large."""
        self.check(body)
        if self._client.waiting_bytes > WAITING_BYTES_MAX:
            raise BusUnavailable("too much waits to be sent already")
        self._client.send(subject, body, reply)

    def check(self, body: bytes) -> None:
        """Raise BusUnavailable if this has ended, or ValueError if a body is too large for it."""
        if not self.is_alive:
            raise BusUnavailable("not connected")
        if len(body) > self._client.max_payload:
            raise ValueError(f"{len(body)} bytes are too many for one message")

    async def subscribe(self, subject: str, group: str, take: Take) -> NatsSubscription:
        """Listen; the server knows after the next round trip."""
        subscription = await _when_alive(self._client.subscribe(subject, queue=group))
        # Nothing can have come yet: to subscribe only puts a command in line.
        self._client.takers[subscription._id] = take
        return subscription

    async def unsubscribe(self, subscription: NatsSubscription) -> None:
        """Listen no more; on a connection that ended there is nothing to do."""
        self._client.takers.pop(subscription._id, None)
        with contextlib.suppress(BusUnavailable):
            await _when_alive(subscription.unsubscribe())

    async def round_trip(self, timeout_ms: int) -> bool:
        """Whether the server has answered in time, after all that was sent before.

        The wait for the pong goes on behind a time-out: were its future cancelled, the pong would
        end the library's reader with an exception.
        """
        task = asyncio.ensure_future(self._client.flush(timeout=_PONG_TIMEOUT_S))
        self._round_trips.add(task)
        task.add_done_callback(self._round_trip_done)
        await asyncio.wait({task}, timeout=timeout_ms / 1000)
        return task.done() and self.is_alive

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what waits as far as that is quickly done, and leave."""
        with contextlib.suppress(nats.errors.Error, OSError):
            async with asyncio.timeout(timeout_s):
                await self._client.close()
        self._mark_ended()

    def _round_trip_done(self, task: asyncio.Task[None]) -> None:
        self._round_trips.discard(task)
        if task.cancelled() or task.exception() is not None:
            self._mark_ended()

    def _mark_ended(self) -> None:
        self._ended.set()
        for task in self._round_trips:
            task.cancel()  # What it waits for can't come any more.

    async def _on_end(self) -> None:
        self._mark_ended()

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        refusal = _REFUSAL.search(str(error))
        if refusal is not None:
            self._refused(Refusal(_ACTIONS[refusal[1]], refusal[2]))
        elif isinstance(error, OSError | nats.errors.UnexpectedEOF):
            self._mark_ended()


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__


async def _when_alive(step: Awaitable[T]) -> T:
    try:
        return await step
    except (nats.errors.Error, OSError) as error:
        raise BusUnavailable("the connection ended") from error


def _run_to_end(step: Coroutine[None, None, None]) -> None:
    try:
        step.send(None)
    except StopIteration:
        return
    step.close()
    raise AssertionError("a command waited although its buffer has no limit")
