"""Decides when a snapshot is taken, takes it beside the writer, and trims the journal after."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from terafleet.engine.fork import SnapshotChild, SnapshotLost
from terafleet.engine.ports import StorageFull, Store
from terafleet.engine.settings import EngineSettings

TRIM_PAUSE_S = 0.001

logger = logging.getLogger(__name__)


class Snapshots:
    """Snapshots of one machine, one at a time.

    A snapshot that fails is logged and tried again after the interval: the journal holds
    everything that it would have held.
    """

    def __init__(
        self,
        snapshot: Callable[[], bytes],
        store: Store,
        schema: int,
        settings: EngineSettings,
        events_behind: int,
    ) -> None:
        """`events_behind` is how many events the store holds behind its snapshot."""
        self._snapshot = snapshot
        self._store = store
        self._schema = schema
        self._settings = settings
        self._events_behind = events_behind
        self._is_requested = False
        self._begin_next_ms = 0
        self._child: SnapshotChild | None = None
        self._saving: asyncio.Future[bool] | None = None
        self._events_in_snapshot = 0
        self._keeper = ThreadPoolExecutor(1, "snapshots") if settings.snapshots_by_fork else None
        self.taken = 0
        self.pause_ms = 0.0
        """How long the writer stood still for the newest snapshot."""

    def count(self, events: int) -> None:
        """Note that this many events were committed."""
        self._events_behind += events

    def request(self) -> None:
        """Take one as soon as none is under way, whatever the interval."""
        self._is_requested = True

    def is_due(self, now_ms: int) -> bool:
        """Whether `begin` should be called."""
        if self._saving is not None:
            return False
        if self._is_requested:
            return True
        return self._events_behind >= self._settings.snapshot_events and (
            now_ms >= self._begin_next_ms
        )

    def begin(self, sequence: int, now_ms: int) -> None:
        """Take a snapshot after `sequence`; no other thread may be writing to the store."""
        self._is_requested = False
        self._begin_next_ms = now_ms + self._settings.snapshot_interval_ms
        self._events_in_snapshot = self._events_behind
        keep_from_ms = now_ms - self._settings.journal_keep_ms
        if self._keeper is None:
            self._note(self._save_here(sequence) and self._trim(keep_from_ms))
            return
        started_s = time.perf_counter()
        try:
            child = SnapshotChild(self._snapshot)
        except SnapshotLost as error:
            logger.warning("snapshot_lost sequence=%d reason=%s", sequence, error)
            return
        self.pause_ms = (time.perf_counter() - started_s) * 1000
        self._child = child
        self._saving = asyncio.get_running_loop().run_in_executor(
            self._keeper, self._save_from_child, child, sequence, keep_from_ms
        )

    def reap(self) -> None:
        """Note the end of a snapshot that was under way; raises what a bug raised there."""
        if self._saving is not None and self._saving.done():
            saving, self._saving, self._child = self._saving, None, None
            self._note(saving.result())

    async def finish(self, sequence: int) -> None:
        """Take the last one, in this thread, unless the newest holds everything already."""
        if self._child is not None and self._saving is not None:
            self._child.give_up()
            await asyncio.wait([self._saving])
            self.reap()
        if self._events_behind:
            self._events_in_snapshot = self._events_behind
            self._note(self._save_here(sequence))

    def close(self) -> None:
        """Give a child up that is still at work, and wait until no thread uses the store."""
        if self._child is not None:
            self._child.give_up()
        if self._keeper is not None:
            self._keeper.shutdown()

    def _note(self, is_saved: bool) -> None:
        if is_saved:
            self.taken += 1
            self._events_behind -= self._events_in_snapshot

    def _save_here(self, sequence: int) -> bool:
        started_s = time.perf_counter()
        body = self._snapshot()
        self.pause_ms = (time.perf_counter() - started_s) * 1000
        return self._save(sequence, body)

    def _save_from_child(self, child: SnapshotChild, sequence: int, keep_from_ms: int) -> bool:
        try:
            body = child.receive(self._settings.snapshot_timeout_ms)
        except SnapshotLost as error:
            logger.warning("snapshot_lost sequence=%d reason=%s", sequence, error)
            return False
        return self._save(sequence, body) and self._trim(keep_from_ms)

    def _save(self, sequence: int, body: bytes) -> bool:
        try:
            self._store.save_snapshot(sequence, self._schema, body)
        except StorageFull:
            logger.warning("snapshot_lost sequence=%d reason=storage_full", sequence)
            return False
        return True

    def _trim(self, keep_from_ms: int) -> bool:
        """Always True: a journal that could not be trimmed is trimmed after the next one."""
        try:
            while self._store.trim_journal(keep_from_ms):
                # Each call is one short transaction; the pause lets the writer in between.
                time.sleep(TRIM_PAUSE_S)
        except StorageFull:
            logger.warning("journal_not_trimmed reason=storage_full")
        return True
