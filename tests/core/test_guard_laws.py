"""The guard under any sequence of readings, grants, answers and exits."""

import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core import guard_events as ev
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import LeaseId, WorkUnitId
from terafleet.core.reasons import Failure, LeaseEnding
from tests.core.guard_world import CarWorld

STEPS = (
    "well", "well", "driver", "drive", "unplug", "empty", "hot", "blind", "tick", "long_tick",
    "heartbeat", "heartbeat", "grant", "grant", "old_grant", "model", "model", "finish", "finish",
    "break", "exit", "acknowledge", "revoke", "welcome", "fence", "restart", "unavailable",
    "late_heartbeat", "old_heartbeat", "late_finish", "nan", "pause", "work", "work", "work",
)  # fmt: skip


def readings(name: str, chance: random.Random) -> dict[str, Any]:
    """What the sensors of a car say that is well but for one thing."""
    by_name: dict[str, dict[str, Any]] = {
        "well": {},
        "driver": {"is_driver_present": True},
        "drive": {"is_parked": False},
        "unplug": {"is_plugged_in": False},
        "empty": {"soc_percent": chance.uniform(40, 60)},
        "hot": {"temperature_c": chance.uniform(30, 50)},
        "blind": {"temperature_c": None},
        "nan": {"soc_percent": math.nan},
    }
    return by_name[name]


def step(world: CarWorld, name: str, chance: random.Random) -> None:
    """Do one thing to a car."""
    match name:
        case "well" | "driver" | "drive" | "unplug" | "empty" | "hot" | "blind" | "nan":
            world.read(**readings(name, chance))
        case "tick":
            world.tick(chance.randint(1, 1_500))
        case "long_tick":
            world.tick(chance.randint(1, 20_000))
        case "heartbeat":
            world.heartbeat()
        case "work":
            work(world, chance)
        case "late_heartbeat":
            world.heartbeat(ago_ms=chance.randint(0, 30_000))
        case "old_heartbeat":
            world.heartbeat(epoch=world.guard.epoch + chance.choice([-1, 1]))
        case "grant":
            if len(world.guard.lease_ids) < world.slots:
                world.grant(chance.randint(1, 3))
        case "old_grant":
            world.grant(1, epoch=0)
        case "model":
            world.model_ready()
        case "finish":
            world.finish()
        case "break":
            world.break_attempt()
        case "exit":
            world.exit()
        case "acknowledge":
            world.acknowledge()
        case "welcome":
            world.welcome(world.guard.epoch + 1)
        case "fence":
            world.happen(ev.LinkFenced(world.now_ms, world.guard.epoch))
        case "restart":
            world.restart(from_snapshot=chance.random() < 0.5)
        case _:
            step_lease(world, name)


def work(world: CarWorld, chance: random.Random) -> None:
    """Bring a car to compute, if nothing is in the way."""
    if world.guard.epoch:
        world.heartbeat()
    else:
        world.welcome()
    world.permit()
    if len(world.guard.lease_ids) < world.slots:
        world.grant(chance.randint(1, 3))
    world.model_ready()


def late_finish(world: CarWorld) -> None:
    """The runtime gives an output for an attempt that was given up, or never began."""
    lease_id = LeaseId(world.lease_numbers)
    unit_id = WorkUnitId(lease_id * 100)
    if (lease_id, unit_id) not in world.running:
        sent = len(world.sent)
        figures = (1, 0, 5, 0, 3, 10, b"d")
        world.happen(ev.AttemptFinished(world.now_ms, lease_id, unit_id, *figures))
        assert len(world.sent) == sent, "nobody wants it any more"


def pause(world: CarWorld) -> None:
    """The owner pauses the car and thinks better of it."""
    paused = msgspec.structs.replace(world.policy, is_paused=True)
    world.happen(ev.PolicyChanged(world.now_ms, paused))
    assert not world.running
    world.happen(ev.PolicyChanged(world.now_ms, world.policy))


def step_lease(world: CarWorld, name: str) -> None:
    """Do one thing to what a car holds."""
    if name == "late_finish":
        late_finish(world)
    if name == "pause":
        pause(world)
    for lease_id in world.guard.lease_ids[:1]:
        if name == "revoke":
            ending = LeaseEnding.OVERDUE
            world.happen(ev.LeaseRevoked(world.now_ms, lease_id, ending))
    if name == "unavailable":
        for model_id in world.preparing[:]:
            world.preparing.remove(model_id)
            failure = Failure.MODEL_UNAVAILABLE
            world.happen(ev.ModelUnavailable(world.now_ms, model_id, failure, "why"))


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 3),
    names=st.lists(st.sampled_from(STEPS), max_size=120),
)
def test_the_owner_comes_first_and_nothing_is_lost(seed: int, slots: int, names: list[str]) -> None:
    world, chance = CarWorld(slots), random.Random(seed)
    world.welcome()
    world.permit()
    for name in names:
        step(world, name, chance)
    world.read(is_driver_present=True)
    assert not world.running
    assert not world.guard.lease_ids
    if world.is_killed:
        world.exit()
    assert world.guard.state is GuardState.REFUSING
    handed_in = {(one.lease_id, one.unit_id) for one in world.sent}
    kept = {(one.lease_id, one.unit_id) for one in world.guard.receipts()}
    assert kept <= handed_in
    world.restart()
    assert {(one.lease_id, one.unit_id) for one in world.guard.receipts()} == kept


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(STEPS), max_size=60),
)
def test_a_well_car_permits_in_the_end(seed: int, names: list[str]) -> None:
    world, chance = CarWorld(), random.Random(seed)
    world.welcome()
    for name in names:
        step(world, name, chance)
    if world.is_killed:
        world.exit()
    for _ in range(4):
        world.read()
        world.tick(1_000)
    assert world.guard.state is GuardState.PERMITTING
    assert world.guard.refusals == ()


@pytest.mark.parametrize("seed", range(6))
def test_long_stories_of_a_car_end_well(seed: int) -> None:
    chance = random.Random(seed)
    world = CarWorld(slots=1 + seed % 3)
    seen = set()
    for name in [chance.choice(STEPS) for _ in range(400)]:
        step(world, name, chance)
        seen.add(world.guard.state)
    assert seen == set(GuardState), "a story without a state proves little"
    assert len(world.sent) > 50
    world.read(is_driver_present=True)
    assert not world.running
    assert not world.guard.lease_ids
    while world.guard.receipts():
        world.acknowledge()
    assert world.guard.held() == ()
