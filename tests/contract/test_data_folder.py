"""The folder of a control plane: what it refuses to touch, and secrets that are made once."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from terafleet.control.data_folder import FORMAT, DataFolder, DataFolderInUse, DataFolderUnknown

NOBODY = 65_534
PATIENCE_S = 30
SECRETS = ("address.secret", "manifest.key", "operator.key")

HOLDER = """
import os, sys
from pathlib import Path
from terafleet.control.data_folder import DataFolder
folder = DataFolder(Path(sys.argv[1]))
if "fork" in sys.argv and os.fork():
    os._exit(0)
print("open", flush=True)
sys.stdin.read()
"""
"""Opens a folder and stays until its input ends; with "fork" only its child stays."""


def contents(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mode_of(path: Path) -> int:
    """Who may do what with a file."""
    return stat.S_IMODE(path.stat().st_mode)


ORDINARY = """
import os, sys, tempfile
from pathlib import Path
from terafleet.control.data_folder import DataFolder
# Whoever is root now may not be able to import anything any more below.
with tempfile.TemporaryDirectory() as name:
    DataFolder(Path(name)).secrets()
if not os.geteuid():
    os.setresuid(*3 * [int(sys.argv[2])])
try:
    DataFolder(Path(sys.argv[1])).secrets()
except OSError as fault:
    print(type(fault).__name__, fault.filename)
"""
"""Opens a folder and its secrets as somebody who is not root; says what is in the way."""


@contextmanager
def holding(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that has opened the folder."""
    command = [sys.executable, "-c", HOLDER, str(folder), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that also somebody reaches who is not root, and belongs to them."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        give(path)
        yield path


def give(path: Path) -> None:
    """Let a file or a folder belong to somebody who is not root."""
    if not os.geteuid():
        os.chown(path, NOBODY, NOBODY)


def in_the_way(folder: Path) -> str:
    """What hinders somebody who is not root from opening the folder, or empty."""
    command = [sys.executable, "-c", ORDINARY, str(folder), str(NOBODY)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=PATIENCE_S)
    return done.stdout.strip()


def test_a_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    folder = DataFolder(path)
    assert folder.path == path
    assert mode_of(path) == 0o700
    assert contents(path) == {"format": b"%d\n" % FORMAT}


def test_its_parts_lie_in_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    parts = (
        folder.record,
        folder.catalogue,
        folder.objects,
        folder.bus,
        folder.url,
        folder.operator_key,
    )
    assert {part.parent for part in parts} == {folder.path}
    assert len(set(parts)) == len(parts)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    DataFolder(tmp_path)
    assert (tmp_path / "format").exists()
    assert mode_of(tmp_path) == 0o700, "what the parts of a control plane write here is private"


def test_what_an_operator_opened_for_others_stays_so(tmp_path: Path) -> None:
    DataFolder(tmp_path)
    tmp_path.chmod(0o750)
    DataFolder(tmp_path)
    assert mode_of(tmp_path) == 0o750


@pytest.mark.parametrize("found", [f"{FORMAT + 1}\n", "0", "77", f"  {FORMAT + 2}  "])
def test_data_of_another_format_are_refused_and_untouched(tmp_path: Path, found: str) -> None:
    (tmp_path / "format").write_text(found)
    (tmp_path / "record.db").write_bytes(b"precious")
    before = contents(tmp_path)
    words = f"{tmp_path} holds data of format {found.strip()}; this version reads format {FORMAT}$"
    with pytest.raises(DataFolderUnknown, match=words):
        DataFolder(tmp_path)
    assert contents(tmp_path) == before


DAMAGED = [
    b"",
    b"\0\0",
    b"\xff\xfe",
    b"1.0",
    b"-1",
    b"terafleet",
    b"1\n1",
    b"\xd9\xa1",
    b"1" * 5000,
]
"""The last but one is a digit, in Arabic."""


@pytest.mark.parametrize("found", DAMAGED)
def test_a_damaged_format_is_refused_and_untouched(tmp_path: Path, found: bytes) -> None:
    (tmp_path / "format").write_bytes(found)
    (tmp_path / "record.db").write_bytes(b"precious")
    before = contents(tmp_path)
    with pytest.raises(DataFolderUnknown, match=r"format is damaged; put it back from a copy$"):
        DataFolder(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("other", ["folder", "link"])
def test_a_format_that_is_no_file_is_refused(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    target = tmp_path / "precious"
    target.write_bytes(b"%d\n" % FORMAT)
    if other == "folder":
        (folder / "format").mkdir()
    else:
        (folder / "format").symlink_to(target)
    with pytest.raises(OSError, match="format"):
        DataFolder(folder)
    assert target.read_bytes() == b"%d\n" % FORMAT


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "record.db"])
def test_a_folder_of_somebody_else_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(DataFolderUnknown, match="not empty and not a data folder"):
        DataFolder(tmp_path)
    assert contents(tmp_path) == {name: b"precious"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"precious")
    with pytest.raises(OSError, match="data"):
        DataFolder(path)
    assert path.read_bytes() == b"precious"


def test_a_file_on_the_way_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(NotADirectoryError):
        DataFolder(path / "data")
    assert path.read_bytes() == b"precious"


def test_a_link_to_nothing_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError):
        DataFolder(path)
    assert not (tmp_path / "gone").exists()


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "there")
    first = DataFolder(tmp_path / "data").secrets()
    assert DataFolder(tmp_path / "there").secrets().address_secret == first.address_secret


def test_nobody_has_to_be_root(place: Path) -> None:
    assert in_the_way(place / "data") == ""
    assert in_the_way(place / "data") == ""


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o500])
def test_a_folder_that_can_not_be_read_or_written_is_refused(place: Path, mode: int) -> None:
    path = place / "data"
    path.mkdir()
    path.chmod(mode)
    give(path)
    assert in_the_way(path).startswith(f"PermissionError {path}")
    path.chmod(0o700)
    assert contents(path) == {}


def test_a_folder_that_can_not_be_made_is_refused(place: Path) -> None:
    place.chmod(0o500)
    assert in_the_way(place / "data") == f"PermissionError {place / 'data'}"


def test_a_secret_that_can_not_be_read_is_refused(place: Path) -> None:
    assert in_the_way(place / "data") == ""
    secret = place / "data" / "address.secret"
    secret.chmod(0o000)
    assert in_the_way(place / "data") == f"PermissionError {secret}"


def test_a_folder_that_another_process_has_open_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with holding(folder) as process:
        before = contents(folder)
        for _ in range(2):
            with pytest.raises(DataFolderInUse, match=f"another control plane runs on {folder}$"):
                DataFolder(folder)
        assert contents(folder) == before
        process.kill()
        process.wait(PATIENCE_S)
        DataFolder(folder).secrets()


def test_a_child_does_not_keep_the_folder_when_its_parent_is_gone(tmp_path: Path) -> None:
    with holding(tmp_path, "fork") as process:
        # The child waits for the end of its input.
        process.wait(PATIENCE_S)
        DataFolder(tmp_path).secrets()


def test_secrets_are_made_once(tmp_path: Path) -> None:
    first = DataFolder(tmp_path / "data").secrets()
    files = contents(tmp_path / "data")
    second = DataFolder(tmp_path / "data").secrets()
    assert contents(tmp_path / "data") == files
    assert second.address_secret == first.address_secret
    assert second.operator_key == first.operator_key
    assert second.manifest_key.private_bytes_raw() == first.manifest_key.private_bytes_raw()
    assert second.bus.account.public == first.bus.account.public


def test_no_two_control_planes_have_the_same_secrets(tmp_path: Path) -> None:
    first, second = (DataFolder(tmp_path / name).secrets() for name in ("a", "b"))
    assert first.address_secret != second.address_secret
    assert first.operator_key != second.operator_key
    assert first.manifest_key.private_bytes_raw() != second.manifest_key.private_bytes_raw()


def test_only_the_owner_reads_a_secret(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.secrets()
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert {path.name: oct(mode_of(path)) for path in files} == {
        path.name: oct(0o600) for path in files
    }
    assert mode_of(folder.bus) == 0o700


def test_a_first_start_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "format").write_bytes(b"")
    DataFolder(tmp_path)
    assert contents(tmp_path) == {"format": b"%d\n" % FORMAT}


def test_secrets_that_were_made_before_a_first_start_was_cut_short_stay(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    first = folder.secrets()
    (tmp_path / "manifest.key").unlink()
    second = folder.secrets()
    assert second.address_secret == first.address_secret
    assert second.manifest_key.private_bytes_raw() != first.manifest_key.private_bytes_raw()


@pytest.mark.parametrize("name", SECRETS)
def test_what_was_left_half_written_gives_nothing_away(tmp_path: Path, name: str) -> None:
    folder = DataFolder(tmp_path / "data")
    left = folder.path / f"{name}.new"
    left.write_bytes(b"x" * 5_000)
    left.chmod(0o644)
    folder.secrets()
    assert mode_of(folder.path / name) == 0o600
    assert not left.exists()


def test_a_link_in_place_of_a_half_written_secret_is_not_followed(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (folder.path / "address.secret.new").symlink_to(target)
    assert folder.secrets().address_secret == (folder.path / "address.secret").read_bytes()
    assert target.read_bytes() == b"precious"
    assert not (folder.path / "address.secret").is_symlink()


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "body", [b"", b"short", bytes(32), bytes(46), b"tf-" + b" " * 43, b"x" * 99]
)
def test_a_secret_that_is_not_whole_is_refused(tmp_path: Path, name: str, body: bytes) -> None:
    folder = DataFolder(tmp_path)
    folder.secrets()
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataFolderUnknown, match=name):
        folder.secrets()
    assert (tmp_path / name).read_bytes() == body


def test_an_operator_key_may_end_in_a_new_line(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    secret = folder.secrets().operator_key
    folder.operator_key.write_text(f"{secret}\n")
    assert folder.secrets().operator_key == secret


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b'{"operator":"'])
def test_keys_of_the_bus_that_are_not_whole_are_refused(tmp_path: Path, body: bytes) -> None:
    folder = DataFolder(tmp_path)
    folder.secrets()
    (folder.bus / "operator.keys").write_bytes(body)
    with pytest.raises(DataFolderUnknown, match=r"operator\.keys"):
        folder.secrets()
    assert (folder.bus / "operator.keys").read_bytes() == body


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_that_others_may_read_or_change_is_refused(
    tmp_path: Path, name: str, mode: int
) -> None:
    folder = DataFolder(tmp_path)
    folder.secrets()
    (tmp_path / name).chmod(mode)
    with pytest.raises(DataFolderUnknown, match=f"{name} must be readable by its owner only"):
        folder.secrets()


def test_keys_of_the_bus_that_others_may_read_are_refused(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.secrets()
    (folder.bus / "operator.keys").chmod(0o644)
    with pytest.raises(DataFolderUnknown, match=r"operator\.keys"):
        folder.secrets()


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.secrets()
    assert [path.name for path in folder.path.rglob("*.new")] == []
