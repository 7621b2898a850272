"""When the people of a simulated city drive, and where to: a day at a time, drawn by a seed.

Most drive to work and back on weekdays, some stop at an errand on the way; at weekends they have
an errand or none. The hours are those at which private cars left home and were plugged in again
in Norway (departures peak at 7, plug-ins between 15 and 22; Sørensen et al., Data in Brief 2021),
the shares are assumptions.
"""

import random
from typing import Literal

import msgspec

from terafleet.core.local_time import DAYS_PER_WEEK
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE

Place = Literal["home", "work", "elsewhere"]

FRIDAY = 4
AT_WORK_SHARE = 0.8
ERRAND_SHARE = 0.3
WEEKEND_SHARE = 0.6
LEAVES_HOME_H, LEAVES_WORK_H, LEAVES_FOR_FUN_H = 7.4, 16.4, 11.0


class Trip(msgspec.Struct, frozen=True):
    """The car leaves for a place at `depart_ms` of the city's time, or as soon as it is parked."""

    depart_ms: int
    place: Place


class Days:
    """The days of one car; the same seed and number live the same days."""

    def __init__(self, seed: int, number: int) -> None:
        self._name = f"{seed}/{number}"
        self.works = self._chance("person").random() < AT_WORK_SHARE

    def trips(self, day: int) -> list[Trip]:
        """What the car drives on a day, in time order; day 0 is a Monday."""
        chance = self._chance(day)
        begin_ms = day * 24 * MS_PER_HOUR
        if day % DAYS_PER_WEEK <= FRIDAY and self.works:
            return _timed(begin_ms, _working_day(chance))
        if chance.random() >= WEEKEND_SHARE:
            return []
        leaves_h = chance.gauss(LEAVES_FOR_FUN_H, 2.0)
        away_h = chance.uniform(0.5, 4.0)
        return _timed(begin_ms, [(leaves_h, "elsewhere"), (leaves_h + away_h, "home")])

    def _chance(self, of: int | str) -> random.Random:
        # It moves simulated cars, it guards nothing.
        return random.Random(f"{self._name}/{of}")  # noqa: S311


def _working_day(chance: random.Random) -> list[tuple[float, Place]]:
    there_h = chance.gauss(LEAVES_HOME_H, 0.7)
    back_h = chance.gauss(LEAVES_WORK_H, 1.0)
    day: list[tuple[float, Place]] = [(there_h, "work")]
    if chance.random() < ERRAND_SHARE:
        day.append((back_h, "elsewhere"))
        back_h += chance.uniform(0.3, 1.5)
    return [*day, (back_h, "home")]


def _timed(begin_ms: int, hours: list[tuple[float, Place]]) -> list[Trip]:
    """Trips within the day, a quarter of an hour apart at the least."""
    trips: list[Trip] = []
    least_ms = begin_ms + MS_PER_HOUR
    for hour, place in hours:
        depart_ms = max(least_ms, begin_ms + round(hour * MS_PER_HOUR))
        depart_ms = min(depart_ms, begin_ms + 23 * MS_PER_HOUR + len(trips) * 15 * MS_PER_MINUTE)
        trips.append(Trip(depart_ms, place))
        least_ms = depart_ms + 15 * MS_PER_MINUTE
    return trips
