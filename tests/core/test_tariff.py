"""Prices by weekday and time of day: lookup, means, what is dearest, and what makes no sense."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.local_time import (
    MINUTES_PER_DAY,
    MS_PER_DAY,
    MS_PER_WEEK,
    minute_of_day,
    weekday_of,
)
from terafleet.core.tariff import (
    Tariff,
    TariffWindow,
    dearest_price,
    energy_price,
    mean_price,
    price_at,
    tariff_faults,
)
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE, MWH_PER_KWH

MONDAY_MS = 4 * MS_PER_DAY
"""5 January 1970 was a Monday."""

NIGHT = TariffWindow(56_200, begin_minute=22 * 60, end_minute=6 * 60)
PEAK = TariffWindow(266_700, begin_minute=12 * 60, end_minute=18 * 60, weekdays=(0, 1, 2, 3, 4))
TARIFF = Tariff(92_000, (NIGHT, PEAK))
"""In the manner of a time-of-use tariff for electric cars (SCE TOU-EV-4, 2019)."""

prices = st.integers(0, 10**6)
weekdays = st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days)))
minutes = st.integers(0, MINUTES_PER_DAY - 1)
windows = st.builds(TariffWindow, prices, minutes, st.integers(0, MINUTES_PER_DAY), weekdays)


@st.composite
def tariffs(draw: st.DrawFn) -> Tariff:
    """Tariffs without faults: cuts of the day, the last window past midnight."""
    cuts = sorted(draw(st.sets(minutes, min_size=2, max_size=5)))
    pairs = zip(cuts, [*cuts[1:], cuts[0]], strict=True)
    found = [TariffWindow(draw(prices), *pair, draw(weekdays)) for pair in pairs]
    kept = draw(st.lists(st.sampled_from(found), unique=True, max_size=5))
    return Tariff(draw(prices), tuple(kept))


times = st.integers(0, 2 * MS_PER_WEEK)


def at(day: int, hour: float) -> int:
    """A local time in a week: 0 is Monday."""
    return MONDAY_MS + day * MS_PER_DAY + round(hour * MS_PER_HOUR)


def test_weekdays_and_minutes() -> None:
    assert weekday_of(0) == 3, "1 January 1970 was a Thursday"
    assert [weekday_of(at(day, 0)) for day in range(7)] == list(range(7))
    assert weekday_of(at(0, 0) - 1) == 6
    assert minute_of_day(at(2, 13.5)) == 13 * 60 + 30
    assert minute_of_day(at(2, 0) - 1) == MINUTES_PER_DAY - 1


def test_a_flat_tariff_has_one_price() -> None:
    assert {price_at(Tariff(123), at(day, hour)) for day in range(7) for hour in range(24)} == {123}


@pytest.mark.parametrize(
    ("day", "hour", "price"),
    [
        (0, 11.99, 92_000),
        (0, 12.0, 266_700),
        (4, 17.99, 266_700),
        (4, 18.0, 92_000),
        (5, 12.0, 92_000),
        (0, 22.0, 56_200),
        (6, 23.99, 56_200),
        (0, 0.0, 56_200),
        (0, 6.0, 92_000),
    ],
)
def test_the_window_that_holds_has_the_price(day: int, hour: float, price: int) -> None:
    assert price_at(TARIFF, at(day, hour)) == price


def test_a_window_past_midnight_belongs_to_the_day_it_begins_on() -> None:
    friday = Tariff(1, (msgspec.structs.replace(NIGHT, weekdays=(4,)),))
    assert price_at(friday, at(4, 23)) == price_at(friday, at(5, 5)) == 56_200
    assert price_at(friday, at(4, 5)) == price_at(friday, at(5, 23)) == 1
    sunday = Tariff(1, (msgspec.structs.replace(NIGHT, weekdays=(6,)),))
    assert price_at(sunday, at(6, 23)) == price_at(sunday, at(0, 5)) == 56_200


def test_the_mean_weighs_each_price_by_its_time() -> None:
    assert mean_price(TARIFF, at(0, 11), 2 * MS_PER_HOUR) == (92_000 + 266_700) // 2
    assert mean_price(TARIFF, at(0, 11), 3 * MS_PER_HOUR) == 208_467, "208,466.7 rounded up"
    assert mean_price(TARIFF, at(0, 12), 0) == 266_700


def test_the_dearest_moment_counts_with_both_ends() -> None:
    assert dearest_price(TARIFF, at(0, 9), 3 * MS_PER_HOUR - 1) == 92_000
    assert dearest_price(TARIFF, at(0, 9), 3 * MS_PER_HOUR) == 266_700
    assert dearest_price(TARIFF, at(0, 23), 0) == 56_200
    assert dearest_price(TARIFF, at(5, 0), 10 * MS_PER_WEEK) == 266_700


def test_energy_is_rounded_up_once() -> None:
    assert energy_price(Tariff(300_000), MWH_PER_KWH, at(0, 0), MS_PER_HOUR) == 300_000
    assert energy_price(Tariff(300_000), 1, at(0, 0), MS_PER_HOUR) == 1
    assert energy_price(Tariff(300_000), 0, at(0, 0), MS_PER_HOUR) == 0


@given(
    tariff=tariffs(),
    local_ms=times,
    duration_minutes=st.integers(1, 3 * MINUTES_PER_DAY),
    energy_mwh=st.integers(0, 10**8),
)
def test_the_mean_is_that_of_all_minutes(
    tariff: Tariff, local_ms: int, duration_minutes: int, energy_mwh: int
) -> None:
    begin_ms = local_ms - local_ms % MS_PER_MINUTE
    each_minute = [
        price_at(tariff, begin_ms + each * MS_PER_MINUTE) for each in range(duration_minutes)
    ]
    duration_ms = duration_minutes * MS_PER_MINUTE
    assert mean_price(tariff, begin_ms, duration_ms) == -(-sum(each_minute) // duration_minutes)
    exact = energy_mwh * sum(each_minute)
    rounded = energy_price(tariff, energy_mwh, begin_ms, duration_ms)
    assert 0 <= rounded * MWH_PER_KWH * duration_minutes - exact < MWH_PER_KWH * duration_minutes
    assert dearest_price(tariff, begin_ms, duration_ms - 1) == max(each_minute)


def test_a_mean_goes_over_any_number_of_weeks() -> None:
    """30 of 168 hours at the peak, 56 in the night."""
    whole = -(-(30 * 266_700 + 56 * 56_200 + 82 * 92_000) // 168)
    assert mean_price(TARIFF, at(2, 15), MS_PER_WEEK) == whole
    assert mean_price(TARIFF, at(2, 15), 5 * MS_PER_WEEK) == whole
    assert mean_price(TARIFF, at(2, 15), 5 * MS_PER_WEEK + 3 * MS_PER_HOUR) > whole


@given(tariff=tariffs(), local_ms=times, duration_ms=times, energy_mwh=st.integers(0, 10**8))
def test_weeks_are_alike(tariff: Tariff, local_ms: int, duration_ms: int, energy_mwh: int) -> None:
    whole = energy_price(tariff, energy_mwh, local_ms, duration_ms)
    assert energy_price(tariff, energy_mwh, local_ms + MS_PER_WEEK, duration_ms) == whole
    assert whole <= -(-energy_mwh * dearest_price(tariff, local_ms, duration_ms) // MWH_PER_KWH)


@given(tariff=tariffs(), local_ms=times, parts=st.lists(st.integers(0, MS_PER_DAY), max_size=5))
def test_pieces_never_ask_less_than_the_whole(
    tariff: Tariff, local_ms: int, parts: list[int]
) -> None:
    """One mWh for each ms, so that power is even."""
    at_ms, pieces = local_ms, 0
    for part_ms in parts:
        pieces += energy_price(tariff, part_ms, at_ms, part_ms)
        at_ms += part_ms
    assert pieces >= energy_price(tariff, sum(parts), local_ms, sum(parts))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"micro_per_kwh": -1}, "windows[0].micro_per_kwh"),
        ({"micro_per_kwh": 10**10}, "windows[0].micro_per_kwh"),
        ({"begin_minute": -1}, "windows[0].begin_minute"),
        ({"begin_minute": 1_440}, "windows[0].begin_minute"),
        ({"end_minute": -1}, "windows[0].end_minute"),
        ({"end_minute": 1_441}, "windows[0].end_minute"),
        ({"begin_minute": 60, "end_minute": 60}, "never holds"),
        ({"weekdays": ()}, "at least one"),
        ({"weekdays": (1, 1)}, "none twice"),
        ({"weekdays": (7,)}, "Sunday"),
        ({"weekdays": (-1,)}, "Monday"),
    ],
)
def test_a_window_that_makes_no_sense_is_told_in_words(changed: dict[str, Any], words: str) -> None:
    window = msgspec.structs.replace(NIGHT, **changed)
    (fault,) = tariff_faults(Tariff(1, (window,)))
    assert words in fault


def test_a_tariff_that_makes_no_sense_is_told_in_words() -> None:
    assert "micro_per_kwh" in tariff_faults(Tariff(-1))[0]
    many = tuple(TariffWindow(1, begin_minute=each, end_minute=each + 1) for each in range(65))
    assert tariff_faults(Tariff(1, many)) == ["windows must be 64 at most"]
    assert tariff_faults(Tariff(1, many[:64])) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((60, 120, (0,)), (119, 180, (0,))),
        ((60, 120, (0,)), (60, 120, (0, 1))),
        ((1_380, 60, (0,)), (59, 120, (1,))),
        ((1_380, 60, (6,)), (0, 120, (0,))),
        ((0, 1_440, (2,)), (600, 660, (2,))),
    ],
)
def test_two_prices_at_one_time_are_told(
    first: tuple[int, int, tuple[int, ...]], second: tuple[int, int, tuple[int, ...]]
) -> None:
    both = tuple(TariffWindow(1, *each) for each in (first, second))
    assert tariff_faults(Tariff(1, both)) == ["windows[0] and windows[1] overlap"]


def test_windows_that_meet_do_not_overlap() -> None:
    meeting = (
        TariffWindow(1, 0, 60),
        TariffWindow(2, 60, 1_380),
        TariffWindow(3, 1_380, 0),
    )
    assert tariff_faults(Tariff(4, meeting)) == []
    assert tariff_faults(TARIFF) == tariff_faults(Tariff()) == []


@given(tariff=tariffs())
def test_cuts_of_a_day_have_no_fault(tariff: Tariff) -> None:
    assert tariff_faults(tariff) == []


@given(found=st.lists(windows, min_size=2, max_size=3))
def test_an_overlap_is_told_where_two_windows_hold(found: list[TariffWindow]) -> None:
    """At one moment of the week; where windows meet for the first time, one of them begins."""
    if any(tariff_faults(Tariff(1, (window,))) for window in found):
        return
    begins = [
        at(day, 0) + window.begin_minute * MS_PER_MINUTE
        for window in found
        for day in window.weekdays
    ]
    alone = [Tariff(0, (msgspec.structs.replace(each, micro_per_kwh=1),)) for each in found]
    most = max(sum(price_at(each, begin_ms) for each in alone) for begin_ms in begins)
    assert bool(tariff_faults(Tariff(1, tuple(found)))) == (most > 1)
