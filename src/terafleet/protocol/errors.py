"""The table of error codes: HTTP status and OpenAI's `type` for each; and OpenAI's error form."""

import msgspec


class ErrorKind(msgspec.Struct, frozen=True):
    """How a code is told over HTTP."""

    status: int
    type: str


INVALID, AUTHENTICATION, PERMISSION = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
)
NOT_FOUND, OVERLOADED, BROKEN = "not_found_error", "overloaded_error", "server_error"

ERRORS: dict[str, ErrorKind] = {
    "invalid_request": ErrorKind(400, INVALID),
    "invalid_value": ErrorKind(400, INVALID),
    "missing_parameter": ErrorKind(400, INVALID),
    "unsupported_parameter": ErrorKind(400, INVALID),
    "unsupported_endpoint": ErrorKind(400, INVALID),
    "unsupported_purpose": ErrorKind(400, INVALID),
    "invalid_file": ErrorKind(400, INVALID),
    "empty_file": ErrorKind(400, INVALID),
    "file_too_large": ErrorKind(413, INVALID),
    "too_many_requests_in_file": ErrorKind(400, INVALID),
    "duplicate_custom_id": ErrorKind(400, INVALID),
    "mismatched_endpoint": ErrorKind(400, INVALID),
    "invalid_json_line": ErrorKind(400, INVALID),
    "line_too_long": ErrorKind(400, INVALID),
    "context_length_exceeded": ErrorKind(400, INVALID),
    "invalid_model_file": ErrorKind(400, INVALID),
    "model_not_found": ErrorKind(404, INVALID),
    "model_name_taken": ErrorKind(409, INVALID),
    "file_not_found": ErrorKind(404, INVALID),
    "batch_not_found": ErrorKind(404, INVALID),
    "key_not_found": ErrorKind(404, INVALID),
    "vehicle_not_found": ErrorKind(404, INVALID),
    "not_found": ErrorKind(404, INVALID),
    "method_not_allowed": ErrorKind(405, INVALID),
    "batch_ended": ErrorKind(409, INVALID),
    "no_feasible_vehicle": ErrorKind(422, INVALID),
    "fleet_empty": ErrorKind(422, INVALID),
    "invalid_api_key": ErrorKind(401, AUTHENTICATION),
    "revoked_api_key": ErrorKind(401, AUTHENTICATION),
    "operator_only": ErrorKind(403, PERMISSION),
    "enrolment_code_invalid": ErrorKind(403, PERMISSION),
    "enrolment_code_used": ErrorKind(403, PERMISSION),
    "enrolment_code_expired": ErrorKind(403, PERMISSION),
    "signature_wrong": ErrorKind(403, PERMISSION),
    "address_expired": ErrorKind(403, PERMISSION),
    "digest_wrong": ErrorKind(400, INVALID),
    "range_unsatisfiable": ErrorKind(416, INVALID),
    "overloaded": ErrorKind(503, OVERLOADED),
    "no_slot_free": ErrorKind(429, OVERLOADED),
    "no_slot_spare": ErrorKind(429, OVERLOADED),
    "no_vehicle_permits": ErrorKind(503, OVERLOADED),
    "session_failed": ErrorKind(502, BROKEN),
    "deadline_exceeded": ErrorKind(504, BROKEN),
    "reader_too_slow": ErrorKind(408, INVALID),
    "shard_unavailable": ErrorKind(503, OVERLOADED),
    "storage_full": ErrorKind(507, OVERLOADED),
    "internal_error": ErrorKind(500, BROKEN),
}


class ErrorBody(msgspec.Struct, frozen=True):
    """The inner part of OpenAI's error form."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(msgspec.Struct, frozen=True):
    """OpenAI's error form."""

    error: ErrorBody


def error_reply(code: str, message: str, param: str | None = None) -> ErrorReply:
    """The form for a code of the table; a code outside it is a bug."""
    return ErrorReply(ErrorBody(message, ERRORS[code].type, param, code))
