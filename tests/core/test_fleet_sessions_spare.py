"""Sessions that take only what is spare, as canaries do: they take nothing from anybody."""

import pytest

from terafleet.core import effects as fx
from terafleet.core import events as ev
from terafleet.core.ids import LeaseId, SessionId
from terafleet.core.reasons import Refusal, Refused
from tests.core.fleet_sessions_world import CHAT, Seen, SessionsWorld, Wish, seen
from tests.core.fleet_world import LARGE_MODEL, MODEL, Car, memory

LOADED = (MODEL.model_id,)


def spare_fleet(slots: int = 1) -> tuple[SessionsWorld, Car]:
    """One car with the model in memory."""
    world = SessionsWorld()
    car = world.enrol("car", slots)
    world.offer(car, models=LOADED, loaded=LOADED)
    return world, car


def canary(world: SessionsWorld, name: str = "canary", *excluded: Car) -> Wish:
    """A question for a spare slot."""
    return world.want(name, *excluded, tokens=1, only_spare=True)


def reason(wish: Wish) -> tuple[Refused, int]:
    """Why it got nothing, and when it may come again."""
    assert wish.refused is not None
    return wish.refused.refused, wish.refused.retry_after_ms


def test_a_free_slot_with_the_model_in_memory_is_granted_at_once() -> None:
    world, car = spare_fleet()
    wish = canary(world)
    assert (seen(wish), wish.vehicle_id) == (Seen.GRANTED, car.vehicle_id)
    (grant,) = world.said(fx.GrantSession)
    assert not grant.replaces


@pytest.mark.parametrize("models", [(), LOADED])
def test_nothing_is_loaded_for_it(models: tuple[str, ...]) -> None:
    world = SessionsWorld()
    car = world.enrol("car")
    world.offer(car, models=LOADED if models else (), loaded=())
    assert reason(canary(world)) == (Refused.NO_SLOT_SPARE, 0)
    assert not world.leases(car)


def test_it_neither_preempts_nor_waits() -> None:
    world, car = spare_fleet()
    world.batch("batch", 1)
    assert reason(canary(world)) == (Refused.NO_SLOT_SPARE, 0)
    world.want("live")
    assert reason(canary(world, "second")) == (Refused.NO_SLOT_SPARE, 0)
    assert len(world.leases(car)) == 1
    assert not world.fleet.state.queued_sessions


def test_what_a_waiting_session_or_unit_could_have_is_not_spare() -> None:
    world, car = spare_fleet()
    first = world.want("first")
    waiting = world.want("waiting", tokens=10)
    asked = world.asked("canary", tokens=1, only_spare=True)
    world.happen(world.answered(first.lease_id, first.vehicle_id), asked)
    assert seen(waiting) is Seen.GRANTED
    assert reason(world.wishes[SessionId("canary")]) == (Refused.NO_SLOT_SPARE, 0)
    world.batch("batch", 1)
    asked = world.asked("canary", tokens=1, only_spare=True)
    world.happen(asked, world.answered(waiting.lease_id, waiting.vehicle_id))
    assert reason(world.wishes[SessionId("canary")]) == (Refused.NO_SLOT_SPARE, 0)
    assert [lease.session for lease in world.leases(car)] == [None]


def test_a_session_of_the_same_group_goes_first_in_any_order() -> None:
    world, _ = spare_fleet()
    spare = world.asked("canary", tokens=1, only_spare=True)
    world.happen(spare, world.asked("live"))
    assert world.wishes[SessionId("live")].seen is Seen.GRANTED
    assert reason(world.wishes[SessionId("canary")]) == (Refused.NO_SLOT_SPARE, 0)


def test_other_models_may_wait_meanwhile() -> None:
    world, car = spare_fleet()
    other = world.enrol("other", 1, "llama")
    world.want("large", model=LARGE_MODEL)
    world.want("large-waits", model=LARGE_MODEL, tokens=10)
    assert len(world.leases(other)) == 1
    assert canary(world).vehicle_id == car.vehicle_id


def test_asking_twice_and_leaving_are_as_with_any_session() -> None:
    world, car = spare_fleet(2)
    asks = [world.asked("canary", tokens=1, only_spare=True) for _ in range(2)]
    world.happen(*asks)
    assert len(world.leases(car)) == 1
    assert [one.ask for one in world.said(fx.TellGranted)] == [2]
    assert canary(world).seen is Seen.GRANTED
    assert len(world.leases(car)) == 1
    assert reason(canary(world, "canary", car)) == (Refused.NO_SLOT_SPARE, 0)
    asked = world.asked("gone", tokens=1, only_spare=True)
    world.wishes[SessionId("gone")].seen = Seen.OVER
    world.happen(asked, ev.SessionUnwanted(world.now_ms, SessionId("gone"), LeaseId(0)))
    assert world.effects == []


def test_what_no_car_could_ever_run_is_refused_as_for_anybody() -> None:
    world = SessionsWorld()
    assert reason(canary(world)) == (Refused.FLEET_EMPTY, 0)
    car = world.enrol("car")
    world.permit(car, Refusal.UNPLUGGED)
    assert reason(canary(world)) == (Refused.NO_SLOT_SPARE, 0)
    assert reason(world.want("large", model=LARGE_MODEL, only_spare=True)) == (
        Refused.NO_FEASIBLE_VEHICLE,
        0,
    )


def test_a_token_is_paid_counts_apart_and_nothing_is_learnt_from_it() -> None:
    world, car = spare_fleet()
    wish = canary(world)
    world.fail(car)
    wish = canary(world, "second")
    before = memory(world.fleet)["shapes"]
    world.answer(wish)
    vehicle = world.vehicle(car)
    assert (vehicle.energy_mwh, vehicle.runtime_ms) == (3, 1_000)
    assert vehicle.reward_micro > 0
    assert (vehicle.units_succeeded, vehicle.canaries_answered) == (0, 1)
    assert vehicle.failures_in_row == 1, "a token tells little of a customer's work"
    assert memory(world.fleet)["shapes"] == before
    live = world.want("live", model=CHAT)
    world.answer(live)
    assert (vehicle.units_succeeded, vehicle.canaries_answered) == (1, 1)
