"""Time that passes only when a test says so, for shells that take their clock and their sleep."""

import asyncio
import heapq
import itertools

from terafleet.engine.clock import ManualClock

TURNS = 30
"""So many turns of the event loop let everything happen that follows from one event."""


class VirtualTime:
    """A clock and the sleepers on it."""

    def __init__(self, start_at_ms: int = 1_000_000) -> None:
        self.clock = ManualClock(start_at_ms)
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now_ms(self) -> int:
        """The time."""
        return self.clock.now_ms()

    async def sleep(self, pause_s: float) -> None:
        """Wait until the test has let so much time pass."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due_ms = self.now_ms() + max(1, round(pause_s * 1_000))
        heapq.heappush(self._sleepers, (due_ms, next(self._order), woken))
        await woken

    async def settle(self) -> None:
        """Let happen what happens at this moment."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def pass_ms(self, duration_ms: int) -> None:
        """Let time pass, waking each sleeper at its moment."""
        end_ms = self.now_ms() + duration_ms
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end_ms:
            due_ms, _, woken = heapq.heappop(self._sleepers)
            self.clock.advance(max(0, due_ms - self.now_ms()))
            if not woken.done():
                woken.set_result(None)
                await self.settle()
        self.clock.advance(end_ms - self.now_ms())
        await self.settle()
