"""How a recording is replayed, and what is wrong with such settings."""

import msgspec

from terafleet.core.policy_preview import HOLD_MS
from terafleet.core.units import MS_PER_S

SPEED_MIN, SPEED_MAX = 0.001, 100_000
SECONDS_MAX = 1_000_000_000


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a recording is replayed.

    `speed` is how many seconds of it pass in one of the agent's. Each `repeat_s` of the recording
    it begins anew, and what is longer is cut off; 0 is once only. A row holds for `hold_s` of it
    at the most: after that, as at its end, all is missing.
    """

    speed: float = 1.0
    repeat_s: float = 0.0
    hold_s: float = HOLD_MS / MS_PER_S


def pace_faults(pace: Pace) -> list[str]:
    """What is wrong with a pace, in words; empty when nothing is."""
    faults = []
    if not SPEED_MIN <= pace.speed <= SPEED_MAX:
        faults.append(f"speed must lie within {SPEED_MIN} and {SPEED_MAX}")
    if not 0 <= pace.repeat_s <= SECONDS_MAX:
        faults.append(f"repeat_s must lie within 0 and {SECONDS_MAX}")
    if not 0 < pace.hold_s <= SECONDS_MAX:
        faults.append(f"hold_s must lie above 0, and be {SECONDS_MAX} at most")
    return faults
