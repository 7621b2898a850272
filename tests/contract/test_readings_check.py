"""What no sensor can say becomes a missing reading; what it can say stays as it is."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.place_clock import utc_offset_ms
from terafleet.agent.readings_check import FRACTIONS, UTC_OFFSET_MS_MAX, WHOLES, clean
from terafleet.core.readings import SENSORS, Readings
from tests.contract.vehicle_contract import ABSURD, EXAMPLES, HOUR_MS, set_place

AT_MS = 1_700_000_000_000
FULL = Readings(
    AT_MS,
    departure_at_ms=AT_MS + HOUR_MS,
    **{name: values[0] for name, values in EXAMPLES.items() if name != "departure_at_ms"},
)


def changed(**values: Any) -> Readings:
    """The full sample with other values, whatever their types."""
    return msgspec.structs.replace(FULL, **values)


def test_a_sample_that_can_be_true_stays_the_same_object() -> None:
    for readings in (FULL, Readings(AT_MS), changed(utc_offset_ms=UTC_OFFSET_MS_MAX)):
        assert clean(readings) is readings


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ABSURD.items() for value in values]
)
def test_an_absurd_value_is_missing_and_the_others_stay(name: str, value: object) -> None:
    assert clean(changed(**{name: value})) == changed(**{name: None})


@pytest.mark.parametrize("name", [*FRACTIONS, *WHOLES])
def test_the_bounds_themselves_can_be_true(name: str) -> None:
    for bound in (FRACTIONS | WHOLES)[name]:
        assert getattr(clean(changed(**{name: bound})), name) == bound


@pytest.mark.parametrize("name", SENSORS)
def test_a_value_of_another_type_is_missing(name: str) -> None:
    wrong = 1 if name.startswith("is_") or name == "place" else True
    for value in (wrong, "80" if name != "place" else b"home", [1]):
        assert getattr(clean(changed(**{name: value})), name) is None


def test_an_offset_that_no_place_has_is_none_at_all() -> None:
    for offset_ms in (UTC_OFFSET_MS_MAX + 1, -UTC_OFFSET_MS_MAX - 1, math.nan):
        assert clean(changed(utc_offset_ms=offset_ms)) == FULL


@given(st.fixed_dictionaries({}, optional={
    name: st.none() | st.booleans() | st.integers() | st.floats() | st.text() for name in SENSORS
}))  # fmt: skip
def test_whatever_is_said_what_is_left_can_be_true(values: dict[str, Any]) -> None:
    once = clean(Readings(AT_MS, **values))
    assert clean(once) is once
    for name in SENSORS:
        left = getattr(once, name)
        assert left is None or left is values[name]
        assert not isinstance(left, float) or math.isfinite(left)
    msgspec.convert(msgspec.to_builtins(once), Readings)


@pytest.mark.parametrize(("zone", "offset_ms"), [("AAA-5:30", 19_800_000), ("BBB3", -3 * HOUR_MS)])
def test_the_places_clock_is_the_computers(
    monkeypatch: pytest.MonkeyPatch, zone: str, offset_ms: int
) -> None:
    with set_place(monkeypatch, zone):
        assert utc_offset_ms(AT_MS) == offset_ms
        assert utc_offset_ms(10**30) == 0, "no such time"
