"""Commands that are given in a car: enrol it, and run its agent."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from terafleet.cli.connection import URL_VARIABLE
from terafleet.cli.failure import CommandFailed, extra_needed
from terafleet.cli.first_steps import tell_how_to_go_on
from terafleet.cli.options import add_command

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
    typer.echo(f"{found.vehicle_id} has joined the fleet.")
    tell_how_to_go_on(options.data)


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
