"""The bus in memory: for tests and simulations, with the refusals and the losses of a real one."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from terafleet.bus.adapters.answers import Answers
from terafleet.bus.ports import (
    BusRefused,
    BusUnavailable,
    Message,
    Receive,
    Refusal,
    RefusedAction,
)
from terafleet.bus.subjects import (
    check_group,
    check_pattern,
    check_permissions,
    check_subject,
    covers,
)

PAYLOAD_BYTES_MAX = 8 * 1024 * 1024
REFUSALS_KEPT = 256
ANSWERABLE_KEPT = 65_536


class MemorySubscription:
    """A standing wish for messages."""

    def __init__(self, bus: "MemoryBus", subject: str, group: str, receive: Receive) -> None:
        self.bus = bus
        self.subject = subject
        self.group = group
        self.receive = receive
        self.is_ended = False

    async def end(self) -> None:
        """Stop receiving."""
        if not self.is_ended:
            self.is_ended = True
            self.bus.broker.remove(self)


class MemoryBroker:
    """What several buses share; knows who listens, and whose connection is cut."""

    def __init__(self, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._by_subject: dict[str, list[MemorySubscription]] = {}
        self._wild: list[MemorySubscription] = []
        self._turns: dict[str, int] = {}
        self._cut: set[MemoryBus] = set()
        self._buses = 0

    def cut(self, bus: "MemoryBus") -> None:
        """End the connection of `bus` and let it make no other; what is on its way is lost."""
        self._cut.add(bus)
        bus.connection_changed()

    def mend(self, bus: "MemoryBus") -> None:
        """Let `bus` connect again; one that was connected before is connected at once."""
        self._cut.discard(bus)
        bus.connection_changed()

    def is_cut(self, bus: "MemoryBus") -> bool:
        """Whether this bus can't reach the broker."""
        return bus in self._cut

    def next_bus_number(self) -> int:
        """A number for a bus of this broker, equal in equal runs."""
        self._buses += 1
        return self._buses

    def add(self, subscription: MemorySubscription) -> None:
        """Deliver to this subscription from here on."""
        self._list_of(subscription.subject).append(subscription)

    def remove(self, subscription: MemorySubscription) -> None:
        """Deliver to this subscription no more."""
        listed = self._list_of(subscription.subject)
        listed.remove(subscription)
        if not listed:
            self._by_subject.pop(subscription.subject, None)

    def route(self, message: Message) -> int:
        """Put the message on its way to all who listen; how many that are."""
        groups: dict[str, list[MemorySubscription]] = {}
        count = 0
        for subscription in self._listeners(message.subject):
            if subscription.group:
                groups.setdefault(subscription.group, []).append(subscription)
            else:
                subscription.bus.deliver(subscription, message)
                count += 1
        for group, members in groups.items():
            turn = self._turns.get(group, 0)
            self._turns[group] = turn + 1
            member = members[turn % len(members)]
            member.bus.deliver(member, message)
        return count + len(groups)

    def _list_of(self, pattern: str) -> list[MemorySubscription]:
        if "*" in pattern or ">" in pattern:
            return self._wild
        return self._by_subject.setdefault(pattern, [])

    def _listeners(self, subject: str) -> Iterable[MemorySubscription]:
        for subscription in self._by_subject.get(subject, ()):
            if subscription.bus.is_connected:
                yield subscription
        for subscription in self._wild:
            if subscription.bus.is_connected and covers(subscription.subject, subject):
                yield subscription


class MemoryBus:
    """One connection to a MemoryBroker; keeps the promises of `Bus`.

    Delivery goes through the event loop, so that no receiver runs inside a publisher. Without
    permissions all is allowed; with them it is as in NATS: what is not listed is refused, but
    for one answer to each request that came in.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        publish: Sequence[str] | None = None,
        subscribe: Sequence[str] | None = None,
        inbox_prefix: str = "_INBOX",
    ) -> None:
        """`publish` and `subscribe` are patterns of what is allowed; None allows all."""
        check_permissions(publish or (), subscribe or ())
        self.broker = broker
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self._publish_allowed = publish
        self._subscribe_allowed = subscribe
        self._wants_connection = False
        self._was_connected = False
        self._connections = 0
        self._state_listeners: list[Callable[[bool], None]] = []
        self._refusal_listeners: list[Callable[[Refusal], None]] = []
        self._subscriptions: list[MemorySubscription] = []
        self._answers = Answers(f"{inbox_prefix}.{broker.next_bus_number()}")
        self._answerable: dict[str, None] = {}
        self._inbox: MemorySubscription | None = None

    async def connect(self) -> None:
        """Connect, or raise BusUnavailable."""
        if self.broker.is_cut(self):
            raise BusUnavailable("the connection is cut")
        self._wants_connection = True
        self.connection_changed()

    @property
    def is_connected(self) -> bool:
        """Whether messages can leave at this moment."""
        return self._wants_connection and not self.broker.is_cut(self)

    def on_state(self, changed: Callable[[bool], None]) -> None:
        """Call `changed(is_connected)` at each change of the connection."""
        self._state_listeners.append(changed)

    def on_refusal(self, refused: Callable[[Refusal], None]) -> None:
        """Call `refused` for each thing that the broker refuses; `refusals` keeps the newest."""
        self._refusal_listeners.append(refused)

    def publish(self, subject: str, body: bytes, reply: str = "") -> None:
        """Send now. Raises BusUnavailable while cut, ValueError if too large."""
        self._send(subject, body, reply)

    async def subscribe(
        self, subject: str, receive: Receive, group: str = "", *, is_sole: bool = False
    ) -> MemorySubscription:
        """Receive messages of a subject. Raises BusRefused if not allowed."""
        del is_sole  # Here everything goes the short way.
        check_pattern(subject)
        check_group(group)
        if not _is_allowed(self._subscribe_allowed, subject):
            self._refuse(RefusedAction.SUBSCRIBE, subject)
            raise BusRefused(f"not allowed: {subject}")
        subscription = MemorySubscription(self, subject, group, receive)
        self._subscriptions.append(subscription)
        self.broker.add(subscription)
        return subscription

    async def request(self, subject: str, body: bytes, timeout_ms: int) -> bytes:
        """Send and wait for one answer. Raises NoAnswer, BusUnavailable or BusRefused."""
        if self._inbox is None:
            self._inbox = await self.subscribe(self._answers.pattern, self._take_answer)
        reply = self._answers.ask(subject)
        try:
            if self._send(subject, body, reply) == 0:
                self._answers.nobody_listens(reply)
            return await self._answers.wait(reply, timeout_ms)
        finally:
            self._answers.forget(reply)

    async def close(self) -> None:
        """Leave; what was sent is on its way already."""
        self._wants_connection = False
        self._was_connected = False
        self._answers.lose_all()
        for subscription in self._subscriptions:
            await subscription.end()

    def connection_changed(self) -> None:
        """The broker cut or mended this connection, or we connected: tell who wants to know."""
        is_connected = self.is_connected
        if is_connected == self._was_connected:
            return
        self._was_connected = is_connected
        if is_connected:
            self._connections += 1
        else:
            self._answers.lose_all()
            self._answerable.clear()
        loop = asyncio.get_running_loop()
        for changed in self._state_listeners:
            loop.call_soon(changed, is_connected)

    def deliver(self, subscription: MemorySubscription, message: Message) -> None:
        """Hand the message over in a later turn of the event loop."""
        if message.reply and self._publish_allowed is not None:
            self._answerable[message.reply] = None
            if len(self._answerable) > ANSWERABLE_KEPT:
                del self._answerable[next(iter(self._answerable))]
        asyncio.get_running_loop().call_soon(
            self._hand_over, self._connections, subscription, message
        )

    def _hand_over(
        self, connection: int, subscription: MemorySubscription, message: Message
    ) -> None:
        """Deliver, unless the connection that the message was on its way over has ended."""
        is_same = self.is_connected and connection == self._connections
        if is_same and not subscription.is_ended:
            subscription.receive(message)

    def _send(self, subject: str, body: bytes, reply: str) -> int:
        """How many listen there; a refused message counts as one, its refusal is told."""
        check_subject(subject)
        if reply:
            check_subject(reply)
        if not self.is_connected:
            raise BusUnavailable("not connected")
        if len(body) > self.broker.payload_bytes_max:
            raise ValueError(f"{len(body)} bytes are too many for one message")
        if not self._may_publish(subject):
            self._refuse(RefusedAction.PUBLISH, subject)
            return 1
        return self.broker.route(Message(subject, bytes(body), reply))

    def _may_publish(self, subject: str) -> bool:
        if _is_allowed(self._publish_allowed, subject):
            return True
        if subject in self._answerable:
            del self._answerable[subject]
            return True
        return False

    def _refuse(self, action: RefusedAction, subject: str) -> None:
        refusal = Refusal(action, subject)
        self.refusals.append(refusal)
        self._answers.refuse(subject)
        loop = asyncio.get_running_loop()
        for refused in self._refusal_listeners:
            loop.call_soon(refused, refusal)

    def _take_answer(self, message: Message) -> None:
        self._answers.settle(message.subject, message.body)


def _is_allowed(allowed: Sequence[str] | None, subject: str) -> bool:
    return allowed is None or any(covers(pattern, subject) for pattern in allowed)
