"""A Linux computer as a car: what the kernel's files say becomes readings."""

import asyncio
import math
import os
import pty
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from terafleet.agent.adapters.vehicle.linux import LinuxVehicle
from terafleet.agent.adapters.vehicle.linux_inputs import terminal_counters
from terafleet.agent.linux_settings import LinuxSettings
from terafleet.core.readings import SENSORS, Readings
from terafleet.engine.clock import Clock, ManualClock, SystemClock
from tests.contract.linux_tree import (
    HOME_MARK,
    ROUTER,
    USB_DEVICE,
    WORK_MARK,
    WORK_ROUTER,
    LinuxTree,
)
from tests.contract.vehicle_contract import (
    ABSURD,
    EXAMPLES,
    RealPassing,
    VehicleContract,
    VehicleWorld,
    drive,
    set_all,
)

ALWAYS = {
    "is_parked": True,
    "is_charging": False,
    "charging_mw": 0,
    "is_preconditioning": False,
    "is_sentry_on": False,
    "is_updating": False,
    "is_in_service": False,
}
"""What this tree says whatever a test does: a computer has no wheels, and this one is charged."""

LINUX_EXAMPLES = {**EXAMPLES, "soc_percent": (80.0, 55.0)}
"""The kernel tells a charge in whole percent."""
LINUX_ABSURD = {name: values for name, values in ABSURD.items() if name != "place"} | {
    "fan_percent": (-0.1, math.nan)
}
"""A label is the owner's own word, and a fan may be faster than its data sheet."""


class LinuxWorld(VehicleWorld):
    """The kernel's folders; somebody who is there types without a pause."""

    sensors = (
        "is_driver_present",
        "is_plugged_in",
        "soc_percent",
        "compute_temperature_c",
        "battery_temperature_c",
        "charge_limit_percent",
        "place",
        "is_link_metered",
        "fan_percent",
    )
    examples = LINUX_EXAMPLES
    absurd = LINUX_ABSURD
    sample_ms = rare_sample_ms = poll_ms = 50

    def __init__(self, folder: Path) -> None:
        super().__init__(RealPassing())
        self.tree = LinuxTree(folder)
        self._link, self._router = "wlan0", ROUTER
        self._typing: asyncio.Task[None] | None = None

    def make(
        self, clock: Clock, sample_ms: int, sleep: Callable[[float], Awaitable[None]]
    ) -> LinuxVehicle:
        places = {HOME_MARK: "home", WORK_MARK: "work"}
        settings = LinuxSettings(idle_s=0.2, places=places)
        return LinuxVehicle(settings, sample_ms, clock, self.tree.path, sleep)

    async def set(self, name: str, value: Any) -> None:
        await getattr(self, f"_set_{name}")(value)

    async def break_sensor(self, name: str) -> None:
        await getattr(self, f"_set_{name}")(None)

    async def stop_typing(self) -> None:
        """Nobody is there any more."""
        if self._typing is not None:
            self._typing.cancel()
            await asyncio.wait([self._typing])
            self._typing = None

    async def _set_is_driver_present(self, value: bool | None) -> None:
        await self.stop_typing()
        self.tree.write(f"{USB_DEVICE}/urbnum", "" if value is None else "1")
        if value:
            self._typing = asyncio.create_task(self._type())

    async def _type(self) -> None:
        count = 1
        while True:
            count += 1
            self.tree.write(f"{USB_DEVICE}/urbnum", str(count))
            await asyncio.sleep(0.02)

    async def _set_is_plugged_in(self, value: bool | None) -> None:
        self.tree.set_plug("" if value is None else str(int(value)))

    async def _set_soc_percent(self, value: float | None) -> None:
        self.tree.set_battery(CAPACITY=whole_text(value, 1))

    async def _set_battery_temperature_c(self, value: float | None) -> None:
        self.tree.set_battery(TEMP=whole_text(value, 10))

    async def _set_compute_temperature_c(self, value: float | None) -> None:
        self.tree.set_temperature(whole_text(value, 1_000) or "")

    async def _set_charge_limit_percent(self, value: float | None) -> None:
        threshold = "sys/class/power_supply/BAT0/charge_control_end_threshold"
        self.tree.write(threshold, whole_text(value, 1) or "")

    async def _set_fan_percent(self, value: float | None) -> None:
        self.tree.write("sys/class/hwmon/hwmon1/fan1_input", whole_text(value, 30) or "")

    async def _set_place(self, value: str | None) -> None:
        routers = {"home": ROUTER, "work": WORK_ROUTER}
        self._router = routers.get(value or "", "")
        self.tree.set_route(self._link, self._router or None)

    async def _set_is_link_metered(self, value: bool | None) -> None:
        self._link = "tun0" if value is None else ("wwan0" if value else "wlan0")
        self.tree.set_route(self._link, self._router or None)


def whole_text(value: float | None, parts: int) -> str | None:
    """What a driver writes for a value; one that is no number is `nan` or `inf` in any case."""
    if value is None:
        return None
    try:
        # Away from zero, so that what is just out of bounds stays so.
        scaled = value * parts
        return str(int(scaled) if scaled == int(scaled) else int(scaled) + (1, -1)[scaled < 0])
    except (ValueError, OverflowError):
        return str(value)


class TestLinux(VehicleContract):
    """The contract of all vehicle adapters."""

    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[LinuxWorld]:
        world = LinuxWorld(tmp_path)
        yield world
        await world.stop_typing()

    async def test_every_sensor_is_told(self, world: VehicleWorld) -> None:
        """A part of the readings is not read but known; see `ALWAYS`."""
        values = await set_all(world)
        async with drive(world, world.rare_sample_ms) as one:
            await one.until_says(values | ALWAYS)
            assert one.newest is not None
            told = {name for name in SENSORS if getattr(one.newest, name) is not None}
            assert told == {*world.sensors, *ALWAYS}

    async def test_samples_go_on_when_nothing_can_be_read(self, world: VehicleWorld) -> None:
        await set_all(world)
        for name in world.sensors:
            await world.break_sensor(name)
        async with drive(world, world.sample_ms) as one:
            await one.until(lambda: len(one.samples) >= 3, 3 * world.sample_ms)
            assert one.says_all(dict.fromkeys(SENSORS) | ALWAYS)


class EndOfTest(Exception):
    """The time of a test is over."""


async def samples_of(
    tree: LinuxTree, settings: LinuxSettings, events: Mapping[int, Callable[[], object]]
) -> list[Readings]:
    """Run on a clock that moves only while the vehicle sleeps, one second beyond the last event."""
    clock = ManualClock(1_000_000)
    found: list[Readings] = []
    waiting = sorted(events.items())
    end_ms = clock.now_ms() + (waiting[-1][0] if waiting else 0) + 1_000

    async def sleep(pause_s: float) -> None:
        clock.advance(round(pause_s * 1_000))
        if clock.now_ms() > end_ms:
            raise EndOfTest
        while waiting and clock.now_ms() >= 1_000_000 + waiting[0][0]:
            waiting.pop(0)[1]()

    vehicle = LinuxVehicle(settings, 1_000, clock, tree.path, sleep)
    with pytest.raises(EndOfTest):
        await vehicle.run(found.append)
    return found


async def test_who_comes_is_told_before_the_next_sample(tmp_path: Path) -> None:
    tree = LinuxTree(tmp_path)
    touch = {6_300: lambda: tree.write(f"{USB_DEVICE}/urbnum", "121")}
    found = await samples_of(tree, LinuxSettings(idle_s=5), touch)
    assert [(one.at_ms - 1_000_000, one.is_driver_present) for one in found] == [
        *((second * 1_000, second < 5) for second in range(7)),
        (6_400, True),
        (7_000, True),
    ]


async def test_power_is_the_difference_of_counters(tmp_path: Path) -> None:
    tree = LinuxTree(tmp_path)
    zone = "sys/class/powercap/intel-rapl:0"
    tree.write(f"{zone}/name", "package-0")
    tree.write(f"{zone}/max_energy_range_uj", "100000000")
    tree.write(f"{zone}/energy_uj", "90000000")
    # 25 J in a second over the end of the counter, then 5 J more; then it may not be read.
    events = {
        500: lambda: tree.write(f"{zone}/energy_uj", "15000000"),
        1_500: lambda: tree.write(f"{zone}/energy_uj", "20000000"),
        2_500: lambda: tree.remove(f"{zone}/energy_uj"),
    }
    found = await samples_of(tree, LinuxSettings(), events)
    assert [one.compute_mw for one in found] == [None, 25_000, 5_000, None]


async def test_without_a_counter_the_battery_tells_the_power(tmp_path: Path) -> None:
    tree = LinuxTree(tmp_path)
    tree.set_battery(STATUS="Discharging", POWER_NOW="17500000")
    tree.set_plug("0")

    def charge() -> None:
        tree.set_plug("1")
        tree.set_battery(STATUS="Charging")

    found = await samples_of(tree, LinuxSettings(), {500: charge})
    assert [(one.compute_mw, one.charging_mw, one.is_charging) for one in found] == [
        (17_500, 0, False),
        (None, 17_500, True),
    ]


async def test_the_owners_word_on_place_and_link_goes_first(tmp_path: Path) -> None:
    tree = LinuxTree(tmp_path)
    tree.remove("proc/net/route")
    settings = LinuxSettings(place="garage", is_link_metered=True)
    first = (await samples_of(tree, settings, {}))[0]
    assert (first.place, first.is_link_metered) == ("garage", True)


async def test_on_this_very_computer() -> None:
    """Whatever it has, samples come, and the load is its own."""
    found: list[Readings] = []
    vehicle = LinuxVehicle(LinuxSettings(is_headless=True, idle_s=0), 50, SystemClock())
    task = asyncio.create_task(vehicle.run(found.append))
    deadline = time.monotonic() + 10
    while not found or found[-1].other_load_percent is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    assert (found[-1].is_parked, found[-1].is_driver_present) == (True, False)
    load = found[-1].other_load_percent
    assert load is not None
    assert 0 <= load <= 100


async def test_a_real_terminal_tells_when_it_is_typed_into() -> None:
    ours, theirs = pty.openpty()
    try:
        name = os.ttyname(theirs).removeprefix("/dev/")
        os.utime(theirs, (1_000, 1_000))
        before = terminal_counters("")[name]
        os.write(ours, b"a\n")
        assert os.read(theirs, 9) == b"a\n"
        after = terminal_counters("")[name]
    finally:
        os.close(ours)
        os.close(theirs)
    assert before == 1_000 * 10**9
    assert after is not None
    assert abs(after / 10**9 - time.time()) < 20, "the kernel counts in steps of 8 s"
