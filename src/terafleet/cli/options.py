"""Makes commands of Structs: each field is an argument or option, and the function gets them all.

A command has more options than a function should have parameters, and many share some of them.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import msgspec
import typer

from terafleet.cli.groups import QuickGroup

T = TypeVar("T", bound=msgspec.Struct)

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([1-9][0-9]{0,7})([smhd])")
_PORT_MAX = 65_535


def noun(name: str, summary: str) -> typer.Typer:
    """An app for the commands below a noun."""
    return typer.Typer(
        name=name, cls=QuickGroup, help=summary, no_args_is_help=True, rich_markup_mode=None
    )


def add_command(
    app: typer.Typer,
    name: str,
    kind: type[T],
    run: Callable[[T], None],
    example: str,
    is_hidden: bool = False,
) -> None:
    """Add the command `name` to an app: it calls `run`, whose docstring is its help, with a `kind`.

    The fields of `kind` are annotated as typer wants parameters to be. A hidden one works too.
    """
    add = app.command(
        name, help=inspect.getdoc(run), epilog=f"Example: {example}", hidden=is_hidden
    )
    add(_function(kind, run))


def duration_s(text: str) -> int:
    """A duration like `90s`, `30m`, `1h` or `2d` in seconds. Raises BadParameter."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 30m, 1h or 2d")
    return int(found[1]) * _SECONDS[found[2]]


def host_and_port(text: str) -> tuple[str, int]:
    """`host:port`, or `[address]:port` for IPv6; port 0 is any free one. Raises BadParameter."""
    host, separator, port = text.strip().rpartition(":")
    plain = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and int(port) <= _PORT_MAX
    is_host = bool(plain) and (":" not in plain or host == f"[{plain}]")
    if not (separator and is_port and is_host):
        raise typer.BadParameter(f"{text!r} is no address; write HOST:PORT")
    return plain, int(port)


def _function(kind: type[T], run: Callable[[T], None]) -> Callable[..., None]:
    """A function with the fields of `kind` as its keyword parameters."""

    def command(**values: Any) -> None:
        run(kind(**values))

    hints = get_type_hints(kind, include_extras=True)
    own = inspect.get_annotations(kind)
    # What many commands share stands below what a command has of its own.
    fields = sorted(msgspec.structs.fields(kind), key=lambda field: field.name not in own)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.required else field.default,
            annotation=hints[field.name],
        )
        for field in fields
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command
