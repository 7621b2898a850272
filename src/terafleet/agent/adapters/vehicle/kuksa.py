"""Readings from a car's KUKSA databroker, by the names of COVESA VSS 6.

Quality: tested against a broker in the test's own process, built on the stubs of `kuksa-client`
0.6.0 (plain, TLS, tokens), never against a real databroker or a car. It passes the contract suite
of vehicle adapters, in real time.

A value is taken for true as long as the broker gives it: that a provider behind the broker died
can't be seen. It asks for no position.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from typing import NoReturn

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.adapters.vehicle.kuksa_connection import (
    BrokerConnection,
    BrokerLost,
    Cause,
    Survey,
    connected,
)
from terafleet.agent.adapters.vehicle.kuksa_signals import SignalTable, Value
from terafleet.agent.kuksa_settings import KuksaSettings
from terafleet.agent.place_clock import PlaceOffset, utc_offset_ms
from terafleet.agent.waking import Sleep, until_one_ends, wait_at_most
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_S
from terafleet.engine.clock import Clock

CHECKS_PER_SILENCE = 3
"""All values are asked for so often within the time after which the broker counts as silent."""
CHECKS_PER_SURVEY = 20
"""Signals that can't be read are asked for again after so many checks: providers come later."""
CHANGES_APART_MS = 10
"""Of a signal that changes a thousand times a second the values are looked at each so often."""
RECONNECT_MS_MIN = 250
RECONNECT_MS_MAX = 10_000
STEADY_MS = 10_000
"""A connection that held for so long is a new beginning: for the pauses, and for the log."""
DOUBLINGS_MAX = 16
FOUND = "found"

_CHANCE = secrets.SystemRandom()

log: FilteringBoundLogger = structlog.get_logger()


class KuksaVehicle:
    """Keeps the promise of `VehicleInterface` from a databroker that may come and go."""

    def __init__(
        self,
        settings: KuksaSettings,
        sample_ms: int,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        chance: Callable[[], float] = _CHANCE.random,
        offset: PlaceOffset = utc_offset_ms,
    ) -> None:
        """The settings must have no faults, and whole paths in place of names of files.

        `chance` in [0, 1) takes off up to half of each pause before the next connection.
        """
        assert sample_ms > 0
        self._settings = settings
        self._sample_ms = sample_ms
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._offset = offset
        self._table = SignalTable(settings.control_unit, settings.power_level_max, settings.places)
        self._changed = asyncio.Event()
        self._told: set[str] = set()
        self._forget()

    async def run(self, deliver: Callable[[Readings], None]) -> None:
        """Deliver a sample each interval and at once at each change, until cancelled."""
        self._forget()
        await until_one_ends(self._follow(), self._deliver(deliver))

    def _forget(self) -> None:
        self._values: dict[str, Value] = {}
        self._heard: set[str] = set()
        self._confirmed_ms: int | None = None

    # From values to samples.

    async def _deliver(self, deliver: Callable[[Readings], None]) -> NoReturn:
        begin_ms = due_ms = self._clock.now_ms()
        told: Readings | None = None
        while True:
            self._changed.clear()
            now_ms = self._clock.now_ms()
            sample = self._sample(now_ms)
            is_due = now_ms >= due_ms
            if is_due or not _says_the_same(sample, told):
                deliver(sample)
                told = sample
            if is_due:
                due_ms = now_ms - (now_ms - begin_ms) % self._sample_ms + self._sample_ms
            else:
                await self._sleep(CHANGES_APART_MS / MS_PER_S)
            await wait_at_most(self._changed, self._pause_ms(due_ms) / MS_PER_S, self._sleep)

    def _sample(self, now_ms: int) -> Readings:
        silent_ms = self._silent_from_ms()
        is_known = silent_ms is not None and now_ms < silent_ms
        values = self._values if is_known else {}
        return self._table.readings_of(values, now_ms, self._offset(now_ms))

    def _silent_from_ms(self) -> int | None:
        """From when on the values can't be trusted, unless the broker is heard before."""
        if self._confirmed_ms is None:
            return None
        return self._confirmed_ms + self._settings.silence_ms

    def _pause_ms(self, due_ms: int) -> int:
        now_ms, silent_ms = self._clock.now_ms(), self._silent_from_ms()
        if silent_ms is not None and now_ms < silent_ms:
            due_ms = min(due_ms, silent_ms)
        return max(1, due_ms - now_ms)

    # From the broker to values.

    async def _follow(self) -> NoReturn:
        failures = 0
        while True:
            begin_ms = self._clock.now_ms()
            lost = await self._follow_one_connection()
            if self._clock.now_ms() - begin_ms >= STEADY_MS:
                failures = 0
                self._told.clear()
            self._tell_once(lost.cause, detail=lost.detail)
            pause_ms = reconnect_pause_ms(failures, self._chance())
            failures += 1
            await self._sleep(pause_ms / MS_PER_S)

    async def _follow_one_connection(self) -> BrokerLost:
        try:
            async with connected(self._settings, self._settings.silence_ms) as broker:
                survey = await broker.survey(tuple(self._table.kinds))
                if not survey.said:
                    return BrokerLost(Cause.SIGNALS_UNKNOWN, "no signal can be read")
                self._begin(survey)
                deeds = [self._check(broker, survey)]
                urgent = tuple(path for path in survey.said if self._table.is_urgent(path))
                if urgent:
                    deeds.append(self._listen(broker, urgent))
                await until_one_ends(*deeds)
        except BrokerLost as lost:
            return lost
        raise AssertionError("a broker is followed until it is lost")

    def _begin(self, survey: Survey) -> None:
        self._values = {}
        self._take(survey.said)
        self._tell_found(survey)

    async def _listen(self, broker: BrokerConnection, paths: tuple[str, ...]) -> None:
        async with contextlib.aclosing(broker.changes(paths)) as changes:
            async for said in changes:
                self._heard.update(said)
                self._take(said)

    async def _check(self, broker: BrokerConnection, survey: Survey) -> None:
        """Ask for all values again and again: a stream can be dead without a sign of it.

        Quantities come only so. A battery's power that changes 200 times a second took a tenth
        of a core when it was streamed.
        """
        pause_s = self._settings.silence_ms / CHECKS_PER_SILENCE / MS_PER_S
        paths, unread = tuple(survey.said), tuple(survey.unread)
        while True:
            for _ in range(CHECKS_PER_SURVEY):
                await self._sleep(pause_s)
                self._heard.clear()
                said = await broker.values(paths)
                # What came by the stream meanwhile may be newer than the answer.
                self._take({path: one for path, one in said.items() if path not in self._heard})
            if (await broker.survey(unread)).said:
                raise BrokerLost(Cause.SIGNALS_CHANGED, "more signals can be read than before")

    def _take(self, said: Mapping[str, object]) -> None:
        """Note what signals say, and that the broker was there to say it."""
        self._confirmed_ms = self._clock.now_ms()
        for path, one in said.items():
            value = self._table.value_of(path, one)
            if value is None:
                self._values.pop(path, None)
            else:
                self._values[path] = value
        self._changed.set()

    # The log.

    def _tell_once(self, cause: Cause, detail: str) -> None:
        if cause not in self._told:
            self._told.add(cause)
            log.warning("vehicle_broker_lost", cause=str(cause), detail=detail)

    def _tell_found(self, survey: Survey) -> None:
        if FOUND not in self._told:
            self._told.add(FOUND)
            unknown = [path for path, why in survey.unread.items() if why is Cause.SIGNALS_UNKNOWN]
            refused = sorted(survey.unread.keys() - set(unknown))
            counts = {"signals": len(survey.said), "unknown": len(unknown)}
            log.info("vehicle_broker_found", **counts, refused=refused)


def reconnect_pause_ms(failures: int, chance: float) -> float:
    """How long to wait before a connection that follows on so many failures in a row.

    It doubles up to ten seconds; `chance` in [0, 1) takes off up to half of it.
    """
    pause_ms = min(RECONNECT_MS_MIN << min(failures, DOUBLINGS_MAX), RECONNECT_MS_MAX)
    return pause_ms * (1 - chance / 2)


def _says_the_same(sample: Readings, told: Readings | None) -> bool:
    return told is not None and msgspec.structs.replace(told, at_ms=sample.at_ms) == sample
