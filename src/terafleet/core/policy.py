"""What the owner allows, and the rule that turns it and the readings into refusals."""

import msgspec

from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal

SOC_PERCENT_FULL = 100


class OwnerPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the owner allows.

    Analogue limits have two levels: beyond the first the car refuses, and it permits again only
    past the second. `settle_ms` is how long all must be well before work may begin, `stale_ms`
    how old a reading may be, `release_ms` how long the car may take to give all back.
    """

    is_paused: bool = False
    needs_plug: bool = True
    soc_percent_min: float = 50.0
    soc_percent_resume: float = 55.0
    temperature_c_max: float = 45.0
    temperature_c_resume: float = 40.0
    settle_ms: int = 60_000
    stale_ms: int = 30_000
    release_ms: int = 2_000


def policy_faults(policy: OwnerPolicy) -> list[str]:
    """What is wrong with a policy, in words a person can act on; empty when nothing is."""
    faults = []
    if not 0 <= policy.soc_percent_min <= policy.soc_percent_resume <= SOC_PERCENT_FULL:
        faults.append("soc_percent_min and soc_percent_resume must rise within 0 and 100")
    if policy.temperature_c_resume > policy.temperature_c_max:
        faults.append("temperature_c_resume must not be above temperature_c_max")
    if min(policy.settle_ms, policy.stale_ms, policy.release_ms) < 0:
        faults.append("settle_ms, stale_ms and release_ms must not be negative")
    return faults


def refusals(
    policy: OwnerPolicy, readings: Readings | None, is_permitting: bool, now_ms: int
) -> tuple[Refusal, ...]:
    """Every reason for which the car must not compute, in a fixed order; none is a permit.

    A missing or stale reading refuses. `is_permitting` chooses the level of analogue limits.
    """
    found = [Refusal.OWNER_PAUSED] if policy.is_paused else []
    if readings is None:
        return (*found, Refusal.READING_MISSING)
    if now_ms - readings.at_ms > policy.stale_ms:
        return (*found, Refusal.READING_STALE)
    if _lacks_a_reading(policy, readings):
        found.append(Refusal.READING_MISSING)
    if readings.is_parked is False:
        found.append(Refusal.NOT_PARKED)
    if readings.is_driver_present is True:
        found.append(Refusal.DRIVER_PRESENT)
    if policy.needs_plug and readings.is_plugged_in is False:
        found.append(Refusal.UNPLUGGED)
    soc_floor = policy.soc_percent_min if is_permitting else policy.soc_percent_resume
    if readings.soc_percent is not None and not readings.soc_percent >= soc_floor:
        found.append(Refusal.SOC_BELOW_FLOOR)
    ceiling_c = policy.temperature_c_max if is_permitting else policy.temperature_c_resume
    if (
        readings.compute_temperature_c is not None
        and not readings.compute_temperature_c <= ceiling_c
    ):
        found.append(Refusal.TEMPERATURE_HIGH)
    return tuple(found)


def _lacks_a_reading(policy: OwnerPolicy, readings: Readings) -> bool:
    needed: list[object] = [
        readings.is_parked,
        readings.is_driver_present,
        readings.soc_percent,
        readings.compute_temperature_c,
    ]
    if policy.needs_plug:
        needed.append(readings.is_plugged_in)
    return any(value is None for value in needed)
