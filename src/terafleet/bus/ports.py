"""The interface to the message bus."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Protocol

import msgspec


class Message(msgspec.Struct, frozen=True):
    """Bytes that came in on a subject; `reply` is where an answer goes, or empty.

    The sender chooses `reply`, and the bus does not check it: who may publish anywhere must not
    answer a less trusted sender on a subject that is not that sender's own.
    """

    subject: str
    body: bytes
    reply: str = ""


Receive = Callable[[Message], None]
"""Called in the event loop for each message; must not block and must not raise.

What it raises all the same reaches the exception handler of the event loop.
"""


class BusUnavailable(Exception):
    """The bus can't be reached at present; what was to be sent was not."""


class BusRefused(Exception):
    """The bus does not accept these credentials, or not for this subject."""


class NoAnswer(Exception):
    """Nobody answered a request in time, or nobody listens there."""


class RefusedAction(StrEnum):
    """What the bus did not let us do."""

    CONNECT = "connect"
    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


class Refusal(msgspec.Struct, frozen=True):
    """The bus refused something; `subject` may come back in lower case, empty for CONNECT."""

    action: RefusedAction
    subject: str


class Subscription(Protocol):
    """A standing wish for messages."""

    async def end(self) -> None:
        """Stop receiving; nothing is delivered after the call, and a second call does nothing."""
        ...


class Bus(Protocol):
    """A connection to the bus; delivers at most once, in order for one sender and subject.

    A malformed subject, pattern or group raises ValueError everywhere.
    """

    async def connect(self) -> None:
        """Connect, or raise BusUnavailable / BusRefused; afterwards it reconnects by itself."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether messages can leave at this moment."""
        ...

    def on_state(self, changed: Callable[[bool], None]) -> None:
        """Call `changed(is_connected)` at each change of the connection, in the event loop.

        The first connection is such a change, the end by `close` is not.
        """
        ...

    def publish(self, subject: str, body: bytes, reply: str = "") -> None:
        """Send now without waiting.

        Raises BusUnavailable while not connected, ValueError if too large. What the bus refuses is
        not raised, since it answers later; the adapters keep it in `refusals`.
        """
        ...

    async def subscribe(
        self, subject: str, receive: Receive, group: str = "", *, is_sole: bool = False
    ) -> Subscription:
        """Receive messages of a subject (`*` one part, `>` the rest); one a group gets each.

        `is_sole` says that nobody else listens there: what this connection itself publishes on
        that subject is handed over without a detour over the network.

        When it returns, the bus knows; while not connected the wish is kept for the next
        connection. It survives reconnections. Raises BusRefused if the bus does not allow it.
        """
        ...

    async def request(self, subject: str, body: bytes, timeout_ms: int) -> bytes:
        """Send and wait for one answer.

        Raises NoAnswer (at once where nobody listens), BusUnavailable (also when the connection
        ends meanwhile), BusRefused if not allowed, ValueError if too large.
        """
        ...

    async def close(self) -> None:
        """Send what is waiting and leave; the end of this object."""
        ...


Connect = Callable[[], Awaitable[Bus]]
