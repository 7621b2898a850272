"""The simulated city: its town and its people's days always, its traffic where libsumo is."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.adapters.vehicle import sumo_city
from terafleet.agent.adapters.vehicle.sumo_cars import CityCar, Driven, Weather
from terafleet.agent.adapters.vehicle.sumo_city import (
    MONDAY_MS,
    CitySettings,
    CityUnavailable,
    SumoCity,
    city_faults,
    live,
    write_traces,
)
from terafleet.agent.adapters.vehicle.sumo_days import Days, Place
from terafleet.agent.adapters.vehicle.sumo_net import Street, grid_net, places_file, streets_of
from terafleet.agent.readings_csv import read_readings
from terafleet.core.readings import SENSORS, Readings
from terafleet.engine.clock import ManualClock

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
STREETS: dict[Place, str] = {"home": "h", "work": "w", "elsewhere": "e"}
NUMBER = 1
"""The person of this car works, with the seed 1."""
STILL = Driven(is_parked=True, soc_percent=70.0, charging_mw=0)


@given(st.integers(0, 10**6), st.integers(0, 1_000), st.integers(0, 400))
def test_a_day_goes_forward_ends_at_home_and_is_the_same_again(
    seed: int, number: int, day: int
) -> None:
    trips = Days(seed, number).trips(day)
    assert trips == Days(seed, number).trips(day)
    times = [trip.depart_ms for trip in trips]
    assert all(later - sooner >= 15 * 60_000 for sooner, later in pairwise(times))
    assert all(day * DAY_MS < at_ms < (day + 1) * DAY_MS for at_ms in times)
    assert not trips or trips[-1].place == "home"
    assert all(one.place != other.place for one, other in pairwise(trips))


def test_people_work_on_weekdays() -> None:
    days = Days(1, NUMBER)
    assert days.works
    worked = [
        day for day in range(14) if days.trips(day)[:1] and days.trips(day)[0].place == "work"
    ]
    assert worked == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]


def test_a_town_has_its_streets_and_a_foreign_net_those_for_cars(tmp_path: Path) -> None:
    path = tmp_path / "town.net.xml"
    path.write_text(grid_net(2))
    streets = streets_of(path)
    assert len(streets) == 24
    assert set(streets) >= {Street("s0-0-0-1", 200.0), Street("s2-1-1-1", 200.0)}
    path.write_text(
        '<net><edge id=":j" function="internal"><lane id=":j_0" length="90"/></edge>'
        '<edge id="foot"><lane id="foot_0" allow="pedestrian" length="90"/></edge>'
        '<edge id="tram"><lane id="tram_0" disallow="all" length="90"/></edge>'
        '<edge id="short"><lane id="short_0" length="20"/></edge>'
        '<edge id="road"><lane id="road_0" disallow="tram" length="90"/></edge>'
        '<edge id="bus"><lane id="bus_0" allow="bus passenger" length="61.5"/></edge></net>'
    )
    assert streets_of(path) == [Street("road", 90.0), Street("bus", 61.5)]
    assert places_file(streets_of(path), 3).count('roadsideCapacity="3"') == 4


def a_car() -> CityCar:
    """A car whose person drives to work on Monday."""
    return CityCar(NUMBER, 1, STREETS, begin_ms=0)


def test_a_car_says_who_is_there_and_where_it_is() -> None:
    car, weather = a_car(), Weather()
    depart_ms = car.next_trip.depart_ms
    at_home = car.readings(1_000, STILL, weather)
    assert (at_home.place, at_home.is_link_metered, at_home.is_driver_present) == (
        "home",
        False,
        False,
    )
    assert car.readings(depart_ms - 60_000, STILL, weather).is_driver_present is True
    car.depart(70.0)
    driving = car.readings(depart_ms + 1_000, STILL._replace(is_parked=False), weather)
    assert (driving.is_parked, driving.is_driver_present, driving.is_plugged_in) == (
        False,
        True,
        False,
    )
    car.arrive(depart_ms + 600_000)
    arrived = [car.readings(depart_ms + 600_000 + later, STILL, weather) for later in (0, 30_000)]
    assert [one.is_driver_present for one in arrived] == [True, False]
    assert arrived[1].place == "work"
    assert (arrived[1].compute_temperature_c or 0) > (at_home.compute_temperature_c or 0)
    missing = {name for name in SENSORS if getattr(driving, name) is None}
    assert missing == {"departure_at_ms", "compute_mw"}, "no car knows what was not modelled"


def test_a_pack_that_is_low_is_plugged_in_at_home_and_warmed_in_the_cold() -> None:
    car = a_car()
    car.choose_plug(20.0)
    depart_ms = car.next_trip.depart_ms
    charging = Driven(True, 20.0, 7_400_000)
    cold = Weather(mean_c=-5.0)
    seen = [car.readings(depart_ms - ago_ms, charging, cold) for ago_ms in (HOUR_MS, 300_000)]
    assert [one.is_preconditioning for one in seen] == [False, True]
    assert {(one.is_plugged_in, one.is_charging) for one in seen} == {(True, True)}


def test_the_air_is_warmest_in_the_afternoon() -> None:
    weather = Weather(10.0, 5.0)
    assert weather.ambient_c(15 * HOUR_MS) == pytest.approx(15.0)
    assert weather.ambient_c(27 * HOUR_MS) == pytest.approx(5.0)


def test_a_city_that_makes_no_sense_is_said_so(tmp_path: Path) -> None:
    assert city_faults(CitySettings()) == []
    for wrong in (CitySettings(cars=0), CitySettings(blocks=21), CitySettings(begin_hour=-1.0)):
        assert len(city_faults(wrong)) == 1
        with pytest.raises(CityUnavailable, match="must lie within"):
            SumoCity(wrong, tmp_path)


def test_without_libsumo_there_is_no_city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libsumo", None)
    with pytest.raises(CityUnavailable, match=r"install terafleet\[sumo\]"):
        SumoCity(CitySettings(), tmp_path)


@pytest.fixture
def _sumo() -> None:
    pytest.importorskip("libsumo", reason="needs libsumo, which terafleet[sumo] brings (310 MB)")


@pytest.fixture
def traces(_sumo: None, tmp_path: Path) -> list[list[Readings]]:
    """Monday from 6 to 20 o'clock of six cars."""
    settings = CitySettings(cars=6, blocks=3, begin_hour=6)
    paths = write_traces(settings, tmp_path, 14 * 3_600)
    return [list(read_readings(path)) for path in paths]


def test_cars_drive_park_and_charge(traces: list[list[Readings]]) -> None:
    for samples in traces:
        assert samples[0].at_ms == MONDAY_MS + 6 * HOUR_MS
        assert samples[-1].at_ms > MONDAY_MS + 19.5 * HOUR_MS
        assert samples[0].is_parked is True
        assert all(0 < (one.soc_percent or 0) < 80.5 for one in samples)
        for one in samples:
            assert one.is_parked is not None
            assert not one.is_charging or one.is_plugged_in
            assert not one.is_plugged_in or one.is_parked
            assert bool(one.charging_mw) == one.is_charging
        for one, other in pairwise(samples):
            change = (other.soc_percent or 0) - (one.soc_percent or 0)
            if not one.is_parked and not other.is_parked:
                assert change <= 0.1, "driving takes charge, but for what brakes give back"
            if one.is_charging and other.is_charging:
                assert change >= 0
    drives = [
        sum(one.is_parked is True and other.is_parked is False for one, other in pairwise(samples))
        for samples in traces
    ]
    assert sum(drives) >= 6
    powers = {one.charging_mw for samples in traces for one in samples if one.charging_mw}
    assert powers
    assert max(powers) <= 11_000_000
    places = {one.place for samples in traces for one in samples if one.is_parked}
    assert places >= {"home", "work"}


@pytest.mark.usefixtures("_sumo")
def test_the_same_seed_is_the_same_city(tmp_path: Path) -> None:
    bodies = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        settings = CitySettings(cars=4, blocks=2, begin_hour=7, seed=seed)
        paths = write_traces(settings, tmp_path / name, 1_800)
        bodies.append([path.read_bytes() for path in paths])
    assert bodies[0] == bodies[1] != bodies[2]


@pytest.mark.usefixtures("_sumo")
def test_a_city_lives_on_a_clock(tmp_path: Path) -> None:
    clock = ManualClock(MONDAY_MS * 2)
    settings = CitySettings(cars=3, blocks=2, begin_hour=6)
    seen: list[Readings] = []

    def sleep(pause_s: float) -> None:
        clock.advance(round(pause_s * 1_000))
        (newest,) = read_readings(tmp_path / "car-0001.csv")
        seen.append(newest)

    live(settings, tmp_path, clock, 60, lambda now_ms: now_ms < 9 * HOUR_MS, sleep)
    elapsed_ms = clock.now_ms() - MONDAY_MS * 2
    assert elapsed_ms == pytest.approx(3 * HOUR_MS / 60, rel=0.02)
    assert {one.is_parked for one in seen} == {True, False}
    assert all(clock.now_ms() - one.at_ms > 0 for one in seen)
    assert max(other.at_ms - one.at_ms for one, other in pairwise(seen)) <= 5_200
    left_ms = [
        (one.departure_at_ms - one.at_ms) * 60 for one in seen if one.departure_at_ms is not None
    ]
    assert all(left < DAY_MS for left in left_ms)


@pytest.mark.usefixtures("_sumo")
def test_a_process_has_one_city_and_a_fault_of_sumo_has_one_name(tmp_path: Path) -> None:
    settings = CitySettings(cars=2, blocks=1)
    with (
        SumoCity(settings, tmp_path),
        pytest.raises(CityUnavailable, match="only one"),
    ):
        SumoCity(settings, tmp_path / "other")
    net = tmp_path / "broken.net.xml"
    net.write_text(grid_net(1).replace('from="c0-0"', 'from="nowhere"'))
    with pytest.raises(CityUnavailable, match="SUMO"):
        SumoCity(CitySettings(cars=2, net=net), tmp_path)
    for text, fault in (("<net>", "no element"), ("<net/>", "needs 3 streets")):
        net.write_text(text)
        with pytest.raises(CityUnavailable, match=fault):
            SumoCity(CitySettings(cars=2, net=net), tmp_path)
    with SumoCity(settings, tmp_path) as city:
        city.step()
    city.close()


@pytest.mark.usefixtures("_sumo")
def test_a_car_that_sumo_lost_says_nothing(tmp_path: Path) -> None:
    net = tmp_path / "town.net.xml"
    net.write_text(grid_net(2))
    with SumoCity(CitySettings(cars=2, net=net), tmp_path) as city:
        city.cars[1].is_lost = True
        assert city.readings(city.cars[1]) == Readings(0)
        assert city.readings(city.cars[0]).is_parked is True
    assert sumo_city.MONDAY_MS % (7 * DAY_MS) == 4 * DAY_MS, "a Monday"
