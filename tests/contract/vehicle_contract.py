"""What every adapter of `VehicleInterface` must do, for whatever source its readings have.

A test module of an adapter writes a `VehicleWorld` and a class of tests:

    class TestKuksa(VehicleContract):
        @pytest.fixture
        async def world(self) -> AsyncIterator[VehicleWorld]:
            yield KuksaWorld(...)
"""

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

import pytest

from terafleet.agent.ports import VehicleInterface
from terafleet.core.readings import SENSORS, Readings
from terafleet.engine.clock import Clock, SystemClock
from tests.contract.virtual_time import VirtualTime

HOUR_MS = 3_600_000
BEGIN_MS = 1_700_000_000_000
"""The agent's clock of these tests begins here, which the wall clock does not show."""
PATIENCE_MS = 2_000
"""In real time, what is due at once may be late by so much on a busy machine."""
PROMPT_S = 2.0

EXAMPLES: Mapping[str, tuple[Any, Any]] = {
    "is_parked": (True, False),
    "is_driver_present": (False, True),
    "is_plugged_in": (True, False),
    "soc_percent": (80.0, 55.5),
    "compute_temperature_c": (31.0, 62.5),
    "battery_temperature_c": (21.0, -7.5),
    "ambient_temperature_c": (12.0, -20.5),
    "is_charging": (True, False),
    "charging_mw": (7_400_000, 0),
    "charge_limit_percent": (90.0, 75.0),
    "departure_at_ms": (BEGIN_MS + 9 * HOUR_MS, BEGIN_MS + 20 * HOUR_MS),
    "is_preconditioning": (False, True),
    "is_sentry_on": (False, True),
    "is_updating": (False, True),
    "is_in_service": (False, True),
    "place": ("home", "work"),
    "is_link_metered": (False, True),
    "fan_percent": (20.0, 100.0),
    "compute_mw": (35_000, 92_000),
    "low_voltage_mv": (13_800, 12_100),
    "other_load_percent": (2.0, 71.5),
}
"""Two different values of each sensor, the first of a parked car that lends."""

TEMPERATURES_ABSURD = (-60.1, 150.1, math.nan, math.inf, -math.inf)
PERCENTS_ABSURD = (-0.1, 100.1, math.nan, math.inf)
POWERS_ABSURD = (-1, 1_000_000_001)
ABSURD: Mapping[str, tuple[Any, ...]] = {
    "soc_percent": PERCENTS_ABSURD,
    "charge_limit_percent": PERCENTS_ABSURD,
    "fan_percent": PERCENTS_ABSURD,
    "other_load_percent": PERCENTS_ABSURD,
    "compute_temperature_c": TEMPERATURES_ABSURD,
    "battery_temperature_c": TEMPERATURES_ABSURD,
    "ambient_temperature_c": TEMPERATURES_ABSURD,
    "charging_mw": POWERS_ABSURD,
    "compute_mw": POWERS_ABSURD,
    "low_voltage_mv": (-1, 100_001),
    "departure_at_ms": (BEGIN_MS * 1_000, 0),
    "place": ("", "x" * 65, "ho\nme"),
}
"""What a broken sensor may say; each must come to be missing."""


class Passing(Protocol):
    """How time passes for an adapter under test."""

    @property
    def clock(self) -> Clock:
        """The agent's clock."""
        ...

    @property
    def patience_ms(self) -> int:
        """How late what is due may be; 0 where time is virtual."""
        ...

    async def sleep(self, pause_s: float) -> None:
        """What the adapter waits with."""
        ...

    async def pass_ms(self, duration_ms: int) -> None:
        """Let so much time pass for the test."""
        ...


class VirtualPassing(VirtualTime):
    """Time that passes only as the test lets it: for adapters that take their sleep."""

    patience_ms = 0

    def __init__(self) -> None:
        super().__init__(BEGIN_MS)


class RealPassing:
    """Real time, on a clock that shows another day: for adapters with a network or processes."""

    patience_ms = PATIENCE_MS

    def __init__(self) -> None:
        self.clock = SystemClock(wall_ns=lambda: BEGIN_MS * 1_000_000)

    async def sleep(self, pause_s: float) -> None:
        """Wait."""
        await asyncio.sleep(pause_s)

    async def pass_ms(self, duration_ms: int) -> None:
        """Wait."""
        await asyncio.sleep(duration_ms / 1_000)


class VehicleWorld(ABC):
    """An adapter's source as a test drives it; all sensors say nothing until they are set."""

    sensors: tuple[str, ...] = SENSORS
    """The readings that this source can give."""
    examples: Mapping[str, tuple[Any, Any]] = EXAMPLES
    """Two values of each that the source can say and the adapter tells as they are."""
    absurd: Mapping[str, tuple[Any, ...]] = ABSURD
    """What the source can say that can't be true."""
    sample_ms = 1_000
    """The interval at which samples are counted; in real time some 100."""
    rare_sample_ms = 1_000
    """The interval while changes are timed; far above `poll_ms` where the adapter allows it."""
    poll_ms = 1_000
    """The adapter sees a change of its source within so much."""

    def __init__(self, passing: Passing) -> None:
        self.passing = passing

    @abstractmethod
    def make(
        self, clock: Clock, sample_ms: int, sleep: Callable[[float], Awaitable[None]]
    ) -> VehicleInterface:
        """The adapter on this source."""

    @abstractmethod
    async def set(self, name: str, value: Any) -> None:
        """From this moment the sensor says the value, whether it was broken or not."""

    @abstractmethod
    async def break_sensor(self, name: str) -> None:
        """From this moment the sensor can't be read, in a way that is usual for this source."""

    def leftovers(self) -> list[str]:
        """What the adapter still holds open at the source, in words; empty after its end."""
        return []


class Drive:
    """An adapter that runs, and what it delivered."""

    def __init__(self, world: VehicleWorld, sample_ms: int) -> None:
        self.world = world
        self.samples: list[Readings] = []
        self.lateness_ms: list[int] = []
        """How far the clock was past `at_ms` when each sample came."""
        self.vehicle = world.make(world.passing.clock, sample_ms, world.passing.sleep)
        self.task = asyncio.create_task(self.vehicle.run(self._take))

    def _take(self, readings: Readings) -> None:
        self.samples.append(readings)
        self.lateness_ms.append(self.world.passing.clock.now_ms() - readings.at_ms)

    async def until(self, holds: Callable[[], bool], within_ms: int) -> None:
        """Let time pass until something holds; fail when it doesn't within the time."""
        passing = self.world.passing
        deadline_ms = passing.clock.now_ms() + within_ms + passing.patience_ms
        step_ms = 20 if passing.patience_ms else max(1, within_ms // 10)
        await passing.pass_ms(0)
        while not holds():
            assert not self.task.done(), "an adapter never ends by itself"
            assert passing.clock.now_ms() < deadline_ms, f"not within {within_ms} ms: {self.newest}"
            await passing.pass_ms(step_ms)

    async def until_says(self, values: Mapping[str, Any]) -> None:
        """Let time pass until the newest sample says all of this: within one poll."""
        await self.until(lambda: self.says_all(values), self.world.poll_ms)

    @property
    def newest(self) -> Readings | None:
        """The last sample."""
        return self.samples[-1] if self.samples else None

    def says(self, name: str, value: Any) -> bool:
        """Whether the newest sample says this of a sensor."""
        if self.newest is None:
            return False
        said = getattr(self.newest, name)
        if isinstance(value, float) and said is not None:
            return bool(said == pytest.approx(value, rel=1e-3, abs=1e-3))
        return bool(said == value)

    def says_all(self, values: Mapping[str, Any]) -> bool:
        """Whether the newest sample says all of this."""
        return all(self.says(name, value) for name, value in values.items())

    async def end(self) -> None:
        """Cancel it and wait for its end."""
        self.task.cancel()
        done, _ = await asyncio.wait([self.task], timeout=PROMPT_S)
        assert done, "an adapter ends promptly when it is cancelled"
        assert self.task.cancelled(), "an adapter tells of nothing when it is cancelled"


@contextlib.asynccontextmanager
async def drive(world: VehicleWorld, sample_ms: int) -> AsyncIterator[Drive]:
    """Run an adapter until the block ends."""
    one = Drive(world, sample_ms)
    try:
        yield one
    finally:
        if not one.task.done():
            await one.end()


async def set_all(world: VehicleWorld) -> dict[str, Any]:
    """Make every sensor say its first example; what the adapter must tell."""
    values = {name: world.examples[name][0] for name in world.sensors}
    for name, value in values.items():
        await world.set(name, value)
    return values


@contextlib.contextmanager
def set_place(monkeypatch: pytest.MonkeyPatch, zone: str) -> Iterator[None]:
    """Bring the computer to a place with a zone of POSIX (`AAA-5:30` is ahead of UTC)."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        try:
            yield
        finally:
            patch.undo()
            time.tzset()


class VehicleContract:
    """The tests; a class of an adapter inherits them and gives the fixture `world`."""

    async def test_a_first_sample_comes_at_once(self, world: VehicleWorld) -> None:
        async with drive(world, 10 * HOUR_MS) as one:
            await one.until(lambda: bool(one.samples), within_ms=0)

    async def test_every_sensor_is_told(self, world: VehicleWorld) -> None:
        values = await set_all(world)
        async with drive(world, world.rare_sample_ms) as one:
            await one.until_says(values)
            assert one.newest is not None
            told = {name for name in SENSORS if getattr(one.newest, name) is not None}
            assert told == set(world.sensors)

    async def test_a_sample_comes_at_each_interval(self, world: VehicleWorld) -> None:
        await set_all(world)
        passing = world.passing
        async with drive(world, world.sample_ms) as one:
            await one.until(lambda: bool(one.samples), within_ms=0)
            begin = len(one.samples)
            begin_ms = passing.clock.now_ms()
            await one.until(lambda: len(one.samples) >= begin + 4, 4 * world.sample_ms)
            await passing.pass_ms(0)
            elapsed_ms = passing.clock.now_ms() - begin_ms
            # A changing source may add samples of its own, but none changed here.
            assert len(one.samples) - begin <= elapsed_ms // world.sample_ms + 1

    async def test_a_change_is_told_at_once(self, world: VehicleWorld) -> None:
        values = await set_all(world)
        async with drive(world, world.rare_sample_ms) as one:
            await one.until_says(values)
            for name in world.sensors:
                values[name] = world.examples[name][1]
                await world.set(name, values[name])
                await one.until_says(values)

    async def test_the_time_of_samples_is_the_agents(self, world: VehicleWorld) -> None:
        await set_all(world)
        async with drive(world, world.sample_ms) as one:
            await one.until(lambda: len(one.samples) >= 3, 3 * world.sample_ms)
            times = [sample.at_ms for sample in one.samples]
            assert times == sorted(times)
            assert times[0] >= BEGIN_MS
            assert min(one.lateness_ms) >= 0, "no sample is of the future"
            assert max(one.lateness_ms) <= world.passing.patience_ms

    async def test_a_sensor_that_fails_is_missing_alone_and_recovers(
        self, world: VehicleWorld
    ) -> None:
        values = await set_all(world)
        async with drive(world, world.rare_sample_ms) as one:
            await one.until_says(values)
            for name in world.sensors:
                await world.break_sensor(name)
                without = values | {name: None}
                await one.until_says(without)
                await world.set(name, values[name])
                await one.until_says(values)

    async def test_samples_go_on_when_nothing_can_be_read(self, world: VehicleWorld) -> None:
        await set_all(world)
        for name in world.sensors:
            await world.break_sensor(name)
        nothing = dict.fromkeys(SENSORS)
        async with drive(world, world.sample_ms) as one:
            await one.until(lambda: len(one.samples) >= 3, 3 * world.sample_ms)
            assert one.says_all(nothing)

    async def test_what_can_not_be_true_is_missing(self, world: VehicleWorld) -> None:
        values = await set_all(world)
        async with drive(world, world.rare_sample_ms) as one:
            await one.until_says(values)
            for name in [name for name in world.sensors if name in world.absurd]:
                for value in world.absurd[name]:
                    await world.set(name, value)
                    without = values | {name: None}
                    await one.until_says(without)
                    await world.set(name, values[name])
                    await one.until_says(values)

    async def test_the_offset_is_that_of_the_places_clock(
        self, world: VehicleWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A source that itself knows what the place's clock shows has a test of its own here."""
        await set_all(world)
        with set_place(monkeypatch, "AAA-5:30"):
            async with drive(world, world.rare_sample_ms) as one:
                await one.until(lambda: bool(one.samples), within_ms=0)
                assert one.newest is not None
                assert one.newest.utc_offset_ms == 5.5 * HOUR_MS

    async def test_it_ends_at_once_and_leaves_nothing(self, world: VehicleWorld) -> None:
        await set_all(world)
        before = asyncio.all_tasks()
        one = Drive(world, world.sample_ms)
        await one.until(lambda: len(one.samples) >= 2, 2 * world.sample_ms)
        await one.end()
        seen = len(one.samples)
        await world.passing.pass_ms(2 * world.sample_ms)
        assert len(one.samples) == seen, "nothing is delivered after its end"
        assert asyncio.all_tasks() <= before
        assert world.leftovers() == []

    async def test_it_may_be_run_again(self, world: VehicleWorld) -> None:
        values = await set_all(world)
        for _ in range(2):
            async with drive(world, world.rare_sample_ms) as one:
                await one.until_says(values)
