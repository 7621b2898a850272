"""Writes a commented owner.toml with every field, made of the structs themselves."""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec

from terafleet.cli.policy_words import FIELDS
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_tables import NO_LIMIT

COLUMNS = 98
EXAMPLES = {
    "charge.departures": '[{ days = ["mon", "tue"], at = "07:30", soc_percent = 80 }]',
    "hours.compute": '[{ days = ["sat", "sun"] }, { from = "18:00", to = "07:00" }]',
    "hours.network": '[{ from = "00:00", to = "06:00" }]',
    "hours.quiet": '[{ from = "22:00", to = "06:00" }]',
    "places.allowed": '["home", "work"]',
    "work.endpoints": '["embeddings"]',
    "resume_at": '"2026-09-01T07:00"',
    "terms.tariff.windows": (
        "[{ micro_per_kwh = 170_000, begin_minute = 0, end_minute = 360, weekdays = [5, 6] }]"
    ),
}
"""What may stand in fields whose default shows nothing."""

HEAD = """\
# An owner.toml with every field and its default, all of them switched off by a # before the name.
# Take the # away from what you want otherwise; what is not written is as by default.
# "none" lifts a limit. Energy is in mWh, power in mW, time in ms, money in millionths.
"""


def example() -> str:
    """The whole file, as text."""
    return HEAD + "\n".join(_lines(OwnerPolicy(), "")) + "\n"


def _lines(table: msgspec.Struct, path: str) -> Iterator[str]:
    """A table's own fields first, as TOML wants it, then the tables below it."""
    below = []
    for field in msgspec.structs.fields(table):
        value = getattr(table, field.name)
        name = f"{path}{field.encode_name}"
        if isinstance(value, msgspec.Struct):
            below.append((name, value))
        else:
            yield from _field(name, field.encode_name, value)
    for name, value in below:
        yield f"\n[{name}]"
        yield from _lines(value, f"{name}.")


def _field(path: str, name: str, value: Any) -> Iterator[str]:
    means = re.sub(r"; see \[.*", "", FIELDS[path].means).replace("`", "")
    yield from textwrap.wrap(means, COLUMNS, initial_indent="# ", subsequent_indent="# ")
    if path in EXAMPLES:
        yield f"# such as {name} = {EXAMPLES[path]}"
    yield f"#{name} = {toml(value)}"


def toml(value: Any) -> str:
    """A value as TOML has it."""
    match value:
        case None:
            return f'"{NO_LIMIT}"'
        case bool():
            return str(value).lower()
        case int():
            return f"{value:_}"
        case float():
            return f"{value}"
        case tuple():
            return f"[{', '.join(map(toml, value))}]"
        case _:
            return json.dumps(value)
