"""Everything that can happen to a live session; facts in the past tense, each with its time."""

import msgspec

from terafleet.core.ids import Epoch, LeaseId, VehicleId
from terafleet.core.reasons import LeaseEnding, Refused


class SessionSettings(msgspec.Struct, frozen=True):
    """Times of a session's machine.

    The fleet is asked again when it has not answered within `answer_ms`, and given up after
    `open_patience_ms`. A car that says nothing for `silence_ms` is left. A session that moves
    waits `move_patience_ms` for another slot, and asks every `ask_again_ms` while there is none;
    it moves at most `moves_max` times. A car that it had to leave may be asked again after
    `exclude_ms`, but for the last one. A car that has begun to tell and then tells nothing for
    `stall_ms`, though it beats, has a runtime that is stuck, and is left too. An answer that may
    begin anew does so at most `restarts_max` times, for each throws work away, and not after a
    runtime was stuck, for it may be the request that it was stuck in.
    """

    answer_ms: int = 2_000
    open_patience_ms: int = 10_000
    silence_ms: int = 1_500
    move_patience_ms: int = 30_000
    ask_again_ms: int = 250
    moves_max: int = 16
    exclude_ms: int = 10_000
    stall_ms: int = 10_000
    restarts_max: int = 2


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Some of one choice of an answer: text for the customer, and the tokens that it ends with.

    `token_ids` are those whose text is wholly told by now. `logprobs` is JSON in OpenAI's form for
    the tokens of this piece, or empty. `finish_reason` is empty until the choice's last piece.
    `tool_calls` is a JSON array of OpenAI's deltas, or empty.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: bytes = b""
    finish_reason: str = ""
    tool_calls: bytes = b""


class SessionEvent(msgspec.Struct, frozen=True):
    """What all events have."""

    at_ms: int


class SessionBegun(SessionEvent, frozen=True):
    """A customer has asked.

    `can_move` is whether an answer that has begun can go on elsewhere; `can_restart` whether it
    can begin anew, for its customer is told nothing before it is whole.
    """

    can_move: bool
    can_restart: bool = False


class CustomerLeft(SessionEvent, frozen=True):
    """Nobody reads the answer any more."""


class SessionTimeAdvanced(SessionEvent, frozen=True):
    """A deadline of the session has come."""


class LeaseGranted(SessionEvent, frozen=True):
    """The fleet has given the session a lease, in answer to the question of number `ask`.

    Such requests take no longer than `duration_ms_max`.
    """

    ask: int
    lease_id: LeaseId
    vehicle_id: VehicleId
    epoch: Epoch
    duration_ms_max: int


class LeaseQueued(SessionEvent, frozen=True):
    """No slot is free: it will take about `wait_ms`, and `wait_ms_max` at most."""

    ask: int
    wait_ms: int
    wait_ms_max: int


class LeaseRefused(SessionEvent, frozen=True):
    """There is no lease; `retry_after_ms` 0 means that waiting would not help."""

    ask: int
    refused: Refused
    detail: str
    retry_after_ms: int


class LeaseLost(SessionEvent, frozen=True):
    """The lease has ended before the answer was whole."""

    lease_id: LeaseId
    ending: LeaseEnding


class Pieces(SessionEvent, frozen=True):
    """The car has sent pieces; it numbers its messages of a lease from 0."""

    lease_id: LeaseId
    number: int
    pieces: tuple[Piece, ...]


class Beat(SessionEvent, frozen=True):
    """The car is there and at work; it has sent `number` messages of pieces by now."""

    lease_id: LeaseId
    number: int


class AttemptSettled(SessionEvent, frozen=True):
    """The car has sent the whole answer, in `number` messages of pieces."""

    lease_id: LeaseId
    number: int
    prompt_tokens: int
    completion_tokens: int


class AttemptRefused(SessionEvent, frozen=True):
    """The model can't take the request; `code` is one of the table of errors."""

    lease_id: LeaseId
    code: str
    message: str
    param: str | None


AnySessionEvent = (
    SessionBegun
    | CustomerLeft
    | SessionTimeAdvanced
    | LeaseGranted
    | LeaseQueued
    | LeaseRefused
    | LeaseLost
    | Pieces
    | Beat
    | AttemptSettled
    | AttemptRefused
)
