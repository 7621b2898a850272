"""The machine of one live session: from the question to the last piece, over any number of cars.

It lives in the gateway that has the customer, and in memory only. What a piece's text means is
nobody's matter here.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from terafleet.core.ids import Epoch, LeaseId, VehicleId
from terafleet.core.reasons import Refused
from terafleet.core.session_effects import (
    AnySessionEffect,
    AskForLease,
    Deliver,
    FailSession,
    FinishSession,
    ForgetPieces,
    SayQueued,
    SessionFailure,
    StartOn,
    StopOn,
    WithdrawAsk,
)
from terafleet.core.session_events import (
    AnySessionEvent,
    AttemptRefused,
    AttemptSettled,
    Beat,
    CustomerLeft,
    LeaseGranted,
    LeaseLost,
    LeaseQueued,
    LeaseRefused,
    Pieces,
    SessionBegun,
    SessionSettings,
    SessionTimeAdvanced,
)


class SessionState(StrEnum):
    """Where a session is; docs/states/session.md has a sentence for each."""

    OPENING = "opening"
    OPEN = "open"
    MOVING = "moving"
    CLOSED = "closed"
    FAILED = "failed"


ENDS = frozenset({SessionState.CLOSED, SessionState.FAILED})


class _Place(msgspec.Struct, frozen=True):
    """The lease that the session has, and the car that it is on."""

    lease_id: LeaseId
    vehicle_id: VehicleId
    epoch: Epoch


class Session:
    """See `core.machine.Machine` for what it keeps to; it ends once, and says so once."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._state = SessionState.OPENING
        self._place: _Place | None = None
        self._can_move = True
        self._restarts_left = 0
        self._left: dict[VehicleId, int] = {}
        """The cars that it had to leave, and when; who was left long ago may be asked again."""
        self._delivered: list[int] = []
        self._has_delivered = False
        self._next_number = 0
        self._heard_ms = 0
        self._told_ms = 0
        self._asks = 0
        self._ask_again_ms: int | None = None
        self._patience_end_ms = 0
        self._deadline_ms = 0
        self._refusal: LeaseRefused | None = None
        self.moves = 0
        self.left_because = ""
        self._effects: list[AnySessionEffect] = []

    @property
    def state(self) -> SessionState:
        """Where it is."""
        return self._state

    @property
    def is_over(self) -> bool:
        """Whether nothing will come of it any more."""
        return self._state in ENDS

    @property
    def place(self) -> tuple[LeaseId, VehicleId] | None:
        """The lease and the car that pieces are taken from."""
        return (self._place.lease_id, self._place.vehicle_id) if self._place else None

    @property
    def delivered(self) -> tuple[int, ...]:
        """The ids of the tokens that the customer has."""
        return tuple(self._delivered)

    def handle(self, *events: AnySessionEvent) -> list[AnySessionEffect]:
        """Take facts in their order and return what is to be done."""
        for event in events:
            if not self.is_over:
                _HANDLERS[type(event)](self, event)
            elif isinstance(event, LeaseGranted):
                self._effects.append(StopOn(event.lease_id, event.vehicle_id))
        effects, self._effects = self._effects, []
        return effects

    def next_deadline_ms(self) -> int | None:
        """When time alone changes something."""
        if self.is_over:
            return None
        if self._place is not None:
            silent_ms = self._heard_ms + self._settings.silence_ms
            return min(self._deadline_ms, silent_ms, self._stalled_ms())
        if self._ask_again_ms is not None:
            return min(self._patience_end_ms, self._ask_again_ms)
        return self._patience_end_ms

    def check_invariants(self) -> None:
        """Assert what must always hold."""
        assert (self._state is SessionState.OPEN) == (self._place is not None)
        assert self._place is None or self._place.vehicle_id not in self._left
        assert self.moves <= self._settings.moves_max
        assert self.is_over or self.next_deadline_ms() is not None, "a session that can hang"

    # From its gateway.

    def _begun(self, event: SessionBegun) -> None:
        self._can_move = event.can_move
        self._restarts_left = self._settings.restarts_max if event.can_restart else 0
        self._patience_end_ms = event.at_ms + self._settings.open_patience_ms
        self._ask(event.at_ms)

    def _customer_left(self, event: CustomerLeft) -> None:  # noqa: ARG002 - it says nothing.
        self._leave()
        if self._state is not SessionState.OPEN:
            self._effects.append(WithdrawAsk())
        self._state = SessionState.CLOSED

    def _time_advanced(self, event: SessionTimeAdvanced) -> None:
        now_ms = event.at_ms
        if self._place is not None:
            if now_ms >= self._deadline_ms:
                self._fail(SessionFailure.DEADLINE, "it took far longer than such requests take")
            elif now_ms >= self._heard_ms + self._settings.silence_ms:
                self._move(now_ms, "the car fell silent")
            elif now_ms >= self._stalled_ms():
                # What has kept this runtime for ever would keep the next one too.
                self._restarts_left = 0
                self._move(now_ms, "the runtime tells nothing more")
        elif now_ms >= self._patience_end_ms:
            self._give_up()
        elif self._ask_again_ms is not None and now_ms >= self._ask_again_ms:
            self._ask(now_ms)

    # From the fleet.

    def _granted(self, event: LeaseGranted) -> None:
        if self._is_of_place(event.lease_id):
            return
        if self._place is not None or event.vehicle_id in self._left:
            # An answer to a question that was asked twice: nobody else would end that lease.
            self._effects.append(StopOn(event.lease_id, event.vehicle_id))
            return
        self._place = _Place(event.lease_id, event.vehicle_id, event.epoch)
        self._state = SessionState.OPEN
        self._next_number = 0
        self._heard_ms = event.at_ms
        self._ask_again_ms = self._refusal = None
        # What a move has cost, and what the next car must load, is not held against the answer.
        self._deadline_ms = event.at_ms + event.duration_ms_max
        self._effects.append(
            StartOn(event.lease_id, event.vehicle_id, event.epoch, tuple(self._delivered))
        )

    def _queued(self, event: LeaseQueued) -> None:
        if not self._is_asking(event.ask):
            return
        # A car that it excludes may be the only one: it asks again when that may be asked again.
        lapses = [left_ms + self._settings.exclude_ms for left_ms in list(self._left.values())[:-1]]
        self._ask_again_ms = max(event.at_ms + 1, min(lapses)) if lapses else None
        if self._state is SessionState.MOVING:
            # Its patience is running; when that ends, this is the reason.
            detail = "no slot became free"
            self._refusal = LeaseRefused(
                event.at_ms, event.ask, Refused.NO_SLOT_FREE, detail, event.wait_ms
            )
        else:
            self._patience_end_ms = event.at_ms + event.wait_ms_max + self._settings.answer_ms
        self._effects.append(SayQueued(event.wait_ms))

    def _refused(self, event: LeaseRefused) -> None:
        if not self._is_asking(event.ask):
            return
        self._refusal = event
        # Who has half an answer waits for a slot, if waiting can help.
        is_worth_waiting = self._state is SessionState.MOVING and event.retry_after_ms > 0
        if is_worth_waiting and event.at_ms < self._patience_end_ms:
            self._ask_again_ms = event.at_ms + self._settings.ask_again_ms
        else:
            self._give_up()

    def _lost(self, event: LeaseLost) -> None:
        if self._is_of_place(event.lease_id):
            self._move(event.at_ms, str(event.ending))

    # From the car.

    def _pieces(self, event: Pieces) -> None:
        if not self._is_of_place(event.lease_id) or event.number < self._next_number:
            return
        self._heard_ms = event.at_ms
        if event.number > self._next_number:
            self._move(event.at_ms, "pieces were lost on the way")
            return
        self._next_number += 1
        self._told_ms = event.at_ms
        self._has_delivered = True
        for piece in event.pieces:
            self._delivered.extend(piece.token_ids)
        self._effects.append(Deliver(event.pieces))

    def _beat(self, event: Beat) -> None:
        if self._is_of_place(event.lease_id):
            self._heard_ms = event.at_ms
            if event.number > self._next_number:
                self._move(event.at_ms, "pieces were lost on the way")

    def _settled(self, event: AttemptSettled) -> None:
        if not self._is_of_place(event.lease_id):
            return
        if event.number > self._next_number:
            self._move(event.at_ms, "pieces were lost on the way")
            return
        self._place = None
        self._state = SessionState.CLOSED
        self._effects.append(FinishSession(event.prompt_tokens, event.completion_tokens))

    def _attempt_refused(self, event: AttemptRefused) -> None:
        """The model can't take the request: another car would say the same."""
        if self._is_of_place(event.lease_id):
            self._place = None
            self._end_failed(
                FailSession(SessionFailure.MODEL_REFUSED, event.message, event.code, event.param)
            )

    # Steps.

    def _stalled_ms(self) -> int:
        """When a car that has begun to tell, and beats on, counts as stuck; else its deadline."""
        if not self._next_number:
            return self._deadline_ms
        return self._told_ms + self._settings.stall_ms

    def _is_of_place(self, lease_id: LeaseId) -> bool:
        return self._place is not None and self._place.lease_id == lease_id

    def _is_asking(self, ask: int) -> bool:
        """Whether an answer is to the newest question, and no lease has come meanwhile."""
        return self._place is None and ask == self._asks

    def _ask(self, now_ms: int) -> None:
        """Ask, and again after a while: the question or its answer may be lost."""
        self._asks += 1
        self._ask_again_ms = now_ms + self._settings.answer_ms
        for vehicle_id, left_ms in list(self._left.items())[:-1]:
            if now_ms - left_ms >= self._settings.exclude_ms:
                del self._left[vehicle_id]
        self._effects.append(AskForLease(self._asks, tuple(self._left), len(self._delivered)))

    def _move(self, now_ms: int, why: str) -> None:
        """Leave the car and go on elsewhere, or begin anew there, if that can be done."""
        assert self._place is not None
        self.left_because = why
        self._left.pop(self._place.vehicle_id, None)
        self._left[self._place.vehicle_id] = now_ms
        self._leave()
        must_restart = self._has_delivered and not self._can_move
        if must_restart and not self._restarts_left:
            self._fail(SessionFailure.CANNOT_MOVE, why)
        elif self.moves >= self._settings.moves_max:
            self._fail(SessionFailure.MOVED_TOO_OFTEN, why)
        else:
            if must_restart:
                self._forget()
            self.moves += 1
            self._state = SessionState.MOVING
            self._patience_end_ms = now_ms + self._settings.move_patience_ms
            self._ask(now_ms)

    def _forget(self) -> None:
        """Nobody has been told anything yet: another car may say it all."""
        self._restarts_left -= 1
        self._has_delivered = False
        self._delivered.clear()
        self._effects.append(ForgetPieces())

    def _leave(self) -> None:
        """Let go of the car; it may be gone, or never have heard of the session."""
        if self._place is not None:
            self._effects.append(StopOn(self._place.lease_id, self._place.vehicle_id))
            self._place = None

    def _give_up(self) -> None:
        """There is no slot, for the newest reason that the fleet gave."""
        refusal = self._refusal
        if refusal is None:
            failed = FailSession(SessionFailure.UNANSWERED, "the fleet did not answer")
        else:
            failed = FailSession(
                SessionFailure.REFUSED,
                refusal.detail,
                refused=refusal.refused,
                retry_after_ms=refusal.retry_after_ms,
            )
        self._effects.append(WithdrawAsk())
        self._end_failed(failed)

    def _fail(self, failure: SessionFailure, detail: str) -> None:
        self._leave()
        self._end_failed(FailSession(failure, detail))

    def _end_failed(self, effect: FailSession) -> None:
        self._state = SessionState.FAILED
        self._effects.append(effect)


_HANDLERS: dict[type, Callable[[Session, Any], None]] = {
    SessionBegun: Session._begun,
    CustomerLeft: Session._customer_left,
    SessionTimeAdvanced: Session._time_advanced,
    LeaseGranted: Session._granted,
    LeaseQueued: Session._queued,
    LeaseRefused: Session._refused,
    LeaseLost: Session._lost,
    Pieces: Session._pieces,
    Beat: Session._beat,
    AttemptSettled: Session._settled,
    AttemptRefused: Session._attempt_refused,
}
