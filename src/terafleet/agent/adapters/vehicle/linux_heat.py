"""Reads how warm the processor is and how fast the fans run (hwmon and thermal zones)."""

from collections.abc import Sequence

from terafleet.agent.adapters.vehicle.linux_files import names_in, read_whole, read_word

MILLI = 1_000
PERCENT = 100.0
PWM_FULL = 255

PROCESSOR_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")
WHOLE_LABELS = ("Package id", "Tdie", "Tctl")
"""One sensor for all cores; where a chip has one, the others need not be read."""
PROCESSOR_ZONES = ("x86_pkg_temp", "cpu", "soc", "tj")
"""What the type of a processor's thermal zone begins with; `acpitz` may be anywhere."""

LOOKS_BETWEEN_SEARCHES = 60
"""Chips come and go seldom, and the search for them takes longer than to read them."""


class Heat:
    """The sensors, found once and looked for again now and then."""

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._looks = 0
        self._temperatures: Sequence[str] = ()
        self._fans: Sequence[tuple[str, str]] = ()

    def look(self) -> tuple[float | None, float | None]:
        """The warmest sensor of the processor in °C, and the fastest fan in percent.

        One sensor that fails is no temperature at all: the others may be the cooler ones.
        """
        if self._looks % LOOKS_BETWEEN_SEARCHES == 0:
            self._search()
        self._looks += 1
        values = [read_whole(path) for path in self._temperatures]
        warmest = max((value for value in values if value is not None), default=None)
        fans = [_fan_percent(chip, number) for chip, number in self._fans]
        fastest = max((percent for percent in fans if percent is not None), default=None)
        if None in values:
            self._looks = 0
        return (None if warmest is None or None in values else warmest / MILLI), fastest

    def _search(self) -> None:
        folder = f"{self._root}/sys/class/hwmon"
        chips = [f"{folder}/{name}" for name in names_in(folder) or ()]
        self._temperatures = [
            path
            for chip in chips
            if read_word(f"{chip}/name") in PROCESSOR_CHIPS
            for path in _temperature_files(chip)
        ]
        if not self._temperatures:
            self._temperatures = _zone_files(f"{self._root}/sys/class/thermal")
        self._fans = [
            (chip, name.removeprefix("fan").removesuffix("_input"))
            for chip in chips
            for name in names_in(chip) or ()
            if name.startswith("fan") and name.endswith("_input")
        ]


def _temperature_files(chip: str) -> list[str]:
    names = [name for name in names_in(chip) or () if name.startswith("temp")]
    inputs = [f"{chip}/{name}" for name in names if name.endswith("_input")]
    for label in WHOLE_LABELS:
        found = [path for path in inputs if _label(path).startswith(label)]
        if found:
            return found
    return inputs


def _label(path: str) -> str:
    return read_word(path.removesuffix("_input") + "_label") or ""


def _zone_files(folder: str) -> list[str]:
    zones = [name for name in names_in(folder) or () if name.startswith("thermal_zone")]
    return [
        f"{folder}/{zone}/temp"
        for zone in zones
        if (read_word(f"{folder}/{zone}/type") or "").startswith(PROCESSOR_ZONES)
    ]


def _fan_percent(chip: str, number: str) -> float | None:
    """Of its greatest speed if that is known, else of what drives it; a fan at rest is 0."""
    speed = read_whole(f"{chip}/fan{number}_input")
    if speed is None or speed < 0:
        return None
    if speed == 0:
        return 0.0
    fastest = read_whole(f"{chip}/fan{number}_max")
    if fastest is not None and fastest > 0:
        # The greatest speed is that of the data sheet, and many fans exceed it.
        return min(PERCENT, PERCENT * speed / fastest)
    drive = read_whole(f"{chip}/pwm{number}")
    return None if drive is None else PERCENT * drive / PWM_FULL
