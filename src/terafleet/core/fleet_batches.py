"""What the fleet does with batches, from admission to the last file."""

from collections.abc import Sequence

import msgspec

from terafleet.core import events as ev
from terafleet.core.admission import admission_refusal
from terafleet.core.deadlines import DeadlineKind
from terafleet.core.effects import (
    AssembleOutput,
    CutBatch,
    ForgetBatch,
    RevokeLease,
    UnitOutcome,
)
from terafleet.core.fleet_state import FleetState
from terafleet.core.fleet_warm import end_warmth
from terafleet.core.ids import BatchId, LeaseId, ReceiptId, WorkUnitId
from terafleet.core.reasons import LeaseEnding, Refused, UnitEnding
from terafleet.core.records import BatchRecord, LeaseRecord, UnitLoss, UnitRecord
from terafleet.core.work import BATCH_ENDS, AttemptResult, BatchState, UnitState

_ENDINGS = {
    BatchState.CANCELLED: (LeaseEnding.BATCH_CANCELLED, UnitEnding.BATCH_CANCELLED),
    BatchState.EXPIRED: (LeaseEnding.BATCH_EXPIRED, UnitEnding.BATCH_EXPIRED),
}


_MODEL_REPLACED = msgspec.json.encode(
    [
        {
            "code": "model_not_found",
            "message": "A model of the batch was replaced while its file was read; send it again.",
            "param": "model",
            "line": None,
        }
    ]
)
"""In the API's own form of a batch's errors."""


def model_added(fleet: FleetState, event: ev.ModelAdded) -> None:
    """The catalogue has a model."""
    fleet.models[event.needs.model_id] = event.needs
    fleet.answer(event.request_id)


def model_removed(fleet: FleetState, event: ev.ModelRemoved) -> None:
    """The catalogue has a model no longer; accepted work on it goes on."""
    fleet.models.pop(event.model_id, None)
    end_warmth(fleet, event.model_id)
    fleet.answer(event.request_id)


def batch_created(fleet: FleetState, event: ev.BatchCreated) -> None:
    """Admit a batch or refuse it; creating it again answers as before."""
    if event.batch_id in fleet.batches:
        fleet.answer(event.request_id)
        return
    unknown = sum(1 for vehicle in fleet.vehicles.values() if vehicle.capability is None)
    refused = admission_refusal(
        [fleet.models.get(model_id) for model_id in event.model_ids],
        event.endpoint,
        [kind for kind, group in fleet.index.groups.items() if group.known],
        len(fleet.vehicles),
        unknown,
    )
    if refused is not None:
        fleet.answer(event.request_id, *refused)
        return
    batch = BatchRecord(
        batch_id=event.batch_id,
        customer_id=event.customer_id,
        endpoint=event.endpoint,
        input_file_id=event.input_file_id,
        model_ids=event.model_ids,
        metadata=event.metadata,
        requests=event.requests,
        created_ms=fleet.now_ms,
        expires_ms=fleet.now_ms + event.window_ms,
    )
    fleet.batches[batch.batch_id] = batch
    fleet.touched[batch.batch_id] = None
    for model_id in event.model_ids:
        fleet.index.shape(fleet.models[model_id])
    fleet.deadlines.add(batch.expires_ms, DeadlineKind.BATCH_WINDOW, batch.batch_id)
    fleet.answer(event.request_id)
    _ask_gateway(fleet, batch)


def _ask_gateway(fleet: FleetState, batch: BatchRecord) -> None:
    """Ask for the cut or the files, and again after a while if no answer has come."""
    if batch.state is BatchState.VALIDATING:
        fleet.effects.append(_cut(fleet, batch))
    else:
        fleet.effects.append(_assemble(fleet, batch))
    batch.ask_again_ms = fleet.now_ms + fleet.settings.gateway_retry_ms
    fleet.deadlines.add(batch.ask_again_ms, DeadlineKind.GATEWAY, batch.batch_id)


def _cut(fleet: FleetState, batch: BatchRecord) -> CutBatch:
    shapes = [fleet.index.shapes[model_id] for model_id in batch.model_ids]
    slots = max(
        sum(group.slots_online for group in fleet.index.feasible(shape)) for shape in shapes
    )
    tokens_per_s = min(shape.tokens_per_s for shape in shapes)
    return CutBatch(batch.batch_id, batch.input_file_id, batch.endpoint, tokens_per_s, slots)


def _assemble(fleet: FleetState, batch: BatchRecord) -> AssembleOutput:
    outcomes = []
    for unit_id in batch.unit_ids():
        unit = fleet.units[unit_id]
        loss = batch.losses.get(unit_id)
        ending, detail = (loss.ending, loss.detail) if loss else (None, "")
        outcomes.append(
            UnitOutcome(
                unit_id,
                unit.requests,
                unit.lease_id,
                unit.receipt_id,
                unit.vehicle_id,
                ending,
                detail,
            )
        )
    return AssembleOutput(batch.batch_id, batch.customer_id, batch.input_file_id, tuple(outcomes))


def gateway_overdue(fleet: FleetState, batch_id: BatchId) -> None:
    """A gateway has not answered for a while: ask again, perhaps another one."""
    batch = fleet.batches.get(batch_id)
    if batch is None or fleet.now_ms < batch.ask_again_ms:
        return
    if batch.state is not BatchState.IN_PROGRESS:
        _ask_gateway(fleet, batch)


def batch_submitted(fleet: FleetState, event: ev.BatchSubmitted) -> None:
    """The units of a batch begin to wait; submitting them again changes nothing."""
    batch = fleet.batches.get(event.batch_id)
    if batch is None:
        fleet.answer(event.request_id, Refused.BATCH_ENDED, "the batch has ended")
        return
    fleet.answer(event.request_id)
    if batch.state is not BatchState.VALIDATING:
        return
    if any(spec.model_id not in batch.model_ids for spec in event.units):
        batch.errors = _MODEL_REPLACED
        _end(fleet, batch, BatchState.FAILED)
        return
    batch.state = BatchState.IN_PROGRESS
    batch.in_progress_ms = fleet.now_ms
    batch.requests_failed = event.requests_failed
    batch.first_unit_id = fleet.next_unit_id
    batch.units = batch.units_open = len(event.units)
    unit_id = int(fleet.next_unit_id)
    for spec in event.units:
        unit = UnitRecord(
            WorkUnitId(unit_id),
            batch.batch_id,
            spec.model_id,
            spec.requests,
            spec.cost,
            spec.offset,
            spec.length,
            spec.digest,
        )
        fleet.units[unit.unit_id] = unit
        fleet.index.shapes[spec.model_id].add(unit, is_requeued=False)
        unit_id += 1
    fleet.next_unit_id = WorkUnitId(unit_id)
    fleet.touched[batch.batch_id] = None
    _finalize_if_done(fleet, batch)


def batch_rejected(fleet: FleetState, event: ev.BatchRejected) -> None:
    """A batch's file is of no use."""
    fleet.answer(event.request_id)
    batch = fleet.batches.get(event.batch_id)
    if batch is not None and batch.state is BatchState.VALIDATING:
        batch.errors = event.errors
        _end(fleet, batch, BatchState.FAILED)


def batch_cancelled(fleet: FleetState, event: ev.BatchCancelled) -> None:
    """The customer wants no more of a batch: what is done is kept, what is not stops now."""
    batch = fleet.batches.get(event.batch_id)
    if batch is None or batch.customer_id != event.customer_id:
        fleet.answer(event.request_id, Refused.BATCH_ENDED, "the batch has ended")
        return
    fleet.answer(event.request_id)
    if batch.state is BatchState.VALIDATING:
        batch.cancelling_ms = fleet.now_ms
        _end(fleet, batch, BatchState.CANCELLED)
    elif batch.state is BatchState.IN_PROGRESS:
        batch.cancelling_ms = fleet.now_ms
        batch.end = BatchState.CANCELLED
        _stop_units(fleet, batch)


def window_ended(fleet: FleetState, batch_id: BatchId) -> None:
    """A batch's completion window is over: what is done is delivered."""
    batch = fleet.batches.get(batch_id)
    if batch is None or fleet.now_ms < batch.expires_ms:
        return
    if batch.state is BatchState.VALIDATING:
        _end(fleet, batch, BatchState.EXPIRED)
    elif batch.state is BatchState.IN_PROGRESS:
        batch.end = BatchState.EXPIRED
        _stop_units(fleet, batch)


def _stop_units(fleet: FleetState, batch: BatchRecord) -> None:
    lease_ending, unit_ending = _ENDINGS[batch.end]
    leases: dict[LeaseId, None] = {}
    for unit_id in batch.unit_ids():
        unit = fleet.units[unit_id]
        if unit.state is UnitState.WAITING:
            fleet.shape_of(unit).withdraw(unit)
        elif unit.state is UnitState.RUNNING:
            leases[unit.lease_id] = None
            batch.units_running -= 1
        else:
            continue
        _lose(batch, unit, UnitState.CANCELLED, UnitLoss(unit_ending, ""))
    for lease_id in leases:
        lease = fleet.leases[lease_id]
        vehicle = fleet.close_lease(lease)
        fleet.count_loss(vehicle, lease_ending, fleet.now_ms - lease.progress_ms)
        fleet.effects.append(RevokeLease(vehicle.vehicle_id, vehicle.epoch, lease_id, lease_ending))
    _finalize_if_done(fleet, batch)


def _lose(batch: BatchRecord, unit: UnitRecord, state: UnitState, loss: UnitLoss) -> None:
    unit.state = state
    unit.lease_id = LeaseId(0)
    batch.units_open -= 1
    batch.requests_failed += unit.requests
    batch.losses[unit.unit_id] = loss


def units_succeeded(
    fleet: FleetState, lease: LeaseRecord, results: Sequence[AttemptResult]
) -> None:
    """Some units of a lease have their canonical results, which one receipt brought."""
    batch_id, vehicle_id = lease.batch_id, lease.vehicle_id
    batch = fleet.batches[batch_id]
    receipt_id = ReceiptId(results[0].unit_id)
    units = fleet.units
    answers = failed = 0
    for result in results:
        unit = units[result.unit_id]
        unit.state = UnitState.SUCCEEDED
        unit.receipt_id = receipt_id
        unit.vehicle_id = vehicle_id
        answers += result.answers
        failed += result.answers_failed
        batch.prompt_tokens += result.prompt_tokens
        batch.completion_tokens += result.completion_tokens
    batch.units_running -= len(results)
    batch.units_open -= len(results)
    batch.requests_completed += answers - failed
    batch.requests_failed += failed
    fleet.touched[batch_id] = None
    _finalize_if_done(fleet, batch)


def unit_failed(fleet: FleetState, unit: UnitRecord, ending: UnitEnding, detail: str) -> None:
    """A unit that was running has failed for good."""
    batch = fleet.batches[unit.batch_id]
    batch.units_running -= 1
    _lose(batch, unit, UnitState.FAILED, UnitLoss(ending, detail))
    fleet.touched[unit.batch_id] = None
    _finalize_if_done(fleet, batch)


def _finalize_if_done(fleet: FleetState, batch: BatchRecord) -> None:
    if batch.units_open:
        return
    is_cancelled = batch.end is BatchState.CANCELLED
    batch.state = BatchState.CANCELLING if is_cancelled else BatchState.FINALIZING
    batch.finalizing_ms = fleet.now_ms
    fleet.touched[batch.batch_id] = None
    _ask_gateway(fleet, batch)


def batch_assembled(fleet: FleetState, event: ev.BatchAssembled) -> None:
    """A batch's files are written: it has ended, and its units may be forgotten."""
    fleet.answer(event.request_id)
    batch = fleet.batches.get(event.batch_id)
    if batch is not None and batch.state in (BatchState.FINALIZING, BatchState.CANCELLING):
        batch.output_file_id = event.output_file_id
        batch.error_file_id = event.error_file_id
        _end(fleet, batch, batch.end)


def _end(fleet: FleetState, batch: BatchRecord, state: BatchState) -> None:
    """Forget a batch in the machine; its record stays for its customer."""
    assert state in BATCH_ENDS
    batch.state = state
    batch.ended_ms = fleet.now_ms
    outputs: dict[tuple[LeaseId, ReceiptId], None] = {}
    for unit_id in batch.unit_ids():
        unit = fleet.units.pop(unit_id)
        if unit.state is UnitState.SUCCEEDED:
            outputs[unit.lease_id, unit.receipt_id] = None
    fleet.effects.append(ForgetBatch(batch.batch_id, batch.input_file_id, tuple(outputs)))
    fleet.record_now(batch)
    del fleet.batches[batch.batch_id]
