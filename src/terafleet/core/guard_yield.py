"""How a car is given back: in which stages, how long each may take, and what it is likely to be.

It decides stages and knows nothing of leases and processes.
"""

from collections import deque
from collections.abc import Iterable
from enum import StrEnum

from terafleet.core.policy import OwnerPolicy
from terafleet.core.reasons import Refusal

BRIEF = frozenset({Refusal.DRIVER_PRESENT, Refusal.OTHERS_BUSY})
"""Refusals that often end soon: a door opened and closed, a moment's load of others.

What the work itself causes is not among them, or it would come back with each resume.
"""

STOPS_KEPT = 16
STOPS_KNOWN_MIN = 4
"""Fewer say nothing about the next one."""


class Stage(StrEnum):
    """Where a yield stands; docs/states/guard.md has the picture."""

    FINISHING = "finishing"
    STOPPING = "stopping"
    SUSPENDED = "suspended"
    KILLING = "killing"


class ShortStops:
    """How long the car was wanted back of late, where the reason was `BRIEF`.

    The forecast is the plainest that learns: the next one is short if most of them were.
    """

    def __init__(self, lengths_ms: Iterable[int] = ()) -> None:
        self._lengths_ms = deque(lengths_ms, maxlen=STOPS_KEPT)
        self._begun_ms: int | None = None

    def lengths_ms(self) -> list[int]:
        """Those that are known, oldest first; for a snapshot."""
        return list(self._lengths_ms)

    def forget_process(self) -> None:
        """How long the stop goes on that has begun, nobody will know."""
        self._begun_ms = None

    def begin(self, found: tuple[Refusal, ...], now_ms: int) -> None:
        """The car is wanted back."""
        self._begun_ms = now_ms if BRIEF.issuperset(found) else None

    def look(self, found: tuple[Refusal, ...], now_ms: int) -> None:
        """What holds now; with the last reason gone, the length of the stop is known."""
        if self._begun_ms is not None and not found:
            self._lengths_ms.append(now_ms - self._begun_ms)
            self._begun_ms = None

    def are_likely(self, within_ms: int) -> bool:
        """Whether the next stop is likely to end within so much time."""
        known = len(self._lengths_ms)
        short = sum(length_ms <= within_ms for length_ms in self._lengths_ms)
        return known >= STOPS_KNOWN_MIN and 2 * short > known


class GivingBack:
    """One yield after the other: the stage it is in, and until when that may last."""

    def __init__(self, stops: ShortStops) -> None:
        self.stops = stops
        self.stage = Stage.KILLING
        self.until_ms = 0
        self.is_resuming = False
        """Whether a suspended runtime waits only for the owner policy's dwell."""

    def enter(self, stage: Stage, until_ms: int) -> None:
        """Begin a stage that ends at the latest then."""
        self.stage, self.until_ms, self.is_resuming = stage, until_ms, False

    def may_suspend(self, policy: OwnerPolicy, found: tuple[Refusal, ...]) -> bool:
        """Whether to keep the runtime in memory: the owner allows it, and it is likely short."""
        suspend_ms = policy.giving_back.suspend_ms
        return suspend_ms > 0 and BRIEF.issuperset(found) and self.stops.are_likely(suspend_ms)
