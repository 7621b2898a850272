"""The arithmetic of energy meters."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.computer_power import (
    BASELINE_MS_MIN,
    GAP_MS_MAX,
    POWER_MW_MAX,
    Baseline,
    BusySample,
    CorePower,
    WholeMwh,
    fit_core_power,
    is_plausible,
    passed_uj,
)
from terafleet.core.units import MS_PER_HOUR


@pytest.mark.parametrize(
    ("before", "after", "counter_range", "passed"),
    [(5, 5, 100, 0), (5, 90, 100, 85), (90, 5, 100, 15), (90, 5, 0, 5), (90, 5, 50, 5)],
)
def test_a_counter_may_begin_anew(before: int, after: int, counter_range: int, passed: int) -> None:
    assert passed_uj(before, after, counter_range) == passed


@given(st.lists(st.integers(0, 99), max_size=50))
def test_a_counter_that_is_read_often_enough_loses_nothing(steps: list[int]) -> None:
    total = seen = counted = 0
    for step in steps:
        total += step
        shown = total % 100
        counted += passed_uj(seen, shown, 100)
        seen = shown
    assert counted == total


def test_what_no_computer_uses_is_not_plausible() -> None:
    assert is_plausible(POWER_MW_MAX * 1_000, 1_000)
    assert not is_plausible(POWER_MW_MAX * 1_000 + 1, 1_000)
    assert not is_plausible(-1, 1_000)
    assert not is_plausible(0, GAP_MS_MAX + 1), "it was asleep meanwhile"


def test_an_idle_power_is_believed_when_enough_was_measured() -> None:
    baseline = Baseline()
    baseline.learn(10_000 * (BASELINE_MS_MIN - 1), BASELINE_MS_MIN - 1)
    assert baseline.power_mw is None
    baseline.learn(10_000, 1)
    assert baseline.power_mw == 10_000


def test_an_idle_power_follows_what_the_computer_does_of_late() -> None:
    baseline = Baseline()
    for _ in range(60):
        baseline.learn(30_000 * 1_000, 1_000)
    for _ in range(60):
        baseline.learn(10_000 * 1_000, 1_000)
    assert baseline.power_mw == pytest.approx(10_000 + 20_000 / 2.718, rel=0.02)
    for _ in range(600):
        baseline.learn(10_000 * 1_000, 1_000)
    assert baseline.power_mw == pytest.approx(10_000, rel=0.01)


def line(idle_mw: int, core_mw: int, noise_mw: int = 0) -> list[BusySample]:
    rng = random.Random(7)
    powers = [(cores / 4, idle_mw + core_mw * cores / 4) for cores in range(17)]
    return [
        BusySample(cores, round(power + rng.uniform(-noise_mw, noise_mw)))
        for cores, power in powers
    ]


@given(st.integers(0, 300_000), st.integers(1_000, 50_000))
def test_the_power_of_a_core_is_found_from_samples(idle_mw: int, core_mw: int) -> None:
    fit = fit_core_power(line(idle_mw, core_mw))
    # Samples are whole milliwatts, so that a line at 0 may seem to begin just below.
    if fit is None:
        assert idle_mw <= 1
        return
    assert abs(fit.idle_mw - idle_mw) <= 1
    assert abs(fit.core_power_mw - core_mw) <= 1
    assert fit.error_mw <= 1


def test_a_fit_says_how_far_it_is_off() -> None:
    fit = fit_core_power(line(20_000, 8_000, noise_mw=2_000))
    assert fit is not None
    assert fit.core_power_mw == pytest.approx(8_000, rel=0.1)
    assert 500 < fit.error_mw < 2_000


@pytest.mark.parametrize(
    "samples",
    [
        line(20_000, 8_000)[:9],
        [BusySample(1.0, 20_000 + number) for number in range(20)],
        line(20_000, -1_000),
        [BusySample(4 + number / 4, 1_000 * number) for number in range(20)],
    ],
    ids=["too few", "equally busy", "falling", "negative when idle"],
)
def test_what_is_no_power_of_a_core_is_refused(samples: list[BusySample]) -> None:
    assert fit_core_power(samples) is None


def test_a_line_that_fits_is_told_whole() -> None:
    assert fit_core_power(line(20_000, 8_000)) == CorePower(20_000, 8_000, 0)


@given(st.lists(st.integers(0, 10 * MS_PER_HOUR)))
def test_whole_mwh_are_right_in_sum(energies_uj: list[int]) -> None:
    whole = WholeMwh()
    parts = [whole.of(energy_uj) for energy_uj in energies_uj]
    assert sum(parts) == whole.total_mwh == sum(energies_uj) // MS_PER_HOUR
