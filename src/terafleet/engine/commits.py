"""Writes decided groups in their order, and lets the effects leave that waited for it."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from terafleet.engine.figures import Figures
from terafleet.engine.ports import Blob, JournalEntry, Record, StorageFull, Store
from terafleet.engine.settings import EngineSettings
from terafleet.engine.storage import StorageWatch

F = TypeVar("F")

GROUPS_MAX = 64
"""How many groups one transaction writes at most, so that it stays short."""


@dataclass(frozen=True, slots=True)
class Group(Generic[F]):
    """One handled group: its transaction, and the effects that come after it.

    It is awaited if one of them hurries.
    """

    entry: JournalEntry
    records: Sequence[Record]
    blobs: Sequence[Blob]
    effects: list[F]
    is_awaited: bool


class Commits(Generic[F]):
    """The way from the machine to the record.

    Usually a group is written before the next one is handled: what comes meanwhile makes a larger
    group. Groups that are not awaited are written together with what comes in the next moment.
    A storage that is slow or full does not hold the machine up for longer than its patience, and
    not at all when something urgent has come: it goes on deciding, what need not wait is done at
    once, and the groups line up here.
    """

    def __init__(
        self,
        store: Store,
        settings: EngineSettings,
        storage: StorageWatch,
        perform: Callable[[list[F]], None],
        figures: Figures,
    ) -> None:
        """`perform` takes the effects of a group that has been written."""
        self._store = store
        self._settings = settings
        self._storage = storage
        self._perform = perform
        self._figures = figures
        self._waiting: deque[Group[F]] = deque()
        self._work: asyncio.Task[None] | None = None
        self._awaited = 0
        """How many of the waiting groups are awaited."""
        self._is_wanted = asyncio.Event()
        self._may_go_on = asyncio.Event()
        """Whether the machine shall not wait any longer: an event is urgent, or all is written."""
        self._is_stopping = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "commits") if settings.commits_in_thread else None

    @property
    def is_idle(self) -> bool:
        """Whether the record holds all that the machine has handled."""
        return not self._waiting

    @property
    def is_behind(self) -> bool:
        """Whether so many groups wait that the machine must wait too."""
        return len(self._waiting) >= self._settings.groups_waiting_max

    @property
    def has_failed(self) -> bool:
        """Whether a bug, or a full storage at the end, has stopped the writing."""
        return self._work is not None and self._work.done() and bool(self._waiting)

    def put(self, group: Group[F], wake: Callable[[], None]) -> None:
        """Write a group after those before it; `wake` is called when nothing is left to write."""
        has_worker = self._work is not None and not (self._work.done() and self.is_idle)
        self._waiting.append(group)
        self._may_go_on.clear()
        if group.is_awaited:
            self._awaited += 1
            self._is_wanted.set()
        if not has_worker:
            self._work = asyncio.create_task(self._write_all(), name="commits")
            self._work.add_done_callback(lambda _: self._done(wake))

    async def settle(self, patience_ms: int | None) -> None:
        """Wait until all is written, or the patience is over. Raises what stopped the writing.

        With patience it waits only for what is awaited, and not when something is urgent.
        """
        if self._work is None:
            return
        if patience_ms is None:
            await asyncio.wait({self._work})
        elif self._awaited and not self._work.done():
            timer = asyncio.get_running_loop().call_later(patience_ms / 1000, self.let_go)
            await self._may_go_on.wait()
            self._may_go_on.clear()
            timer.cancel()
        if self._work.done():
            work, self._work = self._work, None
            work.result()

    def let_go(self) -> None:
        """Let the machine wait no longer for what is being written."""
        self._may_go_on.set()

    def _done(self, wake: Callable[[], None]) -> None:
        self.let_go()
        wake()

    def stop(self) -> None:
        """Give a full storage one more try from here on."""
        self._is_stopping.set()
        self._is_wanted.set()

    def close(self) -> None:
        """End the thread; what it writes at this moment is written to the end."""
        if self._work is not None:
            self._work.cancel()
        if self._thread is not None:
            self._thread.shutdown()

    async def _write_all(self) -> None:
        while self._waiting:
            await self._until_wanted()
            groups = self._next_groups()
            await self._commit(groups)
            for group in groups:
                self._waiting.popleft()
                self._figures.sequence = group.entry.sequence
                self._awaited -= group.is_awaited
                if group.effects:
                    self._perform(group.effects)

    async def _until_wanted(self) -> None:
        """Wait a moment for more while nothing of what is here is awaited."""
        self._is_wanted.clear()
        if not self._awaited and not self._is_stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.commit_gather_ms / 1000):
                    await self._is_wanted.wait()

    def _next_groups(self) -> list[Group[F]]:
        """The groups that one transaction writes: those that wait, within bounds."""
        groups: list[Group[F]] = []
        size = 0
        for group in self._waiting:
            size += len(group.entry.events) + len(group.entry.effects)
            size += sum(len(blob.body or b"") for blob in group.blobs)
            is_enough = size > self._settings.group_bytes_max or len(groups) >= GROUPS_MAX
            if groups and is_enough:
                break
            groups.append(group)
        return groups

    async def _commit(self, groups: Sequence[Group[F]]) -> None:
        """Write groups, however long the storage stays full.

        A stop gives up after one more failure: the groups' effects never left, so it is as
        if their events had not come.
        """
        retry_ms = self._settings.retry_ms_min
        while True:
            is_last_try = self._is_stopping.is_set()
            try:
                commit_ms = await self._write(groups)
            except StorageFull:
                self._figures.commits_failed += 1
                self._storage.commit_failed()
                if is_last_try:
                    raise
            else:
                break
            await self._pause(retry_ms)
            retry_ms = min(2 * retry_ms, self._settings.retry_ms_max)
        if self._storage.is_full:
            self._storage.commit_passed_again()
        self._figures.committed(commit_ms)

    async def _write(self, groups: Sequence[Group[F]]) -> float:
        """Commit in the thread of commits, or here; the milliseconds that it took."""
        if self._thread is not None:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._write_here, groups)
        commit_ms = self._write_here(groups)
        # Effects that are answered at once must not keep the loop from everything else.
        await asyncio.sleep(0)
        return commit_ms

    def _write_here(self, groups: Sequence[Group[F]]) -> float:
        started_s = time.perf_counter()
        entries = [group.entry for group in groups]
        records = [record for group in groups for record in group.records]
        blobs = [blob for group in groups for blob in group.blobs]
        self._store.commit(entries, records, blobs)
        return (time.perf_counter() - started_s) * 1000

    async def _pause(self, pause_ms: int) -> None:
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await self._is_stopping.wait()
        except TimeoutError:
            return
