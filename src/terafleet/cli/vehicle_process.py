"""The process of a vehicle agent: `python -m terafleet.cli.vehicle_process FOLDER OVERRIDES`.

FOLDER is the agent's data folder, OVERRIDES a JSON object that is laid over its settings.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from terafleet.cli.failure import CommandFailed, extra_needed, show_failure


def main(arguments: list[str]) -> int:
    """Run the agent until it is told to stop; the exit code."""
    folder, given = arguments
    overrides = msgspec.json.decode(given, type=dict[str, Any])
    try:
        return run_agent(Path(folder), overrides)
    except CommandFailed as failure:
        show_failure(failure)
        return 1


def run_agent(data_folder: Path, overrides: dict[str, Any]) -> int:
    """Run the agent of a data folder. Raises CommandFailed when its settings can't be used."""
    with extra_needed("agent"):
        from terafleet.agent.app import run
        from terafleet.agent.settings import SettingsRefused, load_settings
    settings = load_settings(data_folder, overrides)
    if isinstance(settings, SettingsRefused):
        faults = "; ".join(settings.faults)
        raise CommandFailed("settings_refused", f"The agent's settings are wrong: {faults}.")
    return run(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
