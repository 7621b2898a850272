"""When time alone changes the answer: each kind of change, to the millisecond."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.charge_first import NextDeparture, next_departure
from terafleet.core.day_use import NOTHING_USED, with_link_bytes
from terafleet.core.hours import Departure, Window
from terafleet.core.local_time import MS_PER_DAY, local_day
from terafleet.core.policy import ChargePolicy, HoursPolicy, LinkPolicy, OwnerPolicy, YieldPolicy
from terafleet.core.policy_turns import next_change_ms, next_turn_ms
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import refusals
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE
from tests.core.policy_world import MONDAY_MS, WELL, at

PATIENT = YieldPolicy(stale_ms=10**12)


def turns(policy: OwnerPolicy, until_ms: int, **changes: Any) -> list[int]:
    """Every turn from the beginning of the week until a time."""
    sample = msgspec.structs.replace(WELL, **changes)
    found = [next_turn_ms(policy, sample, MONDAY_MS)]
    while found[-1] <= until_ms:
        found.append(next_turn_ms(policy, sample, found[-1]))
    return found[:-1]


def test_without_hours_only_midnight_and_age_are_changes() -> None:
    assert turns(OwnerPolicy(), at(2, 0)) == [at(1, 0), at(2, 0)]
    assert turns(OwnerPolicy(), at(1, 0), utc_offset_ms=MS_PER_HOUR) == [at(0, 23)]
    assert next_change_ms(OwnerPolicy(), WELL, MONDAY_MS) == MONDAY_MS + 30_001
    assert next_change_ms(OwnerPolicy(), WELL, MONDAY_MS + 30_001) is None
    assert next_change_ms(OwnerPolicy(), None, MONDAY_MS) is None


def test_a_cap_of_the_day_ends_at_the_turn() -> None:
    policy = OwnerPolicy(link=LinkPolicy(day_bytes_max=1), giving_back=PATIENT)
    sample = msgspec.structs.replace(WELL, utc_offset_ms=5 * MS_PER_HOUR)
    usage = with_link_bytes(NOTHING_USED, 1, local_day(MONDAY_MS + sample.utc_offset_ms))
    midnight_ms = next_turn_ms(policy, sample, MONDAY_MS)
    assert refusals(policy, sample, usage, True, midnight_ms - 1) == (Refusal.DATA_CAP,)
    assert refusals(policy, sample, usage, True, midnight_ms) == ()


def test_windows_turn_at_their_edges() -> None:
    for name in ("compute", "network", "quiet"):
        named: dict[str, Any] = {name: (Window(("mon",), "06:00", "08:00"),)}
        policy = OwnerPolicy(hours=HoursPolicy(**named))
        assert turns(policy, at(1, 0)) == [at(0, 6), at(0, 8), at(1, 0)]
        assert turns(policy, at(0, 7), utc_offset_ms=MS_PER_HOUR) == [at(0, 5), at(0, 7)]


def test_departures_turn_before_and_after() -> None:
    charge = ChargePolicy(
        departures=(Departure(days=("mon",), at="07:00"),),
        departure_lead_ms=MS_PER_HOUR,
        departure_late_ms=2 * MS_PER_HOUR,
    )
    assert turns(OwnerPolicy(charge=charge), at(0, 12)) == [at(0, 6), at(0, 9)]
    both = turns(OwnerPolicy(charge=charge), at(0, 23), departure_at_ms=at(0, 20))
    assert both == [at(0, 6), at(0, 9), at(0, 19), at(0, 22)]
    policy = OwnerPolicy(charge=charge, giving_back=PATIENT)
    for hour, found in ((6, (Refusal.DEPARTURE_SOON,)), (9, ())):
        assert refusals(policy, WELL, NOTHING_USED, True, at(0, hour)) == found
        assert refusals(policy, WELL, NOTHING_USED, True, at(0, hour) - 1) != found


def test_a_pause_turns_at_its_end_with_readings_or_without() -> None:
    policy = OwnerPolicy(is_paused=True, resume_at="1970-01-05T06:00Z")
    assert turns(policy, at(0, 12)) == [at(0, 6)]
    assert next_change_ms(policy, None, MONDAY_MS) == at(0, 6)
    assert next_change_ms(policy, None, at(0, 6)) is None
    assert next_change_ms(policy, WELL, at(0, 5)) == at(0, 6), "the readings are old"
    local = OwnerPolicy(is_paused=True, resume_at="1970-01-05T06:00")
    assert turns(local, at(0, 12), utc_offset_ms=-MS_PER_HOUR) == [at(0, 1), at(0, 7)]
    assert next_change_ms(local, None, MONDAY_MS) is None
    assert turns(OwnerPolicy(resume_at="1970-01-05T06:00"), at(0, 12)) == []


def test_the_fuller_of_two_departures_at_once_counts() -> None:
    twice = (Departure(at="07:00", soc_percent=60.0), Departure(at="07:00", soc_percent=90.0))
    for departures in (twice, twice[::-1]):
        charge = ChargePolicy(departures=departures)
        assert next_departure(charge, WELL, MONDAY_MS) == NextDeparture(at(0, 7), 90.0)


def test_a_departure_that_has_come_is_none_any_more() -> None:
    sample = msgspec.structs.replace(WELL, departure_at_ms=at(0, 7))
    assert next_departure(ChargePolicy(), sample, at(0, 7) - 1) == NextDeparture(at(0, 7), 80.0)
    assert next_departure(ChargePolicy(), sample, at(0, 7)) is None
    charge = ChargePolicy(departures=(Departure(days=("mon",), at="07:00"),))
    assert next_departure(charge, WELL, at(0, 7)) == NextDeparture(at(7, 7), 80.0)


@given(
    soc_percent=st.integers(0, 100),
    charging_mw=st.integers(1_000_000, 11_000_000),
    capacity_mwh=st.none() | st.integers(20_000_000, 100_000_000),
    spares=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=2),
    now_ms=st.integers(MONDAY_MS, MONDAY_MS + MS_PER_DAY),
)
def test_charge_first_turns_when_time_gets_short(
    soc_percent: int,
    charging_mw: int,
    capacity_mwh: int | None,
    spares: tuple[int, int],
    hours: set[int],
    now_ms: int,
) -> None:
    """Going from change to change over a day, nothing happens in between, to the millisecond."""
    low, high = sorted(spares)
    charge = ChargePolicy(
        soc_percent_min=None,
        is_charge_first=True,
        capacity_mwh=capacity_mwh,
        spare_ms_min=low * 10 * MS_PER_MINUTE,
        spare_ms_resume=high * 10 * MS_PER_MINUTE,
        departures=tuple(Departure(at=f"{hour}:00", soc_percent=90.0) for hour in sorted(hours)),
        departure_lead_ms=2 * MS_PER_MINUTE,
        departure_late_ms=MS_PER_MINUTE,
    )
    policy = OwnerPolicy(charge=charge, giving_back=PATIENT)
    sample = msgspec.structs.replace(
        WELL, soc_percent=float(soc_percent), is_charging=True, charging_mw=charging_mw
    )

    def answers(at_ms: int) -> tuple[object, ...]:
        return tuple(
            refusals(policy, sample, NOTHING_USED, is_on, at_ms) for is_on in (True, False)
        )

    end_ms = now_ms + MS_PER_DAY
    while now_ms < end_ms:
        change_ms = next_turn_ms(policy, sample, now_ms)
        step_ms = max(1, (change_ms - now_ms) // 20)
        moments = [*range(now_ms, change_ms, step_ms), change_ms - 1]
        assert len({answers(one_ms) for one_ms in moments}) == 1
        now_ms = change_ms
