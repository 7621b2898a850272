"""What a car's VSS signals mean, and which settings of the databroker are good."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.adapters.vehicle import kuksa_signals as vss
from terafleet.agent.kuksa_settings import KuksaSettings, is_local, kuksa_faults
from terafleet.agent.readings_check import clean
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR

AT_MS = 1_700_000_000_000
TABLE = vss.SignalTable("Central", 0, {"Lake View": "home"})


def read(values: vss.Values, table: vss.SignalTable = TABLE) -> Readings:
    """The sample that follows."""
    return table.readings_of(values, AT_MS, 0)


@pytest.mark.parametrize(
    ("values", "is_parked"),
    [
        ({}, None),
        ({vss.SELECTED_GEAR: 126}, True),
        ({vss.CURRENT_GEAR: 126}, True),
        ({vss.PARK_LOCK: True}, True),
        ({vss.PARK_LOCK: True, vss.CURRENT_GEAR: 0}, True),
        ({vss.CURRENT_GEAR: 0}, None),
        ({vss.SELECTED_GEAR: 0}, False),
        ({vss.SELECTED_GEAR: 127}, False),
        ({vss.CURRENT_GEAR: -1}, False),
        ({vss.PARK_LOCK: False}, False),
        ({vss.SELECTED_GEAR: 126, vss.PARK_LOCK: False}, False),
        ({vss.SELECTED_GEAR: 126, vss.IS_MOVING: True}, False),
        ({vss.SELECTED_GEAR: 126, vss.SPEED: -3.0}, False),
        ({vss.SELECTED_GEAR: 126, vss.SPEED: 0.2, vss.IS_MOVING: False}, True),
        ({vss.SELECTED_GEAR: 126, vss.SWITCH: "ON"}, False),
        ({vss.SELECTED_GEAR: 126, vss.SWITCH: "START"}, False),
        ({vss.SELECTED_GEAR: 126, vss.SWITCH: "ACC"}, True),
        ({vss.SELECTED_GEAR: 126, vss.SWITCH: "UNDEFINED"}, True),
        ({vss.SWITCH: "LOCK"}, None),
        ({vss.IS_MOVING: False, vss.SPEED: 0.0}, None),
        ({vss.PARKING_BRAKE: True}, None),
        ({vss.PARKING_BRAKE: True, vss.SWITCH: "OFF"}, True),
        ({vss.PARKING_BRAKE: True, vss.SWITCH: "ACC"}, None),
        ({vss.PARKING_BRAKE: False, vss.SWITCH: "OFF"}, None),
    ],
)
def test_parked(values: vss.Values, is_parked: bool | None) -> None:
    assert read(values).is_parked is is_parked


@pytest.mark.parametrize(
    ("values", "is_present"),
    [
        ({}, None),
        ({vss.SEAT_OCCUPIED: False}, False),
        ({vss.SEAT_OCCUPIED: True}, True),
        ({vss.SEAT_STATUS: "EMPTY"}, False),
        ({vss.SEAT_STATUS: "OCCUPIED"}, True),
        ({vss.SEAT_STATUS: "UNKNOW"}, None),
        ({vss.SEAT_OCCUPIED: False, vss.SEAT_STATUS: "OCCUPIED"}, True),
        ({vss.DOORS[0]: False}, None),
        ({vss.DOORS[3]: True, vss.SEAT_OCCUPIED: False}, True),
    ],
)
def test_driver(values: vss.Values, is_present: bool | None) -> None:
    assert read(values).is_driver_present is is_present


@pytest.mark.parametrize(
    ("values", "is_plugged_in"),
    [
        ({}, None),
        ({vss.CABLE: True}, True),
        ({vss.OLD_CABLE: True}, True),
        ({vss.CABLE: False}, False),
        ({vss.CABLES[1]: False, vss.CABLES[4]: True}, True),
        ({vss.CABLES[1]: False, vss.CABLES[4]: False}, False),
    ],
)
def test_plug(values: vss.Values, is_plugged_in: bool | None) -> None:
    assert read(values).is_plugged_in is is_plugged_in


@pytest.mark.parametrize(
    ("values", "power_mw"),
    [
        ({}, None),
        ({vss.BATTERY_POWER: 7_400.5}, 7_400_500),
        ({vss.BATTERY_POWER: -300.0}, 0),
        ({vss.BATTERY_POWER: 0.0, vss.IS_CHARGING: True, vss.CHARGING_POWER: 11.0}, 0),
        ({vss.IS_CHARGING: True, vss.CHARGING_POWER: 11.0}, 11_000_000),
        ({vss.IS_CHARGING: False, vss.CHARGING_POWER: 11.0}, 0),
        ({vss.CHARGING_POWER: 11.0}, None),
        ({vss.IS_CHARGING: True}, None),
        ({vss.BATTERY_POWER: 1_000_001.0}, None),
    ],
)
def test_charging_power(values: vss.Values, power_mw: int | None) -> None:
    assert read(values).charging_mw == power_mw


@pytest.mark.parametrize(
    ("mode", "text", "departure_ms"),
    [
        ("END_TIME", "2023-11-14T22:13:20Z", AT_MS),
        ("END_TIME", "2023-11-14T23:13:20+01:00", AT_MS),
        ("END_TIME", "2023-11-14T22:13:20", AT_MS),
        ("END_TIME", "2023-11-14T21:13:21Z", AT_MS - MS_PER_HOUR + 1_000),
        ("END_TIME", "2023-11-14T21:13:20Z", None),
        ("END_TIME", "2025-11-14T22:13:20Z", None),
        ("END_TIME", "0001-01-01T00:00:00+23:00", None),
        ("END_TIME", "9999-12-31T23:59:59-23:00", None),
        ("END_TIME", "soon", None),
        ("END_TIME", "", None),
        ("START_TIME", "2023-11-14T22:13:20Z", None),
        ("INACTIVE", "2023-11-14T22:13:20Z", None),
        ("end_time", "2023-11-14T22:13:20Z", None),
    ],
)
def test_departure(mode: str, text: str, departure_ms: int | None) -> None:
    values = {vss.TIMER_MODE: mode, vss.TIMER_TIME: text}
    assert read(values).departure_at_ms == departure_ms
    assert read({vss.TIMER_TIME: text}).departure_at_ms is None
    assert read({vss.TIMER_MODE: mode}).departure_at_ms is None


@pytest.mark.parametrize(
    ("values", "is_metered"),
    [
        ({}, None),
        ({vss.LINKS: ("WIFI",)}, None),
        ({vss.LINKS: ("WIFI",), vss.WIFI_IS_METERED: False}, False),
        ({vss.LINKS: ("CELLULAR", "WIFI"), vss.WIFI_IS_METERED: True}, True),
        ({vss.LINKS: ("CELLULAR",), vss.WIFI_IS_METERED: False}, True),
        ({vss.LINKS: (), vss.WIFI_IS_METERED: False}, None),
        ({vss.WIFI_IS_METERED: False}, None),
        ({vss.WIFI_IS_METERED: True}, True),
    ],
)
def test_metered(values: vss.Values, is_metered: bool | None) -> None:
    assert read(values).is_link_metered is is_metered


@pytest.mark.parametrize(
    ("name", "place"), [("Lake View", "home"), ("lake view", "elsewhere"), ("", None)]
)
def test_place_is_the_owners_label(name: str, place: str | None) -> None:
    assert read({vss.WIFI_NAME: name}).place == place
    assert read({}).place is None


def test_a_wish_for_less_power_takes_the_car_away() -> None:
    def wants(level: int, level_max: int) -> bool | None:
        table = vss.SignalTable("Central", level_max, {})
        return read({vss.POWER_LEVEL: level}, table).is_in_service

    assert [wants(level, 0) for level in (0, 1, 10)] == [False, True, True]
    assert [wants(level, 4) for level in (4, 5)] == [False, True]
    assert [wants(level, 10) for level in (10, 11, -1)] == [False, None, None]


def test_what_is_shown_to_the_owner_and_the_hottest_cell_come_first() -> None:
    both = read({vss.SOC: 50.0, vss.SOC_SHOWN: 52.5, vss.AVERAGE_CELL: 20.0, vss.HOTTEST_CELL: 24})
    assert (both.soc_percent, both.battery_temperature_c) == (52.5, 24)
    other = read({vss.SOC: 50.0, vss.AVERAGE_CELL: 20.0})
    assert (other.soc_percent, other.battery_temperature_c) == (50.0, 20.0)


def test_the_control_unit_that_computes_is_asked() -> None:
    table = vss.SignalTable("FrontLeft", 0, {})
    unit = "Vehicle.ControlUnit.FrontLeft.Health.Resources"
    said = read({f"{unit}.Temperature": 61.5, f"{unit}.Power": 92.25}, table)
    assert (said.compute_temperature_c, said.compute_mw) == (61.5, 92_250)
    assert f"{unit}.Power" in table.kinds
    assert vss.WIFI_NAME not in table.kinds, "without places the network's name is not asked"


def test_air_conditioning_in_a_parked_car_prepares_it() -> None:
    cases = [
        ({vss.IS_AIR_CONDITIONED: True, vss.IS_BATTERY_CONDITIONED: False}, True),
        ({vss.IS_BATTERY_CONDITIONED: True}, True),
        ({vss.IS_AIR_CONDITIONED: False}, False),
        ({}, None),
    ]
    for values, is_preconditioning in cases:
        assert read(values).is_preconditioning is is_preconditioning


@pytest.mark.parametrize(
    ("path", "said", "value"),
    [
        (vss.IS_MOVING, True, True),
        (vss.IS_MOVING, 1, None),
        (vss.IS_MOVING, "true", None),
        (vss.SPEED, 3, 3),
        (vss.SPEED, True, None),
        (vss.SPEED, "3", None),
        (vss.SPEED, math.nan, None),
        (vss.SPEED, -math.inf, None),
        (vss.SPEED, 1e300, None),
        (vss.SWITCH, "ON", "ON"),
        (vss.SWITCH, "O\nN", None),
        (vss.SWITCH, "x" * 65, None),
        (vss.SWITCH, ("ON",), None),
        (vss.LINKS, ("WIFI",), ("WIFI",)),
        (vss.LINKS, "WIFI", None),
        (vss.LINKS, ("x" * 65,), None),
        (vss.LINKS, ("x",) * 17, None),
        (vss.LINKS, None, None),
    ],
)
def test_only_values_of_the_signals_kind_are_taken(path: str, said: Any, value: Any) -> None:
    assert TABLE.value_of(path, said) == value


SAID = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64),
    st.floats(),
    st.text(max_size=70),
    st.sampled_from(["END_TIME", "ON", "WIFI", "2023-11-14T22:13:20Z"]),
    st.lists(st.text(max_size=4) | st.sampled_from(["WIFI", "CELLULAR"]), max_size=20).map(tuple),
)


@given(st.dictionaries(st.sampled_from(sorted(TABLE.kinds)), SAID))
def test_anything_makes_a_sample_that_can_be_true(said: dict[str, Any]) -> None:
    checked = {path: TABLE.value_of(path, one) for path, one in said.items()}
    values = {path: value for path, value in checked.items() if value is not None}
    readings = read(values)
    assert clean(readings) is readings
    if values.get(vss.IS_MOVING):
        assert readings.is_parked is False


# Settings.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"address": "localhost:55555"},
        {"address": "[::1]:1"},
        {"address": "127.1.2.3:65535"},
        {"address": "unix:/run/kuksa/databroker.sock"},
        {"address": "10.0.0.5:55555", "ca_file": "ca.pem"},
        {"address": "databroker:55555", "is_plaintext_allowed": True},
        {"places": {"Lake View": "home"}, "power_level_max": 10, "control_unit": "FrontLeft"},
    ],
)
def test_good_settings(changes: dict[str, Any]) -> None:
    assert kuksa_faults(KuksaSettings(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"address": "10.0.0.5:55555"}, "is_plaintext_allowed"),
        ({"address": "localhost.example:55555"}, "is_plaintext_allowed"),
        ({"address": "[::2]:55555"}, "is_plaintext_allowed"),
        ({"address": "127.0.0.1"}, "host:port"),
        ({"address": "127.0.0.1:0"}, "host:port"),
        ({"address": "127.0.0.1:65536"}, "host:port"),
        ({"address": "xds:///127.0.0.1:1"}, "host:port"),
        ({"address": "unix:relative"}, "host:port"),
        ({"address": ""}, "host:port"),
        ({"silence_ms": 10}, "silence_ms"),
        ({"silence_ms": 60_001}, "silence_ms"),
        ({"control_unit": "A B"}, "control_unit"),
        ({"power_level_max": 11}, "power_level_max"),
        ({"places": {"": "home"}}, "places"),
        ({"places": {"x" * 33: "home"}}, "places"),
        ({"places": {"Lake View": "ho\nme"}}, "places"),
        ({"places": {str(number): "home" for number in range(33)}}, "places"),
    ],
)
def test_faults_are_named(changes: dict[str, Any], word: str) -> None:
    (fault,) = kuksa_faults(KuksaSettings(**changes))
    assert word in fault


def test_what_is_no_address_is_not_local() -> None:
    assert not is_local("localhost")
