"""Whether the car will have the charge it must have by its next departure."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from terafleet.core.hours import departure_moments, until_next
from terafleet.core.limits import PERCENT_MAX
from terafleet.core.policy import ChargePolicy
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR

SOC_GAP_PERCENT = 1.0
"""The charge must be so much above what is needed before work begins, not before it goes on."""


class NextDeparture(NamedTuple):
    """When the car is driven next, by the clock of the readings, and the charge it must have."""

    at_ms: int
    soc_percent: float


def next_departure(charge: ChargePolicy, readings: Readings, now_ms: int) -> NextDeparture | None:
    """The nearest departure after this moment that owner or car know of; of two, the fuller."""
    coming = list(_coming(charge, readings, now_ms))
    return min(coming, key=lambda one: (one.at_ms, -one.soc_percent), default=None)


def charge_lacks(
    charge: ChargePolicy,
    readings: Readings,
    departure: NextDeparture | None,
    is_permitting: bool,
    now_ms: int,
) -> bool:
    """Whether all charging must go into the battery: the charge is not there, nor will be in time.

    The time it takes is that at the present power, without any taper; the owner's spare time is
    for that. Without departure, power or capacity nobody can tell, so only the charge counts.
    """
    assert readings.soc_percent is not None, "a missing reading is told before"
    needed = soc_needed(charge, departure, is_permitting)
    if readings.soc_percent >= needed:
        return False
    charging_ms = _charging_ms(charge, readings, needed)
    if departure is None or charging_ms is None:
        return True
    return charging_ms > departure.at_ms - now_ms - _spare_ms(charge, is_permitting)


def soc_needed(charge: ChargePolicy, departure: NextDeparture | None, is_permitting: bool) -> float:
    """The charge from which on nothing waits for it, at either level."""
    soc_percent = departure.soc_percent if departure else charge.soc_percent_departure
    return soc_percent if is_permitting else min(PERCENT_MAX, soc_percent + SOC_GAP_PERCENT)


def charge_turns(charge: ChargePolicy, readings: Readings, now_ms: int) -> Iterator[int]:
    """The moments at which time alone changes the answer, at either level."""
    departure = next_departure(charge, readings, now_ms)
    if not charge.is_charge_first or departure is None:
        return
    yield departure.at_ms
    for is_permitting in (True, False):
        charging_ms = _charging_ms(charge, readings, soc_needed(charge, departure, is_permitting))
        left_ms = departure.at_ms - now_ms - _spare_ms(charge, is_permitting)
        if charging_ms is not None and charging_ms <= left_ms:
            yield now_ms + left_ms - charging_ms + 1


def _coming(charge: ChargePolicy, readings: Readings, now_ms: int) -> Iterator[NextDeparture]:
    planned_ms = readings.departure_at_ms
    if planned_ms is not None and planned_ms > now_ms:
        yield NextDeparture(planned_ms, charge.soc_percent_departure)
    local_ms = now_ms + readings.utc_offset_ms
    for departure_ms, soc_percent in departure_moments(charge.departures):
        until_ms = until_next((departure_ms,), local_ms)
        if until_ms is not None:
            yield NextDeparture(now_ms + until_ms, soc_percent)


def _charging_ms(charge: ChargePolicy, readings: Readings, soc_percent: float) -> int | None:
    """How long the charge takes at the present power, rounded up; None if nobody knows."""
    power_mw, now_percent = readings.charging_mw, readings.soc_percent
    if charge.capacity_mwh is None or now_percent is None or not power_mw or power_mw < 0:
        return None
    needed_mwh = charge.capacity_mwh * (soc_percent - now_percent) / PERCENT_MAX
    charging_ms = needed_mwh * MS_PER_HOUR / power_mw
    return math.ceil(charging_ms) if math.isfinite(charging_ms) else None


def _spare_ms(charge: ChargePolicy, is_permitting: bool) -> int:
    return charge.spare_ms_min if is_permitting else charge.spare_ms_resume
