"""Policies and readings for tests: a well car, any policy without faults, any readings."""

import math

import msgspec
from hypothesis import strategies as st

from terafleet.core.hours import DAYS, Departure, Window
from terafleet.core.limits import LIMITS, Limit, levels_of
from terafleet.core.local_time import MS_PER_DAY
from terafleet.core.policy import (
    ActivityPolicy,
    ChargePolicy,
    HoursPolicy,
    LinkPolicy,
    OwnerPolicy,
    PlacePolicy,
    PowerPolicy,
    TemperaturePolicy,
    YieldPolicy,
)
from terafleet.core.policy_faults import policy_faults
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE

MONDAY_MS = 4 * MS_PER_DAY
"""5 January 1970 was a Monday; the tests' weeks begin there."""

WELL = Readings(
    at_ms=MONDAY_MS,
    is_parked=True,
    is_driver_present=False,
    is_plugged_in=True,
    soc_percent=80.0,
    compute_temperature_c=25.0,
    battery_temperature_c=20.0,
    ambient_temperature_c=15.0,
    is_charging=False,
    charging_mw=0,
    is_preconditioning=False,
    is_sentry_on=False,
    is_updating=False,
    is_in_service=False,
    place="home",
    is_link_metered=False,
    fan_percent=10.0,
    compute_mw=50_000,
    low_voltage_mv=13_000,
    other_load_percent=5.0,
)
"""A car of which everything is known, and well."""


def at(day: int, hour: float) -> int:
    """A time in the tests' week, in ms: day 0 is Monday."""
    return MONDAY_MS + day * MS_PER_DAY + round(hour * MS_PER_HOUR)


def with_limit(limit: Limit, stop: float | None, begin: float | None = None) -> OwnerPolicy:
    """The default policy with one limit as given; that of the fan holds all day."""
    policy = OwnerPolicy(hours=HoursPolicy(quiet=(Window(),)))
    table = getattr(policy if limit.table == "hours" else OwnerPolicy(), limit.table)
    changed = msgspec.structs.replace(table, **{limit.name: stop, limit.resume: begin})
    return msgspec.structs.replace(OwnerPolicy(), **{limit.table: changed})


def fields_of(limit: Limit) -> st.SearchStrategy[dict[str, float | None]]:
    """The two fields of a limit: none, the first alone, or both the right way round."""
    levels = st.integers(math.ceil(limit.least), math.floor(min(limit.most, 20_000)))
    pairs = st.tuples(levels, levels).map(sorted)

    def named(pair: list[int], is_both: bool) -> dict[str, float | None]:
        begin, stop = pair if limit.is_ceiling else reversed(pair)
        return {limit.name: stop, limit.resume: begin if is_both else None}

    nothing: dict[str, float | None] = {limit.name: None, limit.resume: None}
    return st.just(nothing) | st.builds(named, pairs, st.booleans())


def _of_table(table: str) -> st.SearchStrategy[dict[str, float | None]]:
    found = [fields_of(limit) for limit in LIMITS if limit.table == table]
    return st.tuples(*found).map(lambda many: {k: v for one in many for k, v in one.items()})


days = st.sets(st.sampled_from(DAYS), min_size=1).map(lambda one: tuple(sorted(one)))
clock_times = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
window = st.builds(
    lambda on, begin, end: Window(on, begin, end if end != begin else "24:00"),
    days,
    clock_times,
    clock_times | st.just("24:00"),
)
windows = st.lists(window, max_size=3).map(tuple)
departure = st.builds(Departure, days=days, at=clock_times, soc_percent=st.floats(0, 100))
spares = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(sorted)


@st.composite
def charges(draw: st.DrawFn) -> ChargePolicy:
    """Any charge policy."""
    low, high = draw(spares)
    return ChargePolicy(
        needs_plug=draw(st.booleans()),
        is_charge_first=draw(st.booleans()),
        soc_percent_departure=draw(st.floats(0, 100)),
        capacity_mwh=draw(st.none() | st.integers(1, 10**8)),
        spare_ms_min=low * 20 * MS_PER_MINUTE,
        spare_ms_resume=high * 20 * MS_PER_MINUTE,
        departures=draw(st.lists(departure, max_size=2).map(tuple)),
        departure_lead_ms=draw(st.integers(0, 6 * MS_PER_HOUR)),
        departure_late_ms=draw(st.integers(0, 6 * MS_PER_HOUR)),
        **draw(_of_table("charge")),
    )


def _hours(fields: dict[str, float | None], *named: tuple[Window, ...]) -> HoursPolicy:
    compute, network, quiet = named
    return HoursPolicy(compute=compute, network=network, quiet=quiet, **fields)


policies = st.builds(
    OwnerPolicy,
    is_paused=st.sampled_from([False, False, False, True]),
    resume_at=st.sampled_from(["", "1970-01-07T06:00", "1970-01-10T12:30+02:00"]),
    charge=charges(),
    hours=st.builds(_hours, _of_table("hours"), windows, windows, windows),
    places=st.builds(PlacePolicy, st.sampled_from([(), ("home",), ("home", "work")])),
    link=st.builds(LinkPolicy, st.booleans(), st.none() | st.integers(0, 1_000)),
    temperature=_of_table("temperature").map(lambda fields: TemperaturePolicy(**fields)),
    power=_of_table("power").map(lambda fields: PowerPolicy(**fields)),  # type: ignore[arg-type]
    activity=st.builds(ActivityPolicy, st.booleans(), st.booleans(), st.booleans()),
    giving_back=st.just(YieldPolicy(stale_ms=MS_PER_HOUR)),
).filter(lambda policy: not policy_faults(policy))
"""Any policy without faults; a sample may be an hour old."""

maybe = st.none() | st.booleans()
numbers = st.none() | st.floats(-60, 150) | st.just(math.nan)
readings = st.builds(
    Readings,
    at_ms=st.just(MONDAY_MS),
    is_parked=maybe,
    is_driver_present=maybe,
    is_plugged_in=maybe,
    soc_percent=numbers,
    compute_temperature_c=numbers,
    battery_temperature_c=numbers,
    ambient_temperature_c=numbers,
    is_charging=maybe,
    charging_mw=st.none() | st.integers(0, 20_000_000),
    departure_at_ms=st.none() | st.integers(MONDAY_MS, MONDAY_MS + 14 * MS_PER_DAY),
    is_preconditioning=maybe,
    is_sentry_on=maybe,
    is_updating=maybe,
    is_in_service=maybe,
    place=st.sampled_from([None, "home", "work", "elsewhere"]),
    is_link_metered=maybe,
    fan_percent=numbers,
    compute_mw=st.none() | st.integers(0, 20_000),
    low_voltage_mv=st.none() | st.integers(0, 20_000),
    other_load_percent=numbers,
    utc_offset_ms=st.integers(-14, 14).map(lambda hours: hours * MS_PER_HOUR),
)
"""Any readings at the beginning of the tests' week."""


@st.composite
def well_enough(draw: st.DrawFn, policy: OwnerPolicy) -> Readings:
    """Readings of a car for which a policy has at most reasons of time, place and level."""
    found = msgspec.structs.replace(
        WELL,
        departure_at_ms=draw(st.none() | st.integers(MONDAY_MS, MONDAY_MS + 14 * MS_PER_DAY)),
        is_charging=draw(st.booleans()),
        charging_mw=draw(st.integers(0, 20_000_000)),
        utc_offset_ms=draw(st.integers(-14, 14)) * MS_PER_HOUR,
        soc_percent=draw(st.floats(0, 100)),
    )
    for limit in LIMITS:
        levels = levels_of(policy, limit)
        if levels is not None and limit.sensor != "soc_percent":
            found = msgspec.structs.replace(found, **{limit.sensor: levels.begin})
    return found
