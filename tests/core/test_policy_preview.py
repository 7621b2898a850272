"""What a policy would have lent: nothing is lost between lent and refused, and gaps refuse."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.asking_price import asking_price_per_hour
from terafleet.core.day_use import DayUse
from terafleet.core.guard_accounts import conditions_of
from terafleet.core.policy import OwnerPolicy, TemperaturePolicy
from terafleet.core.policy_preview import (
    HOLD_MS,
    NOT_RECORDED,
    Lending,
    Preview,
    preview,
    working,
)
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE, MS_PER_S, energy_mwh

BEGIN_MS = 1_700_000_040_000
"""A full minute."""
RICH = Lending(computer_mw=60_000, reward_micro_per_hour=5_000_000)


def policy_that_settles(settle_ms: int) -> OwnerPolicy:
    """The default policy with another time to settle."""
    policy = OwnerPolicy()
    giving_back = msgspec.structs.replace(policy.giving_back, settle_ms=settle_ms)
    return msgspec.structs.replace(policy, giving_back=giving_back)


AT_ONCE = policy_that_settles(0)


def rule(
    policy: OwnerPolicy,
    readings: Readings | None,
    used: DayUse,
    is_permitting: bool,
    now_ms: int,
) -> tuple[str, ...]:
    """A small rule with a flag, and a floor of two levels."""
    del policy, used
    assert readings is not None
    assert readings.at_ms == now_ms, "a recorded sample is never stale"
    found = [] if readings.is_parked is True else ["not_parked"]
    floor = 50 if is_permitting else 60
    if not (readings.soc_percent or 0) >= floor:
        found.append("soc_below_floor")
    return tuple(found)


def sample(at_s: int, **values: Any) -> Readings:
    """A parked car with enough charge, but for what is said."""
    said = {"is_parked": True, "soc_percent": 80.0} | values
    return Readings(BEGIN_MS + at_s * MS_PER_S, **said)


def every(step_s: int, until_s: int, **values: Any) -> list[Readings]:
    """Samples that say the same."""
    return [sample(at_s, **values) for at_s in range(0, until_s + 1, step_s)]


def lent(samples: Iterable[Readings], policy: OwnerPolicy = AT_ONCE, **more: Any) -> Preview:
    """The preview by the small rule."""
    return preview(samples, policy, rule, more.pop("lending", RICH), **more)


def test_a_parked_night_is_lent_but_for_settling() -> None:
    seen = lent(every(600, 8 * 3_600), policy_that_settles(60_000))
    assert seen.lent_ms == 8 * MS_PER_HOUR - 60_000
    assert seen.reasons_ms == {"settling": 60_000}
    assert (seen.permits, seen.longest_permit_ms) == (1, seen.lent_ms)
    assert (seen.stays, seen.longest_stay_ms) == (1, 8 * MS_PER_HOUR)
    assert seen.computer_mwh == energy_mwh(60_000, seen.lent_ms)
    asked = asking_price_per_hour(AT_ONCE.terms, conditions_of(sample(0), BEGIN_MS), 60_000)
    assert seen.reward_micro == 5_000_000 * seen.lent_ms // MS_PER_HOUR
    assert seen.earned_micro == pytest.approx(
        (5_000_000 - asked.spent_micro) * seen.lent_ms / MS_PER_HOUR, abs=2
    )


def test_a_gap_refuses_after_the_time_that_a_sample_holds() -> None:
    seen = lent([sample(0), sample(3 * 3_600), sample(3 * 3_600 + 60)])
    assert seen.lent_ms == HOLD_MS + 60_000
    assert seen.reasons_ms == {NOT_RECORDED: 3 * MS_PER_HOUR - HOLD_MS}
    assert seen.permits == seen.stays == 2


def test_a_span_counts_what_lies_in_it_and_refuses_what_was_not_recorded() -> None:
    span_ms = (BEGIN_MS - MS_PER_HOUR, BEGIN_MS + 30 * MS_PER_MINUTE)
    seen = lent(every(300, 3_600), span_ms=span_ms)
    assert (seen.lent_ms, seen.reasons_ms) == (1_800_000, {NOT_RECORDED: MS_PER_HOUR})
    assert (seen.from_ms, seen.until_ms) == span_ms
    nothing = lent([], span_ms=span_ms)
    assert nothing.reasons_ms == {NOT_RECORDED: 90 * MS_PER_MINUTE}
    before = lent([sample(-3_660)], span_ms=span_ms)
    assert before.lent_ms == HOLD_MS - MS_PER_MINUTE, "a sample before it holds into it"
    assert lent([]).refused_ms == lent([sample(0)]).lent_ms == 0, "no time, nothing lent"


def test_a_limit_with_two_levels_stops_at_one_and_begins_at_the_other() -> None:
    charges = [70, 55, 49, 55, 59, 60, 50]
    samples = [sample(60 * number, soc_percent=soc) for number, soc in enumerate(charges)]
    seen = lent([*samples, sample(420)])
    assert seen.lent_ms == 4 * MS_PER_MINUTE
    assert seen.reasons_ms == {"soc_below_floor": 3 * MS_PER_MINUTE}


def test_several_reasons_are_each_counted_whole() -> None:
    seen = lent(every(60, 600, is_parked=False, soc_percent=None))
    assert seen.refused_ms == 600_000
    assert seen.reasons_ms == {"not_parked": 600_000, "soc_below_floor": 600_000}


def test_work_that_pays_too_little_is_not_lent() -> None:
    seen = lent(every(60, 3_600), lending=Lending(60_000, 10_000))
    assert (seen.lent_ms, seen.earned_micro) == (0, 0)
    assert seen.reasons_ms == {"reward_too_low": MS_PER_HOUR}


def test_the_rule_is_asked_at_each_full_minute_as_hours_begin_and_end() -> None:
    def by_the_minute(*asked: Any) -> tuple[str, ...]:
        return ("quiet_hours",) if asked[4] // MS_PER_MINUTE % 2 else ()

    samples = [sample(-30), sample(570)]
    seen = preview(samples, AT_ONCE, by_the_minute, RICH)
    assert seen.lent_ms == seen.reasons_ms["quiet_hours"] == 5 * MS_PER_MINUTE


def test_what_the_day_has_worn_is_told_to_the_rule() -> None:
    def capped(*asked: Any) -> tuple[str, ...]:
        used: DayUse = asked[2]
        return ("wear_budget",) if used.wear.worn.pack_mwh >= 300_000 else ()

    seen = preview(every(600, 4 * 3_600), AT_ONCE, capped, RICH)
    assert 0 < seen.lent_ms < 3 * MS_PER_HOUR
    assert seen.reasons_ms == {"wear_budget": 4 * MS_PER_HOUR - seen.lent_ms}


def test_samples_out_of_order_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        lent([sample(60), sample(0)])


def test_a_computer_that_works_is_as_warm_as_the_policy_lets_it_be() -> None:
    def warmth(policy: OwnerPolicy, recorded_c: float | None) -> float | None:
        return working(policy, sample(0, compute_temperature_c=recorded_c)).compute_temperature_c

    cool = msgspec.structs.replace(AT_ONCE, temperature=TemperaturePolicy(compute_c_max=45.0))
    assert warmth(cool, 20.0) == 45.0
    free = msgspec.structs.replace(AT_ONCE, temperature=TemperaturePolicy(compute_c_max=None))
    assert warmth(free, 20.0) == 60.0
    assert warmth(free, 80.0) == 80.0
    assert warmth(free, None) is None, "what the car does not say is counted as the guard does"


def test_an_owner_is_paid_what_is_asked_up_to_the_fleets_limit() -> None:
    asked = asking_price_per_hour(AT_ONCE.terms, conditions_of(sample(0), BEGIN_MS), 60_000)
    samples = every(60, 3_600)
    met = lent(samples, lending=Lending(60_000, asking_micro_per_hour_max=5_000_000))
    assert met.reward_micro == asked.total_micro
    assert met.earned_micro == asked.margin_micro
    less = lent(samples, lending=Lending(60_000, asking_micro_per_hour_max=asked.total_micro - 1))
    assert (less.lent_ms, less.reasons_ms) == (0, {"reward_too_low": MS_PER_HOUR})


SAMPLES = st.lists(
    st.builds(
        lambda at_s, is_parked, soc: sample(at_s, is_parked=is_parked, soc_percent=soc),
        st.integers(0, 1_500),
        st.sampled_from([True, True, True, False, None]),
        st.sampled_from([None, 40.0, 50.0, 55.0, 60.0, 90.0]),
    ),
    max_size=12,
).map(lambda samples: sorted(samples, key=lambda one: one.at_ms))
SPANS = st.none() | st.tuples(st.integers(-300, 900), st.integers(0, 1_200)).map(
    lambda pair: (BEGIN_MS + pair[0] * 1_000, BEGIN_MS + (pair[0] + pair[1]) * 1_000)
)


def second_by_second(
    samples: list[Readings], settle_ms: int, span_ms: tuple[int, int]
) -> tuple[int, dict[str, int]]:
    """The same by brute force: lent ms and the reasons' ms."""
    lent_ms, reasons_ms = 0, dict[str, int]()
    is_permitting, well_ms = False, 0
    for at_ms in range(*span_ms, MS_PER_S):
        past = [one for one in samples if one.at_ms <= at_ms]
        found: tuple[str, ...] = (NOT_RECORDED,)
        if past and at_ms - past[-1].at_ms < HOLD_MS:
            held = msgspec.structs.replace(past[-1], at_ms=at_ms)
            found = rule(AT_ONCE, held, DayUse(), is_permitting, at_ms)
            found = found and rule(AT_ONCE, held, DayUse(), False, at_ms)
        if found:
            is_permitting, well_ms = False, 0
        elif not is_permitting:
            is_permitting = well_ms >= settle_ms
            well_ms += MS_PER_S
            found = () if is_permitting else ("settling",)
        lent_ms += 0 if found else MS_PER_S
        for reason in found:
            reasons_ms[reason] = reasons_ms.get(reason, 0) + MS_PER_S
    return lent_ms, reasons_ms


@given(SAMPLES, SPANS, st.sampled_from([0, 1_000, 60_000, 90_000]))
def test_nothing_is_lost_between_lent_and_refused(
    samples: list[Readings], span_ms: tuple[int, int] | None, settle_ms: int
) -> None:
    seen = lent(iter(samples), policy_that_settles(settle_ms), span_ms=span_ms)
    assert seen.lent_ms + seen.refused_ms == seen.until_ms - seen.from_ms
    assert max(seen.reasons_ms.values(), default=0) <= seen.refused_ms
    assert sum(seen.reasons_ms.values()) >= seen.refused_ms
    assert seen.longest_permit_ms <= seen.lent_ms
    assert bool(seen.permits) == bool(seen.lent_ms)
    assert seen.earned_micro >= 0
    whole = span_ms or ((samples[0].at_ms, samples[-1].at_ms) if samples else (0, 0))
    assert (seen.lent_ms, seen.reasons_ms) == second_by_second(samples, settle_ms, whole)
