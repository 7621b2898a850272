"""Waits for one of several things, whichever comes first, on any clock's sleep."""

import asyncio
from collections.abc import Awaitable, Callable

Sleep = Callable[[float], Awaitable[None]]
"""Waits so many seconds: `asyncio.sleep`, or what a test or a simulation puts in its place."""


async def wait_at_most(event: asyncio.Event, pause_s: float, sleep: Sleep) -> None:
    """Return when `event` is set or `pause_s` seconds are over."""
    await until_one_ends(event.wait(), sleep(pause_s))


async def until_one_ends(*waits: Awaitable[object]) -> None:
    """Do all at once until one ends, end the others, and raise what ended it."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        # A sleep that failed is a bug of its clock, and must not be lost.
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()
