"""A shard that answers each kind of question with what a test has put there, and remembers them."""

import asyncio
from collections.abc import Callable
from typing import Any

from terafleet.bus.adapters.memory import MemoryBroker, MemoryBus
from terafleet.bus.ports import Message
from terafleet.core.reasons import Refused
from terafleet.protocol.shard import (
    ENCODER,
    QUESTION_DECODER,
    SHARD_SUBJECT,
    Answered,
    BatchList,
    GetBatch,
    GetOutputs,
    GetStatus,
    GetStory,
    ListBatches,
    ListVehicles,
    Outputs,
    Question,
    Reply,
    ShardStatus,
    Story,
    VehicleList,
    VehicleView,
)

Answer = Reply | Callable[[Any], Reply]


def shard_status(batches_open: int = 0) -> ShardStatus:
    return ShardStatus(
        version="0.1.0",
        at_ms=1,
        started_ms=0,
        is_storage_full=False,
        bytes_free=None,
        vehicles={},
        units_waiting=0,
        units_running=0,
        batches_open=batches_open,
        journal_sequence=0,
        figures={},
    )


def vehicle_view(vehicle_id: str) -> VehicleView:
    return VehicleView(
        vehicle_id=vehicle_id,  # type: ignore[arg-type]
        name="a car",
        state="idle",
        refusals=(),
        epoch=1,
        device="cpu",
        slots=1,
        leases=0,
        units_succeeded=0,
        attempts_lost={},
        energy_mwh=0,
        energy_lost_mwh=0,
        runtime_ms=0,
        lost_ms=0,
        reward_micro=0,
        quarantined_until_ms=0,
        heard_ms=0,
    )


class FakeAnswers:
    """Listens where a shard does; a question of an unknown kind is answered with `Answered`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.bus = MemoryBus(broker)
        self.questions: list[Question] = []
        self.delay_s = 0.0
        self.answers: dict[type[Question], Answer] = {
            GetStatus: shard_status(),
            ListVehicles: VehicleList(()),
            ListBatches: BatchList((), False),
            GetBatch: Answered(Refused.BATCH_UNKNOWN),
            GetOutputs: Outputs(()),
            GetStory: Story((), True),
        }

    async def start(self) -> None:
        await self.bus.connect()
        await self.bus.subscribe(SHARD_SUBJECT, self._answer)

    def asked(self, kind: type[Question]) -> list[Any]:
        """The questions of a kind that came so far."""
        return [question for question in self.questions if isinstance(question, kind)]

    def _answer(self, message: Message) -> None:
        question = QUESTION_DECODER.decode(message.body)
        self.questions.append(question)
        answer = self.answers.get(type(question), Answered())
        reply = answer if isinstance(answer, Reply) else answer(question)
        body = ENCODER.encode(reply)
        asyncio.get_running_loop().call_later(self.delay_s, self.bus.publish, message.reply, body)
