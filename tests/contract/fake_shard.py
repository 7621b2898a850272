"""A shard that keeps its promises to gateways, with a fleet that a test plays by hand."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from msgspec.structs import replace

from terafleet.bus.ports import Bus, Message, Subscription
from terafleet.control.ports import Objects
from terafleet.core.events import UnitSpec
from terafleet.core.ids import (
    BatchId,
    LeaseId,
    ReceiptId,
    VehicleId,
    WorkUnitId,
    input_name,
    large_output_name,
    vehicle_outputs_folder,
)
from terafleet.core.reasons import Refused
from terafleet.core.work import BATCH_ENDS, BatchState
from terafleet.protocol import shard as sh
from terafleet.protocol.parcel import pack, unpack

MESSAGE_BYTES_MAX = 1_000_000

VEHICLE = VehicleId("veh-fakefakefa")
"""The car that has done everything."""

Give = Callable[[dict[str, object]], dict[str, object]]
"""What a car answers to the body of a request: `status_code` and `body`."""


def embedded(body: dict[str, object]) -> dict[str, object]:
    """A good answer to a request for an embedding."""
    data = [{"object": "embedding", "index": 0, "embedding": [0.25, -1.5]}]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    answer = {"object": "list", "data": data, "model": body["model"], "usage": usage}
    return {"status_code": 200, "body": answer}


class FakeShard:
    """Answers the questions of gateways about batches and asks for their work."""

    def __init__(self, bus: Bus, objects: Objects, now_ms: Callable[[], int]) -> None:
        self._bus = bus
        self._objects = objects
        self._now_ms = now_ms
        self._subscription: Subscription | None = None
        self._units = 0
        self.asked: list[sh.Question] = []
        self.views: dict[str, sh.BatchView] = {}
        self.created: dict[str, sh.CreateBatch] = {}
        self.units: dict[str, tuple[UnitSpec, ...]] = {}
        self.parcels: dict[tuple[LeaseId, ReceiptId], bytes] = {}
        self.units_per_receipt = 1
        self.refuse: dict[type[sh.Question], sh.Answered] = {}
        self.refuse_once: dict[type[sh.Question], sh.Answered] = {}
        self.silent_after: type[sh.Question] | None = None
        self.slots = 1
        self.wants_cuts = True

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(sh.SHARD_SUBJECT, self._receive)

    async def stop(self) -> None:
        """Fall silent."""
        if self._subscription is not None:
            await self._subscription.end()

    def ask(self, work: sh.GatewayWork) -> None:
        """Ask a gateway to do something."""
        self._bus.publish(sh.GATEWAY_WORK_SUBJECT, sh.ENCODER.encode(work))

    def cut_of(self, batch_id: str) -> sh.Cut:
        """What a gateway is asked when a batch is to be cut."""
        created = self.created[batch_id]
        return sh.Cut(created.batch_id, created.input_file_id, created.endpoint, 1_000, self.slots)

    def set_view(self, batch_id: str, **changes: object) -> None:
        """Change what customers read about a batch."""
        self.views[batch_id] = replace(self.views[batch_id], **changes)

    async def compute(self, batch_id: str, give: Give = embedded) -> list[sh.Outcome]:
        """Let cars answer all units of a batch; the outputs lie in the record."""
        specs, outcomes = self.units[batch_id], []
        for begin in range(0, len(specs), self.units_per_receipt):
            of_receipt = specs[begin : begin + self.units_per_receipt]
            done = self._outcomes(of_receipt)
            bodies = [await self._output(batch_id, spec, give) for spec in of_receipt]
            unit_ids = [one.unit_id for one in done]
            key = (done[0].lease_id, done[0].receipt_id)
            self.parcels[key] = pack(zip(unit_ids, bodies, strict=True))
            outcomes += done
        return outcomes

    async def _output(self, batch_id: str, spec: UnitSpec, give: Give) -> bytes:
        name = input_name(BatchId(batch_id))
        body = await self._objects.read(name, spec.offset, spec.length)
        assert hashlib.sha256(body).digest() == spec.digest
        lines = [give(msgspec.json.decode(line)) for line in body.splitlines()]
        assert len(lines) == spec.requests
        return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)

    def hand_in(self, outcome: sh.Outcome, body: bytes) -> None:
        """Let the receipt of a unit hold this output instead of what was computed."""
        key = (outcome.lease_id, outcome.receipt_id)
        self.parcels[key] = pack({**unpack(self.parcels[key]), outcome.unit_id: body}.items())

    async def put_away(self, batch_id: str, outcome: sh.Outcome) -> str:
        """Move an output that came alone from the record to the objects, where large ones lie.

        The name of the object.
        """
        parcel = unpack(self.parcels.pop((outcome.lease_id, outcome.receipt_id)))
        (body,) = parcel.values()
        folder = vehicle_outputs_folder(BatchId(batch_id), outcome.vehicle_id)
        name = f"{folder}{large_output_name(outcome.lease_id, outcome.unit_id)}"

        async def pieces() -> AsyncIterator[bytes]:
            yield body

        await self._objects.write(name, pieces())
        return name

    def assemble_of(self, batch_id: str, outcomes: list[sh.Outcome]) -> sh.Assemble:
        """What a gateway is asked when all units of a batch have ended."""
        self.set_view(batch_id, state=BatchState.FINALIZING, finalizing_ms=self._now_ms())
        created = self.created[batch_id]
        return sh.Assemble(
            created.batch_id, created.customer_id, created.input_file_id, tuple(outcomes)
        )

    def _outcomes(self, specs: Sequence[UnitSpec]) -> list[sh.Outcome]:
        """Outcomes of units whose outputs one receipt brought."""
        first = self._units + 1
        self._units += len(specs)
        lease_id, receipt_id = LeaseId(7_000 + first), ReceiptId(first)
        return [
            sh.Outcome(WorkUnitId(at), spec.requests, lease_id, receipt_id, VEHICLE, None, "")
            for at, spec in enumerate(specs, first)
        ]

    def _receive(self, message: Message) -> None:
        question = sh.QUESTION_DECODER.decode(message.body)
        self.asked.append(question)
        kind = type(question)
        refusal = self.refuse_once.pop(kind, None) or self.refuse.get(kind)
        reply = refusal or self._reply(question)
        self._bus.publish(message.reply, sh.ENCODER.encode(reply))
        if kind is self.silent_after and self._subscription is not None:
            self._ending = asyncio.ensure_future(self._subscription.end())

    def _reply(self, question: sh.Question) -> sh.Reply:
        match question:
            case sh.GetBatch(batch_id, customer_id):
                view = self.views.get(batch_id)
                if view is None or view.customer_id != customer_id:
                    return sh.Answered(Refused.BATCH_UNKNOWN, "There is no such batch.")
                return view
            case sh.ListBatches():
                return self._list(question)
            case sh.GetOutputs(outputs):
                return self._outputs(outputs)
            case sh.CreateBatch():
                return self._create(question)
            case sh.CancelBatch(batch_id) if self.views[batch_id].state in BATCH_ENDS:
                return sh.Answered(Refused.BATCH_ENDED, "The batch has ended.")
        self._act(question)
        return sh.Answered()

    def _act(self, question: sh.Question) -> None:
        match question:
            case sh.SubmitUnits():
                self._submit(question)
            case sh.RejectBatch(batch_id=batch_id, errors=errors):
                self._change(batch_id, BatchState.FAILED, errors=errors)
            case sh.CancelBatch(batch_id=batch_id):
                self._change(batch_id, BatchState.CANCELLING, cancelling_ms=self._now_ms())
            case sh.BatchFilesWritten(batch_id, output_id, error_id):
                files = {"output_file_id": output_id, "error_file_id": error_id}
                self._change(batch_id, BatchState.COMPLETED, **files)
            case _:
                raise AssertionError(question)

    def _create(self, question: sh.CreateBatch) -> sh.Answered:
        now_ms = self._now_ms()
        self.created[question.batch_id] = question
        self.views[question.batch_id] = sh.BatchView(
            batch_id=question.batch_id,
            customer_id=question.customer_id,
            endpoint=question.endpoint,
            input_file_id=question.input_file_id,
            state=BatchState.VALIDATING,
            created_ms=now_ms,
            in_progress_ms=0,
            finalizing_ms=0,
            ended_ms=0,
            cancelling_ms=0,
            expires_ms=now_ms + question.window_ms,
            requests=question.requests,
            requests_completed=0,
            requests_failed=0,
            units=0,
            units_ended=0,
            waiting=None,
            output_file_id="",
            error_file_id="",
            errors=b"",
            metadata=question.metadata,
            prompt_tokens=0,
            completion_tokens=0,
        )
        if self.wants_cuts:
            self.ask(self.cut_of(question.batch_id))
        return sh.Answered()

    def _submit(self, question: sh.SubmitUnits) -> None:
        if self.views[question.batch_id].state is BatchState.VALIDATING:
            self.units[question.batch_id] = question.units
            self._change(
                question.batch_id,
                BatchState.IN_PROGRESS,
                in_progress_ms=self._now_ms(),
                units=len(question.units),
                requests_failed=question.requests_failed,
            )

    def _change(self, batch_id: str, state: BatchState, **changes: object) -> None:
        if state in BATCH_ENDS:
            changes["ended_ms"] = self._now_ms()
        self.set_view(batch_id, state=state, **changes)

    def _list(self, question: sh.ListBatches) -> sh.BatchList:
        views = [v for v in self.views.values() if v.customer_id == question.customer_id][::-1]
        ids = [view.batch_id for view in views]
        begin = ids.index(BatchId(question.after)) + 1 if question.after else 0
        end = begin + question.limit
        return sh.BatchList(tuple(views[begin:end]), end < len(views))

    def _outputs(self, outputs: tuple[tuple[LeaseId, ReceiptId, WorkUnitId], ...]) -> sh.Outputs:
        bodies: list[bytes | None] = []
        room = MESSAGE_BYTES_MAX
        for lease_id, receipt_id, unit_id in outputs:
            parcel = self.parcels.get((lease_id, receipt_id))
            body = None if parcel is None else unpack(parcel).get(unit_id, b"")
            room -= len(body or b"")
            if room < 0 and bodies:
                break
            bodies.append(body)
        return sh.Outputs(tuple(bodies))
