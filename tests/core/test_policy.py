"""What the owner allows: every reason to refuse, two levels, and what is missing refuses."""

import math
from typing import Any

import msgspec
import pytest

from terafleet.core.asking_price import AskingPrice
from terafleet.core.day_use import NOTHING_USED, DayUse, with_link_bytes, with_wear
from terafleet.core.hours import Departure, Window
from terafleet.core.limits import LIMITS, QUIET_FAN, Limit, levels_of
from terafleet.core.local_time import local_day
from terafleet.core.policy import (
    ActivityPolicy,
    ChargePolicy,
    HoursPolicy,
    LinkPolicy,
    OwnerPolicy,
    PlacePolicy,
    WorkPolicy,
    YieldPolicy,
    allows_work,
    finish_ms,
    is_reward_enough,
)
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import missing_sensors, refusals
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE
from terafleet.core.wear import Wear, WearCaps
from tests.core.policy_world import MONDAY_MS, WELL, at, with_limit

POLICY = OwnerPolicy()


def why(
    policy: OwnerPolicy = POLICY,
    now_ms: int = MONDAY_MS,
    is_permitting: bool = False,
    usage: DayUse = NOTHING_USED,
    **changes: Any,
) -> tuple[Refusal, ...]:
    """The refusals of a car that is well but for these readings, which are fresh."""
    readings = msgspec.structs.replace(WELL, **{"at_ms": now_ms, **changes})
    return refusals(policy, readings, usage, is_permitting, now_ms)


def test_a_well_car_permits() -> None:
    assert why() == ()


def test_a_car_that_says_only_what_every_car_says_permits_by_default() -> None:
    plain = Readings(MONDAY_MS, True, False, True, 80.0, 25.0)
    assert refusals(POLICY, plain, NOTHING_USED, False, MONDAY_MS) == ()


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"is_parked": False}, Refusal.NOT_PARKED),
        ({"is_driver_present": True}, Refusal.DRIVER_PRESENT),
        ({"is_plugged_in": False}, Refusal.UNPLUGGED),
        ({"soc_percent": 49.9}, Refusal.SOC_BELOW_FLOOR),
        ({"compute_temperature_c": 85.1}, Refusal.TEMPERATURE_COMPUTE),
        ({"is_preconditioning": True}, Refusal.PRECONDITIONING),
        ({"is_sentry_on": True}, Refusal.SENTRY),
        ({"is_updating": True}, Refusal.UPDATE_PENDING),
        ({"is_in_service": True}, Refusal.SERVICE_MODE),
        ({"departure_at_ms": MONDAY_MS + 15 * MS_PER_MINUTE}, Refusal.DEPARTURE_SOON),
        ({"departure_at_ms": MONDAY_MS - 15 * MS_PER_MINUTE + 1}, Refusal.DEPARTURE_SOON),
    ],
)
def test_each_reading_refuses_by_its_own_name(changes: dict[str, Any], refusal: Refusal) -> None:
    assert why(**changes) == (refusal,)
    assert why(is_permitting=True, **changes) == (refusal,)


@pytest.mark.parametrize(
    "name",
    ["is_parked", "is_driver_present", "is_plugged_in", "soc_percent", "compute_temperature_c"],
)
def test_a_missing_reading_refuses(name: str) -> None:
    missing: dict[str, Any] = {name: None}
    assert why(**missing) == (Refusal.READING_MISSING,)
    assert missing_sensors(POLICY, msgspec.structs.replace(WELL, **missing), MONDAY_MS) == (name,)


def test_no_readings_at_all_refuse() -> None:
    assert refusals(POLICY, None, NOTHING_USED, False, 0) == (Refusal.READING_MISSING,)
    assert len(missing_sensors(POLICY, None, 0)) == 5


def test_a_reading_is_stale_a_millisecond_after_its_time() -> None:
    last_ms = WELL.at_ms + POLICY.giving_back.stale_ms
    assert refusals(POLICY, WELL, NOTHING_USED, True, last_ms) == ()
    driven = msgspec.structs.replace(WELL, is_driver_present=True)
    found = refusals(POLICY, driven, NOTHING_USED, True, last_ms + 1)
    assert found == (Refusal.READING_STALE,), "a stale reading says nothing else"


@pytest.mark.parametrize("limit", LIMITS, ids=lambda one: one.name)
def test_every_limit_has_two_levels(limit: Limit) -> None:
    low, high = (20.0, 60.0)
    stop, begin = (high, low) if limit.is_ceiling else (low, high)
    policy = with_limit(limit, stop, begin)
    past = 1 if limit.is_ceiling else -1
    for is_permitting, level in ((True, stop), (False, begin)):
        fits: dict[str, Any] = {limit.sensor: level}
        beyond: dict[str, Any] = {limit.sensor: level + past}
        nan: dict[str, Any] = {limit.sensor: math.nan}
        assert why(policy, is_permitting=is_permitting, **fits) == ()
        assert why(policy, is_permitting=is_permitting, **beyond) == (limit.refusal,)
        assert why(policy, is_permitting=is_permitting, **nan) == (limit.refusal,)
    missing: dict[str, Any] = {limit.sensor: None}
    expected = Refusal.QUIET_HOURS if limit is QUIET_FAN else Refusal.READING_MISSING
    assert why(policy, **missing) == (expected,)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda one: one.name)
def test_a_limit_that_is_not_there_needs_no_reading(limit: Limit) -> None:
    if limit is QUIET_FAN:
        return
    policy = with_limit(limit, None)
    for value in (None, -1e9, 1e9):
        changes: dict[str, Any] = {limit.sensor: value}
        assert why(policy, **changes) == ()


@pytest.mark.parametrize(
    ("limit", "stop", "begin"),
    [
        (LIMITS[0], 50.0, 55.0),
        (LIMITS[0], 98.0, 100.0),
        (LIMITS[1], 12_200.0, 12_500.0),
        (LIMITS[2], 85.0, 80.0),
        (LIMITS[4], 0.0, 5.0),
        (LIMITS[6], 100_000.0, 80_000.0),
    ],
)
def test_the_second_level_follows_from_the_first(limit: Limit, stop: float, begin: float) -> None:
    levels = levels_of(with_limit(limit, stop), limit)
    assert levels is not None
    assert levels.begin == begin


def test_the_plug_counts_only_where_the_owner_wants_it() -> None:
    free = OwnerPolicy(charge=ChargePolicy(needs_plug=False))
    assert why(free, is_plugged_in=False) == ()
    assert why(free, is_plugged_in=None) == ()


def test_a_paused_car_refuses_whatever_its_readings_say() -> None:
    paused = OwnerPolicy(is_paused=True)
    assert why(paused) == (Refusal.OWNER_PAUSED,)
    found = refusals(paused, None, NOTHING_USED, False, 0)
    assert found == (Refusal.OWNER_PAUSED, Refusal.READING_MISSING)


def test_a_pause_ends_when_its_owner_said() -> None:
    utc = OwnerPolicy(is_paused=True, resume_at="1970-01-05T06:00+02:00")
    assert why(utc, at(0, 4) - 1) == (Refusal.OWNER_PAUSED,)
    assert why(utc, at(0, 4)) == ()
    local = OwnerPolicy(is_paused=True, resume_at="1970-01-05T06:00:00")
    hour = 2 * MS_PER_HOUR
    assert why(local, at(0, 4) - 1, utc_offset_ms=hour) == (Refusal.OWNER_PAUSED,)
    assert why(local, at(0, 4), utc_offset_ms=hour) == ()
    found = refusals(local, None, NOTHING_USED, False, at(6, 0))
    assert found == (Refusal.OWNER_PAUSED, Refusal.READING_MISSING), "nobody knows the place"
    assert why(OwnerPolicy(resume_at="2100-01-01T00:00")) == (), "it is not paused at all"


def test_a_departure_of_the_owner_has_its_lead_and_its_delay() -> None:
    charge = ChargePolicy(departures=(Departure(days=("mon", "fri"), at="07:30"),))
    policy = OwnerPolicy(charge=charge)
    assert why(policy, at(0, 7.25) - 1) == ()
    assert why(policy, at(0, 7.25)) == (Refusal.DEPARTURE_SOON,)
    assert why(policy, at(0, 7.75) - 1) == (Refusal.DEPARTURE_SOON,)
    assert why(policy, at(0, 7.75)) == ()
    assert why(policy, at(1, 7.5)) == ()
    assert why(policy, at(4, 7.5)) == (Refusal.DEPARTURE_SOON,)
    assert why(policy, at(4, 6.5), utc_offset_ms=MS_PER_HOUR) == (Refusal.DEPARTURE_SOON,)


CHARGE_FIRST = OwnerPolicy(
    charge=ChargePolicy(
        is_charge_first=True,
        capacity_mwh=50_000_000,
        departures=(Departure(at="08:00", soc_percent=90.0),),
    )
)
"""5 kWh are missing at 80 %; at 5 kW they take an hour."""


def test_charge_comes_first_if_time_gets_short() -> None:
    charging: dict[str, Any] = {"is_charging": True, "charging_mw": 5_000_000}
    first = (Refusal.CHARGE_FIRST,)
    assert why(CHARGE_FIRST, at(0, 6.5), True, **charging) == ()
    assert why(CHARGE_FIRST, at(0, 6.5) + 1, True, **charging) == first
    # To begin, a percent more and an hour in place of half an hour.
    assert why(CHARGE_FIRST, at(0, 5.9), False, **charging) == ()
    assert why(CHARGE_FIRST, at(0, 5.9) + 1, False, **charging) == first


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"is_charging": False}, ()),
        ({"is_charging": True, "charging_mw": None}, (Refusal.CHARGE_FIRST,)),
        ({"is_charging": True, "charging_mw": 0}, (Refusal.CHARGE_FIRST,)),
        ({"is_charging": True, "charging_mw": -1}, (Refusal.CHARGE_FIRST,)),
        ({"is_charging": True, "charging_mw": None, "soc_percent": 90.9}, (Refusal.CHARGE_FIRST,)),
        ({"is_charging": True, "charging_mw": None, "soc_percent": 91.0}, ()),
        ({"is_charging": None}, (Refusal.READING_MISSING,)),
    ],
)
def test_charge_comes_first_where_nobody_can_tell(
    changes: dict[str, Any], found: tuple[Refusal, ...]
) -> None:
    assert why(CHARGE_FIRST, at(0, 1), **changes) == found


def test_charge_comes_first_where_no_departure_is_known() -> None:
    policy = OwnerPolicy(charge=ChargePolicy(is_charge_first=True, capacity_mwh=50_000_000))
    charging: dict[str, Any] = {"is_charging": True, "charging_mw": 5_000_000}
    assert why(policy, soc_percent=79.0, **charging) == (Refusal.CHARGE_FIRST,)
    assert why(policy, soc_percent=81.0, **charging) == ()
    later: dict[str, Any] = {"departure_at_ms": at(0, 12), **charging}
    assert why(policy, soc_percent=79.0, **later) == (), "the car knows of one, far ahead"
    nan = why(policy, soc_percent=math.nan, **later)
    assert nan == (Refusal.SOC_BELOW_FLOOR, Refusal.CHARGE_FIRST)


def test_hours_for_compute_and_for_the_network() -> None:
    night = Window(("fri",), "22:00", "06:00")
    for name, refusal in (
        ("compute", Refusal.OUTSIDE_COMPUTE_HOURS),
        ("network", Refusal.OUTSIDE_NETWORK_HOURS),
    ):
        named: dict[str, Any] = {name: (night,)}
        policy = OwnerPolicy(hours=HoursPolicy(**named))
        assert why(policy, at(4, 22)) == why(policy, at(5, 6) - 1) == ()
        assert why(policy, at(4, 22) - 1) == why(policy, at(5, 6)) == (refusal,)
        assert why(policy, at(5, 5), utc_offset_ms=MS_PER_HOUR) == (refusal,)


def test_quiet_hours_without_a_limit_allow_nothing() -> None:
    for fan_percent_max in (None, 0.0):
        hours = HoursPolicy(quiet=(Window(),), quiet_fan_percent_max=fan_percent_max)
        assert why(OwnerPolicy(hours=hours), fan_percent=0.0) == (Refusal.QUIET_HOURS,)
    evening = HoursPolicy(quiet=(Window(begin="20:00", end="23:00"),))
    assert why(OwnerPolicy(hours=evening), at(0, 19), fan_percent=None) == ()


def test_places_and_links() -> None:
    home = OwnerPolicy(places=PlacePolicy(("home", "work")))
    assert why(home, place="work") == ()
    assert why(home, place="") == why(home, place="fair") == (Refusal.PLACE_NOT_ALLOWED,)
    assert why(home, place=None) == (Refusal.READING_MISSING,)
    plain = OwnerPolicy(link=LinkPolicy(allows_metered=False))
    assert why(plain, is_link_metered=True) == (Refusal.METERED_LINK,)
    assert why(plain, is_link_metered=None) == (Refusal.READING_MISSING,)


def test_what_the_car_is_about_may_be_allowed() -> None:
    busy: dict[str, Any] = {"is_preconditioning": True, "is_sentry_on": True}
    easy = OwnerPolicy(activity=ActivityPolicy(allows_preconditioning=True, allows_sentry=True))
    assert why(easy, **busy) == ()
    assert why(easy, is_updating=True) == (Refusal.UPDATE_PENDING,)
    names = ("is_preconditioning", "is_sentry_on", "is_updating", "is_in_service")
    silent: dict[str, Any] = dict.fromkeys(names)
    assert why(**silent) == ()
    strict = OwnerPolicy(activity=ActivityPolicy(allows_sentry=True, needs_all=True))
    assert why(strict, **silent) == (Refusal.READING_MISSING,)
    quiet = msgspec.structs.replace(WELL, **silent)
    needed = {"is_preconditioning", "is_updating", "is_in_service"}
    assert set(missing_sensors(strict, quiet, MONDAY_MS)) == needed


def test_caps_of_a_day_end_at_local_midnight() -> None:
    policy = OwnerPolicy(link=LinkPolicy(day_bytes_max=100), wear=WearCaps(flash_bytes=1_000))
    offset: dict[str, Any] = {"utc_offset_ms": MS_PER_HOUR}
    today = local_day(at(0, 23) - 1 + MS_PER_HOUR)
    used = with_link_bytes(with_wear(NOTHING_USED, Wear(flash_bytes=1_000), today), 100, today)
    both = (Refusal.DATA_CAP, Refusal.WEAR_BUDGET)
    assert why(policy, at(0, 23) - 1, usage=used, **offset) == both
    assert why(policy, at(0, 23), usage=used, **offset) == ()
    less = with_link_bytes(with_wear(NOTHING_USED, Wear(flash_bytes=950), today), 99, today)
    assert why(policy, at(0, 1), True, less, **offset) == ()
    assert why(policy, at(0, 1), False, less, **offset) == (Refusal.WEAR_BUDGET,)


def test_a_clock_that_is_set_back_gives_no_second_day() -> None:
    used = with_link_bytes(NOTHING_USED, 70, day=5)
    again = with_link_bytes(used, 30, day=4)
    assert (again.link_day, again.link_bytes) == (5, 100)
    assert with_link_bytes(again, 1, day=6).link_bytes == 1


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


def test_a_name_that_was_given_up_is_still_read() -> None:
    assert Refusal("temperature_high") is Refusal.TEMPERATURE_COMPUTE
    assert msgspec.convert("temperature_high", Refusal) is Refusal.TEMPERATURE_COMPUTE
    with pytest.raises(ValueError, match="no_such_reason"):
        Refusal("no_such_reason")


def test_work_is_allowed_by_kind_and_endpoint() -> None:
    assert allows_work(POLICY, "live", "/v1/embeddings")
    policy = OwnerPolicy(work=WorkPolicy(("batch",), ("embeddings", "/v1/completions")))
    assert allows_work(policy, "batch", "/v1/embeddings")
    assert allows_work(policy, "batch", "/v1/completions")
    assert not allows_work(policy, "live", "/v1/embeddings")
    assert not allows_work(policy, "batch", "/v1/chat/completions")


def test_a_reward_must_pay_for_the_price_and_for_the_time() -> None:
    asking = AskingPrice(10, 0, 0, 0, 5)
    assert is_reward_enough(POLICY, asking, 15, MS_PER_HOUR)
    assert not is_reward_enough(POLICY, asking, 14, MS_PER_HOUR)
    dear = OwnerPolicy(work=WorkPolicy(reward_micro_per_hour_min=40))
    assert is_reward_enough(dear, asking, 20, MS_PER_HOUR // 2)
    assert not is_reward_enough(dear, asking, 19, MS_PER_HOUR // 2)


def test_only_what_time_brings_lets_work_end_by_itself() -> None:
    policy = OwnerPolicy(giving_back=YieldPolicy(finish_ms=9))
    assert finish_ms(policy, (Refusal.DEPARTURE_SOON, Refusal.OUTSIDE_COMPUTE_HOURS)) == 9
    assert finish_ms(policy, (Refusal.DEPARTURE_SOON, Refusal.DRIVER_PRESENT)) == 0
    for refusal in (Refusal.NOT_PARKED, Refusal.READING_MISSING, Refusal.SOC_BELOW_FLOOR):
        assert finish_ms(policy, (refusal,)) == 0
    assert finish_ms(POLICY, (Refusal.DEPARTURE_SOON,)) == 0
