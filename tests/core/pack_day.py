"""The day of a car, and what eight years of it take from its pack: the world of a reference table.

The table tells what compute adds to the loss of capacity of a pack of 75 kWh: 10 kWh of driving a
day, a limit of 80 %, plugged in from 18:15 to 07:30, a temperate climate, 8 years, computed with
NREL's BLAST-Lite. Three figures of that world are not told: the climate, the power of the charger
and what more than 10 kWh makes 54 cycles a year. They were chosen so that the first row and the
cycles of the rows with watts come out right (12.3 °C, 6.4 kW, 11.1 kWh), and by comparing days with
the whole table: the other rows are no wholly independent check.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from terafleet.core.battery_ageing import (
    Chemistry,
    PackLife,
    PackUse,
    added_loss,
    calendar_rate,
    cycle_rate,
    grown,
)
from terafleet.core.units import MS_PER_MINUTE

CAPACITY_KWH = 75.0
STEP_H = 1 / 12
STEPS = 288
"""Of five minutes each; a top-up takes some twenty."""

SAMPLE_STEPS = 3
MONTHS = 12
YEARS = 8
DAYS = 365 * YEARS
LEAVES_H, AT_WORK_H, LEAVES_WORK_H, HOME_H, PLUGGED_H = 7.5, 8.5, 17.5, 18.25, 18.25
DRIVING_H = 0.75
DRIVING_KWH = 11.1
CHARGER_KW = 6.4
TOP_UP_SHARE = 0.026
"""The saw-tooth: a plugged car lets its pack fall by so much before it charges again."""

STORAGE_RATE_PER_H = 0.01
"""A rate below counts as storage, as in BLAST-Lite."""

YEAR_C, SEASON_C, DAYTIME_C = 12.3, 9.0, 5.0


class Scenario(NamedTuple):
    """What compute does to the day: watts while plugged in, or 08:30 to 17:30 while not."""

    watts: int = 0
    is_at_work: bool = False
    warming_c: float = 0.0
    limit_percent: int = 80


class Step(NamedTuple):
    """Five minutes: charge at their end (share), and what compute takes out of the pack (kWh)."""

    soc: float
    hour: float
    is_working: bool
    work_kwh: float


SCENARIOS = {
    "no compute": Scenario(),
    "150 W plugged in": Scenario(150),
    "300 W plugged in": Scenario(300),
    "500 W plugged in": Scenario(500),
    "1,000 W plugged in": Scenario(1_000),
    "300 W unplugged, 9 h at work": Scenario(300, is_at_work=True),
    "300 W plugged in, pack 3 °C warmer": Scenario(300, warming_c=3.0),
    "300 W plugged in, pack 8 °C warmer": Scenario(300, warming_c=8.0),
    "300 W, 3 °C warmer, limit 70 %": Scenario(300, warming_c=3.0, limit_percent=70),
    "no compute, limit 60 %": Scenario(limit_percent=60),
    "no compute, limit 90 %": Scenario(limit_percent=90),
}

REFERENCE = {
    "no compute": (54, 10.4, 3.9),
    "150 W plugged in": (62, -0.10, 0.16),
    "300 W plugged in": (70, -0.04, 0.36),
    "500 W plugged in": (80, 0.01, 0.60),
    "1,000 W plugged in": (101, 0.09, 1.17),
    "300 W unplugged, 9 h at work": (68, 0.04, 0.32),
    "300 W plugged in, pack 3 °C warmer": (70, 0.58, 0.51),
    "300 W plugged in, pack 8 °C warmer": (70, 1.73, 0.89),
    "300 W, 3 °C warmer, limit 70 %": (70, -0.63, 0.16),
    "no compute, limit 60 %": (54, -2.2, -0.5),
    "no compute, limit 90 %": (54, 1.3, 0.3),
}
"""Full cycles a year, and points of capacity lost by NCA and LFP: all of them in the first row,
more than in the first row in the others. The columns of these two chemistries."""

REFERENCE_OF_OTHERS = {
    "150 W plugged in": 0.42,
    "300 W plugged in": 0.76,
    "500 W plugged in": 1.17,
    "1,000 W plugged in": 0.91,
    "300 W unplugged, 9 h at work": 0.60,
    "300 W plugged in, pack 3 °C warmer": 0.87,
    "300 W plugged in, pack 8 °C warmer": 2.23,
    "300 W, 3 °C warmer, limit 70 %": 0.59,
}
"""Points that the worst of the table's four other chemistries loses more than in the first row: one
of NMC 50 Ah in the pack that is 8 °C warmer, NMC811 with silicon in all others."""


@cache
def day(scenario: Scenario) -> tuple[Step, ...]:
    """The last of some days, when each is like the one before."""
    soc, is_charging = scenario.limit_percent / 100, False
    steps: list[Step] = []
    for number in range(4 * STEPS):
        hour = number % STEPS * STEP_H
        soc, is_charging, step = _step(scenario, soc, hour, is_charging)
        steps.append(step)
    return tuple(steps[-STEPS:])


def _step(
    scenario: Scenario, soc: float, hour: float, is_charging: bool
) -> tuple[float, bool, Step]:
    limit = scenario.limit_percent / 100
    is_plugged_in = hour >= PLUGGED_H or hour < LEAVES_H
    is_driving = any(begin <= hour < begin + DRIVING_H for begin in (LEAVES_H, LEAVES_WORK_H))
    if not is_plugged_in:
        is_charging = False
    elif abs(hour - PLUGGED_H) < STEP_H / 2 or soc <= limit - TOP_UP_SHARE:
        is_charging = True
    is_there = AT_WORK_H <= hour < LEAVES_WORK_H if scenario.is_at_work else is_plugged_in
    work_kwh = scenario.watts / 1_000 * STEP_H if is_there and not is_charging else 0.0
    change_kwh = -work_kwh - (DRIVING_KWH / 2 / DRIVING_H * STEP_H if is_driving else 0.0)
    if is_charging:
        change_kwh += min(CHARGER_KW * STEP_H, (limit - soc) * CAPACITY_KWH)
    soc += change_kwh / CAPACITY_KWH
    is_charging = is_charging and soc < limit - 1e-9
    return soc, is_charging, Step(soc, hour, is_there and scenario.watts > 0, work_kwh)


def cycles_per_year(scenario: Scenario) -> float:
    """Equivalent full cycles: half of all that goes in and out."""
    return _turnover(day(scenario)) / 2 * 365


def mean_rate_per_h(scenario: Scenario) -> float:
    """The mean over the whole day, rest included, as BLAST-Lite takes it."""
    rates = (change / STEP_H for change in _changes(day(scenario)))
    return sum(rate for rate in rates if rate >= STORAGE_RATE_PER_H) / STEPS


def life_of(scenario: Scenario) -> PackLife:
    """What the pack goes through in eight years of such days."""
    steps = day(scenario)
    socs = [step.soc for step in steps]
    return PackLife(
        days=DAYS,
        cycles=round(cycles_per_year(scenario) * YEARS),
        soc_percent=100 * sum(socs) / STEPS,
        temperature_c=YEAR_C,
        depth_percent=100 * (max(socs) - min(socs)),
        rate_per_h=mean_rate_per_h(scenario),
    )


def loss_points(chemistry: Chemistry, scenario: Scenario) -> float:
    """The capacity that is lost in eight years, in percentage points."""
    life, steps = life_of(scenario), day(scenario)
    calendar = cycle = 0.0
    for month in range(MONTHS):
        at_rest = by_cycles = 0.0
        samples = list(_samples(scenario, steps, month))
        for soc_percent, temperature_c, _ in samples:
            at_rest += calendar_rate(chemistry, soc_percent, temperature_c)
            by_cycles += cycle_rate(chemistry, life.depth_percent, life.rate_per_h, temperature_c)
        # One rate for a day, the mean of its moments, as BLAST-Lite takes it.
        calendar = grown(calendar, at_rest / len(samples), chemistry.calendar_power, DAYS / MONTHS)
        cycles = cycles_per_year(scenario) * YEARS / MONTHS
        cycle = grown(cycle, by_cycles / len(samples), chemistry.cycle_power, cycles)
    return 100 * (calendar + cycle)


def charged_points(chemistry: Chemistry, scenario: Scenario) -> float:
    """What the terms charge for in eight years of such days, in percentage points."""
    steps = day(scenario)
    loss = 0.0
    for month in range(MONTHS):
        for soc_percent, temperature_c, step in _samples(scenario, steps, month):
            if step.is_working:
                use = PackUse(
                    duration_ms=5 * SAMPLE_STEPS * MS_PER_MINUTE,
                    energy_mwh=round(step.work_kwh * SAMPLE_STEPS * 1_000_000),
                    soc_percent=soc_percent,
                    temperature_c=temperature_c,
                    warming_c=scenario.warming_c,
                )
                loss += added_loss(chemistry, PackLife(), use, round(CAPACITY_KWH * 1_000_000))
    return 100 * loss * DAYS / MONTHS


def added_points(chemistry: Chemistry, scenario: Scenario) -> float:
    """What a scenario loses more than a car without compute, in percentage points."""
    return loss_points(chemistry, scenario) - loss_points(chemistry, Scenario())


def _samples(
    scenario: Scenario, steps: tuple[Step, ...], month: int
) -> Iterator[tuple[float, float, Step]]:
    """Charge in percent and temperature, every fifteen minutes of a month's typical day."""
    season_c = YEAR_C - SEASON_C * math.cos(2 * math.pi * (month - 0.5) / MONTHS)
    for step in steps[SAMPLE_STEPS // 2 :: SAMPLE_STEPS]:
        air_c = season_c - DAYTIME_C * math.cos(2 * math.pi * (step.hour - 3) / 24)
        warming_c = scenario.warming_c if step.is_working else 0.0
        yield 100 * step.soc, air_c + warming_c, step


def _changes(steps: tuple[Step, ...]) -> list[float]:
    """By how much the charge goes up or down in each step, as shares."""
    before = (steps[-1], *steps[:-1])
    return [abs(step.soc - last.soc) for last, step in zip(before, steps, strict=True)]


def _turnover(steps: tuple[Step, ...]) -> float:
    return sum(_changes(steps))
