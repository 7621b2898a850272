"""The car keeps models in memory while it permits, and gives them back with everything else."""

import pytest

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.guard_effects import GuardState
from terafleet.core.guard_models import WARM_AGAIN_MS
from terafleet.core.ids import ModelId
from terafleet.core.policy import OwnerPolicy, YieldPolicy
from terafleet.core.reasons import Failure
from tests.core.guard_world import MODEL, CarWorld, endings, state_of

OTHER = ModelId("other")
PATIENT = OwnerPolicy(
    giving_back=YieldPolicy(settle_ms=1_000, stale_ms=10 * WARM_AGAIN_MS, release_ms=500)
)


def keeping(*model_ids: ModelId) -> CarWorld:
    """A car that permits and has these models in memory."""
    world = CarWorld(policy=PATIENT)
    world.welcome()
    world.permit()
    world.keep(*model_ids)
    world.model_ready()
    return world


def prepared(world: CarWorld) -> list[ModelId]:
    """What the last event began to load."""
    return [one.model_id for one in world.said(fx.PrepareModel)]


def test_a_car_that_permits_loads_at_once() -> None:
    world = CarWorld()
    world.welcome()
    world.permit()
    world.keep(MODEL, OTHER)
    assert prepared(world) == [MODEL, OTHER]
    world.keep(MODEL, OTHER)
    assert prepared(world) == []
    assert world.guard.lease_ids == ()


def test_a_car_that_refuses_loads_when_it_permits() -> None:
    world = CarWorld()
    world.welcome()
    world.keep(MODEL)
    assert prepared(world) == []
    world.read()
    assert state_of(world) is GuardState.SETTLING
    world.tick(world.policy.giving_back.settle_ms)
    assert prepared(world) == [MODEL]


def test_the_owners_return_gives_the_memory_back() -> None:
    world = keeping(MODEL)
    world.read(is_driver_present=True)
    assert [type(one) for one in world.effects][:2] == [fx.SuspendRuntime, fx.KillRuntime]
    assert endings(world) == []
    world.exit()
    assert state_of(world) is GuardState.REFUSING
    assert prepared(world) == []
    world.permit()
    assert prepared(world) == [MODEL], "the control plane has not said otherwise"


def test_an_owner_who_returns_while_it_loads_has_the_car_too() -> None:
    world = CarWorld()
    world.welcome()
    world.permit()
    world.keep(MODEL)
    world.read(is_parked=False)
    assert world.said(fx.SuspendRuntime)
    assert world.said(fx.KillRuntime)


def test_a_model_that_is_not_wanted_any_more_stays_until_the_runtime_ends() -> None:
    world = keeping(MODEL)
    world.keep()
    assert world.effects == []
    world.exit()
    world.tick(WARM_AGAIN_MS)
    assert prepared(world) == []


def test_an_epoch_forgets_what_the_one_before_was_told() -> None:
    world = keeping(MODEL)
    world.welcome(2)
    world.exit()
    world.tick(WARM_AGAIN_MS)
    assert world.warm == world.preparing == []
    world.keep(MODEL, epoch=1)
    assert prepared(world) == []
    world.keep(MODEL)
    assert prepared(world) == [MODEL]
    world.happen(ev.LinkFenced(world.now_ms, world.guard.epoch))
    world.exit()
    world.tick(WARM_AGAIN_MS)
    assert world.preparing == [], "a car that is fenced keeps nothing"
    world.keep(MODEL, epoch=0)
    assert world.preparing == []


def test_a_lost_link_changes_nothing_by_itself() -> None:
    world = keeping(MODEL)
    world.tick(40_000)
    assert world.memory == {MODEL}
    assert not world.is_killed


def test_after_a_crash_it_is_loaded_again_but_not_at_once() -> None:
    world = keeping(MODEL)
    world.exit()
    assert prepared(world) == []
    assert world.guard.next_deadline_ms() == world.now_ms + WARM_AGAIN_MS
    world.tick(WARM_AGAIN_MS - 1)
    assert world.preparing == []
    world.tick(1)
    assert world.preparing == [MODEL]


def test_what_a_lease_needs_does_not_wait_after_a_crash() -> None:
    world = keeping(MODEL, OTHER)
    world.grant(2)
    world.exit(is_told_first=True)
    assert world.preparing == [MODEL]
    world.tick(WARM_AGAIN_MS)
    assert world.preparing == [MODEL, OTHER]


def test_a_model_that_cant_be_loaded_is_told_and_not_tried_again() -> None:
    world = CarWorld()
    world.welcome()
    world.permit()
    world.keep(MODEL)
    world.fail_load(MODEL)
    assert world.effects == [fx.ReportLoadFailure(MODEL, Failure.MODEL_UNAVAILABLE, "why")]
    world.read()
    assert world.preparing == []
    world.keep(MODEL)
    assert prepared(world) == [MODEL], "who wants it again wants it to be tried again"


def test_a_model_that_a_lease_waits_for_fails_both() -> None:
    world = CarWorld()
    world.welcome()
    world.permit()
    world.keep(MODEL)
    lease_id = world.grant(1)
    world.fail_load(MODEL)
    assert [one.model_id for one in world.said(fx.ReportLoadFailure)] == [MODEL]
    assert [found for found, _ in endings(world)] == [lease_id]
    assert world.preparing == []


def test_a_lease_finds_the_model_in_memory() -> None:
    world = keeping(MODEL)
    lease_id = world.grant(1)
    assert [one.lease_id for one in world.said(fx.StartAttempts)] == [lease_id]


@pytest.mark.parametrize("from_snapshot", [True, False])
def test_an_agent_that_begins_anew_keeps_nothing(from_snapshot: bool) -> None:
    world = keeping(MODEL)
    world.restart(from_snapshot=from_snapshot)
    world.permit()
    assert world.preparing == []
