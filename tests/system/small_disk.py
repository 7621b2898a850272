"""A place for a control plane's data whose room a test takes away and gives back."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MIB = 1024 * 1024
ROOM_BYTES = 4096 * MIB
"""Far more than a control plane asks for; a memory file system takes only what is written."""

SHORT_BYTES = 256 * MIB
"""Less than a control plane wants free beside its record."""


class MemoryDisk:
    """A file system of its own, in memory; to make one takes the rights of root."""

    plane: dict[str, Any] = {}  # noqa: RUF012 - it is only read.

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take_room(self, free_bytes: int = SHORT_BYTES) -> None:
        """Make the disk so small that this much stays free, to about a page."""
        numbers = os.statvfs(self._folder)
        used_bytes = (numbers.f_blocks - numbers.f_bfree) * numbers.f_frsize
        _mount("-o", f"remount,size={used_bytes + free_bytes}", str(self._folder))

    def make_room(self) -> None:
        """Give all of it back."""
        _mount("-o", f"remount,size={ROOM_BYTES}", str(self._folder))


class FilledDisk:
    """The disk that is there, and a control plane that wants nearly all of it to be free.

    `plane` are its settings. Room is taken by a large file without content.
    """

    def __init__(self, folder: Path) -> None:
        numbers = os.statvfs(folder)
        free_bytes = numbers.f_bavail * numbers.f_frsize
        if free_bytes < 2 * ROOM_BYTES:
            pytest.skip("needs the right to mount a file system, or much room on the disk")
        levels = {
            "bytes_free_min": free_bytes - ROOM_BYTES // 2,
            "bytes_free_enough": free_bytes - ROOM_BYTES // 4,
        }
        self.plane = {"shard": {"engine": levels}}
        self._file = folder / "large"

    def take_room(self) -> None:
        """Write the file; no block of it is touched."""
        with self._file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, ROOM_BYTES)

    def make_room(self) -> None:
        """Delete the file."""
        self._file.unlink()


@contextmanager
def memory_disk(folder: Path) -> Iterator[MemoryDisk]:
    """A disk at a folder, which is made. Skips the test where mounting is not permitted."""
    folder.mkdir(parents=True)
    fault = _try_tmpfs(folder)
    if fault:
        pytest.skip(f"needs the right to mount a file system: {fault}")
    try:
        yield MemoryDisk(folder)
    finally:
        _unmount(folder)


@contextmanager
def any_disk(folder: Path) -> Iterator[MemoryDisk | FilledDisk]:
    """A disk at a folder, which is made: its own where that is permitted, else the one there."""
    folder.mkdir(parents=True)
    if _try_tmpfs(folder):
        yield FilledDisk(folder.parent)
        return
    try:
        yield MemoryDisk(folder)
    finally:
        _unmount(folder)


def _try_tmpfs(folder: Path) -> str:
    options = f"size={ROOM_BYTES},mode=0700"
    return _try_mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))


def _unmount(folder: Path) -> None:
    # Lazily, so that a process that a failed test left behind does not keep it for ever.
    program = shutil.which("umount")
    assert program is not None
    subprocess.run([program, "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    fault = _try_mount(*arguments)
    assert not fault, fault


def _try_mount(*arguments: str) -> str:
    """Mount; what stood in the way, or empty."""
    program = shutil.which("mount")
    if program is None:
        return "there is no mount here"
    done = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""
