"""What is wrong with an owner policy, field by field, in words that a person can act on."""

from collections.abc import Iterator

import msgspec

from terafleet.core.asking_price import terms_faults
from terafleet.core.hours import Departure, Window
from terafleet.core.limits import LIMITS, PERCENT_MAX, Limit, levels_of
from terafleet.core.local_time import MINUTES_PER_DAY, MS_PER_DAY
from terafleet.core.policy import ENDPOINTS, WORK_KINDS, OwnerPolicy
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE
from terafleet.core.wear import caps_faults
from terafleet.core.written_time import minute_of, moment_of

ENTRIES_MAX = 64
"""Of any list: more than anybody writes by hand; it bounds what a look at the policy costs."""

TEXT_MAX = 200
NUMBER_MAX = 2**53
"""Whole numbers beyond it are not the same in all languages, nor meant."""

CAPACITY_MWH_MAX = 1_000_000_000
"""A MWh: beyond it, it is a slip of the unit."""

_MS_MAX = {
    "finish_ms": 10 * MS_PER_MINUTE,
    "stop_ms": MS_PER_MINUTE,
    "suspend_ms": 10 * MS_PER_MINUTE,
    "release_ms": MS_PER_MINUTE,
    "settle_ms": MS_PER_DAY,
    "stale_ms": MS_PER_HOUR,
}


class PolicyFault(msgspec.Struct, frozen=True):
    """A field by its path, such as `charge.soc_percent_min`, and what is allowed there."""

    path: str
    allowed: str

    def __str__(self) -> str:
        """Both, as one line."""
        return f"{self.path}: {self.allowed}"


def policy_faults(policy: OwnerPolicy) -> list[PolicyFault]:
    """All that is wrong with a policy; empty when nothing is."""
    # What is too long or no number can't be looked at any further.
    return list(_bound_faults(policy, "")) or [
        *_resume_faults(policy),
        *(fault for limit in LIMITS for fault in _limit_faults(policy, limit)),
        *_battery_faults(policy),
        *_charge_faults(policy),
        *_hours_faults(policy),
        *_place_faults(policy),
        *_work_faults(policy),
        *_yield_faults(policy),
        *(PolicyFault("wear", fault) for fault in caps_faults(policy.wear)),
        *(PolicyFault("terms", fault) for fault in terms_faults(policy.terms)),
    ]


def _bound_faults(value: object, path: str) -> Iterator[PolicyFault]:
    """Numbers, texts and lists that nobody means, wherever they stand."""
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(value):
            below = f"{path}.{field.encode_name}" if path else field.encode_name
            yield from _bound_faults(getattr(value, field.name), below)
    elif isinstance(value, tuple):
        if len(value) > ENTRIES_MAX:
            yield PolicyFault(path, f"must have {ENTRIES_MAX} entries at most")
        for number, entry in enumerate(value[:ENTRIES_MAX]):
            yield from _bound_faults(entry, f"{path}[{number}]")
    elif isinstance(value, str):
        if len(value) > TEXT_MAX:
            yield PolicyFault(path, f"must have {TEXT_MAX} characters at most")
    # What is no number lies within nothing.
    elif isinstance(value, int | float) and not -NUMBER_MAX <= value <= NUMBER_MAX:
        yield PolicyFault(path, "must be a number of usual size")


def _resume_faults(policy: OwnerPolicy) -> Iterator[PolicyFault]:
    if policy.resume_at and moment_of(policy.resume_at) is None:
        yield PolicyFault("resume_at", "must be a moment, such as 2026-09-01T07:00 or empty")


def _limit_faults(policy: OwnerPolicy, limit: Limit) -> Iterator[PolicyFault]:
    path, resume_path = f"{limit.table}.{limit.name}", f"{limit.table}.{limit.resume}"
    given = getattr(getattr(policy, limit.table), limit.resume)
    levels = levels_of(policy, limit)
    if levels is None:
        if given is not None:
            yield PolicyFault(resume_path, f"needs {limit.name}")
        return
    if not limit.least <= levels.stop <= limit.most:
        yield PolicyFault(path, f"must lie within {limit.least:g} and {limit.most:g}")
    if given is None:
        return
    if not limit.least <= given <= limit.most:
        yield PolicyFault(resume_path, f"must lie within {limit.least:g} and {limit.most:g}")
    elif levels.refuses(given, is_permitting=True):
        side = "above" if limit.is_ceiling else "below"
        yield PolicyFault(resume_path, f"must not be {side} {limit.name}, {levels.stop:g}")


def _battery_faults(policy: OwnerPolicy) -> Iterator[PolicyFault]:
    """Heat and cold of the battery must leave something in between."""
    heat, cold = (
        levels_of(policy, limit) for limit in LIMITS if limit.sensor == "battery_temperature_c"
    )
    if heat and cold and not cold.begin <= heat.begin:
        yield PolicyFault(
            "temperature.battery_c_min", "leaves no temperature at which the car may begin"
        )


def _charge_faults(policy: OwnerPolicy) -> Iterator[PolicyFault]:
    charge = policy.charge
    yield from _percent_faults("charge.soc_percent_departure", charge.soc_percent_departure)
    capacity_mwh = charge.capacity_mwh
    if capacity_mwh is not None and not 0 < capacity_mwh <= CAPACITY_MWH_MAX:
        yield PolicyFault("charge.capacity_mwh", f"must lie within 1 and {CAPACITY_MWH_MAX}")
    yield from _ms_faults("charge.spare_ms_min", charge.spare_ms_min, MS_PER_DAY)
    yield from _ms_faults("charge.spare_ms_resume", charge.spare_ms_resume, MS_PER_DAY)
    if charge.spare_ms_resume < charge.spare_ms_min:
        yield PolicyFault("charge.spare_ms_resume", "must not be below spare_ms_min")
    yield from _ms_faults("charge.departure_lead_ms", charge.departure_lead_ms, MS_PER_DAY // 2)
    yield from _ms_faults("charge.departure_late_ms", charge.departure_late_ms, MS_PER_DAY // 2)
    for number, departure in enumerate(charge.departures):
        yield from _departure_faults(f"charge.departures[{number}]", departure)


def _departure_faults(path: str, departure: Departure) -> Iterator[PolicyFault]:
    yield from _day_faults(path, departure.days)
    if minute_of(departure.at) in (None, MINUTES_PER_DAY):
        yield PolicyFault(f"{path}.at", "must be a time of day, such as 07:30")
    yield from _percent_faults(f"{path}.soc_percent", departure.soc_percent)


def _hours_faults(policy: OwnerPolicy) -> Iterator[PolicyFault]:
    for name in ("compute", "network", "quiet"):
        for number, window in enumerate(getattr(policy.hours, name)):
            yield from _window_faults(f"hours.{name}[{number}]", window)


def _window_faults(path: str, window: Window) -> Iterator[PolicyFault]:
    yield from _day_faults(path, window.days)
    begin, end = minute_of(window.begin), minute_of(window.end)
    if begin in (None, MINUTES_PER_DAY):
        yield PolicyFault(f"{path}.from", "must be a time of day, such as 22:00")
    if end is None:
        yield PolicyFault(f"{path}.to", "must be a time of day, such as 06:00 or 24:00")
    if begin is not None and begin == end:
        yield PolicyFault(path, "begins and ends at the same time; a whole day is 00:00 to 24:00")


def _day_faults(path: str, days: tuple[str, ...]) -> Iterator[PolicyFault]:
    if not days or len(set(days)) != len(days):
        yield PolicyFault(f"{path}.days", "must name at least one day, and none twice")


def _place_faults(policy: OwnerPolicy) -> Iterator[PolicyFault]:
    if not all(policy.places.allowed):
        yield PolicyFault("places.allowed", "must not have an empty label")
    day_bytes_max = policy.link.day_bytes_max
    if day_bytes_max is not None and day_bytes_max < 0:
        yield PolicyFault("link.day_bytes_max", "must not be negative")


def _work_faults(policy: OwnerPolicy) -> Iterator[PolicyFault]:
    work = policy.work
    if not work.kinds:
        yield PolicyFault("work.kinds", f"must name at least one of {', '.join(WORK_KINDS)}")
    known = {*ENDPOINTS, *ENDPOINTS.values()}
    if not known.issuperset(work.endpoints):
        yield PolicyFault("work.endpoints", f"must be some of {', '.join(sorted(known))}")
    if work.reward_micro_per_hour_min < 0:
        yield PolicyFault("work.reward_micro_per_hour_min", "must not be negative")


def _yield_faults(policy: OwnerPolicy) -> Iterator[PolicyFault]:
    for name, most_ms in _MS_MAX.items():
        yield from _ms_faults(f"yield.{name}", getattr(policy.giving_back, name), most_ms)


def _ms_faults(path: str, value: int, most_ms: int) -> Iterator[PolicyFault]:
    if not 0 <= value <= most_ms:
        yield PolicyFault(path, f"must lie within 0 and {most_ms} ms")


def _percent_faults(path: str, value: float) -> Iterator[PolicyFault]:
    if not 0 <= value <= PERCENT_MAX:
        yield PolicyFault(path, f"must lie within 0 and {PERCENT_MAX:g}")
