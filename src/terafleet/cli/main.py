"""The command `terafleet`: loads the module of a noun only when somebody asks for that noun.

A noun's module, or package, has `register(app)`, which adds the noun's commands to an app.
"""

import importlib
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from terafleet import __version__
from terafleet.cli.failure import CommandFailed, show_failure
from terafleet.cli.groups import QuickGroup

NOUNS = {
    "demo": "Run a whole fleet on this computer and watch it work.",
    "up": "Run a control plane.",
    "status": "Say how the control plane and its fleet are.",
    "key": "Make, list and revoke API keys.",
    "model": "Add, list and remove the models that the fleet can run.",
    "vehicle": "Enrol, list and drain cars; run the agent in a car.",
    "policy": "Explain what an owner allows, and what it would have earned.",
    "batch": "Submit batches, watch them, fetch their results.",
    "chat": "Talk with a model in the terminal.",
    "story": "Tell what happened to a batch, work unit, lease or car.",
    "bench": "Measure the parts against their budgets.",
}
"""What there is, in the order of the help, each with its one line; each is a module here."""


class Nouns(QuickGroup):
    """The nouns, loaded one by one, so that help and completion don't load what they don't show."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the framework passes it.
        """The nouns that this installation has."""
        return [noun for noun in NOUNS if _is_there(noun)]

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:
        """A noun's commands; for an unknown name all are loaded, so that one can be suggested."""
        names = self.list_commands(ctx)
        for noun in [cmd_name] if cmd_name in names else names:
            if noun not in self.commands:
                self.commands[noun] = _load(noun)
        found = self.commands.get(cmd_name)
        assert found is None or isinstance(found, TyperCommand | TyperGroup)
        return found

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the nouns and their lines, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(noun, NOUNS[noun]) for noun in self.list_commands(ctx)])

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what it fails with is told on stderr."""
        try:
            return super().invoke(ctx)
        except CommandFailed as failure:
            show_failure(failure)
            raise typer.Exit(1) from failure


app = typer.Typer(
    name="terafleet",
    cls=Nouns,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try it here: terafleet demo. Each command has its own --help with an example.",
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"terafleet {__version__}")
        raise typer.Exit


@app.callback()
def terafleet(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
) -> None:
    """Turn parked electric cars into an AI cloud."""


def _is_there(noun: str) -> bool:
    """Whether the noun's module is installed; a folder without a module in it is none."""
    spec = find_spec(f"{__package__}.{noun}")
    return spec is not None and spec.origin is not None


def _load(noun: str) -> TyperCommand | TyperGroup:
    """The command, or group of commands, that a noun's module registers under its name."""
    holder = typer.Typer(rich_markup_mode=None)
    importlib.import_module(f"{__package__}.{noun}").register(holder)
    command = get_group(holder).commands[noun]
    assert isinstance(command, TyperCommand | TyperGroup)
    return command
