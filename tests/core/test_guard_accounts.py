"""What the guard counts and asks: never less than the asking price, caps, and what is owed."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.asking_price import Conditions, OwnerTerms, Usage, asking_price
from terafleet.core.battery_ageing import CHEMISTRIES
from terafleet.core.guard import Guard
from terafleet.core.guard_accounts import (
    CHARGING_UNKNOWN_MW,
    JUNCTION_ABOVE_C,
    JUNCTION_UNKNOWN_C,
    PACK_UNKNOWN_C,
    SOC_UNKNOWN_PERCENT,
    TEMPERATURE_C_MAX,
    CarAccounts,
    CarBook,
    Share,
    conditions_of,
)
from terafleet.core.guard_effects import GuardState
from terafleet.core.local_time import MS_PER_DAY
from terafleet.core.policy import (
    LinkPolicy,
    OwnerPolicy,
    TemperaturePolicy,
    WorkPolicy,
    YieldPolicy,
)
from terafleet.core.readings import Readings
from terafleet.core.reasons import LeaseEnding, Refusal
from terafleet.core.tariff import Tariff, TariffWindow
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE
from terafleet.core.wear import WearCaps
from terafleet.core.wear_price import PackTerms, flash_price
from tests.core.guard_world import (
    COMPUTER_MW,
    LEASE_MS,
    MARGIN_MS,
    CarWorld,
    state_of,
)
from tests.core.policy_world import MONDAY_MS, WELL

STALE_MS = 30_000
EVENING = TariffWindow(900_000, begin_minute=18 * 60, end_minute=20 * 60)
TARIFFS = (Tariff(), Tariff(50_000, (EVENING,)))
terms = st.builds(
    OwnerTerms,
    tariff=st.sampled_from(TARIFFS),
    pack=st.sampled_from(["", *CHEMISTRIES]).map(lambda name: PackTerms(chemistry=name)),
    margin_percent=st.integers(0, 100),
    margin_micro_per_hour=st.sampled_from([0, 50_000]),
)
readings = st.builds(
    lambda changes: msgspec.structs.replace(WELL, **changes),
    st.fixed_dictionaries(
        {
            "soc_percent": st.none() | st.floats(0, 100),
            "battery_temperature_c": st.none() | st.floats(-10, 45),
            "compute_temperature_c": st.none() | st.floats(-10, 95),
            "is_charging": st.none() | st.booleans(),
            "charging_mw": st.none() | st.integers(0, 20_000_000),
            "is_plugged_in": st.none() | st.booleans(),
            "is_sentry_on": st.none() | st.booleans(),
        }
    ),
)
moments = st.integers(MONDAY_MS, MONDAY_MS + MS_PER_DAY)


def policy_of(terms: OwnerTerms, least_micro_per_hour: int = 0, **fields: Any) -> OwnerPolicy:
    """A policy with these terms."""
    work = WorkPolicy(reward_micro_per_hour_min=least_micro_per_hour)
    giving = YieldPolicy(stale_ms=STALE_MS, settle_ms=1_000, release_ms=500)
    return OwnerPolicy(terms=terms, work=work, giving_back=giving, **fields)


def accounts_of(policy: OwnerPolicy, read: Readings, at_ms: int) -> CarAccounts:
    """The accounts of a car that stands like this at a moment."""
    accounts = CarAccounts(CarBook())
    accounts.forget_process(at_ms)
    accounts.change_policy(policy, at_ms)
    accounts.read(read, at_ms)
    return accounts


# The asking price.


@settings(max_examples=60)
@given(
    terms=terms,
    read=readings,
    at_ms=moments,
    duration_ms=st.integers(1, STALE_MS),
    mwh=st.integers(0, 10**6),
    least=st.sampled_from([0, 10**6]),
)
def test_what_is_asked_is_never_less_than_the_asking_price(
    terms: OwnerTerms, read: Readings, at_ms: int, duration_ms: int, mwh: int, least: int
) -> None:
    accounts = accounts_of(policy_of(terms, least), read, at_ms)
    mark = accounts.each
    accounts.advance(at_ms + duration_ms, 1)
    asked = accounts.paid(accounts.each.since(mark), mwh, 1)
    exact = asking_price(terms, conditions_of(read, at_ms), Usage(duration_ms, mwh))
    # Each of the parts is rounded up in the price, and only their sum in what is asked.
    assert asked >= exact.total_micro - 8 * (1 + terms.margin_percent / 100)
    assert asked >= least * duration_ms // MS_PER_HOUR
    assert accounts.spending.asked_micro == asked


@settings(max_examples=60)
@given(read=readings, duration_ms=st.integers(MS_PER_MINUTE, MS_PER_HOUR), mw=st.integers(0, 10**6))
@pytest.mark.parametrize("chemistry", sorted(CHEMISTRIES))
def test_what_is_asked_is_the_asking_price_where_nothing_is_uncertain(
    chemistry: str, read: Readings, duration_ms: int, mw: int
) -> None:
    terms = OwnerTerms(pack=PackTerms(chemistry=chemistry))
    accounts = accounts_of(policy_of(terms), read, MONDAY_MS)
    mark = accounts.each
    accounts.advance(MONDAY_MS + duration_ms, 1)
    mwh = mw * duration_ms // MS_PER_HOUR
    asked = accounts.paid(accounts.each.since(mark), mwh, 1)
    exact = asking_price(terms, conditions_of(read, MONDAY_MS), Usage(duration_ms, mwh))
    assert asked <= exact.total_micro * 1.001 + 20


def test_the_last_minutes_of_a_dear_hour_are_dear() -> None:
    """A mean over the next hour would ask too little of them."""
    charging = msgspec.structs.replace(WELL, is_charging=True, charging_mw=11_000_000)
    dear = policy_of(OwnerTerms(tariff=TARIFFS[1]))
    at_ms = MONDAY_MS + 20 * MS_PER_HOUR - MS_PER_MINUTE
    before, after = (accounts_of(dear, charging, one) for one in (at_ms, at_ms + MS_PER_MINUTE))
    assert before.rate is not None
    assert after.rate is not None
    assert before.rate.micro_per_kwh > 10 * after.rate.micro_per_kwh


@settings(max_examples=60)
@given(
    terms=terms,
    pieces=st.lists(st.tuples(readings, st.integers(1, STALE_MS)), min_size=1, max_size=6),
    at_ms=moments,
    mwh=st.integers(0, 10**5),
)
def test_an_attempt_asks_for_all_conditions_that_it_saw(
    terms: OwnerTerms, pieces: list[tuple[Readings, int]], at_ms: int, mwh: int
) -> None:
    accounts = accounts_of(policy_of(terms), WELL, at_ms)
    mark, total_ms = accounts.each, sum(ms for _, ms in pieces)
    spent = 0
    for read, ms in pieces:
        accounts.read(read, at_ms)
        usage = Usage(ms, mwh * ms // total_ms)
        spent += asking_price(terms, conditions_of(read, at_ms), usage).spent_micro - 5
        at_ms += ms
        accounts.advance(at_ms, 1)
    asked = accounts.made_good(accounts.each.since(mark), mwh)
    assert asked >= spent


@given(moves=st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 3)), min_size=1, max_size=30))
def test_shares_add_up_to_the_time_of_work(moves: list[tuple[int, int]]) -> None:
    """Four leases begin and end as they like; whoever runs shares the time with who else does."""
    accounts = accounts_of(policy_of(OwnerTerms()), WELL, 0)
    now_ms = work_ms = 0
    marks: dict[int, Share] = {}
    shares = micro = 0.0
    for ms, number in [*moves, *((0, one) for one in range(4))]:
        now_ms += ms
        accounts.advance(now_ms, len(marks))
        work_ms += ms if marks else 0
        if number in marks:
            share = accounts.each.since(marks.pop(number))
            shares, micro = shares + share.ms, micro + share.micro
        elif ms:
            marks[number] = accounts.each
    for mark in marks.values():
        share = accounts.each.since(mark)
        shares, micro = shares + share.ms, micro + share.micro
    rate = accounts.rate
    assert rate is not None
    assert shares == pytest.approx(work_ms)
    assert micro == pytest.approx(work_ms * rate.micro_per_hour / MS_PER_HOUR)


def test_a_lease_is_asked_for_its_share_of_the_car() -> None:
    world = CarWorld(slots=2)
    world.work()
    world.tick(1_000)
    world.read()
    world.grant()
    world.tick(1_000)
    world.finish(at=0)
    world.finish(at=0)
    first, second = (receipt.asked_micro for receipt in world.guard.receipts())
    assert first == pytest.approx(3 * second, abs=6), "1.5 and 0.5 of 2 s"


@settings(max_examples=80)
@given(
    steps=st.lists(
        st.sampled_from(["tick", "tick", "grant", "grant", "finish", "break", "revoke", "driver",
                         "fence", "silent", "flash", "stop"]),
        max_size=60,
    ),
    slots=st.integers(1, 3),
)  # fmt: skip
def test_an_owner_never_loses_whatever_happens_to_the_work(steps: list[str], slots: int) -> None:
    world = CarWorld(slots, policy_of(OwnerTerms(margin_percent=0)), WELL)
    flash = 0
    for name in steps:
        match name:
            case "tick":
                world.tick(700)
                world.heartbeat()
                world.read()
            case "grant":
                world.get_to_work(2)
            case "finish":
                world.finish()
            case "break":
                world.break_attempt()
            case "revoke":
                for lease_id in world.guard.lease_ids[:1]:
                    overdue = LeaseEnding.OVERDUE
                    world.happen(ev.LeaseRevoked(world.now_ms, lease_id, overdue))
            case "driver":
                world.read(is_driver_present=True)
                if world.is_killed:
                    world.exit()
            case "fence":
                world.happen(ev.LinkFenced(world.now_ms, world.guard.epoch))
            case "silent":
                world.tick(LEASE_MS - MARGIN_MS)
            case "flash":
                flash += 10**8
                world.happen(ev.Consumed(world.now_ms, 10**8, 0))
            case "stop":
                world.end_stopped(0, 4)
    world.read(is_parked=False)
    asked = sum(one.asked_micro for one in world.guard.receipts())
    spending = world.guard.spending
    usage = Usage(spending.work_ms, spending.computer_mwh, flash)
    spent = asking_price(world.policy.terms, conditions_of(WELL, world.now_ms), usage).spent_micro
    assert asked + owed_of(world.guard) >= spent - 4
    assert spending.asked_micro == asked


def owed_of(guard: Guard) -> float:
    """What the next receipts will ask for."""
    image = msgspec.msgpack.decode(guard.snapshot())
    return msgspec.convert(image["book"], CarBook).owed_micro


# What is owed.


def test_what_the_fleet_took_back_is_asked_for_later() -> None:
    world = CarWorld()
    lease_id = world.work()
    world.tick(4_000)
    overdue = LeaseEnding.OVERDUE
    world.happen(ev.LeaseRevoked(world.now_ms, lease_id, overdue))
    owed = owed_of(world.guard)
    assert owed > 0
    world.read()
    world.grant()
    world.tick(1_000)
    world.finish()
    (receipt,) = world.said(fx.SendReceipt)
    assert receipt.asked_micro >= owed
    assert owed_of(world.guard) == 0


def test_no_more_is_asked_than_the_fleet_meets() -> None:
    accounts = accounts_of(policy_of(OwnerTerms()), WELL, 0)
    assert accounts.rate is not None
    accounts.limit_micro_per_hour = 2 * math.ceil(accounts.rate.micro_per_hour)
    hour = Share(MS_PER_HOUR, accounts.rate.micro_per_hour, 0.0)
    for _ in range(3):
        accounts.owe(hour, 0)
    asked = [accounts.paid(hour, 0, 1) for _ in range(6)]
    assert max(asked) <= accounts.limit_micro_per_hour
    assert (
        sum(asked) >= 3 * accounts.rate.micro_per_hour + 6 * 1.2 * accounts.rate.micro_per_hour - 1
    )
    assert asked[-1] < asked[0]


def test_a_lease_that_ended_by_silence_is_asked_for_when_the_link_is_back() -> None:
    world = CarWorld(policy=policy_of(OwnerTerms()))
    world.work()
    world.tick(LEASE_MS - MARGIN_MS)
    (receipt,) = world.said(fx.SendReceipt)
    assert (receipt.ending, receipt.asked_micro) == (LeaseEnding.LINK_SILENT, 0)
    assert owed_of(world.guard) > 0


def test_flash_is_asked_for_with_the_next_result() -> None:
    world = CarWorld()
    world.work()
    world.tick(2_000)
    world.happen(ev.Consumed(world.now_ms, 10**9, 0))
    world.finish()
    (receipt,) = world.said(fx.SendReceipt)
    terms = world.policy.terms
    assert receipt.asked_micro >= flash_price(terms.computer, 10**9) * 1.2
    for _ in range(1_000):
        world.happen(ev.Consumed(world.now_ms, 1, 0))
    assert owed_of(world.guard) < 1, "a byte is not a micro-unit"


def test_a_lease_given_back_asks_for_what_it_took_without_a_margin() -> None:
    world = CarWorld(policy=policy_of(OwnerTerms(margin_percent=100)))
    world.work()
    world.tick(3_000)
    world.read(is_driver_present=True)
    (receipt,) = world.said(fx.SendReceipt)
    usage = Usage(3_000, 100)
    price = asking_price(world.policy.terms, conditions_of(world.well, world.now_ms), usage)
    assert price.spent_micro - 5 <= receipt.asked_micro <= price.spent_micro * 1.01 + 5


# Caps.


@pytest.mark.parametrize(
    ("caps", "refusal"),
    [
        ({"wear": WearCaps(flash_bytes=1_000)}, Refusal.WEAR_BUDGET),
        ({"link": LinkPolicy(day_bytes_max=500)}, Refusal.DATA_CAP),
    ],
)
def test_a_cap_refuses_at_once_until_the_next_local_day(
    caps: dict[str, Any], refusal: Refusal
) -> None:
    offset_ms = -5 * MS_PER_HOUR
    well = msgspec.structs.replace(WELL, utc_offset_ms=offset_ms)
    world = CarWorld(policy=policy_of(OwnerTerms(), **caps), well=well)
    world.now_ms = MONDAY_MS
    world.start()
    world.work()
    world.happen(ev.Consumed(world.now_ms, 999, 499))
    assert state_of(world) is GuardState.PERMITTING
    world.happen(ev.Consumed(world.now_ms, 1, 1))
    assert state_of(world) is GuardState.YIELDING
    world.exit()
    world.read()
    assert world.guard.refusals == (refusal,)
    midnight_ms = MONDAY_MS + 5 * MS_PER_HOUR
    world.restart()
    world.happen(ev.Consumed(world.now_ms, 0, 1))
    world.tick(midnight_ms - world.now_ms - 1_000)
    world.read()
    assert world.guard.refusals == (refusal,), "a restart gives no second day"
    world.tick(999)
    assert refusal in world.guard.refusals
    world.tick(1)
    assert state_of(world) is GuardState.SETTLING


def test_work_wears_the_pack_and_the_electronics_to_their_caps() -> None:
    caps = WearCaps(pack_mwh=10**9, electronics_ms=1_500)
    allows_heat = TemperaturePolicy(compute_c_max=None)
    policy = policy_of(OwnerTerms(), wear=caps, temperature=allows_heat)
    # The junction is at the reference temperature of its wear: an hour counts an hour.
    board_c = JUNCTION_UNKNOWN_C - JUNCTION_ABOVE_C
    hot = msgspec.structs.replace(WELL, compute_temperature_c=board_c)
    world = CarWorld(policy=policy, well=hot)
    world.work()
    assert world.has_processor
    for _ in range(40):
        world.tick(500)
        world.heartbeat()
        world.read()
        if not world.has_processor:
            break
    assert Refusal.WEAR_BUDGET in world.guard.refusals
    worn = world.guard.usage.wear.worn
    assert caps.electronics_ms <= worn.electronics_ms <= caps.electronics_ms + 600
    assert worn.pack_mwh > 0
    assert worn.pack_micro > 0


def test_a_charging_car_takes_nothing_from_its_pack() -> None:
    charging = msgspec.structs.replace(WELL, is_charging=True, charging_mw=7_000_000)
    world = CarWorld(policy=policy_of(OwnerTerms()), well=charging)
    world.work()
    world.tick(5_000)
    world.finish()
    world.read()
    worn = world.guard.usage.wear.worn
    assert worn.pack_mwh == 0
    assert worn.electronics_ms > 0


# What is asked too much.


def test_a_car_that_asks_too_much_refuses_and_begins_again_at_a_lower_level() -> None:
    world = CarWorld()
    world.work()
    accounts = accounts_of(world.policy, world.well, world.now_ms)
    price = accounts.asking_per_hour(COMPUTER_MW)
    assert price is not None
    tell_limit(world, price)
    assert state_of(world) is GuardState.PERMITTING, "it asks for no more than that"
    tell_limit(world, price - 1)
    assert state_of(world) is GuardState.YIELDING
    world.exit()
    tell_limit(world, price)
    assert world.guard.refusals == (Refusal.REWARD_TOO_LOW,), "it does not flap"
    tell_limit(world, math.ceil(price / 0.95))
    assert state_of(world) is GuardState.SETTLING


def test_what_the_owner_wants_for_an_hour_is_asked_too() -> None:
    wants = policy_of(OwnerTerms(), least_micro_per_hour=3_000_000)
    world = CarWorld(policy=wants)
    world.work()
    tell_limit(world, 2_999_999)
    assert Refusal.REWARD_TOO_LOW in world.guard.refusals
    world.exit()
    world.change_policy(policy_of(OwnerTerms(), least_micro_per_hour=0))
    assert Refusal.REWARD_TOO_LOW not in world.guard.refusals


def test_nobody_asks_before_the_fleet_has_spoken() -> None:
    world = CarWorld(policy=policy_of(OwnerTerms(), least_micro_per_hour=10**9))
    world.permit()
    assert state_of(world) is GuardState.PERMITTING
    world.welcome()
    assert Refusal.REWARD_TOO_LOW in world.guard.refusals


def tell_limit(world: CarWorld, limit_micro: int) -> None:
    """The fleet says up to what it meets what is asked."""
    world.asking_limit = limit_micro
    world.welcome(world.guard.epoch + 1)


# What the sensors don't say.


def test_what_is_missing_is_taken_for_the_worse() -> None:
    unknown = conditions_of(Readings(0), 0)
    assert unknown == Conditions(
        0,
        SOC_UNKNOWN_PERCENT,
        PACK_UNKNOWN_C,
        JUNCTION_UNKNOWN_C,
        charging_mw=CHARGING_UNKNOWN_MW,
    )
    assert unknown.is_through_pack
    assert unknown.keeps_awake


@pytest.mark.parametrize("nonsense", [math.nan, -math.inf, -1e9])
@pytest.mark.parametrize("name", ["soc_percent", "battery_temperature_c", "compute_temperature_c"])
def test_what_is_no_number_is_as_good_as_missing(name: str, nonsense: float) -> None:
    said = conditions_of(msgspec.structs.replace(WELL, **{name: nonsense}), 0)
    assert said == conditions_of(msgspec.structs.replace(WELL, **{name: None}), 0)


def test_a_sensor_that_says_far_too_much_counts_as_the_most_there_is() -> None:
    hot = conditions_of(msgspec.structs.replace(WELL, compute_temperature_c=math.inf), 0)
    assert hot.junction_c == TEMPERATURE_C_MAX + JUNCTION_ABOVE_C
    full = conditions_of(msgspec.structs.replace(WELL, soc_percent=1e9), 0)
    assert full.soc_percent == SOC_UNKNOWN_PERCENT


def test_a_charger_that_gives_nothing_loses_most() -> None:
    def asked(charging_mw: int | None) -> int:
        charging = msgspec.structs.replace(WELL, is_charging=True, charging_mw=charging_mw)
        accounts = accounts_of(policy_of(OwnerTerms()), charging, 0)
        return accounts.asking_per_hour(100_000) or 0

    assert asked(0) > asked(None) > asked(11_000_000)


def test_a_car_without_readings_asks_nothing_and_refuses() -> None:
    accounts = CarAccounts(CarBook())
    assert accounts.asking_per_hour(100_000) is None
    assert accounts.paid(Share(), 5, 1) == 0
    world = CarWorld()
    world.happen(ev.Consumed(world.now_ms, 5, 5))
    assert world.guard.usage.wear.worn.flash_bytes == 5
