"""How much capacity a battery pack loses by time and by energy through it, and how much of that
comes from compute.

Two published chemistries, both of the same form: calendar ageing k·days^p and cycle ageing
k·cycles^p, added; a cycle is an equivalent full cycle, discharge plus charge. The parameters are
those of NREL's BLAST-Lite (BSD-3-Clause; nca_gr_Panasonic3Ah_2018 and lfp_gr_250AhPrismatic_2019).
Losses are shares of the capacity when new. All here is physics: floats, and no rounding.
"""

import math

import msgspec

from terafleet.core.local_time import MS_PER_DAY
from terafleet.core.temperature import kelvin

PERCENT = 100.0
DAYS_PER_YEAR = 365


class Chemistry(msgspec.Struct, frozen=True):
    """The parameters of one chemistry; T in kelvin, soc and depth as shares, rate in 1/h.

    Calendar: k = calendar_factor · exp((calendar_kelvin + soc_kelvin·soc + anode_kelvin·Ua) / T),
    with the power `calendar_power` of days. Ua is the anode potential in volts.
    Cycle: k = (cycle_base + cycle_per_depth·depth + cycle_per_rate·rate) · exp(cycle_kelvin / T),
    with the power `cycle_power` of equivalent full cycles.
    """

    name: str
    calendar_factor: float
    calendar_kelvin: float
    soc_kelvin: float
    anode_kelvin: float
    calendar_power: float
    cycle_base: float
    cycle_per_depth: float
    cycle_per_rate: float
    cycle_kelvin: float
    cycle_power: float


NCA = Chemistry(
    name="nca",
    calendar_factor=75.4,
    calendar_kelvin=-3_340.0,
    soc_kelvin=353.0,
    anode_kelvin=0.0,
    calendar_power=0.512,
    # The source writes the last factor as exp(3e-11/T) + exp(-3e-9/T), which is 2.
    cycle_base=2 * 1.86e-6,
    cycle_per_depth=2 * 1.77e-4,
    cycle_per_rate=2 * 4.74e-11,
    cycle_kelvin=0.0,
    cycle_power=0.699,
)
"""NCA/graphite, Panasonic 18650B. Calendar data of Keil et al., 10.1149/2.0411609jes; cycle data
of Preger et al., 10.1149/1945-7111/abae37 (15 to 35 °C, depths of 80 to 100 %)."""

LFP = Chemistry(
    name="lfp",
    calendar_factor=8.37e4,
    calendar_kelvin=-5_210.0,
    soc_kelvin=0.0,
    anode_kelvin=-3_560.0,
    calendar_power=0.526,
    cycle_base=4.38e-8,
    cycle_per_depth=1.55e-8,
    cycle_per_rate=1.68e-7,
    # The source adds exp(-1.55e5/T) to the last factor, which is below 1e-180 in any car.
    cycle_kelvin=2_190.0,
    cycle_power=0.828,
)
"""LFP/graphite, a prismatic type of 250 Ah. Data of 10.1016/j.est.2023.109042 (10 to 45 °C, depths
of 80 to 100 %, charging up to 0.65 C)."""

CHEMISTRIES = {chemistry.name: chemistry for chemistry in (NCA, LFP)}


class PackLife(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the pack goes through without compute, over the life that its owner counts with.

    The defaults: 8 years, as long as a usual warranty; 54 full cycles a year, some 11 kWh a day
    out of 75; a temperate climate; `depth_percent` of the capacity on a usual day. `rate_per_h`
    is the mean of charging and driving: 0.1 is 7.5 kW of 75 kWh.
    """

    days: int = 8 * DAYS_PER_YEAR
    cycles: int = 8 * 54
    soc_percent: float = 75.0
    temperature_c: float = 12.5
    depth_percent: float = 15.0
    rate_per_h: float = 0.1


class PackUse(msgspec.Struct, frozen=True):
    """What compute does to the pack for a while.

    `energy_mwh` is what is taken out of it (and charged again), `temperature_c` what it has,
    `warming_c` how much of that comes from the work.
    """

    duration_ms: int
    energy_mwh: int
    soc_percent: float
    temperature_c: float
    warming_c: float


def anode_potential_v(soc_percent: float) -> float:
    """The potential of a graphite anode against lithium, in volts.

    Safari and Delacourt, 10.1149/1.3567007; the share of lithium in it by Schimpe et al.,
    10.1149/2.1181714jes.
    """
    x = 0.0085 + 0.7715 * soc_percent / PERCENT
    return (
        0.6379
        + 0.5416 * math.exp(-305.5309 * x)
        + 0.044 * math.tanh(-(x - 0.1958) / 0.1088)
        - 0.1978 * math.tanh((x - 1.0571) / 0.0854)
        - 0.6875 * math.tanh((x + 0.0117) / 0.0529)
        - 0.0175 * math.tanh((x - 0.5692) / 0.0875)
    )


def calendar_rate(chemistry: Chemistry, soc_percent: float, temperature_c: float) -> float:
    """k of calendar ageing: the share lost in the first day, at rest at this charge."""
    exponent = chemistry.calendar_kelvin + chemistry.soc_kelvin * soc_percent / PERCENT
    if chemistry.anode_kelvin:
        exponent += chemistry.anode_kelvin * anode_potential_v(soc_percent)
    return chemistry.calendar_factor * math.exp(exponent / kelvin(temperature_c))


def cycle_rate(
    chemistry: Chemistry, depth_percent: float, rate_per_h: float, temperature_c: float
) -> float:
    """k of cycle ageing: the share lost by the first full cycle.

    `depth_percent` is how far the charge goes up and down, `rate_per_h` the mean rate of charge
    and discharge (1/h: the capacity in an hour).
    """
    depth = chemistry.cycle_per_depth * depth_percent / PERCENT
    rate = chemistry.cycle_per_rate * rate_per_h
    factor = math.exp(chemistry.cycle_kelvin / kelvin(temperature_c))
    return (chemistry.cycle_base + depth + rate) * factor


def grown(loss: float, rate: float, power: float, amount: float) -> float:
    """A loss after more days or cycles at a rate: the state equation of y = k·x^p, in closed form.

    A loss y is as old as x = (y/k)^(1/p) at the present rate and goes on from there, which is
    y' = (y^(1/p) + k^(1/p)·amount)^p. So the order of hot and cold days does not matter.
    """
    return math.pow(math.pow(loss, 1 / power) + math.pow(rate, 1 / power) * amount, power)


def life_loss(chemistry: Chemistry, life: PackLife) -> tuple[float, float]:
    """What the pack loses by its end without compute: by calendar, and by cycles."""
    calendar = calendar_rate(chemistry, life.soc_percent, life.temperature_c)
    cycle = cycle_rate(chemistry, life.depth_percent, life.rate_per_h, life.temperature_c)
    return (
        grown(0.0, calendar, chemistry.calendar_power, life.days),
        grown(0.0, cycle, chemistry.cycle_power, life.cycles),
    )


def added_loss(chemistry: Chemistry, life: PackLife, use: PackUse, capacity_mwh: int) -> float:
    """The share of the capacity that the pack lacks at the end of its life because of a use.

    Only what the use adds: the days that pass anyway are not in it, and neither is a benefit (a
    lower charge, a colder pack). By `grown`, a loss y at the end comes from a sum of k^(1/p)·amount
    over the life; a little more in that sum gives p·y^(1 - 1/p) times as much more of y. That
    factor falls as y grows (p < 1), so the sum over all uses is never less than what they took.
    """
    calendar_end, cycle_end = life_loss(chemistry, life)
    by_warming = _warming_sum(chemistry, use) * _growth(calendar_end, chemistry.calendar_power)
    rate = cycle_rate(chemistry, life.depth_percent, life.rate_per_h, use.temperature_c)
    by_cycles = math.pow(rate, 1 / chemistry.cycle_power) * use.energy_mwh / capacity_mwh
    return by_warming + by_cycles * _growth(cycle_end, chemistry.cycle_power)


def _warming_sum(chemistry: Chemistry, use: PackUse) -> float:
    """What a warmer pack adds to the sum from which calendar ageing comes."""
    cool_c = use.temperature_c - max(0.0, use.warming_c)
    warm = calendar_rate(chemistry, use.soc_percent, use.temperature_c)
    cool = calendar_rate(chemistry, use.soc_percent, cool_c)
    inverse = 1 / chemistry.calendar_power
    days = use.duration_ms / MS_PER_DAY
    return (math.pow(warm, inverse) - math.pow(cool, inverse)) * days


def _growth(loss: float, power: float) -> float:
    """By how much a loss grows with the sum that it comes from: the derivative of sum^p."""
    return power * math.pow(loss, 1 - 1 / power)
