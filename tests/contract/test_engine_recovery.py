"""What the engine promises about crashes, replay and snapshots."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.codec import Codec, JournalUnreadable
from terafleet.engine.ports import JournalEntry, Store
from terafleet.engine.recovery import recover
from terafleet.engine.settings import EngineSettings
from tests.contract.counter_ledger import (
    CODEC,
    AmountAdded,
    CounterLedger,
    Effect,
    Event,
    Promise,
)
from tests.contract.engine_stage import (
    INLINE,
    THREADED,
    PowerCut,
    Stage,
    reopen_memory,
    reopen_postgresql,
    reopen_sqlite,
)
from tests.postgresql_server import PostgresqlServer

CHILD_WORK_S = 0.2


class Life(msgspec.Struct, frozen=True):
    """One life of an engine: groups to submit, when to ask for a snapshot, and how it ends."""

    groups: list[int]
    snapshot_at: int
    commits_before_cut: int
    is_cut_after_write: bool
    is_stopped: bool


lives = st.lists(
    st.builds(
        Life,
        groups=st.lists(st.integers(1, 5), min_size=1, max_size=6),
        snapshot_at=st.integers(0, 8),
        commits_before_cut=st.integers(0, 7),
        is_cut_after_write=st.booleans(),
        is_stopped=st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


async def live(stage: Stage, life: Life, account: str) -> None:
    """Submit group after group until the power is cut; else stop, or abandon the engine."""
    stage.store.cut_after = life.commits_before_cut
    stage.store.is_cut_after_write = life.is_cut_after_write
    run = stage.start()
    for index, size in enumerate(life.groups):
        if index == life.snapshot_at:
            stage.engine.request_snapshot()
        stage.clock.advance(1)
        groups = stage.engine.figures.groups + 1
        for _ in range(size):
            stage.engine.submit(AmountAdded(account, 1))
        await stage.settle_groups(run, groups)
    if life.is_stopped:
        await stage.engine.stop()
    else:
        run.cancel()
    with contextlib.suppress(PowerCut, asyncio.CancelledError):
        await run
    stage.store.close()


def check_promises(stage: Stage) -> None:
    """Each promise that was heard had been committed before, once, in this order."""
    committed: list[Promise] = []
    for said in stage.log:
        if isinstance(said, JournalEntry):
            effects = CODEC.decode_effects(said.effects)
            committed += [effect for effect in effects if isinstance(effect, Promise)]
        elif isinstance(said, Promise):
            while committed.pop(0) != said:
                pass


async def check_lives(
    reopen: Callable[[], Store], chosen: EngineSettings, all_of: list[Life]
) -> None:
    stage = Stage(reopen, chosen)
    for number, life in enumerate(all_of):
        await live(stage, life, f"life-{number}")
        stage.begin(chosen)
        expected = CounterLedger()
        for group in stage.committed():
            expected.handle(*group)
        assert stage.machine.state == expected.state
        assert stage.recovery.last_sequence == len(stage.committed())
        check_promises(stage)
    stage.store.close()


@settings(max_examples=60, deadline=None)
@given(all_of=lives)
def test_a_cut_at_any_point_keeps_exactly_what_was_committed(all_of: list[Life]) -> None:
    asyncio.run(check_lives(reopen_memory(), INLINE, all_of))


@settings(max_examples=12, deadline=None)
@given(all_of=lives)
def test_a_cut_at_any_point_keeps_exactly_what_was_committed_on_disk(
    tmp_path_factory: pytest.TempPathFactory, all_of: list[Life]
) -> None:
    path = tmp_path_factory.mktemp("store") / "record.db"
    asyncio.run(check_lives(reopen_sqlite(path), THREADED, all_of))


@settings(max_examples=8, deadline=None)
@given(all_of=lives)
def test_a_cut_at_any_point_keeps_exactly_what_was_committed_on_a_server(
    postgresql_server: PostgresqlServer, all_of: list[Life]
) -> None:
    with postgresql_server.database() as database:
        asyncio.run(check_lives(reopen_postgresql(database), THREADED, all_of))


async def snapshot_of_forty(stage: Stage) -> bytes | None:
    """The snapshot that an engine saves when it is asked to after forty events."""
    stage.add(*range(40))
    run = stage.start()
    await stage.settle(lambda: len(stage.heard(Promise)) == 40)
    stage.engine.request_snapshot()
    await stage.settle(lambda: stage.engine.figures.snapshots == 1)
    assert stage.engine.figures.snapshot_pause_ms_last > 0
    body = stage.store.recover().snapshot
    assert body == stage.machine.snapshot()
    await stage.engine.stop()
    await run
    assert stage.engine.figures.snapshots == 1, "nothing had changed since"
    return body


async def test_a_forked_snapshot_holds_the_same_as_an_inline_one(tmp_path: Path) -> None:
    bodies = set()
    for chosen in (INLINE, THREADED):
        in_sevens = msgspec.structs.replace(chosen, group_max=7)
        path = tmp_path / f"forks-{chosen.snapshots_by_fork}.db"
        bodies.add(await snapshot_of_forty(Stage(reopen_memory(), in_sevens)))
        bodies.add(await snapshot_of_forty(Stage(reopen_sqlite(path), in_sevens)))
    assert len(bodies) == 1


async def test_a_forked_child_leaves_the_connections_to_a_server_alone(
    postgresql_server: PostgresqlServer,
) -> None:
    bodies = set()
    for chosen in (INLINE, THREADED):
        with postgresql_server.database() as database:
            bodies.add(await snapshot_of_forty(Stage(reopen_postgresql(database), chosen)))
    assert len(bodies) == 1


class TroubledLedger(CounterLedger):
    """Its snapshot goes wrong in a child, as `trouble` says; in this process it does not."""

    parent: int
    trouble: Callable[[], None] | None = None

    def snapshot(self) -> bytes:
        """The state, after the trouble."""
        if os.getpid() != self.parent and self.trouble is not None:
            self.trouble()
        return super().snapshot()


def begin_troubled(
    trouble: Callable[[], None], chosen: EngineSettings = THREADED
) -> tuple[Stage, TroubledLedger]:
    stage = Stage(reopen_memory(), chosen)
    stage.begin(chosen, restore=TroubledLedger)
    machine = stage.machine
    assert isinstance(machine, TroubledLedger)
    machine.parent = os.getpid()
    machine.trouble = trouble
    return stage, machine


async def test_the_writer_goes_on_while_the_child_writes() -> None:
    stage, machine = begin_troubled(lambda: time.sleep(CHILD_WORK_S))
    run = stage.start()
    stage.add(1)
    await stage.settle(lambda: stage.heard(Promise) == [1])
    at_fork = machine.snapshot()
    stage.engine.request_snapshot()
    await stage.settle(lambda: stage.engine.figures.snapshot_pause_ms_last > 0)
    stage.add(2)
    await stage.settle(lambda: stage.heard(Promise) == [1, 3])
    assert stage.engine.figures.snapshots == 0
    await stage.settle(lambda: stage.engine.figures.snapshots == 1)
    recovered = stage.store.recover()
    assert recovered.snapshot == at_fork
    assert [entry.sequence for entry in recovered.entries] == [2]
    await stage.engine.stop()
    await run


async def test_a_stop_does_not_wait_for_the_child() -> None:
    stage, machine = begin_troubled(lambda: time.sleep(3600))
    run = stage.start()
    stage.add(1)
    stage.engine.request_snapshot()
    await stage.settle(lambda: stage.engine.figures.snapshot_pause_ms_last > 0)
    await stage.engine.stop()
    await run
    assert stage.store.recover().snapshot == machine.snapshot()


async def test_the_child_keeps_no_descriptor_of_the_parent(tmp_path: Path) -> None:
    with (tmp_path / "held").open("w") as held:
        descriptor = held.fileno()

        def look() -> None:
            try:
                os.fstat(descriptor)
            except OSError:
                return
            raise AssertionError("the child could keep a lock or a socket")

        stage, _ = begin_troubled(look)
        run = stage.start()
        stage.add(1)
        stage.engine.request_snapshot()
        await stage.settle(lambda: stage.engine.figures.snapshots == 1)
        await stage.engine.stop()
        await run


def die() -> None:
    """Go the way the kernel takes a process when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """Be a bug in the machine's snapshot."""
    raise ValueError("no snapshot today")


@pytest.mark.parametrize(
    ("trouble", "timeout_ms", "reason"),
    [
        (die, 60_000, "the child died"),
        (fail, 60_000, "no snapshot today"),
        (lambda: time.sleep(3600), 100, "timed out"),
    ],
)
async def test_a_lost_snapshot_is_logged_and_taken_again_later(
    trouble: Callable[[], None], timeout_ms: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = msgspec.structs.replace(
        THREADED, snapshot_events=3, snapshot_interval_ms=500, snapshot_timeout_ms=timeout_ms
    )
    stage, machine = begin_troubled(trouble, chosen)
    run = stage.start()
    stage.add(1, 2, 3)
    await stage.settle(lambda: reason in caplog.text)
    assert "snapshot_lost sequence=1" in caplog.text
    machine.trouble = None
    stage.add(4)
    await stage.settle(lambda: len(stage.heard(Promise)) == 4)
    await asyncio.sleep(0.01)
    assert stage.engine.figures.snapshots == 0, "not before the interval has passed"
    stage.clock.advance(500)
    await stage.settle(lambda: stage.engine.figures.snapshots == 1)
    assert stage.store.recover().snapshot == machine.snapshot()
    await stage.engine.stop()
    await run


async def test_snapshots_come_by_number_of_events_and_trim_the_journal() -> None:
    memory = MemoryStore()
    chosen = msgspec.structs.replace(INLINE, group_max=2, snapshot_events=4, journal_keep_ms=50)
    stage = Stage(lambda: memory, chosen)
    run = stage.start()
    stage.add(*range(6))
    await stage.settle(lambda: len(stage.heard(Promise)) == 6)
    assert stage.engine.figures.snapshots == 1
    assert [entry.sequence for entry in memory.recover().entries] == [3]
    assert len(list(memory.entries())) == 3, "nothing is old enough to go"
    stage.clock.advance(51)
    stage.add(*range(4))
    await stage.settle(lambda: stage.engine.figures.snapshots == 2)
    await stage.settle(lambda: len(stage.heard(Promise)) == 10)
    assert [entry.sequence for entry in memory.entries()] == [3, 4, 5]
    await stage.engine.stop()
    await run
    stage.begin(chosen)
    assert stage.machine.state.groups == [2] * 5


async def test_a_snapshot_that_storage_refuses_is_no_harm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = MemoryStore()
    stage = Stage(lambda: memory, INLINE)
    run = stage.start()
    stage.add(1)
    await stage.settle(lambda: stage.heard(Promise) == [1])
    memory.fail_next()
    await stage.engine.stop()
    await run
    assert "reason=storage_full" in caplog.text
    stage.begin(INLINE)
    assert stage.recovery.events_replayed == 1
    assert stage.machine.state.totals == {"a": 1}


async def test_replay_keeps_groups_as_they_were_journaled() -> None:
    stage = Stage(reopen_memory(), msgspec.structs.replace(INLINE, group_max=3))
    stage.add(*range(8))
    run = stage.start()
    await stage.settle(lambda: len(stage.heard(Promise)) == 8)
    run.cancel()
    stage.begin(msgspec.structs.replace(INLINE, group_max=100))
    assert stage.machine.state.groups == [3, 3, 2]
    assert stage.recovery.events_replayed == 8
    assert (stage.recovery.last_sequence, stage.recovery.last_at_ms) == (3, 1_000_000)


def test_what_another_version_wrote_is_refused_unless_it_is_readable() -> None:
    memory = MemoryStore()
    group = [AmountAdded("a", 1)]
    memory.commit([JournalEntry(1, 5, 2, CODEC.encode_events(group), b"")], [], [])
    with pytest.raises(JournalUnreadable, match="schema 2"):
        recover(memory, CODEC, CounterLedger)
    reader: Codec[Event, Effect] = Codec(Event, Effect, schema=3, schemas_readable=(2,))
    assert recover(memory, reader, CounterLedger).machine.state.totals == {"a": 1}
    memory.save_snapshot(1, 1, CounterLedger().snapshot())
    with pytest.raises(JournalUnreadable, match="schema 1"):
        recover(memory, reader, CounterLedger)


@pytest.mark.parametrize("events", [b"", b"\xc1", b"\x91\x81\xa4type\xa5Wrong"])
def test_a_journal_of_other_bytes_is_refused(events: bytes) -> None:
    memory = MemoryStore()
    memory.commit([JournalEntry(1, 5, 3, events, b"")], [], [])
    with pytest.raises(JournalUnreadable, match="events"):
        recover(memory, CODEC, CounterLedger)
