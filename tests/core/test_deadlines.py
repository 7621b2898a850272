"""What must be looked at when time alone has passed: nothing early, nothing missed."""

import random

from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.deadlines import Deadline, DeadlineKind, Deadlines
from terafleet.core.ids import LeaseId

LEASE, OTHER = LeaseId(1), LeaseId(2)
KINDS = list(DeadlineKind)


def test_nothing_is_due_when_nothing_was_added() -> None:
    deadlines = Deadlines()
    assert deadlines.next_ms() is None
    assert deadlines.due(10**12) == []
    assert deadlines.leases_due(10**12) == []


def test_the_earliest_comes_first_and_none_comes_early() -> None:
    deadlines = Deadlines()
    deadlines.add(300, DeadlineKind.SILENCE, "c")
    deadlines.add(100, DeadlineKind.GATEWAY, "a")
    deadlines.add(200, DeadlineKind.QUARANTINE, "b")
    assert deadlines.next_ms() == 100
    assert deadlines.due(99) == []
    assert [one.about for one in deadlines.due(200)] == ["a", "b"]
    assert deadlines.due(200) == [], "each comes once"
    assert deadlines.next_ms() == 300


def test_a_lease_is_due_in_the_second_after_it_is_overdue() -> None:
    deadlines = Deadlines()
    deadlines.watch_lease(LEASE, 1_000)
    deadlines.watch_lease(OTHER, 1_999)
    assert deadlines.next_ms() == 2_000
    assert deadlines.leases_due(1_999) == []
    assert deadlines.leases_due(2_000) == [LEASE, OTHER]
    assert deadlines.next_ms() is None


def test_a_lease_that_has_ended_leaves_nothing_behind() -> None:
    deadlines = Deadlines()
    for number in range(1_000):
        deadlines.watch_lease(LeaseId(number), number * 100)
        deadlines.forget_lease(LeaseId(number), number * 100)
    assert deadlines.next_ms() is None
    assert deadlines.image() == Deadlines().image()


def test_a_lease_that_has_ended_is_not_due() -> None:
    deadlines = Deadlines()
    deadlines.watch_lease(LEASE, 1_000)
    deadlines.watch_lease(OTHER, 1_000)
    deadlines.forget_lease(LEASE, 1_000)
    deadlines.forget_lease(LEASE, 1_000)
    assert deadlines.leases_due(5_000) == [OTHER]
    deadlines.forget_lease(OTHER, 1_000)


def test_a_second_may_be_watched_again_after_all_its_leases_have_ended() -> None:
    deadlines = Deadlines()
    deadlines.watch_lease(LEASE, 1_000)
    deadlines.forget_lease(LEASE, 1_000)
    deadlines.watch_lease(OTHER, 1_500)
    assert deadlines.next_ms() == 2_000
    assert deadlines.leases_due(2_000) == [OTHER]


moments = st.integers(0, 20_000)


@given(
    things=st.lists(st.tuples(moments, st.sampled_from(KINDS), st.sampled_from("abc"))),
    leases=st.lists(moments, max_size=30),
    steps=st.lists(st.integers(0, 5_000), max_size=12),
    seed=st.integers(0, 2**32),
)
def test_everything_comes_once_and_in_time(
    things: list[tuple[int, DeadlineKind, str]], leases: list[int], steps: list[int], seed: int
) -> None:
    chance = random.Random(seed)
    deadlines = Deadlines()
    for at_ms, kind, about in things:
        deadlines.add(at_ms, kind, about)
    watched = {LeaseId(number): at_ms for number, at_ms in enumerate(leases)}
    for lease_id, at_ms in watched.items():
        deadlines.watch_lease(lease_id, at_ms)
    ended = {lease_id for lease_id in watched if chance.random() < 0.4}
    for lease_id in ended:
        deadlines.forget_lease(lease_id, watched[lease_id])
    seen: list[Deadline] = []
    seen_leases: list[LeaseId] = []
    now_ms = 0
    for step_ms in [*steps, 30_000]:
        now_ms += step_ms
        if chance.random() < 0.3:
            deadlines = Deadlines(deadlines.image())
        due = deadlines.due(now_ms)
        assert all(one.at_ms <= now_ms for one in due)
        seen += due
        leases_due = deadlines.leases_due(now_ms)
        assert all(watched[one] < now_ms for one in leases_due)
        seen_leases += leases_due
        next_ms = deadlines.next_ms()
        assert next_ms is None or next_ms > now_ms
    assert sorted((one.at_ms, one.kind, one.about) for one in seen) == sorted(things)
    assert sorted(seen_leases) == sorted(set(watched) - ended)
