"""A timetable of what a car's sensors say: read from a file, checked, and asked by the time."""

import itertools
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import UNSET, UnsetType
from structlog.typing import FilteringBoundLogger

from terafleet.core.readings import SENSORS, Readings
from terafleet.core.units import MS_PER_S

TIMETABLE_BYTES_MAX = 1024 * 1024

log: FilteringBoundLogger = structlog.get_logger()

READINGS = tuple(name for name in SENSORS if name != "departure_at_ms")
"""What a timetable can say; a departure is a time of day, and belongs into the owner policy."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From `at_s` on, these readings hold; one that is not named stays as it was before.

    Null, or in TOML a name in `missing`, is a sensor that can't be read. `cut_link_s` cuts the
    connection for so many seconds.
    """

    at_s: float
    is_parked: bool | UnsetType | None = UNSET
    is_driver_present: bool | UnsetType | None = UNSET
    is_plugged_in: bool | UnsetType | None = UNSET
    soc_percent: float | UnsetType | None = UNSET
    compute_temperature_c: float | UnsetType | None = UNSET
    battery_temperature_c: float | UnsetType | None = UNSET
    ambient_temperature_c: float | UnsetType | None = UNSET
    is_charging: bool | UnsetType | None = UNSET
    charging_mw: int | UnsetType | None = UNSET
    charge_limit_percent: float | UnsetType | None = UNSET
    is_preconditioning: bool | UnsetType | None = UNSET
    is_sentry_on: bool | UnsetType | None = UNSET
    is_updating: bool | UnsetType | None = UNSET
    is_in_service: bool | UnsetType | None = UNSET
    place: str | UnsetType | None = UNSET
    is_link_metered: bool | UnsetType | None = UNSET
    fan_percent: float | UnsetType | None = UNSET
    compute_mw: int | UnsetType | None = UNSET
    low_voltage_mv: int | UnsetType | None = UNSET
    other_load_percent: float | UnsetType | None = UNSET
    missing: tuple[str, ...] = ()
    cut_link_s: float = 0.0


class Timetable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps in their order; `repeat_s` above 0 begins anew each time so many seconds are over.

    `jitter_s` moves each step (but those at 0) by up to so much either way, the same way for the
    same `seed` and round.
    """

    steps: tuple[Step, ...]
    repeat_s: float = 0.0
    jitter_s: float = 0.0
    seed: int = 0


class TimetableRefused(Exception):
    """The file holds no timetable; the text says why."""


class Turn(msgspec.Struct, frozen=True):
    """At `at_ms` from the beginning these readings begin to hold."""

    at_ms: int
    readings: Readings
    cut_link_ms: int


def load_timetable(path: Path) -> Timetable:
    """The timetable of a TOML or (by its name) JSON file. Raises TimetableRefused."""
    try:
        with path.open("rb") as file:
            text = file.read(TIMETABLE_BYTES_MAX + 1)
        if len(text) > TIMETABLE_BYTES_MAX:
            raise TimetableRefused(f"{path} is larger than {TIMETABLE_BYTES_MAX} bytes")
        if path.suffix == ".json":
            timetable = msgspec.json.decode(text, type=Timetable)
        else:
            timetable = msgspec.convert(tomllib.loads(text.decode()), Timetable)
    except OSError as error:
        raise TimetableRefused(f"{path}: {error.strerror}") from error
    except ValueError as error:  # Of UTF-8, TOML, JSON or msgspec: each is one.
        raise TimetableRefused(f"{path}: {error}") from error
    faults = timetable_faults(timetable)
    if faults:
        raise TimetableRefused(f"{path}: {'; '.join(faults)}")
    return timetable


class TimetableFile:
    """A timetable in a file that may be written anew while the car follows it."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises TimetableRefused."""
        self._path = path
        self._seen = self._stamp()
        self.timetable = load_timetable(path)

    def another(self) -> Timetable | None:
        """The timetable, if the file has changed and holds one; else None."""
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        try:
            self.timetable = load_timetable(self._path)
        except TimetableRefused as refusal:
            log.warning("timetable_refused", cause=str(refusal))
            return None
        return self.timetable

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def timetable_faults(timetable: Timetable) -> list[str]:
    """What is wrong with a timetable, in words; empty when nothing is."""
    times = [step.at_s for step in timetable.steps]
    faults = [] if times and times[0] == 0 else ["the first step must be at_s = 0"]
    if any(later <= earlier for earlier, later in itertools.pairwise(times)):
        faults.append("at_s must rise from step to step")
    if timetable.repeat_s and times and timetable.repeat_s <= times[-1]:
        faults.append("repeat_s must lie behind the last step")
    if min(timetable.repeat_s, timetable.jitter_s) < 0:
        faults.append("repeat_s and jitter_s must not be negative")
    unknown = {name for step in timetable.steps for name in step.missing} - set(READINGS)
    if unknown:
        faults.append(f"missing names no reading: {', '.join(sorted(unknown))}")
    return faults


def turns(timetable: Timetable) -> Iterator[Turn]:
    """All turns in their order, without end if the timetable repeats."""
    chance = random.Random(timetable.seed)  # noqa: S311 - it shakes a timetable, it guards nothing.
    values: dict[str, Any] = dict.fromkeys(READINGS)
    begin_s = at_s = 0.0
    while True:
        for step in timetable.steps:
            shift_s = chance.uniform(-timetable.jitter_s, timetable.jitter_s) if step.at_s else 0.0
            # However far the steps are shifted, they keep their order.
            at_s = max(at_s, begin_s + step.at_s + shift_s)
            values |= _said_by(step)
            readings = Readings(at_ms=0, **values)
            yield Turn(round(at_s * MS_PER_S), readings, round(step.cut_link_s * MS_PER_S))
        if not timetable.repeat_s:
            return
        begin_s += timetable.repeat_s


def _said_by(step: Step) -> dict[str, Any]:
    said = {name: getattr(step, name) for name in READINGS}
    named = {name: value for name, value in said.items() if value is not UNSET}
    return named | dict.fromkeys(step.missing)
