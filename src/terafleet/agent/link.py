"""The connection to the control plane: hello, heartbeats, reports and receipts out, orders in.

It turns messages into events of the guard and decides nothing about leases itself.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet import __version__
from terafleet.agent.greeting import Greeting
from terafleet.agent.outbox import Outbox, in_batches
from terafleet.agent.waking import Sleep, wait_at_most
from terafleet.bus.ports import Bus, BusRefused, BusUnavailable, Connect, Message
from terafleet.core import guard_events as ev
from terafleet.core.capability import Capability
from terafleet.core.events import HeldLease
from terafleet.core.ids import Epoch, LeaseId, ModelId, ReceiptId, VehicleId
from terafleet.core.reasons import Failure, Refusal
from terafleet.core.units import MS_PER_S
from terafleet.engine.clock import Clock
from terafleet.protocol import agent as wire

LOOK_MS_MAX = 5_000
"""Timers stand still while the car's computer sleeps, so the clock is asked at least so often."""
CONNECT_MS_MIN = 1_000
CONNECT_MS_MAX = 60_000
BEAT_APART_MS = 1_000
MESSAGE_BYTES = 150
"""What subject, protocol and headers below it add to a message, about."""
KEPT_MODELS_MAX = 64
"""More than any car has room for: what a control plane may make us hold."""

SILENT_BEATS = 3

NO_EPOCH = Epoch(0)
PROTOCOL_UNSUPPORTED = "protocol_unsupported"
_CHANCE = secrets.SystemRandom()

log: FilteringBoundLogger = structlog.get_logger()


class GuardView(Protocol):
    """What the link reads of the guard."""

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why the car does not compute; empty is a permit."""
        ...

    @property
    def is_holding(self) -> bool:
        """Whether leases stand or may come."""
        ...

    def held(self) -> tuple[HeldLease, ...]:
        """What a hello says of leases and attempts."""
        ...


class LinkHooks(msgspec.Struct, frozen=True):
    """What the link needs of the agent around it; none of it may raise or block.

    `take_grant` keeps a grant's inputs before the guard hears of it, `take_kept` where a model
    that is to stay in memory comes from, `take_policy` what the fleet set for the car; `refused`
    hears that the bus does not accept the credential. `start_session` and `stop_session` hear
    what gateways want.
    """

    guard: GuardView
    submit: Callable[[ev.AnyGuardEvent], bool]
    capability: Callable[[], Capability]
    take_grant: Callable[[wire.Grant], None]
    take_kept: Callable[[wire.KeptModel], None]
    take_policy: Callable[[bytes], None]
    refused: Callable[[], None]
    start_session: Callable[[wire.StartSession], None]
    stop_session: Callable[[LeaseId], None]


class Link:
    """One car's link; all methods belong to the thread of the event loop."""

    def __init__(
        self,
        vehicle_id: VehicleId,
        connect: Connect,
        clock: Clock,
        hooks: LinkHooks,
        sleep: Sleep = asyncio.sleep,
        chance: Callable[[], float] = _CHANCE.random,
    ) -> None:
        """`connect` gives a connected bus, or raises BusUnavailable or BusRefused."""
        self._vehicle_id = vehicle_id
        self._connect = connect
        self._clock = clock
        self._hooks = hooks
        self._sleep = sleep
        self._chance = chance
        self._bus: Bus | None = None
        self._wake = asyncio.Event()
        self._cut_ms = 0
        self._greeting = Greeting(chance)
        self._times = wire.Welcome(NO_EPOCH, "", 0, 0, 0, 0, 0)
        self._beat_ms = self._answered_ms = 0
        self._unanswered_ms: int | None = None
        self._was_holding = False
        self.traffic_bytes = 0
        """What was sent and received over the bus, subjects and headers estimated."""
        self.earned_micro = 0
        """What the control plane says that the car has earned so far."""
        self._reported: tuple[Refusal, ...] = ()
        self._offered: Capability | None = None
        self._outbox = Outbox()
        self.boot_id = secrets.token_hex(8)
        self.epoch = NO_EPOCH

    @property
    def is_connected(self) -> bool:
        """Whether messages can leave at this moment."""
        return self._bus is not None and self._bus.is_connected

    @property
    def receipts_waiting(self) -> int:
        """How many receipts are not acknowledged."""
        return len(self._outbox)

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        while True:
            bus = await self._connected()
            try:
                await self._serve(bus)
            finally:
                self._bus = None
                self.epoch = NO_EPOCH
                await bus.close()
            cut_ms, self._cut_ms = self._cut_ms, 0
            await self._sleep(cut_ms / MS_PER_S)

    def cut(self, duration_ms: int) -> None:
        """Close the connection, and open it again after so long."""
        self._cut_ms = duration_ms
        self._wake.set()

    # What the agent says.

    def report_permit(self, found: tuple[Refusal, ...]) -> None:
        """The guard's answer has changed; no refusals is a permit."""
        if self.epoch and found != self._reported:
            if not found:
                # What is granted next must stand on a fresh heartbeat.
                self._beat(self._clock.now_ms())
            self._reported = found
            self._send(wire.PermitReport(self.epoch, found))
        self._wake.set()

    def report_capability(self) -> None:
        """What the car can run has changed."""
        offered = self._hooks.capability()
        if self.epoch and offered != self._offered:
            self._offered = offered
            self._send(wire.CapabilityReport(self.epoch, offered))

    def report_load_failure(self, model_id: ModelId, failure: Failure, detail: str) -> None:
        """A model that is to stay in memory can't get there; said once."""
        if self.epoch:
            self._send(wire.LoadFailed(self.epoch, model_id, failure, detail))

    def hand_in(self, receipts: Sequence[wire.Receipt]) -> None:
        """Send receipts, again and again until `forget`."""
        self._outbox.put(receipts, self._clock.now_ms())
        self._send_receipts(receipts)
        self._wake.set()

    def forget(self, receipts: Iterable[tuple[LeaseId, ReceiptId]]) -> None:
        """Receipts need not be sent again."""
        self._outbox.forget(receipts)

    def publish(self, subject: str, body: bytes) -> None:
        """Send to a subject, or lose the message; for pieces, which nobody wants later."""
        if self._bus is None:
            return
        try:
            self._bus.publish(subject, body)
            self.traffic_bytes += MESSAGE_BYTES + len(body)
        except BusUnavailable as error:
            log.debug("message_not_sent", subject=subject, cause=str(error))

    def say_goodbye(self) -> None:
        """The agent holds nothing and leaves."""
        if self.epoch:
            self._send(wire.Goodbye(self.epoch))
            self.epoch = NO_EPOCH

    # What is due by time.

    def step(self) -> int:
        """Do what is due; the time, in ms of the clock, at which something may be due again."""
        now_ms = self._clock.now_ms()
        due_ms = [now_ms + LOOK_MS_MAX]
        if self.is_connected:
            if self.epoch and self._is_silent(now_ms):
                log.warning("control_plane_silent", epoch=self.epoch)
                self.epoch = NO_EPOCH
                self._greeting.begin(now_ms)
            if self._greeting.is_due(now_ms):
                self._say_hello(now_ms)
            due_ms.append(self._greeting.due_ms)
            if self.epoch:
                due_ms += self._step_epoch(now_ms)
        return min(due_ms)

    def _step_epoch(self, now_ms: int) -> list[int]:
        is_changed = self._was_holding != self._hooks.guard.is_holding
        if is_changed or now_ms >= self._beat_ms + self._period_ms():
            self._beat(now_ms)
        self._send_receipts(self._outbox.take_due(now_ms))
        receipts_ms = self._outbox.due_ms()
        beat_ms = self._beat_ms + self._period_ms()
        return [beat_ms] if receipts_ms is None else [beat_ms, receipts_ms]

    def _period_ms(self) -> int:
        is_holding = self._hooks.guard.is_holding
        period_ms = self._times.heartbeat_ms if is_holding else self._times.heartbeat_refusing_ms
        return max(1, period_ms)

    def _is_silent(self, now_ms: int) -> bool:
        """Whether heartbeats have gone unanswered for so long that the epoch can't be trusted."""
        if self._unanswered_ms is None:
            return False
        patience_ms = max(self._times.lease_ms, SILENT_BEATS * self._period_ms())
        return now_ms - self._unanswered_ms > patience_ms

    def _say_hello(self, now_ms: int) -> None:
        self._greeting.said(now_ms)
        self._reported = self._hooks.guard.refusals
        self._offered = self._hooks.capability()
        hello = wire.Hello(
            wire.PROTOCOL,
            self.boot_id,
            __version__,
            self._offered,
            self._reported,
            self._hooks.guard.held(),
        )
        self._send(hello)

    def _beat(self, now_ms: int) -> None:
        self._beat_ms = now_ms
        if self._unanswered_ms is None:
            self._unanswered_ms = now_ms
        self._was_holding = self._hooks.guard.is_holding
        self._send(wire.Heartbeat(self.epoch, now_ms, self._was_holding))

    def _send_receipts(self, receipts: Sequence[wire.Receipt]) -> None:
        if self.epoch:
            for batch in in_batches(receipts):
                self._send(wire.Receipts(self.epoch, batch))

    def _send(self, message: wire.FromVehicle) -> None:
        """Send, or lose the message: hello, heartbeats and receipts are repeated."""
        if self._bus is None:
            return
        try:
            body = wire.ENCODER.encode(message)
            self._bus.publish(wire.up_subject(self._vehicle_id), body)
            self.traffic_bytes += MESSAGE_BYTES + len(body)
        except BusUnavailable as error:
            log.debug("message_not_sent", kind=type(message).__name__, cause=str(error))

    # What the control plane says.

    def receive(self, message: Message) -> None:
        """Take a message of the control plane."""
        self.traffic_bytes += MESSAGE_BYTES + len(message.body)
        try:
            decoded: wire.ToVehicle = wire.TO_VEHICLE_DECODER.decode(message.body)
        except msgspec.MsgspecError as error:
            log.warning("message_undecodable", cause=str(error))
            return
        _RECEIVERS[type(decoded)](self, decoded)

    def _acknowledged(self, message: wire.Acknowledge) -> None:
        self._submit(ev.ReceiptsAcknowledged(self._clock.now_ms(), message.receipts))

    def _revoked(self, message: wire.Revoke) -> None:
        for lease_id in message.lease_ids if message.epoch == self.epoch else ():
            self._submit(ev.LeaseRevoked(self._clock.now_ms(), lease_id, message.ending))

    def _session_started(self, message: wire.StartSession) -> None:
        if message.epoch == self.epoch:
            self._hooks.start_session(message)

    def _session_stopped(self, message: wire.StopSession) -> None:
        self._hooks.stop_session(message.lease_id)

    def _hello_wanted(self, message: wire.HelloWanted) -> None:
        """A restarted shard asks all of its cars at once."""
        del message
        self._greeting.begin(self._clock.now_ms() + round(self._chance() * MS_PER_S))
        self._wake.set()

    def _welcomed(self, message: wire.Welcome) -> None:
        if message.boot_id != self.boot_id:
            log.warning("identity_used_elsewhere", boot_id=message.boot_id, epoch=message.epoch)
            if not self.epoch:
                self._greeting.give_way(self._clock.now_ms())
            return
        if message.epoch <= self.epoch:
            return
        now_ms = self._clock.now_ms()
        sent_ms = self._greeting.welcomed(now_ms)
        log.info("welcomed", epoch=message.epoch, lease_ms=message.lease_ms)
        self.epoch, self._times = message.epoch, message
        self._answered_ms = sent_ms
        self._unanswered_ms = None
        terms = (message.lease_ms, message.margin_ms, message.asking_micro_per_hour_max)
        self._submit(ev.LinkWelcomed(now_ms, message.epoch, sent_ms, *terms))
        # The leases count from the earliest hello; a heartbeat says more exactly, and tells the
        # control plane at once how often it will hear of us.
        self._beat(now_ms)
        self.report_permit(self._hooks.guard.refusals)
        self.report_capability()
        self._send_receipts(self._outbox.take_all(now_ms))
        self._wake.set()

    def _heartbeat_answered(self, message: wire.HeartbeatAnswer) -> None:
        now_ms = self._clock.now_ms()
        if message.epoch != self.epoch or message.sent_ms > now_ms:
            return
        self._unanswered_ms = None
        self._answered_ms = max(self._answered_ms, message.sent_ms)
        self.earned_micro = message.earned_micro
        self._submit(ev.HeartbeatAnswered(now_ms, message.epoch, message.sent_ms))

    def _granted(self, message: wire.Grants) -> None:
        if message.epoch != self.epoch:
            return
        now_ms = self._clock.now_ms()
        is_old = now_ms - self._answered_ms > self._times.lease_ms // 2
        if is_old and now_ms - self._beat_ms >= BEAT_APART_MS:
            self._beat(now_ms)
        for grant in message.grants:
            self._hooks.take_grant(grant)
            units = tuple(ev.LeasedUnit(unit.unit_id, unit.requests) for unit in grant.units)
            event = ev.LeaseGranted(
                now_ms,
                message.epoch,
                grant.lease_id,
                grant.model_id,
                grant.endpoint,
                units,
                grant.replaces,
            )
            self._submit(event)

    def _models_kept(self, message: wire.KeepLoaded) -> None:
        if message.epoch != self.epoch:
            return
        models = message.models[:KEPT_MODELS_MAX]
        for model in models:
            self._hooks.take_kept(model)
        model_ids = tuple(model.model_id for model in models)
        self._submit(ev.WarmModelsChanged(self._clock.now_ms(), message.epoch, model_ids))

    def _policy_set(self, message: wire.SetPolicy) -> None:
        if message.epoch == self.epoch:
            self._hooks.take_policy(message.policy)

    def _fenced(self, message: wire.Fenced) -> None:
        if message.epoch not in (NO_EPOCH, self.epoch):
            return
        now_ms = self._clock.now_ms()
        pause_ms = self._greeting.fenced(now_ms)
        advice = ""
        if message.reason == PROTOCOL_UNSUPPORTED:
            advice = f"update the agent: the fleet does not speak protocol {wire.PROTOCOL}"
        log.warning("fenced", cause=message.reason, pause_ms=pause_ms, advice=advice)
        self._submit(ev.LinkFenced(now_ms, message.epoch))
        self.epoch = NO_EPOCH
        self._wake.set()

    def _submit(self, event: ev.AnyGuardEvent) -> None:
        if not self._hooks.submit(event):
            log.warning("event_refused", kind=type(event).__name__)

    # The connection.

    async def _connected(self) -> Bus:
        failures = 0
        while True:
            try:
                return await self._connect()
            except BusUnavailable as error:
                log.warning("bus_unavailable", cause=str(error))
            except BusRefused as error:
                log.warning("bus_refused", cause=str(error))
                self._hooks.refused()
            _end_if_cancelled()
            pause_ms = min(CONNECT_MS_MAX, CONNECT_MS_MIN * 2 ** min(failures, 16))
            failures += 1
            await self._sleep(pause_ms * (1 - self._chance() / 2) / MS_PER_S)

    async def _serve(self, bus: Bus) -> None:
        """Speak over a connected bus until it is to be cut."""
        bus.on_state(self._state_changed)
        try:
            await bus.subscribe(wire.down_subject(self._vehicle_id), self.receive)
        except BusRefused as error:
            log.warning("bus_refused", cause=str(error))
            self._hooks.refused()
            self._cut_ms = CONNECT_MS_MAX
            return
        self._bus = bus
        self._greeting.begin(self._clock.now_ms())
        while not self._cut_ms:
            self._wake.clear()
            due_ms = self.step()
            pause_ms = max(1, due_ms - self._clock.now_ms())
            await wait_at_most(self._wake, pause_ms / MS_PER_S, self._sleep)

    def _state_changed(self, is_connected: bool) -> None:
        log.info("bus_state", is_connected=is_connected)
        self.epoch = NO_EPOCH
        if is_connected:
            self._greeting.begin(self._clock.now_ms())
        self._wake.set()


def _end_if_cancelled() -> None:
    """Before Python 3.12, `asyncio.wait_for` loses a cancellation that meets a failure."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


_RECEIVERS: dict[type, Callable[[Link, Any], None]] = {
    wire.HeartbeatAnswer: Link._heartbeat_answered,
    wire.Grants: Link._granted,
    wire.SetPolicy: Link._policy_set,
    wire.KeepLoaded: Link._models_kept,
    wire.Acknowledge: Link._acknowledged,
    wire.Revoke: Link._revoked,
    wire.StartSession: Link._session_started,
    wire.StopSession: Link._session_stopped,
    wire.Welcome: Link._welcomed,
    wire.Fenced: Link._fenced,
    wire.HelloWanted: Link._hello_wanted,
}
