"""Commands about cars: what operators do with them, and how an agent runs in one."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from terafleet.cli.connection import Asking, admin_client
from terafleet.cli.failure import CommandFailed
from terafleet.cli.options import add_command, duration_s, noun
from terafleet.cli.output import NONE, moment, print_json, print_table
from terafleet.cli.vehicle_agent import register_agent
from terafleet.cli.vehicle_doctor import register_doctor
from terafleet.cli.vehicle_pause import register_pause
from terafleet.cli.vehicle_status import register_status
from terafleet.cli.words import refusals_in_words

if TYPE_CHECKING:
    from terafleet.protocol.admin import VehicleChanged
    from terafleet.protocol.shard import VehicleView
    from terafleet.sdk import AdminClient

_MWH_PER_WH = 1_000
_EXAMPLE_ID = "veh-abcdefghij"


class Code(Asking, frozen=True, kw_only=True):
    """The options of `vehicle code`."""

    valid: Annotated[
        str, typer.Option(metavar="TIME", help="How long it may be used: 90s, 30m, 1h, 2d.")
    ] = "24h"


class OneVehicle(Asking, frozen=True, kw_only=True):
    """The options of commands about one car."""

    vehicle_id: Annotated[str, typer.Argument(metavar="ID", help="The car's id.")]


class Policy(OneVehicle, frozen=True, kw_only=True):
    """The options of `vehicle policy`."""

    file: Annotated[
        Path | None,
        typer.Option("--set", metavar="FILE", help="Set the policy of this owner.toml."),
    ] = None
    is_cleared: Annotated[
        bool, typer.Option("--clear", help="Take back what was set from here.")
    ] = False


def register(app: typer.Typer) -> None:
    """Add the commands below `vehicle`."""
    vehicles = noun("vehicle", "Enrol, list and drain cars; run the agent in a car.")
    add_command(vehicles, "list", Asking, list_vehicles, "terafleet vehicle list")
    add_command(vehicles, "code", Code, make_code, "terafleet vehicle code --valid 1h")
    for name, run in (
        ("drain", drain_vehicle),
        ("undrain", undrain_vehicle),
        ("remove", remove_vehicle),
    ):
        add_command(vehicles, name, OneVehicle, run, f"terafleet vehicle {name} {_EXAMPLE_ID}")
    add_command(
        vehicles,
        "policy",
        Policy,
        vehicle_policy,
        f"terafleet vehicle policy {_EXAMPLE_ID} --set owner.toml",
    )
    register_agent(vehicles)
    register_status(vehicles)
    register_pause(vehicles)
    register_doctor(vehicles)
    app.add_typer(vehicles)


def list_vehicles(options: Asking) -> None:
    """List all cars: what they do, and why they don't."""
    with admin_client(options) as client:
        page = client.vehicles()
    if options.is_json:
        print_json(page)
        return
    columns = ("ID", "NAME", "STATE", "LEASES", "LOADED", "DONE", "LOST", "WH", "HEARD", "WHY NOT")
    print_table(columns, [_row(vehicle) for vehicle in page.vehicles])


def make_code(options: Code) -> None:
    """Make a one-time code with which one car can enrol."""
    valid_s = duration_s(options.valid)
    with admin_client(options) as client:
        created, url = client.create_code(valid_s), client.url
    if options.is_json:
        print_json(created)
        return
    typer.echo(created.code)
    typer.echo(f"\nIt enrols one car until {moment(created.expires_ms)}. In the car:\n")
    typer.echo(f"  terafleet vehicle enrol --url {url} --code {created.code} --data DIR")


def drain_vehicle(options: OneVehicle) -> None:
    """Grant a car nothing new; what it has it may end."""
    _change(options, lambda client: client.drain_vehicle, "gets nothing new")


def undrain_vehicle(options: OneVehicle) -> None:
    """Grant a car work again."""
    _change(options, lambda client: client.undrain_vehicle, "gets work again")


def remove_vehicle(options: OneVehicle) -> None:
    """Take a car out of the fleet for good.

    To come back it needs a fresh code.
    """
    _change(options, lambda client: client.remove_vehicle, "is out of the fleet")


def vehicle_policy(options: Policy) -> None:
    """Show, set or clear the owner policy that a car gets from here.

    What its owner writes into owner.toml in the car goes before it, name by name.
    """
    if options.file is not None and options.is_cleared:
        raise typer.BadParameter("give --set or --clear, not both")
    if options.is_cleared:
        _change(options, lambda client: client.clear_vehicle_policy, "has no policy from here")
        return
    if options.file is None:
        with admin_client(options) as client:
            print_json(client.vehicle_policy(options.vehicle_id))
        return
    table = _policy_table(options.file)
    _change(
        options,
        lambda client: lambda vehicle_id: client.set_vehicle_policy(vehicle_id, table),
        "is told its policy",
    )


def _policy_table(path: Path) -> dict[str, Any]:
    """A policy as its file has it. Raises CommandFailed."""
    from terafleet.core.policy_tables import PolicyFaults, policy_from, written

    try:
        table: dict[str, Any] = written(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise CommandFailed("policy_unreadable", f"{path} can't be read: {error}.") from error
    found = policy_from(table)
    if isinstance(found, PolicyFaults):
        faults = "; ".join(map(str, found.faults))
        raise CommandFailed("policy_refused", f"{path} is no owner policy: {faults}.")
    return table


def _change(
    options: OneVehicle,
    deed: Callable[["AdminClient"], Callable[[str], "VehicleChanged"]],
    words: str,
) -> None:
    with admin_client(options) as client:
        changed = deed(client)(options.vehicle_id)
    if options.is_json:
        print_json(changed)
    else:
        typer.echo(f"{changed.vehicle_id} {words}.")


def _row(vehicle: "VehicleView") -> tuple[str, ...]:
    reasons = refusals_in_words(vehicle.refusals)
    if vehicle.quarantined_until_ms:
        rests = f"rests after failures until {moment(vehicle.quarantined_until_ms)}"
        reasons = f"{reasons}; {rests}" if reasons else rests
    return (
        vehicle.vehicle_id,
        vehicle.name,
        vehicle.state,
        f"{vehicle.leases} of {vehicle.slots}",
        " ".join(vehicle.loaded) or NONE,
        str(vehicle.units_succeeded),
        str(sum(vehicle.attempts_lost.values())),
        f"{vehicle.energy_mwh / _MWH_PER_WH:.1f}",
        moment(vehicle.heard_ms),
        reasons or NONE,
    )
