"""Owns the tasks that the agent starts on the way: none is lost, and none fails unheard."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Starts a task that somebody owns and ends."""

T = TypeVar("T")


def _wait(one: object) -> None:
    del one


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


class DeedLine(Generic[T]):
    """Begins deeds of one kind in the order in which they come, in as few tasks as they need.

    A task begins one deed after the other; when one has to wait, another task goes on with those
    that have not begun. Many deeds that end without waiting so share a single task: to make one
    for each would take longer than the deeds.
    """

    def __init__(
        self,
        deed: Callable[[T], Coroutine[Any, Any, None]],
        spawn: Spawn,
        waits: Callable[[T], None] = _wait,
    ) -> None:
        """`deed` makes the deed for each that is added; `waits` hears when it has to wait."""
        self._deed = deed
        self._spawn = spawn
        self._waits = waits
        self._line: deque[T] = deque()
        self._is_task_coming = False

    def add(self, one: T) -> None:
        """Begin a deed soon; never within this call."""
        self._line.append(one)
        self._see_to_line()

    def _see_to_line(self) -> None:
        if self._line and not self._is_task_coming:
            self._is_task_coming = True
            self._spawn(self._go_on())

    async def _go_on(self) -> None:
        self._is_task_coming = False
        try:
            while self._line:
                one = self._line.popleft()
                await _Watched(self._deed(one), partial(self._waited, one))
        finally:
            # A bug in one deed keeps no other from beginning.
            self._see_to_line()

    def _waited(self, one: T) -> None:
        self._waits(one)
        self._see_to_line()


class _Watched(Generator[Any, Any, None]):
    """Awaits a coroutine, and calls `waits` each time when it has to wait."""

    def __init__(self, deed: Coroutine[Any, Any, None], waits: Callable[[], None]) -> None:
        self._deed = deed
        self._waits = waits

    def __await__(self) -> "_Watched":
        return self

    def __next__(self) -> Any:
        awaited = self._deed.send(None)
        self._waits()
        return awaited

    def send(self, value: Any) -> Any:
        awaited = self._deed.send(value)
        self._waits()
        return awaited

    def throw(
        self,
        kind: Any,
        value: Any = None,
        traceback: TracebackType | None = None,
    ) -> Any:
        """An error comes alone or, from older callers, behind its class."""
        del traceback
        awaited = self._deed.throw(kind if value is None else value)
        self._waits()
        return awaited

    def close(self) -> None:
        self._deed.close()
