"""The arithmetic of energy meters: counters that begin anew, power held over time, and fits.

A milliwatt over a millisecond is a microjoule, and MS_PER_HOUR microjoules are a mWh.
"""

import math
from collections.abc import Sequence

import msgspec

from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE

GAP_MS_MAX = 30_000
"""Readings that lie further apart say nothing about what was between them: the computer slept."""
POWER_MW_MAX = 3_000_000
"""3 kW: more than any computer in a car, or at a desk, draws."""

BASELINE_MS = MS_PER_MINUTE
"""How long an idle power is remembered: the weights of the mean fall to 1/e within so long."""
BASELINE_MS_MIN = 10_000
"""So long must be measured before it is believed."""

FIT_SAMPLES_MIN = 10
FIT_CORES_MIN = 0.5
"""A slope needs so much difference between the idle and the busy samples."""


class BusySample(msgspec.Struct, frozen=True, array_like=True):
    """What a computer drew while so many of its cores were busy, on average over the sample."""

    busy_cores: float
    power_mw: int


class CorePower(msgspec.Struct, frozen=True, array_like=True):
    """The line through such samples; `error_mw` is what they lie off it (root mean square)."""

    idle_mw: int
    core_power_mw: int
    error_mw: int


def passed_uj(before_uj: int, after_uj: int, range_uj: int) -> int:
    """What a counter counted between two readings, if it began anew at `range_uj` at most once.

    A counter that fell and has no range was set to 0 in between.
    """
    if after_uj >= before_uj:
        return after_uj - before_uj
    return max(0, range_uj - before_uj) + after_uj


def is_plausible(energy_uj: int, duration_ms: int) -> bool:
    """Whether a computer can have used so much in so short a time; a reset counter looks else."""
    return 0 <= energy_uj <= POWER_MW_MAX * duration_ms and duration_ms <= GAP_MS_MAX


class Baseline:
    """What a computer draws without the work: the mean power of a last while of idleness."""

    def __init__(self) -> None:
        self._power_mw = 0.0
        self._measured_ms = 0

    @property
    def power_mw(self) -> int | None:
        """The mean, or None while too little was measured."""
        return round(self._power_mw) if self._measured_ms >= BASELINE_MS_MIN else None

    def learn(self, energy_uj: int, duration_ms: int) -> None:
        """So much was used while nothing was done for anybody else."""
        assert duration_ms > 0
        self._measured_ms += duration_ms
        # At first it is the plain mean of all that was measured.
        share = min(1.0, duration_ms / min(self._measured_ms, BASELINE_MS))
        self._power_mw += (energy_uj / duration_ms - self._power_mw) * share


def fit_core_power(samples: Sequence[BusySample]) -> CorePower | None:
    """What one busy core draws, by the line of least squares through samples.

    None where there are too few, where all are equally busy, or where busy cores draw no more:
    then the estimate in the settings is the better one.
    """
    if len(samples) < FIT_SAMPLES_MIN:
        return None
    cores = [sample.busy_cores for sample in samples]
    powers = [float(sample.power_mw) for sample in samples]
    if max(cores) - min(cores) < FIT_CORES_MIN:
        return None
    mean_cores, mean_mw = math.fsum(cores) / len(samples), math.fsum(powers) / len(samples)
    spread = math.fsum((one - mean_cores) ** 2 for one in cores)
    pairs = zip(cores, powers, strict=True)
    slope = math.fsum((one - mean_cores) * (power - mean_mw) for one, power in pairs) / spread
    idle_mw = mean_mw - slope * mean_cores
    if slope <= 0 or idle_mw < 0:
        return None
    residues = [power - idle_mw - slope * one for one, power in zip(cores, powers, strict=True)]
    error_mw = math.sqrt(math.fsum(one**2 for one in residues) / len(samples))
    return CorePower(round(idle_mw), round(slope), round(error_mw))


class WholeMwh:
    """Turns energy into whole mWh; what is lost by rounding is carried over to the next."""

    def __init__(self) -> None:
        self._carried_uj = 0
        self.total_mwh = 0

    def of(self, energy_uj: int) -> int:
        """So much energy in whole mWh, so that the sum over all calls is right."""
        assert energy_uj >= 0
        energy_mwh, self._carried_uj = divmod(self._carried_uj + energy_uj, MS_PER_HOUR)
        self.total_mwh += energy_mwh
        return energy_mwh
