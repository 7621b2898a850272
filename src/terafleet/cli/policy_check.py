"""Looks at an owner policy as a careful friend would: what it wishes, needs, and contradicts."""

from typing import Any

import msgspec

from terafleet.agent.standing_words import REFUSALS
from terafleet.cli.policy_words import Wish, wishes
from terafleet.core.asking_price import asking_price_per_hour
from terafleet.core.day_use import NOTHING_USED
from terafleet.core.guard_accounts import conditions_of
from terafleet.core.limits import LIMITS, SOC_FLOOR, levels_of
from terafleet.core.local_time import HOURS_PER_DAY, MS_PER_DAY, MS_PER_WEEK
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_preview import working
from terafleet.core.pricing import Plan
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import missing_sensors, refusals, sensors_of
from terafleet.core.units import MICRO, MS_PER_MINUTE

WEEK_HOURS = 7 * HOURS_PER_DAY
STEP_MS = 15 * MS_PER_MINUTE
STEPS_PER_HOUR = 4
MONDAY_MS = 4 * MS_PER_DAY
"""5 January 1970, 00:00."""


class Sensor(msgspec.Struct, frozen=True):
    """A reading that a wish needs, and what the car says; `is_there` None: nobody knows."""

    name: str
    is_there: bool | None
    value: Any = None


class CheckedWish(msgspec.Struct, frozen=True):
    """A field that differs from the default, in a sentence, and what it needs."""

    path: str
    value: Any
    sentence: str
    sensors: tuple[Sensor, ...]


class Fault(msgspec.Struct, frozen=True):
    """A field that can't be as it is written, by its path, and what is allowed."""

    path: str
    allowed: str


class Checked(msgspec.Struct, frozen=True):
    """All that there is to say of a policy; with faults, nothing but them.

    `missing` are the readings that the policy needs and this car does not give; None where no
    car was looked at. `hours_a_week` is how long it may work if all else is well.
    """

    source: str
    faults: tuple[Fault, ...] = ()
    wishes: tuple[CheckedWish, ...] = ()
    doubts: tuple[str, ...] = ()
    missing: tuple[str, ...] | None = None
    hours_a_week: float = 0.0


def checked(source: str, policy: OwnerPolicy, newest: Readings | None) -> Checked:
    """What a policy without faults comes to; `newest` is what the car said last, if it did."""
    missing = None if newest is None else missing_sensors(policy, newest, newest.at_ms)
    return Checked(
        source=source,
        wishes=tuple(_with_sensors(wish, newest) for wish in wishes(policy)),
        doubts=tuple(doubts(policy, newest)),
        missing=missing,
        hours_a_week=open_hours(policy)[0],
    )


def faults_of(texts: tuple[str, ...]) -> tuple[Fault, ...]:
    """Faults as they are told, each `path: what is allowed`."""
    return tuple(Fault(path, allowed) for path, _, allowed in (t.partition(": ") for t in texts))


def open_hours(policy: OwnerPolicy) -> tuple[float, tuple[Refusal, ...]]:
    """How many hours of a week the car may work if all readings are at their best.

    And the reasons of the rest, those of most hours first. A pause does not count.
    """
    freed = msgspec.structs.replace(policy, is_paused=False)
    best = _at_their_best(freed)
    counts: dict[Refusal, int] = {}
    steps_open = 0
    for at_ms in range(MONDAY_MS, MONDAY_MS + MS_PER_WEEK, STEP_MS):
        readings = msgspec.structs.replace(best, at_ms=at_ms)
        found = refusals(freed, readings, NOTHING_USED, False, at_ms)
        steps_open += not found
        for refusal in found:
            counts[refusal] = counts.get(refusal, 0) + 1
    reasons = tuple(sorted(counts, key=lambda refusal: -counts[refusal]))
    return steps_open / STEPS_PER_HOUR, reasons


def doubts(policy: OwnerPolicy, newest: Readings | None) -> list[str]:
    """What is allowed, but hardly meant."""
    found = []
    hours, reasons = open_hours(policy)
    if not hours:
        named = ", ".join(REFUSALS[reason] for reason in reasons)
        found.append(f"There is no time of the week at which this car may work: {named}.")
    if policy.resume_at and not policy.is_paused:
        found.append("resume_at ends no pause, as the car is not paused.")
    return found + _charge_doubts(policy, newest) + _quiet_doubts(policy)


def price_doubts(policy: OwnerPolicy, newest: Readings, computer_mw: int) -> list[str]:
    """Whether what an hour asks for is more than fleets pay by default, as the car stands."""
    conditions = conditions_of(working(policy, newest), newest.at_ms)
    asked = asking_price_per_hour(policy.terms, conditions, computer_mw).total_micro
    asked = max(asked, policy.work.reward_micro_per_hour_min)
    limit = Plan().asking_micro_per_hour_max
    if asked <= limit:
        return []
    return [
        f"As the car stands, an hour of work asks for {asked / MICRO:.4f}; a fleet pays "
        f"{limit / MICRO:.4f} at the most unless its operator says otherwise."
    ]


def _charge_doubts(policy: OwnerPolicy, newest: Readings | None) -> list[str]:
    charge, found = policy.charge, []
    floor = levels_of(policy, SOC_FLOOR)
    if not charge.needs_plug and floor is None:
        found.append("Neither plug nor floor: work may empty the battery.")
    if charge.is_charge_first and charge.capacity_mwh is None:
        found.append(
            "charge.is_charge_first without charge.capacity_mwh: nobody knows how long charging "
            "takes, so there is no work while it charges and the charge is not there."
        )
    if charge.departures and not charge.is_charge_first:
        found.append(
            "The charge of your departures is not watched over: charge.is_charge_first is false."
        )
    capacity_mwh = policy.terms.pack.capacity_mwh
    if charge.capacity_mwh is not None and charge.capacity_mwh != capacity_mwh:
        found.append("charge.capacity_mwh and terms.pack.capacity_mwh are not the same battery.")
    most = newest.charge_limit_percent if newest else None
    if most is not None and floor and floor.begin > most:
        found.append(
            f"The car charges up to {most:g} %, but begins to work at {floor.begin:g} % only."
        )
    return found


def _quiet_doubts(policy: OwnerPolicy) -> list[str]:
    hours = policy.hours
    if hours.quiet_fan_percent_max is not None and not hours.quiet:
        return ["hours.quiet_fan_percent_max holds in quiet hours, but there are none."]
    return []


def _at_their_best(policy: OwnerPolicy) -> Readings:
    """Readings of a car that does nothing but stand, within all limits of a policy."""
    best: dict[str, Any] = {
        "is_parked": True,
        "is_driver_present": False,
        "is_plugged_in": True,
        "is_charging": False,
        "is_preconditioning": False,
        "is_sentry_on": False,
        "is_updating": False,
        "is_in_service": False,
        "is_link_metered": False,
        "soc_percent": 100.0,
        "place": next(iter(policy.places.allowed), None),
        "fan_percent": 0.0,
    }
    for limit in LIMITS:
        levels = levels_of(policy, limit)
        # Of two limits of a sensor the ceiling comes first; a policy without faults has the
        # other's level below it.
        if levels and (limit.is_ceiling or limit.sensor not in best):
            best[limit.sensor] = levels.begin
    return Readings(0, **best)


def _with_sensors(wish: Wish, newest: Readings | None) -> CheckedWish:
    names = sensors_of(wish.refusal) if wish.refusal and _needs_sensors(wish) else ()
    return CheckedWish(
        wish.path, wish.value, wish.sentence, tuple(_sensor(name, newest) for name in names)
    )


def _needs_sensors(wish: Wish) -> bool:
    """What is allowed needs none, and neither does what is not wanted."""
    if ".allows_" in wish.path:
        return wish.value is False
    return wish.value is not None and wish.value is not False and wish.value != ()


def _sensor(name: str, newest: Readings | None) -> Sensor:
    if newest is None:
        return Sensor(name, None)
    value = getattr(newest, name)
    return Sensor(name, value is not None, value)
