"""Waits for an event or for a time, whichever comes first, on any clock's sleep."""

import asyncio
from collections.abc import Awaitable, Callable

Sleep = Callable[[float], Awaitable[None]]
"""Waits so many seconds: `asyncio.sleep`, or what a test or a simulation puts in its place."""


async def wait_at_most(event: asyncio.Event, pause_s: float, sleep: Sleep) -> None:
    """Return when `event` is set or `pause_s` seconds are over."""
    waits = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(sleep(pause_s))}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        # A sleep that failed is a bug of its clock, and must not be lost.
        await asyncio.gather(*waits, return_exceptions=True)
    for wait in waits:
        if not wait.cancelled():
            wait.result()
