"""Finds the policy of a file or of a car, and prints what there is to say of it."""

from collections import deque
from pathlib import Path

import msgspec
import typer

from terafleet.agent.standing_words import SENSORS
from terafleet.cli.car_settings import car_settings
from terafleet.cli.failure import CommandFailed, extra_needed, printable
from terafleet.cli.output import note, print_json
from terafleet.cli.policy_check import (
    WEEK_HOURS,
    Checked,
    CheckedWish,
    Sensor,
    checked,
    faults_of,
    price_doubts,
)
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_S


def report(file: Path | None, data: Path | None, *, is_json: bool) -> None:
    """Check one of both and print it. Raises CommandFailed, and Exit(1) where it has faults."""
    found = _checked_car(data) if data is not None else _checked_file(file or Path())
    if is_json:
        print_json(found)
        if found.faults:
            raise typer.Exit(1)
        return
    if found.faults:
        for fault in found.faults:
            note(f"{fault.path}: {fault.allowed}")
        number = len(found.faults)
        message = f"{found.source} is no policy: {number} {'fault' if number == 1 else 'faults'}."
        raise CommandFailed("policy_refused", message, "Until then the policy of before holds.")
    for line in lines_of(found):
        typer.echo(printable(line))


def lines_of(found: Checked) -> list[str]:
    """A policy without faults, for a person."""
    lines = [f"{found.source} is a policy."]
    if not found.wishes:
        lines.append("It says nothing else than the defaults.")
    for wish in found.wishes:
        lines += ["", wish.sentence, f"  ({wish.path})", *_needs(wish)]
    lines += ["", f"All being well, it may work {found.hours_a_week:g} of a week's {WEEK_HOURS} h."]
    if found.missing:
        named = ", ".join(SENSORS.get(name, name) for name in found.missing)
        lines += ["", f"THIS CAR REFUSES as long as it does not say: {named}"]
    if found.doubts:
        lines += ["", "Mind:", *(f"- {doubt}" for doubt in found.doubts)]
    return lines


def _needs(wish: CheckedWish) -> list[str]:
    return [f"  needs {SENSORS.get(one.name, one.name)}: {_said(one)}" for one in wish.sensors]


def _said(sensor: Sensor) -> str:
    if sensor.is_there is None:
        return "look with --data whether this car says it"
    if not sensor.is_there:
        return "THIS CAR DOES NOT SAY IT"
    if isinstance(sensor.value, bool):
        return f"this car says {'yes' if sensor.value else 'no'}"
    value = f"{sensor.value:g}" if isinstance(sensor.value, float) else str(sensor.value)
    return f"this car says {value}"


def _checked_file(file: Path) -> Checked:
    with extra_needed("agent"):
        from terafleet.agent.owner_policy_files import PolicyRefused, read_owner_file
    found = read_owner_file(file)
    if isinstance(found, PolicyRefused):
        return Checked(str(file), faults_of(found.faults))
    return checked(str(file), found, None)


def _checked_car(data: Path) -> Checked:
    """The policy of all layers, looked at with what the car said last."""
    with extra_needed("agent"):
        from terafleet.agent.owner_policy_files import OwnerPolicyFiles
    settings = car_settings(data)
    policy_files = OwnerPolicyFiles(data, settings.policy)
    policy_files.reload()
    source = f"What holds in {data}"
    if policy_files.faults:
        return Checked(source, faults_of(policy_files.faults))
    policy, newest = policy_files.policy, newest_recorded(data)
    found = checked(source, policy, newest)
    more = []
    if policy.giving_back.stale_ms < settings.vehicle.sample_ms:
        more.append(
            f"Readings come every {settings.vehicle.sample_ms / MS_PER_S:g} s and are too old "
            "before the next one: see yield.stale_ms."
        )
    if newest is None:
        more.append("Nothing was recorded yet, so nobody knows which sensors this car has.")
    else:
        more += price_doubts(policy, newest, settings.computer_mw)
    return msgspec.structs.replace(found, doubts=(*found.doubts, *more))


def newest_recorded(data: Path) -> Readings | None:
    """What the car's sensors said last, if it was recorded. Raises CommandFailed."""
    from terafleet.agent.readings_csv import ReadingsRefused, read_readings
    from terafleet.agent.readings_log import NAME, READINGS_FOLDER

    folder = data / READINGS_FOLDER
    names = [path for path in folder.glob("*.csv") if NAME.fullmatch(path.name)]
    if not names:
        return None
    try:
        newest = deque(read_readings(max(names)), maxlen=1)
    except ReadingsRefused as error:
        raise CommandFailed("readings_refused", f"{error}.") from error
    return newest[0] if newest else None
