"""A car says of its isolation what its walls allow, and never more."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from terafleet.core.isolation import (
    WALLS_OF_LEVEL,
    IsolationLevel,
    SandboxReport,
    isolation_level,
    missing_walls,
)

LEVELS = list(IsolationLevel)
NAMES = SandboxReport.__struct_fields__
ASKED_FOR = {name for walls in WALLS_OF_LEVEL.values() for name in walls}
reports = st.builds(SandboxReport, **dict.fromkeys(NAMES, st.booleans()))


def report_with(names: set[str]) -> SandboxReport:
    """A report in which these walls hold and no other."""
    return SandboxReport(**{name: name in names for name in NAMES})


def test_each_level_asks_for_more_than_those_below() -> None:
    held: set[str] = set()
    for level in LEVELS:
        held |= set(WALLS_OF_LEVEL[level])
        assert isolation_level(report_with(held)) is level


def test_only_priority_is_no_wall() -> None:
    assert set(NAMES) - ASKED_FOR == {"has_idle_priority"}


def test_without_a_runtime_there_is_nothing_to_say() -> None:
    assert isolation_level(None) is IsolationLevel.NONE


@given(reports)
def test_a_level_is_said_only_if_all_its_walls_hold_and_those_below(report: SandboxReport) -> None:
    reached = LEVELS.index(isolation_level(report))
    assert all(not missing_walls(report, level) for level in LEVELS[: reached + 1])
    assert reached == len(LEVELS) - 1 or missing_walls(report, LEVELS[reached + 1])


@given(reports, st.sampled_from(sorted(ASKED_FOR)))
def test_no_wall_lowers_a_level(report: SandboxReport, name: str) -> None:
    held = {one for one in NAMES if getattr(report, one)}
    levels = [
        isolation_level(report_with(held - {name})),
        isolation_level(report_with(held | {name})),
    ]
    assert all(LEVELS.index(low) <= LEVELS.index(high) for low, high in pairwise(levels))
