"""What clock, codec, inbox and settings promise by themselves."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.clock import ManualClock, SystemClock
from terafleet.engine.codec import Codec, JournalUnreadable
from terafleet.engine.inbox import Inbox
from terafleet.engine.ports import Blob
from terafleet.engine.settings import EngineSettings
from terafleet.engine.storage import StorageWatch
from tests.contract.counter_ledger import (
    CODEC,
    AlarmSet,
    AmountAdded,
    Announce,
    Effect,
    Event,
    KeepTotal,
    Promise,
    TimeAdvanced,
)

NS_PER_MS = 1_000_000


class Hands:
    """A wall clock and a monotonic one that a test moves."""

    def __init__(self, wall_ms: int) -> None:
        self.wall_ms = wall_ms
        self.elapsed_ms = 77

    def wall_ns(self) -> int:
        return self.wall_ms * NS_PER_MS

    def elapsed_ns(self) -> int:
        return self.elapsed_ms * NS_PER_MS


def test_the_clock_begins_at_wall_time_and_does_not_see_its_steps() -> None:
    hands = Hands(wall_ms=1_000)
    clock = SystemClock(500, hands.wall_ns, hands.elapsed_ns)
    assert clock.now_ms() == 1_000
    hands.elapsed_ms += 5
    hands.wall_ms = 1
    assert clock.now_ms() == 1_005
    hands.wall_ms = 9_000
    assert clock.now_ms() == 1_005
    assert clock.wall_ahead_ms() == 7_995


def test_the_clock_goes_on_from_the_journal_when_the_wall_clock_was_stepped_back() -> None:
    hands = Hands(wall_ms=1_000)
    clock = SystemClock(5_000, hands.wall_ns, hands.elapsed_ns)
    assert clock.now_ms() == 5_000
    hands.elapsed_ms += 3
    assert clock.now_ms() == 5_003, "it does not stand still until the wall clock is there"
    assert clock.wall_ahead_ms() == -4_003


def test_the_real_clock_goes_forward() -> None:
    clock = SystemClock()
    times = [clock.now_ms() for _ in range(1000)]
    assert times == sorted(times)
    assert abs(clock.wall_ahead_ms()) < 1000


def test_a_clock_moved_by_hand_never_goes_back() -> None:
    clock = ManualClock(5)
    clock.advance(0)
    clock.advance(2)
    assert clock.now_ms() == 7
    with pytest.raises(AssertionError):
        clock.advance(-1)


events = st.lists(
    st.builds(AmountAdded, account=st.text(), amount=st.integers(-(2**63), 2**64 - 1))
    | st.builds(AlarmSet, at_ms=st.integers(0, 2**63), sticks=st.booleans())
    | st.builds(TimeAdvanced, at_ms=st.integers(0, 2**63))
)


@given(events)
def test_events_come_back_as_they_went(group: list[Event]) -> None:
    assert CODEC.decode_events(CODEC.encode_events(group)) == group


def test_effects_come_back_as_they_went() -> None:
    effects: list[Effect] = [Promise("a", 1), KeepTotal("ä", -1), Announce("", 0)]
    assert CODEC.decode_effects(CODEC.encode_effects(effects)) == effects


@given(st.binary(max_size=50))
def test_other_bytes_are_refused_by_name(body: bytes) -> None:
    for decode in (CODEC.decode_events, CODEC.decode_effects):
        try:
            decoded = decode(body)
        except JournalUnreadable:
            continue
        assert isinstance(decoded, list)


def test_an_untagged_union_is_no_vocabulary() -> None:
    class Bare(msgspec.Struct):
        x: int

    with pytest.raises(TypeError):
        Codec(Bare | AmountAdded, Promise, 1)


def test_a_schema_is_readable_if_it_was_said_so() -> None:
    codec: Codec[Event, Promise] = Codec(Event, Promise, 3, schemas_readable=(1,))
    codec.check_schema(1)
    codec.check_schema(3)
    with pytest.raises(JournalUnreadable):
        codec.check_schema(2)


@given(
    puts=st.lists(st.none() | st.integers(0, 50)),
    takes=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 80))),
)
def test_an_inbox_loses_nothing_and_keeps_order(
    puts: list[int | None], takes: list[tuple[int, int]]
) -> None:
    inbox: Inbox[int] = Inbox(events_max=1000, bytes_max=10_000)
    for number, size in enumerate(puts):
        blobs = [] if size is None else [Blob(str(number), b"x" * size)]
        assert inbox.put(number, blobs)
    taken: list[int] = []
    for events_max, bytes_max in [*takes, (1000, 10_000), (1000, 10_000)]:
        before = len(inbox)
        group, blobs_taken = inbox.take(events_max, bytes_max)
        assert len(group) <= events_max
        assert group or not before
        assert [int(blob.name) for blob in blobs_taken] == [n for n in group if puts[n] is not None]
        sizes = [size for n in group if (size := puts[n])]
        assert sum(sizes) <= bytes_max or len(sizes) == 1
        taken += group
    assert taken == list(range(len(puts)))
    assert len(inbox) == 0


def test_an_inbox_gives_room_back() -> None:
    inbox: Inbox[int] = Inbox(events_max=10, bytes_max=100)
    for _ in range(5):
        assert inbox.put(1, [Blob("b", b"x" * 90)])
        assert not inbox.put(2, [Blob("b", b"x" * 90)])
        assert inbox.put(3)
        assert inbox.take(10, 1000)[0] == [1, 3]


class CountingStore(MemoryStore):
    """Counts how often it was asked for the room that is left."""

    asked = 0

    def bytes_free(self) -> int | None:
        """No limit, and one more question."""
        self.asked += 1
        return None


def test_storage_is_looked_at_once_an_interval_at_most() -> None:
    store = CountingStore()
    said: list[bool] = []
    watch = StorageWatch(store, EngineSettings(check_interval_ms=1000), said.append)
    for now_ms in range(0, 3001, 100):
        watch.check(now_ms)
    assert store.asked == 4
    watch.commit_failed()
    watch.commit_failed()
    watch.commit_passed_again()
    watch.check(3001)
    assert said == [True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"group_max": 0},
        {"retry_ms_min": 5001},
        {"bytes_free_min": 10, "bytes_free_enough": 9},
        {"wake_interval_min_ms": 0},
    ],
)
def test_settings_that_cannot_work_are_a_bug(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        EngineSettings(**wrong)  # type: ignore[arg-type]
