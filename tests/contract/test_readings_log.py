"""The car's own recording: little is written, it is bounded, and it comes back."""

import datetime
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent import readings_log
from terafleet.agent.readings_csv import ReadingsRefused, encode_header, read_readings
from terafleet.agent.readings_log import (
    DAY_BYTES_MAX,
    DAYS_KEPT,
    NOISE,
    ReadingsLog,
    file_name,
    recorded,
)
from terafleet.core.readings import Readings
from tests.contract.vehicle_contract import EXAMPLES

DAY = 20_000
DAY_MS = 86_400_000
BEGIN_MS = DAY * DAY_MS
FULL: dict[str, Any] = {name: values[0] for name, values in EXAMPLES.items()} | {
    "departure_at_ms": BEGIN_MS + DAY_MS
}


def sample(at_s: float, **values: Any) -> Readings:
    """A parked car, but for what is said."""
    return Readings(BEGIN_MS + round(at_s * 1_000), **FULL | values)


def record(folder: Path, *samples: Readings) -> list[Readings]:
    """Take samples, end cleanly, and tell what was recorded."""
    log = ReadingsLog(folder)
    for one in samples:
        log.take(one)
    log.flush()
    return list(recorded(folder))


def times_s(samples: list[Readings]) -> list[float]:
    """When they were taken."""
    return [(one.at_ms - BEGIN_MS) / 1_000 for one in samples]


def test_the_name_of_a_day() -> None:
    assert file_name(DAY) == "readings-2024-10-04.csv"


def test_what_says_nothing_else_is_written_every_ten_minutes(tmp_path: Path) -> None:
    seen = record(tmp_path, *(sample(at_s) for at_s in range(3_600)))
    assert times_s(seen) == [0, 600, 1_200, 1_800, 2_400, 3_000]
    assert seen[1] == sample(600)


@pytest.mark.parametrize("name", [name for name in FULL if name not in NOISE])
@pytest.mark.parametrize("is_missing", [False, True])
def test_another_state_is_written_at_once(tmp_path: Path, name: str, is_missing: bool) -> None:
    other = {name: None if is_missing else EXAMPLES[name][1]}
    seen = record(tmp_path, sample(0), sample(1), sample(2, **other), sample(3, **other))
    assert seen == [sample(0), sample(2, **other)]


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_not_written_and_a_change_of_quantity_is(tmp_path: Path, name: str) -> None:
    old, step = FULL[name], NOISE[name]
    noise = {name: old + step * 0.9 if isinstance(old, float) else old + round(step * 0.9)}
    changed = {name: old + step}
    seen = record(
        tmp_path, sample(0), sample(1, **changed), sample(20, **noise), sample(30, **changed)
    )
    assert times_s(seen) == [0, 30], "a change waits until ten seconds are over"
    assert getattr(seen[1], name) == changed[name]
    assert times_s(record(tmp_path / "other", sample(0), sample(1, **{name: None}))) == [0, 1]


def test_another_zone_is_written_at_once(tmp_path: Path) -> None:
    seen = record(tmp_path, sample(0), sample(1, utc_offset_ms=3_600_000))
    assert [one.utc_offset_ms for one in seen] == [0, 3_600_000]


def test_it_goes_to_the_disk_once_a_minute_and_at_the_end(tmp_path: Path) -> None:
    log = ReadingsLog(tmp_path / "readings")
    sizes = []
    for at_s in range(180):
        log.take(sample(at_s, is_parked=at_s % 2 == 0))
        sizes.append(sum(file.stat().st_size for file in tmp_path.rglob("*.csv")))
    assert [at_s for at_s in range(1, 180) if sizes[at_s] != sizes[at_s - 1]] == [60, 120]
    assert len(list(recorded(tmp_path / "readings"))) == 121
    log.flush()
    assert len(list(recorded(tmp_path / "readings"))) == 180
    file = tmp_path / "readings" / file_name(DAY)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "it says when nobody is at home"


def test_a_local_day_has_a_file_that_stands_for_itself(tmp_path: Path) -> None:
    offset = {"utc_offset_ms": -3_600_000}
    record(tmp_path, *(sample(3_600 + at_s, **offset) for at_s in (-2, -1, 0, 1)))
    assert sorted(file.name for file in tmp_path.iterdir()) == [file_name(DAY - 1), file_name(DAY)]
    assert times_s(list(read_readings(tmp_path / file_name(DAY)))) == [3_600]
    assert times_s(list(recorded(tmp_path))) == [3_598, 3_600]
    assert times_s(list(recorded(tmp_path, since_ms=BEGIN_MS + 3_599_000))) == [3_600]


def test_old_days_go_and_a_wrong_clock_costs_one_file(tmp_path: Path) -> None:
    (tmp_path / "readings-2099-13-77.csv").write_bytes(b"not of ours")
    for day in range(12):
        record(tmp_path, sample(day * 86_400))
    kept = [file_name(DAY + day) for day in range(12 - DAYS_KEPT, 12)]
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [*kept, "readings-2099-13-77.csv"]
    record(tmp_path, Readings(0))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["readings-1970-01-01.csv", *kept[:-1], "readings-2099-13-77.csv"]


def test_a_day_is_bounded_however_wild_its_sensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings_log, "DAY_BYTES_MAX", 10_000)
    seen = record(tmp_path, *(sample(at_s, is_parked=at_s % 2 == 0) for at_s in range(2_000)))
    assert (tmp_path / file_name(DAY)).stat().st_size <= 10_000
    assert 30 < len(seen) < 200
    next_day = record(tmp_path, sample(86_400))
    assert len(next_day) == len(seen) + 1, "the next day is written again"


def test_a_day_in_which_every_quantity_moves_fits(tmp_path: Path) -> None:
    log = ReadingsLog(tmp_path)
    for at_s in range(0, 86_400, 5):
        log.take(sample(at_s, compute_mw=12_345_678 + at_s * 10_000, soc_percent=at_s % 97 + 0.25))
    log.flush()
    assert len(list(recorded(tmp_path))) == 8_640
    assert (tmp_path / file_name(DAY)).stat().st_size < DAY_BYTES_MAX


@given(st.integers(0, 400))
def test_a_line_torn_at_any_byte_is_mended_by_the_next_start(
    tmp_path_factory: pytest.TempPathFactory, kept_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    record(folder, sample(0), sample(1, is_parked=False))
    path = folder / file_name(DAY)
    torn = path.read_bytes()[:kept_bytes]
    path.write_bytes(torn + b"\0" * (kept_bytes % 3) * 2_000)
    whole = torn.count(b"\n") - 1
    seen = record(folder, sample(2, is_parked=False))
    assert times_s(seen) == [*[0, 1][: max(0, whole)], 2]
    assert path.read_bytes().count(encode_header()) == (2 if whole >= 0 else 1)


def test_a_disk_that_refuses_is_only_logged_and_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "readings"
    folder.write_bytes(b"no folder")
    log = ReadingsLog(folder)
    for at_s in range(200):
        log.take(sample(at_s))
    folder.unlink()
    for at_s in range(200, 400):
        log.take(sample(at_s))
    log.flush()
    assert times_s(list(recorded(folder))) == [181], "what could not be written is lost"


def test_no_folder_is_an_empty_recording_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    assert list(recorded(tmp_path / "none")) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ReadingsRefused, match="file"):
        list(recorded(tmp_path / "file"))
    (tmp_path / file_name(DAY)).write_bytes(b"at_ms\n1\noops\n")
    with pytest.raises(ReadingsRefused, match=r"2024-10-04\.csv, line 3"):
        list(recorded(tmp_path))


def test_days_are_those_of_the_calendar() -> None:
    date = datetime.datetime.fromtimestamp(BEGIN_MS / 1_000, datetime.UTC).date()
    assert file_name(DAY) == f"readings-{date}.csv"
