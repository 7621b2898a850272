"""A shard whose record finds no room: whoever asks for a change is told so at once."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from terafleet.control.shard.service import REFUSED_FULL, UNREADABLE
from terafleet.core.ids import BatchId, VehicleId
from terafleet.core.reasons import Refused
from terafleet.core.work import BatchState
from terafleet.engine.adapters.memory import MemoryStore
from terafleet.engine.ports import Record, StorageUnavailable
from terafleet.protocol import shard as q
from tests.contract.agent_stage import until
from tests.contract.shard_stage import CUSTOMER, LINES, SETTINGS, ShardStage, reopen_memory

FOR_EVER = 1_000_000


@pytest.fixture
async def stage() -> AsyncIterator[ShardStage]:
    """A shard with two batches that no car does; a commit that fails is soon tried again."""
    engine = msgspec.structs.replace(SETTINGS.engine, retry_ms_min=5, retry_ms_max=5)
    made = ShardStage(reopen_memory(), msgspec.structs.replace(SETTINGS, engine=engine))
    await made.open()
    await made.add_car("a")
    for name in ("batch_1", "batch_2"):
        assert await made.gateway.create(name, LINES) == q.Answered()
    await until(lambda: len(made.shard.fleet.state.units) == 2 * len(LINES))
    yield made
    store_of(made).fail_next(0)
    await made.close()


def store_of(stage: ShardStage) -> MemoryStore:
    """The record."""
    assert isinstance(stage.store, MemoryStore)
    return stage.store


async def cancel(stage: ShardStage, name: str) -> q.Answered:
    """Ask to cancel a batch; fails if no answer comes in time."""
    return await stage.gateway.ask(q.CancelBatch(BatchId(name), CUSTOMER), q.Answered)


async def test_who_meets_a_full_record_first_is_told(stage: ShardStage) -> None:
    store_of(stage).fail_next(FOR_EVER)
    answer = await cancel(stage, "batch_1")
    assert answer.refused is Refused.STORAGE_FULL
    assert "once there is room" in answer.detail
    assert (await stage.gateway.view("batch_1")).state is BatchState.IN_PROGRESS
    store_of(stage).fail_next(0)
    await until(lambda: stage.storage == [True, False])
    assert (await stage.gateway.view("batch_1")).cancelling_ms > 0
    assert await cancel(stage, "batch_2") == q.Answered()


async def test_who_comes_later_is_told_and_nothing_of_it_is_done(stage: ShardStage) -> None:
    store_of(stage).fail_next(FOR_EVER)
    await cancel(stage, "batch_1")
    car = VehicleId("veh-a")
    for question in (
        q.CancelBatch(BatchId("batch_2"), CUSTOMER),
        q.DrainVehicle(car, True),
        q.RemoveVehicle(car),
    ):
        answer = await stage.gateway.ask(question, q.Answered)
        assert answer == REFUSED_FULL
    store_of(stage).fail_next(0)
    await until(lambda: stage.storage == [True, False])
    assert (await stage.gateway.view("batch_2")).cancelling_ms == 0
    assert {one.state for one in stage.shard.fleet.state.vehicles.values()} != {"draining"}
    assert await cancel(stage, "batch_2") == q.Answered()


async def test_a_record_that_is_nearly_full_still_takes_a_cancel(stage: ShardStage) -> None:
    """It frees room."""
    limits = {"bytes_free_min": 1_000_000, "bytes_free_enough": 2_000_000}
    engine = msgspec.structs.replace(stage.settings.engine, **limits)
    await stage.close()
    stage.settings = msgspec.structs.replace(stage.settings, engine=engine)
    store_of(stage).capacity_bytes = 900_000
    await stage.begin()
    await until(lambda: stage.storage == [True])
    assert await cancel(stage, "batch_1") == q.Answered()
    assert (await stage.gateway.view("batch_1")).cancelling_ms > 0


class AwayStore(MemoryStore):
    """Its server is away from when a test says so; what was committed before can't be read."""

    is_away = False

    def record(self, kind: str, record_id: str) -> Record | None:
        if self.is_away:
            raise StorageUnavailable("connection refused")
        return super().record(kind, record_id)


async def test_who_reads_while_the_database_is_away_is_told() -> None:
    store = AwayStore()
    stage = ShardStage(lambda: store)
    await stage.open()
    await stage.add_car("a")
    assert await stage.gateway.create("batch_1", LINES) == q.Answered()
    store.is_away = True
    for question in (
        q.GetBatch(BatchId("batch_1"), CUSTOMER),
        q.ListBatches(CUSTOMER, "batch_1", 5),
    ):
        assert await stage.gateway.ask(question, q.Answered) == UNREADABLE
    store.is_away = False
    assert (await stage.gateway.view("batch_1")).requests == len(LINES)
    await stage.close()
