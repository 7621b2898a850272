"""Commands about a policy: what it means, what it would have earned, and an example of it."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.owner_policy_files import OWNER_FILE
from terafleet.agent.readings_csv import encode_header, encode_row
from terafleet.agent.readings_log import READINGS_FOLDER, file_name
from terafleet.cli.policy_check import WEEK_HOURS, checked, open_hours
from terafleet.cli.policy_example import EXAMPLES, example
from terafleet.cli.policy_report import lines_of
from terafleet.cli.policy_words import FIELDS, fields, sentence_of, wishes
from terafleet.core.local_time import local_day
from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_tables import PolicyFaults, policy_from
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_MINUTE
from terafleet.engine.clock import SystemClock
from tests.contract.cli_stage import Person


@pytest.fixture
def car(tmp_path: Path) -> Path:
    """The folder of a car."""
    folder = tmp_path / "car"
    folder.mkdir()
    return folder


@pytest.fixture
def owner(tmp_path: Path) -> Person:
    """Whoever sits in the car."""
    return Person(tmp_path)


def policy_of(text: str) -> OwnerPolicy:
    """The policy that a TOML text says."""
    found = policy_from(tomllib.loads(text))
    assert isinstance(found, OwnerPolicy), found
    return found


def record(car: Path, samples: Iterable[Readings]) -> None:
    """Have these samples recorded in the car; all of one day each stand in its file."""
    folder = car / READINGS_FOLDER
    folder.mkdir(exist_ok=True)
    for sample in samples:
        path = folder / file_name(local_day(sample.at_ms + sample.utc_offset_ms))
        body = b"" if path.exists() else encode_header()
        with path.open("ab") as file:
            file.write(body + encode_row(sample))


def parked(at_ms: int, **values: Any) -> Readings:
    """A car at rest that permits."""
    said: dict[str, Any] = {
        "is_parked": True,
        "is_driver_present": False,
        "is_plugged_in": True,
        "soc_percent": 80.0,
        "compute_temperature_c": 30.0,
    }
    return Readings(at_ms, **(said | values))


# The words.


def test_every_field_of_a_policy_has_words() -> None:
    assert list(FIELDS) == [path for path, _ in _in_order(OwnerPolicy())]


def _in_order(policy: OwnerPolicy) -> list[tuple[str, Any]]:
    """The fields, with those of the terms at the end, as the table has them."""
    told = list(fields(policy))
    terms = [pair for pair in told if pair[0].startswith("terms.")]
    return [pair for pair in told if pair not in terms] + terms


def test_every_default_has_a_sentence() -> None:
    for path, value in fields(OwnerPolicy()):
        assert re.fullmatch(r"[A-Za-z0-9].*\.", sentence_of(path, value)), path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("is_paused = true", "The car is paused: no work at all."),
        ("[charge]\nneeds_plug = false", "It works also when it is not plugged in."),
        ("[charge]\nsoc_percent_min = 60", "It stops when the battery falls below 60 %."),
        ('[charge]\nsoc_percent_min = "none"', "There is no floor: work may empty the battery."),
        ("[charge]\ncapacity_mwh = 75_000_000", "The battery holds 75.00 kWh."),
        ("[charge]\nspare_ms_resume = 5_400_000", "It begins if the charge will be there 1.5 h"),
        (
            'charge.departures = [{ days = ["mon", "tue"], at = "07:30" }]',
            "You drive on mon tue at 07:30 with 80 %.",
        ),
        (
            'hours.compute = [{ from = "18:00", to = "07:00" }, { days = ["sun"] }]',
            "It computes only every day from 18:00 to 07:00, and on sun from 00:00 to 24:00.",
        ),
        (
            "[link]\nday_bytes_max = 2_000_000_000",
            "It sends and receives 2.0 GB a day at the most.",
        ),
        ("[temperature]\nbattery_c_max = 40", "It stops when the battery is warmer than 40 °C."),
        ("[power]\ncompute_mw_max = 60_500", "It stops when the computer draws more than 60.5 W."),
        ("[power]\nlow_voltage_mv_min = 12_200", "low-voltage battery falls below 12.2 V."),
        ("[wear]\nelectronics_ms = 3_600_000", "wears the electronics by 1 h a day at the most"),
        ("[terms.tariff]\nmicro_per_kwh = 250_000", "You pay 0.25 a kWh."),
        (
            "[[terms.tariff.windows]]\nmicro_per_kwh = 170_000\nend_minute = 360\nweekdays = [0]",
            "You pay on mon from 00:00 to 06:00 0.17 a kWh.",
        ),
        ("[terms]\nconverter_loss_ppm = 125_000", "12.5 % are lost between battery and computer."),
        ('[work]\nkinds = ["batch"]', "It does batch work only."),
        ("[yield]\nsettle_ms = 0", "Work begins as soon as all is well."),
        ("[yield]\nfinish_ms = 30_000", "Work at hand may go on for 30.0 s"),
    ],
)
def test_a_wish_is_a_sentence(text: str, sentence: str) -> None:
    (wish,) = wishes(policy_of(text))
    assert sentence in wish.sentence


# The check.


def test_a_policy_is_explained(owner: Person, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[temperature]\nbattery_c_max = 40\n[[hours.quiet]]\nfrom = "22:00"\nto = "06:00"\n'
    )
    text = owner.succeeds("policy", "check", str(path))
    assert "It stops when the battery is warmer than 40 °C.\n  (temperature.battery_c_max)" in text
    assert "needs the battery's temperature: look with --data" in text
    assert "112 of a week's 168 h" in text
    told = owner.reads("policy", "check", str(path))
    assert [wish["path"] for wish in told["wishes"]] == ["hours.quiet", "temperature.battery_c_max"]
    path.write_text("")
    assert "nothing else than the defaults" in owner.succeeds("policy", "check", str(path))


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("[charge]\nneeds_plug = false\nsoc_percent_min = 'none'", "Neither plug nor floor"),
        ("[charge]\nis_charge_first = true", "charge.capacity_mwh: nobody knows"),
        ('charge.departures = [{ at = "07:30" }]', "is not watched over"),
        ("[charge]\ncapacity_mwh = 50_000_000", "are not the same battery"),
        ("[hours]\nquiet_fan_percent_max = 40", "but there are none"),
        ('resume_at = "2026-09-01T07:00"', "ends no pause"),
        ("[wear]\nflash_bytes = 0", "no time of the week at which this car may work: the wear"),
        ("[link]\nday_bytes_max = 0", "the data for today are used up"),
        ("[[hours.quiet]]", "it must be quiet at this hour"),
        (
            'hours.compute = [{ from = "08:00", to = "09:00" }]\n'
            'hours.network = [{ from = "10:00", to = "11:00" }]',
            "There is no time of the week",
        ),
    ],
)
def test_what_is_allowed_but_hardly_meant_is_said(text: str, doubt: str) -> None:
    told = checked("x", policy_of(text), None)
    assert any(doubt in one for one in told.doubts), told.doubts
    assert "Mind:" in lines_of(told)


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("", 168.0),
        ("is_paused = true", 168.0),
        ('[[hours.compute]]\ndays = ["sat"]', 24.0),
        ("[temperature]\nbattery_c_min = 5\nbattery_c_max = 15", 168.0),
        ("[power]\nothers_percent_max = 10\ncompute_mw_max = 50_000", 168.0),
        ("[activity]\nneeds_all = true\n[places]\nallowed = ['home']", 168.0),
        ("[link]\nallows_metered = false", 168.0),
        ("[[charge.departures]]\nat = '07:30'\ndays = ['mon']", 167.5),
    ],
)
def test_how_long_a_week_is_open(text: str, hours: float) -> None:
    assert open_hours(policy_of(text))[0] == hours
    assert hours <= WEEK_HOURS


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[charge]\nsoc_percent_min = 200", "charge.soc_percent_min"),
        ("[charge]\nsoc_percent_minimum = 20", "charge.soc_percent_minimum"),
        ("[yield]\nfinish_ms = 'long'", "yield.finish_ms"),
        ("[[hours.compute]]\nfrom = '25:00'", "hours.compute[0].from"),
        ("charge = 3", "charge"),
        ("is_paused = true\nis_paused = false", "mine.toml"),
        ("\x00", "mine.toml"),
        ("x = " + "[" * 5_000, "mine.toml"),
    ],
)
def test_each_fault_is_told_by_its_field(
    owner: Person, tmp_path: Path, text: str, path: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    result = owner.gives("policy", "check", str(file))
    assert result.exit_code == 1, result.output
    first, *_, error, advice = result.stderr.splitlines()
    assert path in first.partition(": ")[0]
    assert error.startswith("error: ")
    assert "(policy_refused)" in error
    assert advice.strip()
    told = owner.gives("policy", "check", str(file), "--json")
    assert told.exit_code == 1
    assert path in msgspec.json.decode(told.stdout)["faults"][0]["path"]


def test_every_fault_is_told(owner: Person, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[charge]\nsoc_percent_min = 200\nspare_ms_min = -1\n")
    result = owner.gives("policy", "check", str(file))
    assert "2 faults" in result.stderr
    assert "charge.spare_ms_min: must lie within" in result.stderr


def test_a_file_that_is_none_is_told(owner: Person, tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        result = owner.gives("policy", "check", str(path))
        assert result.exit_code == 1
        assert "policy_refused" in result.stderr
    large = tmp_path / "large.toml"
    large.write_text("#" * 70_000)
    assert "larger than 65536" in owner.gives("policy", "check", str(large)).stderr
    for words in ((), (str(large), "--data", str(tmp_path))):
        assert owner.gives("policy", "check", *words).exit_code == 2
    owner.fails("folder_missing", "policy", "check", "--data", str(tmp_path / "none"))


def test_a_cars_policy_is_looked_at_with_what_the_car_says(owner: Person, car: Path) -> None:
    (car / OWNER_FILE).write_text(
        "[temperature]\nbattery_c_max = 40\n[power]\nlow_voltage_mv_min = 12_200\n"
    )
    text = owner.succeeds("policy", "check", "--data", str(car))
    assert "Nothing was recorded yet" in text
    now_ms = SystemClock().now_ms()
    record(car, [parked(now_ms - 60_000), parked(now_ms, low_voltage_mv=12_900, soc_percent=77.5)])
    text = owner.succeeds("policy", "check", "--data", str(car))
    assert "needs the battery's temperature: THIS CAR DOES NOT SAY IT" in text
    assert "needs the low-voltage battery: this car says 12900" in text
    assert "THIS CAR REFUSES as long as it does not say: the battery's temperature" in text
    told = owner.reads("policy", "check", "--data", str(car))
    assert told["missing"] == ["battery_temperature_c"]


def test_a_car_that_asks_too_much_or_reads_too_seldom_is_told(owner: Person, car: Path) -> None:
    (car / OWNER_FILE).write_text("[work]\nreward_micro_per_hour_min = 600_000\n")
    (car / "agent.toml").write_text("[vehicle]\nsample_ms = 60_000\n")
    record(car, [parked(SystemClock().now_ms(), charge_limit_percent=50.0)])
    text = owner.succeeds("policy", "check", "--data", str(car))
    assert "asks for 0.6" in text
    assert "a fleet pays 0.5000 at the most" in text
    assert "every 60 s and are too old" in text
    assert "charges up to 50 %, but begins to work at 55 % only" in text


def test_a_cars_broken_layers_are_told(owner: Person, car: Path) -> None:
    (car / "owner-fleet.json").write_text("{")
    told = owner.gives("policy", "check", "--data", str(car))
    assert told.exit_code == 1
    assert "owner-fleet.json" in told.stderr
    (car / "owner-fleet.json").unlink()
    record(car, [parked(SystemClock().now_ms())])
    (next((car / READINGS_FOLDER).iterdir())).write_text("nonsense\n")
    owner.fails("readings_refused", "policy", "check", "--data", str(car))


# The preview.


def test_a_week_is_played(owner: Person, car: Path) -> None:
    now_ms = SystemClock().now_ms()
    begin_ms = now_ms - 120 * MS_PER_MINUTE
    samples = [parked(begin_ms + number * 5 * MS_PER_MINUTE) for number in range(12)]
    samples += [
        parked(begin_ms + (60 + number * 5) * MS_PER_MINUTE, is_plugged_in=False)
        for number in range(13)
    ]
    record(car, samples)
    text = owner.succeeds("policy", "preview", "--data", str(car), "--power", "60")
    assert "In the last 7 d 0 h you would have lent 1.0 h" in text
    assert "the car is not plugged in" in text
    assert "nothing was recorded" in text
    assert "it waits whether all stays well" in text
    assert "the computer draws 60 W while it works (--power)" in text
    told = owner.reads("policy", "preview", "--data", str(car), "--last", "1h", "--power", "60")
    assert told["played"]["lent_ms"] < 2 * MS_PER_MINUTE
    free = tmp_file(car, "[charge]\nneeds_plug = false\n")
    told = owner.reads("policy", "preview", "--data", str(car), "--policy", free, "--power", "60")
    assert told["played"]["lent_ms"] > 115 * MS_PER_MINUTE
    assert told["earned_micro"] > 0


def tmp_file(car: Path, text: str) -> str:
    """A policy beside the car's folder; its path."""
    path = car.with_name("other.toml")
    path.write_text(text)
    return str(path)


def test_a_pause_does_not_count_and_little_pay_is_told(owner: Person, car: Path) -> None:
    (car / OWNER_FILE).write_text("is_paused = true\n")
    now_ms = SystemClock().now_ms()
    record(car, [parked(now_ms - 20 * MS_PER_MINUTE), parked(now_ms - 10 * MS_PER_MINUTE)])
    given = ["policy", "preview", "--data", str(car), "--last", "1h", "--power", "60"]
    assert owner.reads(*given)["played"]["lent_ms"] > 0
    text = owner.succeeds(*given, "--met-up-to", "0.0001")
    assert "the work pays less than it must" in text
    rich = owner.reads(*given, "--met-up-to", "0", "--reward", "2")
    assert rich["earned_micro"] > owner.reads(*given)["earned_micro"]


def test_a_car_without_a_recording_says_so(owner: Person, car: Path) -> None:
    result = owner.gives("policy", "preview", "--data", str(car))
    assert result.exit_code == 0
    assert "Nothing was recorded in that time" in result.stderr


@pytest.mark.parametrize(
    "given",
    [
        ("--last", "soon"),
        ("--power", "-1"),
        ("--power", "4000"),
        ("--reward", "x"),
        ("--met-up-to", "-1"),
    ],
)
def test_a_preview_of_nonsense_is_wrong_usage(
    owner: Person, car: Path, given: tuple[str, str]
) -> None:
    assert owner.gives("policy", "preview", "--data", str(car), *given).exit_code == 2


def test_a_preview_of_what_cant_be_read_fails(owner: Person, car: Path) -> None:
    given = ["policy", "preview", "--data", str(car)]
    owner.fails("policy_refused", *given, "--policy", str(car / "none.toml"))
    owner.fails("policy_refused", *given, "--policy", tmp_file(car, "charge = 3"))
    record(car, [parked(SystemClock().now_ms())])
    (next((car / READINGS_FOLDER).iterdir())).write_bytes(b"at_ms\nx\n")
    owner.fails("readings_refused", *given)
    (car / OWNER_FILE).write_text("[[[")
    owner.fails("policy_refused", *given)
    owner.fails("folder_missing", "policy", "preview", "--data", str(car / "none"))


# The example.


def test_the_example_says_the_defaults_switched_off_and_on(owner: Person) -> None:
    text = owner.succeeds("policy", "example")
    assert text == example()
    assert policy_of(text) == OwnerPolicy()
    switched_on = re.sub(r"(?m)^#(?=\w)", "", text)
    assert policy_of(switched_on) == OwnerPolicy()
    written = {path.rpartition(".")[2] for path, _ in fields(OwnerPolicy())}
    assert set(re.findall(r"(?m)^#(\w+) =", text)) == written


@pytest.mark.parametrize("path", EXAMPLES)
def test_what_the_example_suggests_is_a_policy(path: str) -> None:
    assert wishes(policy_of(f"{path} = {EXAMPLES[path]}"))[0].path == path


VALUES = st.one_of(st.booleans(), st.integers(-5, 10**7), st.floats(), st.text(max_size=5))


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), VALUES, max_size=4))
def test_any_policy_is_explained(values: dict[str, Any]) -> None:
    table: dict[str, Any] = {}
    for path, value in values.items():
        *folders, name = path.split(".")
        below = table
        for folder in folders:
            below = below.setdefault(folder, {})
        below[name] = value
    found = policy_from(table)
    if isinstance(found, PolicyFaults):
        return
    told = checked("x", found, Readings(0))
    assert len(told.wishes) <= len(values)
    assert msgspec.json.encode(told)
    assert lines_of(told)
