"""Since when each refusal stands, and what would end it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core.day_use import NOTHING_USED, with_link_bytes, with_wear
from terafleet.core.hours import Departure, Window
from terafleet.core.limits import BATTERY_COLD, LIMITS, QUIET_FAN, Limit, levels_of
from terafleet.core.local_time import MS_PER_DAY, local_day
from terafleet.core.policy import (
    ChargePolicy,
    HoursPolicy,
    LinkPolicy,
    OwnerPolicy,
    PlacePolicy,
    TemperaturePolicy,
    YieldPolicy,
)
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import refusals
from terafleet.core.standing import Ending, EndsBy, StandingRefusal, still_standing, what_ends
from terafleet.core.units import MS_PER_HOUR
from terafleet.core.wear import Wear, WearCaps, WearKind
from tests.core.policy_world import MONDAY_MS, WELL, at, policies, readings, well_enough, with_limit

POLICY = OwnerPolicy()
NOW_MS = at(0, 12)


def ends(refusal: Refusal, policy: OwnerPolicy = POLICY, **changes: Any) -> Ending:
    """What ends a refusal on Monday at noon, for a car that is well but for these readings."""
    sample = msgspec.structs.replace(WELL, **{"at_ms": NOW_MS, **changes})
    return what_ends(refusal, policy, sample, NOW_MS)


def test_what_stood_before_stands_since_then() -> None:
    first = still_standing((), (Refusal.UNPLUGGED,), 5)
    assert first == (StandingRefusal(Refusal.UNPLUGGED, 5),)
    second = still_standing(first, (Refusal.NOT_PARKED, Refusal.UNPLUGGED), 7)
    assert second == (
        StandingRefusal(Refusal.NOT_PARKED, 7),
        StandingRefusal(Refusal.UNPLUGGED, 5),
    )
    assert still_standing(second, (), 8) == ()
    again = still_standing((), (Refusal.UNPLUGGED,), 9)
    assert again == (StandingRefusal(Refusal.UNPLUGGED, 9),)


@pytest.mark.parametrize(
    "limit", [one for one in LIMITS if one is not QUIET_FAN], ids=lambda one: one.name
)
def test_a_limit_ends_at_its_second_level(limit: Limit) -> None:
    stop, begin = (60.0, 20.0) if limit.is_ceiling else (20.0, 60.0)
    policy = with_limit(limit, stop, begin)
    ending = ends(limit.refusal, policy, **{limit.sensor: 40.0})
    assert ending.by is EndsBy.LEVEL
    assert ending.sensors == (limit.sensor,)
    assert (ending.value, ending.level) == (40.0, begin)
    assert ending.is_ceiling == limit.is_ceiling


def test_of_two_limits_the_one_that_is_passed_is_told() -> None:
    policy = OwnerPolicy(temperature=TemperaturePolicy(battery_c_max=40.0, battery_c_min=0.0))
    assert ends(Refusal.TEMPERATURE_BATTERY, policy, battery_temperature_c=-3.0).level == 5.0
    assert ends(Refusal.TEMPERATURE_BATTERY, policy, battery_temperature_c=41.0).level == 35.0
    assert levels_of(policy, BATTERY_COLD) is not None


def test_hours_end_when_a_window_begins() -> None:
    hours = HoursPolicy(compute=(Window(("mon", "tue"), "22:00", "06:00"),))
    policy = OwnerPolicy(hours=hours)
    expected = Ending(EndsBy.TIME, at_ms=at(0, 22))
    assert ends(Refusal.OUTSIDE_COMPUTE_HOURS, policy) == expected
    earlier = Ending(EndsBy.TIME, at_ms=at(0, 21))
    assert ends(Refusal.OUTSIDE_COMPUTE_HOURS, policy, utc_offset_ms=MS_PER_HOUR) == earlier
    network = OwnerPolicy(hours=HoursPolicy(network=(Window(("sun",), "10:00", "11:00"),)))
    assert ends(Refusal.OUTSIDE_NETWORK_HOURS, network).at_ms == at(6, 10)


def test_hours_that_run_into_one_another_end_at_the_last() -> None:
    quiet = (Window(begin="10:00", end="14:00"), Window(begin="13:00", end="16:00"))
    policy = OwnerPolicy(hours=HoursPolicy(quiet=quiet))
    assert ends(Refusal.QUIET_HOURS, policy) == Ending(EndsBy.TIME, at_ms=at(0, 16))


def test_quiet_hours_may_end_by_the_fan() -> None:
    hours = HoursPolicy(quiet=(Window(begin="10:00", end="14:00"),), quiet_fan_percent_max=30.0)
    ending = ends(Refusal.QUIET_HOURS, OwnerPolicy(hours=hours), fan_percent=50.0)
    assert (ending.by, ending.at_ms, ending.value, ending.level) == (
        EndsBy.TIME,
        at(0, 14),
        50.0,
        24.0,
    )
    always = OwnerPolicy(hours=HoursPolicy(quiet=(Window(),)))
    assert ends(Refusal.QUIET_HOURS, always) == Ending(EndsBy.OWNER), "it is quiet for ever"


def test_a_departure_ends_with_its_delay() -> None:
    charge = ChargePolicy(departures=(Departure(at="12:10"),))
    expected = Ending(EndsBy.TIME, at_ms=at(0, 12) + 25 * 60_000)
    assert ends(Refusal.DEPARTURE_SOON, OwnerPolicy(charge=charge)) == expected
    assert ends(Refusal.DEPARTURE_SOON, departure_at_ms=NOW_MS).at_ms == NOW_MS + 15 * 60_000


def test_caps_end_at_midnight_unless_they_allow_nothing() -> None:
    policy = OwnerPolicy(link=LinkPolicy(day_bytes_max=10), wear=WearCaps(flash_bytes=10))
    day = local_day(NOW_MS)
    usage = with_link_bytes(with_wear(NOTHING_USED, Wear(flash_bytes=10), day), 10, day)
    sample = msgspec.structs.replace(WELL, at_ms=NOW_MS)
    data = what_ends(Refusal.DATA_CAP, policy, sample, NOW_MS, usage)
    assert data == Ending(EndsBy.TIME, at_ms=at(1, 0))
    wear = what_ends(Refusal.WEAR_BUDGET, policy, sample, NOW_MS, usage)
    assert wear == Ending(EndsBy.TIME, at_ms=at(1, 0), accounts=(WearKind.FLASH,))
    nothing = OwnerPolicy(link=LinkPolicy(day_bytes_max=0))
    assert what_ends(Refusal.DATA_CAP, nothing, sample, NOW_MS) == Ending(EndsBy.OWNER)


def test_a_pause_ends_when_its_owner_said() -> None:
    assert ends(Refusal.OWNER_PAUSED, OwnerPolicy(is_paused=True)) == Ending(EndsBy.OWNER)
    policy = OwnerPolicy(is_paused=True, resume_at="1970-01-06T06:00")
    expected = Ending(EndsBy.TIME, at_ms=at(1, 5))
    assert ends(Refusal.OWNER_PAUSED, policy, utc_offset_ms=MS_PER_HOUR) == expected
    assert what_ends(Refusal.OWNER_PAUSED, policy, None, NOW_MS) == Ending(EndsBy.OWNER)


def test_charge_first_ends_with_the_charge() -> None:
    policy = OwnerPolicy(charge=ChargePolicy(is_charge_first=True))
    ending = ends(Refusal.CHARGE_FIRST, policy, soc_percent=70.0)
    assert (ending.by, ending.value, ending.level) == (EndsBy.LEVEL, 70.0, 81.0)


def test_what_is_not_known_ends_when_it_is() -> None:
    missing = ends(Refusal.READING_MISSING, soc_percent=None)
    assert missing == Ending(EndsBy.READING, sensors=("soc_percent",))
    assert ends(Refusal.READING_STALE) == Ending(EndsBy.READING)
    nothing = what_ends(Refusal.READING_MISSING, POLICY, None, NOW_MS)
    assert "is_parked" in nothing.sensors


@pytest.mark.parametrize(
    ("refusal", "ending"),
    [
        (Refusal.NOT_PARKED, Ending(EndsBy.CAR, sensors=("is_parked",))),
        (Refusal.DRIVER_PRESENT, Ending(EndsBy.CAR, sensors=("is_driver_present",))),
        (Refusal.UPDATE_PENDING, Ending(EndsBy.CAR, sensors=("is_updating",))),
        (Refusal.METERED_LINK, Ending(EndsBy.CAR, sensors=("is_link_metered",))),
        (Refusal.SETTLING, Ending(EndsBy.TIME, dwell_ms=60_000)),
        (Refusal.REWARD_TOO_LOW, Ending(EndsBy.WORK)),
        (Refusal.YIELDING, Ending(EndsBy.AGENT)),
    ],
)
def test_all_else_ends_as_its_kind_does(refusal: Refusal, ending: Ending) -> None:
    assert ends(refusal) == ending


def test_a_place_ends_at_one_that_is_allowed() -> None:
    policy = OwnerPolicy(places=PlacePolicy(("home",)))
    ending = ends(Refusal.PLACE_NOT_ALLOWED, policy, place="fair")
    assert ending == Ending(EndsBy.CAR, sensors=("place",), places=("home",))


@settings(max_examples=40)
@given(st.data())
def test_when_time_ends_a_refusal_it_is_over_and_not_before(data: st.DataObject) -> None:
    drawn = data.draw(policies)
    policy = msgspec.structs.replace(drawn, giving_back=YieldPolicy(stale_ms=10**12))
    sample = data.draw(readings | well_enough(policy))
    for refusal in refusals(policy, sample, NOTHING_USED, False, MONDAY_MS):
        ending = what_ends(refusal, policy, sample, MONDAY_MS)
        if ending.at_ms is None:
            continue
        assert MONDAY_MS < ending.at_ms <= MONDAY_MS + 15 * MS_PER_DAY
        before, after = (
            refusals(
                policy, msgspec.structs.replace(sample, at_ms=now_ms), NOTHING_USED, False, now_ms
            )
            for now_ms in (ending.at_ms - 1, ending.at_ms)
        )
        assert refusal in before
        assert refusal not in after


@settings(max_examples=40)
@given(policies, st.none() | readings, st.sampled_from(Refusal))
def test_every_refusal_has_an_ending(policy: OwnerPolicy, sample: Any, refusal: Refusal) -> None:
    ending = what_ends(refusal, policy, sample, MONDAY_MS)
    assert (ending.level is None) == (ending.by is not EndsBy.LEVEL or not ending.sensors) or (
        refusal is Refusal.QUIET_HOURS
    )
    assert msgspec.convert(msgspec.to_builtins(ending), Ending) == ending
