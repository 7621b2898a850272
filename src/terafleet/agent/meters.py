"""Measures the energy of attempts by the best meter that the car has, or else estimates it.

It knows neither sensors nor files: those are meters, and they stand in `adapters/meter`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from terafleet.core.computer_power import (
    GAP_MS_MAX,
    Baseline,
    WholeMwh,
    is_plausible,
    passed_uj,
)
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR

MODEL = "model"
"""The name of the estimate: processor time times what a busy core draws."""
READINGS = "readings"
MW_PER_W = 1_000

SETTLE_MS = 2
"""Meters are read at most so often: a counter of RAPL moves once a millisecond."""
IDLE_CPU_PARTS = 20
"""A runtime that uses less than the 20th part of a core is idle."""


class Meter(Protocol):
    """Something that counts the energy which the car's computer uses."""

    @property
    def name(self) -> str:
        """What the owner calls it."""
        ...

    def energy_uj(self) -> int | None:
        """Energy so far, in microjoules from any beginning, or None while it can't be read.

        It must return at once. Readings before and after a None are not compared.
        """
        ...


class PowerMeter:
    """Counts a power over time, in the mean of two readings that lie next to each other."""

    def __init__(
        self, name: str, power_mw: Callable[[], int | None], now_ms: Callable[[], int]
    ) -> None:
        """`power_mw` is what is drawn at this moment, or None where nobody can say."""
        self.name = name
        self._power_mw = power_mw
        self._now_ms = now_ms
        self._at_ms = 0
        self._seen_mw: int | None = None
        self._twice_uj = 0

    def energy_uj(self) -> int | None:
        """Energy so far; see `Meter`."""
        now_ms, power_mw = self._now_ms(), self._power_mw()
        if power_mw is not None and self._seen_mw is not None:
            self._twice_uj += (power_mw + self._seen_mw) * (now_ms - self._at_ms)
        self._at_ms, self._seen_mw = now_ms, power_mw
        return None if power_mw is None else self._twice_uj // 2


def readings_meter(newest: Callable[[], Readings | None], now_ms: Callable[[], int]) -> PowerMeter:
    """The meter of a car whose readings say what its computer draws; an old sample says nothing."""

    def power_mw() -> int | None:
        readings = newest()
        if readings is None or now_ms() - readings.at_ms > GAP_MS_MAX:
            return None
        return readings.compute_mw

    return PowerMeter(READINGS, power_mw, now_ms)


class MeterFigures(msgspec.Struct, frozen=True):
    """Where the energy of attempts comes from, and what is kept apart from it.

    `idle_w` is what the computer draws without the work, in whole watts, so that noise is no
    change. `anyway_mwh` is that over the time in which it worked; `unclaimed_mwh` is what
    runtimes used for no attempt, as to load a model.
    """

    meter: str
    idle_w: int | None
    work_mwh: int
    anyway_mwh: int
    unclaimed_mwh: int


class Sources(msgspec.Struct, frozen=True):
    """What the energy is told from.

    `cpu_ms` is the runtimes' processor time so far, which falls when one is started anew;
    `is_working` says whether attempts are on their way.
    """

    meters: Sequence[Meter]
    core_power_mw: int
    cpu_ms: Callable[[], int]
    is_working: Callable[[], bool]
    now_ms: Callable[[], int]


class MeteredEnergy:
    """Energy by processor time: what the computer drew above its idle power, shared out.

    All that passes while runtimes work gathers in a pool with the processor time that they used.
    An attempt claims by its own processor time, so those that run at once share what they draw.
    """

    def __init__(self, sources: Sources) -> None:
        """The first meter that can be read and whose idle power is known is taken."""
        assert sources.core_power_mw >= 0
        self._sources = sources
        self._tracks = [_Track(meter) for meter in sources.meters]
        self._at_ms = sources.now_ms()
        self._seen_cpu_ms = sources.cpu_ms()
        self._pool_uj = 0
        self._pool_cpu_ms = 0
        self._claimed = WholeMwh()
        self._anyway_uj = 0
        self._unclaimed_uj = 0

    @property
    def total_mwh(self) -> int:
        """What all attempts claimed so far."""
        return self._claimed.total_mwh

    def of_cpu(self, cpu_ms: int) -> int:
        """The energy of an attempt that has just used so much processor time, in mWh."""
        self._settle(is_working=True)
        cpu_ms = max(0, cpu_ms)
        from_pool_ms = min(cpu_ms, self._pool_cpu_ms)
        claim_uj = 0
        if from_pool_ms:
            claim_uj = self._pool_uj * from_pool_ms // self._pool_cpu_ms
        self._pool_uj -= claim_uj
        self._pool_cpu_ms -= from_pool_ms
        # Processor time that no counter has shown yet can only be estimated.
        claim_uj += (cpu_ms - from_pool_ms) * self._sources.core_power_mw
        return self._claimed.of(claim_uj)

    def take(self) -> None:
        """A moment has passed: to be called with each sample of readings."""
        is_working = self._sources.is_working()
        self._settle(is_working)
        if not is_working:
            self._unclaimed_uj += self._pool_uj
            self._pool_uj = self._pool_cpu_ms = 0

    def figures(self) -> MeterFigures:
        """One look at it."""
        best = next((track for track in self._tracks if track.is_usable), None)
        idle_mw = None if best is None else best.baseline.power_mw
        return MeterFigures(
            meter=MODEL if best is None else best.meter.name,
            idle_w=None if idle_mw is None else round(idle_mw / MW_PER_W),
            work_mwh=self.total_mwh,
            anyway_mwh=self._anyway_uj // MS_PER_HOUR,
            unclaimed_mwh=self._unclaimed_uj // MS_PER_HOUR,
        )

    def _settle(self, is_working: bool) -> None:
        """Put what passed since the last time where it belongs."""
        elapsed_ms = self._sources.now_ms() - self._at_ms
        if elapsed_ms < SETTLE_MS:
            return
        self._at_ms += elapsed_ms
        seen_ms, self._seen_cpu_ms = self._seen_cpu_ms, self._sources.cpu_ms()
        cpu_ms = passed_uj(seen_ms, self._seen_cpu_ms, 0)
        for track in self._tracks:
            track.read(elapsed_ms)
        if is_working or cpu_ms * IDLE_CPU_PARTS > elapsed_ms:
            self._pool_cpu_ms += cpu_ms
            self._pool_uj += self._drawn_uj(cpu_ms, elapsed_ms)
        else:
            for track in self._tracks:
                track.learn(elapsed_ms)

    def _drawn_uj(self, cpu_ms: int, elapsed_ms: int) -> int:
        """What the work drew, by the best meter."""
        for track in self._tracks:
            if track.is_usable:
                above_uj, anyway_uj = track.divide(elapsed_ms)
                self._anyway_uj += anyway_uj
                return above_uj
        return cpu_ms * self._sources.core_power_mw


class _Track:
    """One meter, what it showed since the last look, and the idle power in its own measure."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.baseline = Baseline()
        self._seen_uj = meter.energy_uj()
        self._passed_uj: int | None = None
        self._owed_uj = 0

    @property
    def is_usable(self) -> bool:
        """Whether it could be read at both ends of the last while, and its idle power is known."""
        return self._passed_uj is not None and self.baseline.power_mw is not None

    def read(self, elapsed_ms: int) -> None:
        """Read the meter."""
        seen_uj, self._seen_uj = self._seen_uj, self.meter.energy_uj()
        self._passed_uj = None
        if seen_uj is not None and self._seen_uj is not None:
            passed = self._seen_uj - seen_uj
            self._passed_uj = passed if is_plausible(passed, elapsed_ms) else None

    def learn(self, elapsed_ms: int) -> None:
        """Nothing was done for anybody else in that while."""
        self._owed_uj = 0
        if self._passed_uj is not None:
            self.baseline.learn(self._passed_uj, elapsed_ms)

    def divide(self, elapsed_ms: int) -> tuple[int, int]:
        """Divide that while's energy into what the work drew, and what was drawn anyway.

        A while below the idle power is made up for by the next ones: else noise would be charged.
        """
        assert self._passed_uj is not None
        assert self.baseline.power_mw is not None
        above_uj = self._passed_uj - self.baseline.power_mw * elapsed_ms - self._owed_uj
        self._owed_uj = max(0, -above_uj)
        drawn_uj = max(0, above_uj)
        return drawn_uj, self._passed_uj - drawn_uj
