"""The guard under any sequence of readings, grants, answers and exits."""

import math
import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core import guard_events as ev
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import WHOLE_LEASE, LeaseId, ModelId, ReceiptId
from terafleet.core.policy import PATIENT
from terafleet.core.reasons import LeaseEnding, Refusal
from tests.core.guard_policy_world import OWNER_STEPS, any_car, owner_step
from tests.core.guard_world import MODEL, CarWorld, name_of, unit

OTHER_MODEL = ModelId("other")
THIRD_MODEL = ModelId("third")
STEPS = (
    "well", "well", "driver", "drive", "unplug", "empty", "hot", "blind", "tick", "long_tick",
    "heartbeat", "heartbeat", "grant", "grant", "old_grant", "model", "model", "finish", "finish",
    "break", "exit", "acknowledge", "revoke", "welcome", "fence", "restart", "unavailable",
    "late_heartbeat", "old_heartbeat", "late_finish", "nan", "pause", "work", "work", "work",
    "finish_all", "large", "stopped", "stopped", "confirm", "other_model", "work", "work", "break",
    "keep", "keep", "old_keep", "warm", "warm", "warm", "work", "finish", "work", "finish",
)  # fmt: skip


def readings(name: str, chance: random.Random) -> dict[str, Any]:
    """What the sensors of a car say that is well but for one thing."""
    by_name: dict[str, dict[str, Any]] = {
        "well": {},
        "driver": {"is_driver_present": True},
        "drive": {"is_parked": False},
        "unplug": {"is_plugged_in": False},
        "empty": {"soc_percent": chance.uniform(40, 60)},
        "hot": {"compute_temperature_c": chance.uniform(30, 50)},
        "blind": {"compute_temperature_c": None},
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
            world.get_to_work(chance.randint(1, 3))
        case "late_heartbeat":
            world.heartbeat(ago_ms=chance.randint(0, 30_000))
        case "old_heartbeat":
            world.heartbeat(epoch=world.guard.epoch + chance.choice([-1, 1]))
        case "grant":
            if len(world.guard.lease_ids) < world.slots:
                world.grant(chance.randint(1, 5))
        case "other_model":
            if len(world.guard.lease_ids) <= world.slots:
                world.grant(chance.randint(1, 5), model_id=OTHER_MODEL)
        case "keep" | "old_keep" | "warm":
            step_memory(world, name, chance)
        case "old_grant":
            world.grant(1, epoch=0)
        case "model":
            if world.preparing:
                world.model_ready(chance.choice(world.preparing))
        case "exit":
            world.exit(is_told_first=chance.random() < 0.5)
        case "welcome":
            world.welcome(world.guard.epoch + 1)
        case "fence":
            world.happen(ev.LinkFenced(world.now_ms, world.guard.epoch))
        case "restart":
            world.restart(from_snapshot=chance.random() < 0.5)
        case _:
            step_lease(world, name)
            step_attempts(world, name, chance)
            owner_step(world, name, chance)


def step_memory(world: CarWorld, name: str, chance: random.Random) -> None:
    """The control plane wants some models in memory, or none; perhaps the car can load them."""
    wanted = chance.sample([MODEL, OTHER_MODEL, THIRD_MODEL], chance.randint(0, 3))
    if name == "old_keep":
        world.keep(*wanted, epoch=world.guard.epoch + chance.choice([-1, 1]))
        return
    if name == "warm":
        if not world.guard.epoch:
            world.welcome()
        world.permit()
    world.keep(*wanted)
    for model_id in world.preparing[:] if name == "warm" else ():
        if chance.random() < 0.5:
            world.model_ready(model_id)
        else:
            world.fail_load(model_id)


def late_finish(world: CarWorld) -> None:
    """The runtime gives outputs for a lease that has gone, or that is on no slot."""
    lease_id = LeaseId(world.lease_numbers)
    if lease_id not in world.running and (lease_id, ReceiptId(lease_id * 100)) not in world.kept:
        sent = len(world.sent)
        world.tell(lease_id, [unit(lease_id), unit(lease_id, 1)])
        assert len(world.sent) == sent, "nobody wants it any more"


def pause(world: CarWorld) -> None:
    """The owner pauses the car and thinks better of it."""
    policy = world.policy
    world.change_policy(msgspec.structs.replace(policy, is_paused=True))
    assert not world.running
    world.change_policy(policy)


def step_attempts(world: CarWorld, name: str, chance: random.Random) -> None:
    """Let attempts of a car end, or their receipts be kept."""
    at = chance.randint(0, 2)
    match name:
        case "finish":
            world.finish(chance.randint(1, 4), at)
        case "finish_all":
            while world.running:
                world.finish(chance.randint(1, 4), at)
        case "large":
            world.finish(1, at, is_large=True)
        case "break":
            world.break_attempt(at)
        case "stopped":
            world.end_stopped(chance.randint(0, 3), chance.choice([0, 4]))
        case "acknowledge":
            world.acknowledge(chance.randint(1, 4))
        case "confirm":
            confirm(world, chance)


def confirm(world: CarWorld, chance: random.Random) -> None:
    """Acknowledgements come in any order, some twice, some again, some of what never was."""
    sent = [name_of(receipt) for receipt in world.sent]
    unknown = [(LeaseId(10**6), ReceiptId(1)), (LeaseId(world.lease_numbers), WHOLE_LEASE)]
    world.confirm(*chance.choices([*sent, *unknown], k=chance.randint(0, 6)))


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
            world.fail_load(model_id)


def takes_the_car_back(world: CarWorld) -> None:
    """The owner drives away, and gets everything."""
    world.read(is_parked=False)
    assert not world.running
    assert not world.guard.lease_ids
    if world.is_up:
        world.exit()
    assert world.guard.state is GuardState.REFUSING
    kept = world.guard.receipts()
    world.restart()
    assert world.guard.receipts() == kept


@settings(max_examples=150)
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
    takes_the_car_back(world)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 3),
    names=st.lists(st.sampled_from(STEPS + 2 * OWNER_STEPS), max_size=100),
)
def test_any_owner_comes_first_whatever_the_sensors_say(
    seed: int, slots: int, names: list[str]
) -> None:
    chance = random.Random(seed)
    world = any_car(chance, slots)
    world.welcome()
    world.permit()
    for name in names:
        step(world, name, chance)
    takes_the_car_back(world)


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
    for name in [chance.choice(STEPS) for _ in range(600)]:
        step(world, name, chance)
        seen.add(world.guard.state)
    assert seen == set(GuardState), "a story without a state proves little"
    assert len(world.sent) > 50
    assert any(len(receipt.results) > 1 for receipt in world.sent)
    assert world.forgotten
    assert world.failed_loads
    takes_the_car_back(world)
    while world.guard.receipts():
        world.acknowledge(3)
    assert world.guard.held() == ()


def test_stories_of_any_owner_see_all_that_can_happen() -> None:
    """Else the law above would say little."""
    refusals: Counter[Refusal] = Counter()
    kinds: Counter[str] = Counter()
    for seed in range(24):
        chance = random.Random(seed)
        world = any_car(chance, 1 + seed % 3)
        world.welcome()
        for name in [chance.choice(STEPS + 2 * OWNER_STEPS) for _ in range(120)]:
            step(world, name, chance)
            refusals.update(world.guard.refusals)
            kinds.update(type(effect).__name__ for effect in world.effects)
            is_yielding = world.guard.state is GuardState.YIELDING
            if is_yielding and not world.is_suspended:
                kinds["finishing" if world.guard.running else "stopping"] += 1
            if is_yielding and world.is_suspended and not world.is_killed:
                kinds["suspended"] += 1
    for kind in ("finishing", "stopping", "suspended", "ResumeRuntime", "StopAttempts"):
        assert kinds[kind] >= 5, kind
    assert len(refusals) >= 20, "most of the reasons"
    caps = {Refusal.DATA_CAP, Refusal.WEAR_BUDGET, Refusal.REWARD_TOO_LOW}
    assert caps | PATIENT - {Refusal.AGENT_STOPPING, Refusal.OUTSIDE_NETWORK_HOURS} <= set(refusals)
