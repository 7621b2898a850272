"""Receipts of several results: each counts whole or not at all, and once."""

from collections.abc import Callable

import msgspec
import pytest

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.fleet import Fleet
from terafleet.core.ids import BatchId, LeaseId, ReceiptId, WorkUnitId
from terafleet.core.pricing import reward_micro
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.settings import FleetSettings
from terafleet.core.work import AttemptResult, BatchState, UnitState
from tests.core.fleet_world import (
    CUSTOMER,
    MODEL,
    NO_REQUEST,
    SETTINGS,
    Car,
    World,
    memory,
    name_of,
    result_of,
)

BATCH = BatchId("batch")
UNITS_PER_LEASE = SETTINGS.units_per_lease_max


def at_work(units: int = 9, slots: int = 1) -> tuple[World, Car]:
    """A car with leases of three units each."""
    world = World()
    car = world.enrol("a", slots)
    world.batch(BATCH, units)
    return world, car


def receipt(world: World, car: Car, units: int = UNITS_PER_LEASE) -> ev.AttemptsReturned:
    """What a car would hand in next."""
    event = world.receipt(car, units)
    assert event is not None
    return event


def with_results(event: ev.AttemptsReturned, *results: AttemptResult) -> ev.AttemptsReturned:
    """The same receipt with other results."""
    return msgspec.structs.replace(event, results=results)


def with_figures(event: ev.AttemptsReturned, at: int, **figures: int) -> ev.AttemptsReturned:
    """The same receipt with other figures in one of its results."""
    results = list(event.results)
    results[at] = msgspec.structs.replace(results[at], **figures)
    return with_results(event, *results)


def drop_of(event: ev.AttemptsReturned) -> list[fx.DropOutputs]:
    """What is said of a receipt whose outputs count for nothing."""
    return [fx.DropOutputs(*name_of(event))]


# Taken.


def test_the_results_of_a_receipt_are_taken_together() -> None:
    world, car = at_work()
    (lease,) = world.leases(car)
    first, second, third = lease.unit_ids
    event = world.returned(car, lease.lease_id, result_of(second), result_of(first))
    world.hand_in(event)
    name = (lease.lease_id, ReceiptId(second))
    assert [type(effect) for effect in world.effects] == [fx.AcknowledgeReceipt, fx.RecordBatch]
    assert world.said(fx.AcknowledgeReceipt) == [
        fx.AcknowledgeReceipt(car.vehicle_id, car.epoch, *name_of(event))
    ], "it is named by its first result"
    units = world.fleet.state.units
    for unit_id in (first, second):
        assert units[unit_id].state is UnitState.SUCCEEDED
        assert (units[unit_id].lease_id, units[unit_id].receipt_id) == name
    assert units[third].state is UnitState.RUNNING
    assert list(lease.unit_ids) == [third]
    assert world.leases(car) == [lease], "it goes on with what is open"


def test_a_whole_lease_in_one_receipt_frees_the_slot_for_the_next() -> None:
    world, car = at_work()
    (before,) = world.leases(car)
    world.finish(car, UNITS_PER_LEASE)
    (after,) = world.leases(car)
    assert after.lease_id > before.lease_id
    assert world.said(fx.GrantLease)[0].lease_id == after.lease_id


def test_a_receipt_of_several_results_is_progress_once() -> None:
    world, car = at_work()
    world.tick(70)
    world.finish(car, 2)
    (lease,) = world.leases(car)
    assert lease.progress_ms == world.now_ms
    world.tick(30)
    world.release(car)
    assert world.vehicle(car).lost_ms == 30


def test_a_batch_counts_the_sums_of_all_receipts() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.create(BATCH, 32)
    units = [ev.UnitSpec(MODEL.model_id, 2, 100, at, 1, b"digest") for at in range(16)]
    world.happen(ev.BatchSubmitted(world.now_ms, batch_id, tuple(units), 0, NO_REQUEST))
    figures = iter([(2, 0, 5, 7, 3, 10), (2, 1, 50, 70, 30, 100), (2, 2, 0, 700, 300, 1_000)])
    while world.accepted.total() < 3:
        event = receipt(world, car, 1 + world.accepted.total())
        assert len(event.results) == 1 + world.accepted.total()
        results = [AttemptResult(one.unit_id, *next(figures)) for one in event.results]
        world.hand_in(with_results(event, *results))
    record = world.records[batch_id]
    assert (record.requests_completed, record.requests_failed) == (3, 3)
    assert (record.prompt_tokens, record.completion_tokens) == (55, 777)
    assert (record.units_ended, record.state) == (3, BatchState.IN_PROGRESS)
    vehicle = world.vehicle(car)
    assert (vehicle.units_succeeded, vehicle.energy_mwh, vehicle.runtime_ms) == (3, 333, 1_110)


def test_a_car_is_credited_for_all_results_at_once() -> None:
    world, car = at_work()
    event = receipt(world, car)
    for at, energy_mwh in enumerate((1, 20, 300)):
        tokens = {"prompt_tokens": 10**at, "completion_tokens": 10**5}
        event = with_figures(event, at, energy_mwh=energy_mwh, **tokens)
    world.hand_in(event)
    vehicle = world.vehicle(car)
    assert vehicle.reward_micro == reward_micro(SETTINGS.plan, 321, 300_111)
    assert (vehicle.units_succeeded, vehicle.energy_mwh) == (3, 321)
    assert vehicle.energy_lost_mwh == 0


# Speed.


def known_speed(world: World, car: Car) -> int:
    """How many tokens a second the fleet takes a car for; its units cost 100 tokens each."""
    return world.vehicle(car).speeds[MODEL.model_id]


def test_speed_is_learnt_from_a_receipt_as_a_whole() -> None:
    world, car = at_work()
    event = receipt(world, car)
    for at, runtime_ms in enumerate((1_000, 0, 9_000)):
        event = with_figures(event, at, runtime_ms=runtime_ms)
    world.hand_in(event)
    assert known_speed(world, car) == 30, "300 tokens in 10 s, not the mean of three speeds"


def test_a_receipt_weighs_a_quarter_however_much_it_brings() -> None:
    for units in (1, 3):
        world, car = at_work()
        world.hand_in(with_figures(receipt(world, car, 1), 0, runtime_ms=1_000))
        world.reboot(car)
        event = receipt(world, car, units)
        for at in range(units):
            event = with_figures(event, at, runtime_ms=5_000)
        world.hand_in(event)
        assert known_speed(world, car) == (3 * 100 + 20) // 4, units


def test_a_receipt_without_any_time_teaches_nothing() -> None:
    world, car = at_work()
    event = receipt(world, car)
    for at in range(UNITS_PER_LEASE):
        event = with_figures(event, at, runtime_ms=0)
    world.hand_in(event)
    assert world.vehicle(car).speeds == {}
    assert world.vehicle(car).units_succeeded == 3


# Whole or not at all.


def unit_twice(world: World, car: Car) -> AttemptResult:
    """One that the receipt has already."""
    return receipt(world, car).results[0]


def unit_of_another_lease_of_the_car(world: World, car: Car) -> AttemptResult:
    """One that the car may hand in, but not with this receipt."""
    return result_of(next(iter(world.leases(car)[1].unit_ids)))


def unit_of_another_car(world: World, _: Car) -> AttemptResult:
    """One that runs elsewhere."""
    (other,) = [one for one in world.cars.values() if one.vehicle_id == "veh-other"]
    return result_of(next(iter(world.leases(other)[0].unit_ids)))


def unit_that_waits(world: World, _: Car) -> AttemptResult:
    """One that no car has."""
    units = world.fleet.state.units.values()
    return result_of(next(one.unit_id for one in units if one.state is UnitState.WAITING))


def unit_that_never_was(_: World, __: Car) -> AttemptResult:
    """One that the fleet does not know."""
    return result_of(WorkUnitId(10**9))


def unit_handed_in(world: World, car: Car) -> AttemptResult:
    """One that came with a receipt before, though not as its first."""
    (event,) = [one for group in world.history for one in group if type(one) is ev.AttemptsReturned]
    assert event.lease_id == world.leases(car)[0].lease_id
    return event.results[1]


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize(
    "find",
    [
        unit_twice,
        unit_of_another_lease_of_the_car,
        unit_of_another_car,
        unit_that_waits,
        unit_that_never_was,
        unit_handed_in,
    ],
)
def test_one_result_that_is_not_wanted_makes_the_whole_receipt_late(
    find: Callable[[World, Car], AttemptResult], is_first: bool
) -> None:
    world = World(FleetSettings(units_per_lease_max=4))
    car = world.enrol("car", slots=2)
    world.enrol("other")
    world.batch(BATCH, 40)
    assert len(world.leases(car)) == 2
    if find is unit_handed_in:
        world.finish(car, 2)
    good = receipt(world, car, 2)
    bad = find(world, car)
    event = (
        with_results(good, bad, *good.results)
        if is_first
        else with_results(good, *good.results, bad)
    )
    before = memory(world.fleet)
    world.hand_in(event)
    # The name of a unit that is still open is the name of what this unit will bring.
    is_open = event.results[0].unit_id in world.leases(car)[0].unit_ids
    assert [type(effect) for effect in world.effects][:1] == [fx.AcknowledgeReceipt]
    assert world.said(fx.DropOutputs) == ([] if is_open else drop_of(event))
    assert memory(world.fleet) == before
    world.hand_in(good)
    assert {world.fleet.state.units[one.unit_id].state for one in good.results} == {
        UnitState.SUCCEEDED
    }


def test_a_late_receipt_by_the_name_of_one_that_counted_drops_nothing() -> None:
    world, car = at_work()
    event = receipt(world, car)
    first, second, third = event.results
    world.hand_in(with_results(event, first))
    world.hand_in(with_results(event, first, second))
    assert world.said(fx.DropOutputs) == [], "what counted lies under the same name"
    world.hand_in(with_results(event, second, first))
    assert world.said(fx.DropOutputs) == [], "what its unit will bring has the same name"
    world.hand_in(with_results(event, second, third))
    assert world.records[BATCH].requests_completed == 3


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_receipt_that_comes_again_changes_nothing(has_ended: bool) -> None:
    world, car = at_work(units=3 if has_ended else 9)
    event = receipt(world, car, 2)
    world.hand_in(event)
    while has_ended and world.finish(car):
        pass
    assert world.said(fx.AssembleOutput) if has_ended else world.leases(car)
    before = memory(world.fleet)
    for again in (event, event):
        world.hand_in(again)
        assert [type(effect) for effect in world.effects] == [fx.AcknowledgeReceipt]
    assert memory(world.fleet) == before


def test_a_receipt_that_comes_again_after_its_batch_is_acknowledged_and_dropped() -> None:
    world, car = at_work(units=1)
    event = receipt(world, car)
    world.hand_in(event)
    world.assemble(BATCH)
    world.hand_in(event)
    assert [type(effect) for effect in world.effects] == [fx.AcknowledgeReceipt, fx.DropOutputs]


def test_a_receipt_of_a_lease_that_has_ended_is_dropped_once() -> None:
    world, car = at_work()
    event = receipt(world, car)
    world.permit(car, Refusal.UNPLUGGED)
    world.release(car)
    world.hand_in(event)
    assert [type(effect) for effect in world.effects] == [fx.AcknowledgeReceipt, fx.DropOutputs]
    assert world.said(fx.DropOutputs) == drop_of(event)
    assert world.vehicle(car).units_succeeded == 0


def test_what_a_hello_gave_up_is_not_taken_with_what_it_held() -> None:
    world, car = at_work()
    event = receipt(world, car)
    _, second, third = (one.unit_id for one in event.results)
    car.held[event.lease_id] = [second, third]
    world.connect(car)
    world.hand_in(msgspec.structs.replace(event, epoch=car.epoch))
    assert world.accepted.total() == 0
    assert list(world.fleet.state.leases[event.lease_id].unit_ids) == [second, third]


def test_no_car_hands_in_several_results_of_another_ones_lease() -> None:
    world, car = at_work()
    thief = world.enrol("thief")
    event = msgspec.structs.replace(
        receipt(world, car), vehicle_id=thief.vehicle_id, epoch=thief.epoch
    )
    world.hand_in(event)
    assert [type(effect) for effect in world.effects] == [fx.AcknowledgeReceipt]
    assert world.vehicle(thief).reward_micro == 0


def test_a_receipt_of_another_epoch_is_passed_over_as_a_whole() -> None:
    world, car = at_work()
    event = receipt(world, car)
    world.connect(car)
    assert world.happen(event) == []


# Wrong counts.


@pytest.mark.parametrize("at", range(UNITS_PER_LEASE))
@pytest.mark.parametrize("figures", [{"answers": 0}, {"answers": 2}, {"answers_failed": 2}])
def test_one_wrong_count_fails_all_units_of_the_receipt(at: int, figures: dict[str, int]) -> None:
    world, car = at_work()
    other = world.enrol("b")
    world.tick(50)
    event = with_figures(receipt(world, car), at, **figures)
    world.hand_in(event)
    assert world.said(fx.DropOutputs) == drop_of(event)
    units = [world.fleet.state.units[one.unit_id] for one in event.results]
    assert [(unit.failures, unit.failed_on) for unit in units] == [(1, (car.vehicle_id,))] * 3
    assert [unit.state for unit in units] == [UnitState.WAITING] * 3
    assert event.lease_id not in world.fleet.state.leases
    vehicle = world.vehicle(car)
    assert vehicle.attempts_lost == {Failure.OUTPUT_INCOMPLETE: 3}
    assert vehicle.lost_ms == 50, "the time of a receipt is lost once"
    assert (vehicle.units_succeeded, vehicle.energy_mwh, vehicle.reward_micro) == (0, 0, 0)
    assert vehicle.energy_lost_mwh == 9
    assert vehicle.speeds == {}
    assert world.records[BATCH].requests_completed == 0
    world.finish(other, UNITS_PER_LEASE)
    (lease,) = world.leases(other)
    assert next(iter(lease.unit_ids)) == units[0].unit_id, "another car tries them"


def test_a_wrong_count_leaves_the_rest_of_the_lease_alone() -> None:
    world, car = at_work()
    (lease,) = world.leases(car)
    *_, third = lease.unit_ids
    world.hand_in(with_figures(receipt(world, car, 2), 1, answers=0))
    assert world.leases(car) == [lease]
    assert list(lease.unit_ids) == [third]
    world.hand_in(receipt(world, car))
    assert world.fleet.state.units[third].state is UnitState.SUCCEEDED


def test_a_wrong_count_tells_what_is_wrong() -> None:
    world = World(msgspec.structs.replace(SETTINGS, failures_max=1))
    car = world.enrol("a")
    world.batch(BATCH, 2)
    while event := world.receipt(car, 2):
        world.hand_in(with_figures(event, len(event.results) - 1, answers=7))
    details = {one.detail for one in world.assembled[BATCH].outcomes}
    assert details == {"output_incomplete: 7 answers to 1 requests"}


# Forgetting.


def test_the_gateway_is_told_which_receipt_brought_each_output_and_each_is_forgotten_once() -> None:
    world, car = at_work(units=4)
    lease_ids: list[LeaseId] = []
    for units in (2, 1, 3):
        event = world.finish(car, units)
        lease_ids += [event.lease_id] if event else []
    outcomes = world.assembled[BATCH].outcomes
    names = [(one.lease_id, one.receipt_id) for one in outcomes]
    assert names == [world.brought_by[one.unit_id] for one in outcomes]
    assert len(set(names)) < len(names), "a receipt brought several"
    assert {one.vehicle_id for one in outcomes} == {car.vehicle_id}
    world.assemble(BATCH)
    forgotten = fx.ForgetBatch(BATCH, "file", tuple(dict.fromkeys(names)))
    assert world.said(fx.ForgetBatch) == [forgotten]
    assert {lease_id for lease_id, _ in names} == set(lease_ids)


def test_a_cancelled_batch_forgets_the_receipts_that_counted_and_no_other() -> None:
    world, car = at_work()
    first = receipt(world, car, 2)
    world.hand_in(first)
    world.hand_in(with_figures(receipt(world, car, 1), 0, answers=0))
    world.happen(ev.BatchCancelled(world.now_ms, BATCH, CUSTOMER, NO_REQUEST))
    outcomes = world.assembled[BATCH].outcomes
    assert [one.ending is None for one in outcomes] == [True] * 2 + [False] * 7
    world.assemble(BATCH)
    assert world.said(fx.ForgetBatch)[0].outputs == (name_of(first),)


# A snapshot.


def test_a_restored_fleet_knows_which_receipts_counted() -> None:
    world, car = at_work()
    (lease,) = world.leases(car)
    first = receipt(world, car, 2)
    world.hand_in(first)
    rest = receipt(world, car)
    again = Fleet(world.fleet.snapshot())
    assert list(again.state.leases[lease.lease_id].unit_ids) == [rest.results[0].unit_id]
    late = with_results(first, first.results[1], *rest.results)
    for event, kinds in (
        (first, [fx.AcknowledgeReceipt]),
        (late, [fx.AcknowledgeReceipt, fx.DropOutputs]),
        (rest, [fx.AcknowledgeReceipt, fx.GrantLease, fx.RecordBatch]),
    ):
        assert [type(effect) for effect in again.handle(event)] == kinds
    again.check_invariants()


# Beside other receipts.


def test_results_and_failures_of_a_lease_may_come_in_any_order() -> None:
    world, car = at_work()
    (lease,) = world.leases(car)
    first, second, third = lease.unit_ids
    world.fail(car)
    world.hand_in(world.returned(car, lease.lease_id, result_of(second), result_of(first)))
    assert world.accepted.total() == 0, "the first has failed"
    world.hand_in(world.returned(car, lease.lease_id, result_of(third), result_of(second)))
    assert lease.lease_id not in world.fleet.state.leases
    assert world.records[BATCH].requests_completed == 2
    ended = (world.now_ms, car.vehicle_id, car.epoch, lease.lease_id)
    world.arrive(ev.LeaseReleased(*ended, LeaseEnding.OWNER_RETURNED, "", 0))
    assert world.vehicle(car).attempts_lost == {Failure.RUNTIME_CRASHED: 1}


def test_receipts_of_one_group_count_each_for_itself() -> None:
    world, car = at_work(units=40, slots=2)
    other = world.enrol("other")
    one, two = (
        world.returned(car, lease.lease_id, *map(result_of, lease.unit_ids))
        for lease in world.leases(car)
    )
    thief = msgspec.structs.replace(receipt(world, other), lease_id=LeaseId(10**6))
    world.hand_in(one, two, thief)
    assert world.accepted.total() == len(one.results) + len(two.results)
    assert world.said(fx.DropOutputs) == drop_of(thief)
    assert len(world.said(fx.GrantLease)) == 2
