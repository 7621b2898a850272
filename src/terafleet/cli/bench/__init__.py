"""`terafleet bench`: figures against the budgets of docs/budgets.md."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    bench = typer.Typer(no_args_is_help=True, help="Measure the parts against their budgets.")
    bench.command("dispatch")(dispatch)
    bench.command("overhead")(overhead)
    bench.command("live")(live)
    bench.command("yield")(yield_)
    app.add_typer(bench, name="bench")


SMALL = 100


class Walls(StrEnum):
    """Which walls stand around the runtime that is measured."""

    WRAPPED = "wrapped"
    OWN = "own"
    BOTH = "both"


JSON = typer.Option(False, "--json", help="Print the figures as one JSON object.")
SEED = typer.Option(1, help="What chance in the benchmark follows from.")

WALLS = typer.Option(Walls.BOTH, help="Around the runtime: bubblewrap, only its own, or both.")


def dispatch(
    units: int = typer.Option(200_000, min=50_000, help="Work units at one unit a lease."),
    vehicles: int = typer.Option(100_000, min=100, help="Cars of the machine alone."),
    waiting: int = typer.Option(1_000_000, min=50_000, help="Waiting units of the machine alone."),
    seed: int = SEED,
    json: bool = JSON,
) -> None:
    """Durable work units per second, end to end, and the fleet's machine alone.

    End to end: submit, grant, result, commit, with a runtime that does nothing, a real NATS
    server, SQLite with synchronous=FULL, and agents in their own processes.
    """
    from terafleet.cli.bench.core_alone import measure_core
    from terafleet.cli.bench.end_to_end import measure_dispatch
    from terafleet.cli.machine import machine_and_commit

    figures: dict[str, Any] = {"seed": seed, **machine_and_commit()}
    # The machine alone leaves a large heap behind, which would slow down who drives the other.
    figures |= measure_dispatch(units)
    figures |= measure_core(vehicles, waiting, seed)
    show(figures, is_json=json)


def overhead(
    texts: int = typer.Option(2_000, min=100, help="How many docstrings to embed."),
    seed: int = SEED,
    json: bool = JSON,
) -> None:
    """Batch embeddings through a fleet against the bare runtime on the same cores."""
    from terafleet.cli.bench.against_bare import measure_overhead
    from terafleet.cli.machine import machine_and_commit

    figures: dict[str, Any] = {"seed": seed, **machine_and_commit()}
    figures |= measure_overhead(texts, seed)
    show(figures, is_json=json)


def live(
    churn_s: float = typer.Option(120.0, min=5.0, help="How long cars come and go, in seconds."),
    seed: int = SEED,
    json: bool = JSON,
) -> None:
    """Live requests: what gateway, fleet and car add, and streams on a fleet that comes and goes.

    The runtime runs no model and tells the numbers of its tokens, so that a token that is lost or
    comes twice is seen. 100 sessions at a time while cars leave and join, some without a word.
    """
    from terafleet.cli.bench.live import measure_live
    from terafleet.cli.machine import machine_and_commit

    figures: dict[str, Any] = {"seed": seed, **machine_and_commit()}
    figures |= measure_live(churn_s, seed)
    show(figures, is_json=json)


def yield_(
    yields: int = typer.Option(200, min=1, help="How often a driver comes to a busy car."),
    kills: int = typer.Option(5, min=0, help="How often the agent is killed while it computes."),
    walls: Walls = WALLS,
    rest_s: float = typer.Option(60.0, min=1.0, help="How long an agent is watched at rest."),
    seed: int = SEED,
    json: bool = JSON,
) -> None:
    """How fast an owner has the car back from a busy runtime, and what an agent at rest costs.

    A real model on all cores, a real control plane, an agent in a process of its own. The moment
    at which a driver comes is drawn by chance.
    """
    from terafleet.cli.bench.yield_car import YieldsFailed
    from terafleet.cli.bench.yield_rest import measure_rest
    from terafleet.cli.bench.yields import measure_yields
    from terafleet.cli.failure import CommandFailed
    from terafleet.cli.machine import machine_and_commit

    figures: dict[str, Any] = {"seed": seed, **machine_and_commit()}
    try:
        figures |= measure_yields(yields, kills, seed, walls)
        figures |= measure_rest(rest_s)
    except YieldsFailed as failure:
        raise CommandFailed("not_measured", f"{failure}.") from failure
    show(figures, is_json=json)


def show(figures: Mapping[str, Any], *, is_json: bool) -> None:
    """Print figures for a program or for a person."""
    import msgspec

    if is_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(figures)).decode() + "\n")
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        sys.stdout.write(f"{name:<{width}}  {_in_digits(value)}\n")


def _in_digits(value: Any) -> str:
    """Large numbers without a fraction, small ones with three digits of it."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value >= SMALL else f"{value:,.3f}"
