"""Plays shard and cars for the live sessions of a gateway: right answers, and scripted mishaps."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from terafleet.bus.ports import Bus, Message
from terafleet.core.ids import Epoch, LeaseId, ModelId, VehicleId
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.session_events import Piece
from terafleet.protocol import sessions as live
from terafleet.protocol.agent import TO_VEHICLE_DECODER, StartSession, StopSession
from terafleet.protocol.live import LiveBody, LiveChat, choices_of
from terafleet.protocol.shard import SESSIONS_SUBJECT
from tests.contract import live_oracle as oracle

DURATION_MS = 20_000
BEAT_S = 0.02
EPOCH = 3

REFUSED, LOST_ASK, QUEUED = "refused", "lost_ask", "queued"
LEFT, SILENT, LEASE_LOST, MODEL_REFUSES, RAW = "left", "silent", "lease_lost", "refuses", "raw"


class Plan(msgspec.Struct, frozen=True):
    """What becomes of one question for a slot, and of the lease that answers it.

    `answer` is empty for a grant at once. After `messages` messages of pieces (-1: all) comes
    `ending`; empty for a good one. The message number `lost` is not sent, `twice` is sent twice.
    """

    answer: str = ""
    refused: Refused = Refused.NO_SLOT_FREE
    detail: str = ""
    wait_ms: int = 0
    messages: int = -1
    ending: str = ""
    lost: int = -1
    twice: int = -1
    tokens_per_piece: int = 1
    pause_s: float = 0.0
    code: str = "context_length_exceeded"
    pieces: tuple[Piece, ...] = ()


class FakeFleet:
    """A fleet whose cars say the right thing, until a plan makes them fail.

    `plans` are taken one for each question; without one all goes well. Only the models that are
    `loaded` have spare slots; None are all.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.plans: deque[Plan] = deque()
        self.usual = Plan()
        self.loaded: set[ModelId] | None = None
        self.wanted: list[live.LeaseWanted] = []
        self.started: list[StartSession] = []
        self.stopped: dict[LeaseId, float] = {}
        self.withdrawn: list[str] = []
        self.faults: list[str] = []
        self.vehicles = [VehicleId(f"veh-{number}") for number in range(40)]
        self._lease_ids = itertools.count(1)
        self._granted: dict[LeaseId, tuple[live.LeaseWanted, Plan, VehicleId]] = {}
        self._telling: dict[LeaseId, asyncio.Task[None]] = {}
        self._later: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen to the gateway, as the shard and as all cars."""
        await self.bus.subscribe(SESSIONS_SUBJECT, self._from_gateway)
        await self.bus.subscribe("v.*.down", self._to_car)

    async def stop(self) -> None:
        """End what is still being told."""
        tasks = [*self._telling.values(), *self._later]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def running(self) -> int:
        """How many cars are telling something at this moment."""
        return sum(not task.done() for task in self._telling.values())

    def bodies(self) -> list[dict[str, Any]]:
        """What the cars were sent."""
        return [msgspec.json.decode(start.body) for start in self.started]

    # The shard.

    def _from_gateway(self, message: Message) -> None:
        said = live.FROM_GATEWAY_DECODER.decode(message.body)
        if isinstance(said, live.LeaseUnwanted):
            self._unwanted(said)
            return
        self.wanted.append(said)
        plan = self._plan(said)
        match plan.answer:
            case "":
                self._grant(said, plan)
            case "refused":
                refused = live.SlotRefused(
                    said.session_id, said.ask, plan.refused, plan.detail, plan.wait_ms
                )
                self._say_as_shard(said, refused)
            case "queued":
                queued = live.SlotQueued(said.session_id, said.ask, plan.wait_ms, 10 * plan.wait_ms)
                self._say_as_shard(said, queued)
                task = asyncio.create_task(self._grant_later(said, plan))
                self._later.add(task)
                task.add_done_callback(self._later.discard)

    def _plan(self, said: live.LeaseWanted) -> Plan:
        is_there = self.loaded is None or said.model_id in self.loaded
        if said.only_spare and not is_there:
            return Plan(REFUSED, Refused.NO_SLOT_SPARE)
        return self.plans.popleft() if self.plans else self.usual

    def _unwanted(self, said: live.LeaseUnwanted) -> None:
        if said.lease_id == live.NO_LEASE:
            self.withdrawn.append(said.session_id)
        elif said.lease_id not in self.stopped:
            self.faults.append("the shard heard of an end before the car")

    async def _grant_later(self, wanted: live.LeaseWanted, plan: Plan) -> None:
        await asyncio.sleep(plan.wait_ms / 1_000)
        self._grant(wanted, plan)

    def _grant(self, wanted: live.LeaseWanted, plan: Plan) -> None:
        free = [one for one in self.vehicles if one not in wanted.excluded]
        vehicle_id, lease_id = free[0], LeaseId(next(self._lease_ids))
        self._granted[lease_id] = (wanted, plan, vehicle_id)
        granted = live.SlotGranted(
            wanted.session_id, wanted.ask, lease_id, vehicle_id, EPOCH, DURATION_MS
        )
        self._say_as_shard(wanted, granted)

    def _say_as_shard(self, wanted: live.LeaseWanted, said: live.AnyFromFleet) -> None:
        self.bus.publish(live.fleet_subject(wanted.gateway_id), live.ENCODER.encode(said))

    # The cars.

    def _to_car(self, message: Message) -> None:
        said = TO_VEHICLE_DECODER.decode(message.body)
        if isinstance(said, StopSession):
            self.stopped.setdefault(said.lease_id, time.monotonic())
            task = self._telling.get(said.lease_id)
            if task is not None:
                task.cancel()
            return
        assert isinstance(said, StartSession)
        wanted, plan, vehicle_id = self._granted[said.lease_id]
        if message.subject != f"v.{vehicle_id}.down" or said.epoch != Epoch(EPOCH):
            self.faults.append("the wrong car or epoch")
        self.started.append(said)
        self._telling[said.lease_id] = asyncio.create_task(self._tell(said, wanted, plan))

    async def _tell(self, start: StartSession, wanted: live.LeaseWanted, plan: Plan) -> None:
        """Say what the plan wants, with beats where nothing else is to be said."""
        _, _, vehicle_id = self._granted[start.lease_id]
        subject = live.vehicle_subject(vehicle_id, start.gateway_id)
        base = (start.session_id, start.lease_id)
        number = 0
        for piece in self._pieces(start, wanted, plan):
            if number == plan.messages:
                break
            if plan.pause_s:
                await self._pause(subject, base, number, plan.pause_s)
            said = live.ENCODER.encode(live.PiecesSent(*base, number, (piece,)))
            for _ in range(0 if number == plan.lost else 2 if number == plan.twice else 1):
                self.bus.publish(subject, said)
            number += 1
        self._end(subject, base, number, plan, wanted)

    async def _pause(
        self, subject: str, base: tuple[Any, LeaseId], number: int, pause_s: float
    ) -> None:
        end_s = time.monotonic() + pause_s
        while (left_s := end_s - time.monotonic()) > 0:
            self.bus.publish(subject, live.ENCODER.encode(live.AtWork(*base, number)))
            await asyncio.sleep(min(left_s, BEAT_S))

    def _end(
        self,
        subject: str,
        base: tuple[Any, LeaseId],
        number: int,
        plan: Plan,
        wanted: live.LeaseWanted,
    ) -> None:
        said: live.AnyFromCar | None = None
        match plan.ending:
            case "":
                said = live.AnswerEnded(*base, number, oracle.PROMPT_TOKENS, self._count(wanted))
            case "left":
                said = live.CarLeft(*base, number, LeaseEnding.OWNER_RETURNED)
            case "refuses":
                said = live.ModelRefused(*base, number, plan.code, "The model can't.", "prompt")
            case "lease_lost":
                lost = live.SlotLost(base[0], base[1], LeaseEnding.LINK_SILENT)
                self._say_as_shard(wanted, lost)
        if said is not None:
            self.bus.publish(subject, live.ENCODER.encode(said))

    def _count(self, wanted: live.LeaseWanted) -> int:
        """The completion's tokens, also those that other cars told."""
        start = next(one for one in self.started if one.session_id == wanted.session_id)
        if oracle.is_embeddings(wanted.endpoint):
            return 0
        texts = oracle.texts_of(oracle.checked(wanted.endpoint, start.body))
        return sum(len(text.words) for text in texts)

    def _pieces(self, start: StartSession, wanted: live.LeaseWanted, plan: Plan) -> Iterator[Piece]:
        if plan.pieces:
            return iter(plan.pieces)
        if oracle.is_embeddings(wanted.endpoint):
            line = oracle.embeddings_line(msgspec.json.decode(start.body))
            return iter([Piece(0, (), line, finish_reason="stop")])
        request = oracle.checked(wanted.endpoint, start.body)
        if isinstance(request, LiveChat) and request.tools is not None:
            name = request.tools[0].function.name
            calls = [oracle.call_pieces(name, index) for index in range(choices_of(request))]
            return itertools.chain(*calls)
        return self._texts(request, start.delivered, plan)

    def _texts(self, request: LiveBody, delivered: tuple[int, ...], plan: Plan) -> Iterator[Piece]:
        """The texts in turns, behind what was delivered of the only one."""
        choices = choices_of(request)
        right = oracle.texts_of(request)[0].token_ids
        if delivered and (choices > 1 or delivered != right[: len(delivered)]):
            self.faults.append(f"{delivered} is not what the customer has")
        texts = [
            oracle.pieces_of(request, index, len(delivered), plan.tokens_per_piece)
            for index in range(choices)
        ]
        for turn in itertools.zip_longest(*texts):
            yield from (piece for piece in turn if piece is not None)
