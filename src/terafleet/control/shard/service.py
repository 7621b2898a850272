"""Answers gateways: what changes the fleet becomes an event, what is read is read."""

import asyncio
from collections import Counter
from collections.abc import Callable

import msgspec
import structlog

from terafleet import __version__
from terafleet.bus.ports import Bus, BusUnavailable, Message
from terafleet.control.shard.links import Links, Submit
from terafleet.control.shard.story import tell
from terafleet.core import events as ev
from terafleet.core.fleet import Fleet
from terafleet.core.fleet_state import FleetState
from terafleet.core.ids import RequestId, output_name
from terafleet.core.reasons import Refused
from terafleet.core.records import VehicleRecord, WarmRecord
from terafleet.engine.figures import COMMIT_MS_BOUNDS, Figures
from terafleet.engine.ports import Record, StorageUnavailable, Store
from terafleet.protocol import shard as q
from terafleet.protocol.agent import MESSAGE_BYTES_MAX
from terafleet.protocol.parcel import unpack

log = structlog.get_logger(__name__)

ReadsRecord = q.GetBatch | q.ListBatches | q.GetOutputs | q.GetStory
"""Questions that the record answers; all others are about what the machine knows."""

BATCH_RECORD = "batch"
OUTPUTS_BYTES_MAX = MESSAGE_BYTES_MAX // 2


REFUSED_FULL = q.Answered(
    Refused.STORAGE_FULL, "the control plane's disk is full, or its database out of reach"
)
WAITS_FULL = q.Answered(
    Refused.STORAGE_FULL,
    f"{REFUSED_FULL.detail}; what was asked may be done once there is room",
)
UNREADABLE = q.Answered(
    Refused.OVERLOADED, "the control plane's database can't be reached; ask again in a moment"
)


class Health(msgspec.Struct, frozen=True):
    """How the shard's engine is.

    A full storage takes no new work. While a commit fails, nothing that comes is kept, and an
    answer that waits for the record does not leave.
    """

    figures: Figures
    is_storage_full: bool
    is_commit_failing: bool


class Answers:
    """Where the answers to open questions go."""

    def __init__(self, bus: Bus, boot_id: str) -> None:
        self._bus = bus
        self._boot_id = boot_id
        self._count = 0
        self._open: dict[RequestId, str] = {}

    def expect(self, reply: str) -> RequestId:
        """A name for a question whose answer goes to `reply`."""
        self._count += 1
        request_id = RequestId(f"{self._boot_id}-{self._count}")
        if reply:
            self._open[request_id] = reply
        return request_id

    def give(self, request_id: RequestId, answer: q.Reply) -> None:
        """Answer a question by its name; of an earlier process's questions none are open."""
        reply = self._open.pop(request_id, None)
        if reply is not None:
            self.send(reply, answer)

    def refuse_waiting(self) -> None:
        """Tell all who wait that the record has no room for what they asked; it stays decided."""
        waiting, self._open = self._open, {}
        for reply in waiting.values():
            self.send(reply, WAITS_FULL)

    def send(self, reply: str, answer: q.Reply) -> None:
        """Answer at once."""
        try:
            self._bus.publish(reply, q.ENCODER.encode(answer))
        except BusUnavailable:
            log.debug("answer_not_sent", kind=type(answer).__name__)


class ShardView:
    """What may be read of a shard."""

    def __init__(self, fleet: Fleet, store: Store, links: Links, started_ms: int) -> None:
        self.fleet = fleet
        self.store = store
        self.links = links
        self.started_ms = started_ms

    def batch(self, question: q.GetBatch) -> q.BatchView | q.Answered:
        """One batch of one customer."""
        record = self.store.record(BATCH_RECORD, question.batch_id)
        if record is None or record.parent != question.customer_id:
            return q.Answered(Refused.BATCH_UNKNOWN, "no such batch")
        return _batch_view(record)

    def batches(self, question: q.ListBatches) -> q.BatchList | q.Answered:
        """Some batches of one customer, newest first."""
        after = None
        if question.after:
            record = self.store.record(BATCH_RECORD, question.after)
            if record is None or record.parent != question.customer_id:
                return q.Answered(Refused.BATCH_UNKNOWN, f"no such batch: {question.after}")
            after = (record.sort, record.id)
        limit = max(1, min(question.limit, 100))
        found = self.store.records(BATCH_RECORD, question.customer_id, after, limit + 1)
        views = tuple(_batch_view(record) for record in found[:limit])
        return q.BatchList(views, len(found) > limit)

    def outputs(self, question: q.GetOutputs) -> q.Outputs:
        """Outputs by their receipts, as many as fit into a message, at least one."""
        bodies: list[bytes | None] = []
        size = 0
        name, parcel = "", None
        for lease_id, receipt_id, unit_id in question.outputs:
            # Outputs of one receipt are mostly asked for one after the other.
            if name != output_name(lease_id, receipt_id):
                name = output_name(lease_id, receipt_id)
                blob = self.store.blob(name)
                parcel = None if blob is None else unpack(blob)
            body = None if parcel is None else parcel.get(unit_id, b"")
            size += len(body or b"")
            if bodies and size > OUTPUTS_BYTES_MAX:
                break
            bodies.append(body)
        return q.Outputs(tuple(bodies))

    def vehicles(self) -> q.VehicleList:
        """All cars."""
        state = self.fleet.state
        return q.VehicleList(
            tuple(
                _vehicle_view(state, vehicle, self.links.heard_ms(vehicle.vehicle_id))
                for vehicle in state.vehicles.values()
            )
        )

    def policy(self, question: q.GetVehiclePolicy) -> q.VehiclePolicy:
        """The owner policy that was set for a car; of an unknown car there is none."""
        vehicle = self.fleet.state.vehicles.get(question.vehicle_id)
        return q.VehiclePolicy((vehicle.policy or b"") if vehicle else b"")

    def status(self, now_ms: int, health: Health) -> q.ShardStatus:
        """How the shard is."""
        figures = health.figures
        state = self.fleet.state
        states = Counter(str(vehicle.state) for vehicle in state.vehicles.values())
        return q.ShardStatus(
            version=__version__,
            at_ms=now_ms,
            started_ms=self.started_ms,
            is_storage_full=health.is_storage_full,
            bytes_free=self.store.bytes_free(),
            vehicles=dict(states),
            units_waiting=sum(shape.waiting_units for shape in state.index.shapes.values()),
            units_running=sum(
                len(lease.unit_ids) for lease in state.leases.values() if lease.session is None
            ),
            batches_open=len(state.batches),
            journal_sequence=figures.sequence,
            figures={
                "events": figures.events,
                "commits": figures.commits,
                "commit_ms_mean": round(figures.commit_ms_mean, 3),
                "commits_failed": figures.commits_failed,
                "inbox_length": figures.inbox_length,
                "events_refused": figures.refused,
                "snapshots": figures.snapshots,
            },
            warm=tuple(_warm_view(state, record) for record in state.warm.values()),
            sessions_queued=_sessions_queued(state),
            commit_times=q.TimesTaken(
                COMMIT_MS_BOUNDS, tuple(figures.commits_by_ms), round(figures.commit_ms_total, 3)
            ),
        )


def _batch_view(record: Record) -> q.BatchView:
    assert record.body is not None
    return msgspec.msgpack.decode(record.body, type=q.BatchView)


def _sessions_queued(state: FleetState) -> dict[str, int]:
    """How many sessions wait for each model; for one of the catalogue also none."""
    queued: Counter[str] = Counter()
    for model_id, shape in state.index.shapes.items():
        waiting = state.queued_sessions.waiting(model_id)
        if waiting or model_id in state.models:
            queued[shape.needs.name] += waiting
    return dict(queued)


def _warm_view(state: FleetState, record: WarmRecord) -> q.WarmView:
    return q.WarmView(
        model_id=record.model_id,
        name=state.models[record.model_id].name,
        slots=record.slots,
        slots_chosen=record.slots_chosen,
        slots_loaded=record.slots_loaded,
    )


def _vehicle_view(state: FleetState, vehicle: VehicleRecord, heard_ms: int) -> q.VehicleView:
    capability, models = vehicle.capability, state.models
    loaded = capability.loaded if capability and vehicle.epoch else ()
    return q.VehicleView(
        vehicle_id=vehicle.vehicle_id,
        name=vehicle.name,
        state=str(vehicle.state),
        refusals=tuple(str(one) for one in vehicle.refusals),
        epoch=vehicle.epoch,
        device=capability.device if capability else "",
        slots=capability.slots if capability else 0,
        leases=len(vehicle.leases),
        units_succeeded=vehicle.units_succeeded,
        attempts_lost=dict(vehicle.attempts_lost),
        energy_mwh=vehicle.energy_mwh,
        energy_lost_mwh=vehicle.energy_lost_mwh,
        runtime_ms=vehicle.runtime_ms,
        lost_ms=vehicle.lost_ms,
        reward_micro=vehicle.reward_micro,
        quarantined_until_ms=vehicle.quarantined_until_ms,
        heard_ms=heard_ms,
        canaries_answered=vehicle.canaries_answered,
        loaded=tuple(models[one].name if one in models else str(one) for one in loaded),
    )


class Service:
    """Takes questions from the bus."""

    def __init__(
        self,
        view: ShardView,
        answers: Answers,
        submit: Submit,
        now_ms: Callable[[], int],
        health: Callable[[], Health],
    ) -> None:
        self._view = view
        self._answers = answers
        self._submit = submit
        self._now_ms = now_ms
        self._health = health
        self._tasks: set[asyncio.Task[None]] = set()

    def receive(self, message: Message) -> None:
        """Take one question; an undecodable one gets no answer."""
        try:
            question = q.QUESTION_DECODER.decode(message.body)
        except msgspec.DecodeError as fault:
            log.warning("question_undecodable", fault=str(fault))
            return
        if isinstance(question, ReadsRecord):
            task = asyncio.create_task(self._read_record(question, message.reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(question, q.ListVehicles):
            self._answers.send(message.reply, self._view.vehicles())
        elif isinstance(question, q.GetVehiclePolicy):
            self._answers.send(message.reply, self._view.policy(question))
        elif isinstance(question, q.GetStatus):
            status = self._view.status(self._now_ms(), self._health())
            self._answers.send(message.reply, status)
        else:
            self._change(question, message.reply)

    async def _read_record(self, question: ReadsRecord, reply: str) -> None:
        """Read in a thread: disks and database servers take their time."""
        try:
            answer = await asyncio.to_thread(self._read, question)
        except StorageUnavailable as fault:
            log.warning("record_unavailable", cause=str(fault))
            answer = UNREADABLE
        self._answers.send(reply, answer)

    def _read(self, question: ReadsRecord) -> q.Reply:
        match question:
            case q.GetBatch():
                return self._view.batch(question)
            case q.ListBatches():
                return self._view.batches(question)
            case q.GetOutputs():
                return self._view.outputs(question)
            case q.GetStory():
                return tell(self._view.store, question.about, question.limit)

    def _change(self, question: q.AnyQuestion, reply: str) -> None:
        health = self._health()
        is_new_work = isinstance(question, q.CreateBatch)
        if health.is_commit_failing or (health.is_storage_full and is_new_work):
            self._answers.send(reply, REFUSED_FULL)
            return
        request_id = self._answers.expect(reply)
        if not self._submit(event_of(question, self._now_ms(), request_id), ()):
            self._answers.give(request_id, q.Answered(Refused.OVERLOADED, "the inbox is full"))


def event_of(question: q.AnyQuestion, now_ms: int, request_id: RequestId) -> ev.FleetEvent:
    """The fact that a changing question brings in: its fields, with time and request around them.

    An event and its question have the same fields in the same order; a test holds them to it.
    """
    fields = msgspec.structs.astuple(question)
    return EVENTS[type(question)](now_ms, *fields, request_id)


EVENTS: dict[type[q.Question], Callable[..., ev.FleetEvent]] = {
    q.CreateBatch: ev.BatchCreated,
    q.SubmitUnits: ev.BatchSubmitted,
    q.RejectBatch: ev.BatchRejected,
    q.CancelBatch: ev.BatchCancelled,
    q.BatchFilesWritten: ev.BatchAssembled,
    q.EnrolVehicle: ev.VehicleEnrolled,
    q.RemoveVehicle: ev.VehicleRemoved,
    q.SetVehiclePolicy: ev.VehiclePolicySet,
    q.DrainVehicle: ev.VehicleDrained,
    q.AddModel: ev.ModelAdded,
    q.RemoveModel: ev.ModelRemoved,
    q.WarmModel: ev.ModelWarmed,
}
