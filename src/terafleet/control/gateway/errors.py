"""Turns every failure of a route into OpenAI's error form; decides which code each one gets."""

from collections.abc import Mapping
from traceback import format_exception
from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from terafleet.control.gateway.context import ShardRefused, ShardUnavailable
from terafleet.control.ports import CatalogueFull, CatalogueUnavailable, ObjectsFull
from terafleet.core.reasons import Refused
from terafleet.protocol.errors import ERRORS, ErrorReply, error_reply

RETRY_AFTER_S = 2
"""What a client should wait when the cause is expected to pass by itself."""

STORAGE_RETRY_AFTER_S = 60
"""Room comes back when somebody makes it, not within seconds."""

CONFLICT = 409
"""The HTTP status of what contradicts what is there already."""

BROKEN_MIN = 500
"""From this HTTP status on the fault is ours."""

CODE_OF_REFUSED: dict[Refused, str] = {
    Refused.MODEL_UNKNOWN: "model_not_found",
    Refused.ENDPOINT_UNSUPPORTED: "unsupported_endpoint",
    Refused.NO_FEASIBLE_VEHICLE: "no_feasible_vehicle",
    Refused.FLEET_EMPTY: "fleet_empty",
    # Gateways draw ids at random, so a taken one is a fault of theirs and not of the customer.
    Refused.BATCH_UNKNOWN: "batch_not_found",
    Refused.BATCH_ENDED: "batch_ended",
    Refused.STORAGE_FULL: "storage_full",
    Refused.VEHICLE_UNKNOWN: "vehicle_not_found",
    Refused.OVERLOADED: "overloaded",
    Refused.NO_SLOT_FREE: "no_slot_free",
    Refused.NO_SLOT_SPARE: "no_slot_spare",
    Refused.NO_VEHICLE_PERMITS: "no_vehicle_permits",
}

_RETRY_AFTER = {
    "shard_unavailable": RETRY_AFTER_S,
    "overloaded": RETRY_AFTER_S,
    "storage_full": STORAGE_RETRY_AFTER_S,
}

_FINAL = {
    "storage_full",
    *(code for code, kind in ERRORS.items() if kind.status == CONFLICT),
}
"""What OpenAI's clients would ask again by themselves, and must tell their callers at once.

They retry each 409 and 5xx twice and sleep for as long as `Retry-After` says, unless the answer
has the header `x-should-retry: false` (`_should_retry` in `openai/_base_client.py`).
"""

_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "file_too_large"}

_CLIENT_GONE = "client disconnected prematurely"
"""How litestar says that a body broke off; it has no exception of its own for it."""

AnyRequest = Request[Any, Any, Any]

_log = structlog.get_logger()


class ApiError(Exception):
    """A request that is answered with an error; `code` is one of `protocol.errors.ERRORS`."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`message` is for the caller's eyes; `param` names the parameter at fault."""
        assert code in ERRORS, code
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


def error_response(error: ApiError) -> Response[ErrorReply]:
    """The HTTP answer for an error.

    `Retry-After` says how long to wait where that helps, `x-should-retry: false` that a client
    should not do so by itself.
    """
    headers = dict(error.headers)
    if error.code in _FINAL:
        headers["x-should-retry"] = "false"
    if error.code in _RETRY_AFTER:
        headers.setdefault("retry-after", str(_RETRY_AFTER[error.code]))
    return Response(
        error_reply(error.code, error.message, error.param),
        status_code=ERRORS[error.code].status,
        headers=headers,
        media_type="application/json",
    )


def _answer_api_error(_: AnyRequest, error: ApiError) -> Response[ErrorReply]:
    return error_response(error)


def _answer_shard_unavailable(
    _: AnyRequest,
    error: ShardUnavailable,
) -> Response[ErrorReply]:
    _log.warning("shard_unavailable", cause=str(error))
    message = "The fleet's shard did not answer; ask again in a moment."
    return error_response(ApiError("shard_unavailable", message))


def _answer_shard_refused(_: AnyRequest, error: ShardRefused) -> Response[ErrorReply]:
    answered = error.answered
    assert answered.refused is not None, "a refusal has a reason"
    message = answered.detail or answered.refused.value.replace("_", " ").capitalize() + "."
    return error_response(ApiError(CODE_OF_REFUSED[answered.refused], message))


def _answer_full(
    _: AnyRequest,
    error: CatalogueFull | ObjectsFull,
) -> Response[ErrorReply]:
    _log.error("storage_full", cause=str(error))
    return error_response(ApiError("storage_full", "There is no room left to store this."))


def _answer_unavailable(_: AnyRequest, error: CatalogueUnavailable) -> Response[ErrorReply]:
    _log.warning("catalogue_unavailable", cause=str(error))
    message = "The control plane's database can't be reached; ask again in a moment."
    return error_response(ApiError("overloaded", message))


def _answer_validation(_: AnyRequest, error: ValidationException) -> Response[ErrorReply]:
    faults = error.extra if isinstance(error.extra, list) else []
    if not faults:
        return error_response(ApiError("invalid_request", error.detail))
    param = str(faults[0].get("key", "")) or None
    if param == "data":
        message = "The body must be a JSON object as the description of this interface says."
        return error_response(ApiError("invalid_request", message))
    return error_response(ApiError("invalid_value", str(faults[0]["message"]), param))


def _answer_http_exception(
    request: AnyRequest,
    error: HTTPException,
) -> Response[ErrorReply]:
    if error.detail == _CLIENT_GONE:
        # Nobody reads this answer.
        return error_response(ApiError("invalid_request", "The body of the request broke off."))
    if error.status_code >= BROKEN_MIN:
        return _answer_fault(request, error)
    code = _CODE_OF_STATUS.get(error.status_code, "invalid_request")
    messages = {
        "not_found": f"There is nothing at {request.scope['path'][:200]}.",
        "method_not_allowed": f"{request.method[:20]} is not possible at this address.",
        "file_too_large": "The body of the request is too large.",
    }
    return error_response(ApiError(code, messages.get(code, error.detail), headers=error.headers))


def _answer_recursion(_: AnyRequest, __: RecursionError) -> Response[ErrorReply]:
    return error_response(ApiError("invalid_request", "The body is nested too deeply."))


def _answer_fault(request: AnyRequest, error: Exception) -> Response[ErrorReply]:
    # As text, since some renderers of exceptions show local variables, and with them bodies.
    cause = "".join(format_exception(error))
    _log.error("request_failed", path=request.scope["path"][:200], cause=cause)
    message = "Something broke on our side; the request id says where to look."
    return error_response(ApiError("internal_error", message))


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    ApiError: _answer_api_error,
    ShardUnavailable: _answer_shard_unavailable,
    ShardRefused: _answer_shard_refused,
    CatalogueFull: _answer_full,
    CatalogueUnavailable: _answer_unavailable,
    ObjectsFull: _answer_full,
    ValidationException: _answer_validation,
    HTTPException: _answer_http_exception,
    # Only a body can nest without bound here, and its parser recurses.
    RecursionError: _answer_recursion,
    Exception: _answer_fault,
}
