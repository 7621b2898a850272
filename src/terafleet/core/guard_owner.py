"""The owner's side of the guard: whether the car computes, and in which stages it is given back.

What is to be done is told to `tell`; the leases and the runtime belong to the guard.
"""

from collections.abc import Callable
from typing import Protocol

from terafleet.core.guard_effects import (
    AnyGuardEffect,
    GuardState,
    KillRuntime,
    ReportPermit,
    ResumeRuntime,
    SuspendRuntime,
)
from terafleet.core.guard_leases import CarLease, CarLeases
from terafleet.core.guard_models import CarModels
from terafleet.core.guard_permit import Permit
from terafleet.core.guard_yield import GivingBack, ShortStops, Stage
from terafleet.core.policy import PATIENT, finish_ms
from terafleet.core.reasons import LeaseEnding, Refusal

Found = tuple[Refusal, ...]

PRESS_MS_MIN = 100
"""A kill is not repeated sooner, whatever the owner says: the kernel needs the time as well."""


class Tell(Protocol):
    """Takes an effect; one that `is_first` is done before all others of its group."""

    def __call__(self, effect: AnyGuardEffect, *, is_first: bool = False) -> None:
        """Take it."""
        ...


class OwnerSide:
    """Refusing, settling, permitting, yielding: docs/states/guard.md has the picture."""

    def __init__(
        self,
        permit: Permit,
        stops: ShortStops,
        leases: CarLeases,
        models: CarModels,
        tell: Tell,
        give_back: Callable[[CarLease, LeaseEnding], None],
    ) -> None:
        """`give_back` ends a lease and lets the control plane know why."""
        self._permit = permit
        self._giving = GivingBack(stops)
        self._leases = leases
        self._models = models
        self._tell = tell
        self._give_back_one = give_back
        self._settled_ms = 0
        self._suspended_ms = 0
        self.state = GuardState.REFUSING
        self.refusals: Found = (Refusal.AGENT_STARTING,)

    @property
    def is_permitting(self) -> bool:
        """Whether the car computes, and takes work."""
        return self.state is GuardState.PERMITTING

    @property
    def is_finishing(self) -> bool:
        """Whether work at hand may still end by itself although the owner wants the car back."""
        return self._is_at(Stage.FINISHING)

    @property
    def is_computing(self) -> bool:
        """Whether attempts that were started have the processor."""
        return self.is_permitting or self.is_finishing

    @property
    def keeps_leases(self) -> bool:
        """Whether leases may stand at all."""
        return self.is_computing or self._is_at(Stage.SUSPENDED)

    @property
    def stops(self) -> ShortStops:
        """How long the car was wanted back of late."""
        return self._giving.stops

    def forget_process(self) -> None:
        """Nothing is known of a car whose agent has just begun."""
        self.state = GuardState.REFUSING
        self.refusals = (Refusal.AGENT_STARTING,)
        self.stops.forget_process()

    def deadline_ms(self) -> int | None:
        """When time alone changes something."""
        deadlines = [] if self._permit.turns_ms is None else [self._permit.turns_ms]
        if self.state is GuardState.SETTLING or self._is_resuming:
            deadlines.append(self._settled_ms)
        elif self.state is GuardState.YIELDING:
            deadlines.append(self._giving.until_ms)
        return min(deadlines, default=None)

    def runtime_exited(self) -> bool:
        """The runtime is gone; whether that ends a yield."""
        if self.state is not GuardState.YIELDING:
            return False
        self.give_back(self.ending)
        self.state = GuardState.REFUSING
        return True

    @property
    def ending(self) -> LeaseEnding:
        """Why leases are given back for what holds at this moment."""
        return _ending_for(self.refusals)

    def give_back(self, ending: LeaseEnding) -> None:
        """End every lease."""
        for lease in self._leases:
            self._give_back_one(lease, ending)

    def judge(self, now_ms: int) -> None:
        """Bring the state in line with what the owner allows."""
        found = self._permit.found(self.is_computing, now_ms)
        self.stops.look(found, now_ms)
        if self.is_permitting and found:
            self._yield(found, now_ms)
        elif self.state is GuardState.YIELDING:
            self._go_on_yielding(found, now_ms)
        elif found:
            self._enter(GuardState.REFUSING, found)
        elif not self.is_permitting:
            self._settle(now_ms)

    def _settle(self, now_ms: int) -> None:
        if self.state is not GuardState.SETTLING:
            self._settled_ms = now_ms + self._permit.policy.giving_back.settle_ms
        if now_ms >= self._settled_ms:
            self._enter(GuardState.PERMITTING, ())
        else:
            self._enter(GuardState.SETTLING, (Refusal.SETTLING,))

    def _enter(self, state: GuardState, found: Found) -> None:
        if (state, found) != (self.state, self.refusals):
            self.state, self.refusals = state, found
            self._tell(ReportPermit(state, found))

    def _enter_yielding(self, found: Found) -> None:
        self._enter(GuardState.YIELDING, (Refusal.YIELDING, *found))

    # The stages.

    def _is_at(self, stage: Stage) -> bool:
        return self.state is GuardState.YIELDING and self._giving.stage is stage

    @property
    def _is_resuming(self) -> bool:
        return self._is_at(Stage.SUSPENDED) and self._giving.is_resuming

    def _yield(self, found: Found, now_ms: int) -> None:
        """Begin to give the car back, in the gentlest way that the owner allows for the reasons."""
        giving, policy = self._giving, self._permit.policy
        giving.stops.begin(found, now_ms)
        patience_ms = finish_ms(policy, found)

        def fits(lease: CarLease) -> bool:
            return self._left_ms(lease, now_ms) <= patience_ms

        if not self._models.is_runtime_up:
            self.give_back(_ending_for(found))
            self._enter(GuardState.REFUSING, found)
        elif patience_ms and self._keep_only(fits, found):
            giving.enter(Stage.FINISHING, now_ms + patience_ms)
            self._enter_yielding(found)
        elif self._may_stop(found):
            self._stop(found, now_ms)
        elif giving.may_suspend(policy, found) and self._keep_only(_is_batch, found):
            self._tell(SuspendRuntime(), is_first=True)
            self._suspended_ms = now_ms
            giving.enter(Stage.SUSPENDED, now_ms + policy.giving_back.suspend_ms)
            self._enter_yielding(found)
        else:
            self._leave(found, now_ms)

    def _go_on_yielding(self, found: Found, now_ms: int) -> None:
        """One more look at a car that is being given back; reasons may have come or gone."""
        is_over = now_ms >= self._giving.until_ms
        match self._giving.stage:
            case Stage.FINISHING:
                self._go_on_finishing(found, now_ms)
            case Stage.SUSPENDED:
                self._go_on_suspended(found, now_ms)
            case Stage.STOPPING if is_over or not PATIENT.issuperset(found):
                self._leave(found, now_ms)
            case Stage.KILLING if is_over:
                self._kill(now_ms)
                self._enter_yielding(found)
            case _:
                self._enter_yielding(found)

    def _go_on_finishing(self, found: Found, now_ms: int) -> None:
        policy = self._permit.policy
        if not found:
            self._enter(GuardState.PERMITTING, ())
        elif now_ms < self._giving.until_ms and finish_ms(policy, found) and self._leases.running:
            self._enter_yielding(found)
        elif self._may_stop(found):
            self._stop(found, now_ms)
        else:
            self._leave(found, now_ms)

    def _may_stop(self, found: Found) -> bool:
        """Whether there is something to end by itself, and the time for it."""
        has_time = self._permit.policy.giving_back.stop_ms > 0 and PATIENT.issuperset(found)
        return has_time and self._leases.running > 0

    def _stop(self, found: Found, now_ms: int) -> None:
        """Give all back, and let the runtime end by itself what it is about."""
        self.give_back(_ending_for(found))
        self._giving.enter(Stage.STOPPING, now_ms + self._permit.policy.giving_back.stop_ms)
        self._enter_yielding(found)

    def _go_on_suspended(self, found: Found, now_ms: int) -> None:
        """Resume once all is well for long enough to settle; leave if that does not come."""
        giving, policy = self._giving, self._permit.policy
        is_lasting = giving.may_suspend(policy, found) and now_ms < giving.until_ms
        if not self._leases.running or (found and not is_lasting):
            self._leave(found, now_ms)
            return
        if found:
            giving.is_resuming = False
        elif not giving.is_resuming:
            giving.is_resuming = True
            self._settled_ms = now_ms + policy.giving_back.settle_ms
        if giving.is_resuming and now_ms >= self._settled_ms:
            self._tell(ResumeRuntime())
            self._leases.went_on(now_ms - self._suspended_ms)
            self._enter(GuardState.PERMITTING, ())
        else:
            self._enter_yielding(found)

    def _leave(self, found: Found, now_ms: int) -> None:
        """Give all back: off the processor first, all else after."""
        self._tell(SuspendRuntime(), is_first=True)
        self.give_back(_ending_for(found or self.refusals))
        self._kill(now_ms)
        self._enter_yielding(found)

    def _kill(self, now_ms: int) -> None:
        release_ms = max(PRESS_MS_MIN, self._permit.policy.giving_back.release_ms)
        self._giving.enter(Stage.KILLING, now_ms + release_ms)
        self._tell(KillRuntime())

    def _keep_only(self, is_kept: Callable[[CarLease], bool], found: Found) -> bool:
        """Give back the leases that don't run or shall not be kept; False if none would be left."""
        if not any(lease.is_running and is_kept(lease) for lease in self._leases):
            return False
        for lease in self._leases:
            if not (lease.is_running and is_kept(lease)):
                self._give_back_one(lease, _ending_for(found))
        return True

    def _left_ms(self, lease: CarLease, now_ms: int) -> int:
        """How long the attempt at hand is likely to go on; of an unknown model, not at all."""
        return self._models.typical_ms(lease.model_id) - (now_ms - lease.began_ms)


def _is_batch(lease: CarLease) -> bool:
    """A customer of a batch can wait, one of a live session can't."""
    return not lease.is_session


def _ending_for(found: Found) -> LeaseEnding:
    if Refusal.AGENT_STOPPING in found:
        return LeaseEnding.AGENT_STOPPED
    if Refusal.DRIVER_PRESENT in found or Refusal.NOT_PARKED in found:
        return LeaseEnding.OWNER_RETURNED
    return LeaseEnding.CONDITIONS_CHANGED
