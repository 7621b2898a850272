"""The vehicle of a simulated city, without the simulator: the file that the city writes."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from terafleet.agent.adapters.vehicle.sumo import STALE_MS, SumoVehicle, write_car
from terafleet.core.readings import Readings
from terafleet.engine.clock import Clock
from tests.contract.vehicle_contract import (
    ABSURD,
    BEGIN_MS,
    VehicleContract,
    VehicleWorld,
    VirtualPassing,
    drive,
)


class SumoWorld(VehicleWorld):
    """A city that writes the car's file at each change."""

    rare_sample_ms = 600_000
    poll_ms = 200
    # A line can't hold another one, and an empty label is a missing one.
    absurd = dict(ABSURD) | {"place": ("x" * 65, "ho\tme")}

    def __init__(self, path: Path) -> None:
        super().__init__(VirtualPassing())
        self.path = path
        self._said: dict[str, Any] = {}

    def make(
        self, clock: Clock, sample_ms: int, sleep: Callable[[float], Awaitable[None]]
    ) -> SumoVehicle:
        return SumoVehicle(self.path, sample_ms, clock, sleep)

    async def set(self, name: str, value: Any) -> None:
        self._said[name] = value
        self.write()

    async def break_sensor(self, name: str) -> None:
        await self.set(name, None)

    def write(self) -> None:
        """Say again what was said."""
        write_car(self.path, Readings(self.passing.clock.now_ms(), **self._said))


@pytest.fixture
def sumo_world(tmp_path: Path) -> SumoWorld:
    """A city with one car."""
    return SumoWorld(tmp_path / "car-0000.csv")


class TestSumo(VehicleContract):
    """The contract of all vehicle adapters."""

    @pytest.fixture
    def world(self, sumo_world: SumoWorld) -> SumoWorld:
        return sumo_world


async def test_a_city_that_stands_still_or_is_gone_says_nothing(sumo_world: SumoWorld) -> None:
    await sumo_world.set("is_parked", True)
    async with drive(sumo_world, 600_000) as one:
        await one.until(lambda: one.says("is_parked", True), within_ms=0)
        await sumo_world.passing.pass_ms(STALE_MS - 1_000)
        assert one.says("is_parked", True)
        await one.until(lambda: one.says("is_parked", None), within_ms=1_200)
        sumo_world.write()
        await one.until(lambda: one.says("is_parked", True), sumo_world.poll_ms)
        sumo_world.path.unlink()
        await one.until(lambda: one.says("is_parked", None), sumo_world.poll_ms)
        sumo_world.write()
        await one.until(lambda: one.says("is_parked", True), sumo_world.poll_ms)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}\n", b"at_ms,is_parked\n", b"at_ms,is_parked\n1,yes\n", b"\xff\n", b"x" * 9_999],
)
async def test_a_file_that_is_none_of_a_citys_says_nothing(
    sumo_world: SumoWorld, body: bytes
) -> None:
    await sumo_world.set("is_parked", True)
    async with drive(sumo_world, 600_000) as one:
        await one.until(lambda: one.says("is_parked", True), within_ms=0)
        sumo_world.path.write_bytes(body)
        await one.until(lambda: one.says("is_parked", None), sumo_world.poll_ms)


async def test_a_file_of_another_day_says_nothing(sumo_world: SumoWorld) -> None:
    for at_ms in (BEGIN_MS - 86_400_000, BEGIN_MS + 86_400_000):
        write_car(sumo_world.path, Readings(at_ms, is_parked=True))
        async with drive(sumo_world, 1_000) as one:
            await sumo_world.passing.pass_ms(2_000)
            assert len(one.samples) >= 2
            assert {sample.is_parked for sample in one.samples} == {None}
