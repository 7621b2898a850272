"""Windows and departures by weekday: whether one holds, and when the next begins or ends.

Everything is by a place's own clock, see `local_time`; the week begins on Monday at 00:00.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, get_args

import msgspec

from terafleet.core.local_time import (
    MINUTES_PER_DAY,
    MS_PER_DAY,
    MS_PER_WEEK,
    WEEKDAY_OF_DAY_ZERO,
)
from terafleet.core.units import MS_PER_MINUTE
from terafleet.core.written_time import minute_of

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hours on some weekdays, from a time of day until before another one; 24:00 is midnight.

    A window that ends before it begins goes on past midnight, and belongs to the weekday on
    which it begins.
    """

    days: tuple[Day, ...] = DAYS
    begin: str = msgspec.field(default="00:00", name="from")
    end: str = msgspec.field(default="24:00", name="to")


class Departure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When the car is usually driven, and the charge that it must have by then."""

    days: tuple[Day, ...] = DAYS
    at: str
    soc_percent: float = 80.0


def week_ms(local_ms: int) -> int:
    """Milliseconds since Monday, 00:00."""
    return (local_ms + WEEKDAY_OF_DAY_ZERO * MS_PER_DAY) % MS_PER_WEEK


def holds(windows: tuple[Window, ...], local_ms: int) -> bool:
    """Whether any of these windows holds."""
    at_ms = week_ms(local_ms)
    return any((at_ms - begin_ms) % MS_PER_WEEK < length_ms for begin_ms, length_ms in _of(windows))


def next_edge_ms(windows: tuple[Window, ...], local_ms: int) -> int | None:
    """In how many ms, at least one, a window begins or ends; None if there is none."""
    return until_next(
        (
            edge_ms
            for begin_ms, length_ms in _of(windows)
            for edge_ms in (begin_ms, begin_ms + length_ms)
        ),
        local_ms,
    )


def until_next(moments_ms: Iterable[int], local_ms: int) -> int | None:
    """In how many ms, at least one, the next of these moments of the week comes."""
    after_ms = week_ms(local_ms) + 1
    return min(((at_ms - after_ms) % MS_PER_WEEK + 1 for at_ms in moments_ms), default=None)


@lru_cache(maxsize=64)
def departure_moments(departures: tuple[Departure, ...]) -> tuple[tuple[int, float], ...]:
    """Each departure of a week: its moment in ms since Monday, 00:00, and its charge."""
    return tuple(
        (_begin_ms(day, departure.at), departure.soc_percent)
        for departure in departures
        for day in departure.days
    )


@lru_cache(maxsize=64)
def _of(windows: tuple[Window, ...]) -> tuple[tuple[int, int], ...]:
    """When each window of a week begins, in ms since Monday, 00:00, and how long it is."""
    return tuple(
        (_begin_ms(day, window.begin), _length_ms(window))
        for window in windows
        for day in window.days
    )


def _begin_ms(day: Day, text: str) -> int:
    minute = minute_of(text)
    assert minute is not None, "a policy with faults is not used"
    return DAYS.index(day) * MS_PER_DAY + minute * MS_PER_MINUTE


def _length_ms(window: Window) -> int:
    begin, end = minute_of(window.begin), minute_of(window.end)
    assert begin is not None, "a policy with faults is not used"
    assert end is not None, "a policy with faults is not used"
    # At most a day: a window that ends where it begins is a fault.
    return ((end - begin - 1) % MINUTES_PER_DAY + 1) * MS_PER_MINUTE
