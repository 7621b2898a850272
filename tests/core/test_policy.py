"""What the owner allows: every reason to refuse, two levels, and what is missing refuses."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.policy import OwnerPolicy, policy_faults, refusals
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal

WELL = Readings(
    at_ms=1_000,
    is_parked=True,
    is_driver_present=False,
    is_plugged_in=True,
    soc_percent=80.0,
    compute_temperature_c=25.0,
)
POLICY = OwnerPolicy()


def why(
    policy: OwnerPolicy = POLICY,
    now_ms: int = 1_000,
    is_permitting: bool = False,
    **readings: Any,
) -> tuple[Refusal, ...]:
    """The refusals of a car that is well but for these readings."""
    return refusals(policy, msgspec.structs.replace(WELL, **readings), is_permitting, now_ms)


def test_a_well_car_permits() -> None:
    assert why() == ()


@pytest.mark.parametrize(
    ("readings", "refusal"),
    [
        ({"is_parked": False}, Refusal.NOT_PARKED),
        ({"is_driver_present": True}, Refusal.DRIVER_PRESENT),
        ({"is_plugged_in": False}, Refusal.UNPLUGGED),
        ({"soc_percent": 49.9}, Refusal.SOC_BELOW_FLOOR),
        ({"compute_temperature_c": 45.1}, Refusal.TEMPERATURE_HIGH),
    ],
)
def test_each_reading_refuses_by_its_own_name(readings: dict[str, Any], refusal: Refusal) -> None:
    assert why(**readings) == (refusal,)
    assert why(is_permitting=True, **readings) == (refusal,)


@pytest.mark.parametrize(
    "name",
    ["is_parked", "is_driver_present", "is_plugged_in", "soc_percent", "compute_temperature_c"],
)
def test_a_missing_reading_refuses(name: str) -> None:
    missing: dict[str, Any] = {name: None}
    assert why(**missing) == (Refusal.READING_MISSING,)


def test_no_readings_at_all_refuse() -> None:
    assert refusals(POLICY, None, False, 0) == (Refusal.READING_MISSING,)


def test_a_number_that_is_none_refuses() -> None:
    assert why(soc_percent=math.nan) == (Refusal.SOC_BELOW_FLOOR,)
    assert why(compute_temperature_c=math.nan) == (Refusal.TEMPERATURE_HIGH,)


def test_a_reading_is_stale_a_millisecond_after_its_time() -> None:
    last_ms = WELL.at_ms + POLICY.stale_ms
    assert why(now_ms=last_ms) == ()
    assert why(now_ms=last_ms + 1) == (Refusal.READING_STALE,)


def test_a_stale_reading_says_nothing_else() -> None:
    late_ms = WELL.at_ms + POLICY.stale_ms + 1
    assert why(now_ms=late_ms, is_driver_present=True) == (Refusal.READING_STALE,)


def test_the_charge_has_two_levels() -> None:
    for is_permitting, floor in ((True, 50.0), (False, 55.0)):
        assert why(is_permitting=is_permitting, soc_percent=floor) == ()
        below = why(is_permitting=is_permitting, soc_percent=floor - 0.1)
        assert below == (Refusal.SOC_BELOW_FLOOR,)


def test_the_temperature_has_two_levels() -> None:
    for is_permitting, ceiling in ((True, 45.0), (False, 40.0)):
        assert why(is_permitting=is_permitting, compute_temperature_c=ceiling) == ()
        above = why(is_permitting=is_permitting, compute_temperature_c=ceiling + 0.1)
        assert above == (Refusal.TEMPERATURE_HIGH,)


def test_the_plug_counts_only_where_the_owner_wants_it() -> None:
    free = OwnerPolicy(needs_plug=False)
    assert why(free, is_plugged_in=False) == ()
    assert why(free, is_plugged_in=None) == ()


def test_a_paused_car_refuses_whatever_its_readings_say() -> None:
    paused = OwnerPolicy(is_paused=True)
    assert why(paused) == (Refusal.OWNER_PAUSED,)
    assert refusals(paused, None, False, 0) == (Refusal.OWNER_PAUSED, Refusal.READING_MISSING)


def test_all_reasons_are_told_in_a_fixed_order() -> None:
    found = why(
        OwnerPolicy(is_paused=True),
        is_parked=False,
        is_driver_present=True,
        is_plugged_in=False,
        soc_percent=10.0,
        compute_temperature_c=None,
    )
    assert found == (
        Refusal.OWNER_PAUSED,
        Refusal.READING_MISSING,
        Refusal.NOT_PARKED,
        Refusal.DRIVER_PRESENT,
        Refusal.UNPLUGGED,
        Refusal.SOC_BELOW_FLOOR,
    )


maybe = st.none() | st.booleans()
numbers = st.none() | st.floats()


@given(
    readings=st.builds(Readings, st.integers(0, 100_000), maybe, maybe, maybe, numbers, numbers),
    is_permitting=st.booleans(),
    now_ms=st.integers(0, 200_000),
)
def test_a_permit_means_that_all_is_known_and_well(
    readings: Readings, is_permitting: bool, now_ms: int
) -> None:
    if refusals(POLICY, readings, is_permitting, now_ms):
        return
    assert readings.is_parked is True
    assert readings.is_driver_present is False
    assert readings.is_plugged_in is True
    assert readings.soc_percent is not None
    assert readings.soc_percent >= POLICY.soc_percent_min
    assert readings.compute_temperature_c is not None
    assert readings.compute_temperature_c <= POLICY.temperature_c_max
    assert now_ms - readings.at_ms <= POLICY.stale_ms


@given(
    readings=st.builds(Readings, st.just(0), maybe, maybe, maybe, numbers, numbers),
)
def test_who_may_begin_may_go_on(readings: Readings) -> None:
    """The level at which a car begins is never easier than the one at which it goes on."""
    if not refusals(POLICY, readings, False, 0):
        assert not refusals(POLICY, readings, True, 0)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (OwnerPolicy(soc_percent_min=60.0), "soc_percent_min"),
        (OwnerPolicy(soc_percent_resume=101.0), "soc_percent_resume"),
        (OwnerPolicy(soc_percent_min=-1.0), "soc_percent_min"),
        (OwnerPolicy(soc_percent_min=math.nan), "soc_percent_min"),
        (OwnerPolicy(temperature_c_resume=46.0), "temperature_c_resume"),
        (OwnerPolicy(settle_ms=-1), "settle_ms"),
        (OwnerPolicy(stale_ms=-1), "stale_ms"),
        (OwnerPolicy(release_ms=-1), "release_ms"),
    ],
)
def test_a_policy_that_makes_no_sense_is_told_in_words(policy: OwnerPolicy, words: str) -> None:
    (fault,) = policy_faults(policy)
    assert words in fault


def test_the_policy_of_a_careful_owner_has_no_fault() -> None:
    assert policy_faults(OwnerPolicy()) == []
    strict = OwnerPolicy(soc_percent_min=100.0, soc_percent_resume=100.0, settle_ms=0)
    assert policy_faults(strict) == []
