"""Cars that fail in a row get a pause, and batches say why they wait."""

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.fleet import Fleet
from terafleet.core.ids import BatchId, VehicleId
from terafleet.core.reasons import Refusal, Waiting
from terafleet.core.settings import FleetSettings
from tests.core.fleet_world import NO_REQUEST, SETTINGS, World

# Quarantine.


def test_a_car_that_fails_in_a_row_gets_nothing_for_a_while_and_then_for_twice_as_long() -> None:
    world = World(FleetSettings(units_per_lease_max=1, failures_max=99, blame_vehicles=99))
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    world.fail(car)
    world.fail(car)
    assert world.leases(car)
    for pause_ms in (30_000, 60_000, 120_000):
        world.fail(car)
        assert world.records[batch_id].waiting is Waiting.VEHICLES_QUARANTINED
        world.tick(pause_ms - 1)
        assert world.leases(car) == []
        world.tick(1)
        assert len(world.leases(car)) == 1
    world.finish(car)
    assert world.vehicle(car).failures_in_row == 0


def test_no_quarantine_is_longer_than_an_hour() -> None:
    world = World(FleetSettings(failures_max=99, blame_vehicles=99, overdue_allowance_ms=10**9))
    car = world.enrol("a")
    world.batch("batch", 1, window_ms=10**9)
    for _ in range(30):
        world.fail(car)
        world.tick(SETTINGS.quarantine_ms_max)
        assert len(world.leases(car)) == 1


def test_a_success_begins_the_row_anew() -> None:
    world = World(FleetSettings(units_per_lease_max=1))
    car = world.enrol("a")
    world.batch("batch", 9)
    for _ in range(3):
        world.fail(car)
        world.fail(car)
        world.finish(car)
    assert len(world.leases(car)) == 1


def test_neither_a_reboot_nor_a_permit_ends_a_quarantine() -> None:
    world = World(FleetSettings(units_per_lease_max=1))
    car = world.enrol("a")
    world.batch("batch", 9)
    for _ in range(3):
        world.fail(car)
    world.reboot(car)
    world.permit(car, Refusal.UNPLUGGED)
    world.permit(car)
    assert world.leases(car) == []
    world.tick(SETTINGS.quarantine_ms)
    assert len(world.leases(car)) == 1


def test_a_snapshot_may_fall_between_the_end_of_a_quarantine_and_its_deadline() -> None:
    world = World(FleetSettings(units_per_lease_max=1))
    car = world.enrol("a")
    world.batch("batch", 9)
    for _ in range(3):
        world.fail(car)
    world.lag(SETTINGS.quarantine_ms)
    world.happen(ev.VehicleEnrolled(world.now_ms, VehicleId("veh-b"), "b", NO_REQUEST))
    again = Fleet(world.fleet.snapshot())
    again.check_invariants()
    event = ev.TimeAdvanced(world.now_ms)
    assert again.handle(event) == world.happen(event)
    assert world.said(fx.GrantLease)


def test_a_snapshot_keeps_the_order_in_which_cars_became_ready() -> None:
    world = World()
    cars = [world.enrol(name) for name in "cab"]
    again = Fleet(world.fleet.snapshot())
    world.create("batch", 1)
    again.handle(*world.history[-1])
    world.submit(BatchId("batch"), 1)
    assert again.handle(*world.history[-1]) == world.effects
    assert world.leases(cars[-1]), "the latest is taken"


# Why work waits.


def test_a_batch_says_why_it_waits() -> None:
    world = World()
    car = world.enrol("a")
    world.leave(car)
    batch_id = world.batch("batch", 9)
    assert world.records[batch_id].waiting is Waiting.NO_VEHICLE_ONLINE
    world.permit(car, Refusal.UNPLUGGED)
    world.reboot(car)
    assert world.records[batch_id].waiting is Waiting.ALL_VEHICLES_REFUSE
    world.permit(car)
    assert world.records[batch_id].waiting is None
    other = world.batch("other", 1)
    assert world.records[other].waiting is Waiting.ALL_SLOTS_TAKEN


def test_the_quarantine_of_a_car_that_is_away_is_no_reason_to_wait() -> None:
    world = World(FleetSettings(units_per_lease_max=1))
    bad = world.enrol("bad")
    world.batch("batch", 9)
    for _ in range(3):
        world.fail(bad)
    world.leave(bad)
    world.enrol("good")
    batch_id = world.batch("late", 1)
    assert world.records[batch_id].waiting is Waiting.ALL_SLOTS_TAKEN
