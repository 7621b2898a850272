"""Estimates the energy of attempts from the processor time that they use.

It is an estimate: cars do not say what their computer draws.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from terafleet.core.units import MS_PER_HOUR

K = TypeVar("K")


class EnergyEstimate:
    """Energy of processor time: cpu_ms x core_power_mw / 3.6e6, in whole mWh.

    What is lost by rounding is carried over to the next, so that the sum is right.
    """

    def __init__(self, core_power_mw: int) -> None:
        """`core_power_mw` is what one busy core draws."""
        assert core_power_mw >= 0
        self._core_power_mw = core_power_mw
        self._carried = 0
        self.total_mwh = 0

    def of_cpu(self, cpu_ms: int) -> int:
        """The energy of so much processor time, in mWh."""
        self._carried += max(0, cpu_ms) * self._core_power_mw
        energy_mwh, self._carried = divmod(self._carried, MS_PER_HOUR)
        self.total_mwh += energy_mwh
        return energy_mwh


class CpuShares(Generic[K]):
    """Splits the processor time of one program among the attempts that run in it.

    What passes while several run belongs to each of them alike.
    """

    def __init__(self, cpu_ms: Callable[[], int]) -> None:
        """`cpu_ms` is the program's processor time so far; it falls when the program is anew."""
        self._cpu_ms = cpu_ms
        self._seen_ms = 0
        self._each_ms = 0.0
        """What an attempt would have by now that had run from the first moment on."""
        self._began_ms: dict[K, float] = {}

    def begin(self, key: K) -> None:
        """From here on it has a share."""
        self._settle()
        self._began_ms[key] = self._each_ms

    def end(self, key: K) -> int:
        """Its processor time, in ms."""
        self._settle()
        return round(self._each_ms - self._began_ms.pop(key, self._each_ms))

    def _settle(self) -> None:
        seen_ms = self._cpu_ms()
        if seen_ms == self._seen_ms:
            return
        passed_ms = seen_ms - self._seen_ms if seen_ms >= self._seen_ms else seen_ms
        self._seen_ms = seen_ms
        if self._began_ms:
            self._each_ms += passed_ms / len(self._began_ms)
