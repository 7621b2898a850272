"""What the wall gives for what the car's computer takes: losses on the way, and being awake."""

from itertools import takewhile

import msgspec

from terafleet.core.units import MICRO, divide_up

CHARGING_LOSSES_PPM = (
    (500_000, 242_000),
    (2_300_000, 152_000),
    (3_500_000, 114_000),
    (11_000_000, 77_000),
)
"""From which charging power (mW) on which share is lost: 15.2 % at 2.3 kW, 11.4 % at 3.5 kW and
7.7 % at 11 kW were measured of a Tesla Model 3 (ADAC); between two of them the loss of the lower
power is taken. From 500 W on it is the worst that was measured at 2.3 kW, a Renault Zoe's."""

TRICKLE_LOSS_PPM = 400_000
"""Below 500 W: the upper end of an estimate of 20 to 40 %; nothing was measured there."""

CONVERTER_LOSS_PPM = 100_000
"""From the pack's voltage to the computer's: the worse end of 5 to 10 % (an estimate)."""

OVERHEAD_MW = 260_000
"""What an awake car draws besides its computer: the upper end of 150 to 260 W (owners' figures of
the Tesla Model 3, at the pack)."""


class Losses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shares that are lost between computer and pack, and between pack and wall."""

    converter_ppm: int
    charging_ppm: int


class WallEnergy(msgspec.Struct, frozen=True, array_like=True):
    """Energy while a car works, in mWh.

    `pack_mwh` is what leaves the pack if it comes from there, `wall_mwh` what the wall gives for
    it sooner or later. `anyway_mwh` is what the wall gives for being awake where the car would be
    awake without the work; nobody is asked for it.
    """

    pack_mwh: int
    wall_mwh: int
    anyway_mwh: int


def charging_loss_ppm(charging_mw: int) -> int:
    """The share of the wall's energy that does not arrive when a car charges at this power."""
    reached = takewhile(lambda step: step[0] <= charging_mw, CHARGING_LOSSES_PPM)
    return min((loss for _, loss in reached), default=TRICKLE_LOSS_PPM)


def before_loss_mwh(energy_mwh: int, loss_ppm: int) -> int:
    """What must go in so that so much comes out, in mWh, rounded up."""
    assert 0 <= loss_ppm < MICRO, "something arrives"
    return divide_up(energy_mwh * MICRO, MICRO - loss_ppm)


def wall_energy(
    computer_mwh: int, awake_mwh: int, losses: Losses, *, keeps_awake: bool
) -> WallEnergy:
    """What a computer, and a car that is awake around it, ask of the wall.

    Being awake is asked for only if the work keeps the car awake. It was measured at the pack, so
    only the computer has the converter before it. All is rounded up, as the owner pays it.
    """
    computer = before_loss_mwh(computer_mwh, losses.converter_ppm)
    pack_mwh = computer + awake_mwh if keeps_awake else computer
    anyway_mwh = 0 if keeps_awake else before_loss_mwh(awake_mwh, losses.charging_ppm)
    return WallEnergy(pack_mwh, before_loss_mwh(pack_mwh, losses.charging_ppm), anyway_mwh)
