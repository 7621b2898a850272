"""The laws of the owner policy, over any policy and any readings."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core.charge_first import next_departure
from terafleet.core.day_use import NOTHING_USED, DayUse, with_link_bytes, with_wear
from terafleet.core.hours import Window, holds, next_edge_ms, week_ms
from terafleet.core.limits import LIMITS, QUIET_FAN, Limit, levels_of
from terafleet.core.local_time import (
    DAYS_PER_WEEK,
    MINUTES_PER_DAY,
    MS_PER_DAY,
    MS_PER_WEEK,
    local_day,
    minute_of_day,
    weekday_of,
)
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_turns import next_change_ms
from terafleet.core.readings import SENSORS, Readings
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import missing_sensors, refusals
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE
from terafleet.core.wear import Wear
from terafleet.core.written_time import minute_of
from tests.core.policy_world import (
    MONDAY_MS,
    WELL,
    policies,
    readings,
    well_enough,
    windows,
    with_limit,
)

few = settings(max_examples=40)
"""A policy has some fifty fields: drawing one takes longer than looking at it."""

moments = st.integers(0, 14 * MS_PER_DAY).map(lambda ms: MONDAY_MS + ms)


def fresh(sample: Readings, now_ms: int, **changes: Any) -> Readings:
    """The sample as it would be read at this moment, but for changes."""
    return msgspec.structs.replace(sample, at_ms=now_ms, **changes)


@few
@given(policies, readings, st.booleans(), st.integers(0, 2 * MS_PER_HOUR))
def test_a_permit_means_that_all_is_known_and_well(
    policy: OwnerPolicy, sample: Readings, is_permitting: bool, age_ms: int
) -> None:
    now_ms = MONDAY_MS + age_ms
    found = refusals(policy, sample, NOTHING_USED, is_permitting, now_ms)
    if age_ms > policy.giving_back.stale_ms:
        assert Refusal.READING_STALE in found
        return
    assert (Refusal.READING_MISSING in found) == bool(missing_sensors(policy, sample, now_ms))
    if found:
        return
    assert sample.is_parked is True
    assert sample.is_driver_present is False
    assert sample.is_plugged_in is True or not policy.charge.needs_plug
    assert sample.is_updating is not True
    assert sample.is_in_service is not True
    assert not policy.is_paused or policy.resume_at
    for limit in LIMITS:
        levels = levels_of(policy, limit)
        if levels is None or limit is QUIET_FAN:
            continue
        value = getattr(sample, limit.sensor)
        assert value is not None
        assert value <= levels.stop if limit.is_ceiling else value >= levels.stop


@few
@given(st.data())
def test_who_may_begin_may_go_on(data: st.DataObject) -> None:
    """The level at which a car begins is never easier than the one at which it goes on."""
    policy = data.draw(policies)
    sample = data.draw(readings | well_enough(policy))
    begins = refusals(policy, sample, NOTHING_USED, False, MONDAY_MS)
    goes_on = refusals(policy, sample, NOTHING_USED, True, MONDAY_MS)
    assert set(goes_on) <= set(begins)


@few
@given(policies, readings, st.booleans(), st.sampled_from(SENSORS))
def test_a_reading_that_goes_missing_never_permits_more(
    policy: OwnerPolicy, sample: Readings, is_permitting: bool, sensor: str
) -> None:
    """What is not known counts as a reason, but for what only a reading can tell."""
    only_told = {"departure_at_ms", "is_preconditioning", "is_sentry_on", "is_updating"}
    if sensor in only_told | {"is_in_service"}:
        return
    less = fresh(sample, MONDAY_MS, **{sensor: None})
    before = refusals(policy, sample, NOTHING_USED, is_permitting, MONDAY_MS)
    after = refusals(policy, less, NOTHING_USED, is_permitting, MONDAY_MS)
    assert after or not before


@few
@given(policies, readings, st.booleans())
def test_a_refusal_is_told_once_and_always_in_one_order(
    policy: OwnerPolicy, sample: Readings, is_permitting: bool
) -> None:
    found = refusals(policy, sample, NOTHING_USED, is_permitting, MONDAY_MS)
    order = [Refusal.OWNER_PAUSED, *Refusal]
    assert list(found) == sorted(set(found), key=order.index)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda one: one.name)
@given(stop=st.integers(1, 60), share=st.floats(0, 0.99), is_permitting=st.booleans())
def test_what_stays_between_two_levels_changes_nothing(
    limit: Limit, stop: int, share: float, is_permitting: bool
) -> None:
    policy = with_limit(limit, stop)
    levels = levels_of(policy, limit)
    assert levels is not None
    assert levels.begin != stop
    value = stop + share * (levels.begin - stop)
    sample = fresh(WELL, MONDAY_MS, **{limit.sensor: value})
    found = refusals(policy, sample, NOTHING_USED, is_permitting, MONDAY_MS)
    assert found == (() if is_permitting else (limit.refusal,))


@few
@given(
    policy=policies,
    day_bytes=st.integers(0, 2_000),
    flash_bytes=st.integers(0, 10**10),
    is_permitting=st.booleans(),
)
def test_a_cap_is_never_passed(
    policy: OwnerPolicy, day_bytes: int, flash_bytes: int, is_permitting: bool
) -> None:
    day = local_day(MONDAY_MS)
    worn = with_wear(NOTHING_USED, Wear(flash_bytes=flash_bytes), day)
    usage = with_link_bytes(worn, day_bytes, day)
    found = refusals(policy, WELL, usage, is_permitting, MONDAY_MS)
    cap = policy.link.day_bytes_max
    assert (Refusal.DATA_CAP in found) == (cap is not None and day_bytes >= cap)
    if flash_bytes >= policy.wear.flash_bytes:
        assert Refusal.WEAR_BUDGET in found
    assert usage == DayUse(wear=usage.wear, link_day=day, link_bytes=day_bytes)


Answers = Callable[[int], tuple[tuple[Refusal, ...], ...]]


def answers_of(policy: OwnerPolicy, sample: Readings, usage: DayUse) -> Answers:
    """What the policy says of the same, fresh readings at a moment, at both levels."""

    def answers(now_ms: int) -> tuple[tuple[Refusal, ...], ...]:
        again = fresh(sample, now_ms)
        return tuple(refusals(policy, again, usage, is_on, now_ms) for is_on in (True, False))

    return answers


def patient(policy: OwnerPolicy) -> OwnerPolicy:
    """The policy that believes in a sample for ever, as it is read anew all the time."""
    giving_back = msgspec.structs.replace(policy.giving_back, stale_ms=10**12)
    return msgspec.structs.replace(policy, giving_back=giving_back)


@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_time_changes_nothing_before_the_next_change(data: st.DataObject) -> None:
    """Minute by minute over two weeks, the millisecond before each change included."""
    policy = patient(data.draw(policies))
    sample = data.draw(well_enough(policy))
    day = local_day(MONDAY_MS + sample.utc_offset_ms)
    usage = with_link_bytes(NOTHING_USED, 1_000, day)
    answers = answers_of(policy, sample, usage)
    end_ms = MONDAY_MS + 14 * MS_PER_DAY
    begin_ms = now_ms = MONDAY_MS + data.draw(st.integers(0, MS_PER_MINUTE))
    told = answers(now_ms)
    while now_ms < end_ms:
        change_ms = next_change_ms(policy, fresh(sample, now_ms), now_ms)
        assert change_ms is not None
        assert change_ms > now_ms
        for minute_ms in range(now_ms + MS_PER_MINUTE, min(change_ms, end_ms), MS_PER_MINUTE):
            assert answers(minute_ms) == told
        assert answers(change_ms - 1) == told
        now_ms, told = change_ms, answers(change_ms)
    assert now_ms > begin_ms


@few
@given(data=st.data(), now_ms=moments, share=st.floats(0, 1))
def test_before_the_next_change_no_moment_differs(
    data: st.DataObject, now_ms: int, share: float
) -> None:
    policy = patient(data.draw(policies))
    sample = data.draw(well_enough(policy))
    answers = answers_of(policy, sample, NOTHING_USED)
    change_ms = next_change_ms(policy, fresh(sample, now_ms), now_ms)
    assert change_ms is not None
    between_ms = now_ms + int(share * (change_ms - 1 - now_ms))
    assert answers(now_ms) == answers(between_ms) == answers(change_ms - 1)


@few
@given(policies, readings, st.integers(0, 2 * MS_PER_HOUR))
def test_readings_that_grow_stale_are_a_change(
    policy: OwnerPolicy, sample: Readings, age_ms: int
) -> None:
    now_ms = MONDAY_MS + age_ms
    stale_ms = MONDAY_MS + policy.giving_back.stale_ms + 1
    change_ms = next_change_ms(policy, sample, now_ms)
    if now_ms < stale_ms:
        assert change_ms is not None
        assert now_ms < change_ms <= stale_ms
    elif change_ms is not None:
        assert Refusal.OWNER_PAUSED in refusals(policy, sample, NOTHING_USED, True, now_ms)


def holds_by_minute(of: tuple[Window, ...], local_ms: int) -> bool:
    """Whether a window holds, by its words alone."""
    names = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    weekday, minute = weekday_of(local_ms), minute_of_day(local_ms)
    today, before = names[weekday], names[weekday - 1]
    for window in of:
        begin, end = minute_of(window.begin), minute_of(window.end)
        assert begin is not None
        assert end is not None
        if begin < end and today in window.days and begin <= minute < end:
            return True
        if begin > end and today in window.days and minute >= begin:
            return True
        if begin > end and before in window.days and minute < end:
            return True
    return False


@given(windows, moments)
def test_a_window_holds_when_its_words_say_so(of: tuple[Window, ...], local_ms: int) -> None:
    assert holds(of, local_ms) == holds_by_minute(of, local_ms)
    edge_ms = next_edge_ms(of, local_ms)
    assert (edge_ms is None) == (not of)
    if edge_ms is not None:
        assert 0 < edge_ms <= MS_PER_WEEK
        assert holds(of, local_ms + edge_ms - 1) == holds(of, local_ms)


@given(windows, moments)
def test_weeks_are_alike(of: tuple[Window, ...], local_ms: int) -> None:
    assert week_ms(local_ms) == week_ms(local_ms + MS_PER_WEEK)
    assert holds(of, local_ms) == holds(of, local_ms + MS_PER_WEEK)
    assert week_ms(MONDAY_MS) == 0
    assert DAYS_PER_WEEK * MINUTES_PER_DAY * MS_PER_MINUTE == MS_PER_WEEK


@few
@given(data=st.data(), now_ms=moments)
def test_the_next_departure_comes_and_is_the_nearest(data: st.DataObject, now_ms: int) -> None:
    policy = data.draw(policies)
    sample = data.draw(well_enough(policy))
    found = next_departure(policy.charge, sample, now_ms)
    if found is None:
        assert not policy.charge.departures
        return
    assert now_ms < found.at_ms
    if sample.departure_at_ms is not None and sample.departure_at_ms > now_ms:
        assert found.at_ms <= sample.departure_at_ms
    later = next_departure(policy.charge, sample, found.at_ms - 1)
    assert later == found, "until then it stays the nearest"


@few
@given(st.data(), st.integers(-3, 3), moments)
def test_a_jump_of_the_places_clock_is_a_jump_in_time(
    data: st.DataObject, jump_hours: int, now_ms: int
) -> None:
    """Summer time comes in with the readings: the policy says what it says at that local time."""
    policy = data.draw(policies)
    policy = msgspec.structs.replace(policy, is_paused=False)
    sample = fresh(data.draw(well_enough(policy)), now_ms, departure_at_ms=None)
    jump_ms = jump_hours * MS_PER_HOUR
    jumped = fresh(sample, now_ms, utc_offset_ms=sample.utc_offset_ms + jump_ms)
    later = fresh(sample, now_ms + jump_ms)
    for is_permitting in (True, False):
        here = refusals(policy, jumped, NOTHING_USED, is_permitting, now_ms)
        there = refusals(policy, later, NOTHING_USED, is_permitting, now_ms + jump_ms)
        assert here == there
