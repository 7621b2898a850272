"""What work must pay: the parts, what is rounded, and that no owner loses by what is granted."""

import math
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.asking_price import (
    AskingPrice,
    Conditions,
    OwnerTerms,
    Usage,
    asking_price,
    asking_price_per_hour,
    energy_of,
    is_enough,
    terms_faults,
    wear_of,
)
from terafleet.core.battery_ageing import CHEMISTRIES, PackLife, PackUse, added_loss
from terafleet.core.electronics_wear import acceleration
from terafleet.core.local_time import MS_PER_DAY, MS_PER_WEEK
from terafleet.core.tariff import Tariff, TariffWindow, price_at
from terafleet.core.units import MICRO, MS_PER_HOUR, MS_PER_MINUTE, MWH_PER_KWH
from terafleet.core.wall_energy import (
    Losses,
    WallEnergy,
    before_loss_mwh,
    charging_loss_ppm,
    wall_energy,
)
from terafleet.core.wear_price import (
    UNKNOWN_CHEMISTRY_FACTOR,
    ComputerTerms,
    PackTerms,
    computer_faults,
    electronics_price,
    flash_price,
    pack_faults,
    pack_price,
)

MONDAY_MS = 4 * MS_PER_DAY
TARIFF = Tariff(
    micro_per_kwh=92_000,
    windows=(
        TariffWindow(56_200, begin_minute=22 * 60, end_minute=6 * 60),
        TariffWindow(266_700, begin_minute=12 * 60, end_minute=18 * 60, weekdays=(0, 1, 2, 3, 4)),
    ),
)
TERMS = OwnerTerms(
    tariff=TARIFF, margin_percent=0, overhead_mw=200_000, converter_loss_ppm=0, charging_loss_ppm=0
)
CONDITIONS = Conditions(
    local_ms=MONDAY_MS,
    soc_percent=80.0,
    pack_temperature_c=15.0,
    junction_c=60.0,
    is_through_pack=False,
    keeps_awake=False,
)
HOUR = Usage(MS_PER_HOUR, 100_000)


def terms(**changed: Any) -> OwnerTerms:
    return msgspec.structs.replace(TERMS, **changed)


def asked(usage: Usage = HOUR, owner_terms: OwnerTerms = TERMS, **changed: Any) -> AskingPrice:
    """The price of an hour at 100 W in the night, from the wall, of a car that is awake anyway."""
    return asking_price(owner_terms, msgspec.structs.replace(CONDITIONS, **changed), usage)


def test_energy_from_the_wall_has_the_price_of_its_hours() -> None:
    assert asked().energy_micro == 5_620
    assert asked(local_ms=MONDAY_MS + 11 * MS_PER_HOUR).energy_micro == 9_200
    half_past_ms = MONDAY_MS + 11 * MS_PER_HOUR + 30 * MS_PER_MINUTE
    assert asked(local_ms=half_past_ms).energy_micro == (9_200 + 26_670) // 2


def test_energy_of_the_pack_has_the_dearest_price_until_it_is_back() -> None:
    night_ms = MONDAY_MS + 2 * MS_PER_HOUR
    for within_ms, price in (
        (0, 5_620),
        (3 * MS_PER_HOUR, 9_200),
        (9 * MS_PER_HOUR, 26_670),
        (MS_PER_WEEK, 26_670),
    ):
        found = asked(local_ms=night_ms, is_through_pack=True, recharged_within_ms=within_ms)
        assert found.energy_micro == price


def test_being_awake_is_asked_for_only_where_the_work_keeps_the_car_awake() -> None:
    assert asked(keeps_awake=True).energy_micro == 3 * 5_620
    awake_anyway = energy_of(TERMS, CONDITIONS, HOUR)
    assert awake_anyway == WallEnergy(pack_mwh=100_000, wall_mwh=100_000, anyway_mwh=200_000)
    kept = msgspec.structs.replace(CONDITIONS, keeps_awake=True)
    assert energy_of(TERMS, kept, HOUR) == WallEnergy(300_000, 300_000, 0)


def test_losses_are_asked_for() -> None:
    """The factor of the wall is 1/0.886 at 3.5 kW; the converter is only before the computer."""
    lossy = Losses(converter_ppm=100_000, charging_ppm=114_000)
    energy = wall_energy(90_000, 200_000, lossy, keeps_awake=True)
    assert energy.pack_mwh == 300_000
    assert energy.wall_mwh == math.ceil(300_000 / 0.886)
    assert wall_energy(90_000, 200_000, lossy, keeps_awake=False).anyway_mwh == 225_734
    assert before_loss_mwh(1, 1) == 2
    assert before_loss_mwh(0, 999_999) == 0


@pytest.mark.parametrize(
    ("charging_w", "loss_percent"),
    [
        (0, 40.0),
        (499, 40.0),
        (500, 24.2),
        (2_299, 24.2),
        (2_300, 15.2),
        (3_500, 11.4),
        (10_999, 11.4),
        (11_000, 7.7),
        (22_000, 7.7),
    ],
)
def test_charging_losses_are_those_measured_at_the_next_lower_power(
    charging_w: int, loss_percent: float
) -> None:
    assert charging_loss_ppm(charging_w * 1_000) == round(loss_percent * 10_000)


def test_the_owner_knows_the_loss_better() -> None:
    own = terms(charging_loss_ppm=500_000)
    assert asked(owner_terms=own).energy_micro == 2 * 5_620
    by_power = terms(charging_loss_ppm=None)
    assert asked(owner_terms=by_power).energy_micro == math.ceil(5_620 / 0.886)
    trickling = asked(owner_terms=by_power, charging_mw=100_000)
    assert trickling.energy_micro == math.ceil(5_620 / 0.6)


def test_only_energy_through_the_pack_cycles_it() -> None:
    assert asked(warming_c=0.0).pack_micro == 0
    assert asked(warming_c=3.0).pack_micro > 0
    through = asked(warming_c=0.0, is_through_pack=True)
    assert through.pack_micro > 0
    conditions = msgspec.structs.replace(CONDITIONS, is_through_pack=True)
    assert wear_of(TERMS, conditions, HOUR).pack_mwh == 100_000
    assert wear_of(TERMS, CONDITIONS, HOUR).pack_mwh == 0


def test_a_kwh_through_the_pack_asks_for_some_hundredths() -> None:
    """The reference has 0.009 a kWh for 0.3 points in 8 years, 0.064 for the worst, 8 °C warmer."""
    for warming_c, least, most in ((0.0, 0.009, 0.03), (3.0, 0.03, 0.05), (8.0, 0.064, 0.13)):
        use = PackUse(10 * MS_PER_HOUR, 3 * MWH_PER_KWH, 80.0, 12.5 + warming_c, warming_c)
        price = pack_price(PackTerms(), use) / 3 / MICRO
        assert least < price < most, warming_c


def test_a_chemistry_that_is_not_known_loses_more_than_those_that_are() -> None:
    for warming_c, dearer in ((0.0, "lfp"), (8.0, "nca")):
        use = PackUse(10 * MS_PER_HOUR, MWH_PER_KWH, 80.0, 12.5 + warming_c, warming_c)
        by_name = {name: pack_price(PackTerms(chemistry=name), use) for name in CHEMISTRIES}
        assert max(by_name, key=lambda name: by_name[name]) == dearer
        times = pack_price(PackTerms(), use) / max(by_name.values())
        assert math.isclose(times, UNKNOWN_CHEMISTRY_FACTOR, rel_tol=1e-3)


def test_a_life_is_worth_the_whole_and_the_least_use_something() -> None:
    computer = ComputerTerms()
    assert electronics_price(computer, computer.life_ms) == computer.price_micro
    assert flash_price(computer, computer.flash_life_bytes) == computer.flash_price_micro
    assert electronics_price(computer, 1) == flash_price(computer, 1) == 1, "rounded up"
    assert pack_price(PackTerms(), PackUse(1, 1, 80.0, 15.0, 3.0)) == 1, "rounded up"
    assert pack_price(PackTerms(), PackUse(0, 0, 80.0, 15.0, 3.0)) == 0
    assert electronics_price(computer, 0) == flash_price(computer, 0) == 0


def test_the_margin_is_a_share_but_at_least_so_much_an_hour() -> None:
    spent = asked().spent_micro
    assert asked().margin_micro == 0
    assert asked(owner_terms=terms(margin_percent=50)).margin_micro == -(-spent // 2)
    both = terms(margin_percent=50, margin_micro_per_hour=1_000_000)
    assert asked(owner_terms=both).margin_micro == 1_000_000
    assert asked(Usage(1_000, 0), owner_terms=both).margin_micro == 278, "277.8 rounded up"


def test_the_total_is_all_parts() -> None:
    asking = AskingPrice(1, 20, 300, 4_000, 50_000)
    assert asking.spent_micro == 4_321
    assert asking.total_micro == 54_321


def test_a_reward_is_enough_from_the_asking_price_on() -> None:
    asking = asked()
    assert is_enough(asking.total_micro, asking)
    assert not is_enough(asking.total_micro - 1, asking)


def test_the_price_of_an_hour_is_that_of_an_attempt_of_an_hour() -> None:
    assert asking_price_per_hour(TERMS, CONDITIONS, 100_000) == asked()


def test_nothing_asks_for_nothing() -> None:
    for is_through_pack in (False, True):
        asking = asked(Usage(0, 0), is_through_pack=is_through_pack, keeps_awake=True)
        assert asking.total_micro == 0


ppm = st.integers(0, 900_000)
money = st.integers(0, 10**11)
prices = st.integers(0, 10**6)
windows = st.tuples(
    st.builds(TariffWindow, prices, st.just(22 * 60), st.just(6 * 60)),
    st.builds(TariffWindow, prices, st.just(12 * 60), st.just(18 * 60), st.just((0, 4))),
)
tariffs = st.builds(Tariff, prices, windows)
lives = st.builds(
    PackLife,
    days=st.integers(365, 7_300),
    cycles=st.integers(50, 3_000),
    soc_percent=st.floats(20, 100),
    temperature_c=st.floats(-5, 35),
    depth_percent=st.floats(5, 100),
    rate_per_h=st.floats(0, 2),
)
owner_terms = st.builds(
    OwnerTerms,
    tariff=tariffs,
    pack=st.builds(
        PackTerms,
        st.sampled_from(["", *CHEMISTRIES]),
        st.integers(10**6, 2 * 10**8),
        money,
        st.integers(10_000, MICRO),
        lives,
    ),
    computer=st.builds(ComputerTerms, money, st.integers(1, 10**12), money, st.integers(1, 10**15)),
    margin_percent=st.integers(0, 300),
    margin_micro_per_hour=st.integers(0, 10**6),
    overhead_mw=st.integers(0, 400_000),
    converter_loss_ppm=ppm,
    charging_loss_ppm=st.none() | ppm,
)
some_conditions = st.builds(
    Conditions,
    local_ms=st.integers(0, 2 * MS_PER_WEEK),
    soc_percent=st.floats(5, 100),
    pack_temperature_c=st.floats(-10, 50),
    junction_c=st.floats(-10, 110),
    warming_c=st.floats(-5, 15),
    is_through_pack=st.booleans(),
    recharged_within_ms=st.integers(0, 2 * MS_PER_WEEK),
    charging_mw=st.integers(0, 22_000_000),
    keeps_awake=st.booleans(),
)
usages = st.builds(Usage, st.integers(0, 10**8), st.integers(0, 10**7), st.integers(0, 10**10))


def wall_wh(own: OwnerTerms, conditions: Conditions, usage: Usage) -> tuple[Fraction, Fraction]:
    """The energy at pack and wall without any rounding, in mWh."""
    kept = Fraction(1) - Fraction(own.converter_loss_ppm, MICRO)
    pack_mwh = usage.computer_mwh / kept
    if conditions.keeps_awake:
        pack_mwh += Fraction(own.overhead_mw * usage.duration_ms, MS_PER_HOUR)
    loss_ppm = own.charging_loss_ppm
    if loss_ppm is None:
        loss_ppm = charging_loss_ppm(conditions.charging_mw)
    return pack_mwh, pack_mwh / (1 - Fraction(loss_ppm, MICRO))


def paid(own: OwnerTerms, conditions: Conditions, usage: Usage, moment: float) -> Fraction:
    """What the owner pays for the energy.

    Through the pack, if it is charged again at `moment` of the time there is for it; else the sum
    of what each stretch of up to a minute of the attempt draws at its price.
    """
    _, wall_mwh = wall_wh(own, conditions, usage)
    begin_ms, length_ms = conditions.local_ms, usage.duration_ms
    if conditions.is_through_pack or not length_ms:
        within_ms = conditions.recharged_within_ms if conditions.is_through_pack else 0
        at_ms = begin_ms + int(moment * (length_ms + within_ms))
        return wall_mwh * price_at(own.tariff, at_ms) / MWH_PER_KWH
    total, at_ms = Fraction(0), begin_ms
    while at_ms < begin_ms + length_ms:
        until_ms = min(at_ms - at_ms % MS_PER_MINUTE + MS_PER_MINUTE, begin_ms + length_ms)
        total += (until_ms - at_ms) * price_at(own.tariff, at_ms)
        at_ms = until_ms
    return wall_mwh * total / length_ms / MWH_PER_KWH


def worn(own: OwnerTerms, conditions: Conditions, usage: Usage) -> Fraction:
    """What the attempt takes from the value of pack, computer and flash.

    An unknown pack is the one of the known that loses more.
    """
    pack_mwh, _ = wall_wh(own, conditions, usage)
    use = PackUse(
        usage.duration_ms,
        math.floor(pack_mwh) if conditions.is_through_pack else 0,
        conditions.soc_percent,
        conditions.pack_temperature_c,
        conditions.warming_c,
    )
    chemistries = [CHEMISTRIES[own.pack.chemistry]] if own.pack.chemistry else CHEMISTRIES.values()
    loss = max(added_loss(each, own.pack.life, use, own.pack.capacity_mwh) for each in chemistries)
    weighted_ms = usage.duration_ms * Fraction(acceleration(conditions.junction_c))
    computer = own.computer
    return (
        Fraction(loss) * MICRO / own.pack.usable_loss_ppm * own.pack.price_micro
        + weighted_ms / computer.life_ms * computer.price_micro
        + Fraction(usage.flash_bytes * computer.flash_price_micro, computer.flash_life_bytes)
    )


@given(
    own=owner_terms,
    conditions=some_conditions,
    usage=usages,
    more=st.integers(0, 10**6),
    moment=st.floats(0, 1),
)
def test_no_owner_loses_by_work_that_pays_what_is_asked(
    own: OwnerTerms, conditions: Conditions, usage: Usage, more: int, moment: float
) -> None:
    """The reward covers energy and wear without any rounding, and the margin on top of both."""
    assert terms_faults(own) == []
    asking = asking_price(own, conditions, usage)
    reward_micro = asking.total_micro + more
    assert is_enough(reward_micro, asking)
    spent = paid(own, conditions, usage, moment) + worn(own, conditions, usage)
    least = Fraction(own.margin_micro_per_hour * usage.duration_ms, MS_PER_HOUR)
    margin = max(spent * own.margin_percent / 100, least)
    # Floats have 15 digits: what they may be off is nothing to an owner, but it is not 0.
    noise = Fraction(1, 10**6) + spent / 10**12
    assert reward_micro - spent >= -noise
    assert reward_micro - spent - margin >= -3 * noise


@given(own=owner_terms, conditions=some_conditions, usage=usages, more=usages)
def test_more_work_never_asks_for_less(
    own: OwnerTerms, conditions: Conditions, usage: Usage, more: Usage
) -> None:
    """From a pack; from the wall a longer attempt may reach cheaper hours."""
    through = msgspec.structs.replace(conditions, is_through_pack=True)
    larger = Usage(
        usage.duration_ms + more.duration_ms,
        usage.computer_mwh + more.computer_mwh,
        usage.flash_bytes + more.flash_bytes,
    )
    less = asking_price(own, through, usage).total_micro
    assert 0 <= less <= asking_price(own, through, larger).total_micro


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tariff": Tariff(-1)}, "tariff: micro_per_kwh"),
        ({"pack": PackTerms(capacity_mwh=0)}, "pack: capacity_mwh"),
        ({"computer": ComputerTerms(life_ms=0)}, "computer: life_ms"),
        ({"margin_percent": -1}, "margin_percent"),
        ({"margin_micro_per_hour": -1}, "margin_micro_per_hour"),
        ({"overhead_mw": -1}, "overhead_mw"),
        ({"converter_loss_ppm": -1}, "converter_loss_ppm"),
        ({"converter_loss_ppm": MICRO}, "converter_loss_ppm"),
        ({"charging_loss_ppm": MICRO}, "charging_loss_ppm"),
    ],
)
def test_terms_that_make_no_sense_are_told_in_words(changed: dict[str, Any], words: str) -> None:
    (fault,) = terms_faults(terms(**changed))
    assert words in fault


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"chemistry": "lead"}, "chemistry must be one of nca, lfp"),
        ({"price_micro": -1}, "price_micro"),
        ({"usable_loss_ppm": 0}, "usable_loss_ppm"),
        ({"usable_loss_ppm": MICRO + 1}, "usable_loss_ppm"),
        ({"life": PackLife(days=0)}, "life.days"),
        ({"life": PackLife(cycles=0)}, "life.cycles"),
        ({"life": PackLife(soc_percent=101.0)}, "life.soc_percent"),
        ({"life": PackLife(soc_percent=math.nan)}, "life.soc_percent"),
        ({"life": PackLife(temperature_c=-300.0)}, "life.temperature_c"),
        ({"life": PackLife(depth_percent=-1.0)}, "life.depth_percent"),
        ({"life": PackLife(rate_per_h=-1.0)}, "life.rate_per_h"),
    ],
)
def test_a_pack_that_makes_no_sense_is_told_in_words(changed: dict[str, Any], words: str) -> None:
    (fault,) = pack_faults(msgspec.structs.replace(PackTerms(), **changed))
    assert words in fault


def test_a_computer_that_makes_no_sense_is_told_in_words() -> None:
    (fault,) = computer_faults(ComputerTerms(flash_price_micro=-1))
    assert "flash_price_micro" in fault
    (fault,) = computer_faults(ComputerTerms(flash_life_bytes=0))
    assert "flash_life_bytes" in fault


def test_terms_come_back_from_a_file() -> None:
    assert msgspec.toml.decode(b"", type=OwnerTerms) == OwnerTerms()
    assert terms_faults(OwnerTerms()) == []
    written = b"""
margin_percent = 10
[tariff]
micro_per_kwh = 92000
[[tariff.windows]]
micro_per_kwh = 56200
begin_minute = 1320
end_minute = 360
[pack]
chemistry = "lfp"
[pack.life]
temperature_c = 20.0
"""
    read = msgspec.toml.decode(written, type=OwnerTerms)
    assert read.pack == PackTerms(chemistry="lfp", life=PackLife(temperature_c=20.0))
    assert read.tariff.windows[0].micro_per_kwh == 56_200
    with pytest.raises(msgspec.ValidationError):
        msgspec.toml.decode(b"margin = 10", type=OwnerTerms)
