"""Recorded readings come back as they were written; what is damaged is refused by its line."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent import readings_csv
from terafleet.agent.readings_check import clean
from terafleet.agent.readings_csv import (
    COLUMNS,
    ReadingsRefused,
    encode_header,
    encode_row,
    read_readings,
    readings_of,
)
from terafleet.core.readings import SENSORS, Readings

WHOLES = ("departure_at_ms", "charging_mw", "compute_mw", "low_voltage_mv")


def value_of(name: str) -> st.SearchStrategy[Any]:
    """Any value that the sensor can say, fractions to a thousandth."""
    if name.startswith("is_"):
        return st.booleans()
    if name == "place":
        return st.text(min_size=1, max_size=64)
    if name in WHOLES:
        return st.integers(0, 10**9)
    return st.integers(-60_000, 150_000).map(lambda value: value / 1_000)


SAMPLES = st.builds(
    Readings,
    st.integers(0, 10**13),
    utc_offset_ms=st.integers(-14, 14).map(lambda hours: hours * 3_600_000),
    **{name: st.none() | value_of(name) for name in SENSORS},
).map(clean)


def rows(text: str) -> list[Readings]:
    """The samples of a text."""
    return list(readings_of(text.encode().splitlines(keepends=True), "trace.csv"))


@given(st.lists(SAMPLES, max_size=5))
def test_what_was_written_comes_back(samples: list[Readings]) -> None:
    samples.sort(key=lambda sample: sample.at_ms)
    lines = [encode_header(), *map(encode_row, samples)]
    assert list(readings_of(lines, "trace.csv")) == samples
    # Each file stands for itself, also where a recording was begun anew within it.
    assert list(readings_of([*lines, encode_header()], "trace.csv")) == samples


@given(st.binary(max_size=200), st.booleans())
def test_foreign_bytes_are_refused_or_read_but_nothing_else(body: bytes, has_header: bool) -> None:
    lines = ((encode_header() if has_header else b"") + body).splitlines(keepends=True)
    try:
        samples = list(readings_of(lines, "trace.csv"))
    except ReadingsRefused:
        return
    assert all(clean(sample) is sample for sample in samples)


def test_a_file_of_another_hand_names_what_it_has_and_counts_in_seconds() -> None:
    text = 'at_s,is_parked,soc_percent,place\r\n0,true,80,"home, sweet"\r\n1.5,,79.25,\r\n'
    assert rows(text) == [
        Readings(0, is_parked=True, soc_percent=80.0, place="home, sweet"),
        Readings(1_500, soc_percent=79.25),
    ]


def test_columns_that_name_all_of_readings() -> None:
    assert encode_header().decode().strip().split(",") == list(COLUMNS)
    assert set(COLUMNS) == {*SENSORS, "at_ms", "utc_offset_ms"}


def test_what_can_not_be_true_is_missing() -> None:
    text = "at_ms,soc_percent,utc_offset_ms\n1,nan,3600000\n2,101,99999999999\n3,55,\n"
    assert rows(text) == [
        Readings(1, utc_offset_ms=3_600_000),
        Readings(2),
        Readings(3, soc_percent=55.0),
    ]


def test_a_torn_last_line_is_left_out() -> None:
    assert rows("at_ms,soc_percent\n1,50\n2,4") == [Readings(1, soc_percent=50.0)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no header"),
        ("at_ms,is_parked", "no header"),
        ("1,true\n", "line 1: a header"),
        ("is_parked,at_ms\n", "line 1: a header"),
        ("at_ms,mileage\n", "line 1: no such reading: mileage"),
        ("at_ms,at_s\n", "line 1: no such reading: at_s"),
        ("at_ms,is_parked,is_parked\n", "named twice"),
        ("at_ms,is_parked\n1\n", "line 2: 1 cells for 2 columns"),
        ("at_ms,is_parked\n1,true,1\n", "line 2: 3 cells for 2 columns"),
        ("at_ms,is_parked\n\n", "line 2: 0 cells"),
        ("at_ms,is_parked\n1,True\n", "line 2: is_parked can't be 'True'"),
        ("at_ms,is_parked\n1,1\n", "is_parked"),
        ("at_ms,soc_percent\n1,8e1\n", "soc_percent can't be '8e1'"),
        ("at_ms,soc_percent\n1,\u0661\n", "soc_percent"),
        ("at_ms,charging_mw\n1,1.5\n", "charging_mw"),
        ("at_ms,soc_percent\n,1\n", "at_ms can't be ''"),
        ("at_ms,soc_percent\n-1,1\n", "at_ms"),
        ("at_ms,soc_percent\n1.5,1\n", "at_ms"),
        ("at_ms,soc_percent\n9007199254740992,1\n", "at_ms"),
        ("at_s,soc_percent\nnan,1\n", "at_s"),
        ("at_s,soc_percent\n9007199254741.5,1\n", "at_s"),
        ("at_ms,soc_percent\n2,1\n1,1\n", "line 3: the times must not go back"),
        ("at_ms,soc_percent\n2,1\nat_ms,soc_percent\n1,1\n", "line 4: the times"),
        ('at_ms,place\n1,"home\n', "line 2"),
    ],
)
def test_a_damaged_line_is_refused_by_its_number(text: str, fault: str) -> None:
    with pytest.raises(ReadingsRefused, match=f"trace.csv.*{fault}"):
        rows(text)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ReadingsRefused, match="line 1: 'utf-8' codec"):
        list(readings_of([b"\xff\n"], "trace.csv"))


def test_a_file_is_read_while_its_samples_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_ms,soc_percent\n1,50\n2,oops\n")
    samples = read_readings(path)
    assert next(samples) == Readings(1, soc_percent=50.0)
    with pytest.raises(ReadingsRefused, match=r"trace\.csv, line 3"):
        next(samples)
    path.write_bytes(b"at_ms,place\n1," + b"x" * 2_000)
    with pytest.raises(ReadingsRefused, match="line 2: it is longer"):
        list(read_readings(path))
    with pytest.raises(ReadingsRefused, match="No such file"):
        list(read_readings(tmp_path / "none.csv"))
    monkeypatch.setattr(readings_csv, "FILE_BYTES_MAX", 30)
    path.write_text("at_ms,soc_percent\n1,50\n2,50\n3,50\n4,50\n")
    with pytest.raises(ReadingsRefused, match="larger than 30"):
        list(read_readings(path))


def test_a_row_in_numbers() -> None:
    sample = msgspec.structs.replace(Readings(5), is_parked=True, soc_percent=80.0, place='a"b')
    line = encode_row(sample).decode()
    assert line.startswith("5,true,,,80,,")
    assert '"a""b"' in line
