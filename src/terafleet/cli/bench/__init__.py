"""`terafleet bench`: figures against the budgets of docs/budgets.md."""

import sys
from collections.abc import Mapping
from typing import Any

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    bench = typer.Typer(no_args_is_help=True, help="Measure the parts against their budgets.")
    bench.command("dispatch")(dispatch)
    bench.command("overhead")(overhead)
    bench.command("live")(live)
    app.add_typer(bench, name="bench")


SMALL = 100

JSON = typer.Option(False, "--json", help="Print the figures as one JSON object.")
SEED = typer.Option(1, help="What chance in the benchmark follows from.")


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
