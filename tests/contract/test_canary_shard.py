"""Canaries over a whole shard: they take only what nobody wants, and leave nothing behind."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from terafleet.bus.ports import Message
from terafleet.control.gateway.canary import CANARY, NO_BATCH, Canary, CanarySettings
from terafleet.core.capability import Capability
from terafleet.core.ids import SESSION_UNIT, ModelId, ReceiptId
from terafleet.core.reasons import Refusal
from terafleet.core.session_events import Piece
from terafleet.core.work import AttemptResult
from terafleet.protocol import agent as wire
from terafleet.protocol import sessions as live
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS
from terafleet.protocol.shard import (
    AddModel,
    Answered,
    CancelBatch,
    EnrolVehicle,
    GetStatus,
    ListVehicles,
    ShardStatus,
    VehicleList,
)
from tests.contract.agent_stage import until
from tests.contract.live_gateway import HASTY, WRITER, Stage, model_row
from tests.contract.live_stage import live_sessions
from tests.contract.shard_stage import LINES, MODEL, FakeCar, ShardStage, reopen_memory

NOTHING_SPARE = "no free slot has a model in memory"


@pytest.fixture
async def shard() -> AsyncIterator[ShardStage]:
    made = ShardStage(reopen_memory())
    await made.begin()
    try:
        yield made
    finally:
        await made.close()


class Teller(FakeCar):
    """A car that answers each session with one letter."""

    def _take(self, message: Message) -> None:
        super()._take(message)
        start = self.heard[-1]
        if not isinstance(start, wire.StartSession):
            return
        told = (start.session_id, start.lease_id)
        subject = live.vehicle_subject(self.vehicle_id, start.gateway_id)
        piece = Piece(0, (1,), "x", finish_reason="length")
        for said in (live.PiecesSent(*told, 0, (piece,)), live.AnswerEnded(*told, 1, 1, 1)):
            self.bus.publish(subject, live.ENCODER.encode(said))
        del self.leases[start.lease_id]
        result = AttemptResult(SESSION_UNIT, 1, 0, 1, 1, 9_000, 10)
        self.hand_in(wire.Receipt(start.lease_id, ReceiptId(SESSION_UNIT), results=(result,)))


@pytest.fixture
async def canary(shard: ShardStage) -> AsyncIterator[Canary]:
    """One over a whole shard, in whose catalogue is a writer."""
    await shard.gateway.open()
    stage = Stage(HASTY)
    for row in stage.catalogue.models():
        if row.name != WRITER:
            stage.catalogue.remove_model(row.model_id, 1)
    sessions = live_sessions(shard.gateway.bus, HASTY)
    await sessions.start()
    context = msgspec.structs.replace(stage.context, bus=shard.gateway.bus, live=sessions)
    yield Canary(context, CanarySettings())
    await sessions.stop()


async def shallow(canary: Canary) -> str:
    """Send one. Why it went to the shard only, or empty when it came back from a car."""
    await canary.send()
    assert canary.last is not None
    assert canary.fault() == ""
    return canary.last.shallow


async def test_through_a_whole_shard_it_takes_only_what_nobody_wants(
    shard: ShardStage, canary: Canary
) -> None:
    row = model_row(WRITER, 100, COMPLETIONS, CHAT_COMPLETIONS)
    writer = msgspec.structs.replace(
        MODEL, model_id=ModelId(row.model_id), name=WRITER, endpoints=(COMPLETIONS,)
    )
    assert await shallow(canary) == "the fleet knows no model"
    for needs in (writer, MODEL):
        await shard.gateway.ask(AddModel(needs), Answered)
    assert await shallow(canary) == "no car is enrolled"
    car = Teller(shard.broker, "a")
    await shard.gateway.ask(EnrolVehicle(car.vehicle_id, "a"), Answered)
    await car.open()
    await until(lambda: car.epoch)
    assert await shallow(canary) == NOTHING_SPARE
    car.capability = Capability(("onnx",), 4_000, 1, (), "", (writer.model_id,))
    car.hello()
    await settled(shard)
    assert await shallow(canary) == ""
    await settled(shard)
    (view,) = (await shard.gateway.ask(ListVehicles(), VehicleList)).vehicles
    assert (view.canaries_answered, view.units_succeeded) == (1, 0)
    assert view.energy_mwh == 9_000
    assert view.reward_micro > 0
    assert view.leases == 0
    await shard.gateway.create("b", LINES[:1])
    await until(lambda: car.leases)
    assert await shallow(canary) == NOTHING_SPARE
    assert len(car.leases) == 1
    assert not car.all(wire.Revoke)
    car.finish()
    await settled(shard)
    assert await shallow(canary) == ""
    await settled(shard)
    car.refusals = (Refusal.DRIVER_PRESENT,)
    car.hello()
    await settled(shard)
    assert await shallow(canary) == NOTHING_SPARE


async def settled(shard: ShardStage) -> None:
    """Let the shard handle what has come."""
    await shard.gateway.ask(CancelBatch(NO_BATCH, CANARY), Answered)


async def test_it_changes_nothing_but_the_journal(shard: ShardStage, canary: Canary) -> None:
    assert await shallow(canary) == "the fleet knows no model"
    await settled(shard)
    before = await shard.gateway.ask(GetStatus(), ShardStatus)
    for _ in range(3):
        await shallow(canary)
    await settled(shard)
    after = await shard.gateway.ask(GetStatus(), ShardStatus)
    # It asks the shard, asks for a slot, and says that it waits for none.
    assert after.journal_sequence - before.journal_sequence == 3 * 3 + 1
    assert (after.batches_open, after.units_waiting, after.vehicles) == (0, 0, {})
    assert after.sessions_queued == {}
