"""Sessions beside batches under anything that can happen: no lease is lost, none is forgotten."""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.fleet import Fleet
from terafleet.core.ids import SESSION_UNIT, LeaseId
from terafleet.core.reasons import Failure, LeaseEnding, Refusal, Refused
from terafleet.core.settings import FleetSettings
from terafleet.core.work import BATCH_ENDS
from tests.core.fleet_sessions_world import CHAT, Seen, SessionsWorld
from tests.core.fleet_world import LARGE_MODEL, MODEL, NO_REQUEST, SETTINGS, Car
from tests.core.restored_machine import check_restored

STEPS = (
    "enrol", "enrol", "batch", "want", "want", "want", "want", "spare", "spare", "again", "again",
    "move", "move", "move", "unwant", "unwant", "withdraw", "answer", "answer", "answer", "late",
    "finish", "finish", "together", "together", "fail", "fail_often", "stop", "release", "unload",
    "permit", "permit", "refuse", "silence", "heard", "reconnect", "reboot", "forget", "leave",
    "remove", "drain", "shrink", "offer", "model", "restart", "tick", "tick", "long_tick", "lag",
)  # fmt: skip
SHORT_WAIT = FleetSettings(units_per_lease_max=3, session_wait_ms=8_000)


def step(world: SessionsWorld, name: str, chance: random.Random) -> None:
    """Do one thing to a world; what can't be done at this moment is skipped."""
    match name:
        case "enrol":
            if len(world.cars) < 5:
                runtimes = chance.choice([("onnx",), ("onnx",), ("llama", "onnx")])
                world.enrol(f"{len(world.history)}", chance.choice([1, 1, 2, 3]), *runtimes)
        case "batch":
            model = chance.choice([MODEL, MODEL, LARGE_MODEL])
            window_ms = chance.choice([60_000, 10_000_000])
            units = chance.choice([1, 8, 30])
            world.batch(f"batch-{len(world.history)}", units, window_ms, model)
        case "model":
            if chance.random() < 0.5:
                world.happen(ev.ModelRemoved(world.now_ms, CHAT.model_id, NO_REQUEST))
            else:
                world.happen(ev.ModelAdded(world.now_ms, CHAT, NO_REQUEST))
        case "restart":
            world.happen(ev.ShardStarted(world.now_ms, chance.choice([SETTINGS, SHORT_WAIT])))
        case "tick":
            world.tick(chance.randint(1, 6_000))
        case "long_tick":
            world.tick(chance.randint(1, 120_000))
        case "lag":
            world.lag(chance.randint(1, 20_000))
        case (
            "want"
            | "spare"
            | "again"
            | "move"
            | "unwant"
            | "withdraw"
            | "answer"
            | "late"
            | "together"
        ):
            step_sessions(world, name, chance)
        case _ if world.cars:
            step_car(world, name, world.cars[chance.choice(sorted(world.cars))], chance)


def step_sessions(world: SessionsWorld, name: str, chance: random.Random) -> None:
    """A gateway, or the car of one of its sessions, does something."""
    present = [one for one in world.wishes.values() if one.seen is not Seen.OVER]
    if name == "want":
        world.happen(wanted(world, chance))
    elif name == "spare":
        spare(world, chance)
    elif name == "late":
        late(world, chance)
    elif name == "together":
        together(world, chance)
    elif present:
        wish = chance.choice(present)
        match name:
            case "again":
                world.want(wish.session_id)
            case "move":
                world.want(wish.session_id, *filter(None, [world.cars.get(wish.vehicle_id)]))
            case "unwant":
                world.unwant(wish.session_id)
            case "withdraw":
                # As if the grant had been lost on its way to the gateway.
                wish.seen = Seen.OVER
                world.happen(ev.SessionUnwanted(world.now_ms, wish.session_id, LeaseId(0)))
            case "answer" if wish.seen is Seen.GRANTED:
                world.answer(wish)


def wanted(world: SessionsWorld, chance: random.Random) -> ev.SessionWanted:
    """Another session is asked for."""
    model = chance.choice([MODEL, MODEL, CHAT, LARGE_MODEL])
    tokens = chance.choice([1, 10, 10, 100, 100_000])
    name, is_spare = f"ses-{len(world.wishes)}", chance.random() < 0.1
    return world.asked(name, tokens=tokens, model=model, only_spare=is_spare)


def spare(world: SessionsWorld, chance: random.Random) -> None:
    """A canary goes to a car that has its model in memory, if there is one."""
    model = chance.choice([MODEL, CHAT])
    if world.cars and chance.random() < 0.5:
        car = world.cars[chance.choice(sorted(world.cars))]
        world.offer(car, models=(model.model_id,), loaded=(model.model_id,))
    wish = world.want(f"ses-{len(world.wishes)}", tokens=1, model=model, only_spare=True)
    if wish.seen is Seen.GRANTED and chance.random() < 0.7:
        world.answer(wish)


def late(world: SessionsWorld, chance: random.Random) -> None:
    """A receipt of a session comes once more, or from a car that has no such lease."""
    past = [one for group in world.history for one in group if type(one) is ev.AttemptsReturned]
    past = [one for one in past if one.results[0].unit_id == SESSION_UNIT]
    if past and world.cars:
        event = chance.choice(past)
        car = world.cars[chance.choice(sorted(world.cars))]
        if chance.random() < 0.7:
            car = world.cars.get(event.vehicle_id, car)
        world.hand_in(world.returned(car, event.lease_id, *event.results))


def together(world: SessionsWorld, chance: random.Random) -> None:
    """Cars hand in, then gateways ask and leave: all in one group of events."""
    receipts = [world.receipt(car, chance.randint(1, 3)) for car in world.cars.values()]
    events: list[ev.FleetEvent] = []
    for wish in list(world.wishes.values()):
        if wish.seen is Seen.QUEUED and chance.random() < 0.3:
            wish.seen = Seen.OVER
            events.append(ev.SessionUnwanted(world.now_ms, wish.session_id, LeaseId(0)))
    events += [wanted(world, chance) for _ in range(chance.randint(1, 3))]
    chance.shuffle(events)
    # A receipt that came after a wish might find its lease preempted.
    world.happen(*filter(None, receipts), *events)


def step_car(world: SessionsWorld, name: str, car: Car, chance: random.Random) -> None:
    """Something happens to one car."""
    match name:
        case "finish":
            world.finish(car, chance.randint(1, 3))
        case "fail":
            world.fail(car, chance.choice(list(Failure)))
        case "fail_often":
            for _ in range(4):
                world.fail(car)
        case "stop" | "release":
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
        case "forget":
            if car.held:
                car.held.popitem()
            world.connect(car)
        case "leave":
            world.leave(car)
        case "remove":
            world.remove(car)
        case "drain":
            world.drain(car, chance.random() < 0.5)
        case "shrink":
            slots = chance.choice([0, 1, 1, 3])
            car.capability = msgspec.structs.replace(car.capability, slots=slots)
            changed = (world.now_ms, car.vehicle_id, car.epoch, car.capability)
            world.happen(ev.CapabilityChanged(*changed))
        case "offer":
            ids = [MODEL.model_id, CHAT.model_id]
            models = chance.sample(ids, chance.randint(0, 2))
            world.offer(car, models=tuple(models), loaded=tuple(models[:1]))


def story(seed: int, names: list[str]) -> SessionsWorld:
    """A world in which all this has happened."""
    world, chance = SessionsWorld(), random.Random(seed)
    for name in ["enrol", "enrol", "batch", "want", *names]:
        step(world, name, chance)
    return world


def end_well(world: SessionsWorld) -> None:
    """Trouble ends, gateways leave; then nothing may be left of anything."""
    world.enrol("last-one", 2, "llama", "onnx")
    for car in world.cars.values():
        world.drain(car, False)
    for wish in world.wishes.values():
        if wish.seen is not Seen.OVER:
            world.unwant(wish.session_id)
    for _ in range(3):
        world.finish_all()
    state = world.fleet.state
    assert set(world.states().values()) <= set(BATCH_ENDS)
    assert not state.units
    assert not state.leases, "a lease is left"
    assert not state.sessions
    assert not state.queued_sessions
    assert not state.deadlines.image().leases, "a lease that has gone is still watched"
    assert all(count == 1 for count in world.accepted.values()), "a unit counted twice"


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), names=st.lists(st.sampled_from(STEPS), max_size=80))
def test_laws_hold_and_nothing_is_left(seed: int, names: list[str]) -> None:
    end_well(story(seed, names))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(STEPS), min_size=5, max_size=80),
    cut=st.integers(0, 60),
)
def test_a_restored_machine_goes_on_exactly_alike(seed: int, names: list[str], cut: int) -> None:
    world = story(seed, names)
    check_restored(world.history, min(cut, len(world.history)))


@pytest.mark.parametrize("seed", range(3))
def test_long_stories_hold_all_that_can_happen_to_a_session(seed: int) -> None:
    chance = random.Random(seed)
    world = story(seed, [chance.choice(STEPS) for _ in range(300)])
    replayed = Fleet()
    said = [one for events in world.history for one in replayed.handle(*events)]
    kinds = Counter(type(one) for one in said)
    for kind in (fx.GrantSession, fx.TellQueued, fx.TellRefused, fx.TellLost):
        assert kinds[kind], f"a story without {kind.__name__} proves little"
    assert any(one.replaces for one in said if isinstance(one, fx.GrantSession))
    assert Refused.NO_SLOT_SPARE in {one.refused for one in said if isinstance(one, fx.TellRefused)}
    assert world.credited
    for share in (3, 5, 7):
        check_restored(world.history, len(world.history) * share // 8)
    end_well(world)


@pytest.mark.parametrize("seed", range(3))
def test_where_no_batch_wants_all_slots_canaries_go_through(seed: int) -> None:
    chance = random.Random(seed)
    steps = [*(one for one in STEPS if one != "batch"), *["spare"] * 10]
    world = story(seed, [chance.choice(steps) for _ in range(300)])
    assert world.canaries
    check_restored(world.history, len(world.history) // 2)
    end_well(world)


def test_a_queue_and_an_unwanted_lease_outlive_a_restart() -> None:
    world = SessionsWorld()
    world.enrol("car")
    other = world.enrol("other")
    world.want("first")
    world.want("second")
    world.unwant("first")
    for name in ("a", "b", "c"):
        world.want(name, tokens=10)
    world.batch("batch", 4)
    world.want("a", other)
    before = len(world.history)
    world.tick(8_000)
    world.answer(world.wishes[next(iter(world.fleet.state.sessions))])
    second = check_restored(world.history, before)
    assert list(second.state.queued_sessions) == list(world.fleet.state.queued_sessions)
    assert second.state.sessions == world.fleet.state.sessions


def test_the_order_in_which_leases_of_batches_go_outlives_a_restart() -> None:
    world = SessionsWorld()
    first, second = world.enrol("first"), world.enrol("second")
    world.batch("batch", 30)
    oldest, other = sorted(world.fleet.state.leases)
    car = first if oldest in world.vehicle(first).leases else second
    world.offer(car, models=(), loaded=(CHAT.model_id,))
    world.offer(car, models=(), loaded=())
    before = len(world.history)
    world.want("live")
    (grant,) = world.said(fx.GrantSession)
    assert grant.replaces == oldest, "a car that changed is looked at as if it came now"
    assert other in world.fleet.state.leases
    check_restored(world.history, before)
