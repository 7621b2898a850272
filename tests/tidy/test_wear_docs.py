"""The tables of the page on wear are what the code computes."""

import re

from terafleet.core.asking_price import Conditions, OwnerTerms, asking_price_per_hour
from terafleet.core.battery_ageing import LFP, NCA, Chemistry
from terafleet.core.electronics_wear import acceleration
from terafleet.core.tariff import Tariff
from terafleet.core.units import MICRO
from tests.core.pack_day import (
    REFERENCE,
    SCENARIOS,
    YEAR_C,
    added_points,
    charged_points,
    cycles_per_year,
    loss_points,
)
from tests.tidy.source_files import ROOT

PAGE = (ROOT / "docs" / "mechanisms" / "wear.md").read_text("utf-8")
FIRST = "no compute"
COMPUTER_MW = 130_000
JUNCTION_C = 60.0
WARMING_C = 3.0
KWH_MICRO = (50_000, 100_000, 170_000, 300_000, 383_500)
REFERENCE_FACTORS = {(45, 75): "9.0", (45, 85): "17.3", (60, 90): "7.5"}


def table_below(page: str, heading: str) -> list[str]:
    """The rows of the table below a heading, without its first two lines."""
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
    )
    lines = [line for line in found[1].splitlines() if line.startswith("|")] if found else []
    return lines[2:]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def battery_rows() -> list[str]:
    """Cycles a year, and for each chemistry the reference, ours, and what is charged."""
    rows = []
    for name, scenario in SCENARIOS.items():
        told_cycles, *told = REFERENCE[name]
        cells = [name, f"{told_cycles:.0f}", f"{cycles_per_year(scenario):.0f}"]
        for chemistry, figure in zip((NCA, LFP), told, strict=True):
            cells += [told_points(name, figure), our_points(name, chemistry)]
            cells.append(f"{charged_points(chemistry, scenario):.2f}" if scenario.watts else "")
        rows.append(row(*cells))
    return rows


def told_points(name: str, figure: float) -> str:
    if name == FIRST:
        return f"{figure:.1f}"
    return f"{figure:+.1f}" if name.startswith(FIRST) else f"{figure:+.2f}"


def our_points(name: str, chemistry: Chemistry) -> str:
    scenario = SCENARIOS[name]
    if name == FIRST:
        return f"{loss_points(chemistry, scenario):.1f}"
    return f"{added_points(chemistry, scenario):+.2f}"


def electronics_rows() -> list[str]:
    return [
        row(f"{cool} → {warm}", told, f"{acceleration(warm, reference_c=cool):.1f}")
        for (cool, warm), told in REFERENCE_FACTORS.items()
    ]


def price_rows() -> list[str]:
    """Hundredths of the currency an hour, for a car that is awake anyway and one that is not."""
    rows = []
    for kwh_micro in KWH_MICRO:
        cells = [f"{kwh_micro / MICRO:.2f}"]
        for keeps_awake in (False, True):
            terms = OwnerTerms(tariff=Tariff(kwh_micro))
            conditions = Conditions(
                local_ms=0,
                soc_percent=75.0,
                pack_temperature_c=YEAR_C + WARMING_C,
                junction_c=JUNCTION_C,
                warming_c=WARMING_C,
                keeps_awake=keeps_awake,
            )
            asking = asking_price_per_hour(terms, conditions, COMPUTER_MW)
            wear_micro = asking.pack_micro + asking.electronics_micro
            cells += [
                f"{100 * micro / MICRO:.1f}"
                for micro in (asking.energy_micro, wear_micro, asking.total_micro)
            ]
        rows.append(row(*cells))
    return rows


def test_the_table_of_the_battery_is_what_the_code_computes() -> None:
    assert table_below(PAGE, "The battery, next to BLAST-Lite") == battery_rows()


def test_the_table_of_the_electronics_is_what_the_code_computes() -> None:
    assert table_below(PAGE, "The electronics, next to reference figures") == electronics_rows()


def test_the_table_of_prices_is_what_the_code_computes() -> None:
    assert table_below(PAGE, "What an hour asks for") == price_rows()


def test_the_reader_reads() -> None:
    page = "## One\n\n| a |\n|---|\n| 1 |\n| 2 |\n\n## Two\n| b |\n|---|\n| 3 |\n"
    assert table_below(page, "One") == [row("1"), row("2")]
    assert table_below(page, "Two") == [row("3")]
    assert table_below(page, "Three") == []


if __name__ == "__main__":
    # What the page must say, for whoever changes a formula.
    for each in (*battery_rows(), *electronics_rows(), *price_rows()):
        print(each)
