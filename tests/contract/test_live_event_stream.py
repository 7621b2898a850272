"""A stream to a client: it is kept alive while nothing is said, and ends when nobody reads."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from terafleet.control.gateway.live.event_stream import EventStream, until_left, while_reading

STILL_HERE = ": still here\n\n"


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once when nothing else is to be done."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__()

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._now_s

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
            due = [timer.when() for timer in timers if not timer.cancelled()]
            assert due, "nothing will ever happen"
            self._now_s = max(self._now_s, min(due))
        super()._run_once()  # type: ignore[misc]


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Client:
    """Hears what is sent and when, as long as it reads; says what the server hears of it."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, str]] = []
        self.is_whole = False
        self.reads = asyncio.Event()
        self.reads.set()
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.events = EventStream(self.send, now_s)

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            assert self.heard == []
            return
        self.heard.append((now_s(), message["body"].decode()))
        assert not self.is_whole
        self.is_whole = not message["more_body"]

    async def receive(self) -> Any:
        return await self.said.get()

    def leave(self) -> None:
        self.said.put_nowait({"type": "http.disconnect"})

    async def serve(self, work: Coroutine[Any, Any, None]) -> float:
        """Do some work for this client; when it ended."""
        await while_reading(work, self.events.attend(self.receive))
        return now_s()


def run(test: Callable[[Client], Awaitable[None]]) -> None:
    """Run a test in virtual time."""

    async def in_loop() -> None:
        await test(Client())

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(in_loop())


def test_a_comment_comes_whenever_nothing_does() -> None:
    async def test(client: Client) -> None:
        async def work() -> None:
            await client.events.write(b"a")
            await asyncio.sleep(25)
            await client.events.write(b"b")
            await asyncio.sleep(9)
            await client.events.comment("c")
            await asyncio.sleep(9)
            await client.events.end(b"d")

        assert await client.serve(work()) == 43
        told = [(0, "a"), (10, STILL_HERE), (20, STILL_HERE), (25, "b"), (34, ": c\n\n"), (43, "d")]
        assert client.heard == told
        assert client.is_whole

    run(test)


def test_a_stream_begins_before_the_client_loses_patience() -> None:
    async def test(client: Client) -> None:
        async def work() -> None:
            await asyncio.sleep(14)
            assert not client.events.has_begun
            await asyncio.sleep(2)
            assert client.events.has_begun
            await client.events.end(b"a")

        await client.serve(work())
        assert client.heard == [(15, STILL_HERE), (16, "a")]

    run(test)


@pytest.mark.parametrize("last", [False, True])
def test_who_reads_nothing_is_left(last: bool) -> None:
    async def test(client: Client) -> None:
        has_ended = False

        async def work() -> None:
            nonlocal has_ended
            await client.events.write(b"a")
            await asyncio.sleep(3)
            client.reads.clear()
            try:
                await (client.events.end if last else client.events.write)(b"b")
            finally:
                has_ended = True

        assert await client.serve(work()) == 33
        assert has_ended
        assert client.heard == [(0, "a")]

    run(test)


def test_who_reads_not_even_a_comment_is_left() -> None:
    async def test(client: Client) -> None:
        async def work() -> None:
            await client.events.write(b"a")
            client.reads.clear()
            await asyncio.sleep(1_000)

        assert await client.serve(work()) == 40

    run(test)


def test_who_reads_slowly_is_served() -> None:
    async def test(client: Client) -> None:
        async def work() -> None:
            for _ in range(3):
                client.reads.clear()
                asyncio.get_running_loop().call_later(29, client.reads.set)
                await client.events.write(b"a")
            await client.events.end(b"b")

        assert await client.serve(work()) == 87
        assert client.heard == [(29, "a"), (58, "a"), (87, "a"), (87, "b")]

    run(test)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_the_work_ends_when_the_client_leaves(is_streamed: bool) -> None:
    async def test(client: Client) -> None:
        ended_s = []

        async def work() -> None:
            try:
                await asyncio.sleep(1_000)
            finally:
                ended_s.append(now_s())

        loop = asyncio.get_running_loop()
        loop.call_later(2, client.said.put_nowait, {"type": "http.request", "body": b""})
        loop.call_later(3, client.leave)
        leaving = client.events.attend if is_streamed else until_left
        await while_reading(work(), leaving(client.receive))
        assert ended_s == [3]

    run(test)


def test_who_leaves_as_the_work_ends_disturbs_nobody() -> None:
    async def test(client: Client) -> None:
        may_end = asyncio.Event()

        async def work() -> None:
            await may_end.wait()

        serving = asyncio.create_task(client.serve(work()))
        await asyncio.sleep(1)
        client.leave()
        may_end.set()
        assert await serving == 1
        assert not serving.cancelling()

    run(test)


def test_what_the_work_raises_is_raised() -> None:
    async def test(client: Client) -> None:
        async def work() -> None:
            await asyncio.sleep(1)
            raise ValueError("a")

        with pytest.raises(ValueError, match="a"):
            await client.serve(work())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(test)


def test_both_end_with_the_server() -> None:
    async def test(client: Client) -> None:
        async def work() -> None:
            await asyncio.sleep(1_000)

        serving = asyncio.create_task(client.serve(work()))
        await asyncio.sleep(5)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert now_s() == 5

    run(test)
