"""Sends a tiny request the whole way, again and again, and knows how the last one went.

It never waits for a slot, never asks for one that must be freed or loaded first, and moves nowhere.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final

import msgspec
import structlog

from terafleet.control.gateway.context import GatewayContext, ShardRefused, ShardUnavailable
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.live.chunks import Ended, Head
from terafleet.control.gateway.live.failures import AnswerUnreadable
from terafleet.control.gateway.live.requests import checked_request
from terafleet.control.gateway.live.sessions import LiveRequest, LiveStream, ReaderTooSlow
from terafleet.control.gateway.live.whole import WholeChat, WholeCompletion, WholeEmbeddings
from terafleet.core.fleet_state import FleetState
from terafleet.core.ids import BatchId, CustomerId, ModelId
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.session_effects import (
    Deliver,
    FailSession,
    FinishSession,
    SayQueued,
    SessionFailure,
)
from terafleet.core.session_events import SessionSettings
from terafleet.core.units import MS_PER_S
from terafleet.protocol.live_answers import Usage
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from terafleet.protocol.shard import Answered, CancelBatch

CANARY: Final = CustomerId(".canary")
"""Whose the sessions of canaries are; no customer's id begins with a dot."""

NO_BATCH: Final = BatchId("canary")
"""No batch has this id, so that to cancel it changes nothing but the journal."""

RETRY_MS: Final = 250
"""The first pause after a canary that did not go through; each further one is twice as long."""

STAYS: Final = SessionSettings(moves_max=0)
"""A session that would move might take a batch's slot, or have a model loaded."""

_BODIES: Final[dict[str, dict[str, object]]] = {
    COMPLETIONS: {"prompt": "1", "max_tokens": 1, "temperature": 0},
    CHAT_COMPLETIONS: {
        "messages": [{"role": "user", "content": "1"}],
        "max_tokens": 1,
        "temperature": 0,
    },
    EMBEDDINGS: {"input": "1"},
}
"""The smallest request for each endpoint, the plainest endpoint first."""

_TAKEN: Final = frozenset(
    {
        Refused.FLEET_EMPTY,
        Refused.MODEL_UNKNOWN,
        Refused.NO_FEASIBLE_VEHICLE,
        Refused.NO_SLOT_FREE,
        Refused.NO_VEHICLE_PERMITS,
    }
)
"""What the fleet says when the slot that was free is not there any more."""

_CAR_WENT: Final = frozenset(
    {
        LeaseEnding.AGENT_RESTARTED,
        LeaseEnding.AGENT_STOPPED,
        LeaseEnding.CONDITIONS_CHANGED,
        LeaseEnding.EPOCH_FENCED,
        LeaseEnding.LINK_SILENT,
        LeaseEnding.NOT_PERMITTED,
        LeaseEnding.OWNER_RETURNED,
        LeaseEnding.VEHICLE_REMOVED,
    }
)
"""How a car may leave at any moment, through no fault of the control plane."""

_LOST_CAR: Final = frozenset({SessionFailure.CANNOT_MOVE, SessionFailure.MOVED_TOO_OFTEN})

log = structlog.get_logger(__name__)


class CanarySettings(msgspec.Struct, frozen=True):
    """One canary every `period_ms` (0: none), which may take `patience_ms`."""

    period_ms: int = 30_000
    patience_ms: int = 10_000


class Depth(StrEnum):
    """How far a canary went: into the journal and back, or on to a car and its model."""

    SHARD = "shard"
    SESSION = "session"


class Spare(msgspec.Struct, frozen=True):
    """A model that stands in the memory of a car with a free slot."""

    model_id: ModelId
    name: str
    endpoint: str


FindSpare = Callable[[int], Spare | str]
"""Another spare model each turn, or in words why there is none."""


class Passage(msgspec.Struct, frozen=True):
    """How a canary went. Without a `fault` it went through, to `depth`.

    `shallow` says why it went no deeper than to the shard.
    """

    ended_ms: int
    took_ms: int
    fault: str = ""
    depth: Depth = Depth.SHARD
    shallow: str = ""


class CanaryLost(Exception):
    """A canary did not go through; the message says where it ended."""


def spare_model(fleet: FleetState, turn: int) -> Spare | str:
    """Where a session costs next to nothing: a free slot, its model in memory, nobody waiting."""
    if fleet.queued_sessions:
        return "customers wait for slots"
    loaded = {model_id for kind in fleet.index.ready for model_id in kind.loaded}
    found = []
    for model_id in sorted(loaded & fleet.models.keys()):
        needs = fleet.models[model_id]
        endpoint = next((one for one in _BODIES if one in needs.endpoints), None)
        if endpoint is not None:
            found.append(Spare(model_id, needs.name, endpoint))
    if found:
        return found[turn % len(found)]
    if not fleet.vehicles:
        return "no car is enrolled"
    if not fleet.models:
        return "there is no model"
    if not any(group.permitting for group in fleet.index.groups.values()):
        return "no car permits"
    return "no car with a free slot has a model in memory"


def canary_request(spare: Spare) -> LiveRequest:
    """A request for one token, checked as a customer's is."""
    body = msgspec.json.encode({"model": spare.name, **_BODIES[spare.endpoint]})
    checked = checked_request(spare.endpoint, body)
    return LiveRequest(
        customer_id=CANARY,
        model_id=spare.model_id,
        endpoint=spare.endpoint,
        body=checked.body,
        tokens=checked.tokens,
        can_move=False,
        settings=STAYS,
    )


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Canary:
    """Of one gateway; `run` it, and ask for its `fault`."""

    def __init__(
        self,
        context: GatewayContext,
        settings: CanarySettings,
        find_spare: FindSpare,
        now_ms: Callable[[], int] = _monotonic_ms,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`now_ms` never goes back; `sleep` waits for so many seconds."""
        self._context = context
        self._settings = settings
        self._find_spare = find_spare
        self._now_ms = now_ms
        self._sleep = sleep
        self._failed_in_row = 0
        self.last: Passage | None = None
        self.through: Counter[Depth] = Counter()
        self.failed = 0

    @property
    def age_ms(self) -> int:
        """How long ago the last one ended."""
        return self._now_ms() - self.last.ended_ms if self.last else 0

    def fault(self) -> str:
        """Why the way counts as broken, or empty."""
        if self.last is None:
            return "no canary has gone through yet"
        if self.last.fault:
            return self.last.fault
        if self.age_ms > self._settings.period_ms + self._settings.patience_ms:
            return f"the last canary went through {self.age_ms // MS_PER_S} s ago"
        return ""

    async def run(self) -> None:
        """Send one canary after the other; ends only when it is cancelled."""
        while True:
            await self.send()
            await self._sleep(self._pause_ms() / MS_PER_S)

    async def send(self) -> None:
        """Send one and keep how it went."""
        began_ms = self._now_ms()
        fault, depth, shallow = "", Depth.SHARD, ""
        try:
            async with asyncio.timeout(self._settings.patience_ms / MS_PER_S):
                await self._through_shard()
                shallow = await self._through_session()
        except TimeoutError:
            fault = "the canary took too long"
        except ShardUnavailable:
            fault = "the shard does not answer"
        except CanaryLost as lost:
            fault = str(lost)
        else:
            depth = Depth.SHARD if shallow else Depth.SESSION
        ended_ms = self._now_ms()
        self._keep(Passage(ended_ms, ended_ms - began_ms, fault, depth, shallow))

    def _keep(self, passage: Passage) -> None:
        if passage.fault:
            self.failed += 1
            self._failed_in_row += 1
            log.warning("canary_failed", cause=passage.fault, took_ms=passage.took_ms)
        else:
            self.through[passage.depth] += 1
            if self._failed_in_row:
                log.info("canary_went_through_again", depth=passage.depth)
            self._failed_in_row = 0
        self.last = passage

    def _pause_ms(self) -> int:
        """Soon again after a failure, so that what has passed is seen to have passed."""
        if not self._failed_in_row:
            return self._settings.period_ms
        return min(self._settings.period_ms, RETRY_MS << min(self._failed_in_row - 1, 20))

    async def _through_shard(self) -> None:
        """Over the bus, through the machine and into the journal: the answer waits for it."""
        try:
            await self._context.ask(CancelBatch(NO_BATCH, CANARY), Answered)
        except ShardRefused as refused:
            answered = refused.answered
            if answered.refused is not Refused.BATCH_ENDED:
                words = answered.detail or str(answered.refused)
                raise CanaryLost(f"the shard refused: {words}") from refused

    async def _through_session(self) -> str:
        """On to a car and back. Returns why not, where there is none to spare."""
        spare = self._find_spare(self.through.total() + self.failed)
        if isinstance(spare, str):
            return spare
        async with self._context.live.open(canary_request(spare)) as stream:
            try:
                return await _read(stream, spare)
            except ReaderTooSlow as fault:
                raise CanaryLost("a car sent far more than was asked for") from fault
            except AnswerUnreadable as fault:
                raise CanaryLost(f"a car sent no answer: {fault}") from fault
            except ApiError as fault:
                raise CanaryLost("a car sent an error in place of an answer") from fault


async def _read(stream: LiveStream, spare: Spare) -> str:
    """Read an answer as a customer would. Returns why there was none, if that is no failure."""
    whole = _whole(spare)
    async for said in stream:
        match said:
            case SayQueued():
                return "the free slot was taken"
            case Deliver():
                whole.take(said.pieces)
            case FinishSession():
                tokens = (said.prompt_tokens, said.completion_tokens)
                whole.end(Ended(Usage(*tokens, sum(tokens))))
                return ""
            case FailSession():
                return _excuse(said)
    raise AssertionError("a session ends with its end")


def _excuse(failed: FailSession) -> str:
    """Why it is no failure of the control plane. Raises CanaryLost where it is one."""
    if failed.refused in _TAKEN:
        return "the free slot was taken"
    if failed.failure in _LOST_CAR and failed.detail in _CAR_WENT:
        return "the car left"
    words = str(failed.refused or failed.failure).replace("_", " ")
    # What a model says is a car's own text, and anybody may read how the gateway is.
    is_ours = failed.failure is not SessionFailure.MODEL_REFUSED
    raise CanaryLost(f"a session failed: {words}{f': {failed.detail}' if is_ours else ''}")


def _whole(spare: Spare) -> WholeChat | WholeCompletion | WholeEmbeddings:
    head = Head("canary", 0, spare.name, 1)
    if spare.endpoint == EMBEDDINGS:
        return WholeEmbeddings(1)
    return WholeChat(head) if spare.endpoint == CHAT_COMPLETIONS else WholeCompletion(head)
