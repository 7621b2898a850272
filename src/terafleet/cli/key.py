"""Commands about API keys."""

from typing import Annotated

import typer

from terafleet.cli.connection import Asking, admin_client
from terafleet.cli.options import add_command, noun
from terafleet.cli.output import moment, print_json, print_table


class Create(Asking, frozen=True, kw_only=True):
    """The options of `key create`."""

    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for; one line.")]
    is_operator: Annotated[
        bool, typer.Option("--operator", help="A key that may do everything here.")
    ] = False
    customer: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="One more key of this customer.",
            show_default="a customer of its own",
        ),
    ] = ""


class Revoke(Asking, frozen=True, kw_only=True):
    """The options of `key revoke`."""

    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]


def register(app: typer.Typer) -> None:
    """Add the commands below `key`."""
    keys = noun("key", "Make, list and revoke API keys.")
    example = "terafleet key create my-app"
    add_command(keys, "create", Create, create_key, example)
    add_command(keys, "list", Asking, list_keys, "terafleet key list")
    add_command(keys, "revoke", Revoke, revoke_key, "terafleet key revoke key_0f3c…")
    app.add_typer(keys)


def create_key(options: Create) -> None:
    """Make an API key.

    Its secret is shown this once and never again.
    """
    role = "operator" if options.is_operator else "customer"
    with admin_client(options) as client:
        created = client.create_key(options.name, role, options.customer or None)
        url = client.url
    if options.is_json:
        print_json(created)
        return
    typer.echo(created.secret)
    typer.echo(f"\nIt is shown this once. {created.key.key_id} is its id. To use it:\n")
    typer.echo(f"  export TERAFLEET_URL={url} TERAFLEET_API_KEY={created.secret}")
    if not options.is_operator:
        typer.echo(f"  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={created.secret}")


def list_keys(options: Asking) -> None:
    """List all API keys, also revoked ones, oldest first."""
    with admin_client(options) as client:
        found = client.keys()
    if options.is_json:
        print_json(found)
        return
    columns = ("ID", "NAME", "ROLE", "CUSTOMER", "SECRET", "CREATED", "REVOKED")
    rows = [
        (
            key.key_id,
            key.name,
            key.role,
            key.customer_id,
            f"{key.hint}…",
            moment(key.created_ms),
            moment(key.revoked_ms),
        )
        for key in found.keys
    ]
    print_table(columns, rows)


def revoke_key(options: Revoke) -> None:
    """Revoke an API key at once."""
    with admin_client(options) as client:
        key = client.revoke_key(options.key_id)
    if options.is_json:
        print_json(key)
        return
    typer.echo(f"{key.key_id} is revoked.")
