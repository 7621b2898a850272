"""Runs commands of `terafleet` in this process, as a person would who looks at no terminal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from typer.testing import CliRunner, Result

from terafleet.cli.main import app
from tests.contract.gateway_thread import GatewayThread, Opened, gateway_thread


class Person:
    """Somebody who gives commands: a folder, an environment, and what came of the last command."""

    def __init__(self, folder: Path, url: str = "", api_key: str = "") -> None:
        self.folder = folder
        self.environment = {
            "TERAFLEET_DATA": str(folder / "data"),
            "TERAFLEET_URL": url,
            "TERAFLEET_API_KEY": api_key,
            "NO_COLOR": "1",
            "COLUMNS": "100",
        }

    def gives(self, *words: str, typed: str | None = None) -> Result:
        """Give a command; what went wrong inside of it is raised here."""
        result = CliRunner().invoke(
            app, [str(word) for word in words], env=self.environment, input=typed
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def succeeds(self, *words: str) -> str:
        """Give a command that must work; what it prints."""
        result = self.gives(*words)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        return str(result.stdout)

    def reads(self, *words: str) -> Any:
        """Give a command with --json; what it says."""
        return json.loads(self.succeeds(*words, "--json"))

    def fails(self, code: str, *words: str) -> str:
        """Give a command that must fail with this code; what is told."""
        result = self.gives(*words)
        assert result.exit_code == 1, result.output
        told = str(result.stderr)
        assert told.startswith("error: "), told
        assert f"({code})" in told.splitlines()[0], told
        assert "\x1b" not in result.output
        return told


@contextmanager
def silent_gateway_thread() -> Iterator[GatewayThread]:
    """A gateway whose log does not run into what commands print."""
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    try:
        with gateway_thread() as thread:
            yield thread
    finally:
        structlog.configure(**before)


def operator(opened: Opened, folder: Path) -> Person:
    """An operator of a control plane."""
    return Person(folder, opened.url, opened.stage.add_key("operator"))
