"""An owner policy from a table: what is wrong is told by its path, and tables lie over tables."""

import math
import tomllib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core.hours import Departure, Window
from terafleet.core.limits import LIMITS
from terafleet.core.policy import (
    ChargePolicy,
    HoursPolicy,
    LinkPolicy,
    OwnerPolicy,
    PlacePolicy,
    TemperaturePolicy,
    WorkPolicy,
    YieldPolicy,
)
from terafleet.core.policy_faults import policy_faults
from terafleet.core.policy_tables import PolicyFaults, laid_over, policy_from
from terafleet.core.written_time import WrittenMoment, minute_of, moment_of
from tests.core.policy_world import MONDAY_MS, policies


def faults_of(text: str) -> list[str]:
    """What is wrong with a policy in TOML, a line for each fault."""
    found = policy_from(tomllib.loads(text))
    return [str(fault) for fault in found.faults] if isinstance(found, PolicyFaults) else []


def test_an_empty_table_is_the_default_policy() -> None:
    assert policy_from({}) == OwnerPolicy()
    assert policy_faults(OwnerPolicy()) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("is_pausd = true", "is_pausd: is no such name; there are activity, charge"),
        ("is_paused = 1", "is_paused: expected bool, got int"),
        ("charge = 3", "charge: must be a table"),
        ("[charge]\nsoc_min = 3", "charge.soc_min: is no such name; there are capacity_mwh"),
        ('[charge]\nsoc_percent_min = "a"', "charge.soc_percent_min: expected float | null"),
        ("[charge]\nsoc_percent_min = 101", "charge.soc_percent_min: must lie within 0 and 100"),
        ("[charge]\nsoc_percent_min = nan", "charge.soc_percent_min: must be a number"),
        (
            "[charge]\nsoc_percent_min = 60\nsoc_percent_resume = 55",
            "charge.soc_percent_resume: must not be below soc_percent_min, 60",
        ),
        (
            '[charge]\nsoc_percent_min = "none"\nsoc_percent_resume = 55',
            "charge.soc_percent_resume: needs soc_percent_min",
        ),
        (
            "[temperature]\ncompute_c_resume = 86",
            "temperature.compute_c_resume: must not be above compute_c_max, 85",
        ),
        ("[temperature]\nambient_c_max = 200", "temperature.ambient_c_max: must lie within -40"),
        (
            "[temperature]\nbattery_c_max = 20\nbattery_c_min = 15",
            "temperature.battery_c_min: leaves no temperature",
        ),
        ("[charge]\ncapacity_mwh = 0", "charge.capacity_mwh: must lie within 1"),
        ("[charge]\nspare_ms_min = 4_000_000", "charge.spare_ms_resume: must not be below"),
        ('[[charge.departures]]\nat = "25:00"', "charge.departures[0].at: must be a time of day"),
        ('[[charge.departures]]\nat = "24:00"', "charge.departures[0].at: must be a time of day"),
        ("[[charge.departures]]", "charge.departures[0]: object missing required field at"),
        (
            '[[charge.departures]]\nat = "07:00"\nsoc_percent = -1',
            "charge.departures[0].soc_percent: must lie within 0 and 100",
        ),
        ('[[hours.quiet]]\ndays = ["monday"]', "hours.quiet[0].days[0]: invalid enum value"),
        ("[[hours.quiet]]\ndays = []", "hours.quiet[0].days: must name at least one day"),
        ('[[hours.quiet]]\nfrom = "7"', "hours.quiet[0].from: must be a time of day"),
        ('[[hours.quiet]]\nto = "24:01"', "hours.quiet[0].to: must be a time of day"),
        ('[[hours.quiet]]\nto = "00:00"', "hours.quiet[0]: begins and ends at the same time"),
        ('[places]\nallowed = [""]', "places.allowed: must not have an empty label"),
        ("[link]\nday_bytes_max = -1", "link.day_bytes_max: must not be negative"),
        ("[wear]\nflash_bytes = -1", "wear: pack_mwh, electronics_ms and flash_bytes must not"),
        ("[terms]\nmargin_percent = -1", "terms: margin_percent, margin_micro_per_hour"),
        ("[terms.tariff]\nmicro_per_kwh = -1", "terms: tariff: micro_per_kwh must lie"),
        ("[work]\nkinds = []", "work.kinds: must name at least one of live, batch"),
        ('[work]\nendpoints = ["images"]', "work.endpoints: must be some of"),
        ("[yield]\nstale_ms = -1", "yield.stale_ms: must lie within 0 and 3600000 ms"),
        ("[yield]\nfinish_ms = 3_600_000", "yield.finish_ms: must lie within 0 and 600000 ms"),
        ('resume_at = "tomorrow"', "resume_at: must be a moment"),
        (f"[link]\nday_bytes_max = {10**30}", "link.day_bytes_max:"),
    ],
)
def test_what_is_wrong_is_told_by_its_path(text: str, fault: str) -> None:
    (found,) = faults_of(text)
    assert found.startswith(fault)


def test_every_field_that_is_wrong_is_told() -> None:
    text = 'is_paused = 1\nwhat = 2\n[charge]\nneeds_plug = "yes"\n[hours]\nquiet = 3\n'
    assert [line.partition(":")[0] for line in faults_of(text)] == [
        "is_paused",
        "what",
        "charge.needs_plug",
        "hours.quiet",
    ]
    text = "[yield]\nstale_ms = -1\nstop_ms = -1\n[work]\nkinds = []\n"
    assert len(faults_of(text)) == 3


@pytest.mark.parametrize(
    "policy",
    [
        OwnerPolicy(places=PlacePolicy(("x" * 201,))),
        OwnerPolicy(places=PlacePolicy(("x",) * 65)),
        OwnerPolicy(link=LinkPolicy(day_bytes_max=2**60)),
        OwnerPolicy(temperature=TemperaturePolicy(compute_c_max=math.inf)),
        OwnerPolicy(work=WorkPolicy(reward_micro_per_hour_min=-(2**60))),
        OwnerPolicy(giving_back=YieldPolicy(settle_ms=-1)),
        OwnerPolicy(work=WorkPolicy(reward_micro_per_hour_min=-1)),
        OwnerPolicy(charge=ChargePolicy(soc_percent_departure=101.0)),
        OwnerPolicy(charge=ChargePolicy(departure_lead_ms=10**9)),
        OwnerPolicy(charge=ChargePolicy(departures=(Departure(days=("mon",) * 2, at="1:00"),))),
        OwnerPolicy(hours=HoursPolicy(compute=(Window(begin="24:00"),))),
    ],
)
def test_what_nobody_means_is_a_fault(policy: OwnerPolicy) -> None:
    assert policy_faults(policy)


def test_limits_that_share_a_level_are_no_fault() -> None:
    strict = ChargePolicy(soc_percent_min=100.0, soc_percent_resume=100.0)
    assert policy_faults(OwnerPolicy(charge=strict)) == []
    assert {limit.table for limit in LIMITS} <= set(OwnerPolicy.__struct_fields__)


def test_toml_may_say_times_and_nothing() -> None:
    text = """
is_paused = true
resume_at = 2026-09-01T07:00:00+02:00
charge.soc_percent_min = "none"
temperature.compute_c_max = "none"
[[hours.compute]]
from = 22:00:00
to = 06:00:00
"""
    policy = policy_from(tomllib.loads(text))
    assert isinstance(policy, OwnerPolicy)
    assert policy.resume_at == "2026-09-01T07:00:00+02:00"
    assert moment_of(policy.resume_at) == WrittenMoment(1_788_238_800_000, is_local=False)
    assert policy.charge.soc_percent_min is None
    assert policy.temperature.compute_c_max is None
    assert policy.hours.compute == (Window(begin="22:00:00", end="06:00:00"),)


def test_tables_lie_over_tables_name_by_name() -> None:
    remote: dict[str, Any] = {
        "is_paused": True,
        "charge": {"soc_percent_min": 60, "needs_plug": True},
        "hours": {"quiet": [{"from": "22:00"}]},
    }
    local: dict[str, Any] = {"charge": {"needs_plug": False}, "hours": {"quiet": []}}
    assert laid_over(remote, local) == {
        "is_paused": True,
        "charge": {"soc_percent_min": 60, "needs_plug": False},
        "hours": {"quiet": []},
    }
    assert laid_over(remote, {}) == remote
    assert laid_over({}, local) == local
    assert remote["charge"]["needs_plug"] is True, "neither of them is changed"
    assert laid_over({"charge": 3}, local)["charge"] == {"needs_plug": False}


def test_a_table_as_deep_as_a_well_is_refused_and_no_more() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"charge": deep}
    assert isinstance(policy_from(deep), PolicyFaults)
    assert "charge" in laid_over(deep, deep)


@settings(max_examples=40)
@given(policies)
def test_a_policy_comes_back_from_what_it_is_written_as(policy: OwnerPolicy) -> None:
    assert policy_from(msgspec.to_builtins(policy)) == policy
    assert policy_from(msgspec.json.decode(msgspec.json.encode(policy))) == policy
    body = msgspec.msgpack.encode(policy)
    assert msgspec.msgpack.decode(body, type=OwnerPolicy) == policy


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["charge", "hours", "quiet", "from", "x"]), below)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*OwnerPolicy.__struct_encode_fields__, "x"]), anything))
def test_no_table_makes_it_stumble(table: dict[str, Any]) -> None:
    found = policy_from(table)
    if isinstance(found, OwnerPolicy):
        assert policy_faults(found) == []
        msgspec.msgpack.encode(found)
    else:
        assert found.faults
        assert all(fault.path and fault.allowed for fault in found.faults)


@pytest.mark.parametrize(
    ("text", "minute"),
    [
        ("00:00", 0),
        ("7:05", 425),
        ("07:05:00", 425),
        ("24:00", 1_440),
        ("24:01", None),
        ("12:60", None),
        ("07:05:01", None),
        ("-1:00", None),
        ("", None),
        ("٠٧:٠٠", None),  # noqa: RUF001 - digits, but not ours.
    ],
)
def test_times_of_day(text: str, minute: int | None) -> None:
    assert minute_of(text) == minute


@pytest.mark.parametrize(
    ("text", "at_ms", "is_local"),
    [
        ("1970-01-05T00:00", MONDAY_MS, True),
        ("1970-01-05 00:00:30", MONDAY_MS + 30_000, True),
        ("1970-01-05T00:00Z", MONDAY_MS, False),
        ("1970-01-05T00:00-01:30", MONDAY_MS + 5_400_000, False),
        ("2000-02-29T00:00", 951_782_400_000, True),
        ("2100-03-01T00:00Z", 4_107_542_400_000, False),
        ("2024-12-31T23:59:59Z", 1_735_689_599_000, False),
    ],
)
def test_moments(text: str, at_ms: int, is_local: bool) -> None:
    assert moment_of(text) == WrittenMoment(at_ms, is_local)


@pytest.mark.parametrize(
    "text",
    [
        "2100-02-29T00:00",
        "2026-13-01T00:00",
        "2026-00-01T00:00",
        "2026-04-31T00:00",
        "2026-04-00T00:00",
        "2026-04-01T24:00",
        "2026-04-01T12:60",
        "2026-04-01T12:00:60",
        "2026-04-01T12:00+14:01",
        "2026-04-01T12:00+01:60",
        "2026-04-01",
        "1969-12-31T00:00",
        "0000-01-01T00:00",
        "tomorrow",
    ],
)
def test_no_moments(text: str) -> None:
    assert moment_of(text) is None
