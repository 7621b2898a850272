"""When time alone changes what the owner policy says of a car whose readings stay as they are."""

from collections.abc import Iterator

from terafleet.core.charge_first import charge_turns
from terafleet.core.hours import departure_moments, next_edge_ms, until_next
from terafleet.core.local_time import MS_PER_DAY
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.refusal_rules import is_stale, resume_ms


def next_change_ms(policy: OwnerPolicy, readings: Readings | None, now_ms: int) -> int | None:
    """The next moment after `now_ms` at which the refusals may change by time alone.

    Until just before it they do not; at it they need not.
    """
    if readings is None or is_stale(policy, readings, now_ms):
        return _resume(policy, readings, now_ms)
    stale_ms = readings.at_ms + policy.giving_back.stale_ms + 1
    return min(stale_ms, next_turn_ms(policy, readings, now_ms))


def next_turn_ms(policy: OwnerPolicy, readings: Readings, now_ms: int) -> int:
    """The same for a car whose readings come in anew all the time, so that they grow not stale."""
    return min(at_ms for at_ms in _turns(policy, readings, now_ms) if at_ms > now_ms)


def _resume(policy: OwnerPolicy, readings: Readings | None, now_ms: int) -> int | None:
    if not policy.is_paused:
        return None
    at_ms = resume_ms(policy, readings.utc_offset_ms if readings else None)
    return at_ms if at_ms is not None and at_ms > now_ms else None


def _turns(policy: OwnerPolicy, readings: Readings, now_ms: int) -> Iterator[int]:
    local_ms = now_ms + readings.utc_offset_ms
    resume = _resume(policy, readings, now_ms)
    if resume is not None:
        yield resume
    # Caps are for a day.
    yield now_ms + MS_PER_DAY - local_ms % MS_PER_DAY
    hours, charge = policy.hours, policy.charge
    for windows in (hours.compute, hours.network, hours.quiet):
        edge_ms = next_edge_ms(windows, local_ms)
        if edge_ms is not None:
            yield now_ms + edge_ms
    around_ms = (-charge.departure_lead_ms, charge.departure_late_ms)
    moments = [at_ms for at_ms, _ in departure_moments(charge.departures)]
    until_ms = until_next((at_ms + one for at_ms in moments for one in around_ms), local_ms)
    if until_ms is not None:
        yield now_ms + until_ms
    if readings.departure_at_ms is not None:
        yield from (readings.departure_at_ms + one for one in around_ms)
    yield from charge_turns(charge, readings, now_ms)
