"""What work must pay at the least before a car does it: energy, wear, and the owner's margin."""

import msgspec

from terafleet.core.battery_ageing import PackUse
from terafleet.core.electronics_wear import weighted_ms
from terafleet.core.local_time import MS_PER_WEEK
from terafleet.core.tariff import Tariff, dearest_price, energy_price, tariff_faults
from terafleet.core.units import MICRO, MS_PER_HOUR, MWH_PER_KWH, divide_up
from terafleet.core.wall_energy import (
    CONVERTER_LOSS_PPM,
    OVERHEAD_MW,
    Losses,
    WallEnergy,
    charging_loss_ppm,
    wall_energy,
)
from terafleet.core.wear import Wear
from terafleet.core.wear_price import (
    ComputerTerms,
    PackTerms,
    computer_faults,
    electronics_price,
    flash_price,
    pack_faults,
    pack_price,
)

PERCENT = 100


class OwnerTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What energy and wear mean to this owner, and what is to be left over.

    The margin is `margin_percent` of energy and wear, but at least `margin_micro_per_hour` of
    work. `charging_loss_ppm` is the owner's own figure, if there is one; else it follows from the
    charging power.
    """

    tariff: Tariff = Tariff()
    pack: PackTerms = PackTerms()
    computer: ComputerTerms = ComputerTerms()
    margin_percent: int = 20
    margin_micro_per_hour: int = 0
    overhead_mw: int = OVERHEAD_MW
    converter_loss_ppm: int = CONVERTER_LOSS_PPM
    charging_loss_ppm: int | None = None


class Conditions(msgspec.Struct, frozen=True):
    """How a car stands while it works.

    `local_ms` is when the work begins, see `local_time`. If the energy `is_through_pack`, it is
    charged again at some moment between then and `recharged_within_ms` after the end; a week is
    any time. `charging_mw` is the power at which the car charges when this energy comes in, all
    of it and not the work's part alone. `keeps_awake`: without the work the car would sleep.
    `warming_c` is how much warmer the pack is for the work, `junction_c` the temperature of the
    computer's hottest part.
    """

    local_ms: int
    soc_percent: float
    pack_temperature_c: float
    junction_c: float
    warming_c: float = 3.0
    is_through_pack: bool = True
    recharged_within_ms: int = MS_PER_WEEK
    charging_mw: int = 3_500_000
    keeps_awake: bool = True


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What an attempt takes, as predicted or as measured; `computer_mwh` at the computer."""

    duration_ms: int
    computer_mwh: int
    flash_bytes: int = 0


class AskingPrice(msgspec.Struct, frozen=True, array_like=True):
    """What an attempt must pay, in its parts, in micro-units; each is rounded up."""

    energy_micro: int
    pack_micro: int
    electronics_micro: int
    flash_micro: int
    margin_micro: int

    @property
    def spent_micro(self) -> int:
        """What the owner spends and loses."""
        return self.energy_micro + self.pack_micro + self.electronics_micro + self.flash_micro

    @property
    def total_micro(self) -> int:
        """All that is asked for."""
        return self.spent_micro + self.margin_micro


def terms_faults(terms: OwnerTerms) -> list[str]:
    """What is wrong with an owner's terms, in words a person can act on; empty when nothing is."""
    faults = [
        *(f"tariff: {fault}" for fault in tariff_faults(terms.tariff)),
        *(f"pack: {fault}" for fault in pack_faults(terms.pack)),
        *(f"computer: {fault}" for fault in computer_faults(terms.computer)),
    ]
    if min(terms.margin_percent, terms.margin_micro_per_hour, terms.overhead_mw) < 0:
        faults.append("margin_percent, margin_micro_per_hour and overhead_mw must not be negative")
    losses_ppm = (terms.converter_loss_ppm, terms.charging_loss_ppm or 0)
    if not 0 <= min(losses_ppm) <= max(losses_ppm) < MICRO:
        faults.append(f"converter_loss_ppm and charging_loss_ppm must be 0 to {MICRO - 1}")
    return faults


def energy_of(terms: OwnerTerms, conditions: Conditions, usage: Usage) -> WallEnergy:
    """The energy of an attempt at pack and wall, and what the car uses anyway, in mWh."""
    charging_ppm = terms.charging_loss_ppm
    if charging_ppm is None:
        charging_ppm = charging_loss_ppm(conditions.charging_mw)
    return wall_energy(
        usage.computer_mwh,
        divide_up(terms.overhead_mw * usage.duration_ms, MS_PER_HOUR),
        Losses(terms.converter_loss_ppm, charging_ppm),
        keeps_awake=conditions.keeps_awake,
    )


def wear_of(terms: OwnerTerms, conditions: Conditions, usage: Usage) -> Wear:
    """What an attempt wears out; energy that does not go through the pack cycles nothing."""
    pack_mwh = energy_of(terms, conditions, usage).pack_mwh if conditions.is_through_pack else 0
    use = PackUse(
        duration_ms=usage.duration_ms,
        energy_mwh=pack_mwh,
        soc_percent=conditions.soc_percent,
        temperature_c=conditions.pack_temperature_c,
        warming_c=conditions.warming_c,
    )
    return Wear(
        pack_mwh=pack_mwh,
        pack_micro=pack_price(terms.pack, use),
        electronics_ms=weighted_ms(usage.duration_ms, conditions.junction_c),
        flash_bytes=usage.flash_bytes,
    )


def asking_price(terms: OwnerTerms, conditions: Conditions, usage: Usage) -> AskingPrice:
    """The least that an attempt must pay, so that its owner does not lose by it.

    Every part is rounded up, and what is not known yet is taken at its worst: energy that is
    charged again later has the dearest price until then, and of attempts that work at the same
    time each is asked for all of the overhead and the hours, as it may be the last to end.
    """
    worn = wear_of(terms, conditions, usage)
    parts = (
        _energy_micro(terms, conditions, usage),
        worn.pack_micro,
        electronics_price(terms.computer, worn.electronics_ms),
        flash_price(terms.computer, worn.flash_bytes),
    )
    share_micro = divide_up(sum(parts) * terms.margin_percent, PERCENT)
    least_micro = divide_up(terms.margin_micro_per_hour * usage.duration_ms, MS_PER_HOUR)
    return AskingPrice(*parts, margin_micro=max(share_micro, least_micro))


def asking_price_per_hour(
    terms: OwnerTerms, conditions: Conditions, computer_mw: int
) -> AskingPrice:
    """What an hour of work asks from now on, for a computer that draws so much; no flash."""
    return asking_price(terms, conditions, Usage(MS_PER_HOUR, computer_mw))


def is_enough(reward_micro: int, asking: AskingPrice) -> bool:
    """Whether a reward pays for what is asked; less is refused (`REWARD_TOO_LOW`)."""
    return reward_micro >= asking.total_micro


def _energy_micro(terms: OwnerTerms, conditions: Conditions, usage: Usage) -> int:
    energy_mwh = energy_of(terms, conditions, usage).wall_mwh
    local_ms, duration_ms = conditions.local_ms, usage.duration_ms
    if not conditions.is_through_pack:
        return energy_price(terms.tariff, energy_mwh, local_ms, duration_ms)
    until_ms = duration_ms + conditions.recharged_within_ms
    return divide_up(energy_mwh * dearest_price(terms.tariff, local_ms, until_ms), MWH_PER_KWH)
