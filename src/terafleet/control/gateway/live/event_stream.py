"""Sends server-sent events to one client over ASGI, and notices when it leaves or reads no more."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
import structlog
from litestar.types import Receive, Send

_log = structlog.get_logger()

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # So that a proxy sends on each event when it comes.
    (b"x-accel-buffering", b"no"),
]
_STILL_HERE: Final = b": still here\n\n"


class StreamTimes(msgspec.Struct, frozen=True):
    """Times of a stream, in seconds.

    A comment is sent whenever nothing was for `keep_alive_s`. Within `opening_s` of the request
    the stream begins in any case; a failure before that has an HTTP status of its own. A client
    that takes nothing for `reader_patience_s` is left.
    """

    keep_alive_s: float = 10.0
    opening_s: float = 15.0
    reader_patience_s: float = 30.0


TIMES: Final = StreamTimes()


async def until_left(receive: Receive) -> None:
    """Wait until the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_reading(
    work: Coroutine[Any, Any, None], leaving: Coroutine[Any, Any, None]
) -> None:
    """Do the work, and give it up at once when `leaving` ends. Raises what either raises.

    The work is done in the task that asks for it: a second one takes as long as a small request.
    """
    working = asyncio.current_task()
    assert working is not None
    attending = asyncio.create_task(leaving)
    is_over = False

    def give_up(_: asyncio.Task[None]) -> None:
        # It may be called when the work has been done meanwhile.
        if not is_over:
            working.cancel()

    attending.add_done_callback(give_up)
    try:
        await work
    except asyncio.CancelledError:
        # Else somebody else has cancelled the request.
        if not attending.done() or working.uncancel():
            raise
        attending.result()
    finally:
        is_over = True
        attending.cancel()
        await asyncio.wait({attending})


class EventStream:
    """The answer to one request; it begins with the first thing that is written."""

    def __init__(
        self,
        send: Send,
        now_s: Callable[[], float],
        times: StreamTimes = TIMES,
    ) -> None:
        """`now_s` never goes back."""
        self._send = send
        self._now_s = now_s
        self._times = times
        self._wrote_s = now_s()
        self._is_writing = False
        self.has_begun = False
        self._has_ended = False

    async def write(self, body: bytes) -> None:
        """Send whole events; waits while the client does not read."""
        await self._write(body, is_last=False)

    async def comment(self, words: str) -> None:
        """Send a line that no program takes for an event."""
        await self.write(f": {words}\n\n".encode())

    async def end(self, body: bytes) -> None:
        """Send the last events."""
        self._has_ended = True
        await self._write(body, is_last=True)

    async def attend(self, receive: Receive) -> None:
        """Keep the connection alive; ends when the client hangs up, or reads no more."""
        while True:
            try:
                async with asyncio.timeout(max(0.0, self._due_s() - self._now_s())):
                    message = await receive()
            except TimeoutError:
                if self._now_s() >= self._due_s() and not await self._keep_alive():
                    _log.warning("reader_too_slow", cause="nothing was read")
                    return
            else:
                if message["type"] == "http.disconnect":
                    return

    def _is_waiting_for_reader(self) -> bool:
        return self._is_writing or self._has_ended

    def _due_s(self) -> float:
        """When something is to be done if nothing has happened by then."""
        if self._is_waiting_for_reader():
            return self._wrote_s + self._times.reader_patience_s
        wait_s = self._times.keep_alive_s if self.has_begun else self._times.opening_s
        return self._wrote_s + wait_s

    async def _keep_alive(self) -> bool:
        """Say that somebody is here; whether the client reads it."""
        if self._is_waiting_for_reader():
            return False
        try:
            async with asyncio.timeout(self._times.reader_patience_s):
                await self.write(_STILL_HERE)
        except TimeoutError:
            return False
        return True

    async def _write(self, body: bytes, *, is_last: bool) -> None:
        self._wrote_s = self._now_s()
        self._is_writing = True
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
        self._is_writing = False
