"""Says in a person's words why a car refuses, since when, and what would end it."""

import math
from datetime import UTC, datetime

from terafleet.core.reasons import Refusal
from terafleet.core.standing import Ending, EndsBy, StandingRefusal
from terafleet.core.units import MS_PER_S
from terafleet.core.wear import WearKind

_PER_MILLI = 1_000
_NAMED_DAYS = 6
"""A day this near is said by its name."""

REFUSALS = {
    Refusal.READING_MISSING: "a sensor gives no reading",
    Refusal.READING_STALE: "the readings are too old",
    Refusal.NOT_PARKED: "the car is not parked",
    Refusal.DRIVER_PRESENT: "somebody is in the car",
    Refusal.DEPARTURE_SOON: "the car is about to be driven",
    Refusal.UPDATE_PENDING: "the car's software is being updated",
    Refusal.SERVICE_MODE: "the car is in service mode",
    Refusal.PRECONDITIONING: "the car is getting ready for a drive",
    Refusal.SENTRY: "the car watches over itself",
    Refusal.UNPLUGGED: "the car is not plugged in",
    Refusal.SOC_BELOW_FLOOR: "the battery is below what its owner allows",
    Refusal.CHARGE_FIRST: "it charges for the next drive first",
    Refusal.LOW_VOLTAGE: "the low-voltage battery is weak",
    Refusal.TEMPERATURE_COMPUTE: "the computer is too warm",
    Refusal.TEMPERATURE_BATTERY: "the battery is too warm or too cold",
    Refusal.TEMPERATURE_AMBIENT: "it is too warm outside",
    Refusal.POWER_CAP: "the computer draws more than its owner allows",
    Refusal.OTHERS_BUSY: "other programs need the computer",
    Refusal.OUTSIDE_COMPUTE_HOURS: "it is not within the hours for compute",
    Refusal.OUTSIDE_NETWORK_HOURS: "it is not within the hours for the network",
    Refusal.QUIET_HOURS: "it must be quiet at this hour",
    Refusal.PLACE_NOT_ALLOWED: "its owner does not want work at this place",
    Refusal.METERED_LINK: "the link costs by the byte",
    Refusal.DATA_CAP: "the data for today are used up",
    Refusal.WEAR_BUDGET: "the wear for today is used up",
    Refusal.REWARD_TOO_LOW: "the work pays less than it must",
    Refusal.OWNER_PAUSED: "the owner has paused it",
    Refusal.SETTLING: "it waits whether all stays well",
    Refusal.YIELDING: "it gives the car back to its owner",
    Refusal.AGENT_STARTING: "the agent is starting",
    Refusal.AGENT_STOPPING: "the agent is stopping",
}
"""Why a car does not compute, by the reason."""

SENSORS = {
    "is_parked": "whether it is parked",
    "is_driver_present": "whether somebody is in it",
    "is_plugged_in": "the plug",
    "soc_percent": "the battery's charge",
    "compute_temperature_c": "the computer's temperature",
    "battery_temperature_c": "the battery's temperature",
    "ambient_temperature_c": "the temperature outside",
    "is_charging": "whether it charges",
    "is_preconditioning": "preconditioning",
    "is_sentry_on": "sentry mode",
    "is_updating": "whether it is being updated",
    "is_in_service": "service mode",
    "place": "the place",
    "is_link_metered": "whether the link is metered",
    "compute_mw": "the computer's power",
    "low_voltage_mv": "the low-voltage battery",
    "other_load_percent": "the load of other programs",
}
"""What a policy may miss, by the name of the reading."""

ACCOUNTS = {
    WearKind.PACK_ENERGY: "energy through the battery",
    WearKind.ELECTRONICS: "hours of the electronics",
    WearKind.FLASH: "bytes written to flash",
}

_WHEN_CAR = {
    Refusal.NOT_PARKED: "until it is parked",
    Refusal.DRIVER_PRESENT: "until the driver leaves",
    Refusal.UPDATE_PENDING: "until the update is done",
    Refusal.SERVICE_MODE: "until service is over",
    Refusal.PRECONDITIONING: "until it is ready for the drive",
    Refusal.SENTRY: "until it watches no more",
    Refusal.UNPLUGGED: "until it is plugged in",
    Refusal.METERED_LINK: "until another link is there",
}


def standing_in_words(
    standing: StandingRefusal, ending: Ending, now_ms: int, utc_offset_ms: int
) -> str:
    """A sentence on a refusal: what it is, since when, and what would end it.

    Times are those of the place's own clock, `utc_offset_ms` ahead of UTC.
    """
    since = _time(standing.since_ms, now_ms, utc_offset_ms)
    ends = _end(standing, ending, now_ms, utc_offset_ms)
    return f"{REFUSALS[standing.refusal]}{_what(ending)} since {since}; {ends}"


def _what(ending: Ending) -> str:
    if ending.value is not None and ending.sensors:
        return f", {_amount(ending.sensors[0], ending.value)}"
    named = [ACCOUNTS[account] for account in ending.accounts]
    return f", {' and '.join(named)}" if named else ""


def _end(standing: StandingRefusal, ending: Ending, now_ms: int, utc_offset_ms: int) -> str:
    match ending.by:
        case EndsBy.LEVEL:
            return f"permits again at {_level(ending)}"
        case EndsBy.TIME | EndsBy.OWNER:
            return _until(standing, ending, now_ms, utc_offset_ms)
        case EndsBy.READING:
            named = ", ".join(SENSORS.get(name, name) for name in ending.sensors)
            return f"until the car says again: {named}" if named else "until the car says anything"
        case EndsBy.CAR:
            if ending.places:
                return f"permits at {' or '.join(ending.places)}"
            return _WHEN_CAR.get(standing.refusal, "until the car says otherwise")
        case EndsBy.WORK:
            return "until work pays more"
        case EndsBy.AGENT:
            return "over in a moment"


def _until(standing: StandingRefusal, ending: Ending, now_ms: int, utc_offset_ms: int) -> str:
    at_ms = ending.at_ms
    if ending.dwell_ms is not None:
        at_ms = standing.since_ms + ending.dwell_ms
    if at_ms is None:
        until = "until its owner says otherwise"
    else:
        until = f"until {_time(at_ms, now_ms, utc_offset_ms)}"
    return until if ending.level is None else f"{until}, or at {_level(ending)}"


def _level(ending: Ending) -> str:
    assert ending.level is not None, "an ending by a level has one"
    side = "less" if ending.is_ceiling else "more"
    return f"{_amount(ending.sensors[0], ending.level)} or {side}"


def _amount(sensor: str, value: float) -> str:
    """A reading with its unit, which is the end of its name."""
    if not math.isfinite(value):
        return "no number"
    if sensor.endswith("_mw"):
        return f"{round(value / _PER_MILLI, 1):g} W"
    if sensor.endswith("_mv"):
        return f"{value / _PER_MILLI:.1f} V"
    return f"{round(value, 1):g} {'°C' if sensor.endswith('_c') else '%'}"


def _time(at_ms: int, now_ms: int, utc_offset_ms: int) -> str:
    """A time of day; with the day's name or date where it is another day."""
    at, now = (
        datetime.fromtimestamp((one_ms + utc_offset_ms) // MS_PER_S, tz=UTC)
        for one_ms in (at_ms, now_ms)
    )
    days = abs((at.date() - now.date()).days)
    if days == 0:
        return f"{at:%H:%M}"
    return f"{at:%a %H:%M}" if days <= _NAMED_DAYS else f"{at:%Y-%m-%d %H:%M}"
