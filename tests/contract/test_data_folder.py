"""The folder of a control plane: what it refuses to touch, and secrets that are made once."""

import stat
from pathlib import Path

import pytest

from terafleet.control.data_folder import FORMAT, DataFolder, DataFolderUnknown


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
    DataFolder(tmp_path)
    assert (tmp_path / "format").exists()


@pytest.mark.parametrize("found", ["2\n", "0", "", "1.0", "terafleet"])
def test_data_of_another_format_are_refused_and_untouched(tmp_path: Path, found: str) -> None:
    (tmp_path / "format").write_text(found)
    (tmp_path / "record.db").write_bytes(b"precious")
    before = contents(tmp_path)
    with pytest.raises(DataFolderUnknown, match="this version reads format"):
        DataFolder(tmp_path)
    assert contents(tmp_path) == before


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
    (tmp_path / "format.new").write_bytes(b"")
    DataFolder(tmp_path)
    assert contents(tmp_path) == {"format": b"%d\n" % FORMAT}


@pytest.mark.parametrize("name", ["address.secret", "manifest.key", "operator.key"])
@pytest.mark.parametrize("body", [b"", b"short"])
def test_a_secret_that_is_not_whole_is_refused(tmp_path: Path, name: str, body: bytes) -> None:
    folder = DataFolder(tmp_path)
    folder.secrets()
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataFolderUnknown, match=name):
        folder.secrets()
    assert (tmp_path / name).read_bytes() == body


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
