"""A car that does again what a recording says: for demonstrations, tests and studies.

Quality: real recordings or simulated ones, no car behind it. It passes the contract suite of
vehicle adapters, in virtual time.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.place_clock import utc_offset_ms
from terafleet.agent.readings_check import clean
from terafleet.agent.readings_csv import ReadingsRefused, Recorded, read_readings
from terafleet.agent.replay_settings import Pace, pace_faults
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_S
from terafleet.engine.clock import Clock

PAUSE_MS_MIN = 20
"""However fast a recording is replayed, changes are looked for no more often."""
NOTHING = Readings(0)

log: FilteringBoundLogger = structlog.get_logger()


def recording_of(path: Path) -> Callable[[], Recorded]:
    """What opens the recording of a file again and again. Raises ReadingsRefused.

    Only its first sample is looked at; a line that is damaged further on is found when its time
    has come.
    """
    first = read_readings(path)
    if next(first, None) is None:
        raise ReadingsRefused(f"{path}: there is no sample")
    first.close()
    return lambda: read_readings(path)


class ReplayVehicle:
    """Keeps the promise of `VehicleInterface` from a recording that begins with `run`."""

    def __init__(
        self,
        recording: Callable[[], Recorded],
        sample_ms: int,
        clock: Clock,
        pace: Pace = Pace(),  # noqa: B008 - it is frozen.
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`recording` opens it, and again each time it is repeated."""
        assert sample_ms > 0
        assert not pace_faults(pace)
        self._recording = recording
        self._sample_ms = sample_ms
        self._clock = clock
        self._pace = pace
        self._sleep = sleep

    async def run(self, deliver: Callable[[Readings], None]) -> None:
        """Deliver a sample each interval and at once at each change, until cancelled."""
        begin_ms = self._clock.now_ms()
        tape = _Tape(self._recording, self._pace)
        told = NOTHING
        due_ms = 0
        try:
            while True:
                elapsed_ms = self._clock.now_ms() - begin_ms
                said = tape.at(elapsed_ms)
                if said != told or elapsed_ms >= due_ms:
                    deliver(_stamped(said, begin_ms, elapsed_ms))
                    due_ms = elapsed_ms - elapsed_ms % self._sample_ms + self._sample_ms
                    told = said
                next_ms = math.ceil(min(due_ms, tape.next_ms(elapsed_ms)))
                await self._sleep(max(PAUSE_MS_MIN, next_ms - elapsed_ms) / MS_PER_S)
        finally:
            tape.close()


def _stamped(said: Readings, begin_ms: int, elapsed_ms: int) -> Readings:
    """The sample by the agent's clock; a departure on the tape counts from its beginning."""
    at_ms = begin_ms + elapsed_ms
    departure_ms = said.departure_at_ms
    stamped = msgspec.structs.replace(
        said,
        at_ms=at_ms,
        utc_offset_ms=utc_offset_ms(at_ms),
        departure_at_ms=None if departure_ms is None else begin_ms + departure_ms,
    )
    return clean(stamped)


class _Tape:
    """A recording by the time since the replay began, in the agent's ms; it only goes forward."""

    def __init__(self, recording: Callable[[], Recorded], pace: Pace) -> None:
        self._recording = recording
        self._speed = pace.speed
        self._hold_ms = pace.hold_s * MS_PER_S / pace.speed
        self._repeat_ms = pace.repeat_s * MS_PER_S / pace.speed
        self._begin_ms = 0.0
        self._rows: Recorded | None = None
        self._first_ms = 0
        self._held: tuple[float, Readings] | None = None
        self._coming: tuple[float, Readings] | None = None
        self._open()

    def at(self, elapsed_ms: int) -> Readings:
        """What the car says then, without its times; all missing where nothing is recorded."""
        if self._repeat_ms and elapsed_ms >= self._begin_ms + self._repeat_ms:
            rounds = (elapsed_ms - self._begin_ms) // self._repeat_ms
            self._begin_ms += rounds * self._repeat_ms
            self._open()
        while self._coming is not None and self._coming[0] <= elapsed_ms:
            self._held = self._coming
            self._coming = self._next()
        if self._held is None or elapsed_ms >= self._held[0] + self._hold_ms:
            return NOTHING
        return self._held[1]

    def next_ms(self, elapsed_ms: int) -> float:
        """When after this time it may say something else; infinite is never."""
        times = [self._begin_ms + self._repeat_ms] if self._repeat_ms else []
        if self._coming is not None:
            times.append(self._coming[0])
        if self._held is not None:
            times.append(self._held[0] + self._hold_ms)
        return min((time_ms for time_ms in times if time_ms > elapsed_ms), default=math.inf)

    def close(self) -> None:
        """Let go of the file."""
        if self._rows is not None:
            self._rows.close()

    def _open(self) -> None:
        self.close()
        self._rows, self._held = self._recording(), None
        self._first_ms = -1
        self._coming = self._next()

    def _next(self) -> tuple[float, Readings] | None:
        assert self._rows is not None
        try:
            row = next(self._rows, None)
        except ReadingsRefused as refusal:
            log.warning("recording_refused", cause=str(refusal))
            return None
        if row is None:
            return None
        if self._first_ms < 0:
            self._first_ms = row.at_ms
        departure_ms = row.departure_at_ms
        if departure_ms is not None:
            departure_ms = round(self._elapsed_ms(departure_ms))
        said = msgspec.structs.replace(row, at_ms=0, utc_offset_ms=0, departure_at_ms=departure_ms)
        return self._elapsed_ms(row.at_ms), said

    def _elapsed_ms(self, recorded_ms: int) -> float:
        """When a moment of the recording comes."""
        return self._begin_ms + (recorded_ms - self._first_ms) / self._speed
