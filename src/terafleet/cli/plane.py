"""Runs a control plane from settings given as JSON: `python -m terafleet.cli.plane SETTINGS`."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from terafleet.control.app import run
from terafleet.control.settings import ControlSettings


def main(arguments: list[str]) -> int:
    """Run until told to stop."""
    settings = msgspec.convert(msgspec.json.decode(arguments[0]), ControlSettings, dec_hook=_path)
    return run(settings)


def _path(wanted: type, value: Any) -> Any:
    assert wanted is Path
    return Path(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
