"""Accounts of a day's wear, their caps at two levels, and time weighted by temperature."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.electronics_wear import acceleration, weighted_ms
from terafleet.core.local_time import MS_PER_DAY, local_day
from terafleet.core.units import MS_PER_HOUR
from terafleet.core.wear import Wear, WearAccounts, WearCaps, WearKind, add, caps_faults, over

CAPS = WearCaps(pack_mwh=1_000, electronics_ms=2_000, flash_bytes=3_000, resume_percent=90)
TODAY = 20_000
EMPTY = WearAccounts()
amounts = st.integers(0, 10**13)
wears = st.builds(Wear, amounts, amounts, amounts, amounts)


def why(accounts: WearAccounts, caps: WearCaps = CAPS, day: int = TODAY) -> tuple[WearKind, ...]:
    """What refuses while the car permits."""
    return over(accounts, caps, day, is_permitting=True)


def why_not_again(
    accounts: WearAccounts, caps: WearCaps = CAPS, day: int = TODAY
) -> tuple[WearKind, ...]:
    """What refuses while the car does not permit."""
    return over(accounts, caps, day, is_permitting=False)


@pytest.mark.parametrize(
    ("from_c", "to_c", "factor", "rounding"),
    [(45, 75, 9.0, 0.05), (45, 85, 17.3, 0.05), (60, 90, 7.5, 0.05)],
)
def test_the_factors_of_arrhenius(
    from_c: float, to_c: float, factor: float, rounding: float
) -> None:
    """Reference figures for 0.7 eV, within their rounding."""
    assert abs(acceleration(to_c, reference_c=from_c) - factor) <= rounding


def test_ten_hours_a_day_at_60_c_are_487_hours_a_year() -> None:
    """The reference counts with a factor of 0.13, two digits: 475 to 493."""
    hours = 365 * weighted_ms(10 * MS_PER_HOUR, 60.0) / MS_PER_HOUR
    assert 475 <= hours <= 493
    assert round(acceleration(60.0), 2) == 0.13


def test_time_at_the_reference_counts_in_full() -> None:
    assert weighted_ms(MS_PER_HOUR, 90.0) == MS_PER_HOUR
    assert weighted_ms(0, 90.0) == 0
    assert weighted_ms(1, -40.0) == 1, "rounded up"


@given(
    duration_ms=st.integers(0, 10**9),
    temperature_c=st.floats(-40, 125),
    warmer_c=st.floats(0, 50),
    parts=st.integers(1, 100),
)
def test_warmth_and_pieces_never_count_less(
    duration_ms: int, temperature_c: float, warmer_c: float, parts: int
) -> None:
    whole = weighted_ms(duration_ms, temperature_c)
    assert weighted_ms(duration_ms, temperature_c + warmer_c) >= whole
    pieces = parts * weighted_ms(duration_ms // parts, temperature_c)
    assert pieces + weighted_ms(duration_ms % parts, temperature_c) >= whole


@pytest.mark.parametrize("temperature_c", [math.nan, -274.0, -math.inf])
def test_what_is_no_temperature_is_a_bug(temperature_c: float) -> None:
    with pytest.raises(AssertionError):
        weighted_ms(1, temperature_c)


def test_a_day_begins_at_local_midnight() -> None:
    midnight_ms = TODAY * MS_PER_DAY
    assert local_day(midnight_ms - 1) == TODAY - 1
    assert local_day(midnight_ms) == local_day(midnight_ms + MS_PER_DAY - 1) == TODAY


def test_each_account_refuses_at_its_cap_by_its_own_name() -> None:
    for worn, kind in (
        (Wear(pack_mwh=1_000), WearKind.PACK_ENERGY),
        (Wear(electronics_ms=2_000), WearKind.ELECTRONICS),
        (Wear(flash_bytes=3_000), WearKind.FLASH),
    ):
        assert why(add(EMPTY, worn, TODAY)) == (kind,)
    just_under = add(EMPTY, Wear(999, 10**12, 1_999, 2_999), TODAY)
    assert why(just_under) == (), "the price has no cap"
    assert why(add(just_under, Wear(1, 0, 1, 1), TODAY)) == tuple(WearKind)


def test_it_permits_again_below_the_second_level_only() -> None:
    assert why_not_again(add(EMPTY, Wear(flash_bytes=2_699), TODAY)) == ()
    between = add(EMPTY, Wear(flash_bytes=2_700), TODAY)
    assert why(between) == ()
    assert why_not_again(between) == (WearKind.FLASH,)


def test_it_permits_again_on_the_next_day() -> None:
    full = add(EMPTY, Wear(flash_bytes=9_000), TODAY)
    assert why_not_again(full, day=TODAY) == (WearKind.FLASH,)
    assert why_not_again(full, day=TODAY + 1) == ()
    assert add(full, Wear(pack_mwh=1), TODAY + 1) == WearAccounts(TODAY + 1, Wear(pack_mwh=1))


def test_it_permits_again_when_the_cap_is_raised_enough() -> None:
    full = add(EMPTY, Wear(flash_bytes=3_000), TODAY)
    assert why_not_again(full, raised(3_333)) == (WearKind.FLASH,), "2,999.7 is the level"
    assert why_not_again(full, raised(3_334)) == ()


def raised(flash_bytes: int) -> WearCaps:
    return msgspec.structs.replace(CAPS, flash_bytes=flash_bytes)


def test_a_clock_that_is_set_back_gives_no_second_day() -> None:
    full = add(EMPTY, Wear(flash_bytes=3_000), TODAY)
    assert why(full, day=TODAY - 1) == (WearKind.FLASH,)
    more = add(full, Wear(flash_bytes=1), TODAY - 1)
    assert more == WearAccounts(TODAY, Wear(flash_bytes=3_001))


def test_a_cap_of_nothing_allows_nothing() -> None:
    nothing = WearCaps(0, 0, 0)
    assert why(EMPTY, nothing) == why_not_again(EMPTY, nothing) == tuple(WearKind)


@given(parts=st.lists(wears, max_size=10))
def test_nothing_is_lost_between_the_accounts(parts: list[Wear]) -> None:
    accounts = EMPTY
    for part in parts:
        accounts = add(accounts, part, TODAY)
    for name in Wear.__struct_fields__:
        assert getattr(accounts.worn, name) == sum(getattr(part, name) for part in parts)


@given(worn=wears, more=wears, day=st.integers(TODAY - 1, TODAY + 1))
def test_who_may_begin_may_go_on_and_more_never_permits(worn: Wear, more: Wear, day: int) -> None:
    accounts = add(EMPTY, worn, TODAY)
    assert set(why(accounts, day=day)) <= set(why_not_again(accounts, day=day))
    fuller = add(accounts, more, day)
    assert set(why(accounts, day=day)) <= set(why(fuller, day=day))


def test_wear_is_not_mended() -> None:
    with pytest.raises(AssertionError):
        add(EMPTY, Wear(flash_bytes=-1), TODAY)


@given(worn=wears)
def test_accounts_come_back_from_a_snapshot(worn: Wear) -> None:
    accounts = add(EMPTY, worn, TODAY)
    snapshot = msgspec.msgpack.encode(accounts)
    assert msgspec.msgpack.decode(snapshot, type=WearAccounts) == accounts


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pack_mwh": -1}, "pack_mwh"),
        ({"electronics_ms": -1}, "electronics_ms"),
        ({"flash_bytes": -1}, "flash_bytes"),
        ({"resume_percent": 0}, "resume_percent"),
        ({"resume_percent": 101}, "resume_percent"),
    ],
)
def test_caps_that_make_no_sense_are_told_in_words(changed: dict[str, Any], words: str) -> None:
    (fault,) = caps_faults(msgspec.structs.replace(CAPS, **changed))
    assert words in fault


def test_the_caps_of_a_careful_owner_have_no_fault() -> None:
    assert caps_faults(WearCaps()) == caps_faults(WearCaps(0, 0, 0, 100)) == []


def test_the_defaults_are_the_budgets_of_the_page() -> None:
    assert WearCaps().flash_bytes == 5_000_000_000
    assert 499 < WearCaps().electronics_ms * 365 / MS_PER_HOUR <= 500
