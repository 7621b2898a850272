"""The commands `vehicle pause` and `vehicle resume`: the owner takes the car, or lends it again."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from terafleet.cli.car_settings import car_settings
from terafleet.cli.failure import CommandFailed, extra_needed, files_mapped
from terafleet.cli.options import add_command, duration_s
from terafleet.cli.output import print_json
from terafleet.core.units import MS_PER_S
from terafleet.core.written_time import moment_of

CarFolder = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="The folder of this car's agent.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `vehicle pause`."""

    data: CarFolder
    until: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="When it ends by itself, such as '2026-11-24 07:00' by the place's clock.",
        ),
    ] = ""
    length: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long: 90s, 30m, 2h, 1d.")
    ] = ""
    is_json: Json = False


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `vehicle resume`."""

    data: CarFolder
    is_json: Json = False


class Paused(msgspec.Struct, frozen=True):
    """What the owner's file says from here on."""

    is_paused: bool
    resume_at: str


def register_pause(vehicles: typer.Typer) -> None:
    """Add the commands to those below `vehicle`."""
    add_command(
        vehicles, "pause", Pause, pause_vehicle, "terafleet vehicle pause --data car --for 2h"
    )
    add_command(vehicles, "resume", Resume, resume_vehicle, "terafleet vehicle resume --data car")


def pause_vehicle(options: Pause) -> None:
    """Take the car for yourself: no work at all.

    Until you say `vehicle resume`, or until a time. It is written into owner.toml, which the agent
    heeds within a second.
    """
    if options.until and options.length:
        raise typer.BadParameter("say --until or --for, not both")
    resume_at = _until(options.until) if options.until else _after(options.length)
    _write(options.data, Paused(True, resume_at), is_json=options.is_json)


def resume_vehicle(options: Resume) -> None:
    """End a pause: the car may work again.

    Where the rest of the policy allows it.
    """
    _write(options.data, Paused(False, ""), is_json=options.is_json)


def _until(text: str) -> str:
    """A moment as the owner wrote it, if it is to come."""
    from terafleet.agent.place_clock import utc_offset_ms

    moment = moment_of(text.strip())
    if moment is None:
        raise typer.BadParameter(f"{text!r} is no moment; write it as 2026-11-24 07:00")
    now_ms = _now_ms()
    if moment.is_local:
        now_ms += utc_offset_ms(now_ms)
    if moment.at_ms <= now_ms:
        raise typer.BadParameter(f"{text!r} is over; a pause ends later")
    return text.strip()


def _after(length: str) -> str:
    """The moment so much later, by the place's clock with its offset; empty for no length."""
    if not length:
        return ""
    from terafleet.agent.place_clock import utc_offset_ms

    now_ms = _now_ms()
    try:
        place = timezone(timedelta(milliseconds=utc_offset_ms(now_ms)))
        now = datetime.fromtimestamp(now_ms // MS_PER_S, tz=place)
        ends = now + timedelta(seconds=duration_s(length))
    except OverflowError as error:
        raise typer.BadParameter(f"{length!r} is longer than calendars are") from error
    return ends.isoformat()


def _write(data: Path, wanted: Paused, *, is_json: bool) -> None:
    with extra_needed("agent"):
        from terafleet.agent.owner_pause import write_pause
        from terafleet.agent.owner_policy_files import OWNER_FILE, PolicyRefused
    installed = car_settings(data).policy
    with files_mapped():
        refused = write_pause(data, installed, wanted.is_paused, wanted.resume_at)
    if isinstance(refused, PolicyRefused):
        faults = "; ".join(refused.faults)
        advice = f"Nothing was changed. See: terafleet policy check --data {data}"
        raise CommandFailed("policy_refused", f"The owner policy has faults: {faults}.", advice)
    if is_json:
        print_json(wanted)
    elif not wanted.is_paused:
        typer.echo(f"The pause is over: {data / OWNER_FILE} allows work again.")
    elif wanted.resume_at:
        typer.echo(f"Paused until {wanted.resume_at}.")
    else:
        typer.echo(f"Paused, until you say: terafleet vehicle resume --data {data}")


def _now_ms() -> int:
    from terafleet.engine.clock import SystemClock

    return SystemClock().now_ms()
