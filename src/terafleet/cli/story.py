"""The command that tells what happened to one thing."""

from typing import Annotated

import typer

from terafleet.cli.connection import Asking, admin_client
from terafleet.cli.failure import CommandFailed, printable
from terafleet.cli.options import add_command
from terafleet.cli.output import moment, note, print_json

LINES, LINES_MAX = 100, 1_000


class Tell(Asking, frozen=True, kw_only=True):
    """The options of `story`."""

    about: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A batch, work unit, lease, car or model: batch_…, unit-7, lease-7, veh-…, "
            "or the model's whole id.",
        ),
    ]
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=LINES_MAX, help="The newest so many lines.")
    ] = LINES


def register(app: typer.Typer) -> None:
    """Add the command `story`."""
    add_command(app, "story", Tell, tell, "terafleet story veh-abcdefghij")


def tell(options: Tell) -> None:
    """Tell from the journal what happened to a batch, work unit, lease, car or model."""
    with admin_client(options) as client:
        page = client.story(options.about, options.limit)
    if options.is_json:
        print_json(page)
        return
    if not page.lines:
        message = f"The journal tells nothing about {options.about}."
        raise CommandFailed("story_empty", message, "Look whether the id is whole.")
    if not page.is_complete:
        note("Older lines are left out; --limit shows more.")
    for line in page.lines:
        typer.echo(f"{moment(line.at_ms)}  {printable(line.text)}")
