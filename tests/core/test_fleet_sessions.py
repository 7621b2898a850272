"""Live sessions in the fleet: which car, which slot, and every way that a lease ends."""

import pytest

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.fleet_sessions import UNWANTED_MS
from terafleet.core.ids import SESSION_UNIT, LeaseId, ModelId, SessionId
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.settings import FleetSettings
from terafleet.core.work import BatchState, UnitState
from tests.core.fleet_sessions_world import CHAT, GATEWAY, Seen, SessionsWorld, seen
from tests.core.fleet_world import EMBEDDINGS, LARGE_MODEL, MODEL, Car

ON_DISK = (MODEL.model_id,)
DURATION_MS = FleetSettings().session_ms_min
LOAD_MS = FleetSettings().session_load_ms


def at_work() -> tuple[SessionsWorld, Car]:
    """One car with one slot, which has the session `first`."""
    world = SessionsWorld()
    car = world.enrol("car")
    assert world.want("first").seen is Seen.GRANTED
    return world, car


# Which car.


def test_a_session_is_granted_a_slot_at_once() -> None:
    world = SessionsWorld()
    car = world.enrol("car")
    wish = world.want("one")
    (grant,) = world.said(fx.GrantSession)
    told = (car.vehicle_id, car.epoch, wish.lease_id, MODEL.model_id, EMBEDDINGS)
    assert grant == fx.GrantSession(*told, wish.session_id, LeaseId(0))
    (granted,) = world.said(fx.TellGranted)
    assert (granted.gateway_id, granted.ask, granted.vehicle_id) == (GATEWAY, 1, car.vehicle_id)
    assert grant.when == granted.when == "now", "no disk is waited for"
    assert world.lease_of(wish).unit_ids == {SESSION_UNIT: None}


def test_memory_goes_before_disk_and_disk_before_the_rest() -> None:
    world = SessionsWorld()
    cars = {name: world.enrol(name) for name in ("loaded", "bare", "disk", "other")}
    world.offer(cars["loaded"], models=ON_DISK, loaded=ON_DISK)
    world.offer(cars["disk"], models=ON_DISK, loaded=())
    world.offer(cars["other"], models=(CHAT.model_id,), loaded=(CHAT.model_id,))
    first, second = world.want("one").vehicle_id, world.want("two").vehicle_id
    assert [first, second] == [cars["loaded"].vehicle_id, cars["disk"].vehicle_id]
    assert world.want("chat", model=CHAT).vehicle_id == cars["other"].vehicle_id
    assert world.want("three").vehicle_id == cars["bare"].vehicle_id


def test_loading_takes_time_that_the_session_is_given() -> None:
    world = SessionsWorld()
    ready, bare = world.enrol("ready"), world.enrol("bare")
    world.offer(ready, models=ON_DISK, loaded=ON_DISK)
    assert world.want("one").duration_ms_max == DURATION_MS
    assert world.want("two").duration_ms_max == DURATION_MS + LOAD_MS
    assert {one.overdue_ms - one.granted_ms for one in world.leases(bare)} == {80_000}


def test_an_excluded_car_is_never_taken() -> None:
    world = SessionsWorld()
    cars = [world.enrol(f"car-{at}", 3) for at in range(3)]
    world.batch("batch", 9)
    for number in range(3):
        wish = world.want(f"ses-{number}", cars[0], cars[2])
        assert wish.vehicle_id == cars[1].vehicle_id
    assert world.want("nowhere", *cars).seen is Seen.QUEUED


def test_cars_that_were_passed_over_keep_their_order() -> None:
    world = SessionsWorld()
    cars = [world.enrol(f"car-{at}") for at in range(4)]
    assert world.want("picky", *cars[1:]).vehicle_id == cars[0].vehicle_id
    taken = [world.want(f"ses-{at}").vehicle_id for at in range(3)]
    assert taken == [car.vehicle_id for car in cars[:0:-1]], "the latest first, as before"


# In place of a batch.


def test_a_session_takes_a_batchs_slot_and_the_unit_is_done_later() -> None:
    world = SessionsWorld()
    car = world.enrol("car")
    world.batch("batch", 2)
    (lease,) = world.leases(car)
    wish = world.want("live")
    (grant,) = world.said(fx.GrantSession)
    assert grant.replaces == lease.lease_id
    assert not world.said(fx.RevokeLease), "the grant itself tells the car"
    units = world.units(lease.batch_id)
    assert {unit.state for unit in units} == {UnitState.WAITING}
    assert world.vehicle(car).attempts_lost == {"preempted": 1}
    assert world.vehicle(car).failures_in_row == 0, "nobody is to blame"
    assert lease.lease_id not in world.fleet.state.leases
    world.answer(wish)
    while world.finish(car):
        pass
    world.assemble_all()
    assert world.states()[lease.batch_id] is BatchState.COMPLETED
    assert list(world.accepted.values()) == [1, 1]


def test_the_latest_lease_of_a_batch_goes_first() -> None:
    world = SessionsWorld()
    car = world.enrol("car", 3)
    world.batch("batch", 9)
    batch_leases = sorted(one.lease_id for one in world.leases(car))
    replaced = []
    for number in range(3):
        world.want(f"ses-{number}")
        replaced += [grant.replaces for grant in world.said(fx.GrantSession)]
    assert replaced == batch_leases[::-1]
    assert world.want("one-more").seen is Seen.QUEUED, "sessions don't take each other's slots"


def test_the_slot_with_the_earliest_first_token_is_taken() -> None:
    world = SessionsWorld()
    # A batch that none of the free cars can run, so that what is preempted keeps its cars.
    busy = [world.enrol(f"busy-{name}", 1, "llama", "onnx") for name in ("loaded", "disk", "bare")]
    free = [world.enrol(f"free-{name}") for name in ("loaded", "disk", "bare")]
    for cars in (busy, free):
        world.offer(cars[0], models=ON_DISK, loaded=ON_DISK)
        world.offer(cars[1], models=ON_DISK, loaded=())
    world.batch("batch", 3, model=LARGE_MODEL)
    assert [len(world.leases(car)) for car in busy] == [1, 1, 1]
    taken = []
    for number in range(6):
        wish = world.want(f"ses-{number}")
        (grant,) = world.said(fx.GrantSession)
        taken.append((wish.vehicle_id, bool(grant.replaces)))
    expected = [
        (car.vehicle_id, is_preempted)
        for pair in zip(free, busy, strict=True)
        for car, is_preempted in zip(pair, (False, True), strict=True)
    ]
    assert taken == expected
    assert world.want("one-more").seen is Seen.QUEUED


def test_leases_that_can_not_be_taken_hide_none_that_can() -> None:
    world = SessionsWorld()
    cars = [world.enrol(f"car-{at}") for at in range(40)]
    world.batch("batch", 200)
    *later, oldest = sorted(cars, key=lambda car: -world.leases(car)[0].lease_id)
    for car in later:
        world.fall_silent(car)
    assert world.want("live").vehicle_id == oldest.vehicle_id
    assert world.want("waiting", tokens=10).seen is Seen.QUEUED
    world.speak_again(later[0])
    assert world.wishes[SessionId("waiting")].vehicle_id == later[0].vehicle_id


def test_cars_that_are_excluded_hide_none_that_is_not() -> None:
    world = SessionsWorld()
    other = world.enrol("other", 1)
    excluded = [world.enrol(f"car-{at}", 3) for at in range(16)]
    assert world.want("free", *excluded).vehicle_id == other.vehicle_id
    world.answer(world.wishes[SessionId("free")])
    world.batch("batch", 200)
    assert world.want("taken", *excluded).vehicle_id == other.vehicle_id


@pytest.mark.parametrize("trouble", ["silent", "refusing", "draining", "quarantined"])
def test_no_slot_is_taken_on_a_car_that_may_get_nothing(trouble: str) -> None:
    world = SessionsWorld()
    car = world.enrol("car", 2)
    other = world.enrol("other")
    world.batch("batch", 6)
    assert len(world.leases(car)) == 2
    match trouble:
        case "silent":
            world.fall_silent(car)
        case "refusing":
            world.permit(car, Refusal.SOC_BELOW_FLOOR)
        case "draining":
            world.drain(car)
        case "quarantined":
            for _ in range(3):
                world.fail(car)
            assert len(world.leases(car)) == 1
    world.tick(1_000)
    assert world.want("one").vehicle_id == other.vehicle_id
    assert world.want("two").seen is Seen.QUEUED
    match trouble:
        case "silent":
            world.speak_again(car)
        case "refusing":
            world.permit(car)
        case "draining":
            world.drain(car, False)
        case "quarantined":
            world.tick(29_500)
    assert world.wishes[SessionId("two")].vehicle_id == car.vehicle_id, "its slot is there again"


def test_a_car_that_does_well_again_lets_the_slots_of_its_batches_go() -> None:
    world = SessionsWorld()
    car = world.enrol("car", 2)
    world.batch("batch", 12)
    while not world.vehicle(car).quarantined_until_ms:
        world.fail(car)
    assert len(world.leases(car)) == 1, "so far it may get nothing"
    assert world.want("live", tokens=10).seen is Seen.QUEUED
    world.finish(car)
    assert world.wishes[SessionId("live")].vehicle_id == car.vehicle_id


def test_a_quarantine_that_is_over_and_not_yet_ended_hides_no_slot() -> None:
    world = SessionsWorld()
    car = world.enrol("car", 2)
    world.batch("batch", 12)
    while not world.vehicle(car).quarantined_until_ms:
        world.fail(car)
    world.lag(40_000)
    world.release(car)
    assert world.leases(car), "it works again"
    world.tick(1)
    world.check_time()
    assert world.want("live").vehicle_id == car.vehicle_id


# Asking again.


def test_asking_again_tells_of_the_same_lease() -> None:
    world, _ = at_work()
    before = world.wishes[SessionId("first")].lease_id
    world.tick(2_000)
    wish = world.want("first")
    (told,) = world.said(fx.TellGranted)
    assert (told.ask, told.lease_id) == (2, before)
    assert not world.said(fx.GrantSession)
    assert len(world.fleet.state.leases) == 1
    assert wish.duration_ms_max == DURATION_MS + LOAD_MS


def test_asking_again_without_its_car_brings_another_one() -> None:
    world, car = at_work()
    other = world.enrol("other")
    wish = world.wishes[SessionId("first")]
    left = wish.lease_id
    world.want("first", car)
    assert wish.vehicle_id == other.vehicle_id
    assert world.fleet.state.leases[left].is_unwanted
    assert not world.lost, "the gateway itself has left it"
    world.arrive(world.answered(left, car.vehicle_id))
    assert set(world.fleet.state.leases) == {wish.lease_id}
    assert seen(wish) is Seen.GRANTED


# How a lease ends.


@pytest.mark.parametrize(
    ("trouble", "ending"),
    [
        ("silent", LeaseEnding.LINK_SILENT),
        ("left", LeaseEnding.AGENT_STOPPED),
        ("removed", LeaseEnding.VEHICLE_REMOVED),
        ("released", LeaseEnding.OWNER_RETURNED),
        ("failed", LeaseEnding.ATTEMPT_FAILED),
        ("no model", LeaseEnding.ATTEMPT_FAILED),
        ("rebooted", LeaseEnding.LEASE_UNKNOWN),
        ("fewer slots", LeaseEnding.CONDITIONS_CHANGED),
        ("overdue", LeaseEnding.OVERDUE),
    ],
)
def test_a_lost_lease_is_told_once(trouble: str, ending: LeaseEnding) -> None:
    world, car = at_work()
    wish = world.wishes[SessionId("first")]
    match trouble:
        case "silent":
            world.fall_silent(car)
            world.tick(20_000)
        case "left":
            world.leave(car)
        case "removed":
            world.remove(car)
        case "released":
            world.permit(car, Refusal.DRIVER_PRESENT)
            assert seen(wish) is Seen.GRANTED, "the car says itself what becomes of its leases"
            world.release(car)
        case "failed":
            world.fail(car)
        case "no model":
            world.release(car, LeaseEnding.MODEL_UNAVAILABLE)
        case "rebooted":
            world.reboot(car)
        case "fewer slots":
            car.capability = type(car.capability)(("onnx",), 4_000, 0)
            changed = (world.now_ms, car.vehicle_id, car.epoch, car.capability)
            world.happen(ev.CapabilityChanged(*changed))
        case "overdue":
            world.tick(DURATION_MS + LOAD_MS + 1_000)
    lost = [(one.session_id, one.lease_id, one.ending) for one in world.lost]
    assert lost == [(wish.session_id, wish.lease_id, ending)]
    assert not world.fleet.state.leases
    world.tick(100_000)
    assert len(world.lost) == 1


@pytest.mark.parametrize("trouble", ["failed", "no model", "overdue"])
def test_a_car_that_fails_sessions_is_passed_over_for_a_while(trouble: str) -> None:
    world = SessionsWorld()
    car = world.enrol("car")
    for number in range(3):
        assert world.want(f"ses-{number}").seen is Seen.GRANTED
        match trouble:
            case "failed":
                world.fail(car, Failure.RUNTIME_CRASHED)
            case "no model":
                world.release(car, LeaseEnding.MODEL_UNAVAILABLE)
            case "overdue":
                world.tick(DURATION_MS + LOAD_MS + 1_000)
    assert world.vehicle(car).quarantined_until_ms > world.now_ms
    world.tick(1_000)
    wish = world.want("one-more", tokens=10)
    assert seen(wish) is Seen.QUEUED
    world.tick(29_500)
    assert wish.vehicle_id == car.vehicle_id


def test_an_answer_is_credited_once_and_its_time_is_learnt() -> None:
    world, car = at_work()
    wish = world.wishes[SessionId("first")]
    world.fail(car)
    world.want("first")
    event = world.answer(wish)
    vehicle = world.vehicle(car)
    credited = (vehicle.units_succeeded, vehicle.energy_mwh, vehicle.runtime_ms)
    assert credited == (1, 3, 1_000)
    assert vehicle.failures_in_row == 0, "who does well is pardoned"
    earned = vehicle.reward_micro
    assert earned > 0
    durations = world.fleet.state.index.shapes[MODEL.model_id].durations
    assert durations.samples() == [10_000], "1,000 ms for 100 tokens"
    world.hand_in(event)
    assert len(world.acknowledged) == 3, "also what is late"
    assert vehicle.reward_micro == earned
    assert durations.samples() == [10_000]


def test_what_was_learnt_decides_how_long_a_session_may_take() -> None:
    world = SessionsWorld()
    car = world.enrol("car")
    world.offer(car, models=ON_DISK, loaded=ON_DISK)
    for number in range(5):
        world.answer(world.want(f"ses-{number}"))
    # Ten ms a token, all alike: the spread is taken for a tenth, eight of them count.
    assert world.want("long", tokens=10_000).duration_ms_max == 180_000


# What nobody wants any more.


def test_an_unwanted_lease_keeps_its_slot_until_the_car_says_what_it_did() -> None:
    world, car = at_work()
    wish = world.wishes[SessionId("first")]
    lease_id = wish.lease_id
    world.unwant("first")
    waiting = world.want("waiting", tokens=10)
    assert seen(waiting) is Seen.QUEUED, "the slot is not free yet"
    world.hand_in(world.answered(lease_id, car.vehicle_id))
    assert seen(waiting) is Seen.GRANTED
    assert world.vehicle(car).units_succeeded == 1, "what was done counts"
    assert not world.lost


def test_a_car_that_says_nothing_of_an_unwanted_lease_loses_it() -> None:
    world, car = at_work()
    lease_id = world.wishes[SessionId("first")].lease_id
    world.unwant("first")
    waiting = world.want("waiting", tokens=10)
    world.tick(UNWANTED_MS - 1)
    assert seen(waiting) is Seen.QUEUED
    world.tick(1_001)
    assert seen(waiting) is Seen.GRANTED
    assert [one.lease_id for one in world.revoked] == [lease_id]
    assert world.vehicle(car).failures_in_row == 0
    assert world.vehicle(car).attempts_lost == {}
    world.hand_in(world.answered(lease_id, car.vehicle_id))
    assert world.vehicle(car).units_succeeded == 0, "it came too late, and changes nothing"
    assert seen(waiting) is Seen.GRANTED


@pytest.mark.parametrize("end", ["fail", "release", "leave", "remove", "silence", "reboot"])
def test_the_end_of_an_unwanted_lease_is_told_to_nobody(end: str) -> None:
    world, car = at_work()
    world.unwant("first")
    match end:
        case "fail":
            world.fail(car, Failure.STOPPED)
        case "release":
            world.release(car)
        case "leave":
            world.leave(car)
        case "remove":
            world.remove(car)
        case "silence":
            world.fall_silent(car)
            world.tick(20_000)
        case "reboot":
            world.reboot(car)
    assert not world.fleet.state.leases
    assert not world.lost


def test_a_grant_that_its_gateway_has_not_heard_of_goes_with_its_wish() -> None:
    world, car = at_work()
    wish = world.wishes[SessionId("first")]
    lease_id = wish.lease_id
    wish.seen, wish.lease_id = Seen.OVER, LeaseId(0)
    world.happen(ev.SessionUnwanted(world.now_ms, wish.session_id, LeaseId(0)))
    assert world.fleet.state.leases[lease_id].is_unwanted
    world.fail(car, Failure.INPUT_UNAVAILABLE)
    assert not world.fleet.state.leases
    assert world.vehicle(car).failures_in_row == 0, "nobody sent it anything to do"


def test_only_its_own_session_can_let_a_lease_go() -> None:
    world, _ = at_work()
    wish = world.wishes[SessionId("first")]
    for session_id, lease_id in (("other", wish.lease_id), ("other", 0), (wish.session_id, 99)):
        unwanted = ev.SessionUnwanted(world.now_ms, SessionId(session_id), LeaseId(lease_id))
        world.happen(unwanted)
        assert not world.lease_of(wish).is_unwanted


def test_wanting_no_more_twice_gives_a_car_no_more_time() -> None:
    world, _ = at_work()
    wish = world.wishes[SessionId("first")]
    lease = world.lease_of(wish)
    world.unwant("first")
    end_ms = lease.overdue_ms
    assert end_ms == world.now_ms + UNWANTED_MS
    world.tick(1_000)
    world.happen(ev.SessionUnwanted(world.now_ms, wish.session_id, lease.lease_id))
    assert lease.overdue_ms == end_ms


def test_models_of_sessions_need_no_batch() -> None:
    world = SessionsWorld()
    world.enrol("car")
    assert world.want("one", model=CHAT).seen is Seen.GRANTED
    assert ModelId("chat") in world.fleet.state.index.shapes
