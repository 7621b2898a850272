"""Days, weekdays and minutes of a place's own clock, by arithmetic alone.

`local_ms` is what that clock shows, in ms since its 1 January 1970, 00:00: the caller adds the
place's offset to an agent's or a server's time, summer time included, and hands it in.
"""

from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE

HOURS_PER_DAY = 24
MINUTES_PER_DAY = 1_440
DAYS_PER_WEEK = 7
MS_PER_DAY = HOURS_PER_DAY * MS_PER_HOUR
MS_PER_WEEK = DAYS_PER_WEEK * MS_PER_DAY
MINUTES_PER_WEEK = DAYS_PER_WEEK * MINUTES_PER_DAY

WEEKDAY_OF_DAY_ZERO = 3
"""1 January 1970 was a Thursday; Monday is 0."""


def local_day(local_ms: int) -> int:
    """The number of the day, from local midnight to local midnight."""
    return local_ms // MS_PER_DAY


def weekday_of(local_ms: int) -> int:
    """0 is Monday, 6 is Sunday."""
    return (local_day(local_ms) + WEEKDAY_OF_DAY_ZERO) % DAYS_PER_WEEK


def minute_of_day(local_ms: int) -> int:
    """Minutes since local midnight, 0 to 1,439."""
    return local_ms % MS_PER_DAY // MS_PER_MINUTE
