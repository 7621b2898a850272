"""The owner policy in a running agent: its layers, its faults, and whose clock it follows."""

from terafleet.agent.service import by_wall_clock
from terafleet.core.ids import Epoch
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.protocol import agent as wire
from tests.contract.agent_stage import until
from tests.contract.test_agent import World, world

__all__ = ["world"]


async def test_a_changed_policy_holds_at_once(world: World) -> None:
    async with world.agent() as agent:
        await world.is_permitting(agent)
        file = world.folder / "owner.toml"
        file.write_text("is_paused = true\n")
        await until(lambda: Refusal.OWNER_PAUSED in agent.guard.refusals)
        file.write_text("is_paused = 3\n")
        agent.reload_policy()
        assert agent.status().policy_faults, "what can't be read changes nothing"
        assert Refusal.OWNER_PAUSED in agent.guard.refusals
        file.unlink()
        await world.is_permitting(agent)
        assert not agent.status().policy_faults


async def test_a_policy_of_the_fleet_holds_where_the_owner_says_nothing(world: World) -> None:
    async with world.agent() as agent:
        await world.is_permitting(agent)
        world.plane.say(wire.SetPolicy(Epoch(7), b'{"is_paused": true}'))
        world.plane.say(wire.SetPolicy(Epoch(1), b'{"is_paused": true}'))
        await until(lambda: Refusal.OWNER_PAUSED in agent.guard.refusals)
        world.plane.say(wire.SetPolicy(Epoch(1), b"no table"))
        await until(lambda: agent.status().policy_faults)
        assert Refusal.OWNER_PAUSED in agent.guard.refusals, "nonsense changes nothing"
        world.plane.say(wire.SetPolicy(Epoch(1), b'{"is_paused": true}'))
        (world.folder / "owner.toml").write_text("is_paused = false\n")
        await world.is_permitting(agent)
        (world.folder / "owner.toml").unlink()
        await until(lambda: Refusal.OWNER_PAUSED in agent.guard.refusals)
        world.plane.say(wire.SetPolicy(Epoch(1), b""))
        await world.is_permitting(agent)


def test_hours_follow_the_clock_on_the_wall() -> None:
    sample = Readings(1_000, utc_offset_ms=3_600_000)
    assert by_wall_clock(sample, 400) is sample, "two clocks are never quite alike"
    day_ms = 86_400_000
    assert by_wall_clock(sample, -day_ms - 300).utc_offset_ms == 3_600_000 - day_ms
