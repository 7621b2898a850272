"""Says how a customer is told that a live session gave no whole answer."""

from typing import Final

from terafleet.control.gateway.errors import CODE_OF_REFUSED, ApiError
from terafleet.core.reasons import Refused
from terafleet.core.session_effects import FailSession, SessionFailure
from terafleet.core.units import MS_PER_S, divide_up
from terafleet.protocol.errors import ERRORS
from terafleet.protocol.live import MESSAGE_CHARACTERS_MAX

_CODE: Final = {
    SessionFailure.UNANSWERED: "shard_unavailable",
    SessionFailure.CANNOT_MOVE: "session_failed",
    SessionFailure.MOVED_TOO_OFTEN: "session_failed",
    SessionFailure.DEADLINE: "deadline_exceeded",
}

_WORDS: Final = {
    SessionFailure.CANNOT_MOVE: "The answer had begun and could not go on on another car",
    SessionFailure.MOVED_TOO_OFTEN: "The answer lost its car too often",
    SessionFailure.DEADLINE: "There was no whole answer in time",
    SessionFailure.UNANSWERED: "There was no slot",
}

_CUSTOMERS_FAULT: Final = 400


class AnswerUnreadable(Exception):
    """A car sent what is no answer; the message says what is wrong with it."""


def error_of(failed: FailSession) -> ApiError:
    """The error for an ended session, with how long to wait where that helps."""
    match failed.failure:
        case SessionFailure.REFUSED:
            assert failed.refused is not None, "a refusal has a reason"
            return _refused(failed.refused, failed.detail, failed.retry_after_ms)
        case SessionFailure.MODEL_REFUSED:
            return model_refused(failed.code, failed.detail, failed.param)
    return ApiError(_CODE[failed.failure], f"{_WORDS[failed.failure]}: {failed.detail}.")


def model_refused(code: str, message: str, param: str | None) -> ApiError:
    """The error for what a car says of the request; it may blame nothing but the request."""
    shown = message[:MESSAGE_CHARACTERS_MAX]
    if code in ERRORS and ERRORS[code].status == _CUSTOMERS_FAULT:
        return ApiError(code, shown, param and param[:MESSAGE_CHARACTERS_MAX])
    return ApiError("session_failed", f"The model did not answer: {shown}")


def unreadable(error: AnswerUnreadable) -> ApiError:
    """The error for what a car sent in place of an answer."""
    return ApiError("session_failed", f"The car did not send what an answer is made of: {error}.")


def reader_too_slow() -> ApiError:
    """The error for who does not read what comes."""
    return ApiError("reader_too_slow", "The answer was not read as fast as it came.")


def sentence(words: str) -> str:
    """What the fleet says, as a sentence for the customer."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _refused(refused: Refused, detail: str, retry_after_ms: int) -> ApiError:
    headers = {}
    if retry_after_ms > 0:
        # OpenAI's clients read the first one, which has no such coarse steps.
        headers["retry-after-ms"] = str(retry_after_ms)
        headers["retry-after"] = str(divide_up(retry_after_ms, MS_PER_S))
    message = sentence(detail or refused.value.replace("_", " "))
    return ApiError(CODE_OF_REFUSED[refused], message, headers=headers)
