"""What the engine promises about order, commits, storage, time and its inbox, on every store."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.clock import SystemClock
from terafleet.engine.engine import DISCARDED_MAX, Engine, Shell
from terafleet.engine.ports import Blob, JournalEntry, StorageFull, Store
from terafleet.engine.recovery import recover
from terafleet.engine.settings import EngineSettings
from tests.contract.counter_ledger import (
    CODEC,
    AlarmSet,
    AmountAdded,
    Announce,
    CounterLedger,
    Effect,
    Event,
    KeepTotal,
    Promise,
    RaiseAsked,
    TimeAdvanced,
    to_records,
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


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    if request.param == "postgresql":
        return reopen_postgresql(request.getfixturevalue("postgresql_database"))
    return reopen_memory() if request.param == "memory" else reopen_sqlite(tmp_path / "record.db")


@pytest.fixture(params=[INLINE, THREADED], ids=["inline", "threaded"])
def stage(request: pytest.FixtureRequest, reopen: Callable[[], Store]) -> Iterator[Stage]:
    made = Stage(reopen, request.param)
    yield made
    made.store.close()


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def begin_on(memory: MemoryStore, **changes: int) -> Stage:
    return Stage(lambda: memory, msgspec.structs.replace(INLINE, **changes))


async def test_one_group_is_one_entry_and_its_effects_keep_their_order(stage: Stage) -> None:
    run = stage.start()
    stage.add(1, 2, 3)
    await stage.settle(lambda: len(stage.heard(Promise)) == 3)
    await stage.engine.stop()
    await run
    entry = next(e for e in stage.log if isinstance(e, JournalEntry))
    assert stage.log == [
        *[Announce("a", total) for total in (1, 3, 6)],
        entry,
        *[Promise("a", total) for total in (1, 3, 6)],
    ]
    assert (entry.sequence, entry.at_ms, entry.schema) == (1, 1_000_000, 3)
    assert CODEC.decode_events(entry.events) == [AmountAdded("a", n) for n in (1, 2, 3)]
    effects = CODEC.decode_effects(entry.effects)
    assert [type(effect) for effect in effects] == [Promise, KeepTotal, Announce] * 3


async def test_records_and_blobs_are_of_the_same_transaction(stage: Stage) -> None:
    run = stage.start()
    assert stage.engine.submit(AmountAdded("a", 5), [Blob("a/1", b"one"), Blob("a/2", b"two")])
    await stage.settle(lambda: stage.heard(Promise) == [5])
    record = stage.store.record("total", "a")
    assert record is not None
    assert (record.body, record.sort) == (b"5", 5)
    assert stage.store.blob("a/2") == b"two"
    await stage.engine.stop()
    await run


async def test_what_is_discarded_goes_with_the_groups_that_come_next(stage: Stage) -> None:
    run = stage.start()
    names = [f"a/{number}" for number in range(DISCARDED_MAX + 1)]
    assert stage.engine.submit(AmountAdded("a", 1), [Blob(name, b"x") for name in names])
    await stage.settle(lambda: stage.heard(Promise) == [1])
    stage.engine.discard(names)
    assert stage.store.blob(names[0]) == b"x"
    stage.add(1)
    await stage.settle(lambda: stage.heard(Promise) == [1, 2])
    assert [stage.store.blob(names[index]) for index in (0, -2, -1)] == [None, None, b"x"]
    stage.add(1)
    await stage.settle(lambda: len(stage.heard(Promise)) == 3)
    assert stage.store.blob(names[-1]) is None
    await stage.engine.stop()
    await run


async def test_nothing_that_must_wait_leaves_before_the_commit(
    reopen: Callable[[], Store],
) -> None:
    stage = Stage(reopen, THREADED)
    stage.store.gate.clear()
    run = stage.start()
    stage.add(1)
    await stage.settle(lambda: stage.heard(Announce) == [1])
    stage.add(2, 3)
    await asyncio.sleep(0.01)
    assert stage.log == [Announce("a", 1)], "the loop is free, but the commit is under way"
    assert stage.engine.figures.inbox_length == 2
    stage.store.gate.set()
    await stage.settle(lambda: stage.heard(Promise) == [1, 3, 6])
    assert [len(group) for group in stage.committed()] == [1, 2], "the inbox became one group"
    await stage.engine.stop()
    await run


async def test_a_power_cut_at_the_commit_lets_no_promise_out(stage: Stage) -> None:
    stage.store.cut_after = 1
    run = stage.start()
    stage.add(1)
    await stage.settle(lambda: stage.heard(Promise) == [1])
    stage.add(2)
    with pytest.raises(PowerCut):
        await run
    assert stage.heard(Promise) == [1]
    assert not stage.engine.submit(AmountAdded("a", 1))


async def test_groups_are_bounded_in_events_and_bytes(memory: MemoryStore) -> None:
    stage = begin_on(memory, group_max=4, group_bytes_max=100)
    stage.add(*range(9))
    for size in (60, 60, 500, 10):
        assert stage.engine.submit(AmountAdded("b", 1), [Blob(f"b/{size}", b"x" * size)])
        stage.add(0)
    run = stage.start()
    await stage.engine.stop()
    await run
    assert [len(group) for group in stage.committed()] == [4, 4, 3, 2, 2, 2]
    order = [event for group in stage.committed() for event in group]
    assert order[:9] == [AmountAdded("a", n) for n in range(9)]
    assert memory.blob("b/500") == b"x" * 500


async def test_a_full_inbox_refuses_and_counts(memory: MemoryStore) -> None:
    stage = begin_on(memory, inbox_max=3, inbox_bytes_max=100)
    blobs = [Blob("b", b"x" * 60)]
    assert stage.engine.submit(AmountAdded("a", 1), blobs)
    assert not stage.engine.submit(AmountAdded("a", 1), blobs), "too many bytes"
    stage.add(1, 1)
    assert not stage.engine.submit(AmountAdded("a", 1)), "too many events"
    run = stage.start()
    await stage.settle(lambda: len(stage.heard(Promise)) == 3)
    assert stage.engine.submit(AmountAdded("a", 1), blobs)
    await stage.engine.stop()
    await run
    assert not stage.engine.submit(AmountAdded("a", 1)), "stopped"
    assert stage.engine.figures.refused == 3
    assert stage.heard(Promise) == [1, 2, 3, 4]


async def test_stop_handles_what_is_in_the_inbox(stage: Stage) -> None:
    run = stage.start()
    stage.add(*range(1, 50))
    await stage.engine.stop()
    assert len(stage.heard(Promise)) == 49
    await run
    figures = stage.engine.figures
    assert (figures.events, figures.groups, figures.commits) == (49, 1, 1)
    assert figures.commit_ms_mean == figures.commit_ms_last > 0
    assert figures.snapshots == 1
    stage.begin(INLINE)
    assert stage.recovery.events_replayed == 0
    assert stage.machine.state.totals == {"a": sum(range(50))}


async def test_stop_of_an_engine_that_never_ran_loses_nothing(memory: MemoryStore) -> None:
    stage = begin_on(memory)
    stage.add(1)
    await stage.engine.stop()
    await stage.engine.run()
    await stage.engine.stop()
    assert stage.heard(Promise) == [1]
    assert memory.recover().snapshot is not None


async def test_events_that_performing_submits_are_handled_and_starve_nobody() -> None:
    memory = MemoryStore()
    recovery = recover(memory, CODEC, CounterLedger)
    heard: list[Effect] = []

    def perform(effects: list[Effect]) -> None:
        heard.extend(effects)
        for effect in effects:
            if isinstance(effect, Promise):
                engine.submit(AmountAdded("a", 1))

    shell: Shell[Event, Effect] = Shell(perform, to_records, TimeAdvanced)
    engine = Engine(recovery, memory, CODEC, shell, SystemClock(), INLINE)
    run = asyncio.create_task(engine.run())
    engine.submit(AmountAdded("a", 1))
    for _ in range(200):
        await asyncio.sleep(0)
    await engine.stop()
    await run
    promised = [effect.total for effect in heard if isinstance(effect, Promise)]
    assert len(promised) > 20
    assert promised == list(range(1, len(promised) + 1))


async def test_full_storage_withholds_effects_and_is_tried_again(memory: MemoryStore) -> None:
    stage = begin_on(memory)
    run = stage.start()
    memory.fail_next(3)
    stage.add(1)
    await stage.settle(lambda: stage.engine.is_storage_full)
    stage.add(2)
    await stage.settle(lambda: stage.heard(Promise) == [1, 3])
    await stage.settle(lambda: not stage.engine.is_storage_full)
    await stage.engine.stop()
    await run
    entries = [said for said in stage.log if isinstance(said, JournalEntry)]
    assert [entry.sequence for entry in entries] == [1, 2]
    assert stage.heard(Announce) == [1, 3]
    assert stage.log.index(True) < stage.log.index(False)
    assert stage.engine.figures.commits_failed == 3
    assert stage.engine.figures.commits == 2


async def test_what_need_not_wait_is_done_while_the_storage_is_full(memory: MemoryStore) -> None:
    """A car whose disk is full must still be given back when its owner comes."""
    stage = begin_on(memory, retry_ms_min=100_000, retry_ms_max=100_000)
    run = stage.start()
    memory.capacity_bytes = 0
    stage.add(1)
    await stage.settle(lambda: stage.engine.is_storage_full)
    stage.add(2)
    await stage.settle(lambda: stage.heard(Announce) == [1, 3])
    assert stage.heard(Promise) == []
    await stage.engine.stop()
    with pytest.raises(StorageFull):
        await run


async def test_what_nothing_waits_for_is_written_with_what_comes_next(stage: Stage) -> None:
    settings = msgspec.structs.replace(INLINE, commit_gather_ms=100_000)
    stage.store.close()
    stage.begin(settings)
    run = stage.start()
    for at_ms in (9_000_000, 9_000_001):
        assert stage.engine.submit(AlarmSet(at_ms))
        await stage.settle_groups(run, at_ms - 8_999_999)
    assert stage.committed() == [], "nobody waits for it"
    stage.add(1)
    await stage.settle(lambda: stage.heard(Promise) == [1])
    assert [len(group) for group in stage.committed()] == [1, 1, 1]
    assert stage.engine.figures.commits == 1
    await stage.engine.stop()
    await run


async def test_what_nothing_waits_for_is_written_soon_and_at_a_stop(memory: MemoryStore) -> None:
    stage = begin_on(memory, commit_gather_ms=1)
    run = stage.start()
    assert stage.engine.submit(AlarmSet(9_000_000))
    await stage.settle(lambda: stage.engine.figures.commits == 1)
    await stage.engine.stop()
    await run
    stage.begin(msgspec.structs.replace(INLINE, commit_gather_ms=100_000))
    run = stage.start()
    assert stage.engine.submit(AlarmSet(9_000_000))
    await stage.settle_groups(run, 1)
    await stage.engine.stop()
    await run
    assert [entry.sequence for entry in memory.entries()] == [1, 2]


async def test_groups_that_lined_up_are_written_together_within_bounds(
    memory: MemoryStore,
) -> None:
    stage = begin_on(memory, retry_ms_min=20, retry_ms_max=20, group_bytes_max=2_000)
    run = stage.start()
    memory.capacity_bytes = 0
    for handled in range(1, 6):
        stage.add(1)
        await stage.settle_groups(run, handled)
    assert stage.engine.submit(AmountAdded("a", 1), [Blob("large", bytes(2_000))])
    await stage.settle_groups(run, 6)
    memory.capacity_bytes = None
    await stage.settle(lambda: stage.heard(Promise) == [1, 2, 3, 4, 5, 6])
    await stage.engine.stop()
    await run
    assert [entry.sequence for entry in memory.entries()] == [1, 2, 3, 4, 5, 6]
    assert memory.blob("large") == bytes(2_000)
    assert stage.engine.figures.commits == 3, "the first was being tried, the last is large"


async def test_the_machine_waits_when_too_many_groups_wait(memory: MemoryStore) -> None:
    stage = begin_on(memory, retry_ms_min=20, retry_ms_max=20, groups_waiting_max=2)
    run = stage.start()
    memory.capacity_bytes = 0
    stage.add(1)
    await stage.settle(lambda: stage.heard(Announce) == [1])
    stage.add(1)
    await stage.settle(lambda: stage.heard(Announce) == [1, 2])
    stage.add(1, 1, 1)
    await stage.settle(lambda: stage.engine.figures.commits_failed > 3)
    assert stage.heard(Announce) == [1, 2], "the third group is not handled yet"
    memory.capacity_bytes = None
    await stage.settle(lambda: stage.heard(Promise)[-1:] == [5])
    await stage.engine.stop()
    await run
    assert [entry.sequence for entry in memory.entries()] == [1, 2, 3]


async def test_a_stop_while_storage_is_full_gives_up_and_says_so(memory: MemoryStore) -> None:
    stage = begin_on(memory, retry_ms_min=100_000, retry_ms_max=100_000)
    run = stage.start()
    memory.capacity_bytes = 0
    stage.add(1)
    await stage.settle(lambda: stage.engine.is_storage_full)
    await stage.engine.stop()
    with pytest.raises(StorageFull):
        await run
    assert stage.heard(Promise) == []
    assert list(memory.entries()) == []


async def test_low_storage_is_said_with_two_levels(memory: MemoryStore) -> None:
    stage = begin_on(memory, bytes_free_min=1000, bytes_free_enough=2000, check_interval_ms=1)
    run = stage.start()
    said: list[bool] = []
    for bytes_free, is_full in [
        (5000, False), (1500, False), (999, True), (1500, True), (1999, True), (2000, False),
        (1000, False), (0, True),
    ]:  # fmt: skip
        memory.capacity_bytes = bytes_free
        stage.clock.advance(1)
        stage.engine.wake()
        await asyncio.sleep(0.003)
        assert stage.engine.is_storage_full == is_full
        said = [word for word in stage.log if isinstance(word, bool)]
    assert said == [True, False, True]
    memory.capacity_bytes = 1500
    stage.add(1)
    await stage.settle(lambda: stage.heard(Promise) == [1])
    assert stage.engine.is_storage_full, "old work goes on, new work must still wait"
    await stage.engine.stop()
    await run


async def test_a_bug_in_the_machine_ends_the_engine(stage: Stage) -> None:
    run = stage.start()
    stage.add(1)
    await stage.settle(lambda: stage.heard(Promise) == [1])
    stage.add(2)
    assert stage.engine.submit(RaiseAsked())
    with pytest.raises(AssertionError, match="as asked"):
        await run
    await stage.engine.stop()
    assert stage.committed() == [[AmountAdded("a", 1)]]
    assert not stage.engine.submit(AmountAdded("a", 1))


async def test_a_bug_in_performing_ends_the_engine(memory: MemoryStore) -> None:
    def perform(effects: list[Effect]) -> None:
        assert not isinstance(effects[0], Promise), "a bug"

    shell: Shell[Event, Effect] = Shell(perform, to_records, TimeAdvanced)
    recovery = recover(memory, CODEC, CounterLedger)
    engine = Engine(recovery, memory, CODEC, shell, SystemClock(), INLINE)
    engine.submit(AmountAdded("a", 1))
    with pytest.raises(AssertionError, match="a bug"):
        await engine.run()
    assert len(list(memory.entries())) == 1


async def test_the_machine_is_woken_at_its_deadline_and_not_before(stage: Stage) -> None:
    run = stage.start()
    assert stage.engine.submit(AlarmSet(1_000_500))
    await stage.settle(lambda: stage.machine.state.alarm_ms is not None)
    stage.clock.advance(499)
    await asyncio.sleep(0.01)
    assert stage.machine.state.woken_at_ms == []
    stage.clock.advance(51)
    await stage.settle(lambda: stage.machine.state.woken_at_ms == [1_000_550])
    await stage.engine.stop()
    await run
    assert stage.committed() == [[AlarmSet(1_000_500)], [TimeAdvanced(1_000_550)]]


async def test_the_time_comes_last_in_a_group(memory: MemoryStore) -> None:
    stage = begin_on(memory)
    run = stage.start()
    assert stage.engine.submit(AlarmSet(1_000_001))
    await stage.settle(lambda: stage.machine.state.alarm_ms is not None)
    stage.clock.advance(1)
    stage.add(1)
    await stage.settle(lambda: stage.heard(Promise) == [1])
    assert stage.committed()[1] == [AmountAdded("a", 1), TimeAdvanced(1_000_001)]
    await stage.engine.stop()
    await run


async def test_a_deadline_that_does_not_move_makes_no_busy_loop(memory: MemoryStore) -> None:
    stage = begin_on(memory, wake_interval_min_ms=100)
    run = stage.start()
    assert stage.engine.submit(AlarmSet(5, sticks=True))
    await stage.settle(lambda: len(stage.machine.state.woken_at_ms) == 1)
    for _ in range(3):
        stage.clock.advance(33)
        await asyncio.sleep(0.003)
    assert len(stage.machine.state.woken_at_ms) == 1
    stage.clock.advance(1)
    await stage.settle(lambda: len(stage.machine.state.woken_at_ms) == 2)
    await stage.engine.stop()
    await run


async def test_real_time_wakes_the_machine(memory: MemoryStore) -> None:
    clock = SystemClock()
    stage = begin_on(memory)
    stage.begin(EngineSettings(snapshots_by_fork=False, bytes_free_min=0), clock)
    run = stage.start()
    due_ms = clock.now_ms() + 20
    assert stage.engine.submit(AlarmSet(due_ms))
    await stage.settle(lambda: len(stage.machine.state.woken_at_ms) == 1)
    assert due_ms <= stage.machine.state.woken_at_ms[0]
    await stage.engine.stop()
    await run


async def test_a_clock_behind_the_journal_is_a_bug(memory: MemoryStore) -> None:
    stage = begin_on(memory)
    run = stage.start()
    stage.add(1)
    await stage.engine.stop()
    await run
    stage.clock = type(stage.clock)(5)
    stage.begin(INLINE)
    stage.add(1)
    with pytest.raises(AssertionError, match="clock"):
        await stage.engine.run()
