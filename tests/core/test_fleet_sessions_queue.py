"""Sessions that get no slot at once: the queue, its order, its estimates, and who is refused."""

from terafleet.core import events as ev
from terafleet.core.ids import SessionId, VehicleId
from terafleet.core.reasons import Refusal, Refused
from terafleet.core.settings import FleetSettings
from tests.core.fleet_sessions_world import CHAT, Seen, SessionsWorld, seen
from tests.core.fleet_world import LARGE_MODEL, MODEL, NO_REQUEST, Car

WAIT_MS = FleetSettings().session_wait_ms


def full_fleet(cars: int = 2) -> tuple[SessionsWorld, list[Car]]:
    """A fleet whose slots all have sessions, one for each car."""
    world = SessionsWorld()
    enrolled = [world.enrol(f"car-{at}") for at in range(cars)]
    for at in range(cars):
        world.want(f"first-{at}")
    return world, enrolled


def test_who_waits_is_told_how_long_it_takes_about() -> None:
    world, _ = full_fleet(cars=2)
    waits = []
    for number in range(7):
        wish = world.want(f"ses-{number}")
        if wish.queued is not None:
            assert wish.queued.wait_ms_max == WAIT_MS
            waits.append(wish.queued.wait_ms)
    assert waits == [5_000, 10_000, 15_000, 20_000, 25_000, 30_000], "10 s each, by two slots"
    last = world.wishes[SessionId("ses-6")]
    assert last.refused is not None
    assert last.refused.refused is Refused.NO_SLOT_FREE
    assert last.refused.retry_after_ms == 35_000
    assert last.refused.detail == "all slots are busy, for about 35 s"


def test_a_free_slot_is_for_who_waits_longest() -> None:
    world, _ = full_fleet(cars=1)
    waiting = [world.want(f"ses-{number}", tokens=10) for number in range(3)]
    world.batch("batch", 3)
    served = []
    holder = world.wishes[SessionId("first-0")]
    for _ in range(3):
        world.tick(1_000)
        world.answer(holder)
        (holder,) = [one for one in waiting if one.seen is Seen.GRANTED]
        served.append(holder)
    assert served == waiting
    assert not any(one.session is None for one in world.fleet.state.leases.values())


def test_a_slot_freed_in_the_same_group_is_for_who_waits() -> None:
    world, _ = full_fleet(cars=1)
    waiting = world.want("waiting", tokens=10)
    holder = world.wishes[SessionId("first-0")]
    world.arrive(world.answered(holder.lease_id, holder.vehicle_id))
    assert seen(waiting) is Seen.GRANTED
    late = world.want("late", tokens=10)
    held = world.answered(waiting.lease_id, waiting.vehicle_id)
    world.happen(held, world.asked("newest", tokens=10))
    assert seen(late) is Seen.GRANTED
    assert world.wishes[SessionId("newest")].seen is Seen.QUEUED


def test_who_excludes_the_free_car_keeps_nobody_else_from_it() -> None:
    world, (one, _) = full_fleet(cars=2)
    picky = world.want("picky", one, tokens=10)
    other = world.want("other", tokens=10)
    (holder,) = [wish for wish in world.wishes.values() if wish.vehicle_id == one.vehicle_id]
    world.answer(holder)
    assert seen(picky) is Seen.QUEUED
    assert other.vehicle_id == one.vehicle_id


def test_a_model_without_slots_keeps_no_other_model_waiting() -> None:
    world = SessionsWorld()
    large, small = world.enrol("large", 1, "llama"), world.enrol("small")
    world.want("a", model=LARGE_MODEL)
    holder = world.want("b")
    world.want("large-waits", model=LARGE_MODEL, tokens=10)
    waits = world.want("small-waits", tokens=10)
    world.answer(holder)
    assert waits.vehicle_id == small.vehicle_id
    assert len(world.leases(large)) == 1


def test_models_that_compete_for_a_slot_get_it_by_how_long_they_wait() -> None:
    world, _ = full_fleet(cars=1)
    models = (CHAT, MODEL, MODEL, CHAT, CHAT, MODEL)
    waiting = []
    for number, model in enumerate(models):
        world.tick(1)
        waiting.append(world.want(f"ses-{number}", tokens=1, model=model))
    holder = world.wishes[SessionId("first-0")]
    for wish in waiting:
        world.answer(holder)
        assert seen(wish) is Seen.GRANTED
        holder = wish


def test_who_waits_is_told_a_place_that_is_never_too_hopeful() -> None:
    world, _ = full_fleet(cars=1)
    for number in range(5):
        world.want(f"ses-{number}", tokens=10)
    for number in (1, 3):
        world.unwant(f"ses-{number}")
    told = [world.want(f"ses-{number}").queued for number in (0, 2, 4)]
    assert [one.wait_ms for one in told if one] == [1_000, 3_000, 3_000], "1 s each"
    newest = world.want("newest", tokens=10)
    assert newest.queued is not None
    assert newest.queued.wait_ms == 4_000


def test_who_excludes_a_car_no_more_gets_its_free_slot() -> None:
    world, (one, _) = full_fleet(cars=2)
    (holder,) = [wish for wish in world.wishes.values() if wish.vehicle_id == one.vehicle_id]
    picky = world.want("picky", one, tokens=10)
    world.answer(holder)
    assert seen(picky) is Seen.QUEUED
    picky.excluded = ()
    world.want("picky")
    assert picky.vehicle_id == one.vehicle_id


def test_who_waits_too_long_is_refused_with_a_time_to_come_again() -> None:
    world, _ = full_fleet(cars=1)
    wish = world.want("waiting", tokens=1)
    world.tick(WAIT_MS - 1)
    assert seen(wish) is Seen.QUEUED
    world.tick(1)
    assert seen(wish) is Seen.REFUSED
    assert wish.refused is not None
    assert (wish.refused.refused, wish.refused.ask) == (Refused.NO_SLOT_FREE, 1)
    assert wish.refused.retry_after_ms == 1_000
    assert not world.fleet.state.queued_sessions


def test_asking_again_keeps_the_place_in_the_queue_and_its_end() -> None:
    world, _ = full_fleet(cars=1)
    first, second = world.want("a", tokens=10), world.want("b", tokens=10)
    world.tick(20_000)
    world.want("a")
    assert first.queued is not None
    assert (first.queued.ask, first.queued.wait_ms) == (2, 1_000), "it still is the first"
    assert first.queued.wait_ms_max == WAIT_MS - 20_000
    world.answer(world.wishes[SessionId("first-0")])
    assert (first.seen, second.seen) == (Seen.GRANTED, Seen.QUEUED)


def test_a_queue_that_shall_wait_longer_does_so_and_ends() -> None:
    world, _ = full_fleet(cars=1)
    wish = world.want("waiting", tokens=10)
    world.happen(ev.ShardStarted(world.now_ms, FleetSettings(session_wait_ms=50_000)))
    world.tick(WAIT_MS + 5_000)
    assert seen(wish) is Seen.QUEUED
    world.tick(15_000)
    assert seen(wish) is Seen.REFUSED


def test_who_wants_no_more_leaves_the_queue() -> None:
    world, _ = full_fleet(cars=1)
    world.want("waiting", tokens=10)
    world.unwant("waiting")
    assert not world.fleet.state.queued_sessions
    world.answer(world.wishes[SessionId("first-0")])
    assert not world.fleet.state.leases


def test_a_removed_model_is_still_served_to_who_waits_for_it() -> None:
    world, _ = full_fleet(cars=1)
    wish = world.want("waiting", tokens=10, model=CHAT)
    world.happen(ev.ModelRemoved(world.now_ms, CHAT.model_id, NO_REQUEST))
    world.want("waiting")
    assert seen(wish) is Seen.QUEUED
    world.answer(world.wishes[SessionId("first-0")])
    assert seen(wish) is Seen.GRANTED
    world.answer(wish)
    refused = world.want("new", model=CHAT).refused
    assert refused is not None
    assert (refused.refused, refused.retry_after_ms) == (Refused.MODEL_UNKNOWN, 0)


# What can't be had.


def test_what_no_car_could_ever_run_is_refused_for_good() -> None:
    world = SessionsWorld()
    empty = world.want("a")
    car = world.enrol("car")
    large = world.want("b", model=LARGE_MODEL)
    world.happen(ev.ModelRemoved(world.now_ms, MODEL.model_id, NO_REQUEST))
    unknown = world.want("c")
    expected = [Refused.FLEET_EMPTY, Refused.NO_FEASIBLE_VEHICLE, Refused.MODEL_UNKNOWN]
    said = [wish.refused for wish in (empty, large, unknown)]
    assert [(one.refused, one.retry_after_ms) for one in said if one] == [
        (reason, 0) for reason in expected
    ]
    assert not world.leases(car)


def test_while_a_car_is_unknown_nothing_is_impossible() -> None:
    world = SessionsWorld()
    world.enrol("car")
    world.happen(ev.VehicleEnrolled(world.now_ms, VehicleId("veh-new"), "new", NO_REQUEST))
    refused = world.want("large", model=LARGE_MODEL).refused
    assert refused is not None
    assert refused.refused is Refused.NO_VEHICLE_PERMITS
    assert refused.retry_after_ms == WAIT_MS


def test_while_all_cars_refuse_nobody_waits_in_vain() -> None:
    world = SessionsWorld()
    car = world.enrol("car")
    world.permit(car, Refusal.DRIVER_PRESENT)
    wish = world.want("one")
    assert wish.refused is not None
    assert wish.refused.refused is Refused.NO_VEHICLE_PERMITS
    world.permit(car)
    assert world.want("one").seen is Seen.GRANTED
