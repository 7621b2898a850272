"""Reads the body of a request for a batch; refuses by name whatever is not kept."""

from typing import Any

import msgspec

from terafleet.control.gateway.errors import ApiError
from terafleet.protocol.openai import (
    BATCH_ENDPOINTS,
    METADATA_KEY_MAX,
    METADATA_PAIRS_MAX,
    METADATA_VALUE_MAX,
    BatchCreate,
    window_ms,
)

NAME_SHOWN_MAX = 64

_REQUIRED = ("input_file_id", "endpoint", "completion_window")
_PARAMETERS = (*_REQUIRED, "metadata")


def read_batch_create(body: bytes) -> BatchCreate:
    """The body of `POST /v1/batches`. Raises ApiError that names the parameter at fault."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("invalid_request", f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ApiError("invalid_request", "The body must be a JSON object.")
    for name in value:
        if name not in _PARAMETERS:
            shown = name[:NAME_SHOWN_MAX]
            raise ApiError("unsupported_parameter", f"{shown} is not supported.", shown)
    return BatchCreate(
        input_file_id=_text(value, "input_file_id"),
        endpoint=_endpoint(value),
        completion_window=_window(value),
        metadata=_metadata(value.get("metadata")),
    )


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if text is None:
        raise ApiError("missing_parameter", f"{name} is missing.", name)
    if not isinstance(text, str):
        raise ApiError("invalid_value", f"{name} must be a text.", name)
    return text


def _endpoint(value: dict[str, Any]) -> str:
    endpoint = _text(value, "endpoint")
    if endpoint not in BATCH_ENDPOINTS:
        message = "endpoint must be one of " + ", ".join(BATCH_ENDPOINTS) + "."
        raise ApiError("unsupported_endpoint", message, "endpoint")
    return endpoint


def _window(value: dict[str, Any]) -> str:
    window = _text(value, "completion_window")
    if window_ms(window) is None:
        message = "completion_window must be 24h, or whole minutes or hours from 1m to 24h."
        raise ApiError("invalid_value", message, "completion_window")
    return window


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ApiError("invalid_value", "metadata must be a JSON object.", "metadata")
    if len(value) > METADATA_PAIRS_MAX:
        message = f"metadata may have {METADATA_PAIRS_MAX} pairs."
        raise ApiError("invalid_value", message, "metadata")
    for key, text in value.items():
        is_short = isinstance(text, str) and len(text) <= METADATA_VALUE_MAX
        if len(key) > METADATA_KEY_MAX or not is_short:
            message = (
                f"metadata must have keys of up to {METADATA_KEY_MAX} characters "
                f"and texts of up to {METADATA_VALUE_MAX}."
            )
            raise ApiError("invalid_value", message, "metadata")
    return value
