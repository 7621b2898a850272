"""Makes an owner policy of a table that was read from a file or came over a network."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_faults import PolicyFault, policy_faults

NO_LIMIT = "none"
"""What a person writes to lift a limit, as TOML has no word for nothing."""

DEPTH_MAX = 8
"""No policy has tables so deep; it bounds what a look at a foreign one costs."""


class PolicyFaults(msgspec.Struct, frozen=True):
    """A table is no policy, for each of these reasons."""

    faults: tuple[PolicyFault, ...]


def policy_from(table: Mapping[str, Any]) -> OwnerPolicy | PolicyFaults:
    """The policy that a table says; what it does not name is as by default.

    Dates and times may stand as TOML has them. Every field that is wrong is told, not the first
    alone.
    """
    plain = written(table)
    faults = tuple(_type_faults(OwnerPolicy, plain, ""))
    if not faults:
        policy = msgspec.convert(plain, OwnerPolicy)
        faults = tuple(policy_faults(policy))
        if not faults:
            return policy
    return PolicyFaults(faults)


def laid_over(
    below: Mapping[str, Any], above: Mapping[str, Any], depth: int = DEPTH_MAX
) -> dict[str, Any]:
    """Both tables in one, name by name at any depth; where both say something, `above` holds.

    A list is one value: it takes the place of the other whole.
    """
    joined = dict(below)
    for name, value in above.items():
        under = joined.get(name)
        if depth and isinstance(under, Mapping) and isinstance(value, Mapping):
            joined[name] = laid_over(under, value, depth - 1)
        else:
            joined[name] = value
    return joined


def written(value: Any, depth: int = DEPTH_MAX) -> Any:
    """A value without what only TOML has: a date is its text, and `none` is no limit."""
    if depth and isinstance(value, Mapping):
        return {str(name): written(one, depth - 1) for name, one in value.items()}
    if depth and isinstance(value, list | tuple):
        return [written(one, depth - 1) for one in value]
    if isinstance(value, str):
        return None if value == NO_LIMIT else value
    return value.isoformat() if hasattr(value, "isoformat") else value


def _type_faults(kind: type[msgspec.Struct], table: Any, path: str) -> Iterator[PolicyFault]:
    """Names that are not there, and values of another type."""
    if not isinstance(table, Mapping):
        yield PolicyFault(path, "must be a table")
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for name, value in table.items():
        below = f"{path}.{name}" if path else name
        if name not in fields:
            yield PolicyFault(below, f"is no such name; there are {', '.join(sorted(fields))}")
        elif isinstance(fields[name], type) and issubclass(fields[name], msgspec.Struct):
            yield from _type_faults(fields[name], value, below)
        else:
            yield from _value_faults(fields[name], value, below)


def _value_faults(kind: Any, value: Any, path: str) -> Iterator[PolicyFault]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        allowed = message[:1].lower() + message[1:]
        yield PolicyFault(path + place.rstrip("`"), allowed.replace("`", ""))
