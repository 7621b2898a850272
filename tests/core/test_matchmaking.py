"""Pairing by index: what is feasible, in which order, and how much at once."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core import effects as fx
from terafleet.core.capability import CapabilityClass
from terafleet.core.ids import BatchId, ModelId, VehicleId, WorkUnitId
from terafleet.core.matchmaking import (
    EXCLUSION_LOOK,
    MatchmakingIndex,
    Shape,
    lease_cost,
    rank,
)
from terafleet.core.reasons import Refusal, Waiting
from terafleet.core.records import UnitRecord
from terafleet.core.work import UnitState
from tests.core.fleet_world import LARGE_MODEL, MODEL, World

CAR, OTHER = VehicleId("veh-a"), VehicleId("veh-b")
NO_LIMIT = 10**9


def unit(number: int, batch: str = "batch", cost: int = 100) -> UnitRecord:
    """A unit that waits."""
    return UnitRecord(WorkUnitId(number), BatchId(batch), MODEL.model_id, 1, cost, 0, 1, b"")


def shape_of(*units: UnitRecord, requeued: tuple[UnitRecord, ...] = (), online: int = 2) -> Shape:
    """The shape in which these units wait."""
    shape = Shape(MODEL)
    shape.online = online
    for one in units:
        shape.add(one, is_requeued=False)
    for one in requeued:
        shape.add(one, is_requeued=True)
    return shape


def numbers(units: list[UnitRecord]) -> list[int]:
    """The numbers of units."""
    return [one.unit_id for one in units]


# Shapes.


def test_units_are_taken_in_their_order_up_to_the_cost() -> None:
    shape = shape_of(*map(unit, range(1, 6)))
    assert numbers(shape.take(CAR, 250, 32)) == [1, 2]
    assert numbers(shape.take(CAR, 0, 32)) == [3], "at least one"
    assert (shape.waiting_units, shape.waiting_cost) == (2, 200)
    assert numbers(shape.take(CAR, NO_LIMIT, 1)) == [4]


def test_a_lease_is_of_one_batch() -> None:
    shape = shape_of(unit(1, "first"), unit(2, "second"), unit(3, "second"))
    assert numbers(shape.take(CAR, NO_LIMIT, 32)) == [1]
    assert numbers(shape.take(CAR, NO_LIMIT, 32)) == [2, 3]
    assert shape.take(CAR, NO_LIMIT, 32) == []


def test_what_was_withdrawn_is_passed_by() -> None:
    units = [unit(number) for number in range(1, 4)]
    shape = shape_of(*units)
    for gone in units[:2]:
        shape.withdraw(gone)
        gone.state = UnitState.CANCELLED
    assert shape.in_order() == ([], [units[2]])
    assert numbers(shape.take(CAR, NO_LIMIT, 32)) == [3]
    assert (shape.waiting_units, shape.waiting_cost) == (0, 0)
    assert shape.take(CAR, NO_LIMIT, 32) == []


def test_what_waits_again_goes_first_and_the_rest_of_its_batch_with_it() -> None:
    shape = shape_of(unit(2), unit(3), requeued=(unit(1),))
    assert numbers(shape.take(CAR, NO_LIMIT, 32)) == [1, 2, 3]
    shape = shape_of(unit(2, "other"), requeued=(unit(1),))
    assert numbers(shape.take(CAR, NO_LIMIT, 32)) == [1]


def test_a_unit_is_not_given_to_a_car_that_has_failed_it() -> None:
    failed = msgspec.structs.replace(unit(1), failed_on=(CAR,))
    shape = shape_of(unit(2), requeued=(failed,))
    assert numbers(shape.take(CAR, NO_LIMIT, 1)) == [2]
    assert shape.take(CAR, NO_LIMIT, 1) == []
    assert shape.waiting_units == 1
    assert numbers(shape.take(OTHER, NO_LIMIT, 1)) == [1]


def test_when_all_cars_have_failed_a_unit_any_may_try_it_again() -> None:
    failed = msgspec.structs.replace(unit(1), failed_on=(CAR,))
    assert numbers(shape_of(requeued=(failed,), online=1).take(CAR, NO_LIMIT, 1)) == [1]
    failed = msgspec.structs.replace(unit(1), failed_on=(CAR, OTHER))
    assert numbers(shape_of(requeued=(failed,), online=2).take(CAR, NO_LIMIT, 1)) == [1]


def test_looking_for_a_unit_that_a_car_has_not_failed_has_an_end() -> None:
    failed = [
        msgspec.structs.replace(unit(number), failed_on=(CAR,))
        for number in range(EXCLUSION_LOOK + 5)
    ]
    shape = shape_of(requeued=(*failed, unit(99)))
    assert shape.take(CAR, NO_LIMIT, 1) == []
    assert numbers(shape.in_order()[0]) == [*range(EXCLUSION_LOOK + 5), 99], "nothing is moved"


units_lists = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 500), st.booleans(), st.booleans()),
    max_size=30,
)


@given(
    specs=units_lists, cost_max=st.integers(0, 2_000), units_max=st.integers(1, 8),
    online=st.integers(1, 3),
)  # fmt: skip
def test_every_unit_is_taken_once_and_the_counts_are_right(
    specs: list[tuple[str, int, bool, bool]], cost_max: int, units_max: int, online: int
) -> None:
    units = []
    shape = shape_of(online=online)
    for number, (batch, cost, is_requeued, has_failed) in enumerate(specs):
        failed_on = (CAR,) if is_requeued and has_failed else ()
        one = msgspec.structs.replace(unit(number, batch, cost), failed_on=failed_on)
        units.append(one)
        shape.add(one, is_requeued=is_requeued)
    taken: list[int] = []
    for vehicle_id in (CAR, OTHER):
        while found := shape.take(vehicle_id, cost_max, units_max):
            assert len(found) <= units_max
            assert len({one.batch_id for one in found}) == 1
            assert len(found) == 1 or sum(one.cost for one in found) <= cost_max
            taken += numbers(found)
            for one in found:
                one.state = UnitState.RUNNING
            left = [one for one in units if one.state is UnitState.WAITING]
            assert shape.waiting_units == len(left)
            assert shape.waiting_cost == sum(one.cost for one in left)
    assert sorted(taken) == list(range(len(specs)))


# Ranks and groups.


def test_cars_with_the_model_on_their_disk_come_first_then_those_that_just_suffice() -> None:
    model_id = MODEL.model_id
    with_model = CapabilityClass(("llama", "onnx"), 32_768, (model_id,))
    small = CapabilityClass(("onnx",), 1_024, ())
    versatile = CapabilityClass(("llama", "onnx"), 1_024, ())
    large = CapabilityClass(("onnx",), 8_192, ())
    kinds = [large, versatile, with_model, small]
    assert sorted(kinds, key=lambda kind: rank(kind, model_id)) == [
        with_model,
        small,
        versatile,
        large,
    ]


def test_only_feasible_groups_are_asked_and_new_ones_are_found() -> None:
    index = MatchmakingIndex()
    shape = index.shape(MODEL)
    index.group(CapabilityClass(("onnx",), 256, ()))
    large = index.group(CapabilityClass(("onnx",), 8_192, ()))
    assert index.feasible(shape) == [large]
    small = index.group(CapabilityClass(("onnx",), 512, ()))
    assert index.feasible(shape) == [small, large]
    assert index.group(CapabilityClass(("onnx",), 512, ())) is small
    assert index.shape(MODEL) is shape


@given(
    sizes=st.lists(st.sampled_from([256, 512, 1_024, 2_048, 4_096]), max_size=6),
    groups=st.integers(0, 6),
)
def test_the_groups_with_ready_cars_come_in_their_rank(sizes: list[int], groups: int) -> None:
    index = MatchmakingIndex()
    shape = index.shape(MODEL)
    for at in range(groups):
        index.group(CapabilityClass(("onnx",), 8_192 + at, ()))
    for at, memory_mb in enumerate(sizes):
        group = index.group(CapabilityClass(("onnx",), memory_mb, ()))
        index.add_ready(group, VehicleId(str(at)), 0)
    expected = [group for group in index.feasible(shape) if any(group.ready)]
    assert index.feasible_ready(shape) == expected
    assert [group.kind.memory_mb for group in expected] == sorted(set(sizes) - {256})


def test_the_car_with_the_least_to_do_is_taken_and_of_those_the_latest() -> None:
    index = MatchmakingIndex()
    group = index.group(CapabilityClass(("onnx",), 512, ()))
    for vehicle_id, level in (("busy", 1), ("first", 0), ("latest", 0)):
        index.add_ready(group, VehicleId(vehicle_id), level)
    assert [index.take_ready(group) for _ in range(4)] == ["latest", "first", "busy", None]
    assert not index.ready


def test_shapes_without_work_are_not_looked_at() -> None:
    index = MatchmakingIndex()
    index.shape(MODEL)
    other = index.shape(msgspec.structs.replace(MODEL, model_id=ModelId("other")))
    other.add(unit(1), is_requeued=False)
    assert index.with_work() == [other]


# How much at once.


@pytest.mark.parametrize(
    ("waiting", "slots", "tokens_per_s", "cost"),
    [
        (1_000_000, 1, 1_000, 60_000),
        (100_000, 5, 1_000, 10_000),
        (100, 5, 1_000, 10),
        (100, 0, 1_000, 50),
        (1_000_000, 1, 1, 60),
    ],
)
def test_a_lease_is_a_minute_of_work_and_no_more_than_a_fair_share(
    waiting: int, slots: int, tokens_per_s: int, cost: int
) -> None:
    shape = shape_of(unit(1, cost=waiting))
    shape.slots_online = slots
    assert lease_cost(shape, tokens_per_s, lease_target_ms=60_000) == cost


# In the fleet.


def test_the_smallest_car_that_suffices_gets_the_work() -> None:
    world = World()
    large, small = world.enrol("large"), world.enrol("small")
    for car, memory_mb in ((large, 16_384), (small, 1_024)):
        car.capability = msgspec.structs.replace(car.capability, memory_mb=memory_mb)
        world.connect(car)
    world.batch("batch", 1)
    assert (len(world.leases(large)), len(world.leases(small))) == (0, 1)


def test_the_work_goes_where_the_model_already_is() -> None:
    world = World()
    small, loaded = world.enrol("small"), world.enrol("loaded")
    loaded.capability = msgspec.structs.replace(
        loaded.capability, memory_mb=16_384, models=(MODEL.model_id,)
    )
    world.connect(loaded)
    world.batch("batch", 1)
    assert (len(world.leases(small)), len(world.leases(loaded))) == (0, 1)


def test_work_is_spread_before_a_car_gets_a_second_lease() -> None:
    world = World()
    cars = [world.enrol(name, slots=3) for name in "ab"]
    world.batch("batch", 2)
    assert [len(world.leases(car)) for car in cars] == [1, 1]


def test_work_that_no_car_at_hand_can_run_does_not_hold_up_other_work() -> None:
    world = World()
    strong = world.enrol("strong", 1, "llama", "onnx")
    world.permit(strong, Refusal.UNPLUGGED)
    stuck = world.batch("stuck", 3, model=LARGE_MODEL)
    car = world.enrol("a")
    world.batch("batch", 1)
    assert len(world.leases(car)) == 1
    assert world.records[stuck].waiting is Waiting.ALL_VEHICLES_REFUSE
    world.permit(strong)
    assert [grant.batch_id for grant in world.said(fx.GrantLease)] == [stuck]


def test_a_car_that_can_do_more_is_kept_for_what_only_it_can_do() -> None:
    world = World()
    strong, weak = world.enrol("strong", 1, "llama", "onnx"), world.enrol("weak")
    world.batch("batch", 1)
    assert (len(world.leases(strong)), len(world.leases(weak))) == (0, 1)
