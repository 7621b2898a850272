"""A car keeps the models in memory that the control plane asks for, and says when it can't."""

from terafleet.agent.adapters.vehicle.timetable import Step
from terafleet.agent.ports import RuntimeFailure
from terafleet.core.guard_effects import GuardState
from terafleet.core.ids import ModelId
from terafleet.core.reasons import Failure
from terafleet.protocol import agent as wire
from tests.contract.agent_stage import FakeModel, until
from tests.contract.performer_stage import FakeRuntime
from tests.contract.test_agent import PARKED, World, world

__all__ = ["world"]

RETURN_S = 0.7


def keep(world: World, *models: FakeModel) -> None:
    """Ask the car to keep models in memory."""
    kept = tuple(wire.KeptModel(one.model_id, one.address) for one in models)
    world.plane.say(wire.KeepLoaded(world.plane.epoch, kept))


def loaded(world: World) -> tuple[ModelId, ...]:
    """What the control plane was last told to be in memory."""
    reports = world.plane.all(wire.CapabilityReport)
    return reports[-1].capability.loaded if reports else ()


async def test_a_model_is_fetched_and_loaded_without_a_lease(world: World) -> None:
    async with world.agent() as agent:
        await world.is_permitting(agent)
        keep(world, world.model)
        await until(lambda: loaded(world) == (world.model.model_id,))
        assert not agent.guard.lease_ids
        (model,) = agent.status().models
        assert model.is_loaded


async def test_a_lease_on_it_is_worked_off_without_another_load(world: World) -> None:
    runtime = FakeRuntime()
    async with world.agent(runtime=runtime) as agent:
        await world.is_permitting(agent)
        keep(world, world.model)
        await until(lambda: loaded(world))
        lease = world.grant()
        await until(lambda: f"{lease}-0" in runtime.running)
        assert [one.split()[0] for one in runtime.asked] == ["start", "load", "run"]


async def test_the_owners_return_takes_it_out_of_the_memory(world: World) -> None:
    runtime = FakeRuntime()
    steps = (PARKED, Step(RETURN_S, is_driver_present=True))
    async with world.agent(steps, runtime) as agent:
        await world.is_permitting(agent)
        keep(world, world.model)
        await until(lambda: loaded(world))
        await until(lambda: agent.guard.state is GuardState.REFUSING)
        assert runtime.asked[-2:] == ["suspend", "kill"]
        await until(lambda: not loaded(world))


async def test_a_model_that_has_no_room_is_told_and_not_tried_again(world: World) -> None:
    runtime = FakeRuntime()
    runtime.load_failure = RuntimeFailure("", Failure.OUT_OF_MEMORY, "too large")
    async with world.agent(runtime=runtime) as agent:
        await world.is_permitting(agent)
        keep(world, world.model)
        await until(lambda: world.plane.all(wire.LoadFailed))
        (failed,) = world.plane.all(wire.LoadFailed)
        assert (failed.epoch, failed.model_id) == (world.plane.epoch, world.model.model_id)
        assert (failed.failure, failed.detail) == (Failure.OUT_OF_MEMORY, "too large")
        runtime.load_failure = None
        keep(world, world.model)
        await until(lambda: loaded(world))
        assert [one.split()[0] for one in runtime.asked] == ["start", "load", "load"]


async def test_a_model_that_can_not_be_fetched_is_told(world: World) -> None:
    world.gateway.refuse(world.model.address, "model_not_found")
    async with world.agent() as agent:
        await world.is_permitting(agent)
        keep(world, world.model)
        await until(lambda: world.plane.all(wire.LoadFailed))
        (failed,) = world.plane.all(wire.LoadFailed)
        assert failed.failure is Failure.MODEL_UNAVAILABLE
        assert "model_not_found" in failed.detail
