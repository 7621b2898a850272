"""Commands about cars: what operators do with them, and how an agent runs in one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from terafleet.cli.connection import Asking, admin_client
from terafleet.cli.options import add_command, duration_s, noun
from terafleet.cli.output import NONE, moment, print_json, print_table
from terafleet.cli.vehicle_agent import register_agent
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
    register_agent(vehicles)
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
