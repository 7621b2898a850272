"""The guard and its link: leases that end by themselves, fences, hellos, restarts."""

from terafleet.core import guard_effects as fx
from terafleet.core import guard_events as ev
from terafleet.core.events import HeldLease
from terafleet.core.guard_effects import GuardState
from terafleet.core.guard_receipts import receipt_of_ending
from terafleet.core.ids import Epoch, LeaseId
from terafleet.core.policy import OwnerPolicy, YieldPolicy
from terafleet.core.reasons import LeaseEnding
from tests.core.guard_world import LEASE_MS, MARGIN_MS, CarWorld, endings, state_of, unit

# The link.


def test_leases_end_by_themselves_without_a_heartbeat() -> None:
    world = CarWorld(policy=OwnerPolicy(giving_back=YieldPolicy(settle_ms=0, stale_ms=10**9)))
    lease_id = world.work()
    began_ms = world.now_ms
    assert world.guard.leases_end_ms == began_ms + LEASE_MS - MARGIN_MS
    world.tick(LEASE_MS - MARGIN_MS - 1)
    assert world.running
    world.tick(1)
    assert not world.running
    assert endings(world) == [(lease_id, LeaseEnding.LINK_SILENT)]
    assert state_of(world) is GuardState.PERMITTING, "a dead link is no harm to the owner"


def test_an_answered_heartbeat_renews_from_when_it_was_sent() -> None:
    world = CarWorld(policy=OwnerPolicy(giving_back=YieldPolicy(settle_ms=0, stale_ms=10**9)))
    world.work()
    began_ms = world.now_ms
    world.tick(10_000)
    world.heartbeat(ago_ms=3_000)
    assert world.guard.leases_end_ms == began_ms + 7_000 + LEASE_MS - MARGIN_MS
    world.heartbeat(ago_ms=9_000)
    assert world.guard.leases_end_ms == began_ms + 7_000 + LEASE_MS - MARGIN_MS, "never back"
    world.heartbeat(epoch=7)
    assert world.guard.leases_end_ms == began_ms + 7_000 + LEASE_MS - MARGIN_MS


def test_what_is_granted_over_a_silent_link_does_not_begin() -> None:
    world = CarWorld(policy=OwnerPolicy(giving_back=YieldPolicy(settle_ms=0, stale_ms=10**9)))
    world.work()
    world.finish()
    world.tick(LEASE_MS)
    world.grant()
    assert not world.running
    world.heartbeat()
    assert world.running


def test_a_fenced_car_drops_everything_and_hands_nothing_in_for_it() -> None:
    world = CarWorld()
    lease_id = world.work(units=2)
    world.finish()
    world.happen(ev.LinkFenced(world.now_ms, world.guard.epoch))
    assert world.said(fx.StopAttempts) == [fx.StopAttempts(lease_id)]
    assert world.said(fx.SendReceipt) == []
    assert world.guard.epoch == 0
    assert world.guard.lease_ids == ()
    assert len(world.guard.receipts()) == 1, "what is handed in stays until it is acknowledged"


def test_a_fence_of_another_epoch_is_not_meant_for_this_one() -> None:
    world = CarWorld()
    world.work()
    assert world.happen(ev.LinkFenced(world.now_ms, Epoch(7))) == []
    assert world.running
    world.happen(ev.LinkFenced(world.now_ms, Epoch(0)))
    assert not world.running, "0 is meant for every epoch"


def test_leases_go_on_in_another_epoch() -> None:
    world = CarWorld()
    world.work()
    world.welcome(epoch=2)
    assert world.guard.epoch == 2
    assert world.running


def test_a_hello_tells_what_is_not_acknowledged_and_what_is_still_open() -> None:
    world = CarWorld()
    lease_id, other = world.work(units=5), world.grant(units=2)
    units = tuple(unit(lease_id, at) for at in range(5))
    waiting = HeldLease(other, (unit(other), unit(other, 1)))
    world.finish(2)
    world.break_attempt()
    assert world.guard.held() == (HeldLease(lease_id, units), waiting)
    world.acknowledge()
    assert world.guard.held() == (HeldLease(lease_id, units[2:]), waiting)
    world.acknowledge()
    assert world.guard.held() == (HeldLease(lease_id, units[3:]), waiting)
    world.finish()
    world.read(is_driver_present=True)
    assert world.guard.held() == (HeldLease(lease_id, units[3:4]),), "what is open is given back"
    world.acknowledge()
    assert world.guard.held() == (), "a lease that is given back is not held"


def test_without_an_epoch_nothing_is_granted_and_nothing_renewed() -> None:
    world = CarWorld()
    world.work()
    world.happen(ev.LinkFenced(world.now_ms, world.guard.epoch))
    world.heartbeat(epoch=0)
    assert world.guard.leases_end_ms == 0
    world.grant(epoch=0)
    assert world.effects == []
    assert world.guard.lease_ids == ()


# A restart of the agent.


def test_a_restart_gives_leases_back_and_sends_receipts_again() -> None:
    world = CarWorld(slots=2)
    first, second = world.work(units=2), world.grant()
    world.finish()
    before = world.guard.receipts()
    world.restart()
    assert world.said(fx.SendReceipt)[:1] == before
    assert endings(world) == [
        (first, LeaseEnding.AGENT_RESTARTED),
        (second, LeaseEnding.AGENT_RESTARTED),
    ]
    assert world.guard.lease_ids == ()
    assert world.guard.epoch == 0
    assert not world.said(fx.StopAttempts), "what ran before runs no more"


def test_a_second_restart_sends_what_the_first_could_not() -> None:
    world = CarWorld()
    lease_id = world.work()
    world.restart()
    world.restart()
    assert endings(world) == [(lease_id, LeaseEnding.AGENT_RESTARTED)]
    world.acknowledge()
    world.restart()
    assert world.said(fx.SendReceipt) == []


def test_a_receipt_leaves_only_after_its_commit_and_the_owner_waits_for_nothing() -> None:
    receipt = receipt_of_ending(LeaseId(1), LeaseEnding.AGENT_RESTARTED, "")
    assert receipt.when == "commit"
    waits_for_nothing = (
        fx.SuspendRuntime(),
        fx.StopAttempts(LeaseId(1)),
        fx.KillRuntime(),
        fx.ForgetLease(LeaseId(1)),
        fx.ForgetReceipts(()),
    )
    assert {effect.when for effect in waits_for_nothing} == {"now"}
