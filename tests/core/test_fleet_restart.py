"""The fleet after a restart of the control plane: what was asked of gateways is asked again."""

from terafleet.core import effects as fx
from terafleet.core import events as ev
from tests.core.fleet_world import SETTINGS, World


def test_after_a_restart_gateways_are_asked_again_at_once() -> None:
    world = World()
    world.enrol("a")
    world.create("b", 1)
    world.happen(ev.ShardStarted(world.now_ms, SETTINGS))
    assert world.said(fx.CutBatch) == []
    asked: list[str] = []
    while not asked:
        deadline_ms = world.fleet.next_deadline_ms()
        assert deadline_ms is not None
        assert deadline_ms <= world.now_ms + 1_000
        world.happen(ev.TimeAdvanced(deadline_ms))
        asked = [effect.batch_id for effect in world.said(fx.CutBatch)]
    assert asked == ["b"]
