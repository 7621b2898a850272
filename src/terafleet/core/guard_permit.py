"""What holds against computing: the owner's rule, the asking price, and the agent's own end."""

import math

from terafleet.core.guard_accounts import CarAccounts
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_turns import next_change_ms
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import refusals
from terafleet.core.units import MS_PER_HOUR

PERCENT = 100
ASKING_RESUME_PERCENT = 95
"""A car that asked too much permits again only once it asks a little less than what is paid."""


class Permit:
    """Owner policy, newest readings and the fleet's limit, and what they come to."""

    def __init__(self, accounts: CarAccounts) -> None:
        self._accounts = accounts
        self._readings: Readings | None = None
        self._computer_mw = 0
        self.policy = OwnerPolicy()
        self.is_stopping = False
        self.turns_ms: int | None = None
        """When time alone may change the answer."""

    def begin(self, policy: OwnerPolicy, computer_mw: int, at_ms: int) -> None:
        """The agent's process has begun; its computer draws so much when all slots work."""
        self._readings = None
        self._computer_mw = computer_mw
        self.is_stopping = False
        self._accounts.forget_process(at_ms)
        self.change_policy(policy, at_ms)

    def change_policy(self, policy: OwnerPolicy, at_ms: int) -> None:
        """The owner allows something else."""
        self.policy = policy
        self._accounts.change_policy(policy, at_ms)

    def read(self, readings: Readings, at_ms: int) -> None:
        """The sensors were read."""
        self._readings = readings
        self._accounts.read(readings, at_ms)

    def meet_up_to(self, micro_per_hour: int) -> None:
        """The fleet meets an owner's asking price up to so much."""
        self._accounts.limit_micro_per_hour = micro_per_hour

    def energy_mwh(self, work_ms: float) -> int:
        """What the computer takes in so much time of work, at the most."""
        return math.ceil(self._computer_mw * work_ms / MS_PER_HOUR)

    def found(self, is_permitting: bool, now_ms: int) -> tuple[Refusal, ...]:
        """Every reason against computing; `is_permitting` chooses the level of limits."""
        usage = self._accounts.usage
        self.turns_ms = next_change_ms(self.policy, self._readings, now_ms)
        found = refusals(self.policy, self._readings, usage, is_permitting, now_ms)
        if self._asks_too_much(is_permitting):
            found = (*found, Refusal.REWARD_TOO_LOW)
        return (Refusal.AGENT_STOPPING, *found) if self.is_stopping else found

    def _asks_too_much(self, is_permitting: bool) -> bool:
        """Without a word of the fleet nobody is asked; without readings the car refuses anyway."""
        asking_micro = self._accounts.asking_per_hour(self._computer_mw)
        limit_micro = self._accounts.limit_micro_per_hour
        if asking_micro is None or limit_micro is None:
            return False
        percent = PERCENT if is_permitting else ASKING_RESUME_PERCENT
        return asking_micro * PERCENT > limit_micro * percent
