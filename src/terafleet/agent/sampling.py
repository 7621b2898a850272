"""Decides which samples the guard must hear of: those that could change its answer, or its trust.

A sample a second, each written to the journal, would wear the flash for nothing.
"""

from collections.abc import Callable

from terafleet.core.day_use import NOTHING_USED
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import refusals

SAMPLES_PER_STALE = 3
"""A sample is passed on at least so often within the time after which it would be stale."""


class Sampling:
    """Passes on a sample at once when it says anything else to the policy than the one before."""

    def __init__(self, policy: OwnerPolicy, pass_on: Callable[[Readings], None]) -> None:
        """Begin with nothing passed on."""
        self._policy = policy
        self._pass_on = pass_on
        self._passed: Readings | None = None
        self.newest: Readings | None = None

    def change_policy(self, policy: OwnerPolicy) -> None:
        """Judge by another policy; the next sample is passed on."""
        self._policy = policy
        self._passed = None

    def take(self, readings: Readings) -> None:
        """A sample was taken."""
        self.newest = readings
        if self._passed is None or self._is_due(readings, self._passed):
            self._passed = readings
            self._pass_on(readings)

    def _is_due(self, readings: Readings, passed: Readings) -> bool:
        age_ms = readings.at_ms - passed.at_ms
        if age_ms >= self._policy.giving_back.stale_ms // SAMPLES_PER_STALE:
            return True
        return self._judged(readings) != self._judged(passed)

    def _judged(self, readings: Readings) -> tuple[tuple[Refusal, ...], ...]:
        """What the policy says at both of its levels; the guard alone knows which one holds.

        What was used today is the guard's to know, and the same for both samples.
        """
        at_ms = readings.at_ms
        return tuple(
            refusals(self._policy, readings, NOTHING_USED, is_low, at_ms)
            for is_low in (True, False)
        )
