"""The owner's analogue limits in one table: each with its sensor, its two levels and its bounds."""

from collections.abc import Callable
from typing import NamedTuple

from terafleet.core.policy import OwnerPolicy
from terafleet.core.reasons import Refusal

PERCENT_MAX = 100.0
GAP_C = 5.0
GAP_SOC_PERCENT = 5.0
GAP_MV = 300.0
SHARE = 0.8
"""Of a ceiling that may stand anywhere: the level at which it permits again if none is given."""


class Levels(NamedTuple):
    """The level at which a car stops, and that at which it begins again."""

    stop: float
    begin: float
    is_ceiling: bool

    def refuses(self, value: float, is_permitting: bool) -> bool:
        """Whether a reading is beyond its level; what is no number always is."""
        level = self.stop if is_permitting else self.begin
        return not (value <= level if self.is_ceiling else value >= level)


class Limit(NamedTuple):
    """One limit: `table` and `name` say where the policy has it, `resume` is the second level.

    `begin_of` is the second level if the owner gives none. Both lie within `least` and `most`.
    """

    refusal: Refusal
    sensor: str
    table: str
    name: str
    resume: str
    is_ceiling: bool
    least: float
    most: float
    begin_of: Callable[[float], float]


def _share(stop: float) -> float:
    return stop * SHARE


def _cooler(stop: float) -> float:
    return stop - GAP_C


def _warmer(stop: float) -> float:
    return stop + GAP_C


def _more_charge(stop: float) -> float:
    return min(PERCENT_MAX, stop + GAP_SOC_PERCENT)


def _more_voltage(stop: float) -> float:
    return stop + GAP_MV


SOC_FLOOR = Limit(
    Refusal.SOC_BELOW_FLOOR,
    "soc_percent",
    "charge",
    "soc_percent_min",
    "soc_percent_resume",
    is_ceiling=False,
    least=0.0,
    most=PERCENT_MAX,
    begin_of=_more_charge,
)
COMPUTE_HEAT = Limit(
    Refusal.TEMPERATURE_COMPUTE,
    "compute_temperature_c",
    "temperature",
    "compute_c_max",
    "compute_c_resume",
    is_ceiling=True,
    least=-40.0,
    most=150.0,
    begin_of=_cooler,
)
BATTERY_HEAT = Limit(
    Refusal.TEMPERATURE_BATTERY,
    "battery_temperature_c",
    "temperature",
    "battery_c_max",
    "battery_c_max_resume",
    is_ceiling=True,
    least=-40.0,
    most=80.0,
    begin_of=_cooler,
)
BATTERY_COLD = Limit(
    Refusal.TEMPERATURE_BATTERY,
    "battery_temperature_c",
    "temperature",
    "battery_c_min",
    "battery_c_min_resume",
    is_ceiling=False,
    least=-40.0,
    most=80.0,
    begin_of=_warmer,
)
AMBIENT_HEAT = Limit(
    Refusal.TEMPERATURE_AMBIENT,
    "ambient_temperature_c",
    "temperature",
    "ambient_c_max",
    "ambient_c_resume",
    is_ceiling=True,
    least=-40.0,
    most=80.0,
    begin_of=_cooler,
)
POWER_CAP = Limit(
    Refusal.POWER_CAP,
    "compute_mw",
    "power",
    "compute_mw_max",
    "compute_mw_resume",
    is_ceiling=True,
    least=0.0,
    most=1e9,
    begin_of=_share,
)
LOW_VOLTAGE = Limit(
    Refusal.LOW_VOLTAGE,
    "low_voltage_mv",
    "power",
    "low_voltage_mv_min",
    "low_voltage_mv_resume",
    is_ceiling=False,
    least=0.0,
    most=60_000.0,
    begin_of=_more_voltage,
)
OTHERS_LOAD = Limit(
    Refusal.OTHERS_BUSY,
    "other_load_percent",
    "power",
    "others_percent_max",
    "others_percent_resume",
    is_ceiling=True,
    least=0.0,
    most=PERCENT_MAX,
    begin_of=_share,
)
QUIET_FAN = Limit(
    Refusal.QUIET_HOURS,
    "fan_percent",
    "hours",
    "quiet_fan_percent_max",
    "quiet_fan_percent_resume",
    is_ceiling=True,
    least=0.0,
    most=PERCENT_MAX,
    begin_of=_share,
)

LIMITS = (
    SOC_FLOOR,
    LOW_VOLTAGE,
    COMPUTE_HEAT,
    BATTERY_HEAT,
    BATTERY_COLD,
    AMBIENT_HEAT,
    POWER_CAP,
    OTHERS_LOAD,
    QUIET_FAN,
)
"""All limits; that of the fan holds in quiet hours only."""


def levels_of(policy: OwnerPolicy, limit: Limit) -> Levels | None:
    """Both levels of a limit, or None where the owner sets none."""
    table = getattr(policy, limit.table)
    stop: float | None = getattr(table, limit.name)
    if stop is None:
        return None
    begin: float | None = getattr(table, limit.resume)
    return Levels(stop, limit.begin_of(stop) if begin is None else begin, limit.is_ceiling)
