"""Runs the live sessions of one gateway: messages in, decisions of `core.session`, messages out."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import structlog

from terafleet.bus.ports import Bus, BusUnavailable, Message, Subscription
from terafleet.core import session_effects as fx
from terafleet.core import session_events as ev
from terafleet.core.ids import CustomerId, Epoch, GatewayId, ModelId, SessionId
from terafleet.core.session import Session
from terafleet.core.units import MS_PER_S
from terafleet.protocol import agent as wire
from terafleet.protocol import sessions as live
from terafleet.protocol.shard import SESSIONS_SUBJECT

log = structlog.get_logger(__name__)

PIECES_WAITING_MAX = 4_096
"""How far a customer may fall behind in reading; then the session ends with a reason."""

SETTINGS = ev.SessionSettings()

_STOPPING = fx.FailSession(fx.SessionFailure.UNANSWERED, "the gateway is stopping")

Told = fx.SayQueued | fx.Deliver | fx.ForgetPieces | fx.FinishSession | fx.FailSession
"""What a customer hears of a session."""


class LiveRequest(msgspec.Struct, frozen=True):
    """What a customer wants: a checked body, who asks, and what is known of the work.

    `tokens` is the predicted work; `can_move` whether an answer that has begun can go on on
    another car, `can_restart` whether it can begin anew there. `settings` are its own times,
    where it needs other ones than all.
    """

    customer_id: CustomerId
    model_id: ModelId
    endpoint: str
    body: bytes
    tokens: int
    can_move: bool
    settings: ev.SessionSettings | None = None
    only_spare: bool = False
    can_restart: bool = False


class ReaderTooSlow(Exception):
    """The customer does not read what comes; the session has ended."""


class LiveStream:
    """One session on its way; iterate over it, and `close` it whatever happens."""

    def __init__(self, session_id: SessionId, request: LiveRequest, machine: Session) -> None:
        self.session_id = session_id
        self.request = request
        self.machine = machine
        self.began_ms = 0
        self._told: deque[Told] = deque()
        self._news = asyncio.Event()
        self.is_too_slow = False

    def tell(self, said: Told) -> bool:
        """Keep what the customer shall hear; False when there is no room for it."""
        if len(self._told) >= PIECES_WAITING_MAX:
            self.is_too_slow = True
            self._news.set()
            return False
        self._told.append(said)
        self._news.set()
        return True

    async def __aiter__(self) -> AsyncIterator[Told]:
        """What comes, up to `FinishSession` or `FailSession`. Raises ReaderTooSlow."""
        while True:
            while self._told:
                said = self._told.popleft()
                yield said
                if isinstance(said, fx.FinishSession | fx.FailSession):
                    return
            if self.is_too_slow:
                raise ReaderTooSlow(self.session_id)
            self._news.clear()
            await self._news.wait()


Observe = Callable[[LiveStream, fx.AnySessionEffect | None], None]
"""Hears what becomes of each session, and None when it is over."""


class LiveSessions:
    """All sessions of one gateway; what they need is kept in memory only."""

    def __init__(
        self,
        bus: Bus,
        gateway_id: GatewayId,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
        settings: ev.SessionSettings = SETTINGS,
    ) -> None:
        """`gateway_id` is a word of the bus and nobody else's; `now_ms` never goes back."""
        self._bus = bus
        self._gateway_id = gateway_id
        self._now_ms = now_ms
        self._new_id = new_id
        self._settings = settings
        self._streams: dict[SessionId, LiveStream] = {}
        self._timers: dict[SessionId, tuple[int, asyncio.TimerHandle]] = {}
        self._subscriptions: list[Subscription] = []
        self._is_stopping = False
        self.observe: Observe = lambda _, __: None

    def __len__(self) -> int:
        """How many sessions are on their way."""
        return len(self._streams)

    async def start(self) -> None:
        """Listen to shard and cars."""
        self._subscriptions = [
            await self._bus.subscribe(
                live.fleet_subject(self._gateway_id), self._from_fleet, is_sole=True
            ),
            await self._bus.subscribe(live.vehicle_subjects(self._gateway_id), self._from_car),
        ]

    async def stop(self) -> None:
        """End all sessions, with a word to their customers, and listen no more."""
        self._is_stopping = True
        for session_id, stream in list(self._streams.items()):
            self._give(session_id, ev.CustomerLeft(self._now_ms()))
            stream.tell(_STOPPING)
        for subscription in self._subscriptions:
            await subscription.end()

    @contextlib.asynccontextmanager
    async def open(self, request: LiveRequest) -> AsyncIterator[LiveStream]:
        """A session for a request; it ends with the block, read to its end or not."""
        session_id = SessionId(f"ses_{self._new_id()}")
        stream = LiveStream(session_id, request, Session(request.settings or self._settings))
        stream.began_ms = self._now_ms()
        if self._is_stopping:
            stream.tell(_STOPPING)
        else:
            self._streams[session_id] = stream
            begun = ev.SessionBegun(stream.began_ms, request.can_move, request.can_restart)
            self._give(session_id, begun)
        try:
            yield stream
        finally:
            self._give(session_id, ev.CustomerLeft(self._now_ms()))
            self.observe(stream, None)
            self._forget(session_id)

    # What comes in.

    def _from_fleet(self, message: Message) -> None:
        try:
            said: live.AnyFromFleet = live.FROM_FLEET_DECODER.decode(message.body)
        except msgspec.DecodeError as fault:
            log.warning("message_undecodable", fault=str(fault))
            return
        now_ms = self._now_ms()
        match said:
            case live.SlotGranted():
                epoch = Epoch(said.epoch)
                granted = ev.LeaseGranted(
                    now_ms, said.ask, said.lease_id, said.vehicle_id, epoch, said.duration_ms_max
                )
                if said.session_id not in self._streams:
                    self._stop_on(said.session_id, fx.StopOn(said.lease_id, said.vehicle_id))
                self._give(said.session_id, granted)
            case live.SlotQueued():
                queued = ev.LeaseQueued(now_ms, said.ask, said.wait_ms, said.wait_ms_max)
                self._give(said.session_id, queued)
            case live.SlotRefused():
                wait_ms = said.retry_after_ms
                refused = ev.LeaseRefused(now_ms, said.ask, said.refused, said.detail, wait_ms)
                self._give(said.session_id, refused)
            case live.SlotLost():
                self._give(said.session_id, ev.LeaseLost(now_ms, said.lease_id, said.ending))

    def _from_car(self, message: Message) -> None:
        try:
            said: live.AnyFromCar = live.FROM_CAR_DECODER.decode(message.body)
        except msgspec.DecodeError as fault:
            log.warning("message_undecodable", subject=message.subject, fault=str(fault))
            return
        stream = self._streams.get(said.session_id)
        vehicle_id = live.vehicle_of(message.subject)
        if stream is None or stream.machine.place != (said.lease_id, vehicle_id):
            # From a car that the session has left, or that it was never on.
            return
        self._give(said.session_id, _fact(said, self._now_ms()))

    def _give(self, session_id: SessionId, event: ev.AnySessionEvent) -> None:
        stream = self._streams.get(session_id)
        if stream is None:
            return
        moves = stream.machine.moves
        for effect in stream.machine.handle(event):
            self.observe(stream, effect)
            _DEEDS[type(effect)](self, stream, effect)
        if stream.machine.moves > moves:
            log.info("session_moves", session=session_id, cause=stream.machine.left_because)
        self._set_timer(stream)

    # Time.

    def _set_timer(self, stream: LiveStream) -> None:
        """One timer a session, set anew only when it must ring earlier than it would."""
        due_ms = stream.machine.next_deadline_ms()
        known = self._timers.get(stream.session_id)
        if due_ms is None:
            self._drop_timer(stream.session_id)
        elif known is None or due_ms < known[0]:
            self._drop_timer(stream.session_id)
            wait_s = max(0, due_ms - self._now_ms()) / MS_PER_S
            loop = asyncio.get_running_loop()
            handle = loop.call_later(wait_s, self._ring, stream.session_id)
            self._timers[stream.session_id] = (due_ms, handle)

    def _ring(self, session_id: SessionId) -> None:
        self._timers.pop(session_id, None)
        stream = self._streams.get(session_id)
        if stream is None:
            return
        now_ms, due_ms = self._now_ms(), stream.machine.next_deadline_ms()
        if due_ms is not None and now_ms >= due_ms:
            self._give(session_id, ev.SessionTimeAdvanced(now_ms))
        else:
            self._set_timer(stream)

    def _drop_timer(self, session_id: SessionId) -> None:
        known = self._timers.pop(session_id, None)
        if known is not None:
            known[1].cancel()

    def _forget(self, session_id: SessionId) -> None:
        self._drop_timer(session_id)
        self._streams.pop(session_id, None)

    # What goes out.

    def _ask_for_lease(self, stream: LiveStream, effect: fx.AskForLease) -> None:
        request = stream.request
        wanted = live.LeaseWanted(
            session_id=stream.session_id,
            gateway_id=self._gateway_id,
            ask=effect.ask,
            customer_id=request.customer_id,
            model_id=request.model_id,
            endpoint=request.endpoint,
            tokens=max(1, request.tokens - effect.delivered),
            excluded=effect.excluded,
            only_spare=request.only_spare,
        )
        self._send(SESSIONS_SUBJECT, live.ENCODER.encode(wanted))

    def _withdraw_ask(self, stream: LiveStream, effect: fx.WithdrawAsk) -> None:
        del effect
        unwanted = live.LeaseUnwanted(stream.session_id, live.NO_LEASE)
        self._send(SESSIONS_SUBJECT, live.ENCODER.encode(unwanted))

    def _start_on(self, stream: LiveStream, effect: fx.StartOn) -> None:
        start = wire.StartSession(
            effect.epoch,
            effect.lease_id,
            stream.session_id,
            self._gateway_id,
            stream.request.body,
            effect.delivered,
        )
        self._send(wire.down_subject(effect.vehicle_id), wire.ENCODER.encode(start))

    def _stop_stream_on(self, stream: LiveStream, effect: fx.StopOn) -> None:
        self._stop_on(stream.session_id, effect)

    def _stop_on(self, session_id: SessionId, effect: fx.StopOn) -> None:
        stop = wire.StopSession(effect.lease_id)
        self._send(wire.down_subject(effect.vehicle_id), wire.ENCODER.encode(stop))
        unwanted = live.LeaseUnwanted(session_id, effect.lease_id)
        self._send(SESSIONS_SUBJECT, live.ENCODER.encode(unwanted))

    def _tell(self, stream: LiveStream, effect: Told) -> None:
        if not stream.tell(effect):
            self._give(stream.session_id, ev.CustomerLeft(self._now_ms()))

    def _send(self, subject: str, body: bytes) -> None:
        """Send, or lose it: the machine asks again, or finds silence."""
        try:
            self._bus.publish(subject, body)
        except BusUnavailable:
            log.debug("message_not_sent", subject=subject)


def _fact(said: live.AnyFromCar, now_ms: int) -> ev.AnySessionEvent:
    """What a car says, as an event of the session's machine."""
    lease_id, number = said.lease_id, said.number
    match said:
        case live.PiecesSent():
            return ev.Pieces(now_ms, lease_id, number, said.pieces)
        case live.AtWork():
            return ev.Beat(now_ms, lease_id, number)
        case live.AnswerEnded():
            tokens = (said.prompt_tokens, said.completion_tokens)
            return ev.AttemptSettled(now_ms, lease_id, number, *tokens)
        case live.ModelRefused():
            return ev.AttemptRefused(now_ms, lease_id, said.code, said.message, said.param)
        case live.CarLeft():
            return ev.LeaseLost(now_ms, lease_id, said.ending)


_DEEDS: dict[type, Callable[[LiveSessions, LiveStream, Any], None]] = {
    fx.AskForLease: LiveSessions._ask_for_lease,
    fx.WithdrawAsk: LiveSessions._withdraw_ask,
    fx.StartOn: LiveSessions._start_on,
    fx.StopOn: LiveSessions._stop_stream_on,
    fx.SayQueued: LiveSessions._tell,
    fx.Deliver: LiveSessions._tell,
    fx.ForgetPieces: LiveSessions._tell,
    fx.FinishSession: LiveSessions._tell,
    fx.FailSession: LiveSessions._tell,
}
