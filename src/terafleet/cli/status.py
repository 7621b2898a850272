"""The command that says how the control plane and its fleet are."""

import typer

from terafleet.cli.connection import Asking, admin_client
from terafleet.cli.options import add_command
from terafleet.cli.output import print_facts, print_json, size, span
from terafleet.protocol.admin import Status
from terafleet.protocol.shard import ShardStatus


def register(app: typer.Typer) -> None:
    """Add the command `status`."""
    add_command(app, "status", Asking, show_status, "terafleet status")


def show_status(options: Asking) -> None:
    """Say how the control plane and its fleet are; exit code 1 if they can't work."""
    with admin_client(options) as client:
        status, url = client.status(), client.url
    if options.is_json:
        print_json(status)
    else:
        print_facts(facts_of(status, url))
    if status.shard is None or not status.is_bus_connected or status.is_storage_full:
        raise typer.Exit(1)


def facts_of(status: Status, url: str) -> list[tuple[str, str]]:
    """What a person wants to know, by name."""
    bytes_free = status.objects_bytes_free
    room = "no limit" if bytes_free is None else f"{size(bytes_free)} free"
    facts = [
        ("control plane", f"{url}, version {status.version}"),
        ("bus", "connected" if status.is_bus_connected else "NOT CONNECTED"),
        ("storage", f"FULL, {room}" if status.is_storage_full else room),
    ]
    if status.shard is None:
        return [*facts, ("shard", "DOES NOT ANSWER")]
    return [*facts, *_facts_of_shard(status.shard)]


def _facts_of_shard(shard: ShardStatus) -> list[tuple[str, str]]:
    states = ", ".join(f"{count} {state}" for state, count in sorted(shard.vehicles.items()))
    total = sum(shard.vehicles.values())
    return [
        ("shard", f"up for {span(shard.at_ms - shard.started_ms)}"),
        ("cars", f"{total}: {states}" if total else "none; enrol one: terafleet vehicle code"),
        ("work units", f"{shard.units_waiting} waiting, {shard.units_running} running"),
        ("batches", f"{shard.batches_open} open"),
        *(
            ("kept loaded", f"{one.name} in {one.slots_loaded} of {one.slots} slots")
            for one in shard.warm
        ),
    ]
