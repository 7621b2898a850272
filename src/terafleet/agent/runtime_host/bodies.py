"""Reads request bodies in OpenAI's form, and writes the lines that answer them."""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from terafleet.protocol.errors import ERRORS, ErrorReply, error_reply
from terafleet.protocol.live import LiveFault, fault_of

_MESSAGE_CHARACTERS_MAX = 400

BodyT = TypeVar("BodyT", bound=msgspec.Struct)


class Answer(msgspec.Struct, frozen=True):
    """One line of an attempt's output."""

    status_code: int
    body: msgspec.Raw | ErrorReply


_ENCODER: Final = msgspec.json.Encoder()


def lines_of(payload: bytes) -> list[bytes]:
    """The lines of JSON Lines; the end of the last one may be missing."""
    lines = payload.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def parsed(line: bytes, decoder: msgspec.json.Decoder[BodyT]) -> BodyT | Answer:
    """The body that a line holds, or the answer that says what is wrong with it."""
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        return refusal_of(fault_of(str(error)))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return refusal("invalid_json_line", f"The line is not valid JSON: {error}")


def refusal(code: str, message: str, parameter: str | None = None) -> Answer:
    """The answer for a request that is not served; `code` is one of `protocol.errors`."""
    reply = error_reply(code, message[:_MESSAGE_CHARACTERS_MAX], parameter)
    return Answer(ERRORS[code].status, reply)


def refusal_of(fault: LiveFault) -> Answer:
    """The same as an answer in a file."""
    return refusal(fault.code, fault.message, fault.param)


def success(body: bytes) -> Answer:
    """The answer with a response body that is already JSON."""
    return Answer(200, msgspec.Raw(body))


def payload_of(answers: Sequence[Answer]) -> bytes:
    """The answers as JSON Lines."""
    return b"".join([_ENCODER.encode(answer) + b"\n" for answer in answers])
