"""Reads the energy counters of processors (RAPL), which x86 has and only root may read.

Since 2020 the kernel shows them to nobody else (CVE-2020-8694), as they betray what is computed.
An owner who wants them measured gives the agent's group the right to read `energy_uj`.
Tested on folders that look like those of the kernel; no machine with RAPL was at hand.
"""

from terafleet.agent.adapters.vehicle.linux_files import names_in, read_whole, read_word
from terafleet.core.computer_power import passed_uj

ZONES = "intel-rapl:"
"""AMD's counters bear the same name. (`intel-rapl-mmio` counts the same package once more.)"""
PACKAGE, MEMORY = "package", "dram"
"""Zones that do not lie within each other; cores and graphics lie within the package."""


class RaplMeter:
    """Processor packages and memory together, counted from the first reading on."""

    name = "rapl"

    def __init__(self, root: str = "") -> None:
        self._folder = f"{root}/sys/class/powercap"
        self._ranges_uj: dict[str, int] | None = None
        self._seen: dict[str, int] = {}
        self._total_uj = 0

    def energy_uj(self) -> int | None:
        """What has been used so far, or None where a counter can't be read."""
        if self._ranges_uj is None:
            self._ranges_uj = _ranges_uj(self._folder)
        now = {zone: read_whole(f"{zone}/energy_uj") for zone in self._ranges_uj}
        read = {zone: value for zone, value in now.items() if value is not None}
        if not read or len(read) < len(now):
            self._seen = {}
            return None
        for zone, before_uj in self._seen.items():
            self._total_uj += passed_uj(before_uj, read[zone], self._ranges_uj[zone])
        self._seen = read
        return self._total_uj


def _ranges_uj(folder: str) -> dict[str, int]:
    """The zones that count, each with the value behind which its counter begins anew."""
    zones = [f"{folder}/{name}" for name in names_in(folder) or () if name.startswith(ZONES)]
    return {
        zone: read_whole(f"{zone}/max_energy_range_uj") or 0
        for zone in zones
        if (read_word(f"{zone}/name") or "").startswith((PACKAGE, MEMORY))
    }
