"""Says in words what the agent's status says by name: for the owner's page and for commands."""

from typing import NamedTuple

from terafleet.agent import amounts
from terafleet.agent.history import AttemptRow, Outcome
from terafleet.agent.meters import MODEL
from terafleet.agent.standing_words import REFUSALS, standing_in_words
from terafleet.agent.status import AgentStatus, CapsStatus, DayStatus
from terafleet.core.guard_effects import GuardState
from terafleet.core.policy import ENDPOINTS
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.core.standing import StandingRefusal
from terafleet.core.units import MS_PER_MINUTE

NONE = "-"

STATES = {
    GuardState.REFUSING: "does not compute",
    GuardState.SETTLING: "waits whether all stays well",
    GuardState.PERMITTING: "is free for work",
    GuardState.YIELDING: "gives the car back",
}

FAILURES = {
    Failure.RUNTIME_CRASHED: "the runtime crashed",
    Failure.RUNTIME_REFUSED: "the runtime refused it",
    Failure.OUT_OF_MEMORY: "memory was not enough",
    Failure.MODEL_UNAVAILABLE: "the model could not be had",
    Failure.INPUT_UNAVAILABLE: "its input could not be had",
    Failure.INPUT_DAMAGED: "its input was damaged",
    Failure.OUTPUT_INCOMPLETE: "its output was incomplete",
    Failure.STOPPED: "it was stopped",
    Failure.SANDBOX_UNAVAILABLE: "the sandbox could not be had",
}

ENDINGS = {
    LeaseEnding.OWNER_RETURNED: "the owner came",
    LeaseEnding.CONDITIONS_CHANGED: "what the owner allows was over",
    LeaseEnding.AGENT_RESTARTED: "the agent began anew",
    LeaseEnding.AGENT_STOPPED: "the agent stopped",
    LeaseEnding.LINK_SILENT: "the link was lost",
    LeaseEnding.LEASE_UNKNOWN: "the control plane did not know it",
    LeaseEnding.MODEL_UNAVAILABLE: "the model could not be had",
    LeaseEnding.NOT_PERMITTED: "it came when the car refused",
    LeaseEnding.WORK_UNWANTED: "the owner does not want such work",
    LeaseEnding.OVERDUE: "it took too long",
    LeaseEnding.BATCH_CANCELLED: "the batch was cancelled",
    LeaseEnding.BATCH_EXPIRED: "the batch expired",
    LeaseEnding.VEHICLE_REMOVED: "the car was taken out of the fleet",
    LeaseEnding.PREEMPTED: "its slot was needed",
    LeaseEnding.ATTEMPT_FAILED: "the attempt failed",
}

OUTCOMES = {
    Outcome.ANSWERED: "answered",
    Outcome.FAILED: "failed",
    Outcome.GIVEN_BACK: "given back to the owner",
    Outcome.UNWANTED: "not wanted any more",
    Outcome.RUNNING: "at hand",
}

_ENDPOINT_NAMES = {path: name for name, path in ENDPOINTS.items()}
_MODEL_ID_SHOWN = 12


class Fact(NamedTuple):
    """One line: what it is about, and a text.

    `share` is how much of a cap is used, 0 to 1, None where there is none. `is_alarm` asks for
    somebody to look.
    """

    name: str
    text: str
    share: float | None = None
    is_alarm: bool = False


class Topic(NamedTuple):
    """What belongs together."""

    name: str
    facts: tuple[Fact, ...]


class AttemptWords(NamedTuple):
    """An attempt in words: when it ended, its class, what it was of, length, energy, outcome."""

    at: str
    work: str
    model: str
    length: str
    energy: str
    outcome: str


def headline(status: AgentStatus, *, is_running: bool) -> str:
    """What the car does, in one sentence."""
    name = status.name or status.vehicle_id
    if not is_running:
        return f"{name} does not compute: its agent is not running"
    if status.state is GuardState.PERMITTING and status.attempts:
        return f"{name} computes: {amounts.count(status.attempts, 'attempt')} at hand"
    return f"{name} {STATES[status.state]}"


def why_not(status: AgentStatus, now_ms: int) -> tuple[str, ...]:
    """Why the car does not compute, each reason with since when and until when; none if it may."""
    if status.standing:
        return tuple(
            standing_in_words(
                StandingRefusal(one.refusal, one.since_ms),
                one.ending,
                now_ms,
                status.utc_offset_ms,
            )
            for one in status.standing
        )
    return tuple(REFUSALS[refusal] for refusal in status.refusals)


def topics(status: AgentStatus, now_ms: int, *, is_running: bool = True) -> tuple[Topic, ...]:
    """All that a status says, by topic."""
    return (
        Topic("now", _now(status, now_ms, is_running)),
        Topic("today", _today(status.today, status.caps)),
        Topic("money", _money(status)),
        Topic("the car", _car(status)),
        Topic("the agent", _agent(status, is_running)),
    )


def attempt_words(row: AttemptRow, status: AgentStatus | None) -> AttemptWords:
    """An attempt in words; the status knows the names of models and the place's clock."""
    names = {model.model_id: model.name for model in status.models} if status else {}
    offset_ms = status.utc_offset_ms if status else 0
    endpoint = _ENDPOINT_NAMES.get(row.endpoint, row.endpoint)
    model = names.get(row.model_id) or row.model_id[:_MODEL_ID_SHOWN]
    return AttemptWords(
        at=amounts.moment(row.at_ms, offset_ms),
        work=" ".join(filter(None, (row.work_class, endpoint))) or NONE,
        model=model or NONE,
        length=amounts.length(row.length_ms) if row.length_ms else NONE,
        energy=amounts.energy(row.energy_mwh) if row.energy_mwh else NONE,
        outcome=_outcome(row),
    )


def _outcome(row: AttemptRow) -> str:
    text = OUTCOMES[row.outcome]
    if row.answers_failed:
        text += f", {row.answers_failed} of {amounts.count(row.answers, 'answer')} errors"
    elif row.answers > 1:
        text += f", {amounts.count(row.answers, 'answer')}"
    if row.reason:
        text += f": {_reason(row.reason)}"
    if row.units > 1:
        text += f" ({amounts.count(row.units, 'unit')})"
    return text


def _reason(name: str) -> str:
    """A failure or an ending; one that another version knew is told by its name."""
    if name in set(Failure):
        return FAILURES[Failure(name)]
    if name in set(LeaseEnding):
        return ENDINGS[LeaseEnding(name)]
    return name.replace("_", " ")


def _now(status: AgentStatus, now_ms: int, is_running: bool) -> tuple[Fact, ...]:
    facts = [Fact("now", headline(status, is_running=is_running), is_alarm=not is_running)]
    if is_running:
        facts += [Fact("why not", text) for text in why_not(status, now_ms)]
    facts += [Fact("policy fault", fault, is_alarm=True) for fault in status.policy_faults]
    return tuple(facts)


def _today(today: DayStatus, caps: CapsStatus | None) -> tuple[Fact, ...]:
    worn_micro = today.pack_micro + today.electronics_micro + today.flash_micro
    caps = caps or CapsStatus()
    return (
        Fact(
            "work", f"{amounts.length(today.work_ms)}, {amounts.count(today.attempts, 'attempt')}"
        ),
        Fact("energy", f"{amounts.energy(today.computer_mwh)} by the computer"),
        _capped("through the battery", today.pack_mwh, caps.pack_mwh, amounts.energy),
        _capped("electronics at 90 °C", today.electronics_ms, caps.electronics_ms, _weighted),
        _capped("flash written", today.flash_bytes, caps.flash_bytes, amounts.data),
        _capped("over the link", today.link_bytes, caps.link_bytes, amounts.data),
        Fact(
            "wear",
            f"worth {amounts.money(worn_micro)}: battery {amounts.money(today.pack_micro)}, "
            f"electronics {amounts.money(today.electronics_micro)}, "
            f"flash {amounts.money(today.flash_micro)}",
        ),
    )


def _capped(name: str, used: int, cap: int | None, words: amounts.Words) -> Fact:
    if cap is None:
        return Fact(name, f"{words(used)}, no cap")
    share = min(1.0, used / cap) if cap else 1.0
    return Fact(name, f"{words(used)} of {words(cap)}", share)


def _weighted(electronics_ms: int) -> str:
    """Minutes at 90 °C that wear as much."""
    return f"{electronics_ms / MS_PER_MINUTE:.1f} min"


def _money(status: AgentStatus) -> tuple[Fact, ...]:
    today = status.today
    return (
        Fact("asked today", amounts.money(today.asked_micro)),
        Fact("earned today", amounts.money(today.earned_micro)),
        Fact("earned in all", amounts.money(status.earned_micro)),
    )


def _car(status: AgentStatus) -> tuple[Fact, ...]:
    readings = status.readings
    if readings is None:
        return (Fact("readings", "none yet"),)
    temperature_c = readings.compute_temperature_c
    return (
        Fact("parked", _answer(readings.is_parked)),
        Fact("somebody in it", _answer(readings.is_driver_present)),
        Fact("plugged in", _answer(readings.is_plugged_in)),
        Fact("charge", "unknown" if readings.soc_percent is None else f"{readings.soc_percent} %"),
        Fact("computer", "unknown" if temperature_c is None else f"{temperature_c} °C"),
    )


def _answer(answer: bool | None) -> str:
    if answer is None:
        return "unknown"
    return "yes" if answer else "no"


def _meter(status: AgentStatus) -> str:
    figures = status.energy
    if figures.meter == MODEL:
        return "none: energy is estimated by processor time"
    idle = "" if figures.idle_w is None else f"; {figures.idle_w} W without work"
    return f"{figures.meter}{idle}"


def _agent(status: AgentStatus, is_running: bool) -> tuple[Fact, ...]:
    as_of = amounts.moment(status.at_ms, status.utc_offset_ms)
    leases = ", ".join(f"lease-{lease_id}" for lease_id in status.lease_ids)
    figures = status.figures
    return (
        Fact("car", f"{status.name} ({status.vehicle_id})"),
        Fact(
            "agent",
            f"running, version {status.agent_version}"
            if is_running
            else f"NOT RUNNING since {as_of}",
            is_alarm=not is_running,
        ),
        Fact("control plane", "connected" if status.is_connected else "NOT CONNECTED"),
        Fact("leases", leases or NONE),
        Fact("attempts", f"{status.attempts} running, {figures.finished} done since it began"),
        Fact("answers", f"{figures.answers}, {figures.answers_failed} of them errors"),
        Fact("models", ", ".join(model.name for model in status.models) or NONE),
        Fact("isolation", status.isolation_level or "none tried: no runtime ran yet"),
        Fact("meter", _meter(status)),
        Fact("page", status.page_url or NONE),
        Fact("as of", as_of),
    )
