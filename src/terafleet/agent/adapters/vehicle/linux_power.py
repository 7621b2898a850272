"""Reads the power supplies of a computer: its plug, and its batteries as the pack of a car.

Units and names are those of the kernel's power supply class (ABI/testing/sysfs-class-power).
"""

from collections.abc import Mapping, Sequence

import msgspec

from terafleet.agent.adapters.vehicle.linux_files import (
    names_in,
    read_text,
    read_whole,
    read_word,
    whole,
)

UW_PER_MW = 1_000
PW_PER_MW = 1_000_000_000
TENTHS = 10

BATTERIES = ("Battery", "UPS")
PLUGS = ("Mains", "USB", "Wireless")
CHARGING, DISCHARGING = "Charging", "Discharging"
STATUSES = (CHARGING, DISCHARGING, "Not charging", "Full")
"""What a battery may say; anything else (`Unknown`) is missing."""

Said = Mapping[str, str]
"""What a supply says of itself, by the kernel's names in small letters."""


class Supplies(msgspec.Struct, frozen=True):
    """The plug and the batteries, as far as they can be read; `discharging_mw` is 0 at the plug."""

    is_plugged_in: bool | None = None
    soc_percent: float | None = None
    is_charging: bool | None = None
    charging_mw: int | None = None
    discharging_mw: int | None = None
    charge_limit_percent: float | None = None
    battery_temperature_c: float | None = None


WALL_ONLY = Supplies(
    is_plugged_in=True, soc_percent=100.0, is_charging=False, charging_mw=0, discharging_mw=0
)
"""A computer without a battery: always plugged in, and never short of energy."""


def read_supplies(root: str = "") -> Supplies:
    """The power supplies below `root`; one file each is read.

    Batteries of mice and other things at the computer (`scope` is `Device`) don't count.
    """
    folder = f"{root}/sys/class/power_supply"
    names = names_in(folder)
    if names is None:
        return Supplies()
    said = [one for name in names if (one := _said(f"{folder}/{name}"))]
    own = [one for one in said if one.get("scope") != "Device"]
    batteries = [one for one in own if one.get("type") in BATTERIES and one.get("present") != "0"]
    plugs = [one for one in own if one.get("type") in PLUGS and "online" in one]
    if len(said) < len(names) and not batteries:
        # What can't be read might be a battery.
        return Supplies(is_plugged_in=_is_plugged_in(plugs, batteries))
    if not batteries:
        return WALL_ONLY
    statuses = [_status(one) for one in batteries]
    limits = [_fraction(one, "charge_control_end_threshold", 1) for one in batteries]
    temperatures = [_fraction(one, "temp", TENTHS) for one in batteries]
    return Supplies(
        is_plugged_in=_is_plugged_in(plugs, batteries),
        soc_percent=_soc_percent(batteries),
        is_charging=None if None in statuses else CHARGING in statuses,
        charging_mw=_power_mw(batteries, CHARGING),
        discharging_mw=_power_mw(batteries, DISCHARGING),
        charge_limit_percent=_highest(limits),
        battery_temperature_c=_highest(temperatures),
    )


def _said(folder: str) -> Said | None:
    """One supply: its `uevent` has all properties in one file, on most kernels its type too."""
    text = read_text(f"{folder}/uevent")
    if text is None:
        return None
    lines = (line.partition("=") for line in text.splitlines())
    said = {name.removeprefix("POWER_SUPPLY_").lower(): value for name, _, value in lines}
    for name in ("type", "scope"):
        if name not in said and (word := read_word(f"{folder}/{name}")):
            said[name] = word
    if said.get("type") in BATTERIES:
        threshold = read_whole(f"{folder}/charge_control_end_threshold")
        if threshold is not None:
            said.setdefault("charge_control_end_threshold", str(threshold))
    return said


def _is_plugged_in(plugs: Sequence[Said], batteries: Sequence[Said]) -> bool | None:
    """By the plugs; a computer that names none is asked whether its battery gives energy."""
    if plugs:
        online = [whole(one["online"]) for one in plugs]
        if any(online):
            return True
        return None if None in online else False
    statuses = [_status(one) for one in batteries]
    return None if None in statuses or not statuses else DISCHARGING not in statuses


def _status(battery: Said) -> str | None:
    status = battery.get("status")
    return status if status in STATUSES else None


def _soc_percent(batteries: Sequence[Said]) -> float | None:
    """The charge of all of them: the mean by their sizes, or the plain one without sizes."""
    shares = [whole(one.get("capacity")) for one in batteries]
    sizes = [whole(one.get("energy_full") or one.get("charge_full")) or 0 for one in batteries]
    if 0 in sizes:
        sizes = [1] * len(batteries)
    known = [share for share in shares if share is not None]
    if len(known) < len(batteries):
        return None
    return sum(share * size for share, size in zip(known, sizes, strict=True)) / sum(sizes)


def _power_mw(batteries: Sequence[Said], status: str) -> int | None:
    """What flows in the direction that `status` names; 0 where nothing does."""
    total_mw = 0
    for battery in batteries:
        found = _status(battery)
        if found is None:
            return None
        if found == status:
            power_mw = _battery_mw(battery)
            if power_mw is None:
                return None
            total_mw += power_mw
    return total_mw


def _battery_mw(battery: Said) -> int | None:
    """What flows through it, in whichever direction: some drivers say one of them as negative."""
    power_uw = whole(battery.get("power_now"))
    if power_uw is not None:
        return abs(power_uw) // UW_PER_MW
    current_ua = whole(battery.get("current_now"))
    voltage_uv = whole(battery.get("voltage_now"))
    if current_ua is None or voltage_uv is None:
        return None
    return abs(current_ua) * voltage_uv // PW_PER_MW


def _fraction(battery: Said, name: str, parts: int) -> float | None:
    value = whole(battery.get(name))
    return None if value is None else value / parts


def _highest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
