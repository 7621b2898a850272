"""Three accounts of what compute wears out in a car, a day at a time, with caps of the owner.

They are energy through the pack, hours of the electronics and bytes written to flash. It knows
no readings and no prices: what was worn comes in.
"""

from enum import StrEnum

import msgspec

from terafleet.core.units import MS_PER_HOUR

PERCENT = 100
DAYS_PER_YEAR = 365
DAY_NEVER = -1


class WearKind(StrEnum):
    """What wears out; a reason to refuse once its account is at its cap."""

    PACK_ENERGY = "pack_energy"
    ELECTRONICS = "electronics"
    FLASH = "flash"


class Wear(msgspec.Struct, frozen=True, array_like=True):
    """What an attempt, or an interval between two readings, wore out.

    `pack_mwh` is what left the pack, `pack_micro` what that takes from its value;
    `electronics_ms` is time weighted by temperature; `flash_bytes` was written by the agent and
    its children.
    """

    pack_mwh: int = 0
    pack_micro: int = 0
    electronics_ms: int = 0
    flash_bytes: int = 0


class WearAccounts(msgspec.Struct, frozen=True, array_like=True):
    """What was worn out on one local day; see `local_time.local_day`."""

    day: int = DAY_NEVER
    worn: Wear = Wear()


class WearCaps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the owner lets compute wear out a day.

    Two levels: at its cap an account refuses, and it permits again below `resume_percent` of the
    cap. As an account only grows, that is on the next day, or when the cap is raised enough.

    The defaults: 5 kWh out of the pack, which is 500 W for 10 hours; the 365th part of 500 hours
    a year at the reference temperature; 5 GB of flash, of the 17.5 GB a day that a flash of 64 GB
    bears for 15 years (3,000 erasures, two bytes written for each of ours).
    """

    pack_mwh: int = 5_000_000
    electronics_ms: int = 500 * MS_PER_HOUR // DAYS_PER_YEAR
    flash_bytes: int = 5_000_000_000
    resume_percent: int = 90


def caps_faults(caps: WearCaps) -> list[str]:
    """What is wrong with caps, in words a person can act on; empty when nothing is."""
    faults = []
    if min(caps.pack_mwh, caps.electronics_ms, caps.flash_bytes) < 0:
        faults.append("pack_mwh, electronics_ms and flash_bytes must not be negative")
    if not 0 < caps.resume_percent <= PERCENT:
        faults.append("resume_percent must lie within 1 and 100")
    return faults


def add(accounts: WearAccounts, worn: Wear, day: int) -> WearAccounts:
    """The accounts with something more worn out, on the day on which it is told.

    A new day begins empty. A day that has been is counted to the present one: a clock that is set
    back gives nobody a second day.
    """
    assert min(msgspec.structs.astuple(worn)) >= 0, "nothing is mended"
    so_far = _on(accounts, day)
    return WearAccounts(
        day=so_far.day,
        worn=Wear(
            pack_mwh=so_far.worn.pack_mwh + worn.pack_mwh,
            pack_micro=so_far.worn.pack_micro + worn.pack_micro,
            electronics_ms=so_far.worn.electronics_ms + worn.electronics_ms,
            flash_bytes=so_far.worn.flash_bytes + worn.flash_bytes,
        ),
    )


def over(
    accounts: WearAccounts, caps: WearCaps, day: int, *, is_permitting: bool
) -> tuple[WearKind, ...]:
    """Which accounts refuse on a day, in a fixed order; none is a permit.

    `is_permitting` chooses the level. An account at its level refuses, so a cap of 0 allows
    nothing at all.
    """
    worn = _on(accounts, day).worn
    percent = PERCENT if is_permitting else caps.resume_percent
    pairs = (
        (WearKind.PACK_ENERGY, worn.pack_mwh, caps.pack_mwh),
        (WearKind.ELECTRONICS, worn.electronics_ms, caps.electronics_ms),
        (WearKind.FLASH, worn.flash_bytes, caps.flash_bytes),
    )
    return tuple(kind for kind, amount, cap in pairs if amount * PERCENT >= cap * percent)


def _on(accounts: WearAccounts, day: int) -> WearAccounts:
    return WearAccounts(day=day) if day > accounts.day else accounts
