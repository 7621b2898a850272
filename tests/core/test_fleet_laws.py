"""The fleet under anything that can happen: safety, conservation, liveness, and exact restore."""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core import events as ev
from terafleet.core.ids import CustomerId, Epoch, WorkUnitId
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.work import BATCH_ENDS
from tests.core.fleet_world import (
    CUSTOMER,
    LARGE_MODEL,
    MODEL,
    NO_REQUEST,
    SETTINGS,
    Car,
    World,
    result_of,
)
from tests.core.restored_machine import check_restored

STEPS = (
    "enrol", "batch", "batch", "well", "well", "well", "well", "finish", "finish", "finish",
    "finish", "finish_mixed", "finish_mixed", "finish_together", "finish_together", "fail",
    "fail_often", "misfit", "malformed", "malformed", "late", "late", "stale", "release", "unload",
    "permit", "refuse", "silence", "heard", "reconnect", "reboot", "forget_and_reconnect", "tick",
    "long_tick", "cancel", "assemble", "drain", "remove", "leave", "lag", "shrink", "restart",
)  # fmt: skip


def step(world: World, name: str, chance: random.Random) -> None:
    """Do one thing to a world; what can't be done at this moment is skipped."""
    if name == "enrol" and len(world.cars) < 5:
        runtimes = chance.choice([("onnx",), ("onnx",), ("llama", "onnx")])
        name = f"{chance.randint(0, 9)}-{len(world.history)}"
        world.enrol(name, chance.choice([1, 1, 2, 3]), *runtimes)
        return
    if name == "batch":
        window_ms = chance.choice([30_000, 10_000_000])
        model = chance.choice([MODEL, MODEL, LARGE_MODEL])
        world.batch(f"batch-{len(world.history)}", chance.choice([0, 1, 20, 40]), window_ms, model)
        return
    if name in ("tick", "long_tick"):
        world.tick(chance.randint(1, 25_000) * (100 if name == "long_tick" else 1))
        return
    if name == "lag":
        world.lag(chance.randint(1, 60_000))
        return
    if name == "restart":
        world.happen(ev.ShardStarted(world.now_ms, SETTINGS))
        return
    if name in ("cancel", "assemble"):
        step_batch(world, name, chance)
        return
    if name == "well":
        well(world, chance)
        return
    if name == "finish_together":
        receipts = [world.receipt(car, chance.randint(1, 3)) for car in world.cars.values()]
        world.hand_in(*(receipt for receipt in receipts if receipt is not None))
        return
    if world.cars:
        step_car(world, name, chance)


def step_batch(world: World, name: str, chance: random.Random) -> None:
    if not world.records:
        return
    batch_id = chance.choice(sorted(world.records))
    if name == "cancel":
        customer = chance.choice([CUSTOMER, CustomerId("another")])
        world.happen(ev.BatchCancelled(world.now_ms, batch_id, customer, NO_REQUEST))
    elif batch_id in world.assembled:
        world.assemble(batch_id)


def step_car(world: World, name: str, chance: random.Random) -> None:
    car = world.cars[chance.choice(sorted(world.cars))]
    match name:
        case "finish":
            world.finish(car, chance.randint(1, 3))
        case "finish_mixed":
            finish_mixed(world, car, chance)
        case "fail":
            world.fail(car, chance.choice(list(Failure)))
        case "fail_often":
            for _ in range(4):
                world.fail(car)
        case "misfit":
            misfit(world, car, chance)
        case "malformed":
            malformed(world, car, chance)
        case "release":
            world.release(car)
        case "unload":
            world.release(car, LeaseEnding.MODEL_UNAVAILABLE)
        case "permit":
            world.permit(car)
        case "refuse":
            world.permit(car, Refusal.DRIVER_PRESENT)
        case "silence":
            world.fall_silent(car, chance.choice([0, 10_000, 30_000]))
        case "heard":
            world.speak_again(car)
        case "reconnect":
            world.connect(car)
        case "reboot":
            world.reboot(car)
        case "forget_and_reconnect":
            if car.held:
                car.held.popitem()
            world.connect(car)
        case "late":
            late(world, chance)
        case "drain":
            world.drain(car, chance.random() < 0.5)
        case "remove":
            world.remove(car)
        case "leave":
            world.leave(car)
        case "stale":
            stale(world, car, chance)
        case "shrink":
            set_slots(world, car, chance.choice([0, 1, 1, 3]))


def well(world: World, chance: random.Random) -> None:
    """There are cars and work again; no car forgets what it holds."""
    if len(world.cars) < 3:
        world.enrol(f"well-{len(world.history)}", 1, "llama", "onnx")
    if len(world.fleet.state.batches) < 3:
        step(world, "batch", chance)
    for car in world.cars.values():
        if not car.capability.slots:
            set_slots(world, car, 1)
        if not car.epoch:
            world.connect(car)
        if world.vehicle(car).is_draining:
            world.drain(car, False)
        if car.refusals:
            world.permit(car)


def set_slots(world: World, car: Car, slots: int) -> None:
    """A car offers another number of slots."""
    car.capability = msgspec.structs.replace(car.capability, slots=slots)
    world.happen(ev.CapabilityChanged(world.now_ms, car.vehicle_id, car.epoch, car.capability))


def finish_mixed(world: World, car: Car, chance: random.Random) -> None:
    """A car hands in some attempts of its next lease in any order, and not the first ones only."""
    event = world.receipt(car, 3)
    if event is not None:
        some = chance.sample(event.results, chance.randint(1, len(event.results)))
        world.hand_in(msgspec.structs.replace(event, results=tuple(some)))


def misfit(world: World, car: Car, chance: random.Random) -> None:
    """One of the results that a car hands in has a wrong number of answers."""
    event = world.receipt(car, chance.randint(1, 3))
    if event is not None:
        results = list(event.results)
        at = chance.randrange(len(results))
        wrong = chance.choice([{"answers": 0}, {"answers": 2}, {"answers_failed": 2}])
        results[at] = msgspec.structs.replace(results[at], **wrong)
        world.hand_in(msgspec.structs.replace(event, results=tuple(results)))


def malformed(world: World, car: Car, chance: random.Random) -> None:
    """A receipt names a unit twice, or one more: of any lease, handed in, forgotten, or none."""
    event = world.receipt(car, chance.randint(1, 2))
    if event is not None:
        units = sorted(world.fleet.state.units)
        past = [one.unit_id for one in event.results]
        more = chance.choice([*past, *units, WorkUnitId(chance.randint(-1, 100_000))])
        results = [*event.results, result_of(more)]
        chance.shuffle(results)
        world.hand_in(msgspec.structs.replace(event, results=tuple(results)))


def stale(world: World, car: Car, chance: random.Random) -> None:
    """A car hands in under an epoch that is over; it hands in again later."""
    event = world.receipt(car, chance.randint(1, 2))
    if event is not None:
        epoch = Epoch(chance.choice([0, max(0, car.epoch - 1), car.epoch + 1]))
        world.hand_in(msgspec.structs.replace(event, epoch=epoch))


def late(world: World, chance: random.Random) -> None:
    """A receipt comes once more: as it was, or in part, with more, or under another lease."""
    past = [one for group in world.history for one in group if type(one) is ev.AttemptsReturned]
    if not past:
        return
    first, second = chance.choice(past), chance.choice(past)
    lease_id, results = first.lease_id, first.results
    kind = chance.random()
    if kind < 0.2:
        lease_id = second.lease_id
    elif kind < 0.4:
        results = tuple(chance.sample(results, chance.randint(1, len(results))))
    elif kind < 0.6:
        results = (*results, *second.results)
    car = world.cars[chance.choice(sorted(world.cars))]
    if chance.random() < 0.7 and first.vehicle_id in world.cars:
        car = world.cars[first.vehicle_id]
    world.hand_in(world.returned(car, lease_id, *results))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), names=st.lists(st.sampled_from(STEPS), max_size=80))
def test_laws_hold_and_all_work_ends(seed: int, names: list[str]) -> None:
    world, chance = World(), random.Random(seed)
    for name in ["enrol", "enrol", "batch", *names]:
        step(world, name, chance)
    world.enrol("last-one", 2, "llama", "onnx")
    for car in world.cars.values():
        world.drain(car, False)
    for _ in range(3):
        world.finish_all()
    assert set(world.states().values()) <= set(BATCH_ENDS)
    assert not world.fleet.state.units, "work is left"
    assert not world.fleet.state.leases, "a lease is left"
    assert all(count == 1 for count in world.accepted.values()), "a unit counted twice"


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(STEPS), min_size=5, max_size=80),
    cut=st.integers(0, 60),
)
def test_a_restored_machine_goes_on_exactly_alike(seed: int, names: list[str], cut: int) -> None:
    world, chance = World(), random.Random(seed)
    for name in ["enrol", "enrol", "batch", *names]:
        step(world, name, chance)
    check_restored(world.history, min(cut, len(world.history)))


@pytest.mark.parametrize("seed", range(6))
def test_a_machine_restored_from_a_long_story_goes_on_exactly_alike(seed: int) -> None:
    world, chance = World(), random.Random(seed)
    for name in [chance.choice(STEPS) for _ in range(200)]:
        step(world, name, chance)
    for share in (3, 4, 5, 6, 7):
        check_restored(world.history, len(world.history) * share // 8)


@pytest.mark.parametrize("seed", range(8))
def test_long_stories_end_well(seed: int) -> None:
    world, chance = World(), random.Random(seed)
    for name in [chance.choice(STEPS) for _ in range(300)]:
        step(world, name, chance)
    brought = Counter(world.brought_by.values())
    assert len(brought) >= 10, "a story without receipts proves little"
    assert max(brought.values()) > 1, "none of them brought several results"
    world.enrol("last-one", 2, "llama", "onnx")
    for car in world.cars.values():
        world.drain(car, False)
    for _ in range(3):
        world.finish_all()
    assert set(world.states().values()) <= set(BATCH_ENDS)
    assert not world.fleet.state.units
