"""What comes after a car's enrolment: its first owner policy, and what to look at and to do."""

from pathlib import Path

import typer

from terafleet.cli.failure import extra_needed, files_mapped

_FIRST_POLICY = """\
# What you allow this car to do. The agent heeds a change within a second.
# All there is to say here:   terafleet policy example
# What this file means:       terafleet policy check FILE
# What it would have earned:  terafleet policy preview --data DIR

# No work at all:
is_paused = {is_paused}

[charge]
# Only while plugged in:
needs_plug = {needs_plug}
# Never below so much charge:
soc_percent_min = {soc_percent_min}
# Charging for the next drive goes first:
#is_charge_first = true

#[[charge.departures]]
#days = ["mon", "tue", "wed", "thu", "fri"]
#at = "07:30"
#soc_percent = 80

# Only within these hours:
#[[hours.compute]]
#from = "18:00"
#to = "07:00"

# Nothing that can be heard:
#[[hours.quiet]]
#from = "22:00"
#to = "06:00"

[temperature]
# A computer that is warmer stops:
compute_c_max = {compute_c_max}

[link]
# Also where the link is paid by the byte:
allows_metered = {allows_metered}

[terms.tariff]
# What you pay for a kWh, in millionths of the currency:
micro_per_kwh = {micro_per_kwh}
"""
_FIRST_FIELDS = (
    "is_paused",
    "charge.needs_plug",
    "charge.soc_percent_min",
    "temperature.compute_c_max",
    "link.allows_metered",
    "terms.tariff.micro_per_kwh",
)

_READS = {
    "linux": "this computer's own sensors, as if it were a parked car",
    "scripted": "a timetable, which is for tests and shows",
    "kuksa": "the car's signals, from a KUKSA databroker",
    "replay": "readings that were recorded",
    "sumo": "a car of a simulated city",
}


def tell_how_to_go_on(data_folder: Path) -> None:
    """Write the first owner policy if there is none, and say what comes next."""
    with extra_needed("agent"):
        from terafleet.agent.owner_policy_files import OWNER_FILE
        from terafleet.agent.settings import SETTINGS_FILE, AgentSettings, load_settings
    is_fresh = write_first_policy(data_folder / OWNER_FILE)
    settings = load_settings(data_folder)
    wrote = "was written with the defaults" if is_fresh else "holds"
    typer.echo(f"What you allow is in {data_folder / OWNER_FILE}, which {wrote}.")
    if isinstance(settings, AgentSettings):
        chosen = settings.vehicle.chosen
        typer.echo(
            f"Its readings come from the adapter {chosen}: {_READS[chosen]} "
            f"(another one: adapter below [vehicle] in {data_folder / SETTINGS_FILE})."
        )
        if settings.page_port:
            typer.echo(f"While the agent runs, look at http://127.0.0.1:{settings.page_port}/")
    else:
        typer.echo(f"{data_folder / SETTINGS_FILE} has faults: {'; '.join(settings.faults)}.")
    typer.echo("\nTo go on:")
    for command, purpose in (
        ("policy check", "what the policy means for this car"),
        ("vehicle doctor", "how well work is walled in here"),
        ("vehicle run", "run the agent"),
        ("vehicle status", "what it does, or why not"),
    ):
        typer.echo(f"  terafleet {command} --data {data_folder}".ljust(50) + f"  # {purpose}")


def write_first_policy(path: Path) -> bool:
    """Write the template where there is no policy yet; whether it was written."""
    from terafleet.agent.files import replace_file

    with files_mapped():
        if path.exists() or path.is_symlink():
            return False
        replace_file(path, first_policy().encode(), keeps_owner=True)
    return True


def first_policy() -> str:
    """The defaults as a person begins with them, as TOML."""
    from terafleet.cli.policy_example import toml
    from terafleet.cli.policy_words import fields
    from terafleet.core.policy import OwnerPolicy

    usual = dict(fields(OwnerPolicy()))
    values = {path.rpartition(".")[2]: toml(usual[path]) for path in _FIRST_FIELDS}
    return _FIRST_POLICY.format(**values)
