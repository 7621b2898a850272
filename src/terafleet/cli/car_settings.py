"""Finds the settings of a car's agent, for commands that are given in the car."""

from pathlib import Path
from typing import TYPE_CHECKING

from terafleet.cli.failure import CommandFailed, extra_needed

if TYPE_CHECKING:
    from terafleet.agent.settings import AgentSettings


def car_settings(data: Path) -> "AgentSettings":
    """The settings of a car's folder. Raises CommandFailed."""
    with extra_needed("agent"):
        from terafleet.agent.settings import SettingsRefused, load_settings
    if not data.is_dir():
        advice = "Say with --data where this car's agent has its folder."
        raise CommandFailed("folder_missing", f"There is no folder {data}.", advice)
    settings = load_settings(data)
    if isinstance(settings, SettingsRefused):
        faults = "; ".join(settings.faults)
        raise CommandFailed("settings_refused", f"The agent's settings are wrong: {faults}.")
    return settings
