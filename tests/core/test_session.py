"""The machine of a live session: what its customer gets, whatever fleet, cars and messages do."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core import session_effects as fx
from terafleet.core import session_events as ev
from terafleet.core.ids import LeaseId, VehicleId
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.session import SessionState
from terafleet.core.session_effects import SessionFailure
from tests.core.session_world import (
    DURATION_MS,
    EPOCH,
    LOSSES,
    RIGHT,
    SETTINGS,
    Loss,
    SessionWorld,
    act,
    begun,
    failure_of,
    state_of,
)

STEPS = (
    "grant", "grant", "grant", "grant", "grant_again", "grant_old", "queue", "refuse",
    "refuse_for_good", "tell", "tell", "tell", "tell", "tell", "tell", "tell_twice", "tell_late",
    "beat", "beat", "beat_late", "settle", "settle_late", "lose", "lose", "model_refuses", "late",
    "late", "left_car", "left_car", "tick", "tick", "tick", "leave",
)  # fmt: skip
WITHOUT_END = tuple(name for name in STEPS if name not in ("leave", "model_refuses"))
HANG_MS = SETTINGS.open_patience_ms + SETTINGS.move_patience_ms + DURATION_MS


def story(
    seed: int, names: list[str], *, can_move: bool, can_restart: bool = False
) -> SessionWorld:
    """A session to which all this has happened; `SessionWorld` keeps the laws at every step."""
    world = SessionWorld(can_move=can_move, can_restart=can_restart)
    chance = random.Random(seed)
    for name in names:
        act(world, name, chance)
    return world


# Laws.


@settings(max_examples=120)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(STEPS), max_size=60),
    can_move=st.booleans(),
    can_restart=st.booleans(),
)
def test_laws_hold_and_what_comes_after_the_end_stands_no_longer(
    seed: int, names: list[str], can_move: bool, can_restart: bool
) -> None:
    world = story(seed, names, can_move=can_move, can_restart=can_restart)
    world.go_on_well()
    told = tuple(world.told)
    for granted in world.grants:
        world.happen(granted)
        assert world.said(fx.StopOn) == [fx.StopOn(granted.lease_id, granted.vehicle_id)]
    world.happen(*world.on_their_way)
    world.leave()
    assert tuple(world.told) == told


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(WITHOUT_END), max_size=60),
    can_move=st.booleans(),
    can_restart=st.booleans(),
)
def test_a_session_that_hears_nothing_more_ends_by_itself(
    seed: int, names: list[str], can_move: bool, can_restart: bool
) -> None:
    world = story(seed, names, can_move=can_move, can_restart=can_restart)
    world.tick(HANG_MS)
    assert world.session.is_over
    (end,) = world.ends
    assert isinstance(end, fx.FailSession) or tuple(world.told) == RIGHT


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from([*WITHOUT_END, "beat", "tell"]), max_size=60),
)
def test_a_stream_that_can_move_is_whole_once_all_is_well(seed: int, names: list[str]) -> None:
    world, chance = SessionWorld(settings=ev.SessionSettings(moves_max=99)), random.Random(seed)
    world.grant()
    for name in names:
        if name not in ("tick", "refuse_for_good"):
            act(world, name, chance)
    world.go_on_well()
    assert tuple(world.told) == RIGHT
    assert state_of(world) is SessionState.CLOSED


def test_stories_are_of_all_kinds() -> None:
    ends: set[object] = set()
    moves = restarts = 0
    for seed in range(300):
        chance = random.Random(seed)
        names = [chance.choice(STEPS) for _ in range(60)]
        world = story(seed, names, can_move=seed % 4 != 0, can_restart=seed % 8 == 0)
        moves = max(moves, world.session.moves)
        restarts = max(restarts, world.restarts)
        for end in world.ends:
            ends.add(end.failure if isinstance(end, fx.FailSession) else "finished")
    assert ends >= {*SessionFailure, "finished"} - {SessionFailure.MOVED_TOO_OFTEN}
    assert moves >= 4, "stories in which nothing moves prove little"
    assert restarts == SETTINGS.restarts_max


# Opening.


def test_it_asks_at_once_and_starts_where_it_is_granted() -> None:
    world = SessionWorld()
    assert world.effects == [fx.AskForLease(1, (), 0)]
    assert state_of(world) is SessionState.OPENING
    world.grant("veh-a")
    assert world.effects == [fx.StartOn(LeaseId(1), VehicleId("veh-a"), EPOCH, ())]
    assert state_of(world) is SessionState.OPEN
    world.settle()
    assert world.said(fx.FinishSession) == [fx.FinishSession(5, len(RIGHT))]
    assert state_of(world) is SessionState.CLOSED


def test_pieces_are_delivered_as_they_are() -> None:
    world = SessionWorld()
    lease_id = world.grant()
    pieces = (ev.Piece(0, RIGHT[:2], "one two", b"{}"), ev.Piece(0, (), "", b"", "stop"))
    world.happen(ev.Pieces(world.now_ms, lease_id, 0, pieces))
    assert world.effects == [fx.Deliver(pieces)]


def test_who_gets_no_answer_asks_again_and_at_last_gives_up() -> None:
    world = SessionWorld()
    world.tick(SETTINGS.open_patience_ms - 1)
    assert [ask.ask for ask in world.asks] == [1, 2, 3, 4, 5], "every 2 s"
    world.tick(1)
    assert failure_of(world).failure is SessionFailure.UNANSWERED
    assert world.said(fx.WithdrawAsk), "the fleet may yet have a place in its queue for it"


def test_a_refusal_is_handed_on_as_the_fleet_said_it() -> None:
    world = SessionWorld()
    world.refuse(retry_after_ms=35_000, detail="all slots are busy, for about 35 s")
    failed = failure_of(world)
    assert (failed.failure, failed.refused) == (SessionFailure.REFUSED, Refused.NO_SLOT_FREE)
    assert failed.retry_after_ms == 35_000
    assert failed.detail == "all slots are busy, for about 35 s"


def test_who_waits_in_the_queue_says_so_and_does_not_ask_again() -> None:
    world = SessionWorld()
    world.queue(wait_ms=4_000, wait_ms_max=30_000)
    assert world.effects == [fx.SayQueued(4_000)]
    world.tick(29_000)
    assert len(world.asks) == 1
    world.grant()
    world.settle()
    assert tuple(world.told) == RIGHT


def test_the_end_of_the_queue_is_a_refusal_or_silence() -> None:
    refused, silent = SessionWorld(), SessionWorld()
    for world in (refused, silent):
        world.queue(wait_ms_max=30_000)
        world.tick(30_000)
    refused.refuse()
    assert failure_of(refused).failure is SessionFailure.REFUSED
    assert not silent.session.is_over
    silent.tick(SETTINGS.answer_ms)
    assert failure_of(silent).failure is SessionFailure.UNANSWERED


@pytest.mark.parametrize("where", ["asked", "queued", "moving"])
def test_a_customer_who_leaves_while_there_is_no_slot_leaves_the_queue(where: str) -> None:
    world = begun() if where == "moving" else SessionWorld()
    if where == "queued":
        world.queue()
    elif where == "moving":
        world.lose()
    world.leave()
    assert world.effects == [fx.WithdrawAsk()]
    assert state_of(world) is SessionState.CLOSED
    assert not world.ends, "there is nobody to tell"


def test_a_customer_who_leaves_stops_the_car() -> None:
    world = begun()
    attempt = world.at_hand()
    world.leave()
    assert world.effects == [fx.StopOn(attempt.lease_id, attempt.vehicle_id)]
    world.leave()
    assert world.effects == []


def test_only_the_answer_to_the_newest_question_counts() -> None:
    world = SessionWorld()
    world.tick(SETTINGS.answer_ms)
    assert len(world.asks) == 2
    for late in (world.refuse, world.queue):
        late(ask=1)
        assert world.effects == []
    assert state_of(world) is SessionState.OPENING
    world.refuse(ask=2)
    assert world.session.is_over


# Leases that nobody needs.


def test_the_same_lease_told_twice_is_one() -> None:
    world = SessionWorld()
    world.grant()
    world.happen(world.grants[0])
    assert world.effects == []


def test_a_second_lease_is_let_go() -> None:
    world = begun()
    world.grant("veh-b")
    assert world.effects == [fx.StopOn(LeaseId(2), VehicleId("veh-b"))]
    world.tell()
    assert world.said(fx.Deliver)


def test_a_lease_on_a_car_that_was_left_is_let_go() -> None:
    world = begun()
    left = world.at_hand().vehicle_id
    world.lose()
    world.grant(left)
    assert world.effects == [fx.StopOn(LeaseId(2), left)]
    assert state_of(world) is SessionState.MOVING
    world.go_on_well()
    assert tuple(world.told) == RIGHT


@pytest.mark.parametrize("end", ["finished", "failed", "left"])
def test_a_lease_that_comes_after_the_end_is_let_go(end: str) -> None:
    world = SessionWorld()
    match end:
        case "finished":
            world.go_on_well()
        case "failed":
            world.refuse()
        case "left":
            world.leave()
    lease_id = world.grant("veh-late")
    assert world.effects == [fx.StopOn(lease_id, VehicleId("veh-late"))]


# Moving.


@pytest.mark.parametrize("lose", LOSSES)
def test_a_stream_goes_on_elsewhere_where_its_customer_is(lose: Loss) -> None:
    world = begun(tokens=5)
    left = world.at_hand()
    lose(world)
    assert world.effects[-2:] == [
        fx.StopOn(left.lease_id, left.vehicle_id),
        fx.AskForLease(2, (left.vehicle_id,), 5),
    ]
    assert state_of(world) is SessionState.MOVING
    world.grant("veh-b")
    assert world.effects == [fx.StartOn(LeaseId(2), VehicleId("veh-b"), EPOCH, RIGHT[:5])]
    world.settle()
    assert tuple(world.told) == RIGHT
    assert world.session.moves == 1


@pytest.mark.parametrize("lose", LOSSES)
def test_what_cannot_move_says_so_once_it_has_begun(lose: Loss) -> None:
    world = begun(can_move=False)
    left = world.at_hand()
    lose(world)
    assert failure_of(world).failure is SessionFailure.CANNOT_MOVE
    assert world.effects[-2] == fx.StopOn(left.lease_id, left.vehicle_id)
    fresh = SessionWorld(can_move=False)
    fresh.grant()
    lose(fresh)
    fresh.go_on_well()
    assert tuple(fresh.told) == RIGHT, "before its first piece anything can move"


def test_a_car_that_was_left_is_not_heard() -> None:
    world = begun()
    left = world.at_hand()
    world.lose()
    before = world.session.next_deadline_ms()
    late = (left.tell(world.now_ms, 1), left.beat(world.now_ms))
    world.happen(*late)
    assert world.effects == []
    assert world.session.next_deadline_ms() == before
    world.grant()
    world.happen(*late, ev.LeaseLost(world.now_ms, left.lease_id, LeaseEnding.LINK_SILENT))
    assert world.effects == []
    assert state_of(world) is SessionState.OPEN


def test_signs_of_life_keep_a_car() -> None:
    world = begun()
    for _ in range(5):
        world.tick(SETTINGS.silence_ms - 1)
        world.beat()
    world.tick(SETTINGS.silence_ms - 1)
    world.tell()
    world.tick(SETTINGS.silence_ms - 1)
    assert world.session.moves == 0


def test_a_message_that_comes_twice_counts_once() -> None:
    world = begun()
    event = world.at_hand().tell(world.now_ms, 2)
    world.happen(event, event)
    assert world.effects == [fx.Deliver(event.pieces)]


def test_who_moves_waits_for_a_slot_and_asks_often() -> None:
    world = begun()
    world.lose()
    asked = len(world.asks)
    for _ in range(8):
        world.refuse()
        world.tick(SETTINGS.ask_again_ms)
    assert len(world.asks) == asked + 8
    world.grant()
    world.settle()
    assert tuple(world.told) == RIGHT


def test_who_moves_gives_up_for_the_reason_that_the_fleet_gave_last() -> None:
    world = begun()
    world.lose()
    lost_ms = world.now_ms
    while not world.session.is_over:
        world.refuse(retry_after_ms=9_000, detail=f"busy at {world.now_ms}")
        world.tick(SETTINGS.ask_again_ms)
    assert world.now_ms - lost_ms == SETTINGS.move_patience_ms
    failed = failure_of(world)
    assert (failed.failure, failed.refused) == (SessionFailure.REFUSED, Refused.NO_SLOT_FREE)
    assert failed.detail == f"busy at {world.now_ms - SETTINGS.ask_again_ms}"
    assert failed.retry_after_ms == 9_000


def test_who_moves_does_not_wait_where_waiting_is_of_no_use() -> None:
    world = begun()
    world.lose()
    world.refuse(retry_after_ms=0)
    assert failure_of(world).refused is Refused.NO_FEASIBLE_VEHICLE


def test_a_queue_does_not_prolong_the_patience_of_who_moves() -> None:
    world = begun()
    world.lose()
    for _ in range(3):
        world.queue(wait_ms=7_000, wait_ms_max=30_000)
        world.tick(9_000)
    world.tick(3_000)
    failed = failure_of(world)
    assert (failed.failure, failed.refused) == (SessionFailure.REFUSED, Refused.NO_SLOT_FREE)
    assert (failed.detail, failed.retry_after_ms) == ("no slot became free", 7_000)
    assert world.said(fx.WithdrawAsk)


def test_moves_are_bounded() -> None:
    world = SessionWorld()
    for _ in range(SETTINGS.moves_max):
        world.grant()
        world.lose()
    assert state_of(world) is SessionState.MOVING
    world.grant()
    world.lose()
    assert failure_of(world).failure is SessionFailure.MOVED_TOO_OFTEN
    assert len({one.vehicle_id for one in world.grants}) == SETTINGS.moves_max + 1


def test_a_car_that_was_left_long_ago_may_be_asked_again_but_for_the_last_one() -> None:
    world = SessionWorld()
    one, two = VehicleId("veh-a"), VehicleId("veh-b")
    for vehicle in (one, two):
        world.grant(vehicle)
        world.lose()
    assert list(world.asks[-1].excluded) == [one, two]
    world.tick(SETTINGS.exclude_ms)
    assert list(world.asks[-1].excluded) == [two]
    world.grant(one)
    assert world.said(fx.StartOn)
    world.lose()
    assert list(world.asks[-1].excluded) == [one]


# The end.


def test_a_request_that_takes_too_long_ends() -> None:
    world = SessionWorld()
    world.grant(duration_ms_max=20_000)
    for _ in range(19):
        world.tick(1_000)
        world.beat()
    assert state_of(world) is SessionState.OPEN
    world.tick(1_000)
    assert failure_of(world).failure is SessionFailure.DEADLINE
    assert world.said(fx.StopOn)


def test_the_search_for_a_slot_is_not_held_against_an_answer() -> None:
    world = SessionWorld()
    world.grant(duration_ms_max=20_000)
    world.tell()
    world.tick(1_500)
    for _ in range(100):
        world.refuse()
        world.tick(SETTINGS.ask_again_ms)
    assert state_of(world) is SessionState.MOVING, "26 s after it began"
    world.grant(duration_ms_max=20_000)
    for _ in range(19):
        world.tick(1_000)
        world.beat()
    world.settle()
    assert tuple(world.told) == RIGHT


def test_what_the_model_refuses_no_other_car_is_asked_for() -> None:
    world = SessionWorld()
    fault = (world.grant(), "context_length_exceeded", "too long", "messages")
    world.happen(ev.AttemptRefused(world.now_ms, *fault))
    said = fx.FailSession(SessionFailure.MODEL_REFUSED, "too long", fault[1], "messages")
    assert world.effects == [said]


def test_who_waits_asks_again_when_a_car_may_be_asked_again() -> None:
    world = begun()
    one = world.at_hand().vehicle_id
    world.lose()
    world.grant()
    two = world.at_hand().vehicle_id
    world.lose()
    world.queue()
    asked = len(world.asks)
    world.tick(SETTINGS.exclude_ms)
    assert len(world.asks) == asked + 1, "the first car may be the only one that is left"
    assert list(world.asks[-1].excluded) == [two] != [one]
