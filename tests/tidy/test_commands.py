"""The commands and options of terafleet that the pages name exist."""

import re
import shlex
from collections.abc import Iterator

import typer
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from tests.tidy.pages import fenced_lines, pages


def command_words(line: str) -> list[str]:
    """What follows `terafleet` in a line of a shell; nothing where the line begins otherwise."""
    found = re.match(r"(?:\$ )?(?:\S*/)?terafleet(?= |$)(.*)", line)
    words = shlex.split(found[1], comments=True) if found else []
    ends = [at for at, word in enumerate(words) if re.match(r"[|<>&;]|2>", word)]
    return words[: ends[0]] if ends else words


def command_faults(page: str, app: typer.Typer) -> list[str]:
    """The commands and options in a page's fenced blocks that an app does not have."""
    return [
        f"{line}: {word}"
        for line in fenced_lines(page)
        for word in unknown_words(command_words(line), app)
    ]


def unknown_words(words: list[str], app: typer.Typer) -> Iterator[str]:
    """The words of one command line that are neither command, option nor value."""
    command = get_command(app)
    options = own_options(command)
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word.startswith("-"):
            name, equals, _ = word.partition("=")
            if name not in options:
                yield word
            is_value = not equals and options.get(name, False)
        elif isinstance(command, TyperGroup):
            below = command.get_command(typer.Context(command), word)
            if below is None:
                yield word
                return
            command = below
            options |= own_options(command)


def own_options(command: object) -> dict[str, bool]:
    """The options of a command, each with whether a value follows it."""
    names = {"--help": False}
    for option in getattr(command, "params", []):
        if isinstance(option, TyperOption):
            for name in (*option.opts, *option.secondary_opts):
                names[name] = not option.is_flag
    return names


def test_the_pages_name_what_exists() -> None:
    # Imported here, so that a CLI that can't be imported fails this test and not the collection.
    from terafleet.cli.main import app

    faults = {name: command_faults(page, app) for name, page in pages().items()}
    assert {name: found for name, found in faults.items() if found} == {}


def planted_app() -> typer.Typer:
    """An app with one command of its own and one below a noun."""
    app, noun = typer.Typer(), typer.Typer()

    @app.command()
    def demo(cars: int = 3, quiet: bool = False) -> None: ...

    @noun.command()
    def submit(path: str) -> None: ...

    app.add_typer(noun, name="batch")
    return app


def test_planted_faults_are_found() -> None:
    page = """
```sh
terafleet demo --cars 5 --quiet --no-quiet | cat --number
$ terafleet batch submit --help one-file.jsonl > out
.venv/bin/terafleet demo --cars=5 --loud   # --a-comment
terafleet batch remove
terafleet fly
terafleets fly
```
`terafleet elsewhere`
"""
    faults = command_faults(page, planted_app())
    assert [fault.rpartition(": ")[2] for fault in faults] == ["--loud", "remove", "fly"]
