"""A simulated city of cars that drive, park and charge, by SUMO (libsumo, extra `sumo`).

It writes recordings that `replay` plays, or lives on a clock and tells `sumo` adapters of the
same computer what their cars' sensors say. SUMO knows one city a process. From SUMO come traffic,
parking, charging power and charge; the rest is in `sumo_cars` and `sumo_days`.

Quality: tested on libsumo 1.28.0 (Linux, x86-64) on its own grid.
"""

import contextlib
import heapq
import importlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.etree import ElementTree

import msgspec

from terafleet.agent.adapters.vehicle.sumo import write_car
from terafleet.agent.adapters.vehicle.sumo_cars import (
    CHARGE_LIMIT_PERCENT,
    CityCar,
    Driven,
    Weather,
)
from terafleet.agent.adapters.vehicle.sumo_days import Place
from terafleet.agent.adapters.vehicle.sumo_net import (
    CAR_TYPE,
    PACK_WH,
    Street,
    grid_net,
    parking,
    places_file,
    streets_of,
)
from terafleet.agent.readings_csv import encode_header, encode_row
from terafleet.agent.readings_log import is_news, rounded
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR, MS_PER_S
from terafleet.engine.clock import Clock

MONDAY_MS = 1_704_067_200_000
"""1 January 2024, 00:00, in recordings: the city's time 0."""
WARM_UP_S = 300
"""So long before its beginning the cars come to stand where they live."""
FOREVER_S = 1e9
CARS_MAX, BLOCKS_MAX, STREETS_MAX = 10_000, 20, 300
HOURS_PER_WEEK = 168
PLACES: tuple[Place, ...] = ("home", "work", "elsewhere")
CHARGING_W = (3_700.0, 7_400.0, 11_000.0)
"""What cars take at the most: one phase of 16 A, one of 32 A, three of 16 A."""
LIMIT_S = 60
"""So often it is looked whether a pack has reached its limit."""
HEARTBEAT_MS = 5_000
LOOK_S = 0.2
WH_TO_MW = 3_600 * 1_000
"""SUMO tells charging as Wh in a step of a second."""


class CityUnavailable(Exception):
    """There is no city: libsumo is missing, or SUMO refused or gave up; the text says why."""


class CitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A city. Without a `net` of SUMO it is a grid of `blocks` times `blocks` squares.

    It begins on a Monday at `begin_hour`.
    """

    cars: int = 20
    seed: int = 1
    blocks: int = 6
    net: Path | None = None
    begin_hour: float = 0.0
    mean_c: float = 12.0
    swing_c: float = 6.0


def city_faults(settings: CitySettings) -> list[str]:
    """What is wrong with a city's settings, in words; empty when nothing is."""
    bounds = (
        ("cars", settings.cars, 1, CARS_MAX),
        ("blocks", settings.blocks, 1, BLOCKS_MAX),
        ("begin_hour", settings.begin_hour, 0, HOURS_PER_WEEK),
    )
    return [
        f"{name} must lie within {least} and {most}"
        for name, value, least, most in bounds
        if not least <= value <= most
    ]


class SumoCity:
    """The city; a context, as SUMO must be closed. Times are ms from Monday, 00:00."""

    def __init__(self, settings: CitySettings, folder: Path) -> None:
        """Files for SUMO come into `folder`. Raises CityUnavailable, OSError."""
        faults = city_faults(settings)
        if faults:
            raise CityUnavailable("; ".join(faults))
        self._sumo = _libsumo()
        self._begin_ms = round(settings.begin_hour * MS_PER_HOUR)
        self._weather = Weather(settings.mean_c, settings.swing_c)
        self._second = -WARM_UP_S
        if self._sumo.isLoaded():
            raise CityUnavailable("this process has a city already, and SUMO knows only one")
        chance = random.Random(settings.seed)  # noqa: S311 - it makes a city, it guards nothing.
        folder.mkdir(parents=True, exist_ok=True)
        net = settings.net or folder / "city.net.xml"
        if settings.net is None:
            net.write_text(grid_net(settings.blocks))
        streets = _streets(net, chance)
        places = folder / "city.add.xml"
        places.write_text(places_file(streets, settings.cars))
        names = [street.name for street in streets]
        self.cars = [
            CityCar(
                number,
                settings.seed,
                dict(zip(PLACES, chance.sample(names, len(PLACES)), strict=True)),
                self._begin_ms,
            )
            for number in range(settings.cars)
        ]
        self._charging_w = {car.name: chance.choice(CHARGING_W) for car in self.cars}
        self._start(net, places, settings.seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End SUMO."""
        self.close()

    def close(self) -> None:
        """End SUMO; safe to call twice."""
        with self._mapped():
            if self._sumo.isLoaded():
                self._sumo.close()

    @property
    def now_ms(self) -> int:
        """The city's time."""
        return self._begin_ms + self._second * MS_PER_S

    def step(self) -> None:
        """Let a second pass. Raises CityUnavailable."""
        with self._mapped():
            self._sumo.simulationStep()
            lost = self._sumo.simulation.getArrivedIDList()
            parked = [
                car
                for car in self._driving
                if car.name not in lost and self._sumo.vehicle.isStoppedParking(car.name)
            ]
        self._second += 1
        for car in [car for car in self._driving if car.name in lost]:
            car.is_lost = True
            self._driving.remove(car)
        for car in parked:
            self._driving.remove(car)
            self._arrived(car)
        while self._due and self._due[0][0] <= self.now_ms:
            _, number = heapq.heappop(self._due)
            self._depart(self.cars[number])
        if self._second % LIMIT_S == 0:
            self._limit()

    def readings(self, car: CityCar) -> Readings:
        """What a car's sensors say, by the city's time.

        All is missing of a car that SUMO has lost, or has not let in yet.
        """
        if car.is_lost or not car.has_come:
            return Readings(self.now_ms)
        return car.readings(self.now_ms, self._driven(car), self._weather)

    def _start(self, net: Path, places: Path, seed: int) -> None:
        self._due: list[tuple[int, int]] = []
        self._driving: list[CityCar] = []
        quiet = ("--no-step-log", "true", "--no-warnings", "true", "--duration-log.disable", "true")
        files = ("-n", str(net), "-a", str(places), "--seed", str(seed))
        with self._mapped():
            self._sumo.start(["sumo", *files, *quiet, "--time-to-teleport", "120"])
        try:
            for car in self.cars:
                self._settle(car)
            while self._second < 0:
                self.step()
        except CityUnavailable:
            self.close()
            raise
        self._due = [(car.next_trip.depart_ms, number) for number, car in enumerate(self.cars)]
        heapq.heapify(self._due)

    def _settle(self, car: CityCar) -> None:
        """Put a car into the street where it lives."""
        car.choose_plug(car.soc_percent_begin)
        charge_wh = PACK_WH * car.soc_percent_begin / 100
        with self._mapped():
            self._sumo.route.add(car.name, [car.street])
            self._sumo.vehicle.add(car.name, car.name, typeID=CAR_TYPE)
            self._sumo.vehicle.setParameter(car.name, "device.battery.chargeLevel", str(charge_wh))
            self._park_at_end(car)
        car.is_parked = False
        self._driving.append(car)

    def _park_at_end(self, car: CityCar) -> None:
        place = parking(car.street, car.has_plug)
        self._sumo.vehicle.setParkingAreaStop(car.name, place, duration=FOREVER_S)

    def _arrived(self, car: CityCar) -> None:
        car.arrive(self.now_ms)
        self._set_charging(car, self._charging_w[car.name])
        if self._second >= 0:
            heapq.heappush(self._due, (car.next_trip.depart_ms, car.number))

    def _depart(self, car: CityCar) -> None:
        """Send a car on its way, or leave the trip out where there is none."""
        here, soc_percent = car.street, self._driven(car).soc_percent
        there = car.streets[car.next_trip.place]
        with self._mapped():
            way = self._sumo.simulation.findRoute(here, there, vType=CAR_TYPE).edges
            if not way or here == there:
                car.stay()
                heapq.heappush(self._due, (car.next_trip.depart_ms, car.number))
                return
            car.depart(soc_percent)
            self._sumo.vehicle.resume(car.name)
            self._sumo.vehicle.setRoute(car.name, list(way))
            self._park_at_end(car)
        self._driving.append(car)

    def _limit(self) -> None:
        """Let no pack be charged beyond its limit."""
        for car in self.cars:
            if not (car.is_parked and car.has_plug):
                continue
            if self._driven(car).soc_percent >= CHARGE_LIMIT_PERCENT:
                self._set_charging(car, 0.0)

    def _set_charging(self, car: CityCar, power_w: float) -> None:
        with self._mapped():
            self._sumo.vehicle.setParameter(
                car.name, "device.battery.maximumChargeRate", str(power_w)
            )

    def _driven(self, car: CityCar) -> Driven:
        vehicle = self._sumo.vehicle
        with self._mapped():
            is_parked = bool(vehicle.isStoppedParking(car.name))
            charge_wh = float(vehicle.getParameter(car.name, "device.battery.chargeLevel"))
            charged_wh = float(vehicle.getParameter(car.name, "device.battery.energyCharged"))
        charging_mw = round(charged_wh * WH_TO_MW) if is_parked else 0
        return Driven(is_parked, charge_wh * 100 / PACK_WH, charging_mw)

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (self._sumo.TraCIException, self._sumo.FatalTraCIError) as error:
            raise CityUnavailable(f"SUMO: {error}") from error


def write_traces(
    settings: CitySettings, folder: Path, duration_s: int, sample_s: int = 10
) -> list[Path]:
    """Let a city live for so long and write a recording of each car into `folder`.

    The times of the recordings begin on Monday, 1 January 2024. A row is written when a car has
    something to say beyond noise, as `readings_log` does. Raises CityUnavailable, OSError.
    """
    with SumoCity(settings, folder) as city, contextlib.ExitStack() as files:
        paths = [folder / f"{car.name}.csv" for car in city.cars]
        open_files = [files.enter_context(path.open("wb")) for path in paths]
        written: list[Readings | None] = [None] * len(city.cars)
        for file in open_files:
            file.write(encode_header())
        for second in range(duration_s + 1):
            for car in city.cars if second % sample_s == 0 else ():
                row = _dated(city.readings(car), MONDAY_MS)
                before = written[car.number]
                if before is None or is_news(row, before):
                    open_files[car.number].write(encode_row(rounded(row)))
                    written[car.number] = row
            if second < duration_s:
                city.step()
    return paths


def live(
    settings: CitySettings,
    folder: Path,
    clock: Clock,
    speed: float = 1.0,
    goes_on: Callable[[int], bool] = lambda _: True,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Let a city live on a clock, `speed` times as fast, and write each car's file for `sumo`.

    It ends when `goes_on`, which is told the city's time, says no. The files change several times
    a minute, so the folder is best one in memory. Raises CityUnavailable, OSError.
    """
    with SumoCity(settings, folder) as city:
        files = [_CarFile(folder / f"{car.name}.csv") for car in city.cars]
        begin_ms, city_begin_ms = clock.now_ms(), city.now_ms
        while goes_on(city.now_ms):
            now_ms = clock.now_ms()
            until_ms = city_begin_ms + (now_ms - begin_ms) * speed
            # A city that is slower than its clock still has to tell what it knows.
            steps_max = max(1, round(speed * LOOK_S * 10))
            for _ in range(steps_max):
                if city.now_ms + MS_PER_S > until_ms:
                    break
                city.step()
            for car, file in zip(city.cars, files, strict=True):
                file.tell(_by_clock(city.readings(car), now_ms, speed))
            sleep(LOOK_S)


class _CarFile:
    """A car's file, written when there is something to say, and to show that the city lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: Readings | None = None

    def tell(self, readings: Readings) -> None:
        """Write it if it is time to."""
        before = self._written
        is_due = before is None or readings.at_ms - before.at_ms >= HEARTBEAT_MS
        if before is None or is_due or is_news(readings, before):
            write_car(self._path, readings)
            self._written = readings


def _dated(readings: Readings, begin_ms: int) -> Readings:
    """By a calendar whose first Monday begins at `begin_ms`."""
    departure_ms = readings.departure_at_ms
    return msgspec.structs.replace(
        readings,
        at_ms=readings.at_ms + begin_ms,
        departure_at_ms=None if departure_ms is None else departure_ms + begin_ms,
    )


def _by_clock(readings: Readings, now_ms: int, speed: float) -> Readings:
    """By the clock of the computer, on which a departure comes the sooner the faster the city."""
    departure_ms = readings.departure_at_ms
    if departure_ms is not None:
        departure_ms = now_ms + round((departure_ms - readings.at_ms) / speed)
    return msgspec.structs.replace(readings, at_ms=now_ms, departure_at_ms=departure_ms)


def _streets(net: Path, chance: random.Random) -> list[Street]:
    """The streets to park along, some of them if a net has many. Raises CityUnavailable."""
    try:
        streets = streets_of(net)
    except (ElementTree.ParseError, ValueError) as error:
        raise CityUnavailable(f"{net}: {error}") from error
    if len(streets) < len(PLACES):
        raise CityUnavailable(f"{net}: a city needs {len(PLACES)} streets to park along")
    return chance.sample(streets, STREETS_MAX) if len(streets) > STREETS_MAX else streets


def _libsumo() -> Any:
    """The library; it is large, so nothing else imports it."""
    try:
        return importlib.import_module("libsumo")
    except ImportError as error:
        raise CityUnavailable("libsumo is missing: install terafleet[sumo]") from error
