"""What a shard says of itself to who reads its metrics: who waits, and what commits take."""

from collections.abc import AsyncIterator

import pytest

from terafleet.core.ids import BatchId, CustomerId, GatewayId, SessionId
from terafleet.engine.figures import COMMIT_MS_BOUNDS, Figures
from terafleet.protocol import sessions as live
from terafleet.protocol.shard import (
    SESSIONS_SUBJECT,
    Answered,
    CancelBatch,
    GetStatus,
    RemoveModel,
    ShardStatus,
)
from tests.contract.shard_stage import CUSTOMER, EMBEDDINGS, MODEL, ShardStage, reopen_memory


@pytest.fixture
async def stage() -> AsyncIterator[ShardStage]:
    made = ShardStage(reopen_memory())
    await made.open()
    try:
        yield made
    finally:
        await made.close()


async def status(stage: ShardStage) -> ShardStatus:
    """How the shard is, after all that was said to it."""
    await stage.gateway.ask(CancelBatch(BatchId("none"), CUSTOMER), Answered)
    return await stage.gateway.ask(GetStatus(), ShardStatus)


def want(stage: ShardStage, name: str) -> None:
    """A gateway wants a slot for a short session."""
    wanted = live.LeaseWanted(
        session_id=SessionId(name),
        gateway_id=GatewayId("gateway"),
        ask=1,
        customer_id=CustomerId("customer"),
        model_id=MODEL.model_id,
        endpoint=EMBEDDINGS,
        tokens=1,
        excluded=(),
    )
    stage.gateway.bus.publish(SESSIONS_SUBJECT, live.ENCODER.encode(wanted))


async def test_who_waits_is_counted_by_the_name_of_the_model(stage: ShardStage) -> None:
    await stage.add_car("a")
    assert (await status(stage)).sessions_queued == {}
    want(stage, "first")
    assert (await status(stage)).sessions_queued == {MODEL.name: 0}
    for name in ("second", "third"):
        want(stage, name)
    assert (await status(stage)).sessions_queued == {MODEL.name: 2}
    await stage.gateway.ask(RemoveModel(MODEL.model_id), Answered)
    assert (await status(stage)).sessions_queued == {MODEL.name: 2}, "they wait still"
    for name in ("second", "third"):
        unwanted = live.LeaseUnwanted(SessionId(name), live.NO_LEASE)
        stage.gateway.bus.publish(SESSIONS_SUBJECT, live.ENCODER.encode(unwanted))
    assert (await status(stage)).sessions_queued == {}


async def test_commits_are_counted_by_what_they_took(stage: ShardStage) -> None:
    said = await status(stage)
    taken = said.commit_times
    assert taken.bounds_ms == COMMIT_MS_BOUNDS
    assert sum(taken.counts) == said.figures["commits"] > 0
    assert taken.total_ms > 0


def test_a_commit_counts_with_those_up_to_the_next_bound() -> None:
    figures = Figures()
    for commit_ms in (0.2, 1.0, 1.1, 2_500.0, 9_999.0):
        figures.committed(commit_ms)
    assert figures.commits == 5
    assert figures.commit_ms_last == 9_999.0
    assert figures.commit_ms_total == 12_501.3
    assert figures.commits_by_ms == [2, 1, *[0] * 8, 1, 1]
