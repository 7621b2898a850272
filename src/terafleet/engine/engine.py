"""The single-writer loop: inbox, machine, one transaction, effects."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from terafleet.core.machine import Machine
from terafleet.engine.clock import Clock
from terafleet.engine.codec import Codec, E
from terafleet.engine.commits import Commits, Group
from terafleet.engine.figures import Figures
from terafleet.engine.inbox import Inbox
from terafleet.engine.ports import Blob, JournalEntry, Record, Store
from terafleet.engine.recovery import Recovery
from terafleet.engine.settings import EngineSettings
from terafleet.engine.snapshots import Snapshots
from terafleet.engine.storage import StorageWatch

DISCARDED_MAX = 2_000
"""How many blobs are deleted with one group, so that its commit stays short."""


class Effect(Protocol):
    """What the engine must know of an effect.

    `when` is "now" (performed before the commit; may be lost), "commit" (performed after the
    commit only), "later" (the same, but the commit may wait a moment for more), or "record"
    (becomes records of the same transaction).
    """

    @property
    def when(self) -> str:
        """ "now", "commit", "later" or "record"."""
        ...


F = TypeVar("F", bound=Effect)


def _say_nothing(is_full: bool) -> None:
    del is_full


def _never(event: object) -> bool:
    """No event is urgent."""
    del event
    return False


def _do_nothing() -> None:
    """Nobody waits for a commit."""


@dataclass(frozen=True, slots=True)
class Shell(Generic[E, F]):
    """What the engine calls in the world around it, always in the event loop's thread.

    None of them may raise (that is a bug and ends the engine) or block. `perform` takes
    effects in their order, either all "now" or none of them; it may start tasks and submit
    events. `time_event` makes the event that tells the machine the time in ms. An event that
    `is_urgent` is handled without waiting for what is being written.
    `on_storage(True)` asks to refuse work that is not yet accepted. `on_commit_failed` says each
    time a commit found no room that whoever waits for one will wait on.
    """

    perform: Callable[[list[F]], None]
    to_records: Callable[[F], Sequence[Record]]
    time_event: Callable[[int], E]
    on_storage: Callable[[bool], None] = _say_nothing
    on_commit_failed: Callable[[], None] = _do_nothing
    is_urgent: Callable[[E], bool] = _never


@dataclass(frozen=True, slots=True)
class _Sorted(Generic[F]):
    """The effects of a group by what they wait for; `is_awaited` if one needs the commit soon."""

    now: list[F]
    record: list[F]
    after: list[F]
    is_awaited: bool


def _sorted(effects: list[F]) -> _Sorted[F]:
    now: list[F] = []
    record: list[F] = []
    after: list[F] = []
    is_awaited = False
    for effect in effects:
        when = effect.when
        if when == "now":
            now.append(effect)
        elif when == "record":
            record.append(effect)
        else:
            after.append(effect)
            is_awaited |= when == "commit"
    return _Sorted(now, record, after, is_awaited)


class Engine(Generic[E, F]):
    """Feeds one machine from one inbox and lets its effects leave; the only writer of a store.

    All methods belong to the thread of the event loop.
    """

    def __init__(
        self,
        recovery: Recovery[Machine[E, F]],
        store: Store,
        codec: Codec[E, F],
        shell: Shell[E, F],
        clock: Clock,
        settings: EngineSettings,
    ) -> None:
        """Take over where `recovery` left the record; nothing happens until `run`."""
        self._machine = recovery.machine
        self._store = store
        self._codec = codec
        self._shell = shell
        self._clock = clock
        self._settings = settings
        self._sequence = recovery.last_sequence
        self._at_ms = recovery.last_at_ms
        self._inbox: Inbox[E] = Inbox(settings.inbox_max, settings.inbox_bytes_max)
        self._discarded: deque[str] = deque()
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._is_running = False
        self._is_hurried = False
        self._time_next_ms = 0
        self._storage = StorageWatch(store, settings, shell.on_storage, shell.on_commit_failed)
        self._snapshots = Snapshots(
            recovery.machine.snapshot, store, codec.schema, settings, recovery.events_replayed
        )
        self._figures = Figures(sequence=recovery.last_sequence)
        self._commits: Commits[F] = Commits(
            store, settings, self._storage, shell.perform, self._figures
        )

    @property
    def is_storage_full(self) -> bool:
        """Whether the record is full or nearly so; work that is not accepted yet must wait."""
        return self._storage.is_full

    @property
    def is_commit_failing(self) -> bool:
        """Whether the newest commit found no room; what comes now is not kept before there is."""
        return self._storage.is_commit_failing

    @property
    def inbox_length(self) -> int:
        """How many events have not been handled yet."""
        return len(self._inbox)

    @property
    def figures(self) -> Figures:
        """What was done so far; the same object at each call, brought up to date."""
        self._figures.inbox_length = len(self._inbox)
        self._figures.snapshots = self._snapshots.taken
        self._figures.snapshot_pause_ms_last = self._snapshots.pause_ms
        return self._figures

    def submit(self, event: E, blobs: Sequence[Blob] = ()) -> bool:
        """Hand in a fact with the blobs to be written along with it; never blocks.

        False means refused: the inbox is full, or the engine is stopping or has ended.
        """
        if self._stop.is_set() or not self._inbox.put(event, blobs):
            self._figures.refused += 1
            return False
        if self._shell.is_urgent(event):
            self._is_hurried = True
            self._commits.let_go()
        self._wake.set()
        return True

    def discard(self, names: Sequence[str]) -> None:
        """Delete blobs by name along with the groups that come next, some thousand in each.

        What a crash keeps from being deleted stays; the shell sweeps it at its next start.
        """
        self._discarded.extend(names)

    def wake(self) -> None:
        """Look at clock, storage and snapshots at once; for clocks that are moved by hand."""
        self._wake.set()

    def request_snapshot(self) -> None:
        """Take a snapshot as soon as the writer is between two commits."""
        self._snapshots.request()
        self._wake.set()

    async def stop(self) -> None:
        """Handle what is in the inbox, commit, take a snapshot, close the store.

        Returns when `run` has ended, and does its work if it was not begun. What ended the
        engine, if anything did, is raised by whichever of the two did the work.
        """
        self._stop.set()
        self._commits.stop()
        self._wake.set()
        await self.run()

    async def run(self) -> None:
        """Work until `stop`. Raises what a bug raised, and StorageFull if the stop met it.

        While another call is at work, or after it, this only waits for its end. Once it has
        ended, however it did, no thread of the engine uses the store any more.
        """
        if self._is_running:
            await self._ended.wait()
            return
        self._is_running = True
        try:
            self._storage.check(self._clock.now_ms())
            while await self._next_group():
                pass
            await self._commits.settle(None)
            await self._snapshots.finish(self._sequence)
            self._store.close()
        finally:
            self._stop.set()
            self._snapshots.close()
            self._commits.close()
            self._ended.set()

    async def _next_group(self) -> bool:
        """Wait for a group and handle it; False once there is none and none will come."""
        await self._until_due()
        if self._commits.is_behind:
            await self._commits.settle(self._settings.check_interval_ms)
            return True
        events, blobs = self._inbox.take(self._settings.group_max, self._settings.group_bytes_max)
        now_ms = self._clock.now_ms()
        if self._is_time_due(now_ms):
            events.append(self._shell.time_event(now_ms))
            self._time_next_ms = now_ms + self._settings.wake_interval_min_ms
        is_hurried, self._is_hurried = self._is_hurried, False
        if events:
            await self._handle(events, blobs, now_ms, is_hurried)
        await self._commits.settle(self._settings.commit_patience_ms)
        self._storage.check(now_ms)
        self._snapshots.reap()
        if self._commits.is_idle and self._snapshots.is_due(now_ms):
            self._snapshots.begin(self._sequence, now_ms)
        return not self._stop.is_set() or len(self._inbox) > 0

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_due():
            self._wake.clear()
            timer = loop.call_later(self._wait_ms() / 1000, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._storage.check(self._clock.now_ms())
            self._snapshots.reap()

    def _is_due(self) -> bool:
        if len(self._inbox) or self._stop.is_set() or self._commits.has_failed:
            return True
        now_ms = self._clock.now_ms()
        is_snapshot_due = self._commits.is_idle and self._snapshots.is_due(now_ms)
        return is_snapshot_due or self._is_time_due(now_ms)

    def _is_time_due(self, now_ms: int) -> bool:
        """Whether the machine waits for this time; at most once an interval, and not at the end."""
        if now_ms < self._time_next_ms or self._stop.is_set():
            return False
        deadline_ms = self._machine.next_deadline_ms()
        return deadline_ms is not None and deadline_ms <= now_ms

    def _wait_ms(self) -> int:
        """How long to sleep at most.

        Never longer than the interval of checks: the loop's timers stand still while the
        computer is suspended, the machine's deadlines don't.
        """
        wait_ms = self._settings.check_interval_ms
        deadline_ms = self._machine.next_deadline_ms()
        if deadline_ms is None:
            return wait_ms
        due_ms = max(deadline_ms, self._time_next_ms)
        return max(1, min(wait_ms, due_ms - self._clock.now_ms()))

    async def _handle(
        self, events: list[E], blobs: list[Blob], now_ms: int, is_hurried: bool
    ) -> None:
        """One group: decide, perform what need not wait, hand the rest on to be written first."""
        assert now_ms >= self._at_ms, "the clock went back behind the journal"
        effects = self._machine.handle(*events)
        sorted_effects = _sorted(effects)
        if sorted_effects.now:
            self._shell.perform(sorted_effects.now)
            if is_hurried:
                # What was sent just now leaves with the end of this turn of the event loop.
                await asyncio.sleep(0)
        records: list[Record] = []
        for effect in sorted_effects.record:
            records.extend(self._shell.to_records(effect))
        blobs.extend(self._next_discarded())
        self._at_ms = now_ms
        entry = JournalEntry(
            self._sequence + 1,
            now_ms,
            self._codec.schema,
            self._codec.encode_events(events),
            self._codec.encode_effects(effects),
        )
        self._sequence = entry.sequence
        self._snapshots.count(len(events))
        self._figures.groups += 1
        self._figures.events += len(events)
        group = Group(entry, records, blobs, sorted_effects.after, sorted_effects.is_awaited)
        self._commits.put(group, self._wake.set)

    def _next_discarded(self) -> list[Blob]:
        count = min(len(self._discarded), DISCARDED_MAX)
        return [Blob(self._discarded.popleft(), None) for _ in range(count)]
