"""Decides which JSON schemas an answer can be held to exactly, as `strict` asks for.

What is allowed is what llama.cpp makes grammars of; it passes over everything else in silence.
"""

from collections.abc import Iterable
from typing import Any, Final

DEPTH_MAX: Final = 32
"""How deep a schema may be nested; those who read it call themselves at each level."""

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


def is_too_deep(values: Iterable[Any]) -> bool:
    """Whether JSON values have more than `DEPTH_MAX` levels; needs no recursion."""
    level = list(values)
    for _ in range(DEPTH_MAX + 1):
        level = [inner for value in level for inner in _inner(value)]
        if not level:
            return False
    return True


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


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
