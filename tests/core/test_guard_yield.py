"""How a car is given back in stages: finishing, stopping, killing; each by its story."""

from typing import Any

import msgspec
import pytest

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.guard_effects import GuardState
from terafleet.core.guard_owner import PRESS_MS_MIN
from terafleet.core.ids import SESSION_UNIT, LeaseId, ModelId, WorkUnitId
from terafleet.core.reasons import LeaseEnding, Refusal
from tests.core.guard_policy_world import learn_brief_stops
from tests.core.guard_world import ENDPOINT, MODEL, CarWorld, endings, state_of
from tests.core.guard_yield_world import (
    FINISH_MS,
    HOURS,
    STOP_MS,
    busy,
    kinds,
    learn,
    patient,
    well_again,
)

OTHER_MODEL = ModelId("other")


# Finishing.


def test_work_at_hand_ends_by_itself_and_is_handed_in() -> None:
    world, lease_id = busy(finish_ms=FINISH_MS)
    patient(world)
    assert world.effects == [fx.ReportPermit(GuardState.YIELDING, HOURS)]
    assert list(world.running) == [lease_id]
    world.tick(FINISH_MS - 1)
    assert world.has_processor
    world.finish()
    assert kinds(world) == [
        fx.SuspendRuntime,
        fx.SendReceipt,
        fx.ForgetLease,
        fx.KillRuntime,
    ]
    assert world.said(fx.SendReceipt)[0].results
    world.exit()
    assert world.guard.refusals == (Refusal.OUTSIDE_COMPUTE_HOURS,)


def test_work_that_takes_too_long_is_stopped_at_the_end_of_its_time() -> None:
    world, lease_id = busy(finish_ms=FINISH_MS)
    patient(world)
    world.tick(FINISH_MS)
    assert kinds(world)[0] is fx.SuspendRuntime
    assert endings(world) == [(lease_id, LeaseEnding.CONDITIONS_CHANGED)]
    assert world.is_killed


@pytest.mark.parametrize(("runtime_ms", "is_kept"), [(2_000, True), (2_001, False)])
def test_what_does_not_fit_is_given_back_at_once(runtime_ms: int, is_kept: bool) -> None:
    world, _ = busy(slots=2, finish_ms=FINISH_MS)
    learn(world, runtime_ms)
    patient(world)
    assert bool(world.running) == is_kept
    assert world.is_killed != is_kept


def test_what_has_run_for_a_while_may_fit() -> None:
    world, lease_id = busy(slots=2, finish_ms=FINISH_MS)
    learn(world, 5_000)
    world.tick(2_999)
    world.read()
    world.tick(1)
    patient(world)
    assert list(world.running) == [lease_id]


def test_of_two_leases_only_that_one_goes_on_that_fits() -> None:
    world, first = busy(slots=2, finish_ms=FINISH_MS)
    learn(world, 9_000)
    second = world.grant(model_id=OTHER_MODEL)
    world.model_ready()
    patient(world)
    assert list(world.running) == [second], "nobody knows the other model"
    assert endings(world) == [(first, LeaseEnding.CONDITIONS_CHANGED)]
    assert not world.is_suspended


def test_leases_that_wait_for_a_slot_are_given_back_at_once() -> None:
    world, first = busy(finish_ms=FINISH_MS)
    second = world.grant()
    patient(world)
    assert endings(world) == [(second, LeaseEnding.CONDITIONS_CHANGED)]
    assert list(world.running) == [first]
    grant = world.grant()
    assert endings(world) == [(grant, LeaseEnding.NOT_PERMITTED)]


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_rest_of_a_lease_is_given_back_after_the_unit_at_hand(is_broken: bool) -> None:
    world, first = busy(slots=2, units=3, finish_ms=FINISH_MS)
    second = world.grant(units=2)
    patient(world)
    assert list(world.running) == [first, second]
    if is_broken:
        world.break_attempt()
    else:
        world.finish()
    assert [one.ending is None for one in world.said(fx.SendReceipt)] == [True, False]
    assert endings(world) == [(first, LeaseEnding.CONDITIONS_CHANGED)]
    assert list(world.running) == [second]
    assert not world.is_suspended
    world.finish()
    assert endings(world) == [(second, LeaseEnding.CONDITIONS_CHANGED)]
    assert world.is_killed


@pytest.mark.parametrize("change", [{"is_driver_present": True}, {"soc_percent": None}])
def test_an_urgent_reason_ends_the_patience(change: dict[str, Any]) -> None:
    world, lease_id = busy(finish_ms=FINISH_MS, stop_ms=STOP_MS)
    patient(world)
    world.tick(500)
    world.read(**change)
    assert kinds(world) == [
        fx.SuspendRuntime,
        fx.StopAttempts,
        fx.ForgetLease,
        fx.SendReceipt,
        fx.KillRuntime,
        fx.ReportPermit,
    ]
    assert endings(world)[0][0] == lease_id


def test_reasons_that_vanish_let_the_car_go_on_as_if_nothing_had_been() -> None:
    world, lease_id = busy(slots=2, finish_ms=FINISH_MS)
    patient(world)
    world.tick(500)
    well_again(world)
    assert world.effects == [fx.ReportPermit(GuardState.PERMITTING, ())]
    second = world.grant()
    assert list(world.running) == [lease_id, second]
    assert world.guard.next_deadline_ms() != world.now_ms + FINISH_MS - 500


def test_an_owner_who_takes_the_patience_back_gets_the_car() -> None:
    world, _ = busy(finish_ms=FINISH_MS)
    patient(world)
    hasty = msgspec.structs.replace(world.policy.giving_back, finish_ms=0)
    world.change_policy(msgspec.structs.replace(world.policy, giving_back=hasty))
    assert world.is_killed


def test_an_agent_that_stops_drains() -> None:
    world, lease_id = busy(units=2, finish_ms=FINISH_MS)
    world.happen(ev.AgentStopping(world.now_ms))
    assert state_of(world) is GuardState.YIELDING
    assert list(world.running) == [lease_id]
    world.finish()
    assert endings(world) == [(lease_id, LeaseEnding.AGENT_STOPPED)]
    assert world.is_killed
    world.exit()
    assert world.guard.refusals == (Refusal.AGENT_STOPPING,)


def test_a_runtime_that_dies_while_it_finishes_ends_the_yield() -> None:
    world, lease_id = busy(units=3, finish_ms=FINISH_MS)
    patient(world)
    world.exit(is_told_first=True)
    assert endings(world) == [(lease_id, LeaseEnding.CONDITIONS_CHANGED)]
    assert state_of(world) is GuardState.REFUSING


@pytest.mark.parametrize("how", ["revoke", "fence", "silent", "unavailable", "replaced"])
@pytest.mark.parametrize("stage", ["finishing", "suspended"])
def test_with_its_last_lease_gone_a_car_waits_for_nothing(how: str, stage: str) -> None:
    world, lease_id = busy(finish_ms=10_000, suspend_ms=20_000, stale_ms=60_000)
    if stage == "suspended":
        world.finish()
        learn_brief_stops(world)
        world.permit()
        lease_id = world.grant()
        world.model_ready()
        world.read(is_driver_present=True)
    else:
        patient(world)
    assert not world.is_killed
    lose(world, lease_id, how)
    assert world.guard.lease_ids == ()
    assert world.is_killed


def lose(world: CarWorld, lease_id: LeaseId, how: str) -> None:
    """A lease ends by what the control plane, the link or the model does."""
    match how:
        case "revoke":
            world.happen(ev.LeaseRevoked(world.now_ms, lease_id, LeaseEnding.OVERDUE))
        case "fence":
            world.happen(ev.LinkFenced(world.now_ms, world.guard.epoch))
        case "silent":
            world.now_ms = world.guard.leases_end_ms
            world.happen(ev.GuardTimeAdvanced(world.now_ms))
        case "unavailable":
            world.fail_load(MODEL)
        case "replaced":
            world.granted.pop(lease_id)
            units = (ev.LeasedUnit(WorkUnitId(SESSION_UNIT), 1),)
            grant = (LeaseId(999), MODEL, ENDPOINT, units, lease_id)
            world.happen(ev.LeaseGranted(world.now_ms, world.guard.epoch, *grant))


# Stopping.


def test_what_did_not_end_in_time_may_stop_by_itself() -> None:
    world, lease_id = busy(finish_ms=FINISH_MS, stop_ms=STOP_MS)
    patient(world)
    world.tick(FINISH_MS)
    assert kinds(world) == [fx.StopAttempts, fx.ForgetLease, fx.SendReceipt]
    assert endings(world) == [(lease_id, LeaseEnding.CONDITIONS_CHANGED)]
    world.tick(STOP_MS - 1)
    assert not world.is_suspended
    world.tick(1)
    assert kinds(world) == [fx.SuspendRuntime, fx.KillRuntime]


def test_who_waits_for_no_end_may_still_let_it_stop() -> None:
    world, _ = busy(stop_ms=STOP_MS)
    patient(world)
    assert kinds(world) == [fx.StopAttempts, fx.ForgetLease, fx.SendReceipt, fx.ReportPermit]
    world.tick(STOP_MS)
    assert world.is_killed


def test_a_runtime_that_stopped_in_time_is_not_killed() -> None:
    world, _ = busy(stop_ms=STOP_MS)
    patient(world)
    world.exit()
    assert state_of(world) is GuardState.REFUSING
    assert not world.is_killed


def test_a_runtime_without_work_has_nothing_to_stop() -> None:
    world, _ = busy(finish_ms=FINISH_MS, stop_ms=STOP_MS)
    world.finish()
    patient(world)
    assert world.is_killed


def test_who_comes_does_not_wait_for_a_stop() -> None:
    world, _ = busy(stop_ms=STOP_MS)
    patient(world)
    world.read(is_driver_present=True)
    assert kinds(world)[0] is fx.SuspendRuntime
    assert world.is_killed


def test_a_stop_is_not_undone() -> None:
    world, _ = busy(stop_ms=STOP_MS)
    patient(world)
    well_again(world)
    assert state_of(world) is GuardState.YIELDING
    world.tick(STOP_MS)
    assert world.is_killed
    world.exit()
    assert state_of(world) is GuardState.SETTLING


# Killing.


def test_a_kill_is_never_repeated_in_a_rush() -> None:
    world, _ = busy(release_ms=0)
    world.read(is_driver_present=True)
    assert world.guard.next_deadline_ms() == world.now_ms + PRESS_MS_MIN
