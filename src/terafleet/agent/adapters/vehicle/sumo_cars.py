"""One car of a simulated city: its people, its plug and its heat; it knows nothing of SUMO.

The models are as small as they can be and still make a guard work: people get in a minute before
they leave and out half a minute after they come, a pack that is low is plugged in, and warmth
goes away exponentially.
"""

import math
import random
from typing import NamedTuple

from terafleet.agent.adapters.vehicle.sumo_days import Days, Place, Trip
from terafleet.core.local_time import MS_PER_DAY
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE, MS_PER_S

BOARDING_MS = MS_PER_MINUTE
ALIGHTING_MS = 30 * MS_PER_S
PRECONDITIONING_MS = 10 * MS_PER_MINUTE
PRECONDITIONING_BELOW_C = 5.0
"""What the plans of people and cars are like; assumptions."""
PLUGS_BELOW_PERCENT = 60.0
PLUGS_AT_HOME_SHARE, PLUGS_AT_WORK_SHARE = 0.4, 0.15
"""Of arrivals with enough charge; with it cars are plugged in about a third of all hours, as in
Norway (34 %, Sørensen et al., Data in Brief 2021)."""
KNOWS_DEPARTURE_SHARE = 0.5
CHARGE_LIMIT_PERCENT = 80.0

PACK_MS = 6 * MS_PER_HOUR
COMPUTE_MS = 5 * MS_PER_MINUTE
"""In this time the pack and the computer lose 63 % of what they are warmer than what is around."""
DRIVING_PACK_C, CHARGING_PACK_C = 15.0, 8.0
DRIVING_COMPUTE_C, PARKED_COMPUTE_C = 30.0, 8.0
MV_AWAKE, MV_ASLEEP = 13_800, 12_600
LOAD_DRIVING_PERCENT, LOAD_PARKED_PERCENT = 60.0, 3.0
FAN_DRIVING_PERCENT = 30.0


class Weather(NamedTuple):
    """A day's temperatures: warmest at 15:00, coldest twelve hours later."""

    mean_c: float = 12.0
    swing_c: float = 6.0

    def ambient_c(self, now_ms: int) -> float:
        """The air's temperature at a time of the city."""
        hours = (now_ms % MS_PER_DAY) / MS_PER_HOUR
        return self.mean_c + self.swing_c * math.cos((hours - 15) * math.tau / 24)


class Driven(NamedTuple):
    """What the simulation of traffic says of a car."""

    is_parked: bool
    soc_percent: float
    charging_mw: int


class CityCar:
    """A car, where it is bound for, and what its sensors say. Times are the city's, in ms."""

    def __init__(self, number: int, seed: int, streets: dict[Place, str], begin_ms: int) -> None:
        """It begins at home, parked; `streets` is where it parks at each place."""
        self.number = number
        self.name = f"car-{number:04}"
        self.streets = streets
        self.place: Place = "home"
        self.is_parked = True
        self.has_plug = False
        self.has_come = self.is_lost = False
        self._days = Days(seed, number)
        self._chance = random.Random(f"{seed}/{number}")  # noqa: S311 - it guards nothing.
        self._knows_departure = self._chance.random() < KNOWS_DEPARTURE_SHARE
        self.soc_percent_begin = self._chance.uniform(45.0, CHARGE_LIMIT_PERCENT)
        self._parked_since_ms = begin_ms - MS_PER_HOUR
        self._day = begin_ms // MS_PER_DAY
        self._trips = self._trips_after(begin_ms)
        self._read_at_ms = begin_ms
        self._pack_over_c = self._compute_over_c = 0.0

    @property
    def street(self) -> str:
        """Where it is parked, or is bound for."""
        return self.streets[self.place]

    @property
    def next_trip(self) -> Trip:
        """What it drives next."""
        while not self._trips:
            self._day += 1
            self._trips = self._days.trips(self._day)
        return self._trips[0]

    def depart(self, soc_percent: float) -> None:
        """It leaves for the place of its next trip, whose plug it will take if it wants one."""
        self.place = self.next_trip.place
        self._trips.pop(0)
        self.is_parked = False
        self.choose_plug(soc_percent)

    def stay(self) -> None:
        """There is no way to where it should go: it leaves this trip out."""
        assert self.next_trip is self._trips[0]
        self._trips.pop(0)

    def choose_plug(self, soc_percent: float) -> None:
        """Whether it plugs in where it is bound for; nobody does for an errand."""
        shares = {"home": PLUGS_AT_HOME_SHARE, "work": PLUGS_AT_WORK_SHARE, "elsewhere": 0.0}
        wants = self._chance.random() < shares[self.place]
        is_low = soc_percent < PLUGS_BELOW_PERCENT and self.place == "home"
        self.has_plug = wants or is_low

    def arrive(self, now_ms: int) -> None:
        """It is parked; the first time, it has come to live in the city."""
        self.is_parked = self.has_come = True
        self._parked_since_ms = now_ms

    def readings(self, now_ms: int, driven: Driven, weather: Weather) -> Readings:
        """What its sensors say; to be asked in time order, as warmth needs time."""
        depart_ms = self.next_trip.depart_ms
        is_plugged_in = driven.is_parked and self.has_plug
        ambient_c = weather.ambient_c(now_ms)
        is_awake = not driven.is_parked or driven.charging_mw > 0
        self._warm(now_ms, driven)
        to_go_ms = depart_ms - now_ms
        is_preconditioning = is_plugged_in and ambient_c < PRECONDITIONING_BELOW_C
        return Readings(
            at_ms=now_ms,
            is_parked=driven.is_parked,
            is_driver_present=self._has_people(now_ms, driven, to_go_ms),
            is_plugged_in=is_plugged_in,
            soc_percent=driven.soc_percent,
            compute_temperature_c=ambient_c + self._compute_over_c,
            battery_temperature_c=ambient_c + self._pack_over_c,
            ambient_temperature_c=ambient_c,
            is_charging=driven.charging_mw > 0,
            charging_mw=driven.charging_mw,
            charge_limit_percent=CHARGE_LIMIT_PERCENT,
            departure_at_ms=depart_ms if driven.is_parked and self._knows_departure else None,
            is_preconditioning=is_preconditioning and to_go_ms <= PRECONDITIONING_MS,
            is_sentry_on=False,
            is_updating=False,
            is_in_service=False,
            place=self.place if driven.is_parked else "elsewhere",
            is_link_metered=not (driven.is_parked and self.place == "home"),
            fan_percent=0.0 if driven.is_parked else FAN_DRIVING_PERCENT,
            low_voltage_mv=MV_AWAKE if is_awake else MV_ASLEEP,
            other_load_percent=LOAD_PARKED_PERCENT if driven.is_parked else LOAD_DRIVING_PERCENT,
        )

    def _has_people(self, now_ms: int, driven: Driven, to_go_ms: int) -> bool:
        if not driven.is_parked or to_go_ms <= BOARDING_MS:
            return True
        return now_ms - self._parked_since_ms < ALIGHTING_MS

    def _warm(self, now_ms: int, driven: Driven) -> None:
        """Bring the warmth over the air to now, as if all had been since the last look as now."""
        passed_ms, self._read_at_ms = now_ms - self._read_at_ms, now_ms
        pack_c = CHARGING_PACK_C if driven.charging_mw > 0 else 0.0
        if not driven.is_parked:
            pack_c = DRIVING_PACK_C
        compute_c = PARKED_COMPUTE_C if driven.is_parked else DRIVING_COMPUTE_C
        self._pack_over_c += (pack_c - self._pack_over_c) * -math.expm1(-passed_ms / PACK_MS)
        share = -math.expm1(-passed_ms / COMPUTE_MS)
        self._compute_over_c += (compute_c - self._compute_over_c) * share

    def _trips_after(self, begin_ms: int) -> list[Trip]:
        return [trip for trip in self._days.trips(self._day) if trip.depart_ms > begin_ms]
