"""`terafleet demo`: the main job on a fleet on this computer, with trouble."""

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    seed: int = typer.Option(7, help="Casts the trouble: another seed, another play."),
    json: bool = typer.Option(False, "--json", help="Print the figures as one JSON object."),
) -> None:
    """Run a whole fleet on this computer and watch it work.

    Embeds the docstrings of Python's standard library as an OpenAI batch on eight cars, whose
    owners come and go, and checks every answer. Exit code 1 if a check fails.
    """
    import msgspec

    from terafleet.cli.demo.play import DemoFailed, play
    from terafleet.cli.demo.screen import Screen
    from terafleet.cli.local_fleet import LocalFleetFailed

    screen = Screen(is_json=json)
    try:
        figures = play(screen, seed)
    except (DemoFailed, LocalFleetFailed) as failure:
        screen.say(f"[red]error:[/] {failure}")
        raise typer.Exit(1) from failure
    if json:
        screen.write_out(msgspec.json.format(msgspec.json.encode(figures)).decode())
    raise typer.Exit(0 if figures["checks_passed"] else 1)
