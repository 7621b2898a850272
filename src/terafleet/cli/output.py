"""How commands print: JSON for programs, tables for people; never a colour into a file."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from terafleet.cli.failure import printable
from terafleet.core.units import MS_PER_S

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 1_000
"""Columns where nobody looks: a table in a file is not folded."""

NONE = "-"
_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_SPANS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def print_json(value: msgspec.Struct | Mapping[str, Any]) -> None:
    """Print a struct or table as JSON; the names of its fields are stable."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below the names of their columns, or say that there are none."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo("There are none.")
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    _console().print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print what is so, one line a fact, the names in one column."""
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        typer.echo(f"{name:{width}}  {printable(text)}".rstrip())


def note(text: str) -> None:
    """Say something to the person that does not belong to the output."""
    sys.stderr.write(f"{printable(text)}\n")


def moment(at_ms: int) -> str:
    """A time (ms since 1970) where this computer is; `-` for 0."""
    if at_ms == 0:
        return NONE
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / MS_PER_S))


def span(length_ms: int) -> str:
    """A length of time in its largest unit, rounded down."""
    length_s = max(0, length_ms) // MS_PER_S
    for seconds, unit in _SPANS:
        if length_s >= seconds:
            return f"{length_s // seconds} {unit}"
    return f"{length_s} s"


def size(count_bytes: int) -> str:
    """A number of bytes in its largest unit."""
    for unit_bytes, unit in _SIZES:
        if count_bytes >= unit_bytes:
            number = count_bytes / unit_bytes
            return f"{number:.1f} {unit}"
    return f"{count_bytes} bytes"


def console_for_progress() -> "Console":
    """Where progress is shown: beside the output, so that the output can go into a file."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)
