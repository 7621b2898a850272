"""Owns the tasks that the agent starts on the way: none is lost, and none fails unheard."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Starts a task that somebody owns and ends."""


class Deeds:
    """The running deeds; a bug in one of them must end the agent."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._has_failed = asyncio.Event()

    def spawn(self, deed: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Begin a deed."""
        task = asyncio.get_running_loop().create_task(deed)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def watch(self) -> None:
        """Wait until a deed fails, and raise what it raised."""
        await self._has_failed.wait()
        assert self._error is not None
        raise self._error

    async def stop(self) -> None:
        """Cancel all deeds and wait for their end."""
        while self._tasks:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(self._tasks)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._error is None:
            self._error = error
            self._has_failed.set()
