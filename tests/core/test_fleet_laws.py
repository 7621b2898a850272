"""The fleet under anything that can happen: safety, conservation, liveness, and exact restore."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core import events as ev
from terafleet.core.fleet import Fleet
from terafleet.core.ids import CustomerId, Epoch
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.work import BATCH_ENDS
from tests.core.fleet_world import CUSTOMER, LARGE_MODEL, MODEL, NO_REQUEST, SETTINGS, Car, World

STEPS = (
    "enrol",
    "batch",
    "finish",
    "finish",
    "finish",
    "fail",
    "fail_often",
    "short_answer",
    "release",
    "unload",
    "permit",
    "refuse",
    "silence",
    "heard",
    "reconnect",
    "reboot",
    "forget_and_reconnect",
    "tick",
    "long_tick",
    "cancel",
    "assemble",
    "late",
    "drain",
    "remove",
    "leave",
    "lag",
    "stale",
    "shrink",
    "restart",
)


def step(world: World, name: str, chance: random.Random) -> None:
    """Do one thing to a world; what can't be done at this moment is skipped."""
    if name == "enrol" and len(world.cars) < 5:
        runtimes = chance.choice([("onnx",), ("onnx",), ("llama", "onnx")])
        name = f"{chance.randint(0, 9)}-{len(world.history)}"
        world.enrol(name, chance.randint(1, 3), *runtimes)
        return
    if name == "batch":
        window_ms = chance.choice([30_000, 10_000_000])
        model = chance.choice([MODEL, MODEL, LARGE_MODEL])
        world.batch(f"batch-{len(world.history)}", chance.choice([0, 1, 7, 40]), window_ms, model)
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
            world.finish(car)
        case "fail":
            world.fail(car, chance.choice(list(Failure)))
        case "fail_often":
            for _ in range(4):
                world.fail(car)
        case "short_answer":
            world.finish(car, answers=0)
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
            slots = chance.randint(0, 3)
            car.capability = msgspec.structs.replace(car.capability, slots=slots)
            event = ev.CapabilityChanged(world.now_ms, car.vehicle_id, car.epoch, car.capability)
            world.happen(event)


def stale(world: World, car: Car, chance: random.Random) -> None:
    """A car's attempt is handed in under an epoch that is over; it hands it in again later."""
    attempt = world.next_attempt(car)
    if attempt is not None:
        epoch = Epoch(chance.choice([0, max(0, car.epoch - 1), car.epoch + 1]))
        figures = (1, 0, 5, 0, 3, 10)
        world.hand_in(ev.AttemptReturned(world.now_ms, car.vehicle_id, epoch, *attempt, *figures))


def late(world: World, chance: random.Random) -> None:
    """A receipt comes once more: of this car, or with the number of another's attempt."""
    past = [one for group in world.history for one in group if type(one) is ev.AttemptReturned]
    if past:
        lease_id, unit_id = (chance.choice(past).lease_id, chance.choice(past).unit_id)
        if chance.random() < 0.8:
            event = chance.choice(past)
            lease_id, unit_id = event.lease_id, event.unit_id
        car = world.cars[chance.choice(sorted(world.cars))]
        now_ms, vehicle_id, epoch = world.now_ms, car.vehicle_id, car.epoch
        world.hand_in(
            ev.AttemptReturned(now_ms, vehicle_id, epoch, lease_id, unit_id, 1, 0, 5, 0, 3, 10)
        )


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
    check_restored(world, min(cut, len(world.history)))


@pytest.mark.parametrize("seed", range(6))
def test_a_machine_restored_from_a_long_story_goes_on_exactly_alike(seed: int) -> None:
    world, chance = World(), random.Random(seed)
    for name in [chance.choice(STEPS) for _ in range(200)]:
        step(world, name, chance)
    for share in (3, 4, 5, 6, 7):
        check_restored(world, len(world.history) * share // 8)


def check_restored(world: World, cut: int) -> None:
    """A machine restored after so many groups of events is the one that handled all of them."""
    first = Fleet()
    for events in world.history[:cut]:
        first.handle(*events)
    second = Fleet(first.snapshot())
    second.check_invariants()
    assert second.snapshot() == first.snapshot()
    for events in world.history[cut:]:
        assert second.handle(*events) == first.handle(*events)
        assert second.next_deadline_ms() == first.next_deadline_ms()
    second.check_invariants()
    assert second.snapshot() == first.snapshot()


@pytest.mark.parametrize("seed", range(8))
def test_long_stories_end_well(seed: int) -> None:
    world, chance = World(), random.Random(seed)
    for name in [chance.choice(STEPS) for _ in range(300)]:
        step(world, name, chance)
    world.enrol("last-one", 2, "llama", "onnx")
    for car in world.cars.values():
        world.drain(car, False)
    for _ in range(3):
        world.finish_all()
    assert set(world.states().values()) <= set(BATCH_ENDS)
    assert not world.fleet.state.units
