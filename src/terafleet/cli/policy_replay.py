"""Plays a policy over a car's recorded readings, and says what it would have lent and earned."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from terafleet.agent import amounts
from terafleet.agent.standing_words import REFUSALS
from terafleet.cli.car_settings import car_settings
from terafleet.cli.failure import CommandFailed, extra_needed
from terafleet.cli.options import duration_s
from terafleet.cli.output import note, print_json
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_preview import NOT_RECORDED, Lending, preview
from terafleet.core.policy_preview import Preview as Played
from terafleet.core.pricing import Plan
from terafleet.core.reasons import Refusal
from terafleet.core.refusal_rules import refusals
from terafleet.core.units import MICRO, MS_PER_S

if TYPE_CHECKING:
    from terafleet.agent.settings import AgentSettings
    from terafleet.cli.policy import Preview

_MW_PER_W = 1_000


class Replayed(msgspec.Struct, frozen=True):
    """What `--json` prints: what came of it, and what was taken for granted."""

    policy: str
    lending: Lending
    played: Played
    earned_micro: int


def replay(options: "Preview") -> None:
    """Play it and print what came of it. Raises CommandFailed."""
    settings = car_settings(options.data)
    name, policy = _policy(options, settings)
    # What an owner would have had, had they not taken the car for themselves.
    policy = msgspec.structs.replace(policy, is_paused=False)
    lending = _lending(options, settings)
    played = _played(options.data, policy, lending, _span_ms(options.last))
    if options.is_json:
        print_json(Replayed(name, lending, played, played.earned_micro))
        return
    for line in lines_of(name, lending, played):
        typer.echo(line)
    if played.reasons_ms.get(NOT_RECORDED, 0) == played.refused_ms and not played.lent_ms:
        note("Nothing was recorded in that time. An agent records while it runs.")


def lines_of(name: str, lending: Lending, played: Played) -> list[str]:
    """What came of it, for a person."""
    span = amounts.length(played.until_ms - played.from_ms)
    lines = [
        f"In the last {span} you would have lent {amounts.hours(played.lent_ms)} "
        f"and earned {amounts.money(played.earned_micro)}.",
        f"Work would have paid {amounts.money(played.reward_micro)}; energy and wear take "
        f"{amounts.money(played.spent_micro)} of it, for {amounts.energy(played.computer_mwh)} "
        "by the computer.",
        f"The car was parked {amounts.count(played.stays, 'time')}, at the longest for "
        f"{amounts.length(played.longest_stay_ms)}; it would have lent "
        f"{amounts.count(played.permits, 'time')}, at the longest for "
        f"{amounts.length(played.longest_permit_ms)}.",
    ]
    if played.reasons_ms:
        lines += ["", f"Not lent: {amounts.hours(played.refused_ms)}, several may hold at once:"]
    longest_first = sorted(played.reasons_ms.items(), key=lambda pair: -pair[1])
    lines += [f"  {amounts.hours(ms):>9}  {_reason(reason)}" for reason, ms in longest_first]
    return [*lines, "", *_assumed(name, lending)]


def _assumed(name: str, lending: Lending) -> list[str]:
    return [
        "Taken for granted:",
        f"- the policy: {name}, without any pause;",
        "- there always was work, and a control plane that could be reached;",
        f"- the computer draws {lending.computer_mw / _MW_PER_W:g} W while it works (--power);",
        f"- an hour pays {lending.reward_micro_per_hour / MICRO:g} (--reward), or what you ask "
        f"for up to {lending.asking_micro_per_hour_max / MICRO:g} (--met-up-to);",
        "- work warms the computer to 60 °C, or as far as the policy lets it, and nothing else.",
    ]


def _reason(name: str) -> str:
    if name == NOT_RECORDED:
        return "nothing was recorded"
    return REFUSALS[Refusal(name)]


def _policy(options: "Preview", settings: "AgentSettings") -> tuple[str, OwnerPolicy]:
    with extra_needed("agent"):
        from terafleet.agent.owner_policy_files import (
            OwnerPolicyFiles,
            PolicyRefused,
            read_owner_file,
        )
    if options.policy is not None:
        found = read_owner_file(options.policy)
        if isinstance(found, PolicyRefused):
            raise _refused(found.faults, f"terafleet policy check {options.policy}")
        return str(options.policy), found
    policy_files = OwnerPolicyFiles(options.data, settings.policy)
    policy_files.reload()
    if policy_files.faults:
        raise _refused(policy_files.faults, f"terafleet policy check --data {options.data}")
    return "the one that holds in this car", policy_files.policy


def _refused(faults: tuple[str, ...], command: str) -> CommandFailed:
    message = f"The policy has faults: {'; '.join(faults)}."
    return CommandFailed("policy_refused", message, f"See: {command}")


def _lending(options: "Preview", settings: "AgentSettings") -> Lending:
    power_mw = settings.computer_mw
    if options.power_w is not None:
        power_mw = round(options.power_w * _MW_PER_W)
    met_micro = Plan().asking_micro_per_hour_max
    if options.met_up_to is not None:
        met_micro = round(options.met_up_to * MICRO)
    return Lending(power_mw, round(options.reward * MICRO), met_micro)


def _span_ms(last: str) -> tuple[int, int]:
    from terafleet.engine.clock import SystemClock

    now_ms = SystemClock().now_ms()
    return max(0, now_ms - duration_s(last) * MS_PER_S), now_ms


def _played(data: Path, policy: OwnerPolicy, lending: Lending, span_ms: tuple[int, int]) -> Played:
    with extra_needed("agent"):
        from terafleet.agent.readings_csv import ReadingsRefused
        from terafleet.agent.readings_log import READINGS_FOLDER, recorded
    try:
        # A sample from before the beginning may still hold when it begins.
        return preview(recorded(data / READINGS_FOLDER), policy, refusals, lending, span_ms)
    except ReadingsRefused as error:
        raise CommandFailed("readings_refused", f"{error}.") from error
