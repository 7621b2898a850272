"""Since when each refusal stands, and what would end it; words for it are not its business."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from terafleet.core.charge_first import next_departure, soc_needed
from terafleet.core.day_use import NOTHING_USED, DayUse
from terafleet.core.limits import LIMITS, QUIET_FAN, Levels, Limit, levels_of
from terafleet.core.local_time import DAYS_PER_WEEK, MS_PER_DAY, local_day
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_turns import next_turn_ms
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import missing_sensors, refusals, resume_ms, sensors_of
from terafleet.core.wear import WearKind, over

AHEAD_MS = 2 * DAYS_PER_WEEK * MS_PER_DAY
"""How far ahead the end of a refusal is looked for; weeks are alike."""

TURNS_MAX = 500
"""How many changes are looked at on the way."""

_OF_TIME = frozenset(
    {
        Refusal.DEPARTURE_SOON,
        Refusal.OUTSIDE_COMPUTE_HOURS,
        Refusal.OUTSIDE_NETWORK_HOURS,
        Refusal.QUIET_HOURS,
        Refusal.DATA_CAP,
        Refusal.WEAR_BUDGET,
    }
)
_OF_THE_AGENT = frozenset({Refusal.YIELDING, Refusal.AGENT_STARTING, Refusal.AGENT_STOPPING})


class StandingRefusal(msgspec.Struct, frozen=True, array_like=True):
    """A refusal, and since when it stands without a break."""

    refusal: Refusal
    since_ms: int


class EndsBy(StrEnum):
    """What ends a refusal."""

    LEVEL = "level"
    """A reading comes to a level."""
    TIME = "time"
    CAR = "car"
    """The car says something else."""
    READING = "reading"
    """A sensor says anything."""
    OWNER = "owner"
    AGENT = "agent"
    WORK = "work"
    """Work comes that pays more."""


class Ending(msgspec.Struct, frozen=True):
    """What would end a refusal.

    `sensors` are the readings that it comes from; with a level, `value` is the reading and
    `level` where the car permits again, from below if it `is_ceiling`. `at_ms` is when time ends
    it, by the clock of the readings; `dwell_ms` how long all must be well. `accounts` are those
    of wear that are at their cap, `places` the labels that are allowed.
    """

    by: EndsBy
    sensors: tuple[str, ...] = ()
    value: float | None = None
    level: float | None = None
    is_ceiling: bool = False
    at_ms: int | None = None
    dwell_ms: int | None = None
    accounts: tuple[WearKind, ...] = ()
    places: tuple[str, ...] = ()


def still_standing(
    before: Iterable[StandingRefusal], found: Iterable[Refusal], now_ms: int
) -> tuple[StandingRefusal, ...]:
    """What stands after a look at the car: what stood before stands since then."""
    since_ms = {one.refusal: one.since_ms for one in before}
    return tuple(StandingRefusal(each, since_ms.get(each, now_ms)) for each in found)


def what_ends(
    refusal: Refusal,
    policy: OwnerPolicy,
    readings: Readings | None,
    now_ms: int,
    usage: DayUse = NOTHING_USED,
) -> Ending:
    """What would end a refusal that stands at this moment, as far as anybody can tell."""
    if refusal is Refusal.READING_MISSING:
        return Ending(EndsBy.READING, sensors=missing_sensors(policy, readings, now_ms))
    if refusal is Refusal.OWNER_PAUSED:
        at_ms = resume_ms(policy, readings.utc_offset_ms if readings else None)
        return Ending(EndsBy.OWNER if at_ms is None else EndsBy.TIME, at_ms=at_ms)
    if refusal is Refusal.SETTLING:
        return Ending(EndsBy.TIME, dwell_ms=policy.giving_back.settle_ms)
    if refusal is Refusal.REWARD_TOO_LOW:
        return Ending(EndsBy.WORK)
    if refusal in _OF_THE_AGENT:
        return Ending(EndsBy.AGENT)
    if refusal is Refusal.READING_STALE or readings is None:
        return Ending(EndsBy.READING)
    if refusal in _OF_TIME:
        return _ends_by_time(refusal, policy, readings, now_ms, usage)
    return _ends_by_car(refusal, policy, readings, now_ms)


def _ends_by_time(
    refusal: Refusal, policy: OwnerPolicy, readings: Readings, now_ms: int, usage: DayUse
) -> Ending:
    at_ms = _end_ms(refusal, policy, readings, now_ms, usage)
    by = EndsBy.OWNER if at_ms is None else EndsBy.TIME
    if refusal is Refusal.WEAR_BUDGET:
        day = local_day(now_ms + readings.utc_offset_ms)
        accounts = over(usage.wear, policy.wear, day, is_permitting=False)
        return Ending(by, at_ms=at_ms, accounts=accounts)
    fan = levels_of(policy, QUIET_FAN)
    if refusal is Refusal.QUIET_HOURS and fan and fan.stop > 0:
        return _level(QUIET_FAN, fan, readings, by, at_ms)
    return Ending(by, at_ms=at_ms)


def _end_ms(
    refusal: Refusal, policy: OwnerPolicy, readings: Readings, now_ms: int, usage: DayUse
) -> int | None:
    """When time alone ends it, if the readings come in as they are; None if not in `AHEAD_MS`."""
    at_ms = now_ms
    for _ in range(TURNS_MAX):
        at_ms = next_turn_ms(policy, readings, at_ms)
        if at_ms > now_ms + AHEAD_MS:
            return None
        fresh = msgspec.structs.replace(readings, at_ms=at_ms)
        if refusal not in refusals(policy, fresh, usage, False, at_ms):
            return at_ms
    return None


def _ends_by_car(refusal: Refusal, policy: OwnerPolicy, readings: Readings, now_ms: int) -> Ending:
    if refusal is Refusal.CHARGE_FIRST:
        departure = next_departure(policy.charge, readings, now_ms)
        level = soc_needed(policy.charge, departure, is_permitting=False)
        return Ending(
            EndsBy.LEVEL, sensors=("soc_percent",), value=readings.soc_percent, level=level
        )
    sensors = sensors_of(refusal)
    for limit in LIMITS:
        levels = levels_of(policy, limit) if limit.refusal is refusal else None
        value: float | None = getattr(readings, limit.sensor)
        if levels and value is not None and levels.refuses(value, is_permitting=False):
            return _level(limit, levels, readings, EndsBy.LEVEL, None)
    places = policy.places.allowed if refusal is Refusal.PLACE_NOT_ALLOWED else ()
    return Ending(EndsBy.CAR, sensors=sensors, places=places)


def _level(
    limit: Limit, levels: Levels, readings: Readings, by: EndsBy, at_ms: int | None
) -> Ending:
    return Ending(
        by,
        sensors=(limit.sensor,),
        value=getattr(readings, limit.sensor),
        level=levels.begin,
        is_ceiling=limit.is_ceiling,
        at_ms=at_ms,
    )
