"""Models are kept loaded under anything that can happen to cars, and through every restart."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core import effects as fx
from terafleet.core.fleet import Fleet
from terafleet.core.reasons import Refusal
from tests.core.fleet_sessions_world import CHAT
from tests.core.fleet_warm_world import GB, HUGE, WarmWorld
from tests.core.fleet_world import LARGE_MODEL, MODEL
from tests.core.restored_machine import check_restored
from tests.core.test_fleet_sessions_laws import STEPS, step

OWN = ("warm", "warm", "load", "load", "load", "unload", "fail_load", "lend", "night")
MODELS = (MODEL, CHAT, GB, HUGE, LARGE_MODEL)
ALL = (*STEPS, *OWN, *OWN, *OWN)


def act(world: WarmWorld, name: str, chance: random.Random) -> None:
    """Do one thing to a world; what can't be done at this moment is skipped."""
    if name == "warm":
        world.warm(chance.choice([0, 1, 1, 2, 3, 5, 20]), chance.choice(MODELS))
    elif name == "night":
        world.tick(chance.choice([60_000, 700_000, 4_000_000]))
    elif name not in OWN:
        step(world, name, chance)
    elif world.cars:
        car = world.cars[chance.choice(sorted(world.cars))]
        match name:
            case "load":
                world.load(car)
            case "unload":
                world.unload(car)
            case "fail_load":
                world.fail_load(car, chance.choice(MODELS))
            case "lend":
                world.lend(car, chance.choice([256, 1_100, 2_000, 4_000]))


def story(seed: int, names: list[str]) -> WarmWorld:
    """A world in which all this has happened."""
    world, chance = WarmWorld(), random.Random(seed)
    for name in ["enrol", "enrol", "enrol", "warm", "warm", *names]:
        act(world, name, chance)
    return world


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), names=st.lists(st.sampled_from(ALL), max_size=80))
def test_the_number_is_kept_and_nothing_is_left(seed: int, names: list[str]) -> None:
    world = story(seed, names)
    for needs in MODELS:
        world.warm(0, needs)
    state = world.fleet.state
    assert not state.warm
    for car in world.cars.values():
        if world.vehicle(car).is_silent:
            world.speak_again(car)
        assert not world.told.get(car.vehicle_id) or not car.epoch
    assert not any(vehicle.keeps for vehicle in state.vehicles.values())


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(ALL), min_size=5, max_size=80),
    cut=st.integers(0, 60),
)
def test_a_restored_machine_chooses_exactly_alike(seed: int, names: list[str], cut: int) -> None:
    world = story(seed, names)
    check_restored(world.history, min(cut, len(world.history)))


@pytest.mark.parametrize("seed", range(3))
def test_long_stories_hold_all_that_can_happen(seed: int) -> None:
    chance = random.Random(seed)
    world = story(seed, [chance.choice(ALL) for _ in range(300)])
    replayed = Fleet()
    said = [one for events in world.history for one in replayed.handle(*events)]
    told = [one for one in said if isinstance(one, fx.KeepLoaded)]
    assert any(not one.model_ids for one in told), "a story in which nobody goes proves little"
    assert any(len(one.model_ids) > 1 for one in told), "nor one without cars that keep several"
    for share in (3, 5, 7):
        check_restored(world.history, len(world.history) * share // 8)


def test_a_wish_outlives_a_restart() -> None:
    world = WarmWorld()
    first, second = world.enrol("first"), world.enrol("second")
    third = world.enrol("third")
    world.warm(2)
    world.load(first)
    world.fail_load(second)
    before = len(world.history)
    world.permit(third, Refusal.DRIVER_PRESENT)
    world.connect(first)
    world.tick(1_000_000)
    world.permit(third)
    check_restored(world.history, before)
    assert world.chosen() == ["first", "second"]


def test_who_has_been_there_longest_outlives_a_restart() -> None:
    world = WarmWorld()
    first = world.enrol("first")
    world.enrol("second")
    world.drain(first)
    world.drain(first, False)
    before = len(world.history)
    world.warm(1)
    assert world.chosen() == ["second"], "of two that are alike"
    check_restored(world.history, before)
