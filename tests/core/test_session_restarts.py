"""Answers of which nobody is told anything before they are whole: they may begin anew elsewhere."""

import pytest

from terafleet.core import session_effects as fx
from terafleet.core.ids import LeaseId, VehicleId
from terafleet.core.session_effects import SessionFailure
from tests.core.session_world import (
    EPOCH,
    LOSSES,
    RIGHT,
    SETTINGS,
    Loss,
    SessionWorld,
    begun,
    failure_of,
    lost_by_a_stuck_runtime,
)


@pytest.mark.parametrize("lose", [lose for lose in LOSSES if lose is not lost_by_a_stuck_runtime])
def test_what_nobody_was_told_begins_anew_elsewhere(lose: Loss) -> None:
    world = begun(can_move=False, can_restart=True)
    left = world.at_hand()
    lose(world)
    assert world.effects[-3:] == [
        fx.StopOn(left.lease_id, left.vehicle_id),
        fx.ForgetPieces(),
        fx.AskForLease(2, (left.vehicle_id,), 0),
    ]
    world.grant("veh-b")
    assert world.effects == [fx.StartOn(LeaseId(2), VehicleId("veh-b"), EPOCH, ())]
    world.settle()
    assert tuple(world.told) == RIGHT


def test_what_a_runtime_was_stuck_in_does_not_begin_anew() -> None:
    world = begun(can_move=False, can_restart=True)
    lost_by_a_stuck_runtime(world)
    assert failure_of(world).failure is SessionFailure.CANNOT_MOVE
    assert world.restarts == 0


def test_what_can_move_goes_on_although_it_could_begin_anew() -> None:
    world = begun(can_restart=True, tokens=5)
    world.lose()
    assert world.asks[-1].delivered == 5
    assert not world.said(fx.ForgetPieces)


def test_an_answer_begins_anew_a_few_times_only() -> None:
    world = SessionWorld(can_move=False, can_restart=True)
    for _ in range(SETTINGS.restarts_max):
        world.grant()
        world.lose()
        assert world.restarts == 0, "what has not begun costs no restart"
    for restarts in range(SETTINGS.restarts_max):
        assert world.restarts == restarts
        world.grant()
        world.tell()
        world.lose()
    world.grant()
    world.tell()
    world.lose()
    assert failure_of(world).failure is SessionFailure.CANNOT_MOVE
