"""Decides which values of a sample can be true; what no sensor of a car can say is missing."""

import math
from typing import Any

from terafleet.core.readings import SENSORS, Readings
from terafleet.core.units import MS_PER_HOUR

TEMPERATURE_C_MIN, TEMPERATURE_C_MAX = -60.0, 150.0
"""From the coldest parking place on earth to beyond what silicon stands (125 °C at the die)."""
POWER_MW_MAX = 1_000_000_000
"""One megawatt: more than any charging station for cars gives."""
LOW_VOLTAGE_MV_MAX = 100_000
"""Above the 60 V below which a car's small electric system ends (ISO 6469-3, class A)."""
PLACE_CHARACTERS_MAX = 64
DEPARTURE_AWAY_MS_MAX = 366 * 24 * MS_PER_HOUR
UTC_OFFSET_MS_MAX = 14 * MS_PER_HOUR
"""No place's clock is further from UTC (Line Islands, +14 h)."""

PERCENT = (0.0, 100.0)
TEMPERATURE_C = (TEMPERATURE_C_MIN, TEMPERATURE_C_MAX)
POWER_MW = (0, POWER_MW_MAX)

FRACTIONS = {
    "soc_percent": PERCENT,
    "charge_limit_percent": PERCENT,
    "fan_percent": PERCENT,
    "other_load_percent": PERCENT,
    "compute_temperature_c": TEMPERATURE_C,
    "battery_temperature_c": TEMPERATURE_C,
    "ambient_temperature_c": TEMPERATURE_C,
}
"""Between which values, both included, each sensor of a continuous quantity can be."""
WHOLES = {
    "charging_mw": POWER_MW,
    "compute_mw": POWER_MW,
    "low_voltage_mv": (0, LOW_VOLTAGE_MV_MAX),
}
"""The same for the sensors that count in whole units."""


def clean(readings: Readings) -> Readings:
    """The sample with None in the place of each value that can't be true.

    That is a value beyond the bounds above, what is no number, and what has another type than
    the reading. A UTC offset that can't be true is 0, and `at_ms` stays.
    """
    said = {name: getattr(readings, name) for name in SENSORS}
    checked = {name: _checked(name, value, readings.at_ms) for name, value in said.items()}
    offset_ms = _whole(readings.utc_offset_ms, -UTC_OFFSET_MS_MAX, UTC_OFFSET_MS_MAX) or 0
    if offset_ms == readings.utc_offset_ms and all(checked[name] is said[name] for name in said):
        return readings
    return Readings(at_ms=readings.at_ms, utc_offset_ms=offset_ms, **checked)


def _checked(name: str, value: object, at_ms: int) -> Any:
    if name in FRACTIONS:
        return _fraction(value, *FRACTIONS[name])
    if name in WHOLES:
        return _whole(value, *WHOLES[name])
    if name == "departure_at_ms":
        return _whole(value, at_ms - DEPARTURE_AWAY_MS_MAX, at_ms + DEPARTURE_AWAY_MS_MAX)
    if name == "place":
        return value if _is_label(value) else None
    return value if isinstance(value, bool) else None


def _fraction(value: object, least: float, most: float) -> float | None:
    # True and False are numbers to Python, but no quantity.
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if math.isfinite(value) and least <= value <= most else None


def _whole(value: object, least: int, most: int) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if least <= value <= most else None


def _is_label(value: object) -> bool:
    if not isinstance(value, str):
        return False
    return 0 < len(value) <= PLACE_CHARACTERS_MAX and value.isprintable()
