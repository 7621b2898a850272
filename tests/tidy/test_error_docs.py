"""The page of error codes names every code and every reason of the code, and no other."""

import re
from collections.abc import Sequence
from enum import StrEnum

import pytest

from terafleet.control.gateway.errors import CODE_OF_REFUSED
from terafleet.core.reasons import Failure, LeaseEnding, Refusal, Refused, UnitEnding, Waiting
from terafleet.protocol.errors import ERRORS
from tests.tidy.source_files import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text("utf-8")

REASONS: dict[str, type[StrEnum]] = {
    "Why a car refuses": Refusal,
    "Why a lease ended before its work was done": LeaseEnding,
    "Why an attempt failed": Failure,
    "Why a work unit has no result": UnitEnding,
    "Why accepted work waits": Waiting,
}

Row = tuple[str, ...]


def rows(page: str, heading: str) -> list[Row]:
    """The cells of the table below a heading, without its first two lines; code without its marks.

    Empty where there is no such heading, or no table.
    """
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
    )
    lines = [line for line in found[1].splitlines() if line.startswith("|")] if found else []
    return [tuple(cell.strip().strip("`") for cell in line[1:-1].split("|")) for line in lines[2:]]


def table_faults(found: Sequence[Row], expected: Sequence[Row]) -> list[str]:
    """What a table has that it should not, and what it lacks; the last cell holds only words."""
    told = [row[:-1] for row in found]
    faults = [f"unknown: {' '.join(row)}" for row in told if row not in expected]
    faults += [f"missing: {' '.join(row)}" for row in expected if row not in told]
    faults += [f"twice: {' '.join(row)}" for row in sorted(set(told)) if told.count(row) > 1]
    return faults + [f"no words: {row[0]}" for row in found if not row[-1].endswith(".")]


def test_every_error_code_is_told() -> None:
    expected = [(code, str(kind.status), kind.type) for code, kind in ERRORS.items()]
    assert table_faults(rows(PAGE, "Error codes"), expected) == []


@pytest.mark.parametrize("heading", REASONS)
def test_every_reason_is_told(heading: str) -> None:
    expected = [(str(reason),) for reason in REASONS[heading]]
    assert table_faults(rows(PAGE, heading), expected) == []


def test_every_refusal_of_admission_is_told_with_its_code() -> None:
    expected = [(str(refused), CODE_OF_REFUSED[refused]) for refused in Refused]
    assert table_faults(rows(PAGE, "Why admission does not take a request"), expected) == []


def test_planted_faults_are_found() -> None:
    page = """
## First

| reason | means |
|---|---|
| `right` | It is right. |
| `invented` | Nobody gives it. |
| `right` | It is right. |
| `silent` | |

## Second
"""
    assert rows(page, "Second") == rows(page, "Third") == []
    expected: list[Row] = [("right",), ("silent",), ("forgotten",)]
    assert table_faults(rows(page, "First"), expected) == [
        "unknown: invented",
        "missing: forgotten",
        "twice: right",
        "no words: silent",
    ]
