"""Cars that are given back in stages: at work, with an owner who gives them time."""

import msgspec

from terafleet.core import guard_events as ev
from terafleet.core.ids import LeaseId
from terafleet.core.policy import OwnerPolicy
from terafleet.core.reasons import Refusal
from terafleet.core.work import AttemptResult
from tests.core.guard_policy_world import NEVER, learn_brief_stops
from tests.core.guard_world import DIGEST, POLICY, CarWorld, unit

SETTLE_MS = POLICY.giving_back.settle_ms
FINISH_MS, STOP_MS, SUSPEND_MS = 2_000, 400, 3_000
HOURS = (Refusal.YIELDING, Refusal.OUTSIDE_COMPUTE_HOURS)
DRIVER = (Refusal.DRIVER_PRESENT,)


def policy_of(**giving: int) -> OwnerPolicy:
    """The tests' policy with other times of giving back."""
    times = msgspec.structs.replace(POLICY.giving_back, **giving)
    return msgspec.structs.replace(POLICY, giving_back=times)


def patient(world: CarWorld) -> None:
    """The hours for compute are over: nobody waits at the car."""
    hours = msgspec.structs.replace(world.policy.hours, compute=NEVER)
    world.change_policy(msgspec.structs.replace(world.policy, hours=hours))


def well_again(world: CarWorld) -> None:
    """It is within the hours for compute."""
    hours = msgspec.structs.replace(world.policy.hours, compute=())
    world.change_policy(msgspec.structs.replace(world.policy, hours=hours))


def busy(slots: int = 1, units: int = 1, **giving: int) -> tuple[CarWorld, LeaseId]:
    """A car at work, whose owner gives it these times."""
    world = CarWorld(slots, policy_of(**giving))
    return world, world.work(units)


def learn(world: CarWorld, runtime_ms: int) -> None:
    """Let the car see how long an attempt of the model takes."""
    lease_id = world.grant()
    world.running.pop(lease_id)
    world.open_units[lease_id].clear()
    result = AttemptResult(unit(lease_id), 1, 0, 5, 0, 3, runtime_ms)
    world.happen(ev.AttemptsFinished(world.now_ms, lease_id, (result,), DIGEST, b"parcel"))


def kinds(world: CarWorld) -> list[type]:
    """What the last event had the shell do."""
    return [type(effect) for effect in world.effects]


def suspendable(slots: int = 1, **giving: int) -> CarWorld:
    """A car at work that has seen many doors open and close."""
    times = {"suspend_ms": SUSPEND_MS, **giving}
    world = CarWorld(slots, policy_of(**times))
    world.welcome()
    learn_brief_stops(world)
    world.permit()
    world.grant(units=2)
    world.model_ready()
    assert world.has_processor
    return world
