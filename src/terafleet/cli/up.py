"""The command that runs a control plane."""

import importlib
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from terafleet.cli.connection import DataFolder, data_folder
from terafleet.cli.failure import CommandFailed, extra_needed
from terafleet.cli.options import add_command, host_and_port

LEVELS = ("debug", "info", "warning", "error")

PERIOD_S_MAX = 86_400


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
            help="Where the record is kept: sqlite:///path/to/record.db or "
            "postgresql://user@host/database.",
            show_default="SQLite in the data folder",
        ),
    ] = ""
    canary_period_s: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=PERIOD_S_MAX,
            help="Seconds between requests of its own that go all the way, for /healthz; 0: none.",
        ),
    ] = 30
    is_metrics_open: Annotated[
        bool,
        typer.Option("--open-metrics", help="Let everybody read /metrics, without an API key."),
    ] = False
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
    _check_database(options.database)
    folder = data_folder(options.data)
    _check_folder(folder)
    with extra_needed("control"):
        from terafleet.control.app import run
        from terafleet.control.gateway.canary import CanarySettings
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
        canary=CanarySettings(period_ms=options.canary_period_s * 1_000),
        is_metrics_open=options.is_metrics_open,
    )
    raise typer.Exit(run(settings))


def _check_database(url: str) -> None:
    """Say in words that a database can't be used, without the address: it may hold a password."""
    from terafleet.control.database_address import (
        ADVICE,
        PASSWORD_ADVICE,
        DatabaseAddressUnusable,
        database_address,
    )

    if not url:
        return
    try:
        address = database_address(url)
    except DatabaseAddressUnusable as fault:
        advice = f"{ADVICE} {PASSWORD_ADVICE}"
        raise CommandFailed("database_unsupported", str(fault), advice) from fault
    if address.path is None:
        with extra_needed("postgresql"):
            importlib.import_module("asyncpg")


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
