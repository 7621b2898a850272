"""What worn pack, electronics and flash are worth to the owner, in micro-units of money.

All is rounded up: what is charged for wear is never less than the wear.
"""

import math

import msgspec

from terafleet.core.battery_ageing import CHEMISTRIES, Chemistry, PackLife, PackUse, added_loss
from terafleet.core.electronics_wear import MISSION_MS
from terafleet.core.units import MICRO, divide_up

LIFE_RANGES = {
    "soc_percent": (0, 100),
    "temperature_c": (-40, 60),
    "depth_percent": (0, 100),
    "rate_per_h": (0, 10),
}
"""Beyond these it is a slip, not a pack's life."""

UNKNOWN_CHEMISTRY_FACTOR = 1.6
"""Of six chemistries that were compared (docs/mechanisms/wear.md), two lose more than these two:
up to 1.6 times as much as is charged for the one of them that loses more."""


class PackTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The pack, and what it is worth to its owner.

    `chemistry` is a name of `battery_ageing.CHEMISTRIES`, or empty where it is another or unknown:
    then the one that loses more counts `UNKNOWN_CHEMISTRY_FACTOR` times. `price_micro` is lost in
    equal parts over the capacity that the pack can lose until it is worn out (`usable_loss_ppm`,
    30 % as car makers' warranties have it). The default is 75 kWh at 130 a kWh.
    """

    chemistry: str = ""
    capacity_mwh: int = 75_000_000
    price_micro: int = 9_750 * MICRO
    usable_loss_ppm: int = 300_000
    life: PackLife = PackLife()


class ComputerTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The car's computer, and what it is worth to its owner.

    `price_micro` is lost in equal parts over `life_ms` of weighted time, `flash_price_micro` over
    `flash_life_bytes`. Both prices are assumptions that the owner corrects. 96 TB is what 64 GB of
    flash take at 3,000 erasures and two bytes written for each of ours.
    """

    price_micro: int = 1_500 * MICRO
    life_ms: int = MISSION_MS
    flash_price_micro: int = 400 * MICRO
    flash_life_bytes: int = 96_000_000_000_000


def pack_faults(terms: PackTerms) -> list[str]:
    """What is wrong with the terms of a pack, in words a person can act on."""
    faults = []
    if terms.chemistry and terms.chemistry not in CHEMISTRIES:
        faults.append(f"chemistry must be one of {', '.join(CHEMISTRIES)}, or empty")
    if terms.capacity_mwh <= 0 or terms.price_micro < 0:
        faults.append("capacity_mwh must be positive and price_micro not negative")
    if not 0 < terms.usable_loss_ppm <= MICRO:
        faults.append("usable_loss_ppm must be more than 0 and at most 1000000")
    return faults + _life_faults(terms.life)


def computer_faults(terms: ComputerTerms) -> list[str]:
    """What is wrong with the terms of a computer, in words a person can act on."""
    faults = []
    if min(terms.price_micro, terms.flash_price_micro) < 0:
        faults.append("price_micro and flash_price_micro must not be negative")
    if min(terms.life_ms, terms.flash_life_bytes) <= 0:
        faults.append("life_ms and flash_life_bytes must be positive")
    return faults


def pack_price(terms: PackTerms, use: PackUse) -> int:
    """What a use takes from the value of the pack, in micro-units, rounded up."""
    known = CHEMISTRIES.get(terms.chemistry)
    loss = _loss(terms, known, use) if known else _loss_of_unknown(terms, use)
    return math.ceil(loss * MICRO / terms.usable_loss_ppm * terms.price_micro)


def electronics_price(terms: ComputerTerms, electronics_ms: int) -> int:
    """What weighted time takes from the value of the computer, in micro-units, rounded up."""
    return divide_up(electronics_ms * terms.price_micro, terms.life_ms)


def flash_price(terms: ComputerTerms, flash_bytes: int) -> int:
    """What written bytes take from the value of the flash, in micro-units, rounded up."""
    return divide_up(flash_bytes * terms.flash_price_micro, terms.flash_life_bytes)


def _loss(terms: PackTerms, chemistry: Chemistry, use: PackUse) -> float:
    return added_loss(chemistry, terms.life, use, terms.capacity_mwh)


def _loss_of_unknown(terms: PackTerms, use: PackUse) -> float:
    losses = (_loss(terms, chemistry, use) for chemistry in CHEMISTRIES.values())
    return UNKNOWN_CHEMISTRY_FACTOR * max(losses)


def _life_faults(life: PackLife) -> list[str]:
    faults = []
    if min(life.days, life.cycles) <= 0:
        faults.append("life.days and life.cycles must be positive")
    for name, (least, most) in LIFE_RANGES.items():
        if not least <= getattr(life, name) <= most:
            faults.append(f"life.{name} must lie within {least} and {most}")
    return faults
