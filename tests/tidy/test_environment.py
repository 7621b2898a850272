"""The set-up of the environment: what it writes, and what it says when it can't go on."""

import ast
import configparser
import hashlib
import zipfile
from pathlib import Path

import pytest

from tests.tidy.source_files import ROOT
from tools import environment


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the tree, with its own lock and environment."""
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "LOCK", tmp_path / "requirements.lock")
    monkeypatch.setattr(environment, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(environment, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(environment, "STAMP", tmp_path / ".venv" / "stamp.json")
    monkeypatch.setattr(environment, "INSTALLER_FOLDER", tmp_path / ".venv-uv")
    return tmp_path


def program(path: Path, text: str) -> Path:
    """Write a small shell program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_older_python_can_still_read_why_it_does_not_fit() -> None:
    ast.parse(Path(environment.__file__).read_text("utf-8"), feature_version=(3, 8))


def test_the_wheel_points_at_the_sources(somewhere: Path) -> None:
    with zipfile.ZipFile(environment.write_editable_wheel(somewhere)) as wheel:
        files = {name.rpartition("/")[2]: wheel.read(name).decode() for name in wheel.namelist()}
    assert files["terafleet.pth"] == f"{somewhere}/src\n"
    scripts = configparser.ConfigParser()
    scripts.read_string(files["entry_points.txt"])
    assert scripts["console_scripts"]["terafleet"] == "terafleet.cli.main:app"
    recorded = [line.split(",") for line in files["RECORD"].splitlines()]
    assert len(recorded) == len(files)
    assert {name.rpartition("/")[2] for name, _, _ in recorded} == set(files)


def test_the_record_is_in_the_form_of_wheels() -> None:
    body = b"terafleet"
    name, checksum, size = environment.record_line("a.pth", body).strip().split(",")
    assert (name, size) == ("a.pth", "9")
    assert checksum.startswith("sha256=")
    assert "=" not in checksum.removeprefix("sha256=")
    assert len(checksum) == len("sha256=") + 43
    assert environment.digest(body) == hashlib.sha256(body).hexdigest()


def test_the_environment_is_stale_when_what_it_depends_on_changes(somewhere: Path) -> None:
    assert environment.present_stamp() == {}
    before = environment.wanted_stamp()
    with (somewhere / "pyproject.toml").open("a") as file:
        file.write("\n[tool.something]\nelse = 1\n")
    assert environment.wanted_stamp() == before
    with (somewhere / "requirements.lock").open("a") as file:
        file.write("# one more line\n")
    assert environment.wanted_stamp() != before


def test_a_stamp_counts_only_beside_a_python(somewhere: Path) -> None:
    (somewhere / ".venv").mkdir()
    environment.STAMP.write_text('{"root": "x"}')
    assert environment.present_stamp() == {}
    program(somewhere / ".venv" / "bin" / "python", "exit 0")
    assert environment.present_stamp() == {"root": "x"}
    environment.STAMP.write_text("torn")
    assert environment.present_stamp() == {}


@pytest.mark.parametrize(
    ("said", "version"), [("uv 0.13.9 (x)", (0, 13)), ("pip 25.1", None), ("", None)]
)
def test_the_version_of_uv(tmp_path: Path, said: str, version: tuple[int, int] | None) -> None:
    assert environment.uv_version(program(tmp_path / "uv", f"echo '{said}'")) == version
    assert environment.uv_version(tmp_path / "nothing") is None


def test_a_uv_that_is_too_old_is_passed_over(
    somewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(somewhere / "old" / "uv", "echo 'uv 0.4.1'")
    own = program(somewhere / ".venv-uv" / "bin" / "uv", "echo 'uv 0.13.9'")
    monkeypatch.setenv("PATH", str(somewhere / "old"))
    assert environment.find_uv() == str(own)


def test_without_pip_and_venv_a_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(environment.SetUpFailed, match="apt-get install python3-venv"):
        environment.find_pip()


def test_a_python_that_does_not_fit_says_which_one_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "RUNNING_VERSION", (3, 9))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(environment.SetUpFailed, match=r"this is Python 3\.9, and Python 3\.11 to"):
        environment.use_fitting_python()


def test_the_newest_python_that_runs_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "python3.13", "exit 127")  # A shim with nothing behind it.
    program(tmp_path / "python3.12", "exit 0")
    program(tmp_path / "python3.11", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.fitting_python() == str(tmp_path / "python3.12")


def test_what_pip_was_told_uv_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example/all")
    monkeypatch.setenv("SSL_CERT_FILE", "own.pem")
    monkeypatch.setenv("PIP_CERT", "other.pem")
    monkeypatch.setenv("VIRTUAL_ENV", "elsewhere")
    variables = environment.tool_environment()
    assert variables["UV_DEFAULT_INDEX"] == "https://packages.example/all"
    assert variables["SSL_CERT_FILE"] == "own.pem"
    assert "VIRTUAL_ENV" not in variables


def test_a_command_that_fails_ends_with_its_sentence() -> None:
    with pytest.raises(environment.SetUpFailed, match="could not be fetched"):
        environment.run("it could not be fetched", "false")
