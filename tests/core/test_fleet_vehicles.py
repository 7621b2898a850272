"""Vehicles come, go, fall silent and change their minds; what the fleet does then."""

import msgspec
import pytest

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.capability import Capability
from terafleet.core.fleet import Fleet
from terafleet.core.ids import Epoch, LeaseId, RequestId, VehicleId, WorkUnitId
from terafleet.core.reasons import LeaseEnding, Refusal, Refused, Waiting
from terafleet.core.records import VehicleState
from terafleet.core.settings import FleetSettings
from tests.core.fleet_world import SETTINGS, Car, World

LEASE_MS = SETTINGS.lease_ms
REQUEST = RequestId("request")


def state_of(world: World, car: Car) -> VehicleState:
    """What a car is to the fleet."""
    return world.vehicle(car).state


def change_slots(world: World, car: Car, slots: int) -> None:
    """A car offers another number of slots."""
    car.capability = msgspec.structs.replace(car.capability, slots=slots)
    event = ev.CapabilityChanged(world.now_ms, car.vehicle_id, car.epoch, car.capability)
    world.happen(event)


# Enrolment and epochs.


def test_a_car_that_is_not_enrolled_is_fenced() -> None:
    fleet = Fleet()
    stranger = VehicleId("veh-stranger")
    hello = ev.VehicleConnected(1_000, stranger, "boot", Capability(("onnx",), 1, 1), (), ())
    assert fleet.handle(hello) == [fx.FenceVehicle(stranger, Epoch(0))]
    assert not fleet.state.vehicles


def test_each_hello_begins_an_epoch_that_no_car_had_before() -> None:
    world = World()
    first, second = world.enrol("a"), world.enrol("b")
    assert (first.epoch, second.epoch) == (1, 2)
    world.connect(first)
    assert first.epoch == 3
    lease_ms, margin_ms = SETTINGS.lease_ms, SETTINGS.margin_ms
    terms = (lease_ms, margin_ms, SETTINGS.plan.asking_micro_per_hour_max)
    welcome = fx.WelcomeVehicle(first.vehicle_id, Epoch(3), "boot", *terms)
    assert world.said(fx.WelcomeVehicle) == [welcome]


def test_another_process_with_the_same_identity_fences_the_one_before() -> None:
    world = World()
    car = world.enrol("a")
    world.connect(car, boot_id="boot")
    assert world.said(fx.FenceVehicle) == [], "a process that connects again is the same one"
    epoch = car.epoch
    world.connect(car, boot_id="another")
    kinds = [type(effect) for effect in world.effects]
    assert world.said(fx.FenceVehicle) == [fx.FenceVehicle(car.vehicle_id, epoch)]
    assert kinds.index(fx.FenceVehicle) < kinds.index(fx.WelcomeVehicle)


def test_enrolling_again_changes_the_name_only() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1)
    world.happen(ev.VehicleEnrolled(world.now_ms, car.vehicle_id, "another", REQUEST))
    assert world.answers[REQUEST].refused is None
    assert world.vehicle(car).name == "another"
    assert world.leases(car)


def test_what_bears_an_old_epoch_changes_nothing() -> None:
    world = World()
    car = world.enrol("a")
    old = car.epoch
    world.connect(car)
    world.batch("batch", 1)
    before = world.fleet.snapshot()
    smaller = Capability(("onnx",), 1, 1)
    for event in (
        ev.PermitChanged(world.now_ms, car.vehicle_id, old, (Refusal.UNPLUGGED,)),
        ev.CapabilityChanged(world.now_ms, car.vehicle_id, old, smaller),
        ev.VehicleSilent(world.now_ms, car.vehicle_id, old, world.now_ms),
        ev.VehicleHeard(world.now_ms, car.vehicle_id, old),
        ev.VehicleLeft(world.now_ms, car.vehicle_id, old),
    ):
        assert world.happen(event) == []
    assert world.fleet.snapshot() == before


def test_the_states_of_a_vehicle() -> None:
    world = World()
    car = world.enrol("a")
    assert state_of(world, car) is VehicleState.IDLE
    world.batch("batch", 1)
    assert state_of(world, car) is VehicleState.LEASED
    world.permit(car, Refusal.UNPLUGGED)
    assert state_of(world, car) is VehicleState.REFUSING
    world.drain(car)
    assert state_of(world, car) is VehicleState.DRAINING
    world.fall_silent(car)
    assert state_of(world, car) is VehicleState.OFFLINE
    world.speak_again(car)
    assert state_of(world, car) is VehicleState.DRAINING
    world.leave(car)
    assert state_of(world, car) is VehicleState.OFFLINE


# Permits.


def test_a_car_that_refuses_gets_nothing_and_keeps_what_it_has() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 7)
    (lease,) = world.leases(car)
    world.permit(car, Refusal.DRIVER_PRESENT)
    assert world.leases(car) == [lease], "its own receipts end it"
    world.release(car)
    assert world.leases(car) == []
    world.permit(car)
    assert len(world.leases(car)) == 1


def test_a_drained_car_ends_its_work_and_gets_no_more() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 5)
    world.happen(ev.VehicleDrained(world.now_ms, car.vehicle_id, True, REQUEST))
    assert world.answers[REQUEST].refused is None
    while world.finish(car):
        pass
    assert world.fleet.state.units
    assert world.leases(car) == []
    world.drain(car, False)
    assert len(world.leases(car)) == 1


# Silence.


def test_a_silent_car_keeps_its_lease_until_it_has_ended_in_the_car() -> None:
    world = World()
    car, other = world.enrol("a"), world.enrol("b")
    world.permit(other, Refusal.UNPLUGGED)
    batch_id = world.batch("batch", 1)
    began_ms = world.now_ms
    world.tick(10_000)
    world.fall_silent(car, since_ms=10_000)
    world.permit(other)
    assert world.leases(other) == [], "no unit is at work in two cars"
    world.tick(LEASE_MS - 10_001)
    assert world.leases(car)
    world.tick(1)
    assert world.now_ms == began_ms + LEASE_MS
    assert world.leases(car) == []
    first = world.units(batch_id)[0].unit_id
    assert [list(one.unit_ids) for one in world.leases(other)] == [[first]]
    assert world.vehicle(car).epoch == 0
    assert world.vehicle(car).attempts_lost == {LeaseEnding.LINK_SILENT: 1}


def test_whoever_was_away_for_too_long_is_fenced() -> None:
    world = World()
    car = world.enrol("a")
    epoch = car.epoch
    world.fall_silent(car)
    world.tick(LEASE_MS)
    assert world.said(fx.FenceVehicle) == [fx.FenceVehicle(car.vehicle_id, epoch)]
    event = ev.VehicleHeard(world.now_ms, car.vehicle_id, epoch)
    assert world.happen(event) == []


def test_a_car_that_speaks_again_in_time_goes_on() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    world.fall_silent(car)
    world.tick(LEASE_MS - 1)
    world.speak_again(car)
    world.tick(10 * LEASE_MS)
    assert world.leases(car)
    world.finish(car)
    assert world.records[batch_id].requests_completed == 1


def test_each_silence_counts_anew() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1)
    world.fall_silent(car)
    world.tick(LEASE_MS - 1)
    world.speak_again(car)
    world.fall_silent(car)
    world.tick(LEASE_MS - 1)
    assert world.leases(car)
    world.tick(1)
    assert not world.leases(car)


def test_a_silence_that_is_over_when_it_is_told_ends_at_once() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1)
    world.tick(60_000)
    world.fall_silent(car, since_ms=60_000)
    world.tick(0)
    assert world.leases(car) == []
    assert world.vehicle(car).lost_ms == 0, "since it was heard last nothing was lost"


def test_a_silent_car_gets_nothing() -> None:
    world = World()
    car = world.enrol("a")
    world.fall_silent(car)
    world.batch("batch", 1)
    assert world.leases(car) == []
    world.speak_again(car)
    assert len(world.leases(car)) == 1


# Leaving.


def test_the_work_of_a_car_that_leaves_is_granted_elsewhere_at_once() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1)
    other = world.enrol("b")
    world.leave(car)
    assert world.said(fx.FenceVehicle)
    assert [grant.vehicle_id for grant in world.said(fx.GrantLease)] == [other.vehicle_id]


def test_a_car_that_is_removed_is_unknown() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    world.happen(ev.VehicleRemoved(world.now_ms, car.vehicle_id, REQUEST))
    assert world.answers[REQUEST].refused is None
    assert world.said(fx.FenceVehicle)
    assert car.vehicle_id not in world.fleet.state.vehicles
    assert world.records[batch_id].waiting is Waiting.NO_VEHICLE_ONLINE
    world.connect(car)
    assert world.said(fx.FenceVehicle) == [fx.FenceVehicle(car.vehicle_id, Epoch(0))]


@pytest.mark.parametrize(
    "event",
    [
        ev.VehicleRemoved(1_000, VehicleId("veh-none"), REQUEST),
        ev.VehicleDrained(1_000, VehicleId("veh-none"), True, REQUEST),
    ],
)
def test_nothing_is_done_to_a_car_that_is_unknown(event: ev.FleetEvent) -> None:
    world = World()
    world.happen(event)
    answer = world.answers[REQUEST]
    assert (answer.refused, answer.detail) == (Refused.VEHICLE_UNKNOWN, "no such vehicle")


def test_a_car_that_was_removed_in_its_silence_and_enrolled_again_is_another_one() -> None:
    world = World()
    car = world.enrol("a")
    world.fall_silent(car)
    world.remove(car)
    again = world.enrol("a")
    world.batch("batch", 1)
    world.tick(LEASE_MS)
    assert world.leases(again)


# Connecting again.


def test_what_both_hold_goes_on() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 2)
    world.connect(car)
    assert world.said(fx.RevokeLease) == []
    assert world.said(fx.GrantLease) == []
    while world.finish(car):
        pass
    assert world.records[batch_id].requests_completed == 2


def test_what_the_car_does_not_hold_waits_again() -> None:
    world = World()
    car, other = world.enrol("a"), world.enrol("b")
    world.permit(other, Refusal.UNPLUGGED)
    batch_id = world.batch("batch", 1)
    world.permit(other)
    world.permit(car, Refusal.UNPLUGGED)
    world.reboot(car)
    assert [grant.vehicle_id for grant in world.said(fx.GrantLease)] == [other.vehicle_id]
    assert world.vehicle(car).attempts_lost == {LeaseEnding.LEASE_UNKNOWN: 1}
    assert world.units(batch_id)[0].failures == 0, "nobody is to blame"


def test_a_unit_that_the_car_does_not_hold_waits_again() -> None:
    world = World()
    car = world.enrol("a", slots=1)
    world.batch("batch", 7)
    (lease,) = world.leases(car)
    kept, *gone = lease.unit_ids
    car.held[lease.lease_id] = [kept]
    world.connect(car)
    assert list(lease.unit_ids) == [kept]
    world.finish(car)
    (after,) = world.leases(car)
    assert next(iter(after.unit_ids)) == gone[0], "what was lost goes first"


def test_what_the_fleet_does_not_know_is_revoked_once_the_car_can_hear_it() -> None:
    world = World()
    car = world.enrol("a")
    car.held[LeaseId(77)] = [WorkUnitId(7)]
    world.connect(car)
    kinds = [type(effect) for effect in world.effects]
    assert kinds == [fx.WelcomeVehicle, fx.RevokeLease]
    (revoke,) = world.said(fx.RevokeLease)
    assert (revoke.lease_id, revoke.epoch) == (77, car.epoch)
    assert revoke.ending is LeaseEnding.LEASE_UNKNOWN


def test_a_car_may_hand_in_after_connecting_again() -> None:
    """Its attempt ended while it was away, and the receipt waits for the acknowledgement."""
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    world.fall_silent(car)
    world.tick(LEASE_MS // 2)
    world.connect(car)
    world.finish(car)
    assert world.records[batch_id].requests_completed == 1


def test_a_restart_of_the_shard_counts_every_car_as_heard_and_asks_what_it_holds() -> None:
    world = World()
    car, silent, gone = world.enrol("a"), world.enrol("b"), world.enrol("c")
    world.batch("batch", 1)
    world.fall_silent(silent)
    world.leave(gone)
    world.tick(LEASE_MS - 1)
    world.happen(ev.ShardStarted(world.now_ms, SETTINGS))
    asked = {one.vehicle_id for one in world.said(fx.AskHello)}
    assert asked == {car.vehicle_id, silent.vehicle_id}
    world.tick(LEASE_MS)
    assert state_of(world, silent) is not VehicleState.OFFLINE


def test_a_restart_brings_the_settings_of_the_operator() -> None:
    world = World()
    world.happen(ev.ShardStarted(world.now_ms, FleetSettings(units_per_lease_max=1)))
    world.enrol("a")
    world.batch("batch", 7)
    (grant,) = world.said(fx.GrantLease)
    assert len(grant.units) == 1


# Capability.


def test_leases_beyond_the_slots_end() -> None:
    world = World(FleetSettings(units_per_lease_max=1))
    car = world.enrol("a", slots=3)
    batch_id = world.batch("batch", 3)
    oldest = world.leases(car)[0].lease_id
    change_slots(world, car, 1)
    assert [one.lease_id for one in world.leases(car)] == [oldest]
    assert [one.ending for one in world.said(fx.RevokeLease)] == [
        LeaseEnding.CONDITIONS_CHANGED,
        LeaseEnding.CONDITIONS_CHANGED,
    ]
    assert world.records[batch_id].units_ended == 0
    change_slots(world, car, 2)
    assert len(world.leases(car)) == 2


def test_a_car_without_slots_loses_all() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1)
    change_slots(world, car, 0)
    assert world.leases(car) == []


def test_fewer_slots_at_a_hello_are_revoked_in_the_epoch_that_begins() -> None:
    world = World(FleetSettings(units_per_lease_max=1))
    car = world.enrol("a", slots=2)
    world.batch("batch", 2)
    car.capability = msgspec.structs.replace(car.capability, slots=1)
    world.connect(car)
    kinds = [type(effect) for effect in world.effects]
    assert kinds.index(fx.WelcomeVehicle) < kinds.index(fx.RevokeLease)
    assert {one.epoch for one in world.said(fx.RevokeLease)} == {car.epoch}
    assert len(world.leases(car)) == 1


def test_a_car_that_can_run_a_model_no_longer_gets_none_of_its_work() -> None:
    world = World()
    car = world.enrol("a")
    car.capability = msgspec.structs.replace(car.capability, memory_mb=256)
    world.connect(car)
    batch_id = world.batch("batch", 1)
    assert world.answers[RequestId("batch")].refused is Refused.NO_FEASIBLE_VEHICLE
    assert batch_id not in world.records
    assert world.leases(car) == []


def test_an_owner_policy_is_told_at_once_and_with_each_welcome() -> None:
    world = World()
    car = world.enrol("a")
    first = b'{"is_paused": true}'
    world.happen(ev.VehiclePolicySet(world.now_ms, car.vehicle_id, first, REQUEST))
    assert world.said(fx.OfferPolicy) == [fx.OfferPolicy(car.vehicle_id, car.epoch, first)]
    assert world.answers[REQUEST].refused is None
    world.leave(car)
    world.happen(ev.VehiclePolicySet(world.now_ms, car.vehicle_id, b"{}", REQUEST))
    assert world.said(fx.OfferPolicy) == [], "it is not there"
    world.fleet = Fleet(world.fleet.snapshot())
    world.connect(car)
    assert world.said(fx.OfferPolicy) == [fx.OfferPolicy(car.vehicle_id, car.epoch, b"{}")]


def test_an_owner_policy_of_an_unknown_car_is_refused() -> None:
    world = World()
    stranger = VehicleId("veh-none")
    world.happen(ev.VehiclePolicySet(world.now_ms, stranger, b"{}", REQUEST))
    assert world.answers[REQUEST].refused is Refused.VEHICLE_UNKNOWN
