"""A car that follows a timetable: for demonstrations and tests.

Quality: it has the real interface and real time, and no car behind it. It passes the contract
suite of vehicle adapters, in virtual time.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from terafleet.agent.adapters.vehicle.timetable import Timetable, Turn, turns
from terafleet.agent.place_clock import utc_offset_ms
from terafleet.agent.readings_check import clean
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_S
from terafleet.engine.clock import Clock


def _cut_nothing(duration_ms: int) -> None:
    del duration_ms


def _never() -> Timetable | None:
    return None


class ScriptedVehicle:
    """Keeps the promise of `VehicleInterface` from a timetable that begins with `run`.

    Another timetable takes its place at once and begins anew: so a person, or a play, drives it.
    """

    def __init__(
        self,
        timetable: Timetable,
        sample_ms: int,
        clock: Clock,
        cut_link: Callable[[int], None] = _cut_nothing,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        another: Callable[[], Timetable | None] = _never,
    ) -> None:
        """`cut_link` is called with milliseconds where the timetable says so.

        `another` is asked at each sample for a timetable to follow instead.
        """
        assert sample_ms > 0
        self._timetable = timetable
        self._sample_ms = sample_ms
        self._clock = clock
        self._cut_link = cut_link
        self._sleep = sleep
        self._another = another

    async def run(self, deliver: Callable[[Readings], None]) -> None:
        """Deliver a sample each interval and at once at each turn, until cancelled."""
        begin_ms = self._clock.now_ms()
        coming = turns(self._timetable)
        upcoming = next(coming, None)
        readings = Readings(0)
        sample_due_ms = 0
        while True:
            timetable = self._another()
            if timetable is not None:
                begin_ms, sample_due_ms = self._clock.now_ms(), 0
                coming = turns(timetable)
                upcoming = next(coming, None)
            elapsed_ms = self._clock.now_ms() - begin_ms
            is_turned = False
            while upcoming is not None and upcoming.at_ms <= elapsed_ms:
                readings, is_turned = upcoming.readings, True
                if upcoming.cut_link_ms:
                    self._cut_link(upcoming.cut_link_ms)
                upcoming = next(coming, None)
            if is_turned or elapsed_ms >= sample_due_ms:
                deliver(_sample(readings, begin_ms + elapsed_ms))
                sample_due_ms = elapsed_ms - elapsed_ms % self._sample_ms + self._sample_ms
            await self._sleep(self._pause_ms(elapsed_ms, sample_due_ms, upcoming) / MS_PER_S)

    def _pause_ms(self, elapsed_ms: int, sample_due_ms: int, upcoming: Turn | None) -> int:
        due_ms = sample_due_ms if upcoming is None else min(sample_due_ms, upcoming.at_ms)
        return max(1, due_ms - elapsed_ms)


def _sample(readings: Readings, at_ms: int) -> Readings:
    stamped = msgspec.structs.replace(readings, at_ms=at_ms, utc_offset_ms=utc_offset_ms(at_ms))
    return clean(stamped)
