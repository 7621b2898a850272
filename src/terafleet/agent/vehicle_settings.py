"""Where a car's readings come from, as agent.toml says it, and what is wrong with that."""

from pathlib import Path
from typing import Literal

import msgspec

from terafleet.agent.kuksa_settings import KuksaSettings, kuksa_faults
from terafleet.agent.linux_settings import LinuxSettings, linux_faults
from terafleet.agent.replay_settings import Pace, pace_faults

TIMETABLE_FILE = "timetable.toml"

AdapterName = Literal["scripted", "linux", "kuksa", "replay", "sumo"]


class VehicleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which adapter reads the sensors, how often, and what it needs.

    Without a name it is `scripted` where a `file` is named, and else `linux`: this computer
    itself. `file` is a timetable, a recording or a city's row; a relative one is looked for in
    the data folder.
    """

    adapter: AdapterName | Literal[""] = ""
    file: str = ""
    sample_ms: int = 1_000
    linux: LinuxSettings = LinuxSettings()
    kuksa: KuksaSettings = KuksaSettings()
    replay: Pace = Pace()

    @property
    def chosen(self) -> AdapterName:
        """The adapter that is meant."""
        return self.adapter or ("scripted" if self.file else "linux")

    def path(self, data_folder: Path) -> Path:
        """The adapter's file."""
        return data_folder / (self.file or TIMETABLE_FILE)


def vehicle_faults(settings: VehicleSettings) -> list[str]:
    """What is wrong with the settings, in words a person can act on; empty when nothing is."""
    faults = [] if settings.sample_ms > 0 else ["sample_ms must be positive"]
    if settings.chosen in ("replay", "sumo") and not settings.file:
        faults.append(f"file must name what the adapter {settings.chosen} reads")
    return [
        *faults,
        *(f"linux.{fault}" for fault in linux_faults(settings.linux)),
        *(f"kuksa.{fault}" for fault in kuksa_faults(settings.kuksa)),
        *(f"replay.{fault}" for fault in pace_faults(settings.replay)),
    ]
