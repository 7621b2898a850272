"""A car that is likely to be free again soon: suspended in place, resumed, or given back."""

from typing import Any

import msgspec
import pytest

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.guard import Guard
from terafleet.core.guard_effects import GuardState
from terafleet.core.guard_yield import STOPS_KEPT, STOPS_KNOWN_MIN, ShortStops
from terafleet.core.ids import SESSION_UNIT, WHOLE_LEASE, LeaseId, ModelId, WorkUnitId
from terafleet.core.reasons import LeaseEnding, Refusal
from tests.core.guard_world import ENDPOINT, MODEL, POLICY, endings, state_of
from tests.core.guard_yield_world import (
    DRIVER,
    FINISH_MS,
    SETTLE_MS,
    STOP_MS,
    SUSPEND_MS,
    busy,
    kinds,
    learn,
    patient,
    suspendable,
)

OTHER_MODEL = ModelId("other")

# Suspended.


def test_without_experience_it_leaves() -> None:
    world, _ = busy(suspend_ms=SUSPEND_MS)
    world.read(is_driver_present=True)
    assert world.is_killed


def test_a_door_opened_and_closed_costs_nothing_but_the_time() -> None:
    world = suspendable()
    (lease_id,) = world.running
    world.read(is_driver_present=True)
    assert world.effects == [
        fx.SuspendRuntime(),
        fx.ReportPermit(GuardState.YIELDING, (Refusal.YIELDING, *DRIVER)),
    ]
    assert world.guard.is_holding, "its leases are renewed meanwhile"
    world.tick(500)
    world.read()
    assert world.effects == [fx.ReportPermit(GuardState.YIELDING, (Refusal.YIELDING,))]
    world.tick(SETTLE_MS - 1)
    assert world.is_suspended
    world.tick(1)
    assert world.effects == [
        fx.ResumeRuntime(),
        fx.ReportPermit(GuardState.PERMITTING, ()),
    ]
    assert list(world.running) == [lease_id]
    world.finish(2)
    assert world.guard.lease_ids == ()


def test_only_running_leases_of_batches_are_kept() -> None:
    world = suspendable(slots=2)
    (batch,) = world.running
    session = LeaseId(500)
    units = (ev.LeasedUnit(WorkUnitId(SESSION_UNIT), 1),)
    grant = (session, MODEL, ENDPOINT, units)
    world.happen(ev.LeaseGranted(world.now_ms, world.guard.epoch, *grant))
    waiting = world.grant()
    assert list(world.running) == [batch, session]
    world.read(is_driver_present=True)
    assert [one for one, _ in endings(world)] == [session, waiting]
    assert kinds(world)[0] is fx.SuspendRuntime
    assert world.guard.lease_ids == (batch,)
    assert not world.is_killed


def test_with_sessions_alone_it_leaves() -> None:
    world = suspendable(slots=1)
    world.finish(2)
    units = (ev.LeasedUnit(WorkUnitId(SESSION_UNIT), 1),)
    grant = (LeaseId(500), MODEL, ENDPOINT, units)
    world.happen(ev.LeaseGranted(world.now_ms, world.guard.epoch, *grant))
    world.read(is_driver_present=True)
    assert world.is_killed


@pytest.mark.parametrize("change", [{"is_parked": False}, {"is_plugged_in": None}])
def test_what_is_likely_to_last_ends_it(change: dict[str, Any]) -> None:
    world = suspendable()
    world.read(**change)
    assert world.is_killed
    world = suspendable()
    world.read(is_driver_present=True)
    world.read(is_driver_present=True, **change)
    assert kinds(world)[0] is fx.SuspendRuntime
    assert world.is_killed
    assert not world.guard.lease_ids


def test_a_stop_that_lasts_ends_it() -> None:
    world = suspendable()
    (lease_id,) = world.running
    world.read(is_driver_present=True)
    world.tick(SUSPEND_MS - 1)
    assert world.guard.lease_ids == (lease_id,)
    world.tick(1)
    assert endings(world) == [(lease_id, LeaseEnding.OWNER_RETURNED)]
    assert world.is_killed


def test_a_door_that_opens_again_begins_the_settling_anew_but_not_the_patience() -> None:
    world = suspendable()
    begun_ms = world.now_ms
    world.read(is_driver_present=True)
    for _ in range(2):
        world.tick(600)
        world.read()
        world.tick(SETTLE_MS - 1)
        world.read(is_driver_present=True)
        assert world.is_suspended
        if world.is_killed:
            break
    assert world.now_ms - begun_ms > SUSPEND_MS
    assert world.is_killed, "it would wait for ever"


def test_who_settles_when_the_time_is_up_may_settle() -> None:
    world = suspendable()
    world.read(is_driver_present=True)
    world.tick(SUSPEND_MS - 1)
    world.read()
    world.tick(SETTLE_MS)
    assert state_of(world) is GuardState.PERMITTING


def test_a_runtime_that_dies_in_its_sleep_is_mourned_at_once() -> None:
    world = suspendable()
    (lease_id,) = world.running
    world.read(is_driver_present=True)
    world.exit(is_told_first=True)
    assert endings(world) == [(lease_id, LeaseEnding.OWNER_RETURNED)]
    assert state_of(world) is GuardState.REFUSING
    assert world.guard.refusals == DRIVER


def test_an_agent_that_stops_does_not_wait_for_the_door() -> None:
    world = suspendable()
    world.read(is_driver_present=True)
    world.happen(ev.AgentStopping(world.now_ms))
    assert world.is_killed


def test_time_off_the_processor_is_no_work() -> None:
    world = suspendable()
    world.tick(300)
    world.finish()
    world.tick(200)
    world.read(is_driver_present=True)
    before_ms = world.guard.spending.work_ms
    world.tick(2_000)
    world.read()
    world.tick(SETTLE_MS)
    world.tick(100)
    world.finish()
    receipts = [one for one in world.guard.receipts() if one.results]
    first, second = (one.asked_micro for one in receipts)
    assert first - 1 <= second <= first, "300 ms each"
    world.read()
    assert world.guard.spending.work_ms == before_ms + 100


def test_time_off_the_processor_is_not_time_of_the_attempt() -> None:
    world = suspendable(slots=2, finish_ms=FINISH_MS)
    learn(world, 4_000)
    world.read(is_driver_present=True)
    world.tick(2_000)
    world.read()
    world.tick(SETTLE_MS)
    patient(world)
    assert world.is_killed, "it has 4 s to go still"


def test_a_group_of_events_ends_off_the_processor() -> None:
    """What resumes in a group of events in which somebody comes must not go on."""
    world = suspendable()
    world.read(is_driver_present=True)
    world.tick(500)
    world.read()
    guard, due_ms = world.guard, world.now_ms + SETTLE_MS
    somebody = msgspec.structs.replace(world.well, at_ms=due_ms, is_driver_present=True)
    effects = guard.handle(ev.GuardTimeAdvanced(due_ms), ev.ReadingsChanged(due_ms, somebody))
    turns = [one for one in effects if isinstance(one, fx.SuspendRuntime | fx.ResumeRuntime)]
    assert turns == [fx.SuspendRuntime()]
    assert effects[0] == fx.SuspendRuntime()


# The forecast.


def test_a_stop_is_forecast_by_most_of_those_before() -> None:
    stops = ShortStops()
    for known in range(STOPS_KNOWN_MIN):
        assert not stops.are_likely(100), f"{known} say nothing"
        stops.begin(DRIVER, 0)
        stops.look(DRIVER, 50)
        stops.look((), 100)
    assert stops.lengths_ms() == [100] * STOPS_KNOWN_MIN
    assert stops.are_likely(100)
    assert not stops.are_likely(99)
    for _ in range(STOPS_KNOWN_MIN):
        stops.begin(DRIVER, 0)
        stops.look((), 10**6)
    assert not stops.are_likely(100), "half of them is not most"


def test_old_stops_are_forgotten() -> None:
    stops = ShortStops([10**6] * STOPS_KEPT)
    for _ in range(STOPS_KEPT // 2 + 1):
        stops.begin(DRIVER, 0)
        stops.look((), 1)
    assert len(stops.lengths_ms()) == STOPS_KEPT
    assert stops.are_likely(1)


def test_what_is_not_brief_teaches_nothing() -> None:
    stops = ShortStops()
    stops.begin((*DRIVER, Refusal.UNPLUGGED), 0)
    stops.look((), 5)
    stops.begin(DRIVER, 10)
    stops.forget_process()
    stops.look((), 15)
    assert stops.lengths_ms() == []


# Deadlines, and restarts.


def test_every_stage_ends_at_its_deadline_and_none_spins() -> None:
    """`CarWorld.tick` asserts that a deadline that has come is over."""
    world, _ = busy(finish_ms=FINISH_MS, stop_ms=STOP_MS)
    began_ms = world.now_ms
    patient(world)
    assert world.guard.next_deadline_ms() == began_ms + FINISH_MS
    world.tick(FINISH_MS)
    assert world.guard.next_deadline_ms() == began_ms + FINISH_MS + STOP_MS
    world.tick(STOP_MS)
    assert world.guard.next_deadline_ms() == world.now_ms + POLICY.giving_back.release_ms
    world = suspendable(stale_ms=10_000)
    began_ms = world.now_ms
    world.read(is_driver_present=True)
    assert world.guard.next_deadline_ms() == began_ms + SUSPEND_MS
    world.tick(SUSPEND_MS - 1)
    world.read()
    assert world.guard.next_deadline_ms() == world.now_ms + SETTLE_MS


def test_a_restart_keeps_the_accounts_and_what_was_learnt_of_stops() -> None:
    world = suspendable()
    world.tick(700)
    world.happen(ev.Consumed(world.now_ms, 5_000, 70))
    world.finish()
    guard = world.guard
    again = Guard(guard.snapshot())
    assert again.snapshot() == guard.snapshot()
    assert (again.usage, again.spending) == (guard.usage, guard.spending)
    assert again.usage.link_bytes == 70
    assert again.spending.attempts == 1
    world.restart()
    world.get_to_work(1)
    world.read(is_driver_present=True)
    assert not world.is_killed, "it knows the door"
    assert world.is_suspended


def test_work_before_a_restart_wears_after_it_too() -> None:
    """What was done since the last sample is not lost with the process."""
    world, _ = busy()
    world.tick(700)
    world.happen(ev.Consumed(world.now_ms, 0, 0))
    before = world.guard.usage.wear.worn
    world.restart()
    assert world.guard.usage.wear.worn.electronics_ms >= before.electronics_ms + 700
    assert world.guard.spending.work_ms == 700


def test_the_time_between_two_processes_is_nobodys_work() -> None:
    world, _ = busy()
    world.tick(700)
    world.happen(ev.Consumed(world.now_ms, 0, 0))
    world.now_ms += 10**7
    world.restart(from_snapshot=False)
    assert world.guard.spending.work_ms == 700


def test_a_car_that_was_given_back_says_so_of_every_lease() -> None:
    world = suspendable(slots=3)
    second, third = world.grant(), world.grant(model_id=OTHER_MODEL)
    world.read(is_driver_present=True)
    assert [one for one, _ in endings(world)] == [third], "its model is not there yet"
    world.read(is_parked=False)
    first = LeaseId(second - 1)
    assert [one for one, _ in endings(world)] == [first, second]
    assert all(receipt.receipt_id == WHOLE_LEASE for receipt in world.said(fx.SendReceipt))
