"""The grammar of subjects: which are well formed, and what a pattern covers."""

import re
from collections.abc import Iterable

# Printable ASCII without space, dot and the two wildcards: what every NATS client and server reads
# alike. A space or line end in a subject would be read as the next command of the protocol.
_PART = r"[!-)+\-/-=?-~]+"
_SUBJECT = re.compile(rf"{_PART}(?:\.{_PART})*")
_PATTERN = re.compile(rf">|(?:{_PART}|\*)(?:\.(?:{_PART}|\*))*(?:\.>)?")
_GROUP = re.compile(_PART)


def check_subject(subject: str) -> None:
    """Raise ValueError unless a message may be sent to this subject: parts, dots, no wildcard."""
    if _SUBJECT.fullmatch(subject) is None:
        raise ValueError(f"not a subject: {subject!r}")


def check_pattern(pattern: str) -> None:
    """Raise ValueError unless one may listen here: parts or `*`, and `>` only at the end."""
    if _PATTERN.fullmatch(pattern) is None:
        raise ValueError(f"not a pattern of subjects: {pattern!r}")


def check_permissions(publish: Iterable[str], subscribe: Iterable[str]) -> None:
    """Raise ValueError unless these patterns allow no more than they say.

    To listen, none may end in `*`: a NATS server lets who is allowed `a.*` listen on `a.>` too, and
    so on everything below (seen with 2.15.1).
    """
    for pattern in publish:
        check_pattern(pattern)
    for pattern in subscribe:
        check_pattern(pattern)
        if pattern.endswith("*"):
            raise ValueError(f"allows more than it says, write '>' if meant: {pattern!r}")


def check_group(group: str) -> None:
    """Raise ValueError unless this names a group; the empty name stands for none."""
    if group and _GROUP.fullmatch(group) is None:
        raise ValueError(f"not the name of a group: {group!r}")


def covers(pattern: str, subject: str) -> bool:
    """Whether `pattern` covers all that `subject`, itself a subject or a pattern, can mean."""
    wanted = pattern.split(".")
    given = subject.split(".")
    for index, part in enumerate(wanted):
        if index == len(given):
            return False
        if part == ">":
            return True
        if given[index] == ">" or part not in ("*", given[index]):
            return False
    return len(wanted) == len(given)
