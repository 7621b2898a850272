"""The command line: its help, its errors, and what it does with the real gateway."""

import errno
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from terafleet import __version__
from terafleet.agent.standing_words import REFUSALS
from terafleet.cli import main, words
from terafleet.cli.failure import CommandFailed, extra_needed, files_mapped, show_failure
from terafleet.cli.options import duration_s, host_and_port
from terafleet.cli.up import Up
from terafleet.control.gateway.canary import CanarySettings
from terafleet.core.reasons import Refusal, Waiting
from terafleet.protocol.errors import ERRORS
from terafleet.protocol.model_files.refusal import ModelFileReason
from terafleet.protocol.shard import (
    GetStatus,
    GetStory,
    ListVehicles,
    Story,
    StoryLine,
    VehicleList,
)
from tests.contract.cli_stage import Person, operator, silent_gateway_thread
from tests.contract.fake_answers import shard_status, vehicle_view
from tests.contract.gateway_thread import GatewayThread, Opened

HEAVY = ("httpx", "rich", "pydantic", "numpy", "litestar", "nats", "cryptography", "structlog")
NO_SUCH_KEY = "tf-" + "x" * 43


@pytest.fixture(scope="module")
def thread() -> Iterator[GatewayThread]:
    with silent_gateway_thread() as running:
        yield running


@pytest.fixture
def gateway(thread: GatewayThread) -> Iterator[Opened]:
    with thread.operators() as opened:
        yield opened


@pytest.fixture
def person(gateway: Opened, tmp_path: Path) -> Person:
    return operator(gateway, tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Person:
    """Somebody who has said nothing yet of where the control plane is."""
    return Person(tmp_path)


def commands(command: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of all commands, those of nouns too."""
    yield names
    if isinstance(command, TyperGroup):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), *names, name)


PLAYS = ("demo", "bench")
"""They have examples in the README instead."""

OURS = [names for names in commands(get_command(main.app)) if not set(PLAYS) & set(names)]


@pytest.mark.parametrize("names", OURS, ids=" ".join)
def test_every_command_says_what_it_does(names: tuple[str, ...], stranger: Person) -> None:
    text = stranger.succeeds(*names, "--help")
    assert text.startswith("Usage: ")
    if "COMMAND [ARGS]" not in text:
        assert f"Example: terafleet {' '.join(names)}" in " ".join(text.split())


def test_the_nouns_are_there(stranger: Person) -> None:
    text = stranger.succeeds("--help")
    for noun in ("up", "status", "key", "model", "vehicle", "batch", "story"):
        assert f"  {noun} " in text


def test_the_version(stranger: Person) -> None:
    assert stranger.succeeds("--version") == f"terafleet {__version__}\n"


@pytest.mark.parametrize(
    "given", [["--help"], ["--version"], ["batch", "--help"], ["vehicle", "run", "--help"]]
)
def test_help_and_version_load_nothing_heavy(given: list[str]) -> None:
    program = (
        "import sys\n"
        "from terafleet.cli.main import app\n"
        f"try: app({given!r})\n"
        f"finally: sys.stderr.write(' '.join(set({HEAVY}) & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ended.stdout
    assert ended.stderr == b""


def test_a_noun_that_is_not_installed_is_not_shown(
    stranger: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(main.NOUNS, "ghost", "Frighten people.")
    assert "ghost" not in stranger.succeeds("--help")
    assert stranger.gives("ghost").exit_code == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["vehicel"], "Did you mean 'vehicle'?"),
        (["status", "--loud"], "--loud"),
        (["key", "create"], "NAME"),
        (["vehicle", "code", "--valid", "soon"], "soon"),
        (["vehicle", "run"], "--data"),
        (["vehicle", "enrol", "--data", "x", "--code", "c", "--url", "nowhere"], "nowhere"),
        (["up", "--listen", "8600"], "HOST:PORT"),
        (["up", "--bus-listen", "localhost:99999"], "HOST:PORT"),
        (["up", "--log-level", "loud"], "--log-level"),
        (["up", "--canary-period-s", "-1"], "--canary-period-s"),
        (["batch", "submit", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["batch", "list", "--limit", "0"], "--limit"),
    ],
)
def test_wrong_usage_has_exit_code_2(given: list[str], told: str, stranger: Person) -> None:
    stranger.environment["TERAFLEET_URL"] = "http://127.0.0.1:9"
    result = stranger.gives(*given)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stdout == ""


def test_the_canaries_period_is_told_as_it_is() -> None:
    assert Up().canary_period_s * 1_000 == CanarySettings().period_ms


def test_a_command_without_its_own_is_help(stranger: Person) -> None:
    for given in ([], ["batch"], ["vehicle"]):
        result = stranger.gives(*given)
        assert result.exit_code == 2
        assert "Commands:" in result.output


def test_where_the_control_plane_is_must_be_known(stranger: Person) -> None:
    told = stranger.fails("url_missing", "status")
    assert "terafleet up" in told
    stranger.environment["TERAFLEET_URL"] = "http://127.0.0.1:9"
    assert "TERAFLEET_API_KEY" in stranger.fails("api_key_missing", "status")


def test_the_data_folder_knows_url_and_key(gateway: Opened, stranger: Person) -> None:
    data = stranger.folder / "data"
    data.mkdir()
    (data / "url").write_text(gateway.url + "\n")
    (data / "operator.key").write_text(gateway.stage.add_key("operator") + "\n")
    assert gateway.url in stranger.succeeds("status")
    stranger.environment["TERAFLEET_DATA"] = str(stranger.folder / "elsewhere")
    stranger.fails("url_missing", "status")
    assert gateway.url in stranger.succeeds("status", "--data", str(data))


def test_the_operators_key_goes_to_no_foreign_address(stranger: Person) -> None:
    data = stranger.folder / "data"
    data.mkdir()
    (data / "url").write_text("http://127.0.0.1:9\n")
    (data / "operator.key").write_text(NO_SUCH_KEY)
    stranger.fails("gateway_unreachable", "status")
    stranger.fails("gateway_unreachable", "status", "--url", "http://localhost:9")
    stranger.fails("api_key_missing", "status", "--url", "http://fleet.example:9")


def test_errors_say_what_to_do(person: Person, gateway: Opened) -> None:
    person.environment["TERAFLEET_API_KEY"] = NO_SUCH_KEY
    assert "TERAFLEET_API_KEY" in person.fails("invalid_api_key", "status")
    person.environment["TERAFLEET_API_KEY"] = gateway.stage.add_key("customer")
    assert "--operator" in person.fails("operator_only", "key", "list")
    person.environment["TERAFLEET_URL"] = "http://127.0.0.1:9"
    assert "http://127.0.0.1:9 can't be reached" in person.fails("gateway_unreachable", "status")
    person.environment["TERAFLEET_URL"] = "nonsense"
    person.fails("invalid_url", "status")


def test_a_failure_shows_nothing_that_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    show_failure(CommandFailed("a\ncode", "all \x1b[2Jgone\r\nerror: nothing", "do\x07"))
    assert capsys.readouterr().err.count("\n") == 2


def test_keys(person: Person, gateway: Opened) -> None:
    gateway.stage.now_ms += 1_000
    text = person.succeeds("key", "create", "my app")
    secret = text.splitlines()[0]
    assert f"TERAFLEET_API_KEY={secret}" in text
    assert f"OPENAI_BASE_URL={gateway.url}/v1" in text
    gateway.stage.now_ms += 1_000
    created = person.reads("key", "create", "ops", "--operator")
    assert created["key"]["role"] == "operator"
    listed = person.reads("key", "list")["keys"]
    assert [key["name"] for key in listed] == ["a key", "my app", "ops"]
    assert secret not in person.succeeds("key", "list")
    key_id = created["key"]["key_id"]
    assert key_id in person.succeeds("key", "revoke", key_id)
    assert person.reads("key", "list")["keys"][2]["revoked_ms"] > 0
    person.fails("key_not_found", "key", "revoke", "key_0")


def test_status(person: Person, gateway: Opened) -> None:
    status = shard_status(batches_open=3)
    gateway.shard.answers[GetStatus] = msgspec.structs.replace(
        status, vehicles={"idle": 2, "leased": 1}, at_ms=7_200_000
    )
    text = person.succeeds("status")
    for fact in ("3: 2 idle, 1 leased", "3 open", "up for 2 h", "connected", "no limit"):
        assert fact in text
    assert person.reads("status")["shard"]["batches_open"] == 3
    gateway.stage.is_storage_full = True
    result = person.gives("status")
    assert (result.exit_code, "FULL" in result.stdout) == (1, True)


def test_a_story(person: Person, gateway: Opened) -> None:
    lines = (StoryLine(0, 1, "first"), StoryLine(1_000, 2, "then \x1b[2J this"))
    gateway.shard.answers[GetStory] = Story(lines, False)
    result = person.gives("story", "batch_1", "--limit", "2")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.endswith("first")
    assert second.endswith("then �[2J this")
    assert "--limit" in result.stderr
    assert len(person.reads("story", "batch_1")["lines"]) == 2
    gateway.shard.answers[GetStory] = Story((), True)
    person.fails("story_empty", "story", "batch_1")
    person.fails("invalid_value", "story", "a b")


def test_cars_and_why_they_refuse(person: Person, gateway: Opened) -> None:
    assert person.succeeds("vehicle", "list") == "There are none.\n"
    refusing = msgspec.structs.replace(
        vehicle_view("veh-abcdefghij"),
        name="\x1b[31mred",
        state="refusing",
        refusals=("unplugged", "a_newer_reason"),
        attempts_lost={"owner_returned": 2, "link_silent": 1},
        energy_mwh=1_500,
    )
    gateway.shard.answers[ListVehicles] = VehicleList((refusing,))
    text = person.succeeds("vehicle", "list")
    head, row = text.splitlines()
    assert head.startswith("ID ")
    assert "the car is not plugged in; a newer reason" in row
    assert "�[31mred" in row
    assert " 3 " in row
    assert " 1.5 " in row
    (view,) = person.reads("vehicle", "list")["vehicles"]
    assert view["refusals"] == ["unplugged", "a_newer_reason"]


def test_a_car_enrols_with_the_code_and_is_drained(person: Person, gateway: Opened) -> None:
    code = person.reads("vehicle", "code", "--valid", "1h")["code"]
    car = str(person.folder / "car")
    text = person.succeeds("vehicle", "enrol", "--code", code, "--data", car, "--name", "Asta")
    vehicle_id = text.split()[0]
    assert gateway.stage.catalogue.vehicle(vehicle_id).name == "Asta"
    for told in ("vehicle run --data", "vehicle doctor --data", "adapter linux", "owner.toml"):
        assert told in text
    assert "needs_plug = true" in (Path(car) / "owner.toml").read_text()
    again = ["vehicle", "enrol", "--code", code, "--data"]
    assert "another one" in person.fails("already_enrolled", *again, car)
    other = str(person.folder / "other")
    assert "another one" in person.fails("enrolment_code_used", *again, other)
    for action in ("drain", "undrain", "remove"):
        assert vehicle_id in person.succeeds("vehicle", action, vehicle_id)
    person.fails("vehicle_not_found", "vehicle", "drain", "veh-nobodyhere")


def test_a_code_that_is_not_given_is_asked_for(person: Person) -> None:
    code = person.reads("vehicle", "code")["code"]
    car = str(person.folder / "car")
    result = person.gives("vehicle", "enrol", "--data", car, typed=f"{code}\n")
    assert result.exit_code == 0, result.output


def test_what_an_agent_is_about(stranger: Person) -> None:
    car = stranger.folder / "car"
    car.mkdir()
    assert "vehicle run" in stranger.fails("agent_silent", "vehicle", "show", "--data", str(car))
    status: dict[str, Any] = {
        "process_id": os.getpid(),
        "boot_id": "b",
        "agent_version": "0.1.0",
        "vehicle_id": "veh-abcdefghij",
        "name": "Asta",
        "state": "refusing",
        "refusals": ["not_parked", "soc_below_floor"],
        "is_connected": True,
        "epoch": 3,
        "lease_ids": [7, 9],
        "attempts": 1,
        "receipts_waiting": 0,
        "models": [],
        "readings": None,
        "figures": {"answers": 5},
        "energy": {
            "meter": "rapl",
            "idle_w": 10,
            "work_mwh": 3,
            "anyway_mwh": 1,
            "unclaimed_mwh": 0,
        },
        "at_ms": 1_000,
    }
    (car / "status.json").write_bytes(msgspec.json.encode(status))
    text = stranger.succeeds("vehicle", "show", "--data", str(car))
    for fact in ("Asta", "the car is not parked", "the battery is below", "lease-7, lease-9"):
        assert fact in text
    assert "NOT RUNNING" not in text
    assert stranger.reads("vehicle", "show", "--data", str(car))["lease_ids"] == [7, 9]
    status["process_id"] = 2**22 + 1
    (car / "status.json").write_bytes(msgspec.json.encode(status))
    assert "NOT RUNNING" in stranger.succeeds("vehicle", "show", "--data", str(car))


def terafleet(*given: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    program = [sys.executable, "-m", "terafleet.cli", *given]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)


def test_an_agent_says_why_it_does_not_run(tmp_path: Path) -> None:
    wrong = terafleet("vehicle", "run", "--data", str(tmp_path), "--slots", "0")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "slots must lie within" in wrong.stderr
    assert "(settings_refused)" in wrong.stderr
    lonely = terafleet("vehicle", "run", "--data", str(tmp_path))
    assert lonely.returncode == 3
    assert "enrol this car first" in lonely.stderr


def test_up_says_why_it_does_not_start(stranger: Person, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stranger.fails("file_unusable", "up", "--data", str(tmp_path / "file" / "data"))
    for address in (
        "mysql://me:hush@host/db",
        "record.db",
        "sqlite://",
        "postgresql://me:hu/sh@host/db",
        "postgresql://me:hu#sh@host/db",
        "postgresql://me:hu?sh@host/db",
        "postgresql://me:hu@sh@host/db",
        "postgresql://me:hush/db",
    ):
        told = stranger.fails("database_unsupported", "up", "--database", address)
        assert "postgresql://user@host/database" in told
        assert "sh@" not in told
        assert "hush" not in told
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = terafleet("up", "--data", str(tmp_path / "data"), "--listen", f"127.0.0.1:{port}")
    assert busy.returncode == 1
    assert busy.stderr.startswith("error: ")
    assert "--listen" in busy.stderr


def test_what_is_missing_here_is_said_with_what_to_install() -> None:
    with pytest.raises(CommandFailed, match="no_such_library") as caught, extra_needed("onnx"):
        importlib.import_module("no_such_library")
    assert caught.value.code == "extra_missing"
    assert "terafleet[onnx]" in caught.value.advice


def test_a_full_disk_is_said_and_a_reader_who_left_is_no_fault() -> None:
    with pytest.raises(CommandFailed, match="No space left"), files_mapped():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(BrokenPipeError), files_mapped():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_every_reason_has_its_words() -> None:
    assert set(REFUSALS) == set(Refusal)
    assert set(words.WAITING) == set(Waiting)
    told = {*REFUSALS.values(), *words.WAITING.values()}
    assert len(told) == len(Refusal) + len(Waiting)
    assert words.waiting_in_words("a_newer_reason") == "a newer reason"
    assert words.waiting_in_words(None) == ""


def test_advice_is_for_errors_that_there_are() -> None:
    own = {"url_missing", "api_key_missing", "invalid_url", "gateway_odd", "batch_not_ended"}
    assert set(words.ADVICE) - set(ERRORS) == own
    converted = {"tensor_unknown", "tensor_missing", "config_unsupported", "pooling_unsupported"}
    assert set(words.MODEL_FILE_ADVICE) - set(ModelFileReason) == converted


def test_durations_and_addresses() -> None:
    assert [duration_s(text) for text in ("90s", "30m", "1h", " 2d ")] == [
        90,
        1_800,
        3_600,
        172_800,
    ]
    for text in ("", "1", "h", "-1h", "1.5h", "0h", "1h30m", "٣h"):
        with pytest.raises(typer.BadParameter):
            duration_s(text)
    assert host_and_port("host.example:8600") == ("host.example", 8600)
    assert host_and_port("[::1]:0") == ("::1", 0)
    for text in ("", "8600", ":8600", "::1:8600", "host:", "host:-1", "host:65536", "host:٣"):
        with pytest.raises(typer.BadParameter):
            host_and_port(text)
