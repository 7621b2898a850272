"""Turns the fleet's effects into messages: one method for each, one message a car and group."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from terafleet.bus.ports import Bus, BusUnavailable
from terafleet.control.ports import ObjectMissing, Objects
from terafleet.control.shard.links import Links
from terafleet.control.shard.service import Answers
from terafleet.core import effects as fx
from terafleet.core.ids import (
    SESSION_UNIT,
    BatchId,
    Epoch,
    GatewayId,
    LeaseId,
    ReceiptId,
    VehicleId,
    input_name,
    output_name,
    vehicle_outputs_folder,
)
from terafleet.engine.ports import Record
from terafleet.protocol import sessions as live
from terafleet.protocol.addresses import Method, sign_address
from terafleet.protocol.agent import (
    INLINE_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Acknowledge,
    Grant,
    Grants,
    HelloWanted,
    KeepLoaded,
    KeptModel,
    OfferedUnit,
    Revoke,
    SetPolicy,
)
from terafleet.protocol.fleet_http import model_path, object_path
from terafleet.protocol.shard import (
    ENCODER,
    GATEWAY_WORK_SUBJECT,
    Answered,
    AnyGatewayWork,
    Assemble,
    BatchView,
    Cut,
    Forget,
    Outcome,
)

BATCH_RECORD = "batch"
"""The kind of the records that customers' batches are read from."""

WINDOW_BYTES = 64 * 1024
WINDOWS_MAX = 256
"""How much is read ahead, and for how many batches at once: 16 MiB in all."""

GRANT_BYTES_MAX = 1024 * 1024
"""Grants of a car are sent in messages of about this size."""


DETAILS_BYTES_MAX = MESSAGE_BYTES_MAX // 2
"""How much the words to all of a batch's lost units may take in one message."""


ADDRESSES_MAX = 100_000
"""How many addresses are kept: some 25 MB."""


class Addresses:
    """Signs the addresses that cars get; those that many leases share are kept while fresh."""

    def __init__(self, secret: bytes, now_ms: Callable[[], int], valid_s: int = 3_600) -> None:
        self._secret = secret
        self._now_ms = now_ms
        self._valid_s = valid_s
        self._fresh: dict[str, str] = {}
        self._fresh_until_s = 0

    def manifest(self, model_id: str) -> str:
        """Where a car reads a model's manifest."""
        return self._kept("GET", model_path(model_id))

    def input(self, name: str, offset: int, length: int) -> str:
        """Where a car reads a large input."""
        path = object_path(name, offset, length)
        return sign_address(self._secret, "GET", path, self._expires_s())

    def outputs(self, batch_id: BatchId, vehicle_id: VehicleId) -> str:
        """The folder that a car puts large outputs of a batch to."""
        return self._kept("PUT", object_path(vehicle_outputs_folder(batch_id, vehicle_id)))

    def _kept(self, method: Method, path: str) -> str:
        now_s = self._now_ms() // 1_000
        if now_s > self._fresh_until_s or len(self._fresh) > ADDRESSES_MAX:
            self._fresh.clear()
            self._fresh_until_s = now_s + self._valid_s // 2
        address = self._fresh.get(path)
        if address is None:
            address = sign_address(self._secret, method, path, now_s + self._valid_s)
            self._fresh[path] = address
        return address

    def _expires_s(self) -> int:
        return self._now_ms() // 1_000 + self._valid_s


class Inputs:
    """Reads inputs ahead: units of a batch are granted in their order, and are mostly small."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._windows: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Some bytes of an object; short or empty where it has no more. Raises ObjectMissing."""
        begin, body = self._windows.get(name, (0, b""))
        if begin <= offset and offset + length <= begin + len(body):
            return body[offset - begin : offset - begin + length]
        body = self._objects.read_now(name, offset, max(length, WINDOW_BYTES))
        self._windows[name] = (offset, body)
        self._windows.move_to_end(name)
        if len(self._windows) > WINDOWS_MAX:
            self._windows.popitem(last=False)
        return body[:length]

    def forget(self, name: str) -> None:
        """An object is about to go."""
        self._windows.pop(name, None)


class _Outgoing:
    """What one group of effects has for one car."""

    __slots__ = ("acknowledged", "epoch", "grants", "size")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.grants: list[Grant] = []
        self.size = 0
        self.acknowledged: list[tuple[LeaseId, ReceiptId]] = []


class PerformerHooks(msgspec.Struct, frozen=True):
    """What the performer needs of the shard: blobs let go, and whether a lease stands still."""

    discard: Callable[[Sequence[str]], None]
    stands: Callable[[LeaseId], bool]


class Performer:
    """Performs the effects of the fleet; never raises, never waits."""

    def __init__(
        self,
        links: Links,
        bus: Bus,
        objects: Objects,
        addresses: Addresses,
        answers: Answers,
        hooks: PerformerHooks,
    ) -> None:
        self._links = links
        self._bus = bus
        self._inputs = Inputs(objects)
        self._addresses = addresses
        self._answers = answers
        self._discard = hooks.discard
        self._stands = hooks.stands
        self._outgoing: dict[VehicleId, _Outgoing] = {}

    def perform(self, effects: list[fx.FleetEffect]) -> None:
        """Do what a group of effects asks."""
        for effect in effects:
            _METHODS[type(effect)](self, effect)
        for vehicle_id, outgoing in self._outgoing.items():
            self._flush(vehicle_id, outgoing)
        self._outgoing.clear()

    def _to(self, vehicle_id: VehicleId, epoch: Epoch) -> _Outgoing:
        outgoing = self._outgoing.get(vehicle_id)
        if outgoing is not None and outgoing.epoch == epoch:
            return outgoing
        if outgoing is not None:
            self._flush(vehicle_id, outgoing)
        outgoing = self._outgoing[vehicle_id] = _Outgoing(epoch)
        return outgoing

    def _flush(self, vehicle_id: VehicleId, outgoing: _Outgoing) -> None:
        if outgoing.acknowledged:
            self._links.send(vehicle_id, Acknowledge(tuple(outgoing.acknowledged)))
            outgoing.acknowledged.clear()
        if outgoing.grants:
            self._links.send(vehicle_id, Grants(outgoing.epoch, tuple(outgoing.grants)))
            outgoing.grants.clear()
            outgoing.size = 0

    def _welcome(self, effect: fx.WelcomeVehicle) -> None:
        self._links.welcome(effect)

    def _fence(self, effect: fx.FenceVehicle) -> None:
        self._links.fence(effect.vehicle_id, effect.epoch)

    def _ask_hello(self, effect: fx.AskHello) -> None:
        self._links.send(effect.vehicle_id, HelloWanted())

    def _grant(self, effect: fx.GrantLease) -> None:
        if not self._stands(effect.lease_id):
            # A live session took its place while it was being written.
            return
        outgoing = self._to(effect.vehicle_id, effect.epoch)
        name = input_name(effect.batch_id)
        units = []
        for unit in effect.units:
            payload, address = self._input(name, unit)
            outgoing.size += len(payload) + len(address) + 64
            units.append(OfferedUnit(unit.unit_id, unit.requests, unit.digest, payload, address))
        outgoing.size += 512
        outgoing.grants.append(
            Grant(
                effect.lease_id,
                effect.model_id,
                self._addresses.manifest(effect.model_id),
                self._addresses.outputs(effect.batch_id, effect.vehicle_id),
                effect.endpoint,
                tuple(units),
            )
        )
        if outgoing.size >= GRANT_BYTES_MAX:
            self._flush(effect.vehicle_id, outgoing)

    def _grant_session(self, effect: fx.GrantSession) -> None:
        grant = Grant(
            effect.lease_id,
            effect.model_id,
            self._addresses.manifest(effect.model_id),
            "",
            effect.endpoint,
            (OfferedUnit(SESSION_UNIT, 1, b"", b"", ""),),
            effect.session_id,
            effect.replaces,
        )
        self._links.send(effect.vehicle_id, Grants(effect.epoch, (grant,)))

    def _keep_loaded(self, effect: fx.KeepLoaded) -> None:
        models = tuple(KeptModel(one, self._addresses.manifest(one)) for one in effect.model_ids)
        self._links.send(effect.vehicle_id, KeepLoaded(effect.epoch, models))

    def _offer_policy(self, effect: fx.OfferPolicy) -> None:
        self._links.send(effect.vehicle_id, SetPolicy(effect.epoch, effect.policy))

    def _tell_granted(self, effect: fx.TellGranted) -> None:
        _, *fields = msgspec.structs.astuple(effect)
        self._tell(effect.gateway_id, live.SlotGranted(*fields))

    def _tell_queued(self, effect: fx.TellQueued) -> None:
        _, *fields = msgspec.structs.astuple(effect)
        self._tell(effect.gateway_id, live.SlotQueued(*fields))

    def _tell_refused(self, effect: fx.TellRefused) -> None:
        _, *fields = msgspec.structs.astuple(effect)
        self._tell(effect.gateway_id, live.SlotRefused(*fields))

    def _tell_lost(self, effect: fx.TellLost) -> None:
        _, *fields = msgspec.structs.astuple(effect)
        self._tell(effect.gateway_id, live.SlotLost(*fields))

    def _tell(self, gateway_id: GatewayId, said: live.AnyFromFleet) -> None:
        """Tell one gateway; if it is lost, the gateway asks again or finds silence."""
        try:
            self._bus.publish(live.fleet_subject(gateway_id), live.ENCODER.encode(said))
        except BusUnavailable:
            return

    def _input(self, name: str, unit: fx.GrantedUnit) -> tuple[bytes, str]:
        if unit.length <= INLINE_BYTES_MAX:
            try:
                return self._inputs.read(name, unit.offset, unit.length), ""
            except ObjectMissing:
                # The batch has ended since; its lease is about to be revoked.
                return b"", ""
        return b"", self._addresses.input(name, unit.offset, unit.length)

    def _revoke(self, effect: fx.RevokeLease) -> None:
        outgoing = self._outgoing.get(effect.vehicle_id)
        if outgoing is not None:
            self._flush(effect.vehicle_id, outgoing)
        self._links.send(effect.vehicle_id, Revoke(effect.epoch, (effect.lease_id,), effect.ending))

    def _acknowledge(self, effect: fx.AcknowledgeReceipt) -> None:
        outgoing = self._to(effect.vehicle_id, effect.epoch)
        outgoing.acknowledged.append((effect.lease_id, effect.receipt_id))

    def _drop_outputs(self, effect: fx.DropOutputs) -> None:
        self._discard([output_name(effect.lease_id, effect.receipt_id)])

    def _answer(self, effect: fx.AnswerRequest) -> None:
        self._answers.give(effect.request_id, Answered(effect.refused, effect.detail))

    def _cut(self, effect: fx.CutBatch) -> None:
        self._ask_gateway(
            Cut(
                effect.batch_id,
                effect.input_file_id,
                effect.endpoint,
                effect.tokens_per_s,
                effect.slots,
            )
        )

    def _assemble(self, effect: fx.AssembleOutput) -> None:
        # A batch of many units that all failed with long words must still fit into a message.
        room = DETAILS_BYTES_MAX // max(1, len(effect.outcomes))
        outcomes = tuple(
            Outcome(
                one.unit_id,
                one.requests,
                one.lease_id,
                one.receipt_id,
                one.vehicle_id,
                one.ending,
                _cut(one.detail, room),
            )
            for one in effect.outcomes
        )
        self._ask_gateway(
            Assemble(effect.batch_id, effect.customer_id, effect.input_file_id, outcomes)
        )

    def _forget(self, effect: fx.ForgetBatch) -> None:
        self._inputs.forget(input_name(effect.batch_id))
        self._discard([output_name(*receipt) for receipt in effect.outputs])
        self._ask_gateway(Forget(effect.batch_id, effect.input_file_id))

    def _ask_gateway(self, work: AnyGatewayWork) -> None:
        try:
            self._bus.publish(GATEWAY_WORK_SUBJECT, ENCODER.encode(work))
        except BusUnavailable:
            # The fleet asks again after a while.
            return


def _cut(text: str, bytes_max: int) -> str:
    """The beginning of a text, as much as its encoding has room for."""
    return text.encode()[:bytes_max].decode(errors="ignore")


_METHODS: dict[type, Callable[[Performer, Any], None]] = {
    fx.WelcomeVehicle: Performer._welcome,
    fx.FenceVehicle: Performer._fence,
    fx.AskHello: Performer._ask_hello,
    fx.GrantLease: Performer._grant,
    fx.GrantSession: Performer._grant_session,
    fx.OfferPolicy: Performer._offer_policy,
    fx.KeepLoaded: Performer._keep_loaded,
    fx.TellGranted: Performer._tell_granted,
    fx.TellQueued: Performer._tell_queued,
    fx.TellRefused: Performer._tell_refused,
    fx.TellLost: Performer._tell_lost,
    fx.RevokeLease: Performer._revoke,
    fx.AcknowledgeReceipt: Performer._acknowledge,
    fx.DropOutputs: Performer._drop_outputs,
    fx.AnswerRequest: Performer._answer,
    fx.CutBatch: Performer._cut,
    fx.AssembleOutput: Performer._assemble,
    fx.ForgetBatch: Performer._forget,
}


def to_records(effect: fx.FleetEffect) -> Sequence[Record]:
    """The records that a `record` effect becomes: a batch as its customer reads it."""
    assert isinstance(effect, fx.RecordBatch)
    view = BatchView(*msgspec.structs.astuple(effect))
    return (
        Record(
            BATCH_RECORD,
            effect.batch_id,
            ENCODER.encode(view),
            parent=effect.customer_id,
            sort=effect.created_ms,
        ),
    )
