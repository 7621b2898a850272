"""The command that runs a control plane."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from terafleet.cli.connection import DataFolder, data_folder
from terafleet.cli.failure import CommandFailed, extra_needed
from terafleet.cli.options import add_command, host_and_port

LEVELS = ("debug", "info", "warning", "error")


SQLITE = "sqlite://"
"""How the address of a database begins that this version can use; a path follows."""


class Up(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `up`."""

    data: DataFolder = None
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where HTTP is served.")] = (
        "127.0.0.1:8600"
    )
    advertise: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="How cars and customers reach this HTTP address.",
            show_default="what --listen says",
        ),
    ] = ""
    bus_listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the message bus of its own listens.")
    ] = "127.0.0.1:8622"
    bus_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Use this NATS instead of an own one; may come again."),
    ] = None
    bus_advertise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="How cars reach the bus; may come again.",
            show_default="the bus's own address",
        ),
    ] = None
    database: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help=f"Where the record is kept: {SQLITE}/path/to/record.db.",
            show_default="SQLite in the data folder",
        ),
    ] = ""
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help=f"One of {', '.join(LEVELS)}.")
    ] = "info"


def register(app: typer.Typer) -> None:
    """Add the command `up`."""
    add_command(app, "up", Up, run_control_plane, "terafleet up --listen 0.0.0.0:8600")


def run_control_plane(options: Up) -> None:
    """Run a control plane until Ctrl-C: gateway, shard and message bus in one process.

    The first start makes an operator's API key, operator.key in the data folder; the other
    commands find it there.
    """
    listen_host, listen_port = host_and_port(options.listen)
    bus_host, bus_port = host_and_port(options.bus_listen)
    if options.log_level not in LEVELS:
        raise typer.BadParameter(f"--log-level must be one of {', '.join(LEVELS)}")
    if options.database and not options.database.startswith(SQLITE):
        # A record that is not where somebody believes it to be is worse than none.
        message = f"{options.database} can't be used; this version keeps its record in SQLite."
        advice = f"Leave --database out, or give {SQLITE}/path/to/record.db."
        raise CommandFailed("database_unsupported", message, advice)
    folder = data_folder(options.data)
    _check_folder(folder)
    with extra_needed("control"):
        from terafleet.control.app import run
        from terafleet.control.settings import ControlSettings
    settings = ControlSettings(
        data=folder,
        listen_host=listen_host,
        listen_port=listen_port,
        bus_listen_host=bus_host,
        bus_listen_port=bus_port,
        bus_urls=tuple(options.bus_url or ()),
        bus_advertise_urls=tuple(options.bus_advertise or ()),
        advertise_url=options.advertise.rstrip("/"),
        database_url=options.database,
        log_level=options.log_level,
    )
    raise typer.Exit(run(settings))


def _check_folder(folder: Path) -> None:
    """Say in words that the data folder can't be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        cause = "" if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        cause = error.strerror or type(error).__name__
    if cause:
        message = f"The data folder {folder} can't be used: {cause}."
        raise CommandFailed("file_unusable", message, "Choose another one with --data.")
