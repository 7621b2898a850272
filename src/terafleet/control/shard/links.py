"""The cars' side of the shard: heartbeats end here, the fleet hears only changes and silences."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import structlog

from terafleet.bus.ports import Bus, BusUnavailable, Message
from terafleet.core import events as ev
from terafleet.core.capability import Capability
from terafleet.core.effects import WelcomeVehicle
from terafleet.core.ids import Epoch, ModelId, ReceiptId, VehicleId, WorkUnitId, output_name
from terafleet.core.reasons import Failure
from terafleet.engine.ports import Blob
from terafleet.protocol.agent import (
    ENCODER,
    FROM_VEHICLE_DECODER,
    INLINE_BYTES_MAX,
    PROTOCOL,
    CapabilityReport,
    Fenced,
    FromVehicle,
    Goodbye,
    Heartbeat,
    HeartbeatAnswer,
    Hello,
    HelloWanted,
    LoadFailed,
    PermitReport,
    Receipt,
    Receipts,
    ToVehicle,
    Welcome,
    down_subject,
    vehicle_of,
)

log = structlog.get_logger(__name__)

Submit = Callable[[ev.FleetEvent, Sequence[Blob]], bool]

DETAIL_CHARACTERS_MAX = 500
MODEL_ID_CHARACTERS_MAX = 64

SLOTS_MAX = 64
"""No car offers more, whatever it says; an agent's own settings have the same limit."""


class LinkSettings(msgspec.Struct, frozen=True):
    """How often cars speak, and after how long they count as silent.

    A car that permits speaks every `heartbeat_ms`, so that its leases never run out while the
    link is well; one that refuses holds no lease and speaks rarely.
    """

    heartbeat_ms: int = 4_000
    silence_ms: int = 10_000
    heartbeat_refusing_ms: int = 60_000
    silence_refusing_ms: int = 150_000


class _Link:
    """One epoch of one car."""

    __slots__ = ("epoch", "heard_ms", "is_permitting", "is_silent")

    def __init__(self, epoch: Epoch, heard_ms: int, is_permitting: bool) -> None:
        self.epoch = epoch
        self.heard_ms = heard_ms
        self.is_permitting = is_permitting
        self.is_silent = False


class Links:
    """All cars' connections. Cars are kept in the order in which they were last heard, so that
    looking for silent ones touches only those."""

    def __init__(
        self,
        bus: Bus,
        submit: Submit,
        now_ms: Callable[[], int],
        settings: LinkSettings,
        earned_micro: Callable[[VehicleId], int] = lambda _: 0,
    ) -> None:
        """`earned_micro` is what a car has earned so far; its owner is told with each heartbeat."""
        self._bus = bus
        self._submit = submit
        self._now_ms = now_ms
        self._settings = settings
        self._earned_micro = earned_micro
        self._links: dict[VehicleId, _Link] = {}
        self._greeted: dict[VehicleId, bool] = {}
        self._permitting: OrderedDict[VehicleId, None] = OrderedDict()
        self._refusing: OrderedDict[VehicleId, None] = OrderedDict()

    def heard_ms(self, vehicle_id: VehicleId) -> int:
        """When a car was last heard, or 0."""
        link = self._links.get(vehicle_id)
        return link.heard_ms if link else 0

    def resume(self, vehicles: Iterable[tuple[VehicleId, Epoch, bool]]) -> None:
        """Go on with the epochs of before a restart: each counts as heard at this moment."""
        for vehicle_id, epoch, is_permitting in vehicles:
            self._open(vehicle_id, epoch, is_permitting)

    def send(self, vehicle_id: VehicleId, message: ToVehicle) -> None:
        """Send to one car; a message that can't leave is lost, and the protocol bears that."""
        try:
            self._bus.publish(down_subject(vehicle_id), ENCODER.encode(message))
        except BusUnavailable:
            log.debug("message_not_sent", vehicle=vehicle_id, kind=type(message).__name__)

    def welcome(self, effect: WelcomeVehicle) -> None:
        """Begin an epoch and tell the car."""
        vehicle_id, epoch = effect.vehicle_id, effect.epoch
        known = self._links.get(vehicle_id)
        is_permitting = known.is_permitting if known else True
        self._open(vehicle_id, epoch, self._greeted.pop(vehicle_id, is_permitting))
        settings = self._settings
        self.send(
            vehicle_id,
            Welcome(
                epoch,
                effect.boot_id,
                effect.lease_ms,
                effect.margin_ms,
                settings.heartbeat_ms,
                settings.heartbeat_refusing_ms,
                effect.asking_micro_per_hour_max,
            ),
        )

    def fence(self, vehicle_id: VehicleId, epoch: Epoch) -> None:
        """End an epoch and tell the car; 0 is a car that the fleet does not know."""
        if not epoch:
            self._greeted.pop(vehicle_id, None)
        link = self._links.get(vehicle_id)
        if link is not None and link.epoch == epoch:
            del self._links[vehicle_id]
            self._permitting.pop(vehicle_id, None)
            self._refusing.pop(vehicle_id, None)
        self.send(vehicle_id, Fenced(epoch, "epoch_over" if epoch else "vehicle_unknown"))

    def look_for_silence(self) -> None:
        """Report the cars that have been silent for too long; call it about every second."""
        now_ms = self._now_ms()
        self._look(self._permitting, now_ms - self._settings.silence_ms)
        self._look(self._refusing, now_ms - self._settings.silence_refusing_ms)

    def _look(self, in_order: OrderedDict[VehicleId, None], before_ms: int) -> None:
        while in_order:
            vehicle_id = next(iter(in_order))
            link = self._links[vehicle_id]
            if link.heard_ms > before_ms:
                return
            event = ev.VehicleSilent(self._now_ms(), vehicle_id, link.epoch, link.heard_ms)
            if not self._submit(event, ()):
                # The inbox is full. A silence that nobody heard of would keep its leases for ever.
                return
            del in_order[vehicle_id]
            link.is_silent = True

    def receive(self, message: Message) -> None:
        """Take a message of a car; the bus vouches that the subject is the sender's own."""
        vehicle_id = vehicle_of(message.subject)
        try:
            decoded: FromVehicle = FROM_VEHICLE_DECODER.decode(message.body)
        except msgspec.DecodeError as fault:
            log.warning("message_undecodable", vehicle=vehicle_id, fault=str(fault))
            return
        if isinstance(decoded, Hello):
            self._hello(vehicle_id, decoded)
            return
        link = self._links.get(vehicle_id)
        if link is None or link.epoch != decoded.epoch:
            self.send(vehicle_id, Fenced(decoded.epoch, "epoch_over"))
            return
        self._heard(vehicle_id, link)
        self._take(vehicle_id, link, decoded)

    def _take(
        self,
        vehicle_id: VehicleId,
        link: _Link,
        message: Heartbeat | PermitReport | CapabilityReport | Receipts | LoadFailed | Goodbye,
    ) -> None:
        now_ms = self._now_ms()
        match message:
            case Heartbeat():
                self._place(vehicle_id, link, message.is_holding)
                earned_micro = self._earned_micro(vehicle_id)
                self.send(vehicle_id, HeartbeatAnswer(link.epoch, message.sent_ms, earned_micro))
            case Receipts():
                for receipt in message.receipts:
                    for event, blobs in _told(now_ms, vehicle_id, link.epoch, receipt):
                        self._submit(event, blobs)
            case PermitReport():
                self._place(vehicle_id, link, not message.refusals)
                self._tell(ev.PermitChanged(now_ms, vehicle_id, link.epoch, message.refusals))
            case CapabilityReport():
                offered = _plausible(message.capability)
                self._tell(ev.CapabilityChanged(now_ms, vehicle_id, link.epoch, offered))
            case LoadFailed():
                detail = message.detail[:DETAIL_CHARACTERS_MAX]
                model_id = ModelId(message.model_id[:MODEL_ID_CHARACTERS_MAX])
                told = (link.epoch, model_id, message.failure, detail)
                self._submit(ev.LoadFailed(now_ms, vehicle_id, *told), ())
            case Goodbye():
                self._submit(ev.VehicleLeft(now_ms, vehicle_id, link.epoch), ())

    def _tell(self, event: ev.PermitChanged | ev.CapabilityChanged) -> None:
        """Tell a change that comes once; if the inbox is full, ask the car for all of it anew."""
        if not self._submit(event, ()):
            self.send(event.vehicle_id, HelloWanted())

    def _hello(self, vehicle_id: VehicleId, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            self.send(vehicle_id, Fenced(Epoch(0), "protocol_unsupported"))
            return
        link = self._links.get(vehicle_id)
        if link is not None:
            self._heard(vehicle_id, link)
        self._greeted[vehicle_id] = not hello.refusals
        self._submit(
            ev.VehicleConnected(
                self._now_ms(),
                vehicle_id,
                hello.boot_id,
                _plausible(hello.capability),
                hello.refusals,
                hello.held,
            ),
            (),
        )

    def _open(self, vehicle_id: VehicleId, epoch: Epoch, is_permitting: bool) -> None:
        link = _Link(epoch, self._now_ms(), is_permitting)
        self._links[vehicle_id] = link
        self._queue(vehicle_id, link)

    def _queue(self, vehicle_id: VehicleId, link: _Link) -> None:
        """Put a car behind all that were heard before it."""
        mine, other = self._permitting, self._refusing
        if not link.is_permitting:
            mine, other = other, mine
        other.pop(vehicle_id, None)
        mine[vehicle_id] = None
        mine.move_to_end(vehicle_id)

    def _heard(self, vehicle_id: VehicleId, link: _Link) -> None:
        link.heard_ms = self._now_ms()
        self._queue(vehicle_id, link)
        if link.is_silent:
            event = ev.VehicleHeard(link.heard_ms, vehicle_id, link.epoch)
            link.is_silent = not self._submit(event, ())

    def _place(self, vehicle_id: VehicleId, link: _Link, is_permitting: bool) -> None:
        if link.is_permitting != is_permitting:
            link.is_permitting = is_permitting
            self._queue(vehicle_id, link)


def _told(
    now_ms: int, vehicle_id: VehicleId, epoch: Epoch, receipt: Receipt
) -> Iterator[tuple[ev.FleetEvent, Sequence[Blob]]]:
    """The facts that a receipt tells, and the outputs that came with them."""
    lease_id, results = receipt.lease_id, receipt.results
    detail, energy_mwh = receipt.detail[:DETAIL_CHARACTERS_MAX], receipt.energy_mwh
    told = (now_ms, vehicle_id, epoch, lease_id)
    asked_micro = receipt.asked_micro
    if receipt.ending is not None:
        yield ev.LeaseReleased(*told, receipt.ending, detail, energy_mwh, asked_micro), ()
    elif receipt.failure is not None:
        unit_id = WorkUnitId(receipt.receipt_id)
        what = (receipt.failure, detail)
        yield ev.AttemptFailed(*told, unit_id, *what, energy_mwh, asked_micro), ()
    elif fault := _output_fault(receipt):
        for result in results:
            what = (Failure.OUTPUT_INCOMPLETE, fault)
            yield ev.AttemptFailed(*told, result.unit_id, *what, result.energy_mwh), ()
    elif results:
        name = output_name(lease_id, ReceiptId(results[0].unit_id))
        blobs = (Blob(name, receipt.payload),) if receipt.payload else ()
        yield ev.AttemptsReturned(*told, results, asked_micro), blobs


def _plausible(capability: Capability) -> Capability:
    """What a car says it offers, with no more slots than a car can have."""
    slots = min(max(0, capability.slots), SLOTS_MAX)
    return msgspec.structs.replace(capability, slots=slots)


def _output_fault(receipt: Receipt) -> str:
    """What is wrong with the outputs that came in their receipt, in words, or empty."""
    payload = receipt.payload
    if len(payload) > INLINE_BYTES_MAX:
        return "the outputs are too large to ride in a receipt"
    if not payload:
        is_put = len(receipt.results) == 1
        return "" if is_put else "the outputs are missing"
    if hashlib.sha256(payload).digest() != receipt.digest:
        return "the outputs do not match their digest"
    return ""
