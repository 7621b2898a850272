"""A whole shard keeps a model loaded: what cars hear, operators read, and a restart leaves."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from terafleet.core.capability import ModelNeeds
from terafleet.core.ids import ModelId, VehicleId
from terafleet.core.reasons import Failure, Refusal, Refused
from terafleet.protocol import agent as wire
from terafleet.protocol import shard as q
from terafleet.protocol.addresses import address_fault
from tests.contract.agent_stage import until
from tests.contract.shard_stage import (
    EMBEDDINGS,
    MODEL,
    SECRET,
    FakeCar,
    ShardStage,
    reopen_memory,
)

LARGE = ModelNeeds(ModelId("large"), "large", "onnx", 100_000, (EMBEDDINGS,))


@pytest.fixture
async def stage() -> AsyncIterator[ShardStage]:
    """A stage whose record is in memory."""
    made = ShardStage(reopen_memory())
    await made.open()
    yield made
    await made.close()


def told(car: FakeCar) -> list[tuple[str, ...]]:
    """What a car was asked to keep, in its order."""
    return [tuple(one.model_id for one in said.models) for said in car.all(wire.KeepLoaded)]


async def load(stage: ShardStage, car: FakeCar, *models: ModelId) -> None:
    """A car has these models in memory, and the fleet knows."""
    car.capability = msgspec.structs.replace(car.capability, models=models, loaded=models)
    car.say(wire.CapabilityReport(car.epoch, car.capability))
    vehicle = stage.shard.fleet.state.vehicles[car.vehicle_id]
    await until(lambda: vehicle.capability == car.capability)


async def warm(stage: ShardStage, slots: int, model: ModelNeeds = MODEL) -> q.Answered:
    """Ask for a model to stay loaded."""
    return await stage.gateway.ask(q.WarmModel(model.model_id, slots), q.Answered)


async def warmth(stage: ShardStage) -> tuple[tuple[int, int, int], ...]:
    """Wanted, chosen and loaded slots of each model."""
    status = await stage.gateway.ask(q.GetStatus(), q.ShardStatus)
    return tuple((one.slots, one.slots_chosen, one.slots_loaded) for one in status.warm)


async def test_cars_are_asked_and_hear_where_the_model_is(stage: ShardStage) -> None:
    first, second = await stage.add_car("a"), await stage.add_car("b", 2)
    assert await warm(stage, 2) == q.Answered()
    await until(lambda: told(first) or told(second))
    assert (told(first), told(second)) == ([("model",)], [("model",)])
    (said,) = first.all(wire.KeepLoaded)
    assert said.epoch == first.epoch
    assert address_fault(SECRET, "GET", said.models[0].manifest_address, 0) is None
    assert await warmth(stage) == ((2, 3, 0),)
    await load(stage, second, MODEL.model_id)
    status = await stage.gateway.ask(q.GetStatus(), q.ShardStatus)
    assert status.warm == (q.WarmView(MODEL.model_id, "small", 2, 3, 2),)
    assert await warm(stage, 0) == q.Answered()
    await until(lambda: len(told(first)) + len(told(second)) == 4)
    assert await warmth(stage) == ()


async def test_what_cars_have_in_memory_is_read_by_name(stage: ShardStage) -> None:
    car = await stage.add_car("a")
    await load(stage, car, MODEL.model_id, ModelId("forgotten"))
    view = await stage.gateway.ask(q.ListVehicles(), q.VehicleList)
    assert view.vehicles[0].loaded == ("small", "forgotten")
    car.say(wire.Goodbye(car.epoch))
    await until(lambda: car.all(wire.Fenced))
    view = await stage.gateway.ask(q.ListVehicles(), q.VehicleList)
    assert view.vehicles[0].loaded == ()


async def test_what_can_never_be_is_refused_in_words(stage: ShardStage) -> None:
    assert (await warm(stage, 1)).refused is Refused.FLEET_EMPTY
    await stage.add_car("a")
    assert (await warm(stage, 1, LARGE)).refused is Refused.MODEL_UNKNOWN
    await stage.gateway.ask(q.AddModel(LARGE), q.Answered)
    refused = await warm(stage, 1, LARGE)
    assert refused.refused is Refused.NO_FEASIBLE_VEHICLE
    assert "100000 MB are needed" in refused.detail


async def test_the_number_is_kept_when_a_car_goes_or_fails(stage: ShardStage) -> None:
    first, second = await stage.add_car("a"), await stage.add_car("b")
    await warm(stage, 1)
    await until(lambda: told(first))
    first.say(wire.PermitReport(first.epoch, (Refusal.DRIVER_PRESENT,)))
    await until(lambda: told(second))
    assert told(first) == [("model",), ()]
    failure = wire.LoadFailed(second.epoch, MODEL.model_id, Failure.OUT_OF_MEMORY, "no room")
    second.say(failure)
    await until(lambda: told(second) == [("model",), ()])
    assert await warmth(stage) == ((1, 0, 0),)
    first.say(wire.PermitReport(first.epoch, ()))
    await until(lambda: len(told(first)) == 3)
    assert await warmth(stage) == ((1, 1, 0),)


async def test_a_restart_keeps_the_wish_and_tells_the_cars_again(stage: ShardStage) -> None:
    car, other = await stage.add_car("a"), await stage.add_car("b")
    await warm(stage, 1)
    await until(lambda: told(car))
    await load(stage, car, MODEL.model_id)
    assert await warmth(stage) == ((1, 1, 1),)
    await stage.abandon()
    car.heard.clear()
    await stage.begin()
    await until(lambda: told(car))
    assert car.all(wire.KeepLoaded)[0].epoch == car.epoch
    assert await warmth(stage) == ((1, 1, 1),)
    assert told(other) == []


async def test_the_story_tells_of_the_model_and_of_the_car(stage: ShardStage) -> None:
    car = await stage.add_car("a")
    await warm(stage, 1)
    await until(lambda: told(car))
    failure = wire.LoadFailed(car.epoch, MODEL.model_id, Failure.OUT_OF_MEMORY, "no room")
    car.say(failure)
    await until(lambda: len(told(car)) == 2)
    await warm(stage, 0)
    about_model = await stage.story("model")
    vehicle_id = VehicleId("veh-a")
    cant = f"{vehicle_id} can't keep model in memory: out_of_memory: no room"
    assert about_model == [
        "model added as small",
        "model shall stay in memory in 1 slot",
        f"{vehicle_id} is asked to keep in memory: model",
        cant,
        "model need not stay in memory any more",
    ]
    about_car = await stage.story(vehicle_id)
    assert cant in about_car
    assert f"{vehicle_id} is asked to keep nothing in memory" in about_car
