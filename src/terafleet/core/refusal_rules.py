"""The rule: turns owner policy, readings and what was used today into refusals.

One small function for each refusal, in one table; what none of them refuses is permitted.
"""

from collections.abc import Callable
from typing import NamedTuple

from terafleet.core.charge_first import charge_lacks, next_departure
from terafleet.core.day_use import DayUse, link_bytes_on
from terafleet.core.hours import departure_moments, holds, week_ms
from terafleet.core.limits import (
    AMBIENT_HEAT,
    BATTERY_COLD,
    BATTERY_HEAT,
    COMPUTE_HEAT,
    LOW_VOLTAGE,
    OTHERS_LOAD,
    POWER_CAP,
    QUIET_FAN,
    SOC_FLOOR,
    Limit,
    levels_of,
)
from terafleet.core.local_time import MS_PER_WEEK, local_day
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.wear import over
from terafleet.core.written_time import moment_of


class _Look(NamedTuple):
    """All that a rule may look at; `local_ms` is what the place's own clock shows."""

    policy: OwnerPolicy
    readings: Readings
    usage: DayUse
    is_permitting: bool
    now_ms: int
    local_ms: int


_Rule = Callable[[_Look], bool | None]
"""Whether to refuse; None is that a reading is missing without which nobody knows."""


class _Row(NamedTuple):
    refusal: Refusal
    sensors: tuple[str, ...]
    rule: _Rule


def refusals(
    policy: OwnerPolicy,
    readings: Readings | None,
    usage: DayUse,
    is_permitting: bool,
    now_ms: int,
) -> tuple[Refusal, ...]:
    """Every reason for which the car must not compute, in a fixed order; none is a permit.

    A missing or stale reading refuses, and a stale one says nothing else. `is_permitting` chooses
    the level of limits that have two. The policy must have no faults.
    """
    offset_ms = readings.utc_offset_ms if readings else None
    found = [Refusal.OWNER_PAUSED] if _is_paused(policy, now_ms, offset_ms) else []
    if readings is None:
        return (*found, Refusal.READING_MISSING)
    if is_stale(policy, readings, now_ms):
        return (*found, Refusal.READING_STALE)
    local_ms = now_ms + readings.utc_offset_ms
    look = _Look(policy, readings, usage, is_permitting, now_ms, local_ms)
    answers = [(row.refusal, row.rule(look)) for row in _ROWS]
    if any(answer is None for _, answer in answers):
        found.append(Refusal.READING_MISSING)
    found += [refusal for refusal, answer in answers if answer]
    return tuple(found)


def is_stale(policy: OwnerPolicy, readings: Readings, now_ms: int) -> bool:
    """Whether a sample is too old to be believed."""
    return now_ms - readings.at_ms > policy.giving_back.stale_ms


def missing_sensors(policy: OwnerPolicy, readings: Readings | None, now_ms: int) -> tuple[str, ...]:
    """The readings that the policy needs and the car does not give, by name."""
    known = readings or Readings(now_ms)
    local_ms = now_ms + known.utc_offset_ms
    look = _Look(policy, known, DayUse(), False, now_ms, local_ms)
    lacking = [row for row in _ROWS if row.rule(look) is None]
    names = [name for row in lacking for name in row.sensors if getattr(known, name) is None]
    return tuple(dict.fromkeys(names))


def sensors_of(refusal: Refusal) -> tuple[str, ...]:
    """The readings that a refusal comes from; none for those of time, budgets and the agent."""
    return next((row.sensors for row in _ROWS if row.refusal is refusal), ())


def resume_ms(policy: OwnerPolicy, offset_ms: int | None) -> int | None:
    """When a pause ends by itself; None is never, or that the place's clock is not known."""
    moment = moment_of(policy.resume_at)
    if moment is None or (moment.is_local and offset_ms is None):
        return None
    return moment.at_ms - (offset_ms or 0) if moment.is_local else moment.at_ms


def _is_paused(policy: OwnerPolicy, now_ms: int, offset_ms: int | None) -> bool:
    if not policy.is_paused:
        return False
    end_ms = resume_ms(policy, offset_ms)
    return end_ms is None or now_ms < end_ms


def _not_parked(look: _Look) -> bool | None:
    is_parked = look.readings.is_parked
    return None if is_parked is None else not is_parked


def _driver_present(look: _Look) -> bool | None:
    return look.readings.is_driver_present


def _departure_soon(look: _Look) -> bool:
    charge = look.policy.charge
    lead_ms, late_ms = charge.departure_lead_ms, charge.departure_late_ms
    at_ms = week_ms(look.local_ms)
    planned_ms = look.readings.departure_at_ms
    is_planned = (
        planned_ms is not None and planned_ms - lead_ms <= look.now_ms < planned_ms + late_ms
    )
    return is_planned or any(
        (at_ms - departure_ms + lead_ms) % MS_PER_WEEK < lead_ms + late_ms
        for departure_ms, _ in departure_moments(charge.departures)
    )


def _update_pending(look: _Look) -> bool | None:
    return _is_about(look, look.readings.is_updating)


def _service_mode(look: _Look) -> bool | None:
    return _is_about(look, look.readings.is_in_service)


def _preconditioning(look: _Look) -> bool | None:
    if look.policy.activity.allows_preconditioning:
        return False
    return _is_about(look, look.readings.is_preconditioning)


def _sentry(look: _Look) -> bool | None:
    if look.policy.activity.allows_sentry:
        return False
    return _is_about(look, look.readings.is_sentry_on)


def _is_about(look: _Look, answer: bool | None) -> bool | None:
    if answer is None and not look.policy.activity.needs_all:
        return False
    return answer


def _unplugged(look: _Look) -> bool | None:
    if not look.policy.charge.needs_plug:
        return False
    is_plugged_in = look.readings.is_plugged_in
    return None if is_plugged_in is None else not is_plugged_in


def _charge_first(look: _Look) -> bool | None:
    policy, readings = look.policy, look.readings
    if not policy.charge.is_charge_first:
        return False
    if readings.is_charging is None or readings.soc_percent is None:
        return None
    if not readings.is_charging:
        return False
    departure = next_departure(policy.charge, readings, look.now_ms)
    return charge_lacks(policy.charge, readings, departure, look.is_permitting, look.now_ms)


def _outside_compute_hours(look: _Look) -> bool:
    windows = look.policy.hours.compute
    return bool(windows) and not holds(windows, look.local_ms)


def _outside_network_hours(look: _Look) -> bool:
    windows = look.policy.hours.network
    return bool(windows) and not holds(windows, look.local_ms)


def _quiet_hours(look: _Look) -> bool:
    windows = look.policy.hours.quiet
    if not windows or not holds(windows, look.local_ms):
        return False
    levels, fan_percent = levels_of(look.policy, QUIET_FAN), look.readings.fan_percent
    if not levels or levels.stop <= 0 or fan_percent is None:
        return True
    return levels.refuses(fan_percent, look.is_permitting)


def _place_not_allowed(look: _Look) -> bool | None:
    allowed, place = look.policy.places.allowed, look.readings.place
    if not allowed:
        return False
    return None if place is None else place not in allowed


def _metered_link(look: _Look) -> bool | None:
    return False if look.policy.link.allows_metered else look.readings.is_link_metered


def _data_cap(look: _Look) -> bool:
    cap = look.policy.link.day_bytes_max
    return cap is not None and link_bytes_on(look.usage, local_day(look.local_ms)) >= cap


def _wear_budget(look: _Look) -> bool:
    day = local_day(look.local_ms)
    kinds = over(look.usage.wear, look.policy.wear, day, is_permitting=look.is_permitting)
    return bool(kinds)


def _row(refusal: Refusal, rule: _Rule, *sensors: str) -> _Row:
    return _Row(refusal, sensors, rule)


def _limit_row(*limits: Limit) -> _Row:
    """The row of limits that have their refusal and their sensor in common."""
    sensor = limits[0].sensor

    def rule(look: _Look) -> bool | None:
        levels = [one for limit in limits if (one := levels_of(look.policy, limit))]
        if not levels:
            return False
        value: float | None = getattr(look.readings, sensor)
        if value is None:
            return None
        return any(one.refuses(value, look.is_permitting) for one in levels)

    return _Row(limits[0].refusal, (sensor,), rule)


_ROWS = (
    _row(Refusal.NOT_PARKED, _not_parked, "is_parked"),
    _row(Refusal.DRIVER_PRESENT, _driver_present, "is_driver_present"),
    _row(Refusal.DEPARTURE_SOON, _departure_soon),
    _row(Refusal.UPDATE_PENDING, _update_pending, "is_updating"),
    _row(Refusal.SERVICE_MODE, _service_mode, "is_in_service"),
    _row(Refusal.PRECONDITIONING, _preconditioning, "is_preconditioning"),
    _row(Refusal.SENTRY, _sentry, "is_sentry_on"),
    _row(Refusal.UNPLUGGED, _unplugged, "is_plugged_in"),
    _limit_row(SOC_FLOOR),
    _row(Refusal.CHARGE_FIRST, _charge_first, "is_charging", "soc_percent"),
    _limit_row(LOW_VOLTAGE),
    _limit_row(COMPUTE_HEAT),
    _limit_row(BATTERY_HEAT, BATTERY_COLD),
    _limit_row(AMBIENT_HEAT),
    _limit_row(POWER_CAP),
    _limit_row(OTHERS_LOAD),
    _row(Refusal.OUTSIDE_COMPUTE_HOURS, _outside_compute_hours),
    _row(Refusal.OUTSIDE_NETWORK_HOURS, _outside_network_hours),
    _row(Refusal.QUIET_HOURS, _quiet_hours),
    _row(Refusal.PLACE_NOT_ALLOWED, _place_not_allowed, "place"),
    _row(Refusal.METERED_LINK, _metered_link, "is_link_metered"),
    _row(Refusal.DATA_CAP, _data_cap),
    _row(Refusal.WEAR_BUDGET, _wear_budget),
)
