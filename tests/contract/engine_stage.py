"""A stage for engines: stores that can be held or cut, and a shell that logs what it hears."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.adapters.postgresql import PostgresqlStore
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.clock import Clock, ManualClock
from terafleet.engine.engine import Engine, Shell
from terafleet.engine.ports import Blob, JournalEntry, Record, Recovered, Store
from terafleet.engine.recovery import recover
from terafleet.engine.settings import EngineSettings
from tests.contract.counter_ledger import (
    CODEC,
    AmountAdded,
    CounterLedger,
    Effect,
    Event,
    TimeAdvanced,
    to_records,
)
from tests.postgresql_server import PostgresqlDatabase

WAIT_S = 20.0

INLINE = EngineSettings(
    commits_in_thread=False,
    snapshots_by_fork=False,
    check_interval_ms=1,
    retry_ms_min=1,
    retry_ms_max=4,
    bytes_free_min=0,
    bytes_free_enough=0,
    snapshot_interval_ms=0,
)
THREADED = msgspec.structs.replace(INLINE, commits_in_thread=True, snapshots_by_fork=True)


class PowerCut(Exception):
    """The computer went off at this point."""


class StageStore:
    """Any store, with a log of what was committed, a gate before commits, and a cut.

    `cut_after` counts commits that go through; the next one is cut, before or after it is
    written.
    """

    def __init__(self, inner: Store, log: list[object]) -> None:
        self.inner = inner
        self.log = log
        self.gate = threading.Event()
        self.gate.set()
        self.cut_after: int | None = None
        self.is_cut_after_write = False

    def recover(self) -> Recovered:
        return self.inner.recover()

    def commit(
        self, entries: Sequence[JournalEntry], records: Sequence[Record], blobs: Sequence[Blob]
    ) -> None:
        assert self.gate.wait(WAIT_S)
        is_cut = self.cut_after == 0
        if self.cut_after is not None:
            self.cut_after -= 1
        if is_cut and not self.is_cut_after_write:
            raise PowerCut
        self.inner.commit(entries, records, blobs)
        self.log.extend(entries)
        if is_cut:
            raise PowerCut

    def save_snapshot(self, sequence: int, schema: int, body: bytes) -> None:
        self.inner.save_snapshot(sequence, schema, body)

    def trim_journal(self, before_ms: int) -> int:
        return self.inner.trim_journal(before_ms)

    def record(self, kind: str, record_id: str) -> Record | None:
        return self.inner.record(kind, record_id)

    def records(
        self,
        kind: str,
        parent: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Record]:
        return self.inner.records(kind, parent, after, limit)

    def blob(self, name: str) -> bytes | None:
        return self.inner.blob(name)

    def blob_names(self, prefix: str) -> Iterator[str]:
        return self.inner.blob_names(prefix)

    def delete_blobs(self, prefix: str) -> int:
        return self.inner.delete_blobs(prefix)

    def entries(self, after_sequence: int = 0) -> Iterator[JournalEntry]:
        return self.inner.entries(after_sequence)

    def bytes_free(self) -> int | None:
        return self.inner.bytes_free()

    def close(self) -> None:
        self.inner.close()


class Stage:
    """One record, the engine that works on it at present, and a log of all that happened.

    The log holds journal entries as they were committed, effects as they were performed, and
    the words of `on_storage` as booleans.
    """

    def __init__(self, reopen: Callable[[], Store], settings: EngineSettings) -> None:
        self.log: list[object] = []
        self.clock = ManualClock(1_000_000)
        self._reopen = reopen
        self.begin(settings)

    def begin(
        self,
        settings: EngineSettings,
        clock: Clock | None = None,
        restore: Callable[[bytes | None], CounterLedger] = CounterLedger,
    ) -> None:
        """Recover the record and put an engine on it, which does not run yet."""
        self.store = StageStore(self._reopen(), self.log)
        self.recovery = recover(self.store, CODEC, restore)
        self.machine = self.recovery.machine
        self.engine: Engine[Event, Effect] = Engine(
            self.recovery,
            self.store,
            CODEC,
            Shell(self.log.extend, to_records, TimeAdvanced, self.log.append),
            clock or self.clock,
            settings,
        )

    def start(self) -> asyncio.Task[None]:
        """Let the engine run."""
        return asyncio.create_task(self.engine.run())

    def add(self, *amounts: int, account: str = "a") -> None:
        """Submit amounts, one event each."""
        for amount in amounts:
            assert self.engine.submit(AmountAdded(account, amount))

    def heard(self, kind: type[Effect]) -> list[int]:
        """The totals of all effects of a kind, in the order in which they were performed."""
        return [said.total for said in self.log if isinstance(said, kind)]

    def committed(self) -> list[list[Event]]:
        """The groups that were committed, in their order."""
        return [CODEC.decode_events(e.events) for e in self.log if isinstance(e, JournalEntry)]

    async def settle(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds, or fail."""
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline_s, "waited in vain"
            await asyncio.sleep(0)

    async def settle_groups(self, run: asyncio.Task[None], groups: int) -> None:
        """Wait until so many groups were handled, or the engine has ended."""
        await self.settle(lambda: run.done() or self.engine.figures.groups >= groups)


def reopen_memory() -> Callable[[], Store]:
    """A store in memory that opens as itself again."""
    store = MemoryStore()
    return lambda: store


def reopen_sqlite(path: Path) -> Callable[[], Store]:
    """A file that is opened again by whoever comes; the store before must be closed."""
    return lambda: SqliteStore(path, "NORMAL")


def reopen_postgresql(database: PostgresqlDatabase) -> Callable[[], Store]:
    """A database that is opened again by whoever comes; the store before must be closed."""
    return lambda: PostgresqlStore(database.url)
