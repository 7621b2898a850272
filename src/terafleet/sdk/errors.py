"""Every way in which asking a control plane can fail: one root, one leaf for each situation."""

UNREACHABLE, ODD, INVALID_URL = "gateway_unreachable", "gateway_odd", "invalid_url"
"""What goes wrong before a control plane can say anything."""


class TerafleetError(Exception):
    """A request to a control plane failed.

    `code` is one of `protocol.errors.ERRORS`, or one that a leaf below names; `message` is a
    sentence for a person; `param` names the parameter at fault where the control plane does.
    `retry_after_ms` is when it is worth asking again, 0 where that is not said.
    """

    def __init__(
        self, code: str, message: str, param: str | None = None, retry_after_ms: int = 0
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms


class AddressInvalid(TerafleetError):
    """The address is not one of a web server; nothing was sent (`invalid_url`)."""


class Unreachable(TerafleetError):
    """No answer came, or it broke off (`gateway_unreachable`); it may pass by itself."""


class AnswerOdd(TerafleetError):
    """Something answers at the address that is no control plane (`gateway_odd`)."""


class RequestInvalid(TerafleetError):
    """The control plane does not take this request as it is."""


class KeyRefused(TerafleetError):
    """There is no API key, or it is not known or revoked."""


class NotAllowed(TerafleetError):
    """The API key may not do this."""


class NotFound(TerafleetError):
    """There is no such thing, or it belongs to somebody else."""


class NotAdmitted(TerafleetError):
    """The fleet can't do this work, and it would not help to wait."""


class Conflict(TerafleetError):
    """The request contradicts what is there already."""


class Overloaded(TerafleetError):
    """The control plane can't do it at present; it may pass by itself."""


class AnswerLost(TerafleetError):
    """A live answer broke off, or did not come in time; asking again may help."""


class StorageFull(TerafleetError):
    """The disk of the control plane is full; this passes once somebody makes room there."""


class ControlPlaneBroken(TerafleetError):
    """Something broke in the control plane; its log says more."""


class FileChanged(TerafleetError):
    """A file was written to while it was sent (`file_changed`)."""


class StillWaiting(TerafleetError):
    """A batch had not ended when the time to wait was over (`still_waiting`); it goes on."""


PASSING = (Unreachable, Overloaded, AnswerLost, StorageFull, ControlPlaneBroken)
"""What may be otherwise at another time, with nothing changed here."""

_LEAF_OF_STATUS: dict[int, type[TerafleetError]] = {
    401: KeyRefused,
    403: NotAllowed,
    404: NotFound,
    408: AnswerLost,
    409: Conflict,
    422: NotAdmitted,
    429: Overloaded,
    502: AnswerLost,
    503: Overloaded,
    504: AnswerLost,
    507: StorageFull,
}
_BROKEN_MIN = 500


def error_of(
    status: int, code: str, message: str, param: str | None, retry_after_ms: int = 0
) -> TerafleetError:
    """The error for an answer in the form of `protocol.errors`, by its HTTP status."""
    broken = ControlPlaneBroken if status >= _BROKEN_MIN else RequestInvalid
    return _LEAF_OF_STATUS.get(status, broken)(code, message, param, retry_after_ms)
