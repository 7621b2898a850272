"""Batches from admission to the last file, with every way in which they may end."""

from collections.abc import Callable

import msgspec
import pytest

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.capability import Capability, ModelNeeds
from terafleet.core.ids import BatchId, CustomerId, ModelId, RequestId, VehicleId
from terafleet.core.reasons import LeaseEnding, Refusal, Refused, UnitEnding, Waiting
from terafleet.core.settings import FleetSettings
from terafleet.core.work import BatchState, UnitState
from tests.core.fleet_world import (
    CUSTOMER,
    EMBEDDINGS,
    MODEL,
    NO_REQUEST,
    SETTINGS,
    World,
)

ONE = FleetSettings(units_per_lease_max=1)
WINDOW_MS = 3_600_000
REQUEST = RequestId("request")
BATCH = BatchId("batch")


def created(
    model_ids: tuple[ModelId, ...] = (MODEL.model_id,),
    endpoint: str = EMBEDDINGS,
    batch_id: BatchId = BATCH,
) -> ev.BatchCreated:
    """A customer asks for a batch of three requests."""
    file_id, metadata = "file", b"{}"
    return ev.BatchCreated(
        1_000, batch_id, CUSTOMER, endpoint, model_ids, 3, WINDOW_MS, file_id, metadata, REQUEST
    )


def refusal(world: World, event: ev.FleetEvent) -> tuple[Refused | None, str]:
    """What a question is answered with."""
    world.happen(event)
    answer = world.answers[REQUEST]
    return answer.refused, answer.detail


def submitted(requests_failed: int = 0, units: int = 3) -> ev.BatchSubmitted:
    """The batch is cut."""
    specs = tuple(ev.UnitSpec(MODEL.model_id, 1, 100, at, 1, b"digest") for at in range(units))
    return ev.BatchSubmitted(1_000, BATCH, specs, requests_failed, REQUEST)


def cancelled(customer_id: CustomerId = CUSTOMER) -> ev.BatchCancelled:
    """A customer wants no more of the batch."""
    return ev.BatchCancelled(1_000, BATCH, customer_id, REQUEST)


# Admission.


def test_an_admitted_batch_is_answered_recorded_and_cut() -> None:
    world = World()
    world.enrol("a", slots=3)
    world.happen(created())
    assert [type(effect) for effect in world.effects] == [
        fx.AnswerRequest,
        fx.CutBatch,
        fx.RecordBatch,
    ]
    assert world.answers[REQUEST].refused is None
    assert world.said(fx.CutBatch) == [fx.CutBatch(BATCH, "file", EMBEDDINGS, 1_000, 3)]
    record = world.records[BATCH]
    assert record.state is BatchState.VALIDATING
    assert (record.created_ms, record.expires_ms) == (1_000, 1_000 + WINDOW_MS)
    assert (record.requests, record.metadata, record.customer_id) == (3, b"{}", CUSTOMER)
    assert record.waiting is None, "it is not in the hands of the fleet"


def test_a_record_is_written_with_the_events_and_all_else_after_them() -> None:
    assert fx.RecordBatch.when == "record"
    assert fx.AnswerRequest.when == "commit", "who hears yes may rely on it"
    assert fx.AcknowledgeReceipt.when == "later", "it is kept by then, and nobody hurries"


def test_a_batch_of_an_unknown_model_is_refused() -> None:
    world = World()
    world.enrol("a")
    refused, words = refusal(world, created((ModelId("none"),)))
    assert refused is Refused.MODEL_UNKNOWN
    assert "not in the catalogue" in words
    assert world.records == {}


def test_a_batch_of_a_model_that_was_removed_is_refused_and_the_one_before_goes_on() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("before", 1)
    world.happen(ev.ModelRemoved(world.now_ms, MODEL.model_id, REQUEST))
    assert world.answers[REQUEST].refused is None
    assert refusal(world, created())[0] is Refused.MODEL_UNKNOWN
    world.finish(car)
    assert world.records[BatchId("before")].requests_completed == 1
    world.happen(ev.ModelAdded(world.now_ms, MODEL, REQUEST))
    assert refusal(world, created())[0] is None


def test_a_batch_to_an_endpoint_that_the_model_does_not_serve_is_refused() -> None:
    world = World()
    world.enrol("a")
    refused, words = refusal(world, created(endpoint="/v1/chat/completions"))
    assert refused is Refused.ENDPOINT_UNSUPPORTED
    assert words == "small serves /v1/embeddings, not /v1/chat/completions"


def test_a_batch_for_a_fleet_without_cars_is_refused() -> None:
    refused, words = refusal(World(), created())
    assert refused is Refused.FLEET_EMPTY
    assert "enrol" in words


def test_a_batch_that_no_car_could_ever_run_is_refused_with_what_is_lacking() -> None:
    world = World()
    large = ModelNeeds(ModelId("large"), "large", "onnx", 9_000, (EMBEDDINGS,))
    world.happen(ev.ModelAdded(world.now_ms, large, NO_REQUEST))
    car = world.enrol("a")
    refused, words = refusal(world, created((large.model_id,)))
    assert refused is Refused.NO_FEASIBLE_VEHICLE
    assert words == (
        "no car of the fleet can run large: the nearest lends 3840 MB of memory, 9000 MB are needed"
    )
    car.capability = Capability(("onnx",), 16_000, 1)
    world.connect(car)
    assert refusal(world, created((large.model_id,)))[0] is None


def test_a_car_that_has_not_yet_spoken_might_run_anything() -> None:
    world = World()
    world.happen(ev.VehicleEnrolled(world.now_ms, VehicleId("veh-a"), "a", NO_REQUEST))
    assert refusal(world, created())[0] is None
    assert world.said(fx.CutBatch)[0].slots == 0


def test_a_car_that_is_away_will_come_back() -> None:
    world = World()
    world.leave(world.enrol("a"))
    assert refusal(world, created())[0] is None


# The cut.


def test_units_wait_from_the_cut_on() -> None:
    world = World()
    world.enrol("a")
    world.happen(created())
    world.tick(500)
    world.happen(msgspec.structs.replace(submitted(1), at_ms=world.now_ms))
    assert world.answers[REQUEST].refused is None
    record = world.records[BATCH]
    assert (record.state, record.units) == (BatchState.IN_PROGRESS, 3)
    assert (record.in_progress_ms, record.requests_failed) == (1_500, 1)


def test_a_batch_without_a_single_unit_is_done() -> None:
    world = World()
    world.enrol("a")
    world.happen(created())
    world.happen(submitted(3, units=0))
    assert world.records[BATCH].state is BatchState.FINALIZING
    assert world.assembled[BATCH].outcomes == ()
    world.assemble(BATCH)
    record = world.records[BATCH]
    assert (record.state, record.requests_failed) == (BatchState.COMPLETED, 3)


def test_a_file_that_is_of_no_use_fails_the_batch_with_its_errors() -> None:
    world = World()
    world.enrol("a")
    world.happen(created())
    world.happen(ev.BatchRejected(world.now_ms, BATCH, b"[1]", REQUEST))
    record = world.records[BATCH]
    assert (record.state, record.errors) == (BatchState.FAILED, b"[1]")
    assert world.said(fx.ForgetBatch) == [fx.ForgetBatch(BATCH, "file", ())]


def test_units_of_a_model_that_the_batch_does_not_name_fail_it() -> None:
    world = World()
    world.enrol("a")
    world.happen(created())
    unit = ev.UnitSpec(ModelId("another"), 1, 100, 0, 1, b"digest")
    world.happen(ev.BatchSubmitted(world.now_ms, BATCH, (unit,), 0, REQUEST))
    record = world.records[BATCH]
    assert record.state is BatchState.FAILED
    (error,) = msgspec.json.decode(record.errors)
    assert error["code"] == "model_not_found"


# The end.


def test_a_batch_ends_when_its_files_are_written() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 2)
    while world.finish(car):
        pass
    world.tick(5)
    outputs = tuple((one.lease_id, one.receipt_id) for one in world.assembled[BATCH].outcomes)
    files = ("file-out", "file-errors")
    world.happen(ev.BatchAssembled(world.now_ms, BATCH, *files, REQUEST))
    record = world.records[BATCH]
    assert record.state is BatchState.COMPLETED
    assert (record.output_file_id, record.error_file_id) == files
    assert (record.requests_completed, record.units_ended) == (2, 2)
    assert record.ended_ms == record.finalizing_ms + 5
    assert world.said(fx.ForgetBatch) == [fx.ForgetBatch(BATCH, "file", outputs)]
    assert not world.fleet.state.units
    assert not world.fleet.state.batches


def test_a_gateway_that_does_not_answer_is_asked_again() -> None:
    world = World()
    car = world.enrol("a")
    world.happen(created())
    for _ in range(2):
        world.effects.clear()
        world.tick(SETTINGS.gateway_retry_ms)
        assert [one.batch_id for one in world.said(fx.CutBatch)] == [BATCH]
    world.happen(submitted(units=1))
    world.finish(car)
    assert world.said(fx.AssembleOutput)
    for _ in range(2):
        world.effects.clear()
        world.tick(SETTINGS.gateway_retry_ms)
        assert [one.batch_id for one in world.said(fx.AssembleOutput)] == [BATCH]
    world.assemble(BATCH)
    world.effects.clear()
    world.tick(10 * SETTINGS.gateway_retry_ms)
    assert world.said(fx.AssembleOutput) == []


def test_a_batch_at_work_needs_no_gateway() -> None:
    world = World()
    world.enrol("a")
    world.batch("batch", 1)
    world.effects.clear()
    world.tick(SETTINGS.gateway_retry_ms)
    assert world.said(fx.CutBatch) == []
    assert world.said(fx.AssembleOutput) == []


# Cancelling.


def test_a_batch_may_be_cancelled_before_its_cut() -> None:
    world = World()
    world.enrol("a")
    world.happen(created())
    assert refusal(world, cancelled())[0] is None
    assert world.records[BATCH].state is BatchState.CANCELLED
    assert refusal(world, submitted()) == (Refused.BATCH_ENDED, "the batch has ended")
    assert not world.fleet.state.units


def test_a_batch_that_is_cancelled_at_work_keeps_what_is_done() -> None:
    world = World(ONE)
    car, other = world.enrol("a"), world.enrol("b")
    batch_id = world.batch("batch", 5)
    world.finish(car)
    held = [lease.lease_id for one in (car, other) for lease in world.leases(one)]
    world.tick(70)
    assert refusal(world, msgspec.structs.replace(cancelled(), at_ms=world.now_ms))[0] is None
    revoked = world.said(fx.RevokeLease)
    assert sorted(one.lease_id for one in revoked) == sorted(held)
    assert {one.ending for one in revoked} == {LeaseEnding.BATCH_CANCELLED}
    assert [len(world.leases(one)) for one in (car, other)] == [0, 0]
    endings = [one.ending for one in world.assembled[batch_id].outcomes]
    assert endings.count(None) == 1
    assert endings.count(UnitEnding.BATCH_CANCELLED) == 4
    record = world.records[batch_id]
    assert record.state is BatchState.CANCELLING
    assert (record.requests_completed, record.requests_failed) == (1, 4)
    assert record.cancelling_ms == world.now_ms
    world.assemble(batch_id)
    assert world.records[batch_id].state is BatchState.CANCELLED
    assert world.vehicle(car).lost_ms == 70


def test_a_slot_that_a_cancelled_batch_had_goes_to_the_next_one_at_once() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 9)
    other = world.batch("other", 1)
    world.happen(cancelled())
    assert [grant.batch_id for grant in world.said(fx.GrantLease)] == [other]
    assert len(world.leases(car)) == 1


def test_a_batch_that_writes_its_files_ends_as_it_would_have() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1)
    world.finish(car)
    assert refusal(world, cancelled())[0] is None
    assert world.records[BATCH].state is BatchState.FINALIZING
    world.assemble(BATCH)
    assert world.records[BATCH].state is BatchState.COMPLETED


def test_a_batch_that_has_ended_can_not_be_cancelled() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1)
    world.finish(car)
    world.assemble(BATCH)
    assert refusal(world, cancelled()) == (Refused.BATCH_ENDED, "the batch has ended")


def test_nobody_cancels_the_batch_of_another() -> None:
    world = World()
    world.enrol("a")
    world.batch("batch", 1)
    assert refusal(world, cancelled(CustomerId("another")))[0] is Refused.BATCH_ENDED
    assert world.records[BATCH].state is BatchState.IN_PROGRESS


# The window.


def test_a_window_that_ends_delivers_what_is_done() -> None:
    world = World(ONE)
    car = world.enrol("a")
    batch_id = world.batch("batch", 3, WINDOW_MS)
    world.finish(car)
    (lease,) = world.leases(car)
    world.tick(100_000)
    world.reboot(car)
    world.permit(car, Refusal.UNPLUGGED)
    world.release(car)
    world.tick(WINDOW_MS - 100_001)
    assert world.records[batch_id].state is BatchState.IN_PROGRESS
    world.tick(1)
    record = world.records[batch_id]
    assert record.state is BatchState.FINALIZING
    assert (record.requests_completed, record.requests_failed) == (1, 2)
    endings = [one.ending for one in world.assembled[batch_id].outcomes]
    assert endings == [None, UnitEnding.BATCH_EXPIRED, UnitEnding.BATCH_EXPIRED]
    world.assemble(batch_id)
    assert world.records[batch_id].state is BatchState.EXPIRED
    assert lease.lease_id not in world.fleet.state.leases


def test_a_lease_at_the_end_of_the_window_is_revoked() -> None:
    world = World(ONE)
    car = world.enrol("a")
    world.batch("batch", 1, window_ms=1_000)
    world.tick(1_000)
    assert [one.ending for one in world.said(fx.RevokeLease)] == [LeaseEnding.BATCH_EXPIRED]
    assert world.leases(car) == []
    assert world.vehicle(car).attempts_lost == {LeaseEnding.BATCH_EXPIRED: 1}


def test_a_batch_that_was_never_cut_expires_too() -> None:
    world = World()
    world.enrol("a")
    world.happen(created())
    world.tick(WINDOW_MS)
    assert world.records[BATCH].state is BatchState.EXPIRED
    assert not world.fleet.state.batches


def test_the_window_of_a_batch_that_has_ended_is_not_that_of_another_by_its_name() -> None:
    world = World()
    world.enrol("a")
    world.happen(created())
    world.happen(cancelled())
    world.tick(1_000)
    again = msgspec.structs.replace(created(), at_ms=world.now_ms)
    world.happen(again)
    world.tick(WINDOW_MS - 1)
    assert world.records[BATCH].state is BatchState.VALIDATING
    world.tick(1)
    assert world.records[BATCH].state is BatchState.EXPIRED


def test_a_batch_that_writes_its_files_does_not_expire() -> None:
    world = World()
    car = world.enrol("a")
    world.batch("batch", 1, WINDOW_MS)
    world.finish(car)
    world.tick(WINDOW_MS)
    assert world.records[BATCH].state is BatchState.FINALIZING
    world.assemble(BATCH)
    assert world.records[BATCH].state is BatchState.COMPLETED


# Once more.


def in_progress(world: World) -> None:
    """A batch at work."""
    world.happen(created())
    world.happen(submitted())


def finalizing(world: World) -> None:
    """A batch whose units are done."""
    in_progress(world)
    for car in world.cars.values():
        while world.finish(car):
            pass


def completed(world: World) -> None:
    """A batch that has ended."""
    finalizing(world)
    world.assemble(BATCH)


ASSEMBLED = ev.BatchAssembled(1_000, BATCH, "out", "", REQUEST)
REJECTED = ev.BatchRejected(1_000, BATCH, b"[1]", REQUEST)


@pytest.mark.parametrize(
    ("story", "event"),
    [
        (in_progress, created()),
        (in_progress, submitted(units=5)),
        (in_progress, REJECTED),
        (in_progress, ASSEMBLED),
        (finalizing, created()),
        (finalizing, submitted(units=5)),
        (finalizing, REJECTED),
        (finalizing, cancelled()),
        (completed, submitted(units=5)),
        (completed, REJECTED),
        (completed, cancelled()),
        (completed, ASSEMBLED),
    ],
)
def test_what_comes_again_or_too_late_is_answered_and_changes_nothing(
    story: Callable[[World], None], event: ev.FleetEvent
) -> None:
    world = World()
    world.enrol("a")
    story(world)
    before = world.fleet.snapshot()
    world.happen(event)
    assert [type(effect) for effect in world.effects] == [fx.AnswerRequest]
    assert world.fleet.snapshot() == before


def test_who_asks_for_no_answer_gets_none() -> None:
    world = World()
    world.enrol("a")
    world.happen(msgspec.structs.replace(created(), request_id=NO_REQUEST))
    assert world.said(fx.AnswerRequest) == []
    assert BATCH in world.records


# What a customer reads.


def test_a_batch_tells_how_far_it_is() -> None:
    world = World(ONE)
    car = world.enrol("a")
    batch_id = world.batch("batch", 3)
    seen = []
    while world.finish(car):
        record = world.records[batch_id]
        seen.append((record.units_ended, record.requests_completed, record.waiting))
    assert seen == [(1, 1, None), (2, 2, None), (3, 3, None)]


def test_a_batch_that_begins_to_wait_or_to_work_again_is_written_anew() -> None:
    world = World()
    car = world.enrol("a")
    batch_id = world.batch("batch", 1)
    world.permit(car, Refusal.DRIVER_PRESENT)
    world.release(car)
    assert world.records[batch_id].waiting is Waiting.ALL_VEHICLES_REFUSE
    world.permit(car)
    assert world.records[batch_id].waiting is None
    assert {unit.state for unit in world.units(batch_id)} == {UnitState.RUNNING}
