"""Everything that a live session's machine can ask of its gateway."""

from enum import StrEnum
from typing import ClassVar

import msgspec

from terafleet.core.effects import When
from terafleet.core.ids import Epoch, LeaseId, VehicleId
from terafleet.core.reasons import Refused
from terafleet.core.session_events import Piece


class SessionFailure(StrEnum):
    """Why a session gave no whole answer."""

    REFUSED = "refused"
    UNANSWERED = "unanswered"
    MODEL_REFUSED = "model_refused"
    CANNOT_MOVE = "cannot_move"
    MOVED_TOO_OFTEN = "moved_too_often"
    DEADLINE = "deadline"


class SessionEffect(msgspec.Struct, frozen=True):
    """What all effects have; none of them waits for a record, for a session has none."""

    when: ClassVar[When] = "now"


class AskForLease(SessionEffect, frozen=True):
    """Ask the fleet for a slot on a car that is none of these; `delivered` tokens are told."""

    ask: int
    excluded: tuple[VehicleId, ...]
    delivered: int


class WithdrawAsk(SessionEffect, frozen=True):
    """Tell the fleet that no slot is wanted any more."""


class StartOn(SessionEffect, frozen=True):
    """Send the request to the car, with the ids of the tokens that the customer has."""

    lease_id: LeaseId
    vehicle_id: VehicleId
    epoch: Epoch
    delivered: tuple[int, ...]


class StopOn(SessionEffect, frozen=True):
    """Tell car and fleet that nothing of the lease is wanted any more."""

    lease_id: LeaseId
    vehicle_id: VehicleId


class SayQueued(SessionEffect, frozen=True):
    """Tell the customer how long it will take about, in ms."""

    wait_ms: int


class Deliver(SessionEffect, frozen=True):
    """Give the customer these pieces."""

    pieces: tuple[Piece, ...]


class ForgetPieces(SessionEffect, frozen=True):
    """Forget the pieces so far, which nobody has been told: the answer begins anew."""


class FinishSession(SessionEffect, frozen=True):
    """The answer is whole."""

    prompt_tokens: int
    completion_tokens: int


class FailSession(SessionEffect, frozen=True):
    """The answer will never be whole: tell the customer why.

    `code` and `param` are what a model said (`MODEL_REFUSED`), `refused` and `retry_after_ms`
    what the fleet said (`REFUSED`).
    """

    failure: SessionFailure
    detail: str
    code: str = ""
    param: str | None = None
    refused: Refused | None = None
    retry_after_ms: int = 0


AnySessionEffect = (
    AskForLease
    | WithdrawAsk
    | StartOn
    | StopOn
    | SayQueued
    | Deliver
    | ForgetPieces
    | FinishSession
    | FailSession
)
