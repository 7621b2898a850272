"""What compute has taken of a car's caps on one local day: wear, and bytes over the link."""

import msgspec

from terafleet.core.wear import DAY_NEVER, Wear, WearAccounts, add


class DayUse(msgspec.Struct, frozen=True, array_like=True):
    """The wear accounts, and the bytes sent and received on local day `link_day`.

    The default is that nothing was used; see `local_time.local_day` for days.
    """

    wear: WearAccounts = WearAccounts()
    link_day: int = DAY_NEVER
    link_bytes: int = 0


NOTHING_USED = DayUse()


def link_bytes_on(usage: DayUse, day: int) -> int:
    """How many bytes count on a day; one that has been counts to the latest day told."""
    return usage.link_bytes if day <= usage.link_day else 0


def with_link_bytes(usage: DayUse, link_bytes: int, day: int) -> DayUse:
    """The use with more bytes over the link; a new day begins with none."""
    assert link_bytes >= 0, "what was sent can't be taken back"
    told = link_bytes_on(usage, day) + link_bytes
    return DayUse(wear=usage.wear, link_day=max(day, usage.link_day), link_bytes=told)


def with_wear(usage: DayUse, worn: Wear, day: int) -> DayUse:
    """The use with something more worn out; a new day begins with nothing."""
    return msgspec.structs.replace(usage, wear=add(usage.wear, worn, day))
