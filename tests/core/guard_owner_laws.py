"""What the owner of a car may count on, looked at after each event and as time goes by."""

import math
from typing import Protocol

from terafleet.core import guard_effects as fx
from terafleet.core.day_use import link_bytes_on
from terafleet.core.guard import Guard
from terafleet.core.guard_effects import GuardState
from terafleet.core.limits import LIMITS, QUIET_FAN
from terafleet.core.local_time import local_day
from terafleet.core.policy import PATIENT, OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.wear import over

ABOUT = ("is_updating", "is_in_service", "is_preconditioning", "is_sentry_on")


class Car(Protocol):
    """What the laws look at: the guard, and what its shell was told to do."""

    guard: Guard
    policy: OwnerPolicy
    readings: Readings | None
    now_ms: int
    effects: list[fx.AnyGuardEffect]
    is_suspended: bool
    is_up: bool

    @property
    def has_processor(self) -> bool:
        """Whether attempts may use the processor."""
        ...


class OwnerLaws:
    """The laws of one car's story; the owner does not change the times of `yield` in it."""

    def __init__(self) -> None:
        self.state = GuardState.REFUSING
        self.left_ms = -math.inf
        """When it ceased to permit."""
        self.yielding_ms = self.suspended_ms = 0

    def restarted(self, now_ms: int) -> None:
        """The agent's process has begun anew: what it permitted before is over."""
        if self.state is GuardState.PERMITTING:
            self.left_ms = now_ms
        self.state = GuardState.REFUSING

    def see(self, car: Car) -> None:
        """An event was handled."""
        is_resumed = False
        for effect in car.effects:
            is_resumed = is_resumed or isinstance(effect, fx.ResumeRuntime)
            if isinstance(effect, fx.ReportPermit):
                self._turn(car, effect.state, is_resumed)

    def _turn(self, car: Car, state: GuardState, is_resumed: bool) -> None:
        before, self.state = self.state, state
        if before is not state and before is GuardState.PERMITTING:
            self.left_ms = car.now_ms
        if before is not state and state is GuardState.YIELDING:
            self.yielding_ms = car.now_ms
        if before is not state and state is GuardState.PERMITTING:
            has_finished = before is GuardState.YIELDING and not is_resumed
            is_settled = car.now_ms - self.left_ms >= car.policy.giving_back.settle_ms
            assert is_settled or has_finished, "it flaps faster than the owner's dwell"

    def check(self, car: Car) -> None:
        """Nobody but the owner has the car while it refuses, and no limit is passed."""
        state, giving = car.guard.state, car.policy.giving_back
        if state in (GuardState.REFUSING, GuardState.SETTLING):
            assert not car.is_up, "a runtime outlives the permit"
        if state is GuardState.YIELDING and not car.is_suspended:
            assert PATIENT.union({Refusal.YIELDING}).issuperset(car.guard.refusals)
            end_ms = self.yielding_ms + giving.finish_ms + giving.stop_ms
            assert car.now_ms < end_ms, "it takes more time than the owner gives"
        if state is GuardState.YIELDING and car.guard.running and car.is_suspended:
            end_ms = self.yielding_ms + giving.suspend_ms + giving.settle_ms
            assert car.now_ms < end_ms, "it stays in memory for ever"
        if car.has_processor:
            assert car.readings is not None
            check_limits(car.policy, car.readings, car.now_ms)
            check_caps(car)


def check_limits(policy: OwnerPolicy, readings: Readings, now_ms: int) -> None:
    """Every reading that the owner has a wish for is there, is fresh, and is as wished."""
    assert now_ms - readings.at_ms <= policy.giving_back.stale_ms
    assert readings.is_parked is True
    assert readings.is_driver_present is False
    assert readings.is_plugged_in is True or not policy.charge.needs_plug
    assert readings.is_link_metered is False or policy.link.allows_metered
    assert readings.place in policy.places.allowed or not policy.places.allowed
    activity = policy.activity
    allowed = (False, False, activity.allows_preconditioning, activity.allows_sentry)
    for name, is_allowed in zip(ABOUT, allowed, strict=True):
        answer = getattr(readings, name)
        is_known = answer is not None or not activity.needs_all
        assert is_allowed or (is_known and not answer)
    for limit in LIMITS:
        stop = getattr(getattr(policy, limit.table), limit.name)
        if stop is not None and limit is not QUIET_FAN:
            value = getattr(readings, limit.sensor)
            assert value is not None
            assert value <= stop if limit.is_ceiling else value >= stop


def check_caps(car: Car) -> None:
    """No account of the day has reached its cap."""
    assert car.readings is not None
    day = local_day(car.now_ms + car.readings.utc_offset_ms)
    assert not over(car.guard.usage.wear, car.policy.wear, day, is_permitting=True)
    cap = car.policy.link.day_bytes_max
    assert cap is None or link_bytes_on(car.guard.usage, day) < cap
