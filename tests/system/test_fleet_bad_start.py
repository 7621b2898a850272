"""What can't start says why on stderr, ends with its exit code, and leaves everything as it was."""

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from terafleet.cli.local_fleet import LocalFleet, free_port
from terafleet.sdk import TerafleetError
from terafleet.sdk.admin import AdminClient
from tests.system.fleet_stage import FleetStage, command
from tests.system.small_disk import memory_disk


def up(folder: Path, port: int = 0, bus_port: int = 0) -> "CompletedProcess[str]":
    """Start a control plane that is expected not to start."""
    return command(
        "up",
        *("--data", str(folder)),
        *("--listen", f"127.0.0.1:{port or free_port()}"),
        *("--bus-listen", f"127.0.0.1:{bus_port or free_port()}"),
    )


def enrol(stage: FleetStage, folder: Path, code: str) -> "CompletedProcess[str]":
    """Enrol a car as its owner does."""
    return command(
        *("vehicle", "enrol", "--url", stage.fleet.url, "--name", "car"),
        *("--code", code, "--data", str(folder)),
    )


def run_agent(folder: Path) -> "CompletedProcess[str]":
    """Start an agent that is expected not to start."""
    return command("vehicle", "run", "--data", str(folder))


def check_refused(done: "CompletedProcess[str]", *words: str, code: int = 1) -> None:
    assert done.returncode == code, done.stderr
    assert not done.stdout
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a control plane that has run and was stopped."""
    fleet = LocalFleet(tmp_path_factory.mktemp("stopped"))
    with fleet:
        fleet.start_plane()
    return fleet.data


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetStage]:
    """A stage with one car, for tests that change nothing of it."""
    with FleetStage(tmp_path_factory.mktemp("shared")) as stage:
        stage.start(cars=1)
        yield stage


def test_a_taken_http_port(tmp_path: Path) -> None:
    with taken_port() as port:
        check_refused(up(tmp_path, port=port), f"127.0.0.1:{port}", "in use", "--listen")
    assert not files_below(tmp_path)


def test_a_taken_bus_port_harms_nothing(tmp_path: Path) -> None:
    fleet = LocalFleet(tmp_path)
    with taken_port() as port:
        check_refused(up(fleet.data, bus_port=port), f"port {port}", "in use", "--bus-listen")
    key = fleet.operator_key
    with fleet:
        fleet.start_plane()
        with fleet.admin() as admin:
            assert admin.status().is_bus_connected
    assert fleet.operator_key == key


@pytest.mark.parametrize("part", ["format", "catalogue.db"])
def test_data_of_another_version_stay_untouched(stopped: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "data"
    shutil.copytree(stopped, folder)
    body = bytearray((folder / part).read_bytes())
    if part == "format":
        body = bytearray(b"77\n")
    else:
        # Where SQLite keeps `user_version`: https://www.sqlite.org/fileformat.html section 1.3.
        body[60:64] = (77).to_bytes(4, "big")
    (folder / part).write_bytes(body)
    before = files_below(folder)
    check_refused(up(folder), "77")
    assert files_below(folder) == before


@pytest.mark.parametrize("part", ["record.db", "address.secret"])
def test_damaged_data_stay_untouched(stopped: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "data"
    shutil.copytree(stopped, folder)
    (folder / part).write_bytes(b"of no use" if part.endswith(".db") else b"")
    before = files_below(folder)
    check_refused(up(folder), "data folder")
    assert files_below(folder) == before


def test_a_folder_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Sir", encoding="utf-8")
    check_refused(up(tmp_path), str(tmp_path), "not empty")
    assert files_below(tmp_path) == {"letter.txt": b"Dear Sir"}


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Sir", encoding="utf-8")
    check_refused(up(tmp_path / "letter.txt"), "letter.txt", "--data")


def test_a_first_start_without_room(tmp_path: Path) -> None:
    with memory_disk(tmp_path / "control") as disk:
        disk.take_room(4096)
        check_refused(up(tmp_path / "control"), "data folder", "No space left")
        disk.make_room()
        with LocalFleet(tmp_path) as fleet:
            fleet.start_plane()
            with fleet.admin() as admin:
                assert not admin.status().is_storage_full


def test_two_control_planes_on_one_data_folder(shared: FleetStage) -> None:
    data = shared.fleet.data
    before = files_below(data / "bus")
    check_refused(up(data), "another control plane", str(data))
    assert files_below(data / "bus") == before
    assert shared.vehicle("car-0").state == "idle"
    assert shared.command("status").returncode == 0


def test_a_lost_operator_key_is_replaced(stopped: Path, tmp_path: Path) -> None:
    fleet = LocalFleet(tmp_path)
    shutil.copytree(stopped, fleet.data)
    before = fleet.operator_key
    (fleet.data / "operator.key").unlink()
    with fleet:
        fleet.start_plane()
        with fleet.admin() as admin:
            assert admin.status().is_bus_connected
        with AdminClient(fleet.url, before) as admin, pytest.raises(TerafleetError) as refused:
            admin.status()
    assert refused.value.code == "revoked_api_key"


def test_two_agents_on_one_data_folder(shared: FleetStage) -> None:
    folder = shared.fleet.car_folder("car-0")
    check_refused(run_agent(folder), "folder_in_use", str(folder), code=5)
    assert shared.vehicle("car-0").state == "idle"


def test_an_agent_that_is_not_enrolled(tmp_path: Path) -> None:
    check_refused(run_agent(tmp_path), "not_enrolled", "enrol this car first", code=3)


def test_an_agent_with_wrong_settings(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("slots = 0\n", encoding="utf-8")
    check_refused(run_agent(tmp_path), "settings_refused", "slots")


def test_an_enrolment_code_is_good_for_one_car(shared: FleetStage, tmp_path: Path) -> None:
    with shared.fleet.admin() as admin:
        code, fresh = admin.create_code().code, admin.create_code().code
    first, second = tmp_path / "first", tmp_path / "second"
    assert enrol(shared, first, code).returncode == 0
    before = files_below(first)
    check_refused(enrol(shared, first, fresh), "already_enrolled", "another one")
    assert files_below(first) == before
    check_refused(enrol(shared, second, code), "enrolment_code_used", "another one")
    # Neither refusal has used up anything.
    assert enrol(shared, second, fresh).returncode == 0


def test_enrolment_codes_that_are_of_no_use(shared: FleetStage, tmp_path: Path) -> None:
    with shared.fleet.admin() as admin:
        code = admin.create_code(valid_s=1).code
    time.sleep(1.1)
    check_refused(enrol(shared, tmp_path, code), "enrolment_code_expired", "fresh code")
    unknown = "abcde-fghjk-mnpqr-stuvw"
    check_refused(enrol(shared, tmp_path, unknown), "enrolment_code_invalid")
