"""What the fleet pays of what owners ask: at least that, up to the plan's limit, and once."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core import events as ev
from terafleet.core.ids import BatchId
from terafleet.core.pricing import Plan, met_micro, reward_micro
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.core.units import MS_PER_HOUR
from tests.core.fleet_world import SETTINGS, Car, Receipt, World

BATCH = BatchId("batch")
LIMIT = 3_600_000
"""A micro-unit a ms."""
PLAN = Plan(asking_micro_per_hour_max=LIMIT)
LIAR_MICRO = 10**12


def at_work(units: int = 9) -> tuple[World, Car]:
    """A car with a lease of three units, 100 ms old."""
    world = World(msgspec.structs.replace(SETTINGS, plan=PLAN))
    car = world.enrol("a")
    world.batch(BATCH, units)
    world.tick(100)
    return world, car


def receipt(world: World, car: Car, asked_micro: int, units: int = 1) -> ev.AttemptsReturned:
    """What a car would hand in next, with what its owner asks."""
    event = world.receipt(car, units)
    assert event is not None
    return msgspec.structs.replace(event, asked_micro=asked_micro)


def earned(world: World, car: Car) -> int:
    """What the car's owner has earned."""
    return world.vehicle(car).reward_micro


def planned(event: ev.AttemptsReturned) -> int:
    """What the plan alone pays for results."""
    energy_mwh = sum(result.energy_mwh for result in event.results)
    tokens = sum(result.prompt_tokens + result.completion_tokens for result in event.results)
    return reward_micro(PLAN, energy_mwh, tokens)


def failed(world: World, car: Car, asked_micro: int) -> ev.AttemptFailed:
    """The car could not do its next unit."""
    (lease,) = world.leases(car)
    unit_id = next(iter(lease.unit_ids))
    told = (lease.lease_id, unit_id, Failure.RUNTIME_CRASHED, "", 1, asked_micro)
    return ev.AttemptFailed(world.now_ms, car.vehicle_id, car.epoch, *told)


def released(world: World, car: Car, asked_micro: int) -> ev.LeaseReleased:
    """The car gives its lease back."""
    (lease,) = world.leases(car)
    told = (lease.lease_id, LeaseEnding.OWNER_RETURNED, "", 1, asked_micro)
    return ev.LeaseReleased(world.now_ms, car.vehicle_id, car.epoch, *told)


def tell(world: World, car: Car, event: Receipt) -> None:
    """A car hands a receipt in, perhaps once more, and is done with what it tells of."""
    held = car.held.get(event.lease_id, [])
    if isinstance(event, ev.LeaseReleased):
        held.clear()
    elif isinstance(event, ev.AttemptFailed):
        held[:] = [one for one in held if one != event.unit_id]
    else:
        told = [result.unit_id for result in event.results]
        held[:] = [one for one in held if one not in told]
    if not held:
        car.held.pop(event.lease_id, None)
    world.happen(msgspec.structs.replace(event, at_ms=world.now_ms))


MAKERS: dict[str, Callable[[World, Car, int], Receipt]] = {
    "returned": receipt,
    "failed": failed,
    "released": released,
}


@pytest.mark.parametrize(("asked", "paid"), [(0, 0), (99, 99), (100, 100), (101, 100)])
def test_what_is_asked_is_paid_up_to_the_limit(asked: int, paid: int) -> None:
    assert met_micro(PLAN, asked, 100) == paid
    world, car = at_work()
    event = receipt(world, car, asked)
    tell(world, car, event)
    assert earned(world, car) == max(paid, planned(event))


def test_who_asks_for_less_than_the_plan_pays_gets_what_the_plan_pays() -> None:
    world, car = at_work()
    event = receipt(world, car, 1, units=3)
    richer = [msgspec.structs.replace(one, energy_mwh=10**4) for one in event.results]
    event = msgspec.structs.replace(event, results=tuple(richer))
    tell(world, car, event)
    assert earned(world, car) == planned(event) > 100


def test_receipts_that_come_late_and_together_are_paid_in_full() -> None:
    world, car = at_work()
    for _ in range(3):
        tell(world, car, receipt(world, car, 33))
    assert earned(world, car) == 99


@pytest.mark.parametrize("kind", ["returned", "failed", "released"])
def test_nothing_is_paid_twice(kind: str) -> None:
    world, car = at_work()
    event = MAKERS[kind](world, car, 60)
    tell(world, car, event)
    assert earned(world, car) == 60
    for _ in range(2):
        world.tick(50)
        tell(world, car, event)
    assert earned(world, car) == 60, "it was sent again"


@pytest.mark.parametrize("kind", ["failed", "released"])
def test_what_came_to_nothing_is_made_good(kind: str) -> None:
    world, car = at_work()
    tell(world, car, MAKERS[kind](world, car, 80))
    assert earned(world, car) == 80
    assert world.vehicle(car).energy_lost_mwh == 1


def test_a_wrong_answer_is_not_paid() -> None:
    world, car = at_work()
    event = receipt(world, car, 50)
    wrong = msgspec.structs.replace(event.results[0], answers=7)
    tell(world, car, msgspec.structs.replace(event, results=(wrong,)))
    assert earned(world, car) == 0


def test_what_is_of_a_lease_that_has_ended_is_not_paid() -> None:
    world, car = at_work()
    event = receipt(world, car, 50)
    tell(world, car, released(world, car, 0))
    tell(world, car, event)
    assert earned(world, car) == 0


def test_a_liar_gets_no_more_than_the_limit_for_the_time_of_its_leases() -> None:
    """However long it says that it worked, and however often it says so."""
    world, car = at_work()
    event = receipt(world, car, LIAR_MICRO)
    (lie,) = (msgspec.structs.replace(one, runtime_ms=10**12) for one in event.results)
    tell(world, car, msgspec.structs.replace(event, results=(lie,)))
    assert earned(world, car) == 100
    world.tick(50)
    tell(world, car, failed(world, car, LIAR_MICRO))
    assert earned(world, car) == 150
    tell(world, car, released(world, car, LIAR_MICRO))
    assert earned(world, car) == 150


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["tick", "returned", "failed", "released"]), st.integers(0, 2_000)
        ),
        max_size=20,
    )
)
def test_in_any_story_the_owner_gets_what_is_asked_within_the_limit(
    steps: list[tuple[str, int]],
) -> None:
    world, car = at_work(units=60)
    asked = plan = 0
    for name, figure in steps:
        if name == "tick":
            world.tick(figure)
        elif world.leases(car):
            (lease,) = world.leases(car)
            room = met_micro(PLAN, LIAR_MICRO, world.now_ms - lease.granted_ms) - lease.met_micro
            amount = min(figure, room)
            asked += amount
            event = MAKERS[name](world, car, amount)
            plan += planned(event) if isinstance(event, ev.AttemptsReturned) else 0
            tell(world, car, event)
    assert asked <= earned(world, car) <= asked + plan
    assert earned(world, car) <= plan + LIMIT * world.now_ms // MS_PER_HOUR
