"""Reads times as a person writes them: a time of day, and a moment with or without an offset."""

import re
from functools import lru_cache

import msgspec

from terafleet.core.local_time import MINUTES_PER_DAY, MS_PER_DAY
from terafleet.core.units import MS_PER_MINUTE, MS_PER_S

_TIME = re.compile(r"(\d{1,2}):(\d\d)(?::00)?", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d))?(Z|[+-]\d\d:\d\d)?", re.ASCII
)
_MINUTES_PER_HOUR = 60
_SECONDS_PER_MINUTE = 60
_OFFSET_MINUTES_MAX = 14 * _MINUTES_PER_HOUR
_FIRST_YEAR = 1970
_FEBRUARY = 2
_DAYS_BEFORE_1970 = 719_162
"""From 1 January of the year 1 to 1 January 1970, in the Gregorian calendar."""
_DAYS_OF_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class WrittenMoment(msgspec.Struct, frozen=True):
    """A moment in ms since 1970: of UTC, or, if it `is_local`, of a place's own clock."""

    at_ms: int
    is_local: bool


def minute_of(text: str) -> int | None:
    """The minute of the day of `07:30`, 0 to 1,440 (`24:00`); None if it is no such time."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    hour, minute = int(found[1]), int(found[2])
    total = hour * _MINUTES_PER_HOUR + minute
    return total if minute < _MINUTES_PER_HOUR and total <= MINUTES_PER_DAY else None


@lru_cache(maxsize=64)
def moment_of(text: str) -> WrittenMoment | None:
    """The moment of `2026-09-01T07:00`, with seconds and an offset or without; else None."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    if not (year >= _FIRST_YEAR and 1 <= month <= len(_DAYS_OF_MONTHS)):
        return None
    if not 1 <= day <= _days_of_month(year, month):
        return None
    minutes = hour * _MINUTES_PER_HOUR + minute
    if minute >= _MINUTES_PER_HOUR or minutes >= MINUTES_PER_DAY or second >= _SECONDS_PER_MINUTE:
        return None
    local_ms = _day_number(year, month, day) * MS_PER_DAY
    local_ms += minutes * MS_PER_MINUTE + second * MS_PER_S
    if found[7] is None:
        return WrittenMoment(local_ms, is_local=True)
    offset = _offset_minutes(found[7])
    if offset is None:
        return None
    return WrittenMoment(local_ms - offset * MS_PER_MINUTE, is_local=False)


def _offset_minutes(text: str) -> int | None:
    if text == "Z":
        return 0
    hours, minutes = int(text[1:3]), int(text[4:])
    total = hours * _MINUTES_PER_HOUR + minutes
    if minutes >= _MINUTES_PER_HOUR or total > _OFFSET_MINUTES_MAX:
        return None
    return -total if text[0] == "-" else total


def _is_leap(year: int) -> bool:
    """Every fourth year, but of the hundredth ones only every fourth."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _days_of_month(year: int, month: int) -> int:
    return _DAYS_OF_MONTHS[month - 1] + (month == _FEBRUARY and _is_leap(year))


def _day_number(year: int, month: int, day: int) -> int:
    """Days since 1 January 1970."""
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400
    months = sum(_days_of_month(year, one) for one in range(1, month))
    return days + months + day - 1 - _DAYS_BEFORE_1970
