"""`vehicle doctor` says what holds in this car, and never that a car can compute that can't."""

import os
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from terafleet.agent.checkup import Checkup, CheckupFailed, RuntimeChecked, check_walls
from terafleet.cli import vehicle_doctor
from terafleet.cli.main import app
from terafleet.cli.vehicle_doctor import WALLS, clock_check, disk_check, walls_of
from terafleet.core.isolation import IsolationLevel, SandboxReport

NAMES = SandboxReport.__struct_fields__
bubblewrap = pytest.mark.debian_package("bubblewrap", program="bwrap")


def checked(*missing: str, not_wrapped: str = "", no_own_user: str = "") -> RuntimeChecked:
    """A runtime around which some walls were missing."""
    report = SandboxReport(**{name: name not in missing for name in NAMES})
    return RuntimeChecked("onnx", report=report, not_wrapped=not_wrapped, no_own_user=no_own_user)


def test_every_wall_has_words() -> None:
    assert set(WALLS) == set(NAMES)
    assert {wall.name for wall in walls_of(Checkup((checked(),)))} == set(NAMES)


def test_a_wall_holds_only_if_it_does_around_every_runtime() -> None:
    checkup = Checkup((checked(), checked("has_own_identity")))
    assert [wall.name for wall in walls_of(checkup) if not wall.holds] == ["has_own_identity"]
    assert checkup.level is IsolationLevel.NAMESPACED


def test_without_any_runtime_nothing_holds() -> None:
    checkup = Checkup((RuntimeChecked("onnx", fault="no such library"),))
    assert not any(wall.holds for wall in walls_of(checkup))
    assert checkup.level is Checkup(()).level is IsolationLevel.NONE


def test_what_is_missing_comes_with_what_to_do() -> None:
    reason = "there is no program bwrap"
    lacking = checked(
        "sees_only_its_files", "has_own_identity", not_wrapped=reason, no_own_user=reason
    )
    advice = {wall.name: wall.advice for wall in walls_of(Checkup((lacking,))) if not wall.holds}
    assert "apt-get install bubblewrap" in advice["sees_only_its_files"]
    assert all(advice.values())
    forbidden = checked("sees_only_its_files", not_wrapped="No permissions to create a namespace")
    (wall,) = [wall for wall in walls_of(Checkup((forbidden,))) if not wall.holds]
    assert "user namespaces" in wall.advice


def test_a_clock_that_was_never_set_is_found() -> None:
    assert not clock_check(0).is_good
    assert clock_check(1_800_000_000).is_good


def test_the_disk_is_that_of_a_folder_that_is_yet_to_come(tmp_path: Path) -> None:
    assert disk_check(tmp_path / "not" / "yet").detail.endswith("free")


@pytest.mark.parametrize("missing", ["has_no_network", "cannot_gain_privileges"])
def test_a_car_without_the_first_walls_can_not_compute(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    checkup = Checkup((checked(missing),))
    monkeypatch.setattr(vehicle_doctor, "_checkup", lambda *_arguments: checkup)
    outcome = CliRunner().invoke(app, ["vehicle", "doctor"])
    assert outcome.exit_code == 1
    assert "CAN NOT COMPUTE SAFELY" in outcome.stdout


def test_a_runtime_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    checkup = Checkup((RuntimeChecked("onnx", fault="no such library"),))
    monkeypatch.setattr(vehicle_doctor, "_checkup", lambda *_arguments: checkup)
    outcome = CliRunner().invoke(app, ["vehicle", "doctor"])
    assert outcome.exit_code == 1
    assert "no such library" in outcome.stdout


def test_a_checkup_that_breaks_claims_nothing(tmp_path: Path) -> None:
    outcome = check_walls(("no such kind",), tmp_path, 1 << 28)
    if isinstance(outcome, Checkup):
        assert outcome.level is IsolationLevel.NONE
    else:
        assert isinstance(outcome, CheckupFailed)


@bubblewrap
def test_this_computer_is_tried_for_real(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('runtimes = ["onnx"]\n')
    command = ["vehicle", "doctor", "--data", str(tmp_path), "--json"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    found = msgspec.json.decode(outcome.stdout)
    is_root = os.geteuid() == 0
    assert found["isolation_level"] == ("confined" if is_root else "namespaced")
    (runtime,) = found["runtimes"]
    assert runtime["start_ms"] > 0
    assert {check["name"] for check in found["checks"]} >= {"clock", "disk", "readings", "fleet"}


def test_this_computer_without_bubblewrap_claims_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    outcome = check_walls(("onnx",), tmp_path, 1 << 30)
    assert isinstance(outcome, Checkup)
    assert outcome.level is IsolationLevel.PROCESS
    assert "bwrap" in outcome.runtimes[0].not_wrapped
