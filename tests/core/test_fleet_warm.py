"""The operator wants models to stay loaded: which cars are chosen, and what keeps the number up."""

import msgspec
import pytest

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core import fleet_warm
from terafleet.core.availability import expected_stay_ms
from terafleet.core.ids import Epoch, ModelId, VehicleId
from terafleet.core.reasons import Failure, Refusal, Refused
from terafleet.core.records import VehicleRecord
from terafleet.core.settings import FleetSettings
from tests.core.fleet_warm_world import GB, HUGE, ORDER, WarmWorld
from tests.core.fleet_world import LARGE_MODEL, MODEL, NO_REQUEST, SETTINGS, Car

HOUR_MS = 3_600_000
LOAD_MS = SETTINGS.session_load_ms
FETCH_MS = MODEL.memory_mb * SETTINGS.warm_fetch_ms_per_mb


def keeps(world: WarmWorld) -> list[tuple[VehicleId, tuple[ModelId, ...]]]:
    """Whom the last event told to keep what."""
    return [(one.vehicle_id, one.model_ids) for one in world.said(fx.KeepLoaded)]


def cars_of(world: WarmWorld, *names: str) -> list[Car]:
    """Cars join, one after the other."""
    return [world.enrol(name) for name in names]


# The wish.


def test_a_wish_is_answered_and_cars_are_told() -> None:
    world = WarmWorld()
    first, second, _ = cars_of(world, "a", "b", "c")
    assert world.warm(2) == fx.AnswerRequest(ORDER, None, "")
    assert keeps(world) == [
        (first.vehicle_id, (MODEL.model_id,)),
        (second.vehicle_id, (MODEL.model_id,)),
    ]
    assert world.record().slots_loaded == 0
    world.load(first)
    assert world.record().slots_loaded == 1
    assert keeps(world) == []


def test_a_wish_that_can_never_be_kept_is_refused() -> None:
    world = WarmWorld()
    assert world.warm(1).refused is Refused.FLEET_EMPTY
    world.enrol("a")
    assert world.warm(1, LARGE_MODEL).refused is Refused.NO_FEASIBLE_VEHICLE
    stranger = msgspec.structs.replace(MODEL, model_id=ModelId("stranger"))
    assert world.warm(1, stranger).refused is Refused.MODEL_UNKNOWN
    assert world.warm(0, stranger).refused is Refused.MODEL_UNKNOWN
    assert not world.fleet.state.warm


def test_a_wish_waits_for_cars_that_are_not_there_at_the_moment() -> None:
    world = WarmWorld()
    (car,) = cars_of(world, "a")
    world.permit(car, Refusal.DRIVER_PRESENT)
    assert world.warm(2).refused is None
    assert world.chosen() == []
    world.enrol("b")
    assert world.chosen() == ["b"]
    world.permit(car)
    assert world.chosen() == ["b", "a"]


def test_a_car_counts_with_all_its_slots() -> None:
    world = WarmWorld()
    world.enrol("large", 4)
    world.enrol("small", 1)
    world.warm(3)
    assert world.chosen() == ["large"]
    world.warm(5)
    assert world.chosen() == ["large", "small"]


def test_nothing_is_wanted_any_more() -> None:
    world = WarmWorld()
    car, _ = cars_of(world, "a", "b")
    world.warm(1)
    assert world.warm(0).refused is None
    assert keeps(world) == [(car.vehicle_id, ())]
    assert not world.fleet.state.warm
    assert world.warm(0).refused is None, "to end it twice is no fault"


def test_a_model_that_is_removed_is_kept_no_more() -> None:
    world = WarmWorld()
    (car,) = cars_of(world, "a")
    world.warm(1)
    world.happen(ev.ModelRemoved(world.now_ms, MODEL.model_id, NO_REQUEST))
    assert keeps(world) == [(car.vehicle_id, ())]
    world.happen(ev.ModelAdded(world.now_ms, MODEL, NO_REQUEST))
    assert not world.fleet.state.warm


def test_a_lower_number_lets_those_go_that_leave_soonest() -> None:
    world = WarmWorld()
    fickle, other, third = cars_of(world, "fickle", "other", "third")
    for _ in range(3):
        world.permit(fickle, Refusal.DRIVER_PRESENT)
        world.permit(fickle)
    world.warm(3)
    for car in (fickle, other, third):
        world.load(car)
    world.warm(2)
    assert keeps(world) == [(fickle.vehicle_id, ())]
    assert set(world.chosen()) == {"other", "third"}


# Who is chosen.


def test_the_longest_expected_stay_is_chosen_first() -> None:
    world = WarmWorld()
    fickle, steady = world.enrol("fickle"), world.enrol("steady")
    for _ in range(5):
        world.permit(fickle, Refusal.NOT_PARKED)
        world.tick(HOUR_MS)
        world.permit(fickle)
        world.tick(HOUR_MS)
    world.offer(fickle, models=(MODEL.model_id,), loaded=(MODEL.model_id,))
    world.warm(1)
    assert world.chosen() == ["steady"], "a model that is there weighs less than a long stay"
    now_ms, prior_ms = world.now_ms, SETTINGS.stay_prior_ms
    stays = [expected_stay_ms(world.vehicle(car), now_ms, prior_ms) for car in (fickle, steady)]
    assert stays == [(10 + 5) * HOUR_MS // 6, (10 + 10) * HOUR_MS]


def test_of_cars_that_stay_alike_the_one_with_the_model_is_chosen() -> None:
    world = WarmWorld()
    _, on_disk, loaded = cars_of(world, "none", "disk", "loaded")
    world.offer(on_disk, models=(MODEL.model_id,), loaded=())
    world.offer(loaded, models=(MODEL.model_id,), loaded=(MODEL.model_id,))
    world.warm(1)
    assert world.chosen() == ["loaded"]
    assert world.record().slots_loaded == 1
    world.warm(2)
    assert world.chosen() == ["loaded", "disk"]
    world.warm(3)
    assert world.chosen() == ["loaded", "disk", "none"]


def test_a_car_that_works_is_as_good_as_one_that_does_not() -> None:
    world = WarmWorld()
    world.enrol("at work")
    world.batch("batch", 10)
    world.want("session")
    world.warm(1)
    assert world.chosen() == ["at work"]


def test_models_share_a_car_only_where_both_have_room() -> None:
    world = WarmWorld()
    world.enrol("only")
    world.warm(1, HUGE)
    world.warm(1, GB)
    assert (world.chosen(HUGE), world.chosen(GB)) == (["only"], [])
    world.warm(1)
    assert world.chosen() == ["only"], "500 MB fit beside 3,072 MB"
    world.warm(0, HUGE)
    assert world.chosen(GB) == ["only"], "room that is let go is used at once"


def test_each_runtime_has_the_memory_for_itself() -> None:
    world = WarmWorld()
    world.enrol("only", 1, "llama", "onnx")
    world.warm(1, HUGE)
    world.warm(1, LARGE_MODEL)
    assert (world.chosen(HUGE), world.chosen(LARGE_MODEL)) == (["only"], ["only"])


def test_no_more_cars_are_compared_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = WarmWorld()
    cars = cars_of(world, *(f"{number}" for number in range(200)))
    ranked: list[str] = []
    rank = fleet_warm._rank

    def counted(fleet: object, vehicle: VehicleRecord, model_id: ModelId) -> object:
        ranked.append(vehicle.name)
        return rank(fleet, vehicle, model_id)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet_warm, "_rank", counted)
    world.warm(3)
    assert len(ranked) == fleet_warm.LOOK_MAX + 3
    assert ranked[0] == "0", "those that have been there longest first"
    ranked.clear()
    world.permit(cars[0], Refusal.UNPLUGGED)
    assert len(ranked) == fleet_warm.LOOK_MAX + 1
    assert len(world.chosen()) == 3
    ranked.clear()
    world.permit(cars[199], Refusal.UNPLUGGED)
    world.permit(cars[199])
    assert ranked == [], "nothing is missing"


def test_a_wish_that_is_short_looks_only_at_cars_that_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = WarmWorld()
    cars = cars_of(world, *(f"{number}" for number in range(20)))
    world.warm(25)
    looked: list[VehicleId] = []
    suits = fleet_warm.suits

    def counted(fleet: object, vehicle_id: VehicleId, needs: object) -> bool:
        looked.append(vehicle_id)
        return suits(fleet, vehicle_id, needs)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet_warm, "suits", counted)
    world.fleet.handle(ev.VehicleEnrolled(world.now_ms, VehicleId("veh-x"), "x", NO_REQUEST))
    hello = (VehicleId("veh-x"), "boot", cars[0].capability, (), ())
    world.fleet.handle(ev.VehicleConnected(world.now_ms, *hello))
    assert set(looked) == {VehicleId("veh-x")}
    assert world.record().slots_chosen == 21


# The number is kept up.


def leave(world: WarmWorld, car: Car) -> None:
    world.leave(car)


def refuse(world: WarmWorld, car: Car) -> None:
    world.permit(car, Refusal.DRIVER_PRESENT)


def fall_silent(world: WarmWorld, car: Car) -> None:
    world.fall_silent(car)


def drain(world: WarmWorld, car: Car) -> None:
    world.drain(car)


def remove(world: WarmWorld, car: Car) -> None:
    world.remove(car)


def lend_less(world: WarmWorld, car: Car) -> None:
    world.lend(car, 256)


def lose_its_slots(world: WarmWorld, car: Car) -> None:
    car.capability = msgspec.structs.replace(car.capability, slots=0)
    world.lend(car, 4_000)


def fail_often(world: WarmWorld, car: Car) -> None:
    """It fails until it is in quarantine."""
    world.batch(f"batch-{world.now_ms}", 30)
    for _ in range(SETTINGS.quarantine_failures):
        world.fail(car)
    assert world.vehicle(car).vehicle_id in world.fleet.state.quarantined


@pytest.mark.parametrize(
    "go",
    [leave, refuse, fall_silent, drain, remove, lend_less, lose_its_slots, fail_often],
    ids=lambda go: go.__name__,
)
def test_a_car_that_goes_is_replaced_with_the_same_event(go: object) -> None:
    world = WarmWorld()
    car, other = cars_of(world, "car", "other")
    world.offer(car, models=(MODEL.model_id,), loaded=(MODEL.model_id,))
    world.warm(1)
    assert world.chosen() == ["car"]
    assert callable(go)
    go(world, car)
    assert world.chosen() == ["other"]
    assert world.told[other.vehicle_id] == (MODEL.model_id,)
    assert (other.vehicle_id, (MODEL.model_id,)) in keeps(world)


def test_a_car_that_comes_back_is_one_of_many() -> None:
    world = WarmWorld()
    car, other = cars_of(world, "car", "other")
    world.warm(1)
    world.permit(car, Refusal.DRIVER_PRESENT)
    assert keeps(world) == [(car.vehicle_id, ()), (other.vehicle_id, (MODEL.model_id,))]
    world.permit(car)
    assert keeps(world) == []
    assert world.chosen() == ["other"]


def test_a_car_that_offers_more_makes_others_superfluous() -> None:
    world = WarmWorld()
    car, other = cars_of(world, "car", "other")
    world.warm(2)
    car.capability = msgspec.structs.replace(car.capability, slots=2)
    world.lend(car, 4_000)
    assert world.chosen() == ["car"]
    assert keeps(world) == [(other.vehicle_id, ())]
    car.capability = msgspec.structs.replace(car.capability, slots=1)
    world.lend(car, 4_000)
    assert world.chosen() == ["car", "other"]


def test_a_car_is_told_again_at_each_welcome() -> None:
    world = WarmWorld()
    (car,) = cars_of(world, "car")
    world.warm(1)
    world.connect(car)
    kinds = [type(one) for one in world.effects]
    assert kinds.index(fx.WelcomeVehicle) < kinds.index(fx.KeepLoaded)
    assert keeps(world) == [(car.vehicle_id, (MODEL.model_id,))]
    world.warm(0)
    world.connect(car)
    assert keeps(world) == [], "a new epoch keeps nothing that it is not told"


def test_a_silent_car_is_told_when_it_is_heard() -> None:
    world = WarmWorld()
    (car,) = cars_of(world, "car")
    world.warm(1)
    world.fall_silent(car)
    assert keeps(world) == []
    world.warm(0)
    assert keeps(world) == []
    world.speak_again(car)
    assert keeps(world) == [(car.vehicle_id, ())]


def test_a_car_is_offered_work_no_other_way_than_before() -> None:
    world = WarmWorld()
    (car,) = cars_of(world, "car")
    world.warm(1)
    world.batch("batch", 3)
    assert world.leases(car), "to keep a model takes no slot"


# Cars that can't load it.


def test_a_car_that_does_not_load_in_time_is_passed_over_for_a_while() -> None:
    world = WarmWorld()
    slow, other = cars_of(world, "slow", "other")
    world.offer(slow, models=(MODEL.model_id,), loaded=())
    world.warm(1)
    assert world.chosen() == ["slow"]
    world.tick(LOAD_MS - 1)
    assert world.chosen() == ["slow"]
    world.tick(1)
    assert world.chosen() == ["other"]
    assert world.told[slow.vehicle_id] == ()
    world.load(other)
    world.permit(other, Refusal.DRIVER_PRESENT)
    assert world.chosen() == [], "it is passed over still"
    world.tick(SETTINGS.warm_retry_ms)
    assert world.chosen() == ["slow"]


def test_a_car_that_must_fetch_the_model_has_time_for_it() -> None:
    world = WarmWorld()
    cars_of(world, "slow", "other")
    world.warm(1)
    world.tick(LOAD_MS + FETCH_MS - 1)
    assert world.chosen() == ["slow"]
    world.tick(1)
    assert world.chosen() == ["other"]


def test_a_car_that_says_that_it_cant_is_replaced_at_once() -> None:
    world = WarmWorld()
    car, other = cars_of(world, "car", "other")
    world.warm(1)
    failed = (MODEL.model_id, Failure.OUT_OF_MEMORY, "no room")
    world.happen(ev.LoadFailed(world.now_ms, car.vehicle_id, Epoch(99), *failed))
    assert world.chosen() == ["car"], "another epoch says nothing about this one"
    world.fail_load(car)
    assert world.chosen() == ["other"]
    world.fail_load(car)
    world.fail_load(car, GB)
    world.fail_load(other)
    assert world.chosen() == []
    world.warm(1)
    assert world.chosen() == ["car"], "who asks again wants it to be tried again"


def test_a_model_that_leaves_the_memory_must_come_back_in_time() -> None:
    world = WarmWorld()
    car, _ = cars_of(world, "car", "other")
    world.warm(1)
    world.load(car)
    world.tick(HOUR_MS)
    world.unload(car)
    assert world.record().slots_loaded == 0
    world.tick(LOAD_MS - 1)
    assert world.chosen() == ["car"]
    world.load(car)
    world.tick(HOUR_MS)
    assert world.chosen() == ["car"]
    world.unload(car)
    world.tick(LOAD_MS)
    assert world.chosen() == ["other"]


# How long a car stays.


def test_a_stay_is_counted_while_the_car_permits() -> None:
    world = WarmWorld(FleetSettings(stay_prior_ms=HOUR_MS))
    (car,) = cars_of(world, "car")
    vehicle = world.vehicle(car)

    def expected() -> int:
        return expected_stay_ms(vehicle, world.now_ms, HOUR_MS)

    assert expected() == HOUR_MS
    world.tick(HOUR_MS)
    assert (expected(), vehicle.departures) == (2 * HOUR_MS, 0)
    world.permit(car, Refusal.SOC_BELOW_FLOOR)
    world.permit(car, Refusal.SOC_BELOW_FLOOR, Refusal.UNPLUGGED)
    world.tick(5 * HOUR_MS)
    assert (expected(), vehicle.departures, vehicle.stay_ms) == (HOUR_MS, 1, HOUR_MS)
    world.permit(car)
    world.drain(car)
    world.tick(HOUR_MS)
    assert (expected(), vehicle.departures) == (3 * HOUR_MS // 2, 1), "a drain is no departure"
    world.connect(car)
    assert vehicle.departures == 1, "nor is a connection that is taken up again"
    world.leave(car)
    assert (vehicle.departures, vehicle.stay_ms) == (2, 2 * HOUR_MS)


def test_a_car_that_does_well_after_all_may_keep_models_again() -> None:
    world = WarmWorld()
    car = world.enrol("car", 4)
    world.batch("batch", 30)
    world.warm(1)
    for _ in range(SETTINGS.quarantine_failures):
        world.fail(car)
    assert world.chosen() == []
    world.finish(car)
    assert world.chosen() == ["car"]
