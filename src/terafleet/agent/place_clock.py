"""Says what the clock of the place shows, as this computer is set; it knows no position."""

import time
from collections.abc import Callable

from terafleet.core.units import MS_PER_S

PlaceOffset = Callable[[int], int]
"""What the place's clock is ahead of UTC at a time, both in ms."""


def utc_offset_ms(at_ms: int) -> int:
    """What this computer's local time is ahead of UTC at `at_ms`, summer time included; in ms.

    It follows the computer's time zone. A time that the computer can't place has offset 0.
    """
    try:
        return time.localtime(at_ms / MS_PER_S).tm_gmtoff * MS_PER_S
    except (OverflowError, OSError, ValueError):
        return 0
