"""The command `vehicle status`: what this car does or why not, what it took, and what it earned."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from terafleet.cli.failure import CommandFailed, extra_needed, printable
from terafleet.cli.options import add_command
from terafleet.cli.output import print_json, print_table
from terafleet.core.local_time import MS_PER_DAY

if TYPE_CHECKING:
    from terafleet.agent.history import AttemptRow
    from terafleet.agent.status import AgentStatus

LIMIT = 50
LIMIT_MAX = 10_000
COLUMNS = ("ENDED", "WORK", "MODEL", "LENGTH", "ENERGY", "OUTCOME")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `vehicle status`."""

    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="The folder of this car's agent.")
    ]
    attempts: Annotated[
        bool, typer.Option("--attempts", help="List the attempts of the last day instead.")
    ] = False
    limit: Annotated[
        int,
        typer.Option(min=1, max=LIMIT_MAX, metavar="N", help="How many attempts at the most."),
    ] = LIMIT
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False


class AttemptList(msgspec.Struct, frozen=True):
    """What `--attempts --json` prints, newest first."""

    attempts: "list[AttemptRow]"


def register_status(vehicles: typer.Typer) -> None:
    """Add the command to those below `vehicle`."""
    for name, is_hidden in (("status", False), ("show", True)):
        example = f"terafleet vehicle {name} --data car"
        add_command(vehicles, name, Status, show_status, example, is_hidden)


def show_status(options: Status) -> None:
    """Show what this car does, or why it does not compute.

    And what compute took of it today, and what it earned. Attempts are told by their class, never
    by their content.
    """
    with extra_needed("agent"):
        from terafleet.agent.status import read_status
    status = read_status(options.data)
    if options.attempts:
        show_attempts(options, status)
        return
    if status is None:
        message = f"No agent has said anything in {options.data}."
        advice = f"Start it with: terafleet vehicle run --data {options.data}"
        raise CommandFailed("agent_silent", message, advice)
    if options.is_json:
        print_json(status)
    else:
        print_status(status)


def print_status(status: "AgentStatus") -> None:
    """Print all topics, one line a fact; a name that goes on is not said again."""
    from terafleet.agent.status_words import topics
    from terafleet.engine.clock import SystemClock

    is_there = is_running(status.process_id)
    now_ms = SystemClock().now_ms() if is_there else status.at_ms
    told = topics(status, now_ms, is_running=is_there)
    width = max(len(fact.name) for topic in told for fact in topic.facts)
    for number, topic in enumerate(told):
        if number:
            typer.echo()
        before = ""
        for fact in topic.facts:
            name = fact.name if fact.name != before else ""
            typer.echo(f"{name:{width}}  {printable(fact.text)}".rstrip())
            before = fact.name


def show_attempts(options: Status, status: "AgentStatus | None") -> None:
    """Print the attempts of the last day, newest first. Raises CommandFailed."""
    with extra_needed("agent"):
        from terafleet.agent.history import HistoryUnreadable, read_attempts
        from terafleet.agent.status_words import attempt_words
        from terafleet.engine.clock import SystemClock
    since_ms = SystemClock().now_ms() - MS_PER_DAY
    is_there = status is not None and is_running(status.process_id)
    standing = status.lease_ids if status is not None and is_there else ()
    found = read_attempts(options.data, since_ms, options.limit, standing)
    if isinstance(found, HistoryUnreadable):
        raise CommandFailed(
            "record_unreadable", f"The agent's record can't be read: {found.detail}."
        )
    if options.is_json:
        print_json(AttemptList(found))
    else:
        print_table(COLUMNS, [attempt_words(row, status) for row in found])


def is_running(process_id: int) -> bool:
    """Whether a process of that number lives."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
