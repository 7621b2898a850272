"""The guard's runs and receipts: what starts, what a broken attempt ends, what is handed in."""

from collections.abc import Callable

import msgspec
import pytest

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.events import HeldLease
from terafleet.core.guard import Guard
from terafleet.core.ids import SESSION_UNIT, WHOLE_LEASE, LeaseId, ModelId, ReceiptId, WorkUnitId
from terafleet.core.reasons import Failure, LeaseEnding
from tests.core.guard_world import (
    DIGEST,
    ENDPOINT,
    MODEL,
    POLICY,
    CarWorld,
    ReceiptName,
    endings,
    name_of,
    result_of,
    unit,
)

OTHER_MODEL = ModelId("other")


def units_of_lease(lease_id: LeaseId, *ats: int) -> tuple[WorkUnitId, ...]:
    """The numbers of some of a lease's units."""
    return tuple(unit(lease_id, at) for at in ats)


def names(*receipts: tuple[LeaseId, WorkUnitId | ReceiptId]) -> tuple[ReceiptName, ...]:
    """Receipts by lease and first unit."""
    return tuple((lease_id, ReceiptId(unit_id)) for lease_id, unit_id in receipts)


def started(world: CarWorld) -> list[tuple[LeaseId, tuple[WorkUnitId, ...]]]:
    """The runs that the last event began."""
    return [(one.lease_id, one.unit_ids) for one in world.said(fx.StartAttempts)]


# Runs.


def test_all_units_of_a_lease_start_at_once_and_in_their_order() -> None:
    world = CarWorld(slots=2)
    first = world.work(units=4)
    assert started(world) == [(first, units_of_lease(first, 0, 1, 2, 3))]
    second = world.grant(units=2)
    assert world.effects == [
        fx.StartAttempts(second, units_of_lease(second, 0, 1), MODEL, ENDPOINT)
    ]


def test_a_run_goes_on_while_its_results_are_told() -> None:
    world = CarWorld()
    lease_id = world.work(units=4)
    for units, left in ((1, 3), (2, 1), (1, 0)):
        world.finish(units)
        assert len(world.said(fx.SendReceipt)) == 1
        assert started(world) == []
        assert world.guard.running == (left > 0)
        assert world.guard.lease_ids == ((lease_id,) if left else ())
    assert [len(receipt.results) for receipt in world.guard.receipts()] == [1, 2, 1]
    assert [name_of(receipt) for receipt in world.guard.receipts()] == list(
        names(*((lease_id, unit(lease_id, at)) for at in (0, 1, 3)))
    )


def test_results_may_come_in_another_order() -> None:
    world = CarWorld()
    lease_id = world.work(units=3)
    told = units_of_lease(lease_id, 2, 0)
    results = tuple(map(result_of, told))
    effects = world.guard.handle(
        ev.AttemptsFinished(world.now_ms, lease_id, results, DIGEST, b"parcel")
    )
    (receipt,) = effects
    assert isinstance(receipt, fx.SendReceipt)
    assert name_of(receipt) == (lease_id, ReceiptId(told[0]))
    assert world.guard.held() == (HeldLease(lease_id, (*told, unit(lease_id, 1))),)
    broke = ev.AttemptBroke(world.now_ms, lease_id, unit(lease_id, 1), Failure.STOPPED, "", 0)
    assert fx.ForgetLease(lease_id) in world.guard.handle(broke)


def test_a_broken_attempt_ends_the_run_and_the_rest_is_started_again() -> None:
    world = CarWorld()
    lease_id = world.work(units=4)
    world.finish()
    world.break_attempt()
    (receipt,) = world.said(fx.SendReceipt)
    assert name_of(receipt) == (lease_id, ReceiptId(unit(lease_id, 1)))
    assert (receipt.failure, receipt.detail) == (Failure.RUNTIME_CRASHED, "why")
    assert (receipt.energy_mwh, receipt.results) == (1, ())
    assert started(world) == [(lease_id, units_of_lease(lease_id, 2, 3))]
    assert world.guard.running == 1


def test_a_broken_attempt_that_was_the_last_ends_the_lease() -> None:
    world = CarWorld()
    lease_id, other = world.work(units=2), world.grant()
    world.finish()
    world.break_attempt()
    kinds = [type(effect) for effect in world.effects]
    assert kinds == [fx.ForgetLease, fx.SendReceipt, fx.StartAttempts]
    assert world.guard.lease_ids == (other,)
    assert world.guard.held() == (
        HeldLease(lease_id, units_of_lease(lease_id, 0, 1)),
        HeldLease(other, (unit(other),)),
    )


def test_what_is_left_of_a_run_waits_behind_leases_that_were_granted_before() -> None:
    world = CarWorld()
    world.welcome()
    world.permit()
    first, second = world.grant(2, model_id=OTHER_MODEL), world.grant(3)
    world.model_ready(MODEL)
    world.model_ready(OTHER_MODEL)
    assert list(world.running) == [second]
    world.break_attempt()
    assert started(world) == [(first, units_of_lease(first, 0, 1))]
    world.break_attempt()
    assert started(world) == [(first, units_of_lease(first, 1))], "it was granted first"
    world.finish()
    assert started(world) == [(second, units_of_lease(second, 1, 2))]


def test_what_is_left_of_a_run_goes_before_leases_that_were_granted_later() -> None:
    world = CarWorld(slots=2)
    first, second, third = world.work(3), world.grant(3), world.grant(1)
    world.break_attempt(at=1)
    assert started(world) == [(second, units_of_lease(second, 1, 2))]
    world.break_attempt(at=0)
    assert started(world) == [(first, units_of_lease(first, 1, 2))]
    assert third not in world.running


def test_what_is_left_of_a_run_waits_for_its_model_and_blocks_nobody() -> None:
    world = CarWorld()
    world.welcome()
    world.permit()
    first, second = world.grant(2), world.grant(2, model_id=OTHER_MODEL)
    world.model_ready()
    world.happen(ev.RuntimeExited(world.now_ms, "signal 9"))
    assert world.said(fx.PrepareModel) == [fx.PrepareModel(MODEL), fx.PrepareModel(OTHER_MODEL)]
    world.break_attempt()
    assert not world.running
    world.model_ready(OTHER_MODEL)
    assert started(world) == [(second, units_of_lease(second, 0, 1))]
    world.model_ready(MODEL)
    world.finish(2)
    assert started(world) == [(first, units_of_lease(first, 1))]


def test_a_lease_is_stopped_once_however_much_of_it_is_open() -> None:
    world = CarWorld()
    lease_id, other = world.work(units=5), world.grant(units=2)
    world.finish(2)
    world.read(is_driver_present=True)
    assert world.said(fx.StopAttempts) == [fx.StopAttempts(lease_id)]
    assert [one for one, _ in endings(world)] == [lease_id, other]


# Results.


def test_a_receipt_holds_the_results_and_the_parcel_as_they_were_told() -> None:
    world = CarWorld()
    lease_id = world.work(units=3)
    told = units_of_lease(lease_id, 0, 1)
    results = tuple(
        msgspec.structs.replace(result_of(unit_id), answers_failed=1, energy_mwh=7)
        for unit_id in told
    )
    parcel = bytes(range(256))
    event = ev.AttemptsFinished(world.now_ms, lease_id, results, DIGEST, parcel)
    (receipt,) = world.guard.handle(event)
    assert isinstance(receipt, fx.SendReceipt)
    assert receipt.asked_micro > 0
    told_as = (ReceiptId(told[0]), None, None, "", 0, results, DIGEST, parcel)
    assert receipt == fx.SendReceipt(lease_id, *told_as, receipt.asked_micro)


def test_a_large_output_comes_alone_and_without_a_parcel() -> None:
    world = CarWorld()
    lease_id = world.work(units=2)
    world.finish(is_large=True)
    (receipt,) = world.said(fx.SendReceipt)
    assert (receipt.digest, receipt.parcel) == (DIGEST, b"")
    assert receipt.results == (result_of(unit(lease_id)),)


def revoked(world: CarWorld, lease_id: LeaseId) -> None:
    """The control plane ends the lease."""
    world.happen(ev.LeaseRevoked(world.now_ms, lease_id, LeaseEnding.OVERDUE))


def fenced(world: CarWorld, _: LeaseId) -> None:
    """The epoch is over."""
    world.happen(ev.LinkFenced(world.now_ms, world.guard.epoch))


def given_back(world: CarWorld, _: LeaseId) -> None:
    """The owner has come."""
    world.read(is_driver_present=True)


def silent(world: CarWorld, _: LeaseId) -> None:
    """The link is dead for so long that the lease has ended by itself."""
    world.now_ms = world.guard.leases_end_ms
    world.happen(ev.GuardTimeAdvanced(world.now_ms))


def unavailable(world: CarWorld, _: LeaseId) -> None:
    """The model has gone."""
    event = ev.ModelUnavailable(world.now_ms, MODEL, Failure.MODEL_UNAVAILABLE, "why")
    world.happen(event)


@pytest.mark.parametrize("go", [revoked, fenced, given_back, silent, unavailable])
@pytest.mark.parametrize("ready", [0, 1, 2])
def test_results_of_a_lease_that_has_gone_are_forgotten(
    go: Callable[[CarWorld, LeaseId], None], ready: int
) -> None:
    patient = msgspec.structs.replace(POLICY.giving_back, stale_ms=10**9)
    world = CarWorld(policy=msgspec.structs.replace(POLICY, giving_back=patient))
    lease_id = world.work(units=4)
    world.finish()
    go(world, lease_id)
    assert world.said(fx.StopAttempts) == [fx.StopAttempts(lease_id)]
    kept = world.guard.receipts()
    world.end_stopped(told=ready)
    assert world.forgotten == list(names((lease_id, unit(lease_id, 1))))[:ready]
    assert world.guard.receipts() == kept


def test_results_of_a_process_that_has_ended_are_forgotten() -> None:
    world = CarWorld()
    lease_id = world.work(units=3)
    world.restart()
    world.tell(lease_id, units_of_lease(lease_id, 0, 1))
    assert world.effects == [fx.ForgetReceipts(names((lease_id, unit(lease_id))))]


def test_results_with_a_unit_that_is_not_open_are_forgotten_as_a_whole() -> None:
    world = CarWorld()
    lease_id = world.work(units=3)
    world.break_attempt()
    world.tell(lease_id, units_of_lease(lease_id, 1, 0))
    assert world.effects == [fx.ForgetReceipts(names((lease_id, unit(lease_id, 1))))]
    world.tell(lease_id, [unit(lease_id, 1), unit(LeaseId(77))])
    assert world.effects == [fx.ForgetReceipts(names((lease_id, unit(lease_id, 1))))]
    world.finish(2)
    assert world.guard.lease_ids == ()


def test_results_of_a_lease_that_is_on_no_slot_are_forgotten() -> None:
    world = CarWorld()
    _, waiting = world.work(units=1), world.grant(units=2)
    world.tell(waiting, units_of_lease(waiting, 0, 1))
    assert world.effects == [fx.ForgetReceipts(names((waiting, unit(waiting))))]
    assert waiting in world.guard.lease_ids


def test_what_a_lease_took_that_was_replaced_is_asked_for_with_a_later_one() -> None:
    world = CarWorld()
    lease_id = world.work()
    world.tick(2_000)
    units = (ev.LeasedUnit(SESSION_UNIT, 1),)
    world.granted.pop(lease_id)
    session = LeaseId(77)
    grant = (session, MODEL, ENDPOINT, units, lease_id)
    world.happen(ev.LeaseGranted(world.now_ms, world.guard.epoch, *grant))
    world.tick(1_000)
    world.finish()
    (receipt,) = world.said(fx.SendReceipt)
    world.grant()
    world.tick(1_000)
    world.finish()
    (later,) = world.said(fx.SendReceipt)
    assert receipt.lease_id == session
    assert receipt.asked_micro > 2 * later.asked_micro, "3 s of work and 1 s"


# Acknowledgements.


def test_receipts_that_are_acknowledged_together_are_forgotten_together() -> None:
    world = CarWorld()
    lease_id = world.work(units=6)
    world.finish(2)
    world.break_attempt()
    world.finish(2)
    world.read(is_driver_present=True)
    receipts = [name_of(receipt) for receipt in world.guard.receipts()]
    assert receipts == [(lease_id, unit(lease_id, at)) for at in (0, 2, 3)] + [
        (lease_id, WHOLE_LEASE)
    ]
    first, broken, second, ending = receipts
    world.confirm(ending, first, broken)
    assert world.effects == [fx.ForgetReceipts((ending, first, broken))]
    assert [name_of(receipt) for receipt in world.guard.receipts()] == [second]


def test_a_receipt_is_forgotten_once_and_by_its_own_name_only() -> None:
    world = CarWorld()
    lease_id = world.work(units=3)
    world.finish(2)
    name, other = names((lease_id, unit(lease_id)), (lease_id, unit(lease_id, 1)))
    for unknown in (other, (lease_id, WHOLE_LEASE), (LeaseId(77), name[1])):
        world.happen(ev.ReceiptsAcknowledged(world.now_ms, (unknown,)))
        assert world.effects == []
    world.happen(ev.ReceiptsAcknowledged(world.now_ms, (name, other, name)))
    assert world.effects == [fx.ForgetReceipts((name,))]
    world.happen(ev.ReceiptsAcknowledged(world.now_ms, (name,)))
    assert world.effects == []
    world.happen(ev.ReceiptsAcknowledged(world.now_ms, ()))
    assert world.effects == []


# A restart of the agent.


@pytest.mark.parametrize("from_snapshot", [False, True])
def test_a_restart_hands_in_again_what_is_not_acknowledged(from_snapshot: bool) -> None:
    world = CarWorld(slots=2)
    first, second = world.work(units=5), world.grant(units=4)
    world.finish(2)
    world.finish(is_large=True)
    world.finish(3, at=1)
    world.break_attempt()
    world.confirm(*names((first, unit(first, 2))))
    receipts = world.guard.receipts()
    assert [len(receipt.results) for receipt in receipts] == [2, 3, 0]
    world.restart(from_snapshot=from_snapshot)
    assert world.said(fx.SendReceipt)[:3] == receipts, "parcels and all, in their order"
    ending = LeaseEnding.AGENT_RESTARTED
    assert endings(world) == [(first, ending), (second, ending)]
    assert world.guard.held() == (
        HeldLease(first, units_of_lease(first, 0, 1, 3)),
        HeldLease(second, units_of_lease(second, 0, 1, 2)),
    )
    assert not world.said(fx.StopAttempts), "what ran before runs no more"


def test_a_snapshot_is_the_same_after_it_was_read() -> None:
    world = CarWorld()
    world.work(units=4)
    world.finish(2)
    world.break_attempt()
    again = Guard(world.guard.snapshot())
    assert again.snapshot() == world.guard.snapshot()
    assert again.receipts() == world.guard.receipts()
    assert again.lease_ids == world.guard.lease_ids
