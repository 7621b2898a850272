"""Whether a returned result is right, as far as it was checked."""

from enum import StrEnum


class Appraisal(StrEnum):
    """What verification says of a returned attempt."""

    VALID = "valid"
    INVALID = "invalid"


def appraise_count(requests: int, answers: int, answers_failed: int) -> Appraisal:
    """Valid when a result answers every request of its unit exactly once.

    It checks what the car says of its output, not the output: the gateway checks the lines when
    it writes the customer's file. Content is not compared with another car's.
    """
    if answers == requests and 0 <= answers_failed <= answers:
        return Appraisal.VALID
    return Appraisal.INVALID
