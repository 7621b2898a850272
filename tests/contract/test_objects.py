"""What every place of objects promises; and what the folder promises beyond that."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.control.adapters.object_files import TRAILER_BYTES
from terafleet.control.adapters.objects_folder import (
    INCOMING,
    OPEN_OBJECTS_MAX,
    PIECE_BYTES,
    FolderObjects,
    ObjectDamaged,
)
from terafleet.control.adapters.objects_memory import MemoryObjects
from terafleet.control.object_names import FOLDER_PARTS, check_folder_name, is_object_name
from terafleet.control.ports import ObjectInfo, ObjectMissing, Objects, ObjectsFull

KINDS = ("memory", "folder")
CAPACITY_BYTES = 3 * PIECE_BYTES


class SmallDisk:
    """Stands for os.write on a disk that has room for so many bytes and no more."""

    def __init__(self, bytes_free: int) -> None:
        self.bytes_free = bytes_free

    def write(self, descriptor: int, body: bytes) -> int:
        if self.bytes_free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = os.write(descriptor, body[: self.bytes_free])
        self.bytes_free -= count
        return count


def opened(kind: str, path: Path) -> Objects:
    return MemoryObjects() if kind == "memory" else FolderObjects(path)


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return opened(request.param, tmp_path)


async def chunks(*bodies: bytes) -> AsyncIterator[bytes]:
    for body in bodies:
        await asyncio.sleep(0)
        yield body


async def broken(*bodies: bytes) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body
    raise ConnectionResetError("the client is gone")


def pattern(size_bytes: int) -> bytes:
    """Bytes of which no two stretches are alike."""
    count = size_bytes // 8 + 1
    return b"".join(number.to_bytes(8, "big") for number in range(count))[:size_bytes]


def files_of(path: Path) -> list[Path]:
    """All files below the folder."""
    return [file for file in path.rglob("*") if file.is_file()]


async def gathered(pieces: AsyncIterator[bytes]) -> list[bytes]:
    return [piece async for piece in pieces]


async def test_an_object_is_kept_as_it_came(objects: Objects) -> None:
    body = pattern(3 * PIECE_BYTES + 5)
    parts = [body[begin : begin + 300_001] for begin in range(0, len(body), 300_001)]
    expected = ObjectInfo("file/file-1", len(body), hashlib.sha256(body).hexdigest())
    assert await objects.write("file/file-1", chunks(*parts)) == expected
    assert await objects.info("file/file-1") == expected
    assert await objects.read("file/file-1") == body
    pieces = await gathered(objects.stream("file/file-1"))
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) <= PIECE_BYTES


async def test_an_empty_object_is_an_object(objects: Objects) -> None:
    expected = ObjectInfo("empty", 0, hashlib.sha256().hexdigest())
    assert await objects.write("empty", chunks()) == expected
    assert await objects.write("empty", chunks(b"", b"")) == expected
    assert await objects.info("empty") == expected
    assert await objects.read("empty") == b""
    assert await gathered(objects.stream("empty")) == []
    assert objects.read_now("empty", 0, 10) == b""


async def test_ranges_are_cut_at_the_end(objects: Objects) -> None:
    body = pattern(2 * PIECE_BYTES + 100)
    await objects.write("a", chunks(body))
    size = len(body)
    for offset, length in (
        (0, 0), (0, 1), (5, 10), (PIECE_BYTES - 1, 2), (PIECE_BYTES, PIECE_BYTES),
        (1, -1), (size - 3, 10), (size - 3, -1), (size, 1), (size + 9, 5), (size + 9, -1),
    ):  # fmt: skip
        expected = body[offset:] if length < 0 else body[offset : offset + length]
        assert await objects.read("a", offset, length) == expected
        assert b"".join(await gathered(objects.stream("a", offset, length))) == expected
        assert objects.read_now("a", offset, length) == expected


async def test_what_is_not_there_is_missing(objects: Objects) -> None:
    assert await objects.info("nothing") is None
    assert not await objects.delete("nothing")
    with pytest.raises(ObjectMissing):
        await objects.read("nothing")
    with pytest.raises(ObjectMissing):
        objects.read_now("nothing", 0, 1)
    stream = objects.stream("nothing")
    with pytest.raises(ObjectMissing):
        await anext(stream)


async def test_a_deleted_object_is_gone(objects: Objects) -> None:
    await objects.write("a", chunks(b"abc"))
    assert objects.read_now("a", 0, 3) == b"abc"
    assert await objects.delete("a")
    assert not await objects.delete("a")
    assert await objects.info("a") is None
    with pytest.raises(ObjectMissing):
        objects.read_now("a", 0, 3)


async def test_writing_a_name_again_replaces_the_object(objects: Objects) -> None:
    await objects.write("a", chunks(b"the first"))
    assert objects.read_now("a", 0, 99) == b"the first"
    await objects.write("a", chunks(b"second"))
    assert objects.read_now("a", 0, 99) == b"second"
    assert await objects.read("a") == b"second"
    info = await objects.info("a")
    assert info == ObjectInfo("a", 6, hashlib.sha256(b"second").hexdigest())


async def test_a_broken_upload_leaves_what_was_there(objects: Objects) -> None:
    await objects.write("a", chunks(b"whole"))
    for name in ("a", "b"):
        with pytest.raises(ConnectionResetError):
            await objects.write(name, broken(pattern(2 * PIECE_BYTES), b"half"))
    assert await objects.read("a") == b"whole"
    assert await objects.info("b") is None


async def test_a_stream_goes_on_with_the_object_it_began_with(objects: Objects) -> None:
    body = pattern(3 * PIECE_BYTES)
    await objects.write("a", chunks(body))
    stream = objects.stream("a")
    first = await anext(stream)
    await objects.write("a", chunks(b"other"))
    await objects.delete("a")
    assert first + b"".join(await gathered(stream)) == body


async def test_writers_of_the_same_name_leave_one_whole_object(objects: Objects) -> None:
    bodies = [bytes([number]) * (PIECE_BYTES + number) for number in range(6)]
    halves = [(body[:1000], body[1000:]) for body in bodies]
    await asyncio.gather(*(objects.write("a", chunks(*parts)) for parts in halves))
    found = await objects.read("a")
    assert found in bodies
    info = await objects.info("a")
    assert info is not None
    assert info.sha256 == hashlib.sha256(found).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_place_keeps_nothing_of_the_object(kind: str, tmp_path: Path) -> None:
    disk = SmallDisk(CAPACITY_BYTES)
    objects: Objects = (
        MemoryObjects(CAPACITY_BYTES)
        if kind == "memory"
        else FolderObjects(tmp_path, write=disk.write)
    )
    await objects.write("a", chunks(pattern(PIECE_BYTES)))
    for name in ("a", "b"):
        with pytest.raises(ObjectsFull):
            await objects.write(name, chunks(pattern(PIECE_BYTES), pattern(2 * PIECE_BYTES)))
        disk.bytes_free = 2 * PIECE_BYTES - TRAILER_BYTES
    assert await objects.read("a") == pattern(PIECE_BYTES)
    assert await objects.info("b") is None
    await objects.delete("a")
    disk.bytes_free = CAPACITY_BYTES
    body = pattern(2 * PIECE_BYTES)
    await objects.write("c", chunks(body))
    assert await objects.read("c") == body


@pytest.mark.parametrize("cut", range(0, TRAILER_BYTES + 1, 13))
async def test_a_disk_that_fills_up_at_the_very_end_keeps_nothing(cut: int, tmp_path: Path) -> None:
    disk = SmallDisk(1000 + cut)
    objects = FolderObjects(tmp_path, write=disk.write)
    if cut == TRAILER_BYTES:
        await objects.write("a", chunks(pattern(1000)))
        assert await objects.read("a") == pattern(1000)
        return
    with pytest.raises(ObjectsFull):
        await objects.write("a", chunks(pattern(1000)))
    assert files_of(tmp_path) == []


BAD_NAMES = [
    "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", ".a", "a/.b", "A", "a b",
    "a\x00b", "a\nb", "a\\b", "a=b", "~", "ä", "a" * 201, "a/b\n", "incoming=/a",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_what_is_no_name_is_refused(objects: Objects, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        await objects.write(name, chunks(b"a"))
    with pytest.raises(ValueError, match="name"):
        await objects.read(name)
    with pytest.raises(ValueError, match="name"):
        await anext(objects.stream(name))
    with pytest.raises(ValueError, match="name"):
        objects.read_now(name, 0, 1)
    with pytest.raises(ValueError, match="name"):
        await objects.info(name)
    with pytest.raises(ValueError, match="name"):
        await objects.delete(name)


@given(st.text("ab./-_=\\\n\x00A", max_size=12))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    if is_object_name(name):
        parts = name.split("/")
        assert all(part and not part.startswith(".") for part in parts)
        assert not set(name) & set("=\\\n\x00A")


async def test_names_that_look_alike_are_different_objects(objects: Objects) -> None:
    names = ["a", "a/b", "a-b", "a_b", "a/b/c", "a/bc", "b", "out/1/2", "out/12", "out-1/2"]
    for name in names:
        await objects.write(name, chunks(name.encode()))
    for name in names:
        assert await objects.read(name) == name.encode()


# Folders of objects.

FOLDER = "out/batch_1/"
IN_FOLDER = [
    "out/batch_1/veh-a/7-5", "out/batch_1/veh-a/7-6", "out/batch_1/veh-ab/7-5", "out/batch_1/x",
    "out/batch_1/a/b/c/d",
]  # fmt: skip
ELSEWHERE = [
    "out/batch_1", "out/batch_10/veh-a/7-5", "out/batch_2/veh-a/7-5", "in/batch_1", "plan/batch_1",
    "out/1/veh-a/7-5", "file/out/batch_1/x", "out-batch_1-veh-a-7", "x", "batch_1/veh-a/7-5",
]  # fmt: skip


async def written(objects: Objects, *names: str) -> None:
    """Objects of these names, each holding its own."""
    for name in names:
        await objects.write(name, chunks(name.encode()))


async def missing(objects: Objects, *names: str) -> list[str]:
    """Those of these names under which nothing is stored."""
    return [name for name in names if await objects.info(name) is None]


async def test_a_folder_is_deleted_with_all_that_lies_in_it(objects: Objects) -> None:
    await written(objects, *IN_FOLDER, *ELSEWHERE)
    assert objects.read_now(IN_FOLDER[0], 0, 3) == b"out"
    assert await objects.delete_folder(FOLDER) == len(IN_FOLDER)
    assert await missing(objects, *IN_FOLDER) == IN_FOLDER
    with pytest.raises(ObjectMissing):
        objects.read_now(IN_FOLDER[0], 0, 3)
    for name in ELSEWHERE:
        assert await objects.read(name) == name.encode()
    assert await objects.delete_folder(FOLDER) == 0


async def test_a_folder_within_a_folder_is_deleted_alone(objects: Objects) -> None:
    await written(objects, *IN_FOLDER)
    assert await objects.delete_folder("out/batch_1/veh-a/") == 2
    assert await missing(objects, *IN_FOLDER) == IN_FOLDER[:2]
    assert await objects.delete_folder("out/batch_1/a/b/") == 1
    assert await missing(objects, *IN_FOLDER) == [*IN_FOLDER[:2], IN_FOLDER[4]]


async def test_a_folder_that_never_was_is_empty(objects: Objects) -> None:
    assert await objects.delete_folder("out/batch_3/") == 0


async def test_a_deleted_folder_may_be_filled_again(objects: Objects) -> None:
    await written(objects, *IN_FOLDER)
    await objects.delete_folder(FOLDER)
    await written(objects, IN_FOLDER[0])
    assert await objects.read(IN_FOLDER[0]) == IN_FOLDER[0].encode()
    assert await objects.delete_folder(FOLDER) == 1


BAD_FOLDERS = [
    "", "/", "//", "out", "out/", "out/batch_1", "out/batch_1/veh-a/7-5", "out//", "/out/",
    "out//x/", "/out/batch_1/", "out/batch_1//", "./batch_1/", "out/../", "out/batch_1/../",
    "out/.hidden/", "out=batch_1=", "out/batch_1=", "incoming=/a/", "Out/batch_1/", "out/batch 1/",
    "out/batch_1/ ", "out/batch_*/", "out/batch_1/\n", "out/batch_1\n/", "out/" + "a" * 200 + "/",
]  # fmt: skip


async def test_what_is_no_whole_folder_is_refused(objects: Objects) -> None:
    await written(objects, *IN_FOLDER)
    for prefix in BAD_FOLDERS:
        with pytest.raises(ValueError, match="folder"):
            await objects.delete_folder(prefix)
    assert await missing(objects, *IN_FOLDER) == []


@given(st.text("ab/._-=A\n", max_size=12))
def test_no_folder_leads_out_of_the_folder(prefix: str) -> None:
    try:
        check_folder_name(prefix)
    except ValueError:
        return
    parts = prefix.split("/")
    assert len(parts) > FOLDER_PARTS
    assert parts[-1] == ""
    assert all(part and not part.startswith(".") for part in parts[:-1])
    assert not set(prefix) & set("=A\n")


# What only the folder promises.


async def test_folders_that_lie_together_are_told_apart(tmp_path: Path) -> None:
    def place(prefix: str) -> bytes:
        return hashlib.sha256(prefix.removesuffix("/").encode()).digest()[:1]

    beside = next(
        prefix
        for prefix in (f"out/batch_{number}/" for number in range(2, 100_000))
        if place(prefix) == place(FOLDER)
    )
    others = (f"{beside}x", f"{beside}y/z")
    objects = FolderObjects(tmp_path)
    await written(objects, f"{FOLDER}x", *others)
    assert len({file.parent for file in files_of(tmp_path)}) == 1
    assert await objects.delete_folder(FOLDER) == 1
    assert await missing(objects, *others) == []


async def test_what_begins_alike_lies_together(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    await written(objects, *IN_FOLDER)
    assert len({file.parent for file in files_of(tmp_path)}) == 1
    again = FolderObjects(tmp_path)
    assert await again.delete_folder(FOLDER) == len(IN_FOLDER)
    assert files_of(tmp_path) == []


async def test_the_objects_are_there_after_a_restart(tmp_path: Path) -> None:
    written = await FolderObjects(tmp_path).write("model/abc", chunks(b"weights"))
    again = FolderObjects(tmp_path)
    assert await again.info("model/abc") == written
    assert await again.read("model/abc") == b"weights"


async def test_leftovers_of_a_crash_are_swept_and_uploads_in_progress_are_not(
    tmp_path: Path,
) -> None:
    objects = FolderObjects(tmp_path)
    (tmp_path / INCOMING / "leftover").write_bytes(b"half")
    may_end = asyncio.Event()
    has_begun = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield pattern(PIECE_BYTES)
        has_begun.set()
        await may_end.wait()
        yield b"end"

    upload = asyncio.create_task(objects.write("a", slow()))
    await has_begun.wait()
    again = FolderObjects(tmp_path)
    assert len(files_of(tmp_path / INCOMING)) == 1
    may_end.set()
    await upload
    assert await again.read("a") == pattern(PIECE_BYTES) + b"end"
    assert files_of(tmp_path / INCOMING) == []


async def test_a_cancelled_upload_leaves_nothing(tmp_path: Path) -> None:
    is_writing, may_write = threading.Event(), threading.Event()
    closed_under_us: list[int] = []

    def slow_write(descriptor: int, body: bytes) -> int:
        is_writing.set()
        may_write.wait(10)
        try:
            os.fstat(descriptor)
        except OSError:
            closed_under_us.append(descriptor)
        return os.write(descriptor, body)

    objects = FolderObjects(tmp_path, write=slow_write)
    upload = asyncio.create_task(objects.write("a", chunks(pattern(PIECE_BYTES), b"end")))
    await asyncio.to_thread(is_writing.wait, 10)
    upload.cancel()
    await asyncio.sleep(0)
    upload.cancel()
    may_write.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    await asyncio.get_running_loop().shutdown_default_executor()
    assert files_of(tmp_path) == []
    assert closed_under_us == []


async def test_the_floor_of_the_disk_is_kept_free(tmp_path: Path) -> None:
    numbers = os.statvfs(tmp_path)
    objects = FolderObjects(tmp_path, bytes_free_min=numbers.f_blocks * numbers.f_frsize)
    assert objects.bytes_free() == 0
    with pytest.raises(ObjectsFull):
        await objects.write("a", chunks(b"a"))
    assert files_of(tmp_path) == []
    assert (FolderObjects(tmp_path).bytes_free() or 0) > 0


async def test_other_errors_of_the_disk_are_not_taken_for_fullness(tmp_path: Path) -> None:
    def failing(_: int, __: bytes) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"):
        await FolderObjects(tmp_path, write=failing).write("a", chunks(b"a"))
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"short", bytes(TRAILER_BYTES), b"x" * 500])
async def test_a_file_that_is_no_object_is_not_served(tmp_path: Path, content: bytes) -> None:
    objects = FolderObjects(tmp_path)
    await objects.write("a", chunks(b"abc"))
    (file,) = files_of(tmp_path)
    file.write_bytes(content)
    with pytest.raises(ObjectDamaged):
        await objects.read("a")
    with pytest.raises(ObjectDamaged):
        await objects.info("a")


async def test_few_files_stay_open(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    for number in range(2 * OPEN_OBJECTS_MAX):
        await objects.write(f"a/{number}", chunks(b"abc"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number in range(2 * OPEN_OBJECTS_MAX):
            assert objects.read_now(f"a/{number}", 1, 1) == b"b"
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_OBJECTS_MAX
    objects.close()
    assert len(os.listdir("/proc/self/fd")) == before
