"""What an owner earns for verified work: the energy at the wall, and a share of the margin."""

import msgspec

from terafleet.core.units import MICRO, MWH_PER_KWH


class Plan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The operator's plan, in micro-units of one currency.

    The defaults: 0.30 a kWh is about what a European household pays, 0.012 a million tokens is
    60 % of 0.02, the common list price of small embedding models.
    """

    energy_micro_per_kwh: int = 300_000
    reward_micro_per_million_tokens: int = 12_000


def reward_micro(plan: Plan, energy_mwh: int, tokens: int) -> int:
    """The reward of one verified receipt, rounded down so that no dust is paid twice."""
    scale = MWH_PER_KWH * MICRO
    energy = energy_mwh * plan.energy_micro_per_kwh * MICRO
    share = tokens * plan.reward_micro_per_million_tokens * MWH_PER_KWH
    return (energy + share) // scale
