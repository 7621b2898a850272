"""What an owner earns for verified work."""

from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.pricing import Plan, reward_micro

PLAN = Plan()
amounts = st.integers(0, 10**12)


def test_the_energy_is_paid_for_at_the_wall() -> None:
    assert reward_micro(PLAN, 1_000_000, 0) == PLAN.energy_micro_per_kwh


def test_the_work_is_paid_for_by_the_million_tokens() -> None:
    assert reward_micro(PLAN, 0, 1_000_000) == PLAN.reward_micro_per_million_tokens


def test_both_are_added_before_they_are_rounded() -> None:
    plan = Plan(energy_micro_per_kwh=500_000, reward_micro_per_million_tokens=500_000)
    assert reward_micro(plan, 1, 0) == 0
    assert reward_micro(plan, 0, 1) == 0
    assert reward_micro(plan, 1, 1) == 1, "two halves are one"


def test_nothing_earns_nothing() -> None:
    assert reward_micro(PLAN, 0, 0) == 0
    assert reward_micro(Plan(0, 0), 10**9, 10**9) == 0


@given(energy_mwh=amounts, tokens=amounts, more=amounts)
def test_more_work_never_earns_less(energy_mwh: int, tokens: int, more: int) -> None:
    earned = reward_micro(PLAN, energy_mwh, tokens)
    assert earned >= 0
    assert reward_micro(PLAN, energy_mwh + more, tokens) >= earned
    assert reward_micro(PLAN, energy_mwh, tokens + more) >= earned


@given(parts=st.lists(st.tuples(amounts, amounts), max_size=20))
def test_no_dust_is_paid_twice(parts: list[tuple[int, int]]) -> None:
    """Work handed in piece by piece never earns more than the same work handed in at once."""
    whole = reward_micro(PLAN, sum(mwh for mwh, _ in parts), sum(tokens for _, tokens in parts))
    pieces = sum(reward_micro(PLAN, mwh, tokens) for mwh, tokens in parts)
    assert whole - len(parts) <= pieces <= whole
