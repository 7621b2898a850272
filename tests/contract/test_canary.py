"""Canaries: how far they go, what is no failure, what is one, and what they never do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.canary import (
    CANARY,
    NO_BATCH,
    Canary,
    CanarySettings,
    Depth,
    Spare,
    spare_model,
)
from terafleet.control.gateway.health import Watch
from terafleet.core.capability import Capability
from terafleet.core.ids import ModelId
from terafleet.core.reasons import Refusal, Refused
from terafleet.core.session_events import Piece
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from terafleet.protocol.shard import AddModel, Answered, CancelBatch, GetStatus, ShardStatus
from tests.contract.agent_stage import until
from tests.contract.fake_answers import FakeAnswers
from tests.contract.fake_live_fleet import (
    LEASE_LOST,
    LEFT,
    MODEL_REFUSES,
    QUEUED,
    REFUSED,
    SILENT,
    Plan,
)
from tests.contract.gateway_app import code_of
from tests.contract.live_gateway import EMBEDDER, HASTY, WRITER, Stage
from tests.contract.shard_stage import LINES, MODEL, ShardStage, reopen_memory
from tests.contract.virtual_time import VirtualTime

NOTHING_SPARE = "no car permits"
UNKNOWN_BATCH = Answered(Refused.BATCH_ENDED, "the batch has ended")


class World:
    """A canary over a fake shard and fake cars; `spare` is what it is told to be free."""

    def __init__(self, settings: CanarySettings) -> None:
        self.stage = Stage(HASTY)
        self.fleet = self.stage.fleet
        self.shard = FakeAnswers(self.stage.bus.broker)
        self.shard.answers[CancelBatch] = UNKNOWN_BATCH
        self.spare: Spare | str = NOTHING_SPARE
        self.turns: list[int] = []
        self.time = VirtualTime()
        self.canary = Canary(
            self.stage.context, settings, self._find, self.time.now_ms, self.time.sleep
        )

    def _find(self, turn: int) -> Spare | str:
        self.turns.append(turn)
        return self.spare

    @property
    def sent(self) -> int:
        """How many canaries there were so far."""
        return len(self.shard.asked(CancelBatch))

    def has_loaded(self, name: str = WRITER, endpoint: str = COMPLETIONS) -> None:
        """A car has room and the model in memory."""
        self.spare = Spare(ModelId(f"model-{name}"), name, endpoint)

    async def get(self, path: str) -> httpx.Response:
        """Ask the gateway."""
        app: Any = create_app(self.stage.context, Watch(self.canary))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get(path)


@asynccontextmanager
async def opened(settings: CanarySettings) -> AsyncIterator[World]:
    """A world that is connected; nothing may be left on its way at its end."""
    made = World(settings)
    await made.stage.start()
    await made.shard.start()
    try:
        yield made
    finally:
        await made.stage.stop()
        await made.shard.bus.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened(CanarySettings()) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [(WRITER, COMPLETIONS), (WRITER, CHAT_COMPLETIONS), (EMBEDDER, EMBEDDINGS)],
)
async def test_it_goes_to_a_car_and_asks_for_one_token(
    world: World, name: str, endpoint: str
) -> None:
    world.has_loaded(name, endpoint)
    await world.canary.send()
    last = world.canary.last
    assert last is not None
    assert (last.fault, last.depth, last.shallow) == ("", Depth.SESSION, "")
    assert world.canary.through == {Depth.SESSION: 1}
    (wanted,) = world.fleet.wanted
    assert (wanted.customer_id, wanted.endpoint) == (CANARY, endpoint)
    assert wanted.tokens < 10
    (body,) = world.fleet.bodies()
    assert body["model"] == name
    assert endpoint == EMBEDDINGS or body["max_tokens"] == 1


async def test_without_a_spare_slot_it_goes_through_the_journal_only(world: World) -> None:
    await world.canary.send()
    last = world.canary.last
    assert last is not None
    assert (last.fault, last.depth, last.shallow) == ("", Depth.SHARD, NOTHING_SPARE)
    assert world.shard.asked(CancelBatch) == [CancelBatch(NO_BATCH, CANARY)]
    assert world.fleet.wanted == []


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan(QUEUED, wait_ms=50), "the free slot was taken"),
        (Plan(REFUSED), "the free slot was taken"),
        (Plan(REFUSED, Refused.NO_VEHICLE_PERMITS), "the free slot was taken"),
        (Plan(REFUSED, Refused.MODEL_UNKNOWN), "the free slot was taken"),
        (Plan(messages=0, ending=LEFT), "the car left"),
        (Plan(messages=1, ending=LEFT), "the car left"),
        (Plan(messages=0, ending=LEASE_LOST), "the car left"),
    ],
)
async def test_what_is_no_failure_of_the_control_plane(world: World, plan: Plan, why: str) -> None:
    world.has_loaded()
    world.fleet.plans.append(plan)
    await world.canary.send()
    last = world.canary.last
    assert last is not None
    assert (last.fault, last.depth, last.shallow) == ("", Depth.SHARD, why)
    # It asks for no other slot, which might be a batch's, or one whose model must be loaded.
    assert len(world.fleet.wanted) == 1


async def test_it_does_not_wait_for_a_slot(world: World) -> None:
    world.has_loaded()
    world.fleet.plans.append(Plan(QUEUED, wait_ms=10))
    await world.canary.send()
    await until(lambda: world.fleet.withdrawn == [world.fleet.wanted[0].session_id])
    await until(lambda: world.fleet.stopped)
    assert world.fleet.started == []


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        (Plan(messages=0, ending=MODEL_REFUSES), "a session failed: model refused"),
        (Plan(REFUSED, Refused.STORAGE_FULL, "no room"), "storage full: no room"),
        (Plan(pieces=(Piece(0, (1,), "x"),)), "a text has no end"),
        (Plan(pieces=(Piece(1, (1,), "x"),)), "there is no text 1"),
    ],
)
async def test_what_is_one(world: World, plan: Plan, fault: str) -> None:
    world.has_loaded()
    world.fleet.plans.append(plan)
    await world.canary.send()
    assert world.canary.last is not None
    assert fault in world.canary.fault()
    # What a car says in its own words is not for everybody.
    assert "The model can't" not in world.canary.fault()
    assert (world.canary.failed, world.canary.through.total()) == (1, 0)


async def test_a_car_that_sends_an_error_for_vectors(world: World) -> None:
    world.has_loaded(EMBEDDER, EMBEDDINGS)
    world.fleet.plans.append(Plan(pieces=(Piece(0, (), '{"nothing": 1}', finish_reason="stop"),)))
    await world.canary.send()
    assert "a car sent" in world.canary.fault()


async def test_a_canary_that_takes_too_long() -> None:
    async with opened(CanarySettings(patience_ms=30)) as world:
        world.has_loaded()
        world.fleet.plans.append(Plan(messages=0, ending=SILENT))
        await world.canary.send()
        assert world.canary.fault() == "the canary took too long"
        assert len(world.stage.sessions) == 0
        world.spare = NOTHING_SPARE
        world.shard.delay_s = 0.2
        await world.canary.send()
        assert world.canary.fault() == "the canary took too long"
        world.shard.delay_s = 0.0
        await world.canary.send()
        assert world.canary.fault() == ""
        await asyncio.sleep(0.2)


async def test_a_shard_that_can_not_keep_anything(world: World) -> None:
    world.shard.answers[CancelBatch] = Answered(Refused.STORAGE_FULL, "the disk is full")
    await world.canary.send()
    assert world.canary.fault() == "the shard refused: the disk is full"
    await world.shard.bus.close()
    await world.canary.send()
    assert world.canary.fault() == "the shard does not answer"


async def test_one_each_period_and_sooner_after_a_failure(world: World) -> None:
    world.shard.answers[CancelBatch] = Answered(Refused.STORAGE_FULL)
    running = asyncio.create_task(world.canary.run())
    await world.time.settle()
    sent = [world.sent]
    for pause_ms in (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000):
        await world.time.pass_ms(pause_ms - 1)
        sent.append(world.sent)
        await world.time.pass_ms(1)
        sent.append(world.sent)
    assert sent == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10]
    world.shard.answers[CancelBatch] = UNKNOWN_BATCH
    await world.time.pass_ms(30_000)
    assert (world.sent, world.canary.fault()) == (11, "")
    world.shard.answers[CancelBatch] = Answered(Refused.STORAGE_FULL)
    await world.time.pass_ms(29_999)
    assert (world.sent, world.canary.fault()) == (11, "")
    await world.time.pass_ms(1)
    assert world.canary.fault() == "the shard refused: storage_full"
    await world.time.pass_ms(250)
    assert world.sent == 13
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_each_turn_is_another_one(world: World) -> None:
    for _ in range(3):
        await world.canary.send()
    assert world.turns == [0, 1, 2]


async def test_health_is_what_the_last_canary_says(world: World) -> None:
    unhealthy = await world.get("/healthz")
    assert code_of(unhealthy) == "shard_unavailable"
    assert "No canary has gone through yet." in unhealthy.text
    assert (await world.get("/readyz")).json() == {"status": "ok"}
    await world.canary.send()
    world.time.clock.advance(40_000)
    health = (await world.get("/healthz")).json()
    assert health == {
        "status": "ok",
        "depth": "shard",
        "shallow": NOTHING_SPARE,
        "canary_ms": 0,
        "canary_age_ms": 40_000,
    }
    world.time.clock.advance(1)
    assert "went through 40 s ago" in (await world.get("/healthz")).text
    world.has_loaded()
    await world.canary.send()
    health = (await world.get("/healthz")).json()
    assert health == {"status": "ok", "depth": "session", "canary_ms": 0, "canary_age_ms": 0}
    world.fleet.plans.append(Plan(messages=0, ending=MODEL_REFUSES))
    await world.canary.send()
    response = await world.get("/healthz")
    assert code_of(response) == "shard_unavailable"
    assert response.headers["retry-after"] == "2"
    assert (await world.get("/readyz")).status_code == 200


async def test_health_is_not_well_without_a_shard_whatever_went_through(world: World) -> None:
    await world.canary.send()
    await world.shard.bus.close()
    assert code_of(await world.get("/healthz")) == "shard_unavailable"
    assert code_of(await world.get("/readyz")) == "shard_unavailable"


@pytest.fixture
async def shard() -> AsyncIterator[ShardStage]:
    made = ShardStage(reopen_memory())
    await made.begin()
    try:
        yield made
    finally:
        await made.close()


async def test_where_a_session_costs_nothing(shard: ShardStage) -> None:
    def spare() -> Spare | str:
        return spare_model(shard.shard.fleet.state, 0)

    await shard.gateway.open()
    assert spare() == "no car is enrolled"
    car = await shard.add_car("a")
    assert spare() == "there is no model"
    await shard.gateway.ask(add_model(), Answered)
    nothing = "no car with a free slot has a model in memory"
    assert spare() == nothing
    car.capability = Capability(("onnx",), 4_000, 1, (), "", (MODEL.model_id, ModelId("gone")))
    car.hello()
    found = Spare(MODEL.model_id, MODEL.name, EMBEDDINGS)
    await until(lambda: spare() == found)
    await shard.gateway.create("b", LINES[:1])
    await until(lambda: car.leases)
    assert spare() == nothing
    car.finish()
    await until(lambda: spare() == found)
    car.refusals = (Refusal.DRIVER_PRESENT,)
    car.hello()
    await until(lambda: spare() == "no car permits")


async def test_models_take_turns(shard: ShardStage) -> None:
    await shard.gateway.open()
    models = [ModelId(f"model-{number}") for number in range(3)]
    for model_id in models:
        await shard.gateway.ask(add_model(model_id), Answered)
    car = await shard.add_car("a")
    car.capability = Capability(("onnx",), 4_000, 1, (), "", tuple(models))
    car.hello()
    state = shard.shard.fleet.state
    await until(lambda: isinstance(spare_model(state, 0), Spare))
    found = [spare_model(state, turn) for turn in range(4)]
    assert [one.model_id for one in found if isinstance(one, Spare)] == [*models, models[0]]


async def test_it_changes_nothing_but_the_journal(shard: ShardStage) -> None:
    await shard.gateway.open()
    async with opened(CanarySettings()) as world:
        context = msgspec.structs.replace(world.stage.context, bus=shard.gateway.bus)
        canary = Canary(context, CanarySettings(), lambda _: NOTHING_SPARE)
        await canary.send()
        before = await shard.gateway.ask(GetStatus(), ShardStatus)
        for _ in range(3):
            await canary.send()
            assert canary.fault() == ""
        after = await shard.gateway.ask(GetStatus(), ShardStatus)
    assert after.journal_sequence == before.journal_sequence + 3
    assert (after.batches_open, after.units_waiting, after.vehicles) == (0, 0, {})


def add_model(model_id: ModelId = MODEL.model_id) -> AddModel:
    return AddModel(msgspec.structs.replace(MODEL, model_id=model_id))
