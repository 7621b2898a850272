"""Canaries: how far they go, what is no failure, what is one, and what they never do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.canary import (
    CANARY,
    MODELS_MAX,
    NO_BATCH,
    Canary,
    CanarySettings,
    Depth,
)
from terafleet.control.gateway.health import Watch
from terafleet.control.ports import CatalogueUnavailable
from terafleet.core.ids import ModelId
from terafleet.core.reasons import Refused
from terafleet.core.session_events import Piece
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from terafleet.protocol.shard import (
    Answered,
    CancelBatch,
)
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
from tests.contract.live_gateway import EMBEDDER, HASTY, WRITER, Stage, model_row
from tests.contract.virtual_time import VirtualTime

NOTHING_SPARE = "no free slot has a model in memory"
UNKNOWN_BATCH = Answered(Refused.BATCH_ENDED, "the batch has ended")


class World:
    """A canary over a fake shard and fake cars, none of which has anything in memory yet."""

    def __init__(self, settings: CanarySettings) -> None:
        self.stage = Stage(HASTY)
        self.fleet = self.stage.fleet
        self.fleet.loaded = set()
        self.shard = FakeAnswers(self.stage.bus.broker)
        self.shard.answers[CancelBatch] = UNKNOWN_BATCH
        self.time = VirtualTime()
        self.canary = Canary(self.stage.context, settings, self.time.now_ms, self.time.sleep)

    @property
    def sent(self) -> int:
        """How many canaries there were so far."""
        return len(self.shard.asked(CancelBatch))

    def has_loaded(self, *names: str) -> None:
        """Cars have room and these models in memory."""
        self.fleet.loaded = {self.model_id(name) for name in names}

    def model_id(self, name: str) -> ModelId:
        """The id of a model of the catalogue."""
        row = self.stage.catalogue.model_by_name(name)
        assert row is not None
        return ModelId(row.model_id)

    def has_only(self, *names: str) -> None:
        """The catalogue has these models and no others."""
        for row in self.stage.catalogue.models():
            if row.name not in names:
                self.stage.catalogue.remove_model(row.model_id, 1)

    def asked(self) -> list[str]:
        """The models that slots were asked for, in their order."""
        names = {row.model_id: row.name for row in self.stage.catalogue.models()}
        return [names[one.model_id] for one in self.fleet.wanted]

    async def get(self, path: str, method: str = "GET") -> httpx.Response:
        """Ask the gateway."""
        app: Any = create_app(self.stage.context, Watch(self.canary))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path)


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
    [(WRITER, COMPLETIONS), ("org/chatter", CHAT_COMPLETIONS), (EMBEDDER, EMBEDDINGS)],
)
async def test_it_goes_to_a_car_and_asks_for_one_token(
    world: World, name: str, endpoint: str
) -> None:
    world.stage.catalogue.add_model(model_row("org/chatter", 100, CHAT_COMPLETIONS))
    world.has_loaded(name)
    await world.canary.send()
    last = world.canary.last
    assert last is not None
    assert (last.fault, last.depth, last.shallow) == ("", Depth.SESSION, "")
    assert world.canary.through == {Depth.SESSION: 1}
    wanted = world.fleet.wanted[-1]
    assert (wanted.customer_id, wanted.endpoint) == (CANARY, endpoint)
    assert wanted.tokens < 10
    assert all(one.only_spare for one in world.fleet.wanted)
    (body,) = world.fleet.bodies()
    assert body["model"] == name
    assert endpoint == EMBEDDINGS or body["max_tokens"] == 1


async def test_without_a_spare_slot_it_goes_through_the_journal_only(world: World) -> None:
    await world.canary.send()
    last = world.canary.last
    assert last is not None
    assert (last.fault, last.depth, last.shallow) == ("", Depth.SHARD, NOTHING_SPARE)
    assert world.shard.asked(CancelBatch) == [CancelBatch(NO_BATCH, CANARY)]
    assert world.asked() == [row.name for row in world.stage.catalogue.models()]
    assert world.fleet.started == []


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan(REFUSED, Refused.NO_SLOT_SPARE), NOTHING_SPARE),
        (Plan(REFUSED, Refused.NO_SLOT_FREE), "all slots are taken"),
        (Plan(QUEUED, wait_ms=50), "all slots are taken"),
        (Plan(REFUSED, Refused.FLEET_EMPTY), "no car is enrolled"),
        (Plan(REFUSED, Refused.NO_FEASIBLE_VEHICLE), "no car can run a model"),
        (Plan(REFUSED, Refused.NO_VEHICLE_PERMITS), "no car permits"),
        (Plan(REFUSED, Refused.MODEL_UNKNOWN), "the fleet knows no model"),
        (Plan(messages=0, ending=LEFT), "the car left"),
        (Plan(messages=1, ending=LEFT), "the car left"),
        (Plan(messages=0, ending=LEASE_LOST), "the car left"),
    ],
)
async def test_what_is_no_failure_of_the_control_plane(world: World, plan: Plan, why: str) -> None:
    world.has_only(WRITER)
    world.has_loaded(WRITER)
    world.fleet.plans.append(plan)
    await world.canary.send()
    last = world.canary.last
    assert last is not None
    assert (last.fault, last.depth, last.shallow) == ("", Depth.SHARD, why)
    assert len(world.fleet.wanted) == 1, "it moves nowhere"


async def test_it_does_not_wait_for_a_slot(world: World) -> None:
    world.has_only(WRITER)
    world.has_loaded(WRITER)
    world.fleet.plans.append(Plan(QUEUED, wait_ms=10))
    await world.canary.send()
    await until(lambda: world.fleet.withdrawn == [world.fleet.wanted[0].session_id])
    await until(lambda: world.fleet.stopped)
    assert world.fleet.started == []


async def test_without_a_model_there_is_nobody_to_ask(world: World) -> None:
    world.has_only()
    for _ in range(2):
        await world.canary.send()
        assert world.canary.last is not None
        assert world.canary.last.shallow == "there is no model"
        world.stage.catalogue.add_model(model_row("reranker", 100, "/v1/rerank"))
    assert world.fleet.wanted == []


async def test_models_take_turns(world: World) -> None:
    first, second, third = (row.name for row in world.stage.catalogue.models())
    world.has_loaded(first, third)
    for _ in range(3):
        await world.canary.send()
    assert [body["model"] for body in world.fleet.bodies()] == [first, third, first]
    assert world.asked() == [first, second, third, first]
    world.has_loaded()
    await world.canary.send()
    assert world.asked()[4:] == [second, third, first], "each once"


async def test_of_many_models_it_asks_for_some_and_for_the_one_that_it_knows(world: World) -> None:
    world.has_only(WRITER)
    rows = [model_row(f"model-{number:02}", 100, COMPLETIONS) for number in range(20)]
    for row in rows:
        world.stage.catalogue.add_model(row)
    names = [row.name for row in world.stage.catalogue.models()]
    last = names[-1]
    world.has_loaded(last)
    asked: list[str] = []
    while not world.fleet.started:
        await world.canary.send()
        assert len(world.asked()) - len(asked) <= MODELS_MAX
        asked = world.asked()
    assert asked == names, "all of them in turn"
    await world.canary.send()
    assert world.asked()[len(asked) :] == [*names[:MODELS_MAX], last]
    assert world.canary.through[Depth.SESSION] == 2
    world.stage.catalogue.remove_model(world.model_id(last), 1)
    known = len(world.fleet.wanted)
    await world.canary.send()
    assert len(world.fleet.wanted) - known == MODELS_MAX


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
    world.has_loaded(WRITER)
    world.fleet.plans.append(plan)
    await world.canary.send()
    assert world.canary.last is not None
    assert fault in world.canary.fault()
    # What a car says in its own words is not for everybody.
    assert "The model can't" not in world.canary.fault()
    assert (world.canary.failed, world.canary.through.total()) == (1, 0)


async def test_a_car_that_sends_an_error_for_vectors(world: World) -> None:
    world.has_loaded(EMBEDDER)
    world.fleet.plans.append(Plan(pieces=(Piece(0, (), '{"nothing": 1}', finish_reason="stop"),)))
    await world.canary.send()
    assert "a car sent" in world.canary.fault()


async def test_a_canary_that_takes_too_long() -> None:
    async with opened(CanarySettings(patience_ms=30)) as world:
        world.has_loaded(WRITER)
        world.fleet.plans.append(Plan(messages=0, ending=SILENT))
        await world.canary.send()
        assert world.canary.fault() == "the canary took too long"
        assert len(world.stage.sessions) == 0
        world.has_loaded()
        world.shard.delay_s = 0.2
        await world.canary.send()
        assert world.canary.fault() == "the canary took too long"
        world.shard.delay_s = 0.0
        world.has_loaded(WRITER)
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


async def test_health_is_what_the_last_canary_says(world: World) -> None:
    unhealthy = await world.get("/healthz")
    assert code_of(unhealthy) == "shard_unavailable"
    assert "No canary has gone through yet." in unhealthy.text
    assert (await world.get("/readyz")).json() == {"status": "ok"}
    await world.canary.send()
    world.time.clock.advance(40_000)
    assert (await world.get("/healthz", "HEAD")).status_code == 200
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
    world.has_loaded(WRITER)
    await world.canary.send()
    health = (await world.get("/healthz")).json()
    ages = {"canary_age_ms": 0, "session_age_ms": 0}
    assert health == {"status": "ok", "depth": "session", "canary_ms": 0, **ages}
    world.time.clock.advance(30_000)
    world.has_loaded()
    await world.canary.send()
    health = (await world.get("/healthz")).json()
    ages = {"canary_age_ms": 0, "session_age_ms": 30_000}
    shallow = {"depth": "shard", "shallow": NOTHING_SPARE}
    assert health == {"status": "ok", **shallow, "canary_ms": 0, **ages}, "busy, not sick"
    world.has_loaded(WRITER)
    world.fleet.plans.append(Plan(messages=0, ending=MODEL_REFUSES))
    await world.canary.send()
    response = await world.get("/healthz")
    assert code_of(response) == "shard_unavailable"
    assert response.headers["retry-after"] == "2"
    assert (await world.get("/readyz")).status_code == 200


async def test_what_was_wrong_behind_the_shard_stands_while_nobody_can_look(world: World) -> None:
    world.has_loaded(WRITER)
    world.fleet.plans.append(Plan(messages=0, ending=MODEL_REFUSES))
    running = asyncio.create_task(world.canary.run())
    await until(lambda: world.canary.failed == 1)
    world.has_loaded()
    sent = [world.sent]
    for pause_ms in (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000):
        await world.time.pass_ms(pause_ms)
        await until(lambda: world.canary.through.total() == len(sent))
        sent.append(world.sent)
        assert world.canary.fault() == "a session failed: model refused"
    assert sent == [1, 2, 3, 4, 5, 6, 7, 8], "it looks again soon, though nothing fails"
    await world.time.pass_ms(8_250)
    assert world.canary.fault() == "a session failed: model refused"
    await world.time.pass_ms(1)
    assert world.canary.fault() == "", "40 s have passed"
    world.has_loaded(WRITER)
    world.fleet.plans.append(Plan(messages=0, ending=MODEL_REFUSES))
    await world.canary.send()
    assert world.canary.fault() == "a session failed: model refused"
    await world.canary.send()
    assert world.canary.fault() == "", "another one went through"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_catalogue_that_is_out_of_reach(world: World, monkeypatch: Any) -> None:
    def models() -> list[Any]:
        raise CatalogueUnavailable

    monkeypatch.setattr(world.stage.catalogue, "models", models)
    await world.canary.send()
    assert world.canary.fault() == "the catalogue does not answer"
    monkeypatch.undo()
    await world.canary.send()
    assert world.canary.fault() == ""


async def test_health_is_not_well_without_a_shard_whatever_went_through(world: World) -> None:
    await world.canary.send()
    await world.shard.bus.close()
    assert code_of(await world.get("/healthz")) == "shard_unavailable"
    assert code_of(await world.get("/readyz")) == "shard_unavailable"
