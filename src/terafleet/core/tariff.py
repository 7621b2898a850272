"""What a kWh at the wall asks of the owner, by weekday and time of day."""

from collections.abc import Iterator
from itertools import pairwise

import msgspec

from terafleet.core.local_time import (
    DAYS_PER_WEEK,
    MINUTES_PER_DAY,
    MINUTES_PER_WEEK,
    MS_PER_DAY,
    MS_PER_WEEK,
    minute_of_day,
    weekday_of,
)
from terafleet.core.units import MS_PER_MINUTE, MWH_PER_KWH, divide_up

WINDOWS_MAX = 64
"""More than any household tariff has; it bounds what a lookup costs."""

PRICE_MICRO_MAX = 1_000_000_000
"""A thousand a kWh: a larger figure is a slip of the unit."""


class TariffWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A price that holds on some weekdays (0 is Monday) between two minutes of the day.

    A window that ends before it begins goes on past midnight, and belongs to the weekday on
    which it begins. It holds from `begin_minute` until before `end_minute`.
    """

    micro_per_kwh: int
    begin_minute: int = 0
    end_minute: int = MINUTES_PER_DAY
    weekdays: tuple[int, ...] = tuple(range(DAYS_PER_WEEK))


class Tariff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time-of-use table: the price of the window that holds, else `micro_per_kwh`.

    The default is flat, 0.30 a kWh: about the average household price of the European Union,
    0.2872 EUR in the first half of 2025 (Eurostat, 29 October 2025).
    """

    micro_per_kwh: int = 300_000
    windows: tuple[TariffWindow, ...] = ()


def tariff_faults(tariff: Tariff) -> list[str]:
    """What is wrong with a tariff, in words a person can act on; empty when nothing is."""
    faults = _price_faults("micro_per_kwh", tariff.micro_per_kwh)
    if len(tariff.windows) > WINDOWS_MAX:
        return [*faults, f"windows must be {WINDOWS_MAX} at most"]
    for number, window in enumerate(tariff.windows):
        faults += _window_faults(f"windows[{number}]", window)
    # Only times that make sense can be compared.
    return faults or _overlap_faults(tariff)


def price_at(tariff: Tariff, local_ms: int) -> int:
    """The price of a kWh at a local time, in micro-units."""
    weekday, minute = weekday_of(local_ms), minute_of_day(local_ms)
    for window in tariff.windows:
        if _holds(window, weekday, minute):
            return window.micro_per_kwh
    return tariff.micro_per_kwh


def mean_price(tariff: Tariff, local_ms: int, duration_ms: int) -> int:
    """The mean price of a kWh over an interval, in micro-units, rounded up."""
    return energy_price(tariff, MWH_PER_KWH, local_ms, duration_ms)


def dearest_price(tariff: Tariff, local_ms: int, duration_ms: int) -> int:
    """The highest price of a kWh that holds at any moment of an interval, in micro-units.

    Both ends are part of it: an interval of no length has the price at its moment.
    """
    # A week has seen all that there is, and a millisecond more sees the last moment too.
    length_ms = min(duration_ms, MS_PER_WEEK) + 1
    return max(price for price, _ in _pieces(tariff, local_ms, length_ms))


def energy_price(tariff: Tariff, energy_mwh: int, local_ms: int, duration_ms: int) -> int:
    """What energy asks that is drawn evenly over an interval, in micro-units, rounded up.

    The only rounding, so that the owner never pays more than this.
    """
    assert energy_mwh >= 0, "energy is drawn, not given"
    assert duration_ms >= 0, "an interval does not end before it begins"
    if duration_ms == 0:
        return divide_up(energy_mwh * price_at(tariff, local_ms), MWH_PER_KWH)
    weeks, rest_ms = divmod(duration_ms, MS_PER_WEEK)
    price_ms = _price_ms(tariff, local_ms, rest_ms)
    if weeks:
        price_ms += weeks * _price_ms(tariff, local_ms, MS_PER_WEEK)
    return divide_up(energy_mwh * price_ms, MWH_PER_KWH * duration_ms)


def _price_ms(tariff: Tariff, local_ms: int, duration_ms: int) -> int:
    """The sum of prices over the milliseconds of an interval."""
    return sum(price * piece_ms for price, piece_ms in _pieces(tariff, local_ms, duration_ms))


def _pieces(tariff: Tariff, local_ms: int, duration_ms: int) -> Iterator[tuple[int, int]]:
    """An interval in pieces of one price each: the price, and the length of the piece in ms."""
    ends = [minute for each in tariff.windows for minute in (each.begin_minute, each.end_minute)]
    marks_ms = sorted({minute * MS_PER_MINUTE for minute in (*ends, MINUTES_PER_DAY)})
    at_ms, end_ms = local_ms, local_ms + duration_ms
    while at_ms < end_ms:
        midnight_ms = at_ms - at_ms % MS_PER_DAY
        mark_ms = next(mark for mark in marks_ms if midnight_ms + mark > at_ms)
        until_ms = min(midnight_ms + mark_ms, end_ms)
        yield price_at(tariff, at_ms), until_ms - at_ms
        at_ms = until_ms


def _holds(window: TariffWindow, weekday: int, minute: int) -> bool:
    if window.begin_minute < window.end_minute:
        is_within = window.begin_minute <= minute < window.end_minute
        return is_within and weekday in window.weekdays
    if minute >= window.begin_minute:
        return weekday in window.weekdays
    day_before = (weekday - 1) % DAYS_PER_WEEK
    return minute < window.end_minute and day_before in window.weekdays


def _price_faults(name: str, micro_per_kwh: int) -> list[str]:
    if 0 <= micro_per_kwh <= PRICE_MICRO_MAX:
        return []
    return [f"{name} must lie within 0 and {PRICE_MICRO_MAX}, in micro-units a kWh"]


def _window_faults(name: str, window: TariffWindow) -> list[str]:
    faults = _price_faults(f"{name}.micro_per_kwh", window.micro_per_kwh)
    if not 0 <= window.begin_minute < MINUTES_PER_DAY:
        faults.append(f"{name}.begin_minute must lie within 0 and {MINUTES_PER_DAY - 1}")
    if not 0 <= window.end_minute <= MINUTES_PER_DAY:
        faults.append(f"{name}.end_minute must lie within 0 and {MINUTES_PER_DAY}")
    if window.begin_minute == window.end_minute:
        faults.append(f"{name} begins and ends at the same minute, so it never holds")
    if not window.weekdays or len(set(window.weekdays)) != len(window.weekdays):
        faults.append(f"{name}.weekdays must name at least one weekday, and none twice")
    if not all(0 <= weekday < DAYS_PER_WEEK for weekday in window.weekdays):
        faults.append(f"{name}.weekdays must lie within 0 (Monday) and 6 (Sunday)")
    return faults


def _overlap_faults(tariff: Tariff) -> list[str]:
    """Two prices at one minute of the week: which of them holds nobody could tell."""
    spans = sorted(
        (begin, begin + _length(window), number)
        for number, window in enumerate(tariff.windows)
        for begin in (day * MINUTES_PER_DAY + window.begin_minute for day in window.weekdays)
    )
    if not spans:
        return []
    # The week is a circle: what runs past Sunday meets what begins on Monday.
    begin, end, number = spans[0]
    circle = [*spans, (begin + MINUTES_PER_WEEK, end + MINUTES_PER_WEEK, number)]
    pairs = {
        (min(first, second), max(first, second))
        for (_, first_end, first), (second_begin, _, second) in pairwise(circle)
        if first_end > second_begin
    }
    return [f"windows[{a}] and windows[{b}] overlap" for a, b in sorted(pairs)]


def _length(window: TariffWindow) -> int:
    """How many minutes a window holds, at most a day."""
    return (window.end_minute - window.begin_minute - 1) % MINUTES_PER_DAY + 1
