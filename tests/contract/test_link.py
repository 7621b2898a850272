"""The link: what it says when, and what the guard hears of it."""

import hashlib
import itertools
from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from terafleet.agent.greeting import HELLO_MS_MAX
from terafleet.agent.link import KEPT_MODELS_MAX
from terafleet.agent.outbox import in_batches
from terafleet.bus.ports import BusRefused, BusUnavailable
from terafleet.core import guard_events as ev
from terafleet.core.capability import Capability
from terafleet.core.events import HeldLease
from terafleet.core.ids import WHOLE_LEASE, Epoch, LeaseId, ModelId, ReceiptId, WorkUnitId
from terafleet.core.reasons import Failure, LeaseEnding, Refusal
from terafleet.core.work import AttemptResult
from terafleet.protocol import agent as wire
from tests.contract.agent_stage import VEHICLE
from tests.contract.link_stage import (
    BEAT_MS,
    BEAT_REFUSING_MS,
    LEASE_MS,
    MARGIN_MS,
    Stage,
)

HOUR_MS = 3_600_000
FIGURE_MAX = 10**12
UNIT_ID_MAX = 2**63 - 1
RECEIPT = ReceiptId(UNIT_ID_MAX)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage().open() as opened:
        yield opened


@pytest.fixture
async def deaf() -> AsyncIterator[Stage]:
    """A stage whose control plane does not answer hellos."""
    stage = Stage()
    stage.plane.answers_hello = False
    async with stage.open() as opened:
        yield opened


def a_receipt(lease: int, payload: bytes = b"x", results: int = 1) -> wire.Receipt:
    """A receipt of results whose figures are the greatest."""
    figures = [FIGURE_MAX] * 6
    found = [AttemptResult(WorkUnitId(UNIT_ID_MAX - unit), *figures) for unit in range(results)]
    digest = hashlib.sha256(payload).digest()
    return wire.Receipt(
        LeaseId(lease), RECEIPT, results=tuple(found), digest=digest, payload=payload
    )


def a_grant(lease: int, units: int = 2) -> wire.Grant:
    offered = tuple(
        wire.OfferedUnit(WorkUnitId(number), 3, b"d" * 32, b"input", "") for number in range(units)
    )
    return wire.Grant(LeaseId(lease), ModelId("m"), "/offer", "/out/", "/v1/embeddings", offered)


def keys(stage: Stage) -> list[int]:
    """The leases of the receipts that the control plane heard, in their order."""
    return [one.lease_id for message in stage.plane.all(wire.Receipts) for one in message.receipts]


async def test_hello_says_who_runs_here_and_what_it_holds(deaf: Stage) -> None:
    (hello,) = deaf.plane.all(wire.Hello)
    assert hello.protocol == wire.PROTOCOL
    assert hello.boot_id == deaf.link.boot_id
    assert hello.capability == deaf.capability
    assert hello.refusals == (Refusal.UNPLUGGED,)
    deaf.guard.leases = (HeldLease(LeaseId(7), (WorkUnitId(1),)),)
    await deaf.time.pass_ms(2_000)
    assert deaf.plane.all(wire.Hello)[1].held == deaf.guard.leases


async def test_hello_is_repeated_with_growing_pauses_until_the_welcome(deaf: Stage) -> None:
    began_ms = deaf.time.now_ms()
    await deaf.time.pass_ms(120_000)
    assert [at_ms - began_ms for at_ms in deaf.plane.times(wire.Hello)] == [
        0, 2_000, 6_000, 14_000, 30_000, 60_000, 90_000, 120_000,
    ]  # fmt: skip
    deaf.plane.welcome(deaf.link.boot_id)
    await deaf.time.pass_ms(600_000)
    assert len(deaf.plane.times(wire.Hello)) == 8
    assert not deaf.plane.all(wire.PermitReport)


async def test_boot_ids_differ_between_processes() -> None:
    assert Stage().link.boot_id != Stage().link.boot_id


async def test_the_guard_hears_of_the_welcome_and_from_when_it_counts(stage: Stage) -> None:
    (event,) = stage.of(ev.LinkWelcomed)
    (said_ms,) = stage.plane.times(wire.Hello)
    assert (event.epoch, event.sent_ms) == (1, said_ms)
    assert (event.lease_ms, event.margin_ms) == (LEASE_MS, MARGIN_MS)
    assert stage.link.epoch == 1
    (beat,) = stage.plane.all(wire.Heartbeat)
    assert (beat.epoch, beat.is_holding) == (1, False), "how often it will be heard from now on"


async def test_a_welcome_counts_from_the_earliest_hello_that_it_may_answer(deaf: Stage) -> None:
    began_ms = deaf.time.now_ms()
    await deaf.time.pass_ms(3_000)
    deaf.plane.welcome(deaf.link.boot_id)
    await deaf.time.settle()
    (event,) = deaf.of(ev.LinkWelcomed)
    assert event.sent_ms == began_ms
    (beat,) = deaf.plane.all(wire.Heartbeat)
    assert beat.sent_ms == deaf.time.now_ms(), "which a heartbeat makes good at once"
    (answered,) = deaf.of(ev.HeartbeatAnswered)
    assert answered.sent_ms == deaf.time.now_ms()


async def test_a_welcome_never_counts_from_long_ago(deaf: Stage) -> None:
    await deaf.time.pass_ms(HOUR_MS)
    deaf.plane.welcome(deaf.link.boot_id)
    await deaf.time.settle()
    (event,) = deaf.of(ev.LinkWelcomed)
    assert deaf.time.now_ms() - event.sent_ms <= HELLO_MS_MAX


async def test_a_car_that_refuses_speaks_rarely(stage: Stage) -> None:
    began_ms = stage.time.now_ms()
    await stage.time.pass_ms(HOUR_MS)
    times = stage.plane.times(wire.Heartbeat)
    assert [at_ms - began_ms for at_ms in times[:2]] == [0, BEAT_REFUSING_MS]
    assert len(times) == 1 + HOUR_MS // BEAT_REFUSING_MS
    assert len(stage.of(ev.HeartbeatAnswered)) == len(times)
    assert not any(beat.is_holding for beat in stage.plane.all(wire.Heartbeat))


async def test_a_permit_is_told_at_once_with_a_fresh_heartbeat(stage: Stage) -> None:
    await stage.time.pass_ms(30_000)
    stage.permit()
    await stage.time.settle()
    beat, report = (message for _, message in stage.plane.heard[-2:])
    assert isinstance(beat, wire.Heartbeat)
    assert (beat.sent_ms, beat.is_holding) == (stage.time.now_ms(), True)
    assert report == wire.PermitReport(Epoch(1), ())
    before = len(stage.plane.all(wire.Heartbeat))
    await stage.time.pass_ms(10 * BEAT_MS)
    assert len(stage.plane.all(wire.Heartbeat)) - before == 10


async def test_a_refusal_is_told_once(stage: Stage) -> None:
    stage.permit()
    stage.refuse(Refusal.DRIVER_PRESENT)
    stage.refuse(Refusal.DRIVER_PRESENT)
    await stage.time.settle()
    told = [report.refusals for report in stage.plane.all(wire.PermitReport)]
    assert told == [(), (Refusal.DRIVER_PRESENT,)]


async def test_what_changed_between_hello_and_welcome_is_told(deaf: Stage) -> None:
    deaf.permit()
    deaf.capability = Capability(("onnx",), 1_024, 2, (ModelId("m"),))
    deaf.link.report_capability()
    await deaf.time.settle()
    assert len(deaf.plane.heard) == 1
    deaf.plane.welcome(deaf.link.boot_id)
    await deaf.time.settle()
    assert deaf.plane.all(wire.PermitReport) == [wire.PermitReport(Epoch(1), ())]
    assert deaf.plane.all(wire.CapabilityReport) == [
        wire.CapabilityReport(Epoch(1), deaf.capability)
    ]


async def test_a_capability_is_reported_only_when_it_changed(stage: Stage) -> None:
    stage.link.report_capability()
    await stage.time.settle()
    assert not stage.plane.all(wire.CapabilityReport)


async def test_a_grant_becomes_an_event_and_its_inputs_are_kept_first(stage: Stage) -> None:
    stage.plane.say(wire.Grants(Epoch(1), (a_grant(5), a_grant(6, units=1))))
    await stage.time.settle()
    assert [grant.lease_id for grant in stage.grants] == [5, 6]
    five, six = stage.of(ev.LeaseGranted)
    assert (five.epoch, five.lease_id, five.model_id) == (1, 5, "m")
    assert five.units == (ev.LeasedUnit(WorkUnitId(0), 3), ev.LeasedUnit(WorkUnitId(1), 3))
    assert len(six.units) == 1


async def test_models_to_keep_become_an_event_and_their_places_are_known_first(
    stage: Stage,
) -> None:
    models = tuple(wire.KeptModel(ModelId(name), f"/models/{name}?s") for name in "abc")
    stage.plane.say(wire.KeepLoaded(Epoch(1), models))
    stage.plane.say(wire.KeepLoaded(Epoch(1), ()))
    await stage.time.settle()
    assert stage.kept == list(models)
    told = [(event.epoch, event.model_ids) for event in stage.of(ev.WarmModelsChanged)]
    assert told == [(1, ("a", "b", "c")), (1, ())]


async def test_more_models_than_a_car_can_have_are_not_kept(stage: Stage) -> None:
    models = tuple(wire.KeptModel(ModelId(f"{one}"), "/m") for one in range(KEPT_MODELS_MAX + 5))
    stage.plane.say(wire.KeepLoaded(Epoch(1), models))
    await stage.time.settle()
    (event,) = stage.of(ev.WarmModelsChanged)
    assert len(event.model_ids) == len(stage.kept) == KEPT_MODELS_MAX


async def test_a_failed_load_is_told_once_and_not_without_an_epoch(
    stage: Stage, deaf: Stage
) -> None:
    failed = (ModelId("m"), Failure.OUT_OF_MEMORY, "no room")
    for one in (stage, deaf):
        one.link.report_load_failure(*failed)
        await one.time.settle()
    assert stage.plane.all(wire.LoadFailed) == [wire.LoadFailed(Epoch(1), *failed)]
    assert deaf.plane.all(wire.LoadFailed) == []


async def test_orders_of_another_epoch_are_passed_over(stage: Stage) -> None:
    before = list(stage.events)
    for epoch in (Epoch(0), Epoch(2)):
        stage.plane.say(wire.KeepLoaded(epoch, (wire.KeptModel(ModelId("m"), "/m"),)))
        stage.plane.say(wire.Grants(epoch, (a_grant(5),)))
        stage.plane.say(wire.Revoke(epoch, (LeaseId(5),), LeaseEnding.OVERDUE))
        stage.plane.say(wire.HeartbeatAnswer(epoch, stage.time.now_ms()))
    stage.plane.say(wire.Fenced(Epoch(2), "epoch_over"))
    await stage.time.settle()
    assert stage.events == before
    assert not stage.grants
    assert not stage.kept
    assert stage.link.epoch == 1


async def test_an_answer_from_the_future_renews_nothing(stage: Stage) -> None:
    stage.plane.say(wire.HeartbeatAnswer(Epoch(1), stage.time.now_ms() + 1))
    await stage.time.settle()
    assert [event.sent_ms for event in stage.of(ev.HeartbeatAnswered)] == [stage.time.now_ms()]


async def test_a_grant_on_an_old_heartbeat_brings_a_fresh_one(stage: Stage) -> None:
    stage.plane.say(wire.Grants(Epoch(1), (a_grant(5),)))
    await stage.time.settle()
    assert len(stage.plane.all(wire.Heartbeat)) == 1
    await stage.time.pass_ms(LEASE_MS // 2 + 1_000)
    stage.plane.say(wire.Grants(Epoch(1), (a_grant(6), a_grant(7))))
    stage.plane.say(wire.Grants(Epoch(1), (a_grant(8),)))
    await stage.time.settle()
    assert len(stage.plane.all(wire.Heartbeat)) == 2


async def test_revocations_and_acknowledgements_become_events(stage: Stage) -> None:
    leases = (LeaseId(5), LeaseId(6))
    stage.plane.say(wire.Revoke(Epoch(1), leases, LeaseEnding.BATCH_CANCELLED))
    stage.plane.say(wire.Acknowledge(((LeaseId(7), ReceiptId(1)), (LeaseId(8), WHOLE_LEASE))))
    await stage.time.settle()
    revoked = [(event.lease_id, event.ending) for event in stage.of(ev.LeaseRevoked)]
    assert revoked == [(5, LeaseEnding.BATCH_CANCELLED), (6, LeaseEnding.BATCH_CANCELLED)]
    (acknowledged,) = stage.of(ev.ReceiptsAcknowledged)
    assert acknowledged.receipts == ((7, 1), (8, WHOLE_LEASE))


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x91\xa7Unknown", b"\x93\xa6Fenced\xa1x\x01", b"\x00" * 1_000]
)
async def test_what_can_not_be_decoded_is_dropped(stage: Stage, body: bytes) -> None:
    before = list(stage.events)
    with capture_logs() as lines:
        stage.plane.say(body)
        await stage.time.settle()
    assert stage.events == before
    assert [line["event"] for line in lines] == ["message_undecodable"]


async def test_receipts_of_one_group_travel_together(stage: Stage) -> None:
    stage.link.hand_in([a_receipt(lease) for lease in range(500)])
    await stage.time.settle()
    (message,) = stage.plane.all(wire.Receipts)
    assert (message.epoch, len(message.receipts)) == (1, 500)


async def test_receipts_are_split_before_the_greatest_message(stage: Stage) -> None:
    large = b"x" * wire.INLINE_BYTES_MAX
    stage.link.hand_in([a_receipt(lease, payload=large) for lease in range(300)])
    await stage.time.settle()
    messages = stage.plane.all(wire.Receipts)
    assert keys(stage) == list(range(300))
    assert len(messages) == 3
    assert all(len(wire.ENCODER.encode(one)) <= wire.MESSAGE_BYTES_MAX for one in messages)


@given(
    st.lists(st.tuples(st.integers(0, 3 * 1024 * 1024), st.integers(0, 5_000)), max_size=12),
    st.integers(0, 2),
)
def test_batches_keep_all_receipts_in_order_and_within_the_bound(
    sizes: list[tuple[int, int]], failures: int
) -> None:
    receipts = [
        a_receipt(lease, b"x" * size, results) for lease, (size, results) in enumerate(sizes)
    ]
    failed = wire.Receipt(LeaseId(0), RECEIPT, Failure.INPUT_UNAVAILABLE, detail="\U0001f697" * 500)
    receipts += [failed] * failures * 2_500
    batches = list(in_batches(receipts))
    assert [receipt for batch in batches for receipt in batch] == receipts
    for batch in batches:
        assert len(wire.ENCODER.encode(wire.Receipts(Epoch(1), batch))) <= wire.MESSAGE_BYTES_MAX


async def test_receipts_go_out_again_until_they_are_forgotten(stage: Stage) -> None:
    stage.link.hand_in([a_receipt(1)])
    await stage.time.pass_ms(4_000)
    stage.link.hand_in([a_receipt(2)])
    await stage.time.pass_ms(6_000)
    assert keys(stage) == [1, 2, 1]
    await stage.time.pass_ms(4_000)
    assert keys(stage) == [1, 2, 1, 2]
    stage.link.forget([(LeaseId(1), RECEIPT), (LeaseId(3), RECEIPT)])
    await stage.time.pass_ms(10_000)
    assert keys(stage) == [1, 2, 1, 2, 2]
    stage.link.forget([(LeaseId(2), RECEIPT)])
    await stage.time.pass_ms(HOUR_MS)
    assert len(keys(stage)) == 5
    assert stage.link.receipts_waiting == 0


async def test_receipts_of_a_lease_are_forgotten_each_by_its_name(stage: Stage) -> None:
    names = [RECEIPT, ReceiptId(2), WHOLE_LEASE]
    stage.link.hand_in([wire.Receipt(LeaseId(1), name, payload=b"x") for name in names])
    stage.link.forget([(LeaseId(1), ReceiptId(2)), (LeaseId(2), WHOLE_LEASE)])
    assert stage.link.receipts_waiting == 2
    await stage.time.pass_ms(10_000)
    (_, again) = stage.plane.all(wire.Receipts)
    assert [receipt.receipt_id for receipt in again.receipts] == [RECEIPT, WHOLE_LEASE]


async def test_receipts_wait_for_a_welcome_and_go_out_with_it(deaf: Stage) -> None:
    deaf.link.hand_in([a_receipt(1), a_receipt(2)])
    await deaf.time.pass_ms(60_000)
    assert not deaf.plane.all(wire.Receipts)
    deaf.plane.welcome(deaf.link.boot_id)
    await deaf.time.settle()
    assert keys(deaf) == [1, 2]


async def test_after_a_lost_connection_comes_a_hello_with_the_same_boot_id(stage: Stage) -> None:
    stage.link.hand_in([a_receipt(1)])
    stage.broker.cut(stage.bus)
    await stage.time.pass_ms(5_000)
    assert stage.link.epoch == 0
    assert not stage.link.is_connected
    stage.link.hand_in([a_receipt(2)])
    stage.broker.mend(stage.bus)
    await stage.time.settle()
    first, second = stage.plane.all(wire.Hello)
    assert first.boot_id == second.boot_id
    assert stage.link.epoch == 2
    assert keys(stage) == [1, 1, 2], "what is not acknowledged goes out again"


async def test_a_control_plane_that_forgot_us_gets_a_hello(stage: Stage) -> None:
    stage.permit()
    await stage.time.pass_ms(BEAT_MS)
    stage.plane.answers_beats = False
    await stage.time.pass_ms(LEASE_MS + 4 * BEAT_MS)
    assert len(stage.plane.all(wire.Hello)) == 2
    assert stage.link.epoch == 2


async def test_rare_heartbeats_are_no_silence(stage: Stage) -> None:
    await stage.time.pass_ms(BEAT_REFUSING_MS - 1_000)
    stage.permit()
    await stage.time.pass_ms(HOUR_MS)
    assert len(stage.plane.all(wire.Hello)) == 1


async def test_a_hello_that_is_wanted_leaves_the_epoch_standing(stage: Stage) -> None:
    stage.permit()
    stage.plane.answers_hello = False
    stage.plane.say(wire.HelloWanted())
    await stage.time.pass_ms(1_000)
    assert len(stage.plane.all(wire.Hello)) == 2
    assert stage.link.epoch == 1
    await stage.time.pass_ms(2 * BEAT_MS)
    assert stage.plane.times(wire.Heartbeat)[-1] > stage.plane.times(wire.Hello)[-1] - BEAT_MS
    stage.plane.welcome(stage.link.boot_id)
    await stage.time.settle()
    assert stage.link.epoch == 2
    hellos = len(stage.plane.all(wire.Hello))
    await stage.time.pass_ms(HOUR_MS)
    assert len(stage.plane.all(wire.Hello)) == hellos


@pytest.mark.parametrize("epoch", [Epoch(0), Epoch(1)])
async def test_a_fence_ends_the_epoch(stage: Stage, epoch: Epoch) -> None:
    stage.plane.answers_hello = False
    stage.plane.say(wire.Fenced(epoch, "epoch_over"))
    await stage.time.settle()
    assert [event.epoch for event in stage.of(ev.LinkFenced)] == [epoch]
    assert stage.link.epoch == 0
    await stage.time.pass_ms(1_900)
    assert len(stage.plane.all(wire.Hello)) == 1, "it comes back after a pause"
    await stage.time.pass_ms(200)
    assert len(stage.plane.all(wire.Hello)) == 2


async def test_fences_are_answered_ever_later(stage: Stage) -> None:
    began_ms = stage.time.now_ms()
    stage.plane.answers_hello = False
    for _ in range(10):
        hellos = len(stage.plane.all(wire.Hello))
        stage.plane.say(wire.Fenced(Epoch(0), "vehicle_unknown"))
        while len(stage.plane.all(wire.Hello)) == hellos:
            await stage.time.pass_ms(500)
    times = [at_ms - began_ms for at_ms in stage.plane.times(wire.Hello)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[:4] == [2_000, 4_000, 8_000, 16_000]
    assert pauses[-1] == 300_000


async def test_a_lost_connection_does_not_shorten_the_pause_after_a_fence(stage: Stage) -> None:
    stage.plane.answers_hello = False
    for _ in range(8):
        stage.plane.say(wire.Fenced(Epoch(0), "vehicle_unknown"))
        await stage.time.settle()
    stage.broker.cut(stage.bus)
    stage.broker.mend(stage.bus)
    await stage.time.pass_ms(100_000)
    assert len(stage.plane.all(wire.Hello)) == 1


async def test_another_agent_with_this_identity_is_named(stage: Stage) -> None:
    with capture_logs() as lines:
        stage.plane.say(wire.Fenced(Epoch(1), "epoch_over"))
        stage.plane.welcome("another-boot")
        await stage.time.settle()
    assert "identity_used_elsewhere" in [line["event"] for line in lines]
    assert stage.link.epoch == 0
    await stage.time.pass_ms(55_000)
    assert len(stage.plane.all(wire.Hello)) == 1, "it gives way for a while"
    await stage.time.pass_ms(10_000)
    assert len(stage.plane.all(wire.Hello)) == 2


async def test_a_protocol_that_is_not_spoken_says_update(stage: Stage) -> None:
    with capture_logs() as lines:
        stage.plane.say(wire.Fenced(Epoch(0), "protocol_unsupported"))
        await stage.time.settle()
    assert "update the agent" in lines[0]["advice"]


async def test_a_cut_closes_the_connection_for_its_time(stage: Stage) -> None:
    stage.link.cut(10_000)
    await stage.time.settle()
    assert not stage.link.is_connected
    assert len(stage.buses) == 1
    await stage.time.pass_ms(9_900)
    assert len(stage.buses) == 1
    await stage.time.pass_ms(200)
    assert len(stage.buses) == 2
    assert stage.link.epoch == 2


async def test_a_refused_credential_is_told_and_tried_again() -> None:
    stage = Stage()
    stage.connect_errors = [BusRefused("expired"), BusUnavailable("gone"), BusUnavailable("gone")]
    async with stage.open():
        await stage.time.pass_ms(10_000)
        assert stage.refused == 1
        assert stage.link.epoch == 1


async def test_goodbye_is_the_last_word(stage: Stage) -> None:
    stage.link.say_goodbye()
    stage.link.hand_in([a_receipt(1)])
    stage.permit()
    await stage.time.settle()
    assert stage.plane.heard[-1][1] == wire.Goodbye(Epoch(1))


async def test_the_link_keeps_within_its_own_subjects(stage: Stage) -> None:
    stage.permit()
    await stage.time.pass_ms(60_000)
    assert not stage.bus.refusals
    assert wire.up_subject(VEHICLE) == f"v.{VEHICLE}.up"


def test_messages_survive_their_codec() -> None:
    message = wire.Receipts(Epoch(3), (a_receipt(1),))
    assert wire.FROM_VEHICLE_DECODER.decode(wire.ENCODER.encode(message)) == message
    assert isinstance(msgspec.msgpack.decode(wire.ENCODER.encode(message)), list)
