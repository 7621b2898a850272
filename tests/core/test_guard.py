"""The guard in plain stories: how a car comes to compute, and how it gives everything back."""

from typing import Any

import msgspec
import pytest

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.events import HeldLease
from terafleet.core.guard import Guard
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import WHOLE_LEASE, ModelId, ReceiptId
from terafleet.core.policy import OwnerPolicy, YieldPolicy
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from tests.core.guard_world import (
    ENDPOINT,
    MODEL,
    POLICY,
    CarWorld,
    endings,
    result_of,
    state_of,
    unit,
)

OTHER_MODEL = ModelId("other")


# Coming to compute.


def test_a_guard_refuses_until_it_knows_better() -> None:
    guard = Guard()
    assert guard.state is GuardState.REFUSING
    assert guard.refusals == (Refusal.AGENT_STARTING,)
    assert guard.next_deadline_ms() is None
    effects = guard.handle(ev.AgentStarted(1_000, POLICY, 1))
    refusing = fx.ReportPermit(GuardState.REFUSING, (Refusal.READING_MISSING,))
    assert effects == [refusing]


def test_a_car_settles_before_it_permits() -> None:
    world = CarWorld()
    world.read()
    assert state_of(world) is GuardState.SETTLING
    assert world.guard.refusals == (Refusal.SETTLING,)
    world.tick(POLICY.giving_back.settle_ms - 1)
    assert state_of(world) is GuardState.SETTLING
    world.tick(1)
    assert state_of(world) is GuardState.PERMITTING
    assert world.said(fx.ReportPermit) == [fx.ReportPermit(GuardState.PERMITTING, ())]


def test_one_bad_reading_begins_the_settling_anew() -> None:
    world = CarWorld()
    world.read()
    world.tick(POLICY.giving_back.settle_ms - 1)
    world.read(compute_temperature_c=81.0)
    assert world.guard.refusals == (Refusal.TEMPERATURE_COMPUTE,)
    world.read()
    world.tick(POLICY.giving_back.settle_ms - 1)
    assert state_of(world) is GuardState.SETTLING
    world.tick(1)
    assert state_of(world) is GuardState.PERMITTING


def test_who_need_not_settle_permits_at_once() -> None:
    world = CarWorld(policy=OwnerPolicy(giving_back=YieldPolicy(settle_ms=0)))
    world.read()
    assert state_of(world) is GuardState.PERMITTING


def test_nothing_is_reported_twice() -> None:
    world = CarWorld()
    world.permit()
    before = len(world.reports)
    for _ in range(3):
        world.tick(1_000)
        world.read()
    assert len(world.reports) == before


@pytest.mark.parametrize(
    ("name", "stays", "goes", "returns"),
    [("soc_percent", 50.0, 49.9, 55.0), ("compute_temperature_c", 85.0, 85.1, 80.0)],
)
def test_a_limit_has_two_levels(name: str, stays: float, goes: float, returns: float) -> None:
    world = CarWorld()
    world.permit()

    def read(value: float) -> GuardState:
        readings: dict[str, Any] = {name: value}
        world.read(**readings)
        return state_of(world)

    assert read(stays) is GuardState.PERMITTING
    assert read(goes) is GuardState.REFUSING
    assert read(stays) is GuardState.REFUSING, "it does not flap"
    assert read(returns) is GuardState.SETTLING


# Working.


def test_a_lease_from_its_grant_to_its_last_receipt() -> None:
    world = CarWorld()
    world.welcome()
    world.permit()
    lease_id = world.grant(units=3)
    units = tuple(unit(lease_id, at) for at in range(3))
    assert world.effects == [fx.PrepareModel(MODEL)]
    world.model_ready()
    assert world.effects == [fx.StartAttempts(lease_id, units, MODEL, ENDPOINT)]
    world.finish(2)
    (receipt,) = world.said(fx.SendReceipt)
    assert (receipt.lease_id, receipt.receipt_id) == (lease_id, ReceiptId(units[0]))
    assert receipt.results == (result_of(units[0]), result_of(units[1]))
    assert world.effects == [receipt], "what is still open runs already"
    world.finish()
    assert [type(effect) for effect in world.effects] == [fx.SendReceipt, fx.ForgetLease]
    assert world.guard.lease_ids == ()
    assert world.guard.running == 0
    assert len(world.guard.receipts()) == 2
    world.acknowledge()
    assert world.effects == [fx.ForgetReceipts(((lease_id, receipt.receipt_id),))]
    world.acknowledge()
    assert world.guard.receipts() == []


def test_each_slot_runs_one_lease() -> None:
    world = CarWorld(slots=2)
    first = world.work(units=2)
    second = world.grant(units=2)
    assert list(world.running) == [first, second]
    third = world.grant()
    assert list(world.running) == [first, second], "a third lease waits for a slot"
    assert world.guard.running == 2
    world.finish(1, at=0)
    world.finish(1, at=1)
    assert list(world.running) == [first, second], "each has another unit"
    world.finish(1, at=1)
    assert list(world.running) == [first, third]


def test_a_free_slot_goes_to_the_lease_that_was_granted_first() -> None:
    world = CarWorld()
    world.welcome()
    world.permit()
    first = world.grant(model_id=OTHER_MODEL)
    second, third = world.grant(units=3), world.grant()
    world.model_ready(MODEL)
    assert list(world.running) == [second], "the first one's model is not ready"
    world.finish(2)
    world.model_ready(OTHER_MODEL)
    assert list(world.running) == [second], "a run goes on to its end"
    world.finish()
    assert list(world.running) == [first]
    world.finish()
    assert list(world.running) == [third]


def test_a_model_is_prepared_once() -> None:
    world = CarWorld(slots=2)
    world.work()
    world.grant()
    assert world.said(fx.PrepareModel) == []
    world.grant(model_id=OTHER_MODEL)
    assert world.said(fx.PrepareModel) == [fx.PrepareModel(OTHER_MODEL)]


def test_a_model_that_is_unavailable_gives_its_leases_back_with_the_reason() -> None:
    world = CarWorld(slots=2)
    world.welcome()
    world.permit()
    lease_id, other = world.grant(units=3), world.grant(model_id=OTHER_MODEL)
    event = ev.ModelUnavailable(world.now_ms, MODEL, Failure.OUT_OF_MEMORY, "9 of 8 GB")
    world.happen(event)
    (receipt,) = world.said(fx.SendReceipt)
    assert (receipt.lease_id, receipt.receipt_id) == (lease_id, WHOLE_LEASE)
    assert receipt.ending is LeaseEnding.MODEL_UNAVAILABLE
    assert receipt.detail == "out_of_memory: 9 of 8 GB"
    assert world.guard.lease_ids == (other,)
    assert state_of(world) is GuardState.PERMITTING
    world.grant()
    assert world.said(fx.PrepareModel) == [fx.PrepareModel(MODEL)], "it may be tried again"


def test_a_runtime_that_crashed_is_prepared_again() -> None:
    world = CarWorld()
    lease_id = world.work(units=3)
    world.break_attempt()
    world.happen(ev.RuntimeExited(world.now_ms, "signal 9"))
    assert world.effects == [fx.PrepareModel(MODEL)]
    assert state_of(world) is GuardState.PERMITTING
    world.break_attempt()
    assert not world.running, "nothing starts before the model stands again"
    world.model_ready()
    assert world.running == {lease_id: [unit(lease_id, 2)]}


def test_a_runtime_that_crashed_without_work_is_left_alone() -> None:
    world = CarWorld()
    world.work()
    world.finish()
    world.happen(ev.RuntimeExited(world.now_ms, "signal 9"))
    assert world.effects == []
    world.grant()
    assert world.said(fx.PrepareModel) == [fx.PrepareModel(MODEL)]


def test_a_grant_to_a_car_that_refuses_is_given_back() -> None:
    world = CarWorld()
    world.welcome()
    lease_id = world.grant()
    assert endings(world) == [(lease_id, LeaseEnding.NOT_PERMITTED)]
    assert fx.ForgetLease(lease_id) in world.effects
    assert world.guard.lease_ids == ()


def test_a_grant_of_another_epoch_or_a_second_time_changes_nothing() -> None:
    world = CarWorld()
    lease_id = world.work(units=2)
    world.grant(epoch=7)
    assert world.effects == []
    units = (ev.LeasedUnit(unit(lease_id), 1),)
    epoch = world.guard.epoch
    again = ev.LeaseGranted(world.now_ms, epoch, lease_id, MODEL, ENDPOINT, units)
    assert world.happen(again) == []
    assert world.guard.held() == (HeldLease(lease_id, (unit(lease_id), unit(lease_id, 1))),)


def test_a_revoked_lease_stops_and_needs_no_receipt() -> None:
    world = CarWorld(slots=1)
    first, second = world.work(units=3), world.grant()
    world.happen(ev.LeaseRevoked(world.now_ms, first, LeaseEnding.BATCH_CANCELLED))
    assert world.effects == [
        fx.StopAttempts(first),
        fx.ForgetLease(first),
        fx.StartAttempts(second, (unit(second),), MODEL, ENDPOINT),
    ]
    assert world.happen(ev.LeaseRevoked(world.now_ms, first, LeaseEnding.OVERDUE)) == []


def test_energy_that_was_spent_in_vain_is_still_told() -> None:
    world = CarWorld()
    lease_id = world.work()
    world.happen(ev.LeaseRevoked(world.now_ms, lease_id, LeaseEnding.OVERDUE))
    failure = Failure.STOPPED
    broke = ev.AttemptBroke(world.now_ms, lease_id, unit(lease_id), failure, "", energy_mwh=0)
    assert world.happen(broke) == []
    world.happen(msgspec.structs.replace(broke, energy_mwh=4))
    (receipt,) = world.said(fx.SendReceipt)
    assert (receipt.failure, receipt.energy_mwh) == (Failure.STOPPED, 4)


# Giving the car back.


@pytest.mark.parametrize(
    ("readings", "ending"),
    [
        ({"is_driver_present": True}, LeaseEnding.OWNER_RETURNED),
        ({"is_parked": False}, LeaseEnding.OWNER_RETURNED),
        ({"is_plugged_in": False}, LeaseEnding.CONDITIONS_CHANGED),
        ({"is_plugged_in": None}, LeaseEnding.CONDITIONS_CHANGED),
    ],
)
def test_the_processor_is_given_back_before_all_else(
    readings: dict[str, bool | None], ending: LeaseEnding
) -> None:
    world = CarWorld(slots=2)
    first, second = world.work(units=2), world.grant()
    world.read(**readings)
    kinds = [type(effect) for effect in world.effects]
    assert kinds == [
        fx.SuspendRuntime,
        fx.StopAttempts,
        fx.ForgetLease,
        fx.SendReceipt,
        fx.StopAttempts,
        fx.ForgetLease,
        fx.SendReceipt,
        fx.KillRuntime,
        fx.ReportPermit,
    ]
    assert endings(world) == [(first, ending), (second, ending)]
    assert state_of(world) is GuardState.YIELDING
    assert world.guard.refusals[0] is Refusal.YIELDING


def test_it_presses_until_the_runtime_is_gone() -> None:
    world = CarWorld()
    world.work()
    world.read(is_driver_present=True)
    assert world.said(fx.KillRuntime) == [fx.KillRuntime()]
    for _ in range(3):
        world.tick(POLICY.giving_back.release_ms - 1)
        assert world.said(fx.KillRuntime) != []
        world.effects.clear()
        world.tick(1)
        assert world.said(fx.KillRuntime) == [fx.KillRuntime()]
    world.exit()
    assert state_of(world) is GuardState.REFUSING
    assert world.guard.refusals == (Refusal.DRIVER_PRESENT,)
    deadline_ms = world.guard.next_deadline_ms()
    assert deadline_ms is not None
    release_ms = POLICY.giving_back.release_ms
    assert deadline_ms > world.now_ms + release_ms, "there is nothing left to press"


def test_a_car_whose_owner_leaves_at_once_still_gives_everything_back_first() -> None:
    world = CarWorld()
    world.work()
    world.read(is_driver_present=True)
    world.read()
    assert state_of(world) is GuardState.YIELDING
    assert world.guard.refusals == (Refusal.YIELDING,)
    world.exit()
    assert state_of(world) is GuardState.SETTLING
    world.tick(POLICY.giving_back.settle_ms)
    assert state_of(world) is GuardState.PERMITTING


def test_without_a_runtime_there_is_nothing_to_give_back() -> None:
    world = CarWorld()
    world.permit()
    world.read(is_driver_present=True)
    driver = (Refusal.DRIVER_PRESENT,)
    assert world.effects == [fx.ReportPermit(GuardState.REFUSING, driver)]


def test_time_alone_makes_a_reading_stale() -> None:
    world = CarWorld()
    world.work()
    world.tick(POLICY.giving_back.stale_ms - POLICY.giving_back.settle_ms)
    assert state_of(world) is GuardState.PERMITTING
    world.tick(1)
    assert state_of(world) is GuardState.YIELDING
    assert Refusal.READING_STALE in world.guard.refusals
    assert not world.running


def test_an_owner_who_pauses_gets_the_car_back() -> None:
    world = CarWorld()
    world.work()
    paused = msgspec.structs.replace(POLICY, is_paused=True)
    world.happen(ev.PolicyChanged(world.now_ms, paused))
    assert isinstance(world.effects[0], fx.SuspendRuntime)
    assert world.guard.refusals == (Refusal.YIELDING, Refusal.OWNER_PAUSED)
    world.exit()
    world.happen(ev.PolicyChanged(world.now_ms, POLICY))
    assert state_of(world) is GuardState.SETTLING


def test_an_agent_that_stops_gives_everything_back_and_permits_no_more() -> None:
    world = CarWorld()
    lease_id = world.work()
    world.happen(ev.AgentStopping(world.now_ms))
    assert endings(world) == [(lease_id, LeaseEnding.AGENT_STOPPED)]
    assert Refusal.AGENT_STOPPING in world.guard.refusals
    world.exit()
    world.permit()
    assert world.guard.refusals == (Refusal.AGENT_STOPPING,)
