"""Commands that are given in a car: enrol it, run its agent, show what the agent is about."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from terafleet.cli.connection import URL_VARIABLE
from terafleet.cli.failure import CommandFailed, extra_needed
from terafleet.cli.options import add_command
from terafleet.cli.output import NONE, moment, print_facts, print_json
from terafleet.cli.words import refusals_in_words

if TYPE_CHECKING:
    from terafleet.agent.status import AgentStatus

_MWH_PER_WH = 1_000
_CODE_VARIABLE = "TERAFLEET_CODE"

CarFolder = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="The folder of this car's agent.")
]


class Enrol(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `vehicle enrol`."""

    data: CarFolder
    url: Annotated[
        str, typer.Option(envvar=URL_VARIABLE, metavar="URL", help="Where the control plane is.")
    ]
    code: Annotated[
        str,
        typer.Option(
            envvar=_CODE_VARIABLE,
            prompt="Enrolment code",
            metavar="CODE",
            help="The one-time code of the operator; asked for if it is not given.",
        ),
    ]
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What people call the car.", show_default="this computer's name"
        ),
    ] = ""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `vehicle run`; None is what agent.toml says."""

    data: CarFolder
    gateway_url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Another way to the control plane.")
    ] = None
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="How many attempts run at once.")
    ] = None
    runtime_threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", help="Processor threads for each attempt."),
    ] = None
    memory_mb: Annotated[
        int | None, typer.Option(metavar="N", help="Memory lent to the runtime.")
    ] = None
    models_mb_max: Annotated[int | None, typer.Option(metavar="N", help="Disk lent to models.")] = (
        None
    )
    runtimes: Annotated[
        list[str] | None,
        typer.Option("--runtime", metavar="NAME", help="onnx or llama; may come again."),
    ] = None
    timetable: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the car's sensors say, and when.")
    ] = None
    log_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the log there, not to stderr.")
    ] = None
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = None


class Show(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `vehicle show`."""

    data: CarFolder
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False


def register_agent(vehicles: typer.Typer) -> None:
    """Add the commands of the car to those below `vehicle`."""
    code = "abcde-fghjk-mnpqr-stuvw"
    add_command(
        vehicles,
        "enrol",
        Enrol,
        enrol_vehicle,
        f"terafleet vehicle enrol --url http://fleet.example:8600 --code {code} --data car",
    )
    add_command(vehicles, "run", Run, run_agent, "terafleet vehicle run --data car")
    add_command(vehicles, "show", Show, show_agent, "terafleet vehicle show --data car")


def enrol_vehicle(options: Enrol) -> None:
    """Let this car join a fleet (give it in the car).

    It makes the car's key, which never leaves the car. A try that failed half-way may be
    repeated with the same code.
    """
    with extra_needed("agent"):
        from terafleet.agent.identity import IdentityRefused, enrol
        from terafleet.agent.settings import is_http_url
    if not is_http_url(options.url):
        raise typer.BadParameter(f"{options.url!r} is no address; write http://host:port")
    name = options.name.strip() or socket.gethostname()
    found = asyncio.run(enrol(options.data, options.url, options.code, name))
    if isinstance(found, IdentityRefused):
        advice = found.advice
        raise CommandFailed(found.code, found.detail, advice[:1].upper() + advice[1:])
    typer.echo(f"{found.vehicle_id} has joined the fleet. To run its agent:")
    typer.echo(f"  terafleet vehicle run --data {options.data}")


def run_agent(options: Run) -> None:
    """Run the agent of this car until Ctrl-C.

    Options overrule agent.toml in its folder; SIGHUP reads the owner policy in it again. Exit
    codes beside 0 and 2: 1 the settings are wrong, 3 not enrolled, 4 the timetable is wrong,
    5 the folder is in use, 6 it can't be used.
    """
    # The agent gets a fresh interpreter in this process: a car's memory is scarce, and it needs
    # nothing of the command line. -P keeps the folder that this is called in off its path.
    given = msgspec.json.encode(overrides_of(options)).decode()
    arguments = ["-P", "-m", "terafleet.cli.vehicle_process", str(options.data.absolute()), given]
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - no shell is wanted.


def show_agent(options: Show) -> None:
    """Show what the agent in this car does, or why it does nothing."""
    with extra_needed("agent"):
        from terafleet.agent.status import read_status
    status = read_status(options.data)
    if status is None:
        message = f"No agent has said anything in {options.data}."
        advice = f"Start it with: terafleet vehicle run --data {options.data}"
        raise CommandFailed("agent_silent", message, advice)
    if options.is_json:
        print_json(status)
    else:
        print_facts(facts_of(status, is_running(status.process_id)))


def overrides_of(options: Run) -> dict[str, Any]:
    """What the command line says of the agent's settings, by the names of agent.toml."""
    given = {
        name: value
        for name, value in msgspec.structs.asdict(options).items()
        if name not in ("data", "timetable") and value not in (None, [], ())
    }
    if options.timetable is not None:
        given["vehicle"] = {"file": str(options.timetable.absolute())}
    return given


def facts_of(status: "AgentStatus", is_there: bool) -> list[tuple[str, str]]:
    """What a person wants to know of an agent, by name."""
    figures = status.figures
    leases = ", ".join(f"lease-{lease_id}" for lease_id in status.lease_ids)
    energy_wh = figures.energy_mwh / _MWH_PER_WH
    return [
        ("car", f"{status.name} ({status.vehicle_id})"),
        ("agent", "running" if is_there else f"NOT RUNNING since {moment(status.at_ms)}"),
        ("state", status.state),
        ("why not", refusals_in_words(status.refusals) or NONE),
        ("control plane", "connected" if status.is_connected else "NOT CONNECTED"),
        ("leases", leases or NONE),
        ("attempts", f"{status.attempts} running, {figures.finished} done"),
        ("answers", f"{figures.answers}, {figures.answers_failed} of them errors"),
        ("energy", f"{energy_wh:.1f} Wh (estimated)"),
        ("models", ", ".join(model.name for model in status.models) or NONE),
        ("as of", moment(status.at_ms)),
    ]


def is_running(process_id: int) -> bool:
    """Whether a process of that number lives."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
