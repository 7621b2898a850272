"""What an owner reads of a car in the terminal, and how they take it for themselves."""

import os
import re
from pathlib import Path

import msgspec
import pytest

from terafleet.agent.history import RECORD_PATH, Outcome
from terafleet.agent.owner_policy_files import OWNER_FILE, read_owner_file
from terafleet.agent.status import STATUS_FILE, AgentStatus
from terafleet.agent.status_words import ENDINGS, FAILURES, OUTCOMES, STATES
from terafleet.cli.first_steps import first_policy
from terafleet.core.guard_effects import GuardState
from terafleet.core.policy import OwnerPolicy
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.engine.clock import SystemClock
from tests.contract.cli_stage import Person
from tests.contract.owner_stage import LOW, UNPLUGGED, a_status, refusing
from tests.contract.test_history import SECRET, broke, finished, granted, write_journal

ENDED = 2**22 + 1
"""No process has such a number."""


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


def says(car: Path, status: AgentStatus) -> None:
    """The agent wrote its status."""
    (car / STATUS_FILE).write_bytes(msgspec.json.encode(status))


def without_columns(text: str) -> str:
    """A text with single spaces: how wide its columns are is nobody's concern."""
    return re.sub(" +", " ", text)


def test_everything_that_has_a_name_has_words() -> None:
    assert set(STATES) == set(GuardState)
    assert set(FAILURES) == set(Failure)
    assert set(ENDINGS) == set(LeaseEnding)
    assert set(OUTCOMES) == set(Outcome)


def test_a_car_that_works_says_what_it_took_and_earned(owner: Person, car: Path) -> None:
    says(car, a_status())
    text = without_columns(owner.succeeds("vehicle", "status", "--data", str(car)))
    for fact in (
        "Asta computes: 1 attempt at hand",
        "120.0 Wh by the computer",
        "80.0 Wh of 5.00 kWh",
        "34.0 MB, no cap",
        "asked today 0.0900",
        "earned in all 12.4000",
        "strong",
        "none: energy is estimated by processor time",
        "http://127.0.0.1:8611/",
        "lease-7, lease-9",
    ):
        assert fact in text
    assert "why not" not in text
    assert owner.reads("vehicle", "status", "--data", str(car))["today"]["pack_mwh"] == 80_000


def test_a_car_that_refuses_says_each_reason_on_a_line(owner: Person, car: Path) -> None:
    says(car, refusing(UNPLUGGED, LOW, policy_faults=("charge.x: is no such name",)))
    text = owner.succeeds("vehicle", "status", "--data", str(car))
    lines = [line.strip() for line in text.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("why not"))
    assert "the car is not plugged in since" in lines[at]
    assert "until it is plugged in" in lines[at]
    assert lines[at + 1].startswith("the battery is below what its owner allows, 48 % since")
    assert "policy fault charge.x: is no such name" in without_columns(text)


def test_an_agent_that_is_gone_is_told(owner: Person, car: Path) -> None:
    says(car, a_status(process_id=ENDED))
    text = owner.succeeds("vehicle", "status", "--data", str(car))
    assert "Asta does not compute: its agent is not running" in text
    assert "NOT RUNNING since 2026-11-18 11:06:40" in text


def test_what_a_car_says_moves_no_cursor(owner: Person, car: Path) -> None:
    says(car, a_status(name="\x1b[31mred\r\n", isolation_level="\x1b[2J"))
    owner.succeeds("vehicle", "status", "--data", str(car))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"process_id": "x"}', b"\xff" * 10])
def test_a_status_that_cant_be_read_is_none(owner: Person, car: Path, body: bytes) -> None:
    (car / STATUS_FILE).write_bytes(body)
    assert "vehicle run" in owner.fails("agent_silent", "vehicle", "status", "--data", str(car))


def test_attempts_are_told_by_class_and_never_by_content(owner: Person, car: Path) -> None:
    assert owner.succeeds("vehicle", "status", "--data", str(car), "--attempts") == (
        "There are none.\n"
    )
    now_ms = SystemClock().now_ms()
    write_journal(
        car,
        granted(now_ms - 90_000, 1, 5, 6, model="m" * 64),
        finished(now_ms - 60_000, 1, 5, took_ms=25_000),
        broke(now_ms - 55_000, 1, 6),
        granted(now_ms - 50_000, 7, 0, model="m" * 64),
    )
    says(car, a_status())
    text = owner.succeeds("vehicle", "status", "--data", str(car), "--attempts")
    head, *rows = text.splitlines()
    assert head.split() == ["ENDED", "WORK", "MODEL", "LENGTH", "ENERGY", "OUTCOME"]
    assert len(rows) == 3
    assert "live embeddings" in rows[0]
    assert rows[0].rstrip().endswith("at hand")
    assert "given back to the owner" in rows[1]
    assert "5.0 s" in rows[1]
    told_of_it = " ".join(rows[2].split())
    assert told_of_it.endswith("minilm 25.0 s 0.0 Wh answered, 1 of 3 answers errors")
    assert SECRET.decode() not in text
    told = owner.reads("vehicle", "status", "--data", str(car), "--attempts", "--limit", "1")
    assert [row["outcome"] for row in told["attempts"]] == ["running"]


def test_a_record_that_cant_be_read_is_told(owner: Person, car: Path) -> None:
    path = car / RECORD_PATH
    path.parent.mkdir()
    path.write_bytes(b"no database")
    owner.fails("record_unreadable", "vehicle", "status", "--data", str(car), "--attempts")


@pytest.mark.parametrize("limit", ["0", "-1", "x", "10001"])
def test_a_limit_has_limits(owner: Person, car: Path, limit: str) -> None:
    given = ["vehicle", "status", "--data", str(car), "--attempts", "--limit", limit]
    assert owner.gives(*given).exit_code == 2


def policy_of(car: Path) -> OwnerPolicy:
    """What the owner's file says."""
    found = read_owner_file(car / OWNER_FILE)
    assert isinstance(found, OwnerPolicy)
    return found


def test_a_car_is_paused_and_resumed(owner: Person, car: Path) -> None:
    (car / OWNER_FILE).write_text(first_policy())
    text = owner.succeeds("vehicle", "pause", "--data", str(car))
    assert "vehicle resume" in text
    assert policy_of(car).is_paused
    assert "allows work again" in owner.succeeds("vehicle", "resume", "--data", str(car))
    assert policy_of(car) == OwnerPolicy()
    assert "# Only while plugged in" in (car / OWNER_FILE).read_text()


def test_a_pause_ends_at_a_time_or_after_a_time(owner: Person, car: Path) -> None:
    for given, begin in (
        (("--until", "2999-12-31 07:00"), "2999-12-31 07:00"),
        (("--until", " 2999-12-31T07:00:30+02:00 "), "2999-12-31T07:00:30+02:00"),
        (("--for", "2h"), "20"),
    ):
        told = owner.reads("vehicle", "pause", "--data", str(car), *given)
        assert told["is_paused"] is True
        assert told["resume_at"].startswith(begin)
        assert policy_of(car).resume_at == told["resume_at"]
    owner.succeeds("vehicle", "resume", "--data", str(car))
    assert policy_of(car).resume_at == ""


@pytest.mark.parametrize(
    "given",
    [
        ("--until", "soon"),
        ("--until", "07:00"),
        ("--until", "2026-13-01 07:00"),
        ("--until", "2001-01-01 07:00"),
        ("--until", "2001-01-01T07:00Z"),
        ("--until", '2999-01-01 07:00"\nis_paused = false'),
        ("--for", "two hours"),
        ("--for", "0h"),
        ("--for", "99999999d"),
        ("--for", "2h", "--until", "2999-01-01 07:00"),
    ],
)
def test_a_pause_that_makes_no_sense_is_wrong_usage(
    owner: Person, car: Path, given: tuple[str, ...]
) -> None:
    result = owner.gives("vehicle", "pause", "--data", str(car), *given)
    assert result.exit_code == 2, result.output
    assert not (car / OWNER_FILE).exists()


def test_a_pause_that_would_not_hold_is_refused(owner: Person, car: Path) -> None:
    (car / OWNER_FILE).write_text("[charge]\nsoc_percent_min = 200\n")
    told = owner.fails("policy_refused", "vehicle", "pause", "--data", str(car))
    assert "charge.soc_percent_min: must lie within 0 and 100" in told
    owner.fails("folder_missing", "vehicle", "pause", "--data", str(car / "else"))
    (car / OWNER_FILE).unlink()
    (car / "agent.toml").write_text("slots = 0\n")
    owner.fails("settings_refused", "vehicle", "resume", "--data", str(car))
    (car / "agent.toml").unlink()
    (car / OWNER_FILE).mkdir()
    told = owner.fails("policy_refused", "vehicle", "pause", "--data", str(car))
    assert "owner.toml" in told


def test_the_first_policy_is_the_default(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).write_text(first_policy())
    assert read_owner_file(tmp_path / OWNER_FILE) == OwnerPolicy()
    switched_on = re.sub(r"(?m)^#(?=\S)", "", first_policy())
    (tmp_path / OWNER_FILE).write_text(switched_on)
    policy = read_owner_file(tmp_path / OWNER_FILE)
    assert isinstance(policy, OwnerPolicy), policy
    assert policy.charge.departures[0].at == "07:30"
    assert policy.hours.quiet


def test_a_folder_of_someone_else_is_told(owner: Person, car: Path) -> None:
    if os.geteuid() == 0:
        return
    car.chmod(0o500)
    owner.fails("file_unusable", "vehicle", "pause", "--data", str(car))
