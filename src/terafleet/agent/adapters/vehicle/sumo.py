"""A car of a simulated city that another process lets live, see `sumo_city`.

The city writes what each car's sensors say into a small file of the car's, whole or not at all;
this adapter reads it. It knows nothing of SUMO, and where the city stands still all is missing.

Quality: simulated traffic, parking and charging, no car behind it. Files of a city of libsumo
1.28.0 were read; it passes the contract suite of vehicle adapters, in virtual time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.files import replace_file
from terafleet.agent.place_clock import utc_offset_ms
from terafleet.agent.readings_check import clean
from terafleet.agent.readings_csv import (
    LINE_BYTES_MAX,
    ReadingsRefused,
    encode_header,
    encode_row,
    readings_of,
)
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_S
from terafleet.engine.clock import Clock

POLL_MS = 200
STALE_MS = 15_000
"""A city writes at least every five seconds; a file that is older is of one that has ended."""
NOTHING = Readings(0)

log: FilteringBoundLogger = structlog.get_logger()


def write_car(path: Path, readings: Readings) -> None:
    """Say what a car's sensors say; `at_ms` is the computer's time of day. Raises OSError."""
    replace_file(path, encode_header() + encode_row(clean(readings)), is_durable=False)


class SumoVehicle:
    """Keeps the promise of `VehicleInterface` from a car's file that a city writes."""

    def __init__(
        self,
        path: Path,
        sample_ms: int,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """The file may come and go; while there is none, all is missing."""
        assert sample_ms > 0
        self._path = path
        self._sample_ms = sample_ms
        self._clock = clock
        self._sleep = sleep
        self._body = b""
        self._row = NOTHING

    async def run(self, deliver: Callable[[Readings], None]) -> None:
        """Deliver a sample each interval and soon after each change, until cancelled."""
        due_ms = self._clock.now_ms()
        told = NOTHING
        while True:
            now_ms = self._clock.now_ms()
            said = self._said(now_ms)
            if said != told or now_ms >= due_ms:
                deliver(_stamped(said, now_ms))
                told, due_ms = said, now_ms + self._sample_ms
            await self._sleep(min(POLL_MS, due_ms - now_ms) / MS_PER_S)

    def _said(self, now_ms: int) -> Readings:
        """What the file says, without its times."""
        body = self._read()
        if body != self._body:
            self._body, self._row = body, self._parsed(body)
        if not body or abs(now_ms - self._row.at_ms) > STALE_MS:
            return NOTHING
        return msgspec.structs.replace(self._row, at_ms=0, utc_offset_ms=0)

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(2 * LINE_BYTES_MAX)
        except OSError:
            return b""

    def _parsed(self, body: bytes) -> Readings:
        if not body:
            return NOTHING
        try:
            rows = list(readings_of(body.splitlines(keepends=True), str(self._path)))
        except ReadingsRefused as refusal:
            log.warning("city_refused", cause=str(refusal))
            return NOTHING
        return rows[-1] if rows else NOTHING


def _stamped(said: Readings, now_ms: int) -> Readings:
    stamped = msgspec.structs.replace(said, at_ms=now_ms, utc_offset_ms=utc_offset_ms(now_ms))
    return clean(stamped)
