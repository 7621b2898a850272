"""Writes down what the car's sensors said, for its owner, and tells it again.

One CSV file a day of the place's clock; it stays in the car. It spares the flash: what says
nothing beyond noise is not written, and what is written goes to the disk once a minute.
"""

import datetime
import operator
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.files import PRIVATE
from terafleet.agent.readings_csv import (
    ReadingsRefused,
    encode_header,
    encode_row,
    read_readings,
)
from terafleet.core.local_time import local_day
from terafleet.core.policy_preview import HOLD_MS
from terafleet.core.readings import SENSORS, Readings
from terafleet.core.units import MS_PER_MINUTE, MS_PER_S

READINGS_FOLDER = "readings"
DAYS_KEPT = 8
"""Seven whole days and the one that isn't over."""
DAY_BYTES_MAX = 2_000_000
WRITE_MS = MS_PER_MINUTE
"""It goes to the disk at most so often."""
WAITING_BYTES_MAX = 64 * 1024
"""Or when so much waits, which a sensor that is broken may bring about."""
QUIET_MS = 10 * MS_PER_MINUTE
"""A sample is written at least so often, so that a gap says that nothing was recorded."""
NOISE_MS = 10 * MS_PER_S
"""What changed only in quantity is written at most so often: a day of it is 1 MB."""
assert QUIET_MS < HOLD_MS

NOISE = {
    "soc_percent": 0.5,
    "charge_limit_percent": 0.5,
    "fan_percent": 5.0,
    "other_load_percent": 5.0,
    "compute_temperature_c": 1.0,
    "battery_temperature_c": 1.0,
    "ambient_temperature_c": 1.0,
    "charging_mw": 100_000,
    "compute_mw": 5_000,
    "low_voltage_mv": 100,
    "departure_at_ms": MS_PER_MINUTE,
}
"""A quantity has changed when it is so far from what was written last."""
STATES_OF = operator.attrgetter(*(name for name in SENSORS if name not in NOISE), "utc_offset_ms")
QUANTITIES_OF = operator.attrgetter(*NOISE)
DIGITS = 1
NAME = re.compile(r"readings-([0-9]{4}-[0-9]{2}-[0-9]{2})\.csv")
EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()

log: FilteringBoundLogger = structlog.get_logger()


class ReadingsLog:
    """Takes every sample; what is worth it comes to stand in a file of `folder`."""

    def __init__(self, folder: Path) -> None:
        """Begin a recording; the folder is made when something is written."""
        self._folder = folder
        self._written: Readings | None = None
        self._waiting = bytearray()
        self._day = -1
        self._day_bytes = 0
        self._is_begun = False
        self._is_failing = False
        self._tried_at_ms = 0

    def take(self, readings: Readings) -> None:
        """A sample was taken. A disk that refuses it is only logged."""
        day = local_day(readings.at_ms + readings.utc_offset_ms)
        if day != self._day:
            self.flush()
            self._begin_day(day, readings.at_ms)
        if self._written is None or is_news(readings, self._written):
            self._written = readings
            self._waiting += encode_row(rounded(readings))
        is_due = readings.at_ms - self._tried_at_ms >= WRITE_MS
        if is_due or len(self._waiting) > WAITING_BYTES_MAX:
            self._tried_at_ms = readings.at_ms
            self.flush()

    def flush(self) -> None:
        """Write what waits; at a clean stop, and otherwise when it is time."""
        if not self._waiting:
            return
        body = bytes(self._waiting) if self._is_begun else encode_header() + bytes(self._waiting)
        self._waiting.clear()
        try:
            self._append(body)
        except OSError as error:
            self._fail(error)
        else:
            self._is_begun, self._is_failing = True, False

    def _begin_day(self, day: int, at_ms: int) -> None:
        self._day, self._is_begun, self._written = day, False, None
        self._tried_at_ms = at_ms

    def _append(self, body: bytes) -> None:
        path = self._folder / file_name(self._day)
        if not self._is_begun:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._drop_old()
            self._day_bytes = _mend(path)
        if self._day_bytes + len(body) > DAY_BYTES_MAX:
            if self._day_bytes < DAY_BYTES_MAX:
                log.warning("readings_of_the_day_are_full", bytes_max=DAY_BYTES_MAX)
            self._day_bytes = DAY_BYTES_MAX
            return
        with open(path, "ab", opener=_private) as file:
            file.write(body)
        self._day_bytes += len(body)

    def _drop_old(self) -> None:
        """Keep the days nearest to this one, so that a clock gone wrong costs one file only."""
        others = sorted(_days(self._folder), key=lambda day: abs(day - self._day))
        for day in [day for day in others if day != self._day][DAYS_KEPT - 1 :]:
            (self._folder / file_name(day)).unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        # A write may have got half-way: the next one mends the file first, and says what it has.
        self._is_begun, self._written = False, None
        if not self._is_failing:
            log.warning("readings_not_written", cause=error.strerror)
        self._is_failing = True


def recorded(folder: Path, since_ms: int = 0) -> Iterator[Readings]:
    """What was recorded from a time on, in time order. Raises ReadingsRefused.

    A time that a clock showed twice is told once.
    """
    newest_ms = since_ms - 1
    for day in sorted(_days_readable(folder)):
        for readings in read_readings(folder / file_name(day)):
            if readings.at_ms > newest_ms:
                newest_ms = readings.at_ms
                yield readings


def file_name(day: int) -> str:
    """The name of a day's file; `day` as `core.local_time.local_day` counts."""
    return f"readings-{datetime.date.fromordinal(EPOCH_DAY + day).isoformat()}.csv"


def _days_readable(folder: Path) -> list[int]:
    try:
        return _days(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ReadingsRefused(f"{folder}: {error.strerror}") from error


def _days(folder: Path) -> list[int]:
    """The days that have a file."""
    days = []
    for entry in folder.iterdir():
        if found := NAME.fullmatch(entry.name):
            try:
                days.append(datetime.date.fromisoformat(found[1]).toordinal() - EPOCH_DAY)
            except ValueError:
                continue
    return days


def _mend(path: Path) -> int:
    """Cut a line off that was torn by a power cut or a full disk; the file's bytes then."""
    try:
        with path.open("r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            return whole
    except FileNotFoundError:
        return 0


def _private(path: str, flags: int) -> int:
    """Open a file so that only its owner can read when the car was used."""
    return os.open(path, flags | os.O_NOFOLLOW, PRIVATE)


def is_news(readings: Readings, written: Readings) -> bool:
    """Whether a sample says something else than the last one written, which stays unchanged."""
    if STATES_OF(readings) != STATES_OF(written):
        return True
    age_ms = readings.at_ms - written.at_ms
    if not 0 <= age_ms < QUIET_MS:
        return True
    values, olds = QUANTITIES_OF(readings), QUANTITIES_OF(written)
    for value, old, noise in zip(values, olds, NOISE.values(), strict=True):
        if (value is None) is not (old is None):
            return True
        if value is not None and abs(value - old) >= noise and age_ms >= NOISE_MS:
            return True
    return False


def rounded(readings: Readings) -> Readings:
    """The sample with its fractions to a tenth."""
    rounded = {
        name: round(value, DIGITS)
        for name in NOISE
        if isinstance(value := getattr(readings, name), float)
    }
    return msgspec.structs.replace(readings, **rounded)
