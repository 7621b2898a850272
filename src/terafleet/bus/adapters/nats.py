"""The bus over NATS: a connection with a car's or the control plane's own credentials, kept up."""

import asyncio
import contextlib
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Sequence

from nats.aio.subscription import Subscription as ServerSubscription

from terafleet.bus.adapters.answers import Answers
from terafleet.bus.adapters.nats_connection import Connection
from terafleet.bus.credentials import UserCredentials
from terafleet.bus.ports import (
    BusRefused,
    BusUnavailable,
    Message,
    Receive,
    Refusal,
    RefusedAction,
)
from terafleet.bus.subjects import check_group, check_pattern, check_subject

LOGIN_TIMEOUT_MS = 5_000
CLOSE_TIMEOUT_MS = 5_000
# Longer than it takes to notice that a server fell silent, which ends the wait too.
SUBSCRIBE_TIMEOUT_MS = 30_000
RECONNECT_FIRST_MS = 100
RECONNECT_MAX_MS = 5_000
REFUSALS_KEPT = 256


class NatsSubscription:
    """A standing wish for messages; outlives the connections that carry it."""

    def __init__(self, bus: "NatsBus", subject: str, group: str, receive: Receive) -> None:
        self.subject = subject
        self.group = group
        self.is_refused = False
        self.carrier: Connection | None = None
        self._at_server: ServerSubscription | None = None
        self._bus = bus
        self._receive = receive
        self._is_ended = False

    async def end(self) -> None:
        """Stop receiving."""
        if not self._is_ended:
            self._is_ended = True
            self._bus.forget(self)
            if self.carrier is not None and self._at_server is not None:
                await self.carrier.unsubscribe(self._at_server)

    async def begin(self, connection: Connection) -> None:
        """Let this connection carry the wish. Raises BusUnavailable."""
        self.is_refused = False
        self.carrier = connection
        self._at_server = await connection.subscribe(self.subject, self.group, self.take)

    def take(self, message: Message, is_nobody: bool = False) -> None:
        """Hand a message over, unless it came too late or is only the server's word."""
        if not self._is_ended and not is_nobody:
            self._receive(message)


class NatsBus:
    """Keeps the promises of `Bus` over NATS.

    Each connection logs in with what `credentials` returns at that moment, so a renewed credential
    is used from the next connection on. A lost connection is tried again for ever.
    """

    def __init__(
        self,
        urls: Sequence[str],
        credentials: Callable[[], UserCredentials],
        name: str,
        inbox_prefix: str = "_INBOX",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`name` appears in the server's log. Answers to requests come in below `inbox_prefix`.

        The credentials must allow to listen there. A url begins with `nats://`, or with `tls://`
        and then uses `tls` or the certificates that the system trusts.
        """
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self.last_failure = ""  # Why the last connection or attempt ended, for people.
        self._urls = deque(urls)
        self._credentials = credentials
        self._name = name
        self._tls = tls
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._state_listeners: list[Callable[[bool], None]] = []
        self._refusal_listeners: list[Callable[[Refusal], None]] = []
        self._subscriptions: dict[NatsSubscription, None] = {}
        self._sole: dict[str, NatsSubscription] = {}
        self._answers = Answers(f"{inbox_prefix}.{secrets.token_hex(8)}")
        self._inbox: _Inbox | None = None

    async def connect(self) -> None:
        """Connect, or raise BusUnavailable or BusRefused; afterwards it reconnects by itself."""
        assert self._keeper is None, "connect is called until it succeeds, and not again"
        await self._establish()
        self._keeper = asyncio.create_task(self._keep_connected(), name=f"bus {self._name}")
        self._keeper.add_done_callback(_raise_what_ended)

    @property
    def is_connected(self) -> bool:
        """Whether messages can leave at this moment."""
        return self._connection is not None and self._connection.is_alive

    def on_state(self, changed: Callable[[bool], None]) -> None:
        """Call `changed(is_connected)` at each change of the connection."""
        self._state_listeners.append(changed)

    def on_refusal(self, refused: Callable[[Refusal], None]) -> None:
        """Call `refused` for each thing that the server refuses; `refusals` keeps the newest."""
        self._refusal_listeners.append(refused)

    def publish(self, subject: str, body: bytes, reply: str = "") -> None:
        """Send now without waiting.

        Raises BusUnavailable while not connected or while 64 MiB wait to be sent, and ValueError
        if `body` is larger than the server takes. Thousands of calls in one turn of the event loop
        become one write.
        """
        check_subject(subject)
        if reply:
            check_subject(reply)
        connection, sole = self._live(), self._sole.get(subject)
        if sole is None:
            connection.publish(subject, body, reply)
            return
        connection.check(body)
        # In a turn of its own, as all that comes in: no receiver runs inside a publisher.
        message = Message(subject, body, reply)
        asyncio.get_running_loop().call_soon(sole.take, message)

    async def subscribe(
        self, subject: str, receive: Receive, group: str = "", *, is_sole: bool = False
    ) -> NatsSubscription:
        """Receive messages of a subject; the server knows when this returns.

        Raises BusRefused if the credentials do not allow it.
        """
        check_pattern(subject)
        check_group(group)
        subscription = NatsSubscription(self, subject, group, receive)
        self._subscriptions[subscription] = None
        if is_sole:
            self._sole[subject] = subscription
        connection = self._connection
        if connection is not None and connection.is_alive:
            with contextlib.suppress(BusUnavailable):  # Then the next connection carries it.
                await subscription.begin(connection)
                await connection.round_trip(SUBSCRIBE_TIMEOUT_MS)
        if subscription.is_refused:
            await subscription.end()
            raise BusRefused(f"not allowed: {subject}")
        return subscription

    async def request(self, subject: str, body: bytes, timeout_ms: int) -> bytes:
        """Send and wait for one answer. Raises NoAnswer, BusUnavailable or BusRefused."""
        check_subject(subject)
        connection = self._live()
        if self._inbox is None:
            self._inbox = _Inbox(self, self._answers)
            self._subscriptions[self._inbox] = None
            await self._inbox.begin(connection)
        if self._inbox.is_refused:
            raise BusRefused(f"not allowed: {self._inbox.subject}")
        reply = self._answers.ask(subject)
        try:
            self.publish(subject, body, reply)
            return await self._answers.wait(reply, timeout_ms)
        finally:
            self._answers.forget(reply)

    async def close(self) -> None:
        """Send what is waiting and leave."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.is_alive:
                await connection.round_trip(CLOSE_TIMEOUT_MS)
            await connection.close()
        self._answers.lose_all()

    def forget(self, subscription: NatsSubscription) -> None:
        """Let no further connection carry this wish."""
        self._subscriptions.pop(subscription, None)
        if self._sole.get(subscription.subject) is subscription:
            del self._sole[subscription.subject]

    def _live(self) -> Connection:
        if self._connection is None:
            raise BusUnavailable("not connected")
        return self._connection

    async def _establish(self) -> None:
        """One attempt at each server, until one takes us. Raises BusUnavailable or BusRefused."""
        failure = BusUnavailable("no server is named")
        for _ in range(len(self._urls)):
            url = self._urls[0]
            self._urls.rotate(-1)
            try:
                self._connection = await self._log_in(url)
            except BusUnavailable as error:
                failure = error
            else:
                self._tell_state(True)
                return
        raise failure

    async def _log_in(self, url: str) -> Connection:
        """A connection on which all subscriptions stand again."""
        connection = Connection(self._name, self._tls, self._note_refusal)
        await connection.open(url, self._credentials())
        is_ready = False
        try:
            is_ready = await self._resume_on(connection)
        finally:
            if not is_ready:
                await connection.close()
        if not is_ready:
            raise BusUnavailable(f"{url}: lost after the login: {connection.failure}")
        return connection

    async def _resume_on(self, connection: Connection) -> bool:
        """Whether the server has taken all standing wishes, also those that come meanwhile."""
        while True:
            for subscription in [s for s in self._subscriptions if s.carrier is not connection]:
                await subscription.begin(connection)
            if not await connection.round_trip(LOGIN_TIMEOUT_MS):
                return False
            if all(s.carrier is connection for s in self._subscriptions):
                return True

    async def _keep_connected(self) -> None:
        while self._connection is not None:
            await self._connection.end()
            self.last_failure = self._connection.failure
            ended, self._connection = self._connection, None
            self._answers.lose_all()
            self._tell_state(False)
            await ended.close()
            await self._reconnect()

    async def _reconnect(self) -> None:
        failures = 0
        while self._connection is None:
            chance = secrets.randbelow(1 << 16) / (1 << 16)
            await asyncio.sleep(reconnect_delay_ms(failures, chance) / 1000)
            failures += 1
            try:
                await self._establish()
            except BusUnavailable as error:
                self.last_failure = str(error)
            except BusRefused as error:
                # The credential may be renewed meanwhile, so this is told and tried again too.
                self.last_failure = str(error)
                self._note_refusal(Refusal(RefusedAction.CONNECT, ""))

    def _note_refusal(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)
        if refusal.action is RefusedAction.SUBSCRIBE:
            for subscription in self._subscriptions:
                # The library hands the server's words on in lower case.
                if subscription.subject.lower() == refusal.subject:
                    subscription.is_refused = True
        self._answers.refuse(refusal.subject)
        loop = asyncio.get_running_loop()
        for refused in self._refusal_listeners:
            loop.call_soon(refused, refusal)

    def _tell_state(self, is_connected: bool) -> None:
        loop = asyncio.get_running_loop()
        for changed in self._state_listeners:
            loop.call_soon(changed, is_connected)


class _Inbox(NatsSubscription):
    """The subscription that all answers come in on."""

    def __init__(self, bus: NatsBus, answers: Answers) -> None:
        super().__init__(bus, answers.pattern, "", lambda _: None)
        self._answers = answers

    def take(self, message: Message, is_nobody: bool = False) -> None:
        if is_nobody:
            self._answers.nobody_listens(message.subject)
        else:
            self._answers.settle(message.subject, message.body)


def reconnect_delay_ms(failures: int, chance: float) -> float:
    """How long to wait before the next attempt, after so many that failed.

    Doubles up to five seconds; `chance` in [0, 1) takes off up to half of it, so that vehicles
    which lost their server together don't come back together.
    """
    delay_ms: int = min(RECONNECT_MAX_MS, RECONNECT_FIRST_MS << min(failures, 16))
    return delay_ms * (1 - chance / 2)


def _raise_what_ended(keeper: asyncio.Task[None]) -> None:
    """A bug in the keeper must reach the event loop's exception handler at once."""
    if not keeper.cancelled():
        keeper.result()
