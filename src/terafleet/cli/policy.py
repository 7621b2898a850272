"""Commands about what an owner allows: explain a policy, play it, write an example."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from terafleet.cli.options import add_command, noun

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `policy check`."""

    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A policy, such as owner.toml.")
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="The folder of this car's agent: the policy that holds."
        ),
    ] = None
    is_json: Json = False


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `policy preview`."""

    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="The folder of this car's agent.")
    ]
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another policy than the one that holds.")
    ] = None
    last: Annotated[str, typer.Option(metavar="TIME", help="How far back: 12h, 7d.")] = "7d"
    power_w: Annotated[
        float | None,
        typer.Option(
            "--power",
            metavar="W",
            min=0,
            max=3_000,
            help="What the computer draws for work.",
            show_default="by agent.toml",
        ),
    ] = None
    reward: Annotated[
        float,
        typer.Option(
            metavar="MONEY", min=0, max=1_000, help="What work pays an hour, whatever you ask for."
        ),
    ] = 0.0
    met_up_to: Annotated[
        float | None,
        typer.Option(
            metavar="MONEY",
            min=0,
            max=1_000,
            help="Up to what the fleet pays an hour that you ask for.",
            show_default="a fleet's default",
        ),
    ] = None
    is_json: Json = False


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """`policy example` has no options."""


def register(app: typer.Typer) -> None:
    """Add the commands below `policy`."""
    policies = noun("policy", "Explain what an owner allows, and what it would have earned.")
    add_command(policies, "check", Check, check_policy, "terafleet policy check owner.toml")
    add_command(
        policies,
        "preview",
        Preview,
        preview_policy,
        "terafleet policy preview --data car --last 7d",
    )
    add_command(policies, "example", Example, print_example, "terafleet policy example")
    app.add_typer(policies)


def check_policy(options: Check) -> None:
    """Explain a policy: what it wishes, which sensors it needs, and what contradicts itself.

    Exit code 1 means that it has faults; each is told with its field.
    """
    from terafleet.cli.policy_report import report

    if (options.file is None) == (options.data is None):
        raise typer.BadParameter("name a FILE, or a car's folder with --data")
    report(options.file, options.data, is_json=options.is_json)


def preview_policy(options: Preview) -> None:
    """Play a policy over what this car's sensors said: what it would have lent and earned.

    It takes it that there always was work.
    """
    from terafleet.cli.policy_replay import replay

    replay(options)


def print_example(_: Example) -> None:
    """Print an owner.toml with every field, what it means, and its default."""
    from terafleet.cli.policy_example import example

    typer.echo(example(), nl=False)
