"""Sends a tiny request the whole way, again and again, and knows how the last ones went.

It asks for a slot that nobody else wants, waits for none, and moves nowhere.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
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
from terafleet.control.gateway.served_models import manifest_of
from terafleet.control.ports import CatalogueUnavailable, ModelRow
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
"""A session that moved would say nothing of the car that it left."""

MODELS_MAX: Final = 4
"""For how many models one canary asks, in turn, until it finds one in memory."""

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

_NOT_SPARE: Final = {
    Refused.NO_SLOT_SPARE: "no free slot has a model in memory",
    Refused.NO_SLOT_FREE: "all slots are taken",
    Refused.NO_VEHICLE_PERMITS: "no car permits",
    Refused.NO_FEASIBLE_VEHICLE: "no car can run a model",
    Refused.MODEL_UNKNOWN: "the fleet knows no model",
    Refused.FLEET_EMPTY: "no car is enrolled",
}
"""What the fleet says when it has no slot to spare for a model, nearest miss first."""

_CAR_WENT: Final = frozenset(
    {
        LeaseEnding.AGENT_RESTARTED,
        LeaseEnding.AGENT_STOPPED,
        LeaseEnding.CONDITIONS_CHANGED,
        LeaseEnding.LINK_SILENT,
        LeaseEnding.NOT_PERMITTED,
        LeaseEnding.OWNER_RETURNED,
        LeaseEnding.VEHICLE_REMOVED,
        LeaseEnding.WORK_UNWANTED,
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


class Target(msgspec.Struct, frozen=True):
    """A model that a canary can ask, and at which endpoint."""

    model_id: ModelId
    name: str
    endpoint: str


class Passage(msgspec.Struct, frozen=True):
    """How a canary went: through to `depth`, or to a `fault` there.

    `shallow` says why it went no deeper than to the shard.
    """

    ended_ms: int
    took_ms: int
    fault: str = ""
    depth: Depth = Depth.SHARD
    shallow: str = ""


class CanaryLost(Exception):
    """A canary did not go through; the message says where it ended."""


class NotSpare(Exception):
    """The fleet has no slot for a canary of one model; for another one it may."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused)
        self.refused = refused


def canary_request(target: Target) -> LiveRequest:
    """A request for one token, checked as a customer's is."""
    body = msgspec.json.encode({"model": target.name, **_BODIES[target.endpoint]})
    checked = checked_request(target.endpoint, body)
    return LiveRequest(
        customer_id=CANARY,
        model_id=target.model_id,
        endpoint=target.endpoint,
        body=checked.body,
        tokens=checked.tokens,
        can_move=False,
        settings=STAYS,
        only_spare=True,
    )


def _target(row: ModelRow) -> Target | None:
    """How a canary asks a model, if it can."""
    offered = manifest_of(row).endpoints
    endpoint = next((one for one in _BODIES if one in offered), None)
    return None if endpoint is None else Target(ModelId(row.model_id), row.name, endpoint)


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Canary:
    """Of one gateway; `run` it, and ask for its `fault`."""

    def __init__(
        self,
        context: GatewayContext,
        settings: CanarySettings,
        now_ms: Callable[[], int] = _monotonic_ms,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`now_ms` never goes back; `sleep` waits for so many seconds."""
        self._context = context
        self._settings = settings
        self._now_ms = now_ms
        self._sleep = sleep
        self._failed_in_row = 0
        self._turn = 0
        self._known: Target | None = None
        self.last: Passage | None = None
        self.last_session: Passage | None = None
        self.through: Counter[Depth] = Counter()
        self.failed = 0

    @property
    def age_ms(self) -> int:
        """How long ago the last one ended."""
        return self._age_ms(self.last)

    @property
    def session_age_ms(self) -> int | None:
        """How long ago the last one that went on to a car came back from it; None: it did not."""
        last = self.last_session
        return None if last is None or last.fault else self._age_ms(last)

    def _age_ms(self, passage: Passage | None) -> int:
        return self._now_ms() - passage.ended_ms if passage else 0

    def fault(self) -> str:
        """Why the way counts as broken, or empty.

        Who went to the shard only does not know what is wrong, or well again, behind it: what was
        found there stands for as long as any canary's word does.
        """
        if self.last is None:
            return "no canary has gone through yet"
        if self.last.fault:
            return self.last.fault
        if not self._counts(self.last):
            return f"the last canary went through {self.age_ms // MS_PER_S} s ago"
        return self._fault_behind()

    def _fault_behind(self) -> str:
        last = self.last_session
        return last.fault if last is not None and self._counts(last) else ""

    def _counts(self, passage: Passage) -> bool:
        return self._age_ms(passage) <= self._settings.period_ms + self._settings.patience_ms

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
                depth = Depth.SESSION
                shallow = await self._through_session()
        except TimeoutError:
            fault = "the canary took too long"
        except ShardUnavailable:
            fault = "the shard does not answer"
        except CatalogueUnavailable:
            depth, fault = Depth.SHARD, "the catalogue does not answer"
        except CanaryLost as lost:
            fault = str(lost)
        if shallow:
            depth = Depth.SHARD
        ended_ms = self._now_ms()
        self._keep(Passage(ended_ms, ended_ms - began_ms, fault, depth, shallow))

    def _keep(self, passage: Passage) -> None:
        self.last = passage
        if passage.depth is Depth.SESSION:
            self.last_session = passage
        if passage.fault:
            self.failed += 1
            log.warning("canary_failed", cause=passage.fault, took_ms=passage.took_ms)
        else:
            self.through[passage.depth] += 1
        if self.fault():
            self._failed_in_row += 1
        elif self._failed_in_row:
            log.info("canary_went_through_again", depth=passage.depth)
            self._failed_in_row = 0

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
        """On to a car and back. Returns why not, where that is no failure."""
        refused = set()
        for target in self._targets():
            try:
                shallow = await self._ask(target)
            except NotSpare as none:
                refused.add(none.refused)
            else:
                self._known = self._known if shallow else target
                return shallow
        return next(
            (said for one, said in _NOT_SPARE.items() if one in refused), "there is no model"
        )

    def _targets(self) -> Iterator[Target]:
        """Some models in turn; at last the one that went through last, which may be in memory."""
        rows = self._context.catalogue.models()
        found: list[Target] = []
        for _ in rows:
            target = _target(rows[self._turn % len(rows)])
            self._turn += 1
            if target is not None:
                found.append(target)
                yield target
            if len(found) == MODELS_MAX:
                break
        known = self._known
        is_there = known is not None and any(row.model_id == known.model_id for row in rows)
        if known is not None and is_there and known not in found:
            yield known

    async def _ask(self, target: Target) -> str:
        """Ask a model on a spare slot. Returns why it did not answer, where that is no failure."""
        async with self._context.live.open(canary_request(target)) as stream:
            try:
                return await _read(stream, target)
            except ReaderTooSlow as fault:
                raise CanaryLost("a car sent far more than was asked for") from fault
            except AnswerUnreadable as fault:
                raise CanaryLost(f"a car sent no answer: {fault}") from fault
            except ApiError as fault:
                raise CanaryLost("a car sent an error in place of an answer") from fault


async def _read(stream: LiveStream, target: Target) -> str:
    """Read an answer as a customer would. Returns why there was none, if that is no failure."""
    whole = _whole(target)
    async for said in stream:
        match said:
            case SayQueued():
                raise NotSpare(Refused.NO_SLOT_FREE)
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
    """Why it is no failure of the control plane. Raises NotSpare, or CanaryLost where it is one."""
    if failed.refused in _NOT_SPARE:
        raise NotSpare(failed.refused)
    if failed.failure in _LOST_CAR and failed.detail in _CAR_WENT:
        return "the car left"
    words = str(failed.refused or failed.failure).replace("_", " ")
    # What a model says is a car's own text, and anybody may read how the gateway is.
    is_ours = failed.failure is not SessionFailure.MODEL_REFUSED
    raise CanaryLost(f"a session failed: {words}{f': {failed.detail}' if is_ours else ''}")


def _whole(target: Target) -> WholeChat | WholeCompletion | WholeEmbeddings:
    head = Head("canary", 0, target.name, 1)
    if target.endpoint == EMBEDDINGS:
        return WholeEmbeddings(1)
    return WholeChat(head) if target.endpoint == CHAT_COMPLETIONS else WholeCompletion(head)
