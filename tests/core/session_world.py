"""A small world around a `Session`: a fleet that grants, cars that tell, and a customer who reads.

Its oracle is the right stream: whatever cars and messages do, the customer has the beginning of it.
"""

import random
from collections.abc import Callable
from typing import TypeVar

import msgspec

from terafleet.core import session_effects as fx
from terafleet.core import session_events as ev
from terafleet.core.ids import Epoch, LeaseId, VehicleId
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.session import Session, SessionState

F = TypeVar("F", bound=fx.SessionEffect)
RIGHT = tuple(range(1_000, 1_024))
SETTINGS = ev.SessionSettings()
DURATION_MS = 60_000
EPOCH = Epoch(7)
BEAT_MS = 400


class Attempt:
    """What a car does under a lease: where it is in the stream, and its messages so far."""

    def __init__(self, lease_id: LeaseId, vehicle_id: VehicleId, position: int) -> None:
        self.lease_id = lease_id
        self.vehicle_id = vehicle_id
        self.position = position
        self.number = 0

    def tell(self, at_ms: int, tokens: int) -> ev.Pieces:
        """The next message of pieces, a token each."""
        told = RIGHT[self.position : self.position + tokens]
        pieces = tuple(ev.Piece(0, (token,), f" {token}") for token in told)
        event = ev.Pieces(at_ms, self.lease_id, self.number, pieces)
        self.position += len(told)
        self.number += 1
        return event

    def beat(self, at_ms: int) -> ev.Beat:
        """A sign of life."""
        return ev.Beat(at_ms, self.lease_id, self.number)

    def settle(self, at_ms: int) -> ev.AttemptSettled:
        """All is told."""
        assert self.position == len(RIGHT)
        return ev.AttemptSettled(at_ms, self.lease_id, self.number, 5, len(RIGHT))


class SessionWorld:
    """A session, its fleet and cars, and what its customer has been told."""

    def __init__(
        self,
        *,
        can_move: bool = True,
        can_restart: bool = False,
        settings: ev.SessionSettings = SETTINGS,
    ) -> None:
        self.session = Session(settings)
        self.settings = settings
        self.can_move = can_move
        self.can_restart = can_restart
        self.restarts = 0
        self.now_ms = 1_000
        self.told: list[int] = []
        self.asks: list[fx.AskForLease] = []
        self.attempts: dict[LeaseId, Attempt] = {}
        self.grants: list[ev.LeaseGranted] = []
        self.standing: dict[LeaseId, VehicleId] = {}
        self.started = LeaseId(0)
        self.left: dict[VehicleId, int] = {}
        self.on_their_way: list[ev.AnySessionEvent] = []
        self.ends: list[fx.FinishSession | fx.FailSession] = []
        self.has_customer = True
        self.effects: list[fx.AnySessionEffect] = []
        self.happen(ev.SessionBegun(self.now_ms, can_move, can_restart))

    # What happens.

    def happen(self, *events: ev.AnySessionEvent) -> list[fx.AnySessionEffect]:
        """Let the session handle events one by one, and keep the laws after each."""
        said = []
        for event in events:
            self._note(event)
            was_over = self.session.is_over
            self.effects = self.session.handle(event)
            for effect in self.effects:
                assert not was_over or isinstance(effect, fx.StopOn), "it has ended"
                self._do(effect)
            self.session.check_invariants()
            self._check()
            said += self.effects
        self.effects = said
        return said

    def arrive(self, event: ev.AnySessionEvent) -> None:
        """Something that was sent before comes, or comes once more."""
        self.happen(msgspec.structs.replace(event, at_ms=self.now_ms))

    def said(self, kind: type[F]) -> list[F]:
        """The effects of a kind that the last events had."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def _note(self, event: ev.AnySessionEvent) -> None:
        """Keep account of the leases that stand: one ends when either side says so."""
        match event:
            case ev.LeaseGranted():
                self.standing[event.lease_id] = event.vehicle_id
            case ev.LeaseLost() | ev.AttemptSettled() | ev.AttemptRefused():
                self.standing.pop(event.lease_id, None)
            case ev.CustomerLeft():
                self.has_customer = False
            case _:
                pass

    def _do(self, effect: fx.AnySessionEffect) -> None:
        place = self.session.place
        match effect:
            case fx.AskForLease():
                assert effect.ask == len(self.asks) + 1
                assert effect.excluded == self.excluded(), "every car that it had to leave"
                assert effect.delivered == len(self.told)
                self.asks.append(effect)
            case fx.StartOn():
                assert place == (effect.lease_id, effect.vehicle_id)
                assert effect.vehicle_id not in self.asks[-1].excluded
                assert effect.delivered == tuple(self.told), "it goes on where the customer is"
                attempt = Attempt(effect.lease_id, effect.vehicle_id, len(self.told))
                self.attempts[effect.lease_id] = attempt
                self.started = effect.lease_id
            case fx.StopOn():
                self.standing.pop(effect.lease_id, None)
                if effect.lease_id == self.started:
                    self.started = LeaseId(0)
                    self.left.pop(effect.vehicle_id, None)
                    self.left[effect.vehicle_id] = self.now_ms
            case fx.Deliver():
                assert self.has_customer
                self.told += [token for piece in effect.pieces for token in piece.token_ids]
            case fx.ForgetPieces():
                assert self.can_restart
                assert not self.can_move, "what can go on elsewhere does"
                assert self.told, "there is nothing to forget"
                self.told.clear()
                self.restarts += 1
            case fx.FinishSession():
                assert tuple(self.told) == RIGHT, "an answer that is finished is whole"
                self.ends.append(effect)
            case fx.FailSession():
                self._check_failure(effect)
                self.ends.append(effect)
            case fx.WithdrawAsk() | fx.SayQueued():
                assert place is None

    def excluded(self) -> tuple[VehicleId, ...]:
        """The car that it left last, and those that it left not long ago."""
        newest = list(self.left)[-1:]
        since_ms = self.now_ms - self.settings.exclude_ms
        return tuple(one for one, ms in self.left.items() if ms > since_ms or one in newest)

    def _check_failure(self, effect: fx.FailSession) -> None:
        match effect.failure:
            case fx.SessionFailure.CANNOT_MOVE:
                assert self.told, "an answer that has not begun can move"
                assert not self.can_move
                if self.can_restart and "nothing more" not in effect.detail:
                    assert self.restarts == self.settings.restarts_max
            case fx.SessionFailure.MOVED_TOO_OFTEN:
                assert self.session.moves == self.settings.moves_max
            case fx.SessionFailure.REFUSED:
                assert effect.refused is not None
                assert effect.detail
            case _:
                assert effect.refused is None

    def _check(self) -> None:
        """What must hold after every event."""
        session = self.session
        assert tuple(self.told) == RIGHT[: len(self.told)], "a token is lost or told twice"
        assert session.delivered == tuple(self.told)
        place = [] if session.place is None else [session.place]
        assert list(self.standing.items()) == place, "a lease stands that nobody uses or ends"
        assert session.is_over == bool(self.ends or not self.has_customer)
        assert len(self.ends) <= 1
        deadline_ms = session.next_deadline_ms()
        assert (deadline_ms is None) == session.is_over, "it could hang"
        assert session.moves <= self.settings.moves_max
        assert self.restarts <= min(session.moves, self.settings.restarts_max)
        assert len(self.left) <= session.moves + 1

    def tick(self, ms: int) -> None:
        """Let time pass, waking the session at each of its deadlines."""
        end_ms = self.now_ms + ms
        while True:
            deadline_ms = self.session.next_deadline_ms()
            if deadline_ms is None or deadline_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, deadline_ms)
            self.happen(ev.SessionTimeAdvanced(self.now_ms))
            next_ms = self.session.next_deadline_ms()
            assert next_ms is None or next_ms > self.now_ms, "a deadline that has come is over"
        self.now_ms = end_ms

    # The fleet.

    def grant(self, vehicle: str = "", ask: int = 0, duration_ms_max: int = DURATION_MS) -> LeaseId:
        """The fleet answers a question, the newest or another, with a lease on a car."""
        lease_id = LeaseId(len(self.grants) + 1)
        vehicle_id = VehicleId(vehicle or f"veh-{lease_id}")
        number = ask or len(self.asks)
        granted = (number, lease_id, vehicle_id, EPOCH, duration_ms_max)
        self.grants.append(ev.LeaseGranted(self.now_ms, *granted))
        self.happen(self.grants[-1])
        return lease_id

    def queue(self, ask: int = 0, wait_ms: int = 4_000, wait_ms_max: int = 30_000) -> None:
        """The fleet lets the session wait."""
        self.happen(ev.LeaseQueued(self.now_ms, ask or len(self.asks), wait_ms, wait_ms_max))

    def refuse(self, ask: int = 0, retry_after_ms: int = 3_000, detail: str = "busy") -> None:
        """The fleet has no slot."""
        number = ask or len(self.asks)
        reason = Refused.NO_SLOT_FREE if retry_after_ms else Refused.NO_FEASIBLE_VEHICLE
        self.happen(ev.LeaseRefused(self.now_ms, number, reason, detail, retry_after_ms))

    def lose(self, ending: LeaseEnding = LeaseEnding.OWNER_RETURNED) -> None:
        """The lease at hand has ended."""
        self.happen(ev.LeaseLost(self.now_ms, self.at_hand().lease_id, ending))

    # The car.

    def at_hand(self) -> Attempt:
        """The attempt that pieces are taken from."""
        assert self.session.place is not None
        return self.attempts[self.session.place[0]]

    def tell(self, tokens: int = 1) -> None:
        """The car at hand tells some tokens."""
        self.happen(self.at_hand().tell(self.now_ms, tokens))

    def beat(self) -> None:
        """The car at hand is at work."""
        self.happen(self.at_hand().beat(self.now_ms))

    def drop(self, tokens: int = 1) -> None:
        """The car at hand tells some tokens, and the message is lost."""
        self.at_hand().tell(self.now_ms, tokens)

    def settle(self) -> None:
        """The car at hand tells the rest, and that it is the whole answer."""
        attempt = self.at_hand()
        if attempt.position < len(RIGHT):
            self.tell(len(RIGHT))
        if self.session.place is not None and self.session.place[0] == attempt.lease_id:
            self.happen(attempt.settle(self.now_ms))

    def leave(self) -> None:
        """The customer hangs up."""
        self.happen(ev.CustomerLeft(self.now_ms))

    def go_on_well(self) -> None:
        """No more trouble: the fleet grants, and cars tell."""
        while not self.session.is_over:
            if self.session.place is None:
                self.grant()
            else:
                self.settle()


def state_of(world: SessionWorld) -> SessionState:
    """Where the session is."""
    return world.session.state


def failure_of(world: SessionWorld) -> fx.FailSession:
    """How the session has failed."""
    (end,) = world.ends
    assert isinstance(end, fx.FailSession)
    assert state_of(world) is SessionState.FAILED
    return end


def begun(*, can_move: bool = True, can_restart: bool = False, tokens: int = 3) -> SessionWorld:
    """A session whose customer has some tokens, or its gateway where it may begin anew."""
    world = SessionWorld(can_move=can_move, can_restart=can_restart)
    world.grant()
    world.tell(tokens)
    return world


# How a car is lost.


def lost_by_silence(world: SessionWorld) -> None:
    """Nothing comes any more."""
    world.tick(SETTINGS.silence_ms)


def lost_by_a_stuck_runtime(world: SessionWorld) -> None:
    """Its car beats on, and tells nothing."""
    end_ms = world.now_ms + SETTINGS.stall_ms
    while world.now_ms + BEAT_MS < end_ms:
        world.tick(BEAT_MS)
        world.beat()
        assert world.session.moves == 0
    world.tick(end_ms - world.now_ms)


def lost_by_word(world: SessionWorld) -> None:
    """The car says that it leaves."""
    world.lose(LeaseEnding.OWNER_RETURNED)


def lost_piece_then_piece(world: SessionWorld) -> None:
    """A message is missing, as the next one shows."""
    world.drop()
    world.tell()


def lost_piece_then_beat(world: SessionWorld) -> None:
    """A message is missing, as a sign of life shows."""
    world.drop()
    world.beat()


def lost_piece_then_end(world: SessionWorld) -> None:
    """A message is missing, as the end shows."""
    world.drop(len(RIGHT))
    world.settle()


Loss = Callable[[SessionWorld], None]
LOSSES: tuple[Loss, ...] = (
    lost_by_silence,
    lost_by_a_stuck_runtime,
    lost_by_word,
    lost_piece_then_piece,
    lost_piece_then_beat,
    lost_piece_then_end,
)


def act(world: SessionWorld, name: str, chance: random.Random) -> None:
    """Do one thing to a world; what can't be done at this moment is skipped."""
    match name:
        case "tick":
            world.tick(chance.choice([1, 100, 300, 1_000, 1_600, 5_000]))
        case "leave":
            world.leave()
        case "grant" | "grant_again" | "grant_old" | "queue" | "refuse" | "refuse_for_good":
            act_as_fleet(world, name, chance)
        case "late" if world.on_their_way:
            at = chance.randrange(len(world.on_their_way))
            world.arrive(world.on_their_way.pop(at))
        case "left_car" if world.attempts:
            act_as_left_car(world, chance.choice(list(world.attempts.values())), chance)
        case _ if world.session.place is not None:
            act_as_car(world, name, chance)


def act_as_fleet(world: SessionWorld, name: str, chance: random.Random) -> None:
    """The fleet answers, the newest question most of the time, or says again what it said."""
    ask = len(world.asks)
    if chance.random() < 0.2:
        ask = chance.randint(1, ask)
    match name:
        case "grant":
            known = [f"veh-{at}" for at in range(8)]
            allowed = [one for one in known if one not in world.asks[ask - 1].excluded]
            # The fleet holds a session to one lease until it hears that it is unwanted.
            if not world.standing or chance.random() < 0.3:
                duration_ms_max = chance.choice([500, DURATION_MS])
                world.grant(chance.choice(allowed or ["veh-new"]), ask, duration_ms_max)
        case "grant_again" if world.grants:
            world.arrive(chance.choice(world.grants))
        case "queue":
            world.queue(ask, chance.randint(0, 9_000), chance.choice([5_000, 30_000]))
        case "refuse":
            world.refuse(ask, chance.choice([1_000, 20_000]))
        case "refuse_for_good" if chance.random() < 0.2:
            world.refuse(ask, 0)


def act_as_car(world: SessionWorld, name: str, chance: random.Random) -> None:
    """The car at hand does something, or a message of it gets lost or late."""
    attempt = world.at_hand()
    event = attempt.tell(world.now_ms, chance.randint(1, 3)) if name.startswith("tell") else None
    match name:
        case "tell" if event:
            world.happen(event)
        case "tell_twice" if event:
            world.happen(event, event)
        case "tell_late" if event:
            world.on_their_way.append(event)
        case "beat":
            world.beat()
        case "beat_late":
            world.on_their_way.append(attempt.beat(world.now_ms))
        case "settle":
            world.settle()
        case "settle_late":
            attempt.tell(world.now_ms, len(RIGHT))
            world.on_their_way.append(attempt.settle(world.now_ms))
        case "lose":
            world.lose(chance.choice(list(LeaseEnding)))
        case "model_refuses" if chance.random() < 0.1:
            fault = (attempt.lease_id, "context_length_exceeded", "too long", "messages")
            world.happen(ev.AttemptRefused(world.now_ms, *fault))


def act_as_left_car(world: SessionWorld, attempt: Attempt, chance: random.Random) -> None:
    """A car that may have been left goes on, for it has not heard; it may be the one at hand."""
    match chance.randint(0, 3):
        case 0 | 1:
            world.happen(attempt.tell(world.now_ms, 2))
        case 2:
            world.happen(attempt.beat(world.now_ms))
        case _:
            ending = LeaseEnding.LINK_SILENT
            world.happen(ev.LeaseLost(world.now_ms, attempt.lease_id, ending))
