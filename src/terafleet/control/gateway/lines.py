"""Decides about one line of a batch's input file: a request that can be done, or why not."""

from typing import Any

import msgspec

from terafleet.control.gateway.parameters import NAME_SHOWN_MAX, Fault, check_body
from terafleet.control.gateway.splitting import Line
from terafleet.protocol.openai import BATCH_ENDPOINTS, CUSTOM_ID_MAX

ENDPOINT_SHOWN_MAX = 128
"""An address comes from the customer; no more of it is kept."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELDS = ("custom_id", "method", "url", "body")


class TakenLine(msgspec.Struct, frozen=True):
    """A request: `body_bytes` is its body as one line of JSON, `cost` its predicted tokens."""

    line_number: int
    custom_id: str
    endpoint: str
    model: str
    body_bytes: bytes
    cost: int


class RefusedLine(msgspec.Struct, frozen=True):
    """Why a line can't be taken; `custom_id` and `endpoint` where the line has them."""

    line_number: int
    code: str
    message: str
    param: str | None = None
    custom_id: str | None = None
    endpoint: str | None = None


def check_line(line: Line, line_bytes_max: int) -> TakenLine | RefusedLine:
    """Parse and check a line; whatever its bytes are, it raises nothing."""
    number, text = line
    if len(text) > line_bytes_max:
        message = f"Line {number} is longer than {line_bytes_max} bytes."
        return RefusedLine(number, "line_too_long", message)
    if number == 1:
        text = text.removeprefix(_BYTE_ORDER_MARK)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"Line {number} is not JSON in UTF-8: {error}."
        return RefusedLine(number, "invalid_json_line", message)
    if not isinstance(value, dict):
        message = f"Line {number} is not a JSON object."
        return RefusedLine(number, "invalid_json_line", message)
    return _check_object(number, value)


def _check_object(number: int, value: dict[str, Any]) -> TakenLine | RefusedLine:
    custom_id, endpoint = value.get("custom_id"), value.get("url")
    fault = _fault_of_fields(value)
    if fault is None:
        checked = check_body(value["url"], value["body"])
        if not isinstance(checked, Fault):
            body_bytes = msgspec.json.encode(checked.body)
            return TakenLine(
                number, value["custom_id"], value["url"], checked.model, body_bytes, checked.cost
            )
        fault = checked
    return RefusedLine(
        line_number=number,
        code=fault.code,
        message=f"Line {number}: {fault.message}.",
        param=fault.param,
        custom_id=custom_id if _is_custom_id(custom_id) else None,
        endpoint=endpoint[:ENDPOINT_SHOWN_MAX] if isinstance(endpoint, str) else None,
    )


def _fault_of_fields(value: dict[str, Any]) -> Fault | None:
    for name in value:
        if name not in _FIELDS:
            shown = name[:NAME_SHOWN_MAX]
            return Fault("unsupported_parameter", f"{shown} is no field of a batch line", shown)
    for name in _FIELDS:
        if value.get(name) is None:
            return Fault("missing_parameter", f"{name} is missing", name)
    if not _is_custom_id(value["custom_id"]):
        message = f"custom_id must be a text of 1 to {CUSTOM_ID_MAX} characters"
        return Fault("invalid_value", message, "custom_id")
    if value["method"] != "POST":
        return Fault("invalid_value", "method must be POST", "method")
    if value["url"] not in BATCH_ENDPOINTS:
        message = "url must be one of " + ", ".join(BATCH_ENDPOINTS)
        return Fault("unsupported_endpoint", message, "url")
    if not isinstance(value["body"], dict):
        return Fault("invalid_value", "body must be a JSON object", "body")
    return None


def _is_custom_id(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= CUSTOM_ID_MAX
