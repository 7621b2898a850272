"""Counts the answers in a runtime's output, and finds out whether it is whole."""

import msgspec

FAILED_STATUS_MIN = 400


class AnswerCount(msgspec.Struct, frozen=True):
    """How many answers an output has, and how many of them are errors."""

    answers: int
    answers_failed: int


class _Line(msgspec.Struct):
    status_code: int


_LINES = msgspec.json.Decoder(_Line)


def count_answers(output: bytes) -> AnswerCount | None:
    """The count of JSON Lines with a `status_code` each; None if a line is not such a one."""
    try:
        lines = _LINES.decode_lines(output)
    except msgspec.MsgspecError:
        return None
    failed = 0
    for line in lines:
        failed += line.status_code >= FAILED_STATUS_MIN
    return AnswerCount(len(lines), failed)
