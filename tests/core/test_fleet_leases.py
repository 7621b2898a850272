"""Leases from their grant to their end, and what the fleet makes of every receipt."""

import msgspec
import pytest

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.capability import Capability
from terafleet.core.fleet import Fleet
from terafleet.core.ids import Epoch, ReceiptId
from terafleet.core.pricing import reward_micro
from terafleet.core.reasons import Failure, LeaseEnding, Refusal, UnitEnding
from terafleet.core.settings import FleetSettings
from terafleet.core.work import BatchState, UnitState
from tests.core.fleet_world import EMBEDDINGS, MODEL, SETTINGS, Car, World, name_of

ONE = FleetSettings(units_per_lease_max=1)


def receipt(world: World, car: Car, answers: int = 1) -> ev.AttemptsReturned:
    """The receipt with which a car would hand in its next attempt."""
    event = world.receipt(car, answers=answers)
    assert event is not None
    return event


def with_result(event: ev.AttemptsReturned, **figures: int) -> ev.AttemptsReturned:
    """The same receipt of one result with other figures."""
    (result,) = event.results
    changed = msgspec.structs.replace(result, **figures)
    return msgspec.structs.replace(event, results=(changed,))


def outcomes(world: World, name: str) -> list[tuple[UnitEnding | None, str]]:
    """How the units of a batch ended, as the gateway is told."""
    assembled = {str(batch_id): effect for batch_id, effect in world.assembled.items()}
    return [(one.ending, one.detail) for one in assembled[name].outcomes]


# Grants.


def test_a_grant_tells_the_car_all_that_it_needs() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 6)
    (grant,) = world.said(fx.GrantLease)
    assert (grant.vehicle_id, grant.epoch) == (car.vehicle_id, car.epoch)
    assert (grant.batch_id, grant.model_id) == (batch_id, MODEL.model_id)
    assert grant.endpoint == EMBEDDINGS
    assert grant.units == tuple(
        fx.GrantedUnit(unit.unit_id, 1, unit.offset, 1, b"digest")
        for unit in world.units(batch_id)[:3]
    )
    assert fx.GrantLease.when == "commit", "no car works on what may be lost"


def test_a_lease_takes_no_more_than_a_fair_share() -> None:
    world = World(FleetSettings())
    for name in ("a", "b"):
        world.enrol(name)
    world.batch("batch", 16)
    sizes = [len(grant.units) for grant in world.said(fx.GrantLease)]
    assert sizes == [4, 3], "half of what waits, over the slots there are"


def test_leases_take_units_in_their_order_and_of_one_batch() -> None:
    world = World(FleetSettings(units_per_lease_max=99))
    car = world.enrol("a", slots=4)
    world.leave(car)
    batch_ids = [world.batch("first", 3), world.batch("second", 3)]
    world.connect(car)
    granted = [
        (grant.batch_id, unit.unit_id)
        for grant in world.said(fx.GrantLease)
        for unit in grant.units
    ]
    units = [(batch_id, unit.unit_id) for batch_id in batch_ids for unit in world.units(batch_id)]
    assert granted == units[: len(granted)]
    assert {batch_id for batch_id, _ in granted} == set(batch_ids)


def test_a_lease_number_never_comes_again() -> None:
    world = World(ONE)
    car = world.enrol("a")
    world.batch("batch", 5)
    seen = [world.leases(car)[0].lease_id]
    for _ in range(4):
        world.finish(car)
        seen.append(world.leases(car)[0].lease_id)
    assert seen == sorted(set(seen))


# Results.


def test_a_result_is_taken_and_accounted_for() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 2)
    world.tick(40)
    world.hand_in(receipt(world, car))
    (acknowledged,) = world.said(fx.AcknowledgeReceipt)
    first = world.units(batch_id)[0]
    assert acknowledged.receipt_id == ReceiptId(first.unit_id)
    assert (first.state, first.lease_id) == (UnitState.SUCCEEDED, acknowledged.lease_id)
    vehicle = world.vehicle(car)
    assert (vehicle.units_succeeded, vehicle.energy_mwh, vehicle.runtime_ms) == (1, 3, 10)
    assert vehicle.reward_micro == reward_micro(SETTINGS.plan, 3, 5)
    record = world.records[batch_id]
    assert (record.requests_completed, record.prompt_tokens, record.units_ended) == (1, 5, 1)


def test_answers_that_are_errors_count_as_failed_requests() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 2)
    world.hand_in(with_result(receipt(world, car), answers_failed=1))
    record = world.records[batch_id]
    assert (record.requests_completed, record.requests_failed) == (0, 1)


def test_the_last_result_of_a_lease_frees_the_slot_for_the_next_one() -> None:
    world = World(ONE)
    car = world.enrol("a")
    world.batch("batch", 2)
    (before,) = world.leases(car)
    world.finish(car)
    (after,) = world.leases(car)
    assert after.lease_id > before.lease_id
    assert world.said(fx.GrantLease)[0].lease_id == after.lease_id


def test_the_fleet_learns_how_fast_a_car_is() -> None:
    world = World(FleetSettings(units_per_lease_max=1_000))
    car = world.enrol("a")
    world.batch("batch", 9_000)
    world.hand_in(with_result(receipt(world, car), runtime_ms=10_000))
    assert world.vehicle(car).speeds[MODEL.model_id] == 10, "100 tokens in 10 s"
    world.reboot(car)
    (grant,) = world.said(fx.GrantLease)
    assert len(grant.units) == 6, "60 s of its own speed"


@pytest.mark.parametrize("units_per_lease", [1, 3])
def test_a_result_that_comes_twice_counts_once_and_its_output_stays(units_per_lease: int) -> None:
    world = World(FleetSettings(units_per_lease_max=units_per_lease))
    car = world.enrol("a")
    batch_id = world.batch("batch", 9)
    event = receipt(world, car)
    world.hand_in(event)
    before = world.fleet.snapshot()
    world.hand_in(event)
    assert world.fleet.snapshot() == before
    assert world.said(fx.DropOutputs) == []
    assert world.records[batch_id].requests_completed == 1


def test_a_late_result_is_acknowledged_and_counts_for_nothing() -> None:
    world = World(ONE)
    car, other = world.enrol("a"), world.enrol("b")
    world.permit(other, Refusal.UNPLUGGED)
    batch_id = world.batch("batch", 1)
    late = receipt(world, car)
    world.permit(car, Refusal.UNPLUGGED)
    world.release(car)
    for _ in range(2):
        world.hand_in(late)
        assert world.said(fx.DropOutputs) == [fx.DropOutputs(*name_of(late))]
        world.permit(other)
    assert world.vehicle(car).reward_micro == 0
    world.finish(other)
    assert world.records[batch_id].requests_completed == 1
    world.hand_in(late)
    assert world.said(fx.DropOutputs) == [fx.DropOutputs(*name_of(late))]


def test_a_result_of_another_epoch_is_not_even_acknowledged() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1)
    event = msgspec.structs.replace(receipt(world, car), epoch=Epoch(car.epoch + 1))
    assert world.happen(event) == []
    event = msgspec.structs.replace(event, epoch=Epoch(0))
    assert world.happen(event) == []


def test_a_car_can_neither_hand_in_nor_spoil_what_another_one_holds() -> None:
    world = World(ONE)
    car, thief = world.enrol("a"), world.enrol("b")
    world.permit(thief, Refusal.UNPLUGGED)
    batch_id = world.batch("batch", 1)
    event = msgspec.structs.replace(
        receipt(world, car), vehicle_id=thief.vehicle_id, epoch=thief.epoch
    )
    (lease,) = world.leases(car)
    world.hand_in(event)
    assert [type(effect) for effect in world.effects] == [fx.AcknowledgeReceipt]
    ending, detail = LeaseEnding.OWNER_RETURNED, ""
    attempt = (world.now_ms, thief.vehicle_id, thief.epoch, lease.lease_id)
    world.arrive(ev.LeaseReleased(*attempt, ending, detail, 0))
    failure = Failure.RUNTIME_CRASHED
    world.arrive(ev.AttemptFailed(*attempt, event.results[0].unit_id, failure, detail, 0))
    assert world.leases(car) == [lease]
    assert world.vehicle(thief).reward_micro == 0
    world.finish(car)
    assert world.records[batch_id].requests_completed == 1


@pytest.mark.parametrize("answers", [0, 2])
def test_a_result_with_another_number_of_answers_is_a_failure(answers: int) -> None:
    world = World(ONE)
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    event = receipt(world, car, answers)
    world.hand_in(event)
    assert world.said(fx.DropOutputs) == [fx.DropOutputs(*name_of(event))]
    assert world.records[batch_id].requests_completed == 0
    assert world.units(batch_id)[0].failed_on == (car.vehicle_id,)
    vehicle = world.vehicle(car)
    assert vehicle.attempts_lost == {Failure.OUTPUT_INCOMPLETE: 1}
    assert (vehicle.energy_mwh, vehicle.energy_lost_mwh, vehicle.reward_micro) == (0, 3, 0)


# Failures.


def test_another_car_tries_what_one_has_failed() -> None:
    world = World(ONE)
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    other = world.enrol("b")
    world.fail(car)
    assert [grant.vehicle_id for grant in world.said(fx.GrantLease)] == [other.vehicle_id]
    (unit,) = world.units(batch_id)
    assert (unit.failures, unit.failed_on) == (1, (car.vehicle_id,))
    assert world.vehicle(car).energy_lost_mwh == 1


def test_a_car_that_failed_a_unit_gets_others_meanwhile() -> None:
    world = World(ONE)
    car, other = world.enrol("a"), world.enrol("b")
    world.permit(other, Refusal.UNPLUGGED)
    batch_id = world.batch("batch", 2)
    first, second = world.units(batch_id)
    world.fail(car)
    (lease,) = world.leases(car)
    assert list(lease.unit_ids) == [second.unit_id]
    world.finish(car)
    assert world.leases(car) == [], "the other car shall try"
    world.permit(other)
    assert list(world.leases(other)[0].unit_ids) == [first.unit_id]


def test_the_only_car_tries_again_what_it_has_failed() -> None:
    world = World(ONE)
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    world.fail(car)
    assert len(world.leases(car)) == 1
    world.finish(car)
    assert world.records[batch_id].requests_completed == 1


def test_what_waits_again_goes_before_what_never_ran() -> None:
    world = World(ONE)
    car = world.enrol("a")
    batch_id = world.batch("batch", 3)
    world.release(car)
    assert list(world.leases(car)[0].unit_ids) == [world.units(batch_id)[0].unit_id]


def test_a_snapshot_keeps_the_order_of_what_waits_again() -> None:
    world = World(ONE)
    cars = [world.enrol(name) for name in "abc"]
    batch_id = world.batch("batch", 3)
    first, second, third = world.units(batch_id)
    holders = {
        unit.unit_id: car
        for car in cars
        for unit in (first, second, third)
        if list(world.leases(car)[0].unit_ids) == [unit.unit_id]
    }
    for car in cars:
        world.permit(car, Refusal.UNPLUGGED)
    for unit in (third, first, second):
        world.release(holders[unit.unit_id])
    again = Fleet(world.fleet.snapshot())
    world.permit(cars[0])
    assert again.handle(*world.history[-1]) == world.effects
    assert list(world.leases(cars[0])[0].unit_ids) == [third.unit_id], "what came back first"


def test_a_unit_that_three_cars_fail_is_at_fault_and_the_cars_are_not() -> None:
    world = World(ONE)
    cars = [world.enrol(name) for name in "abc"]
    for car in cars:
        world.permit(car, Refusal.UNPLUGGED)
    world.batch("batch", 1)
    for at, car in enumerate(cars):
        world.permit(car)
        assert len(world.leases(car)) == 1, at
        world.fail(car, Failure.OUT_OF_MEMORY)
    assert outcomes(world, "batch") == [
        (UnitEnding.FAILED_ON_SEVERAL_VEHICLES, "out_of_memory: why")
    ]
    assert [world.vehicle(car).failures_in_row for car in cars] == [0, 0, 0]


def test_three_cars_in_quarantine_for_one_unit_are_let_out() -> None:
    world = World(msgspec.structs.replace(ONE, quarantine_failures=1))
    cars = [world.enrol(name) for name in "abc"]
    for car in cars:
        world.permit(car, Refusal.UNPLUGGED)
    world.batch("batch", 1)
    for car in cars:
        world.permit(car)
        world.fail(car)
    world.batch("other", 3)
    assert [len(world.leases(car)) for car in cars] == [1, 1, 1]


def test_a_unit_is_tried_five_times_at_most() -> None:
    world = World(msgspec.structs.replace(ONE, overdue_allowance_ms=10**9))
    car = world.enrol("a")
    world.batch("batch", 1)
    for _ in range(4):
        world.fail(car)
        world.tick(SETTINGS.quarantine_ms_max)
        assert "batch" not in world.assembled
    world.reboot(car)
    world.fail(car)
    assert outcomes(world, "batch") == [(UnitEnding.FAILED_TOO_OFTEN, "runtime_crashed: why")]


def test_a_failure_of_a_lease_that_has_ended_blames_nobody() -> None:
    world = World(ONE)
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    event = receipt(world, car)
    world.release(car)
    attempt = (event.lease_id, event.results[0].unit_id)
    stopped = ev.AttemptFailed(
        world.now_ms, car.vehicle_id, car.epoch, *attempt, Failure.STOPPED, "", 7
    )
    world.arrive(stopped)
    assert world.vehicle(car).failures_in_row == 0
    assert world.units(batch_id)[0].failures == 0
    assert world.vehicle(car).energy_lost_mwh == 8, "7, and 1 with the release"


# Endings.


def test_what_an_owner_takes_back_is_granted_elsewhere_at_once_and_is_no_fault() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    other = world.enrol("b")
    world.tick(700)
    (lease,) = world.leases(car)
    world.permit(car, Refusal.DRIVER_PRESENT)
    world.release(car)
    assert [grant.vehicle_id for grant in world.said(fx.GrantLease)] == [other.vehicle_id]
    assert world.said(fx.AcknowledgeReceipt)[0].lease_id == lease.lease_id
    vehicle = world.vehicle(car)
    assert vehicle.attempts_lost == {LeaseEnding.OWNER_RETURNED: 1}
    assert vehicle.lost_ms == 700
    assert vehicle.failures_in_row == 0
    assert {unit.failures for unit in world.units(batch_id)} == {0}


def test_a_release_that_comes_twice_is_acknowledged_twice() -> None:
    world = World(ONE)
    car = world.enrol("a")
    world.batch("batch", 1)
    (lease,) = world.leases(car)
    ending = LeaseEnding.OWNER_RETURNED
    attempt = (world.now_ms, car.vehicle_id, car.epoch, lease.lease_id)
    event = ev.LeaseReleased(*attempt, ending, "", 0)
    world.permit(car, Refusal.DRIVER_PRESENT)
    world.arrive(event)
    world.arrive(event)
    assert world.vehicle(car).attempts_lost == {ending: 1}


def test_a_model_that_does_not_load_is_a_fault_of_the_car_for_each_of_the_units() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 6)
    world.enrol("b")
    (lease,) = world.leases(car)
    failed = list(lease.unit_ids)
    world.release(car, LeaseEnding.MODEL_UNAVAILABLE)
    units = {unit.unit_id: unit for unit in world.units(batch_id)}
    assert [units[one].failed_on for one in failed] == [(car.vehicle_id,)] * 3
    vehicle = world.vehicle(car)
    assert (vehicle.failures_in_row, vehicle.lost_ms) == (1, 0)
    assert vehicle.attempts_lost == {LeaseEnding.MODEL_UNAVAILABLE: 1}


def test_a_model_that_loads_nowhere_ends_the_unit() -> None:
    world = World(ONE)
    cars = [world.enrol(name) for name in "abc"]
    world.batch("batch", 1)
    for _ in cars:
        (holder,) = [car for car in cars if world.leases(car)]
        world.release(holder, LeaseEnding.MODEL_UNAVAILABLE)
    assert outcomes(world, "batch") == [(UnitEnding.FAILED_ON_SEVERAL_VEHICLES, "why")]


def test_a_car_that_is_heard_but_does_not_get_on_loses_its_lease() -> None:
    world = World(ONE)
    car, other = world.enrol("a"), world.enrol("b")
    world.permit(other, Refusal.UNPLUGGED)
    world.batch("batch", 1)
    world.permit(car)
    (lease,) = world.leases(car)
    predicted_ms = 100 * 1_000 // 1_000
    assert lease.overdue_ms == world.now_ms + 5 * predicted_ms + SETTINGS.overdue_allowance_ms
    world.permit(other)
    world.tick(lease.overdue_ms - world.now_ms)
    assert world.leases(car) == [lease], "it is looked at in the second that follows"
    world.permit(car, Refusal.UNPLUGGED)
    world.tick(1_000)
    assert world.leases(car) == []
    assert world.leases(other)
    vehicle = world.vehicle(car)
    assert vehicle.attempts_lost == {LeaseEnding.OVERDUE: 1}
    assert vehicle.failures_in_row == 1


def test_a_lease_that_is_overdue_is_revoked() -> None:
    world = World(ONE)
    car = world.enrol("a")
    world.batch("batch", 1)
    world.permit(car, Refusal.UNPLUGGED)
    (lease,) = world.leases(car)
    world.tick(10 * SETTINGS.overdue_allowance_ms)
    revoked = [one for one in world.revoked if one.lease_id == lease.lease_id]
    assert [one.ending for one in revoked] == [LeaseEnding.OVERDUE]


def test_a_lease_that_ended_in_time_is_never_overdue() -> None:
    world = World(ONE)
    car = world.enrol("a")
    world.batch("batch", 1)
    world.finish(car)
    world.tick(10 * SETTINGS.overdue_allowance_ms)
    assert world.revoked == []
    assert world.vehicle(car).failures_in_row == 0


# Groups of events.


def test_a_group_of_events_is_matched_once_at_its_end() -> None:
    world = World(ONE)
    car = world.enrol("a")
    world.batch("batch", 2)
    event = receipt(world, car)
    refused = ev.PermitChanged(world.now_ms, car.vehicle_id, car.epoch, (Refusal.UNPLUGGED,))
    del car.held[event.lease_id]
    world.happen(event, refused)
    assert world.said(fx.GrantLease) == [], "who refuses in the same group gets nothing"


def test_time_never_runs_back() -> None:
    world = World()
    car = world.enrol("a")
    world.tick(5_000)
    world.permit(car)
    world.happen(ev.PermitChanged(1, car.vehicle_id, car.epoch, ()))
    assert world.fleet.state.now_ms == world.now_ms


def test_a_batch_ends_when_its_last_unit_does() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 4)
    while world.finish(car):
        pass
    assert world.records[batch_id].state is BatchState.FINALIZING
    assert [ending for ending, _ in outcomes(world, "batch")] == [None] * 4


def test_work_that_needs_more_memory_waits_for_the_car_that_has_it() -> None:
    world = World()
    small = world.enrol("small")
    small.capability = Capability(("onnx",), 256, 1)
    world.connect(small)
    large = world.enrol("large")
    world.batch("batch", 2)
    assert (len(world.leases(small)), len(world.leases(large))) == (0, 1)
