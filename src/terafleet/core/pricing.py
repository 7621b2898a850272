"""What an owner earns: energy and a share of the margin, and never less than it took from them."""

import msgspec

from terafleet.core.units import MICRO, MS_PER_HOUR, MWH_PER_KWH


class Plan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The operator's plan, in micro-units of one currency.

    The defaults: 0.30 a kWh is about what a European household pays, 0.012 a million tokens is
    60 % of 0.02, the common list price of small embedding models. `asking_micro_per_hour_max` is
    what an owner's asking price is met up to, for an hour of one car's work: the 0.50 of the
    default are four times what 300 W cost a household, wear and margin included.
    """

    energy_micro_per_kwh: int = 300_000
    reward_micro_per_million_tokens: int = 12_000
    asking_micro_per_hour_max: int = 500_000


def reward_micro(plan: Plan, energy_mwh: int, tokens: int) -> int:
    """The reward of one verified receipt, rounded down so that no dust is paid twice."""
    scale = MWH_PER_KWH * MICRO
    energy = energy_mwh * plan.energy_micro_per_kwh * MICRO
    share = tokens * plan.reward_micro_per_million_tokens * MWH_PER_KWH
    return (energy + share) // scale


def met_micro(plan: Plan, asked_micro: int, held_ms: int) -> int:
    """What is paid of what an owner asked for a slot held so long: all, up to the plan's limit.

    A car does not work while it asks for more (`REWARD_TOO_LOW`), so the limit meets only a car
    that says other than it does.
    """
    return min(asked_micro, plan.asking_micro_per_hour_max * held_ms // MS_PER_HOUR)
