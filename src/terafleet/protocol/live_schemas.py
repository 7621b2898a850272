"""Decides which JSON schemas an answer can be held to, and which ones exactly (`strict`).

What is allowed is what llama.cpp makes grammars of; it passes over everything else in silence.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any, Final

DEPTH_MAX: Final = 32
"""How deep a schema may be nested; those who read it call themselves at each level."""

ENTRIES_MAX: Final = 512
VALUES_MAX: Final = 4_096
PATTERN_CHARACTERS_MAX: Final = 1_024
REPETITIONS_MAX: Final = 128
"""What an object or list of a schema may have, a whole schema, and a pattern.

A car that makes a grammar of more is busy with nothing else for seconds, with far more for ever:
its work grows with the square of the choices, and faster with repetitions in each other.
"""

_NOTES: Final = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples"}
)
_EVERYWHERE: Final = _NOTES | {"type", "enum", "const", "anyOf", "$ref", "$defs", "definitions"}
_OF_TYPE: Final = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"pattern", "format", "minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset[str](),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_FORMATS: Final = ("date", "time", "date-time", "uuid")
_NAMED_SCHEMAS: Final = ("properties", "$defs", "definitions")
_LISTED_SCHEMAS: Final = ("anyOf", "prefixItems")
_SHOWN_CHARACTERS_MAX: Final = 64
_DIGITS_READ: Final = 7
_PATTERN_PART: Final = re.compile(
    r"\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<least>\d+)(?:,(?P<most>\d*))?\}|.", re.DOTALL
)
"""An escape, a class of characters, a counted repetition, or any other character."""


def size_fault(schema: Any) -> str | None:
    """Why a schema is too large to hold an answer to, in words, or None; needs no recursion."""
    level, values = [schema], 0
    for _ in range(DEPTH_MAX + 1):
        if any(len(_inner(value)) > ENTRIES_MAX for value in level):
            return f"An object or list of the schema has more than {ENTRIES_MAX} entries."
        if any(_repeats_too_often(value) for value in level):
            return (
                f"A pattern of the schema has more than {PATTERN_CHARACTERS_MAX} characters, "
                f"or repeats something more than {REPETITIONS_MAX} times."
            )
        level = [inner for value in level for inner in _inner(value)]
        values += len(level)
        if values > VALUES_MAX:
            return f"The schema has more than {VALUES_MAX} values."
        if not level:
            return None
    return f"The schema is nested more than {DEPTH_MAX} times."


def strict_fault(schema: Any) -> str | None:
    """Why an answer can't be held to a schema exactly, in words, or None.

    The schema is not too deep.
    """
    if not isinstance(schema, dict):
        return "A schema is an object."
    kinds = schema.get("type", [])
    types = kinds if isinstance(kinds, list) else [kinds]
    known = _EVERYWHERE.union(*[_OF_TYPE.get(str(one), ()) for one in types])
    for name, value in schema.items():
        if name not in known:
            shown = name[:_SHOWN_CHARACTERS_MAX]
            return f"An answer can't be held to {shown} here; leave it out, or strict."
        fault = _value_fault(name, value)
        if fault is not None:
            return fault
    return None


def _value_fault(name: str, value: Any) -> str | None:
    if name == "type":
        types = value if isinstance(value, list) else [value]
        return None if all(str(one) in _OF_TYPE for one in types) else "There is no such type."
    if name == "pattern" and not (str(value).startswith("^") and str(value).endswith("$")):
        return "A pattern begins with ^ and ends with $."
    if name == "format" and value not in _FORMATS:
        return f"The formats are {', '.join(_FORMATS)}."
    for schema in _schemas_below(name, value):
        fault = strict_fault(schema)
        if fault is not None:
            return fault
    return None


def _schemas_below(name: str, value: Any) -> Iterable[Any]:
    if name in _NAMED_SCHEMAS:
        return value.values() if isinstance(value, dict) else [None]
    if name in _LISTED_SCHEMAS:
        return value if isinstance(value, list) else [None]
    if name == "items" or (name == "additionalProperties" and not isinstance(value, bool)):
        return [value]
    return ()


def _inner(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _repeats_too_often(schema: Any) -> bool:
    pattern = schema.get("pattern") if isinstance(schema, dict) else None
    if not isinstance(pattern, str):
        return False
    return len(pattern) > PATTERN_CHARACTERS_MAX or repetitions_of(pattern) > REPETITIONS_MAX


def repetitions_of(pattern: str) -> int:
    """How often counted repetitions write something out: those in each other multiply."""
    sums, last = [0], 0
    for part in _PATTERN_PART.finditer(pattern):
        if part[0] == "(":
            sums.append(0)
        elif part[0] == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        elif part["least"]:
            times = int((part["most"] or part["least"]).lstrip("0")[:_DIGITS_READ] or "0")
            more = times * max(1, last) - last
            sums[-1] += more
            last += more
        elif part[0] not in "*+?":
            last = 0
    return sum(sums)
