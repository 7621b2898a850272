"""Requests that wait for their answer, each under a subject of its own."""

import asyncio

from terafleet.bus.ports import BusRefused, BusUnavailable, NoAnswer


class Answers:
    """The open requests of one bus; their answers come in below one inbox."""

    def __init__(self, inbox: str) -> None:
        """`inbox` is a subject that nobody else listens on."""
        self._inbox = inbox
        self._asked = 0
        self._waiting: dict[str, tuple[str, asyncio.Future[bytes]]] = {}

    @property
    def pattern(self) -> str:
        """Where to listen for the answers to all requests."""
        return f"{self._inbox}.*"

    def ask(self, subject: str) -> str:
        """Open a request to `subject`; returns the subject for its answer."""
        self._asked += 1
        reply = f"{self._inbox}.{self._asked}"
        future = asyncio.get_running_loop().create_future()
        self._waiting[reply] = (subject, future)
        return reply

    async def wait(self, reply: str, timeout_ms: int) -> bytes:
        """The answer. Raises NoAnswer, or BusUnavailable or BusRefused when told so meanwhile."""
        _, future = self._waiting[reply]
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {timeout_ms} ms") from error
        finally:
            self.forget(reply)

    def forget(self, reply: str) -> None:
        """Nobody waits for this answer any more."""
        self._waiting.pop(reply, None)

    def settle(self, reply: str, body: bytes) -> None:
        """An answer came; one that nobody waits for is dropped."""
        _, future = self._waiting.get(reply, ("", None))
        if future is not None and not future.done():
            future.set_result(body)

    def nobody_listens(self, reply: str) -> None:
        """The bus says that nobody listens where this request went."""
        self._fail(reply, NoAnswer("nobody listens there"))

    def refuse(self, subject: str) -> None:
        """The bus refused to carry requests to `subject` (any letter case) or their answers."""
        for reply, (asked, _) in list(self._waiting.items()):
            if subject.lower() in (asked.lower(), self.pattern.lower()):
                self._fail(reply, BusRefused(f"not allowed: {subject}"))

    def lose_all(self) -> None:
        """The connection ended: no open request will be answered."""
        for reply in list(self._waiting):
            self._fail(reply, BusUnavailable("the connection ended before an answer came"))

    def _fail(self, reply: str, error: Exception) -> None:
        _, future = self._waiting.get(reply, ("", None))
        if future is not None and not future.done():
            future.set_exception(error)
