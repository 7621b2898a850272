"""Objects as files of one folder: durable, whole or absent, safe against a crash at any moment.

Tested on ext4 and tmpfs of Linux. Processes may share a folder; a name that one of them replaces
is read in its old form by the others until they let go of it.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from terafleet.control.adapters.object_files import (
    ObjectDamaged,
    OpenObject,
    OpenObjects,
    open_object,
    trailer,
)
from terafleet.control.object_names import FOLDER_PARTS, check_folder_name, check_object_name
from terafleet.control.ports import ObjectInfo, ObjectMissing, ObjectsFull

__all__ = ["FolderObjects", "ObjectDamaged"]

PIECE_BYTES = 1024 * 1024
OPEN_OBJECTS_MAX = 64

# Neither is in the alphabet of names, so that no object can lie where these lie.
INCOMING = "incoming="
SLASH = "="

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Write = Callable[[int, bytes], int]
"""Like os.write: descriptor and bytes, gives how many it took."""


class FolderObjects:
    """Keeps the promises of `Objects` in a folder.

    An object lies in one of 256 folders, by the hash of the first two parts of its name, so that
    what begins alike lies together; slashes of names become `=`.
    """

    def __init__(self, path: Path, bytes_free_min: int = 0, write: Write = os.write) -> None:
        """Make the folder if need be and remove what crashes have left.

        Writing stops at `bytes_free_min`, so that the record beside it can still grow. `write`
        stands for the operating system's.
        """
        self._path = path
        self._bytes_free_min = bytes_free_min
        self._write_some = write
        self._open = OpenObjects(OPEN_OBJECTS_MAX)
        self._open_lock = threading.Lock()
        self._count = 0
        for folder in (INCOMING, *(f"{number:02x}" for number in range(256))):
            (path / folder).mkdir(parents=True, exist_ok=True)
        _sync_folder(path)
        _sweep(path / INCOMING)

    async def write(self, name: str, chunks: AsyncIterator[bytes]) -> ObjectInfo:
        """Store durably. Raises ObjectsFull; then, or on any other fault, nothing is kept."""
        check_object_name(name)
        incoming = _Incoming(self._path / INCOMING, self._write_all)
        try:
            async for piece in _pieces(chunks):
                await asyncio.to_thread(incoming.append, piece)
            return await asyncio.to_thread(incoming.finish, name, self._file(name))
        except BaseException:
            # Shielded, since a cancelled upload may be cancelled a second time.
            await asyncio.shield(asyncio.to_thread(incoming.discard))
            raise
        finally:
            with self._open_lock:
                self._open.forget(name)

    async def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """Some bytes. Raises ObjectMissing."""
        check_object_name(name)
        return await asyncio.to_thread(self._read, name, offset, length)

    async def stream(self, name: str, offset: int = 0, length: int = -1) -> AsyncIterator[bytes]:
        """Bytes in pieces of a mebibyte. Raises ObjectMissing at the first piece.

        What is streamed stays the same object, even if its name is written or deleted meanwhile.
        """
        check_object_name(name)
        # In the event loop, since a cancelled thread would leave its descriptor to nobody.
        opened = self._opened(name)
        try:
            end = opened.size_bytes if length < 0 else min(offset + length, opened.size_bytes)
            for begin in range(offset, end, PIECE_BYTES):
                count = min(PIECE_BYTES, end - begin)
                yield await asyncio.to_thread(opened.read, begin, count)
        finally:
            opened.close()

    def read_now(self, name: str, offset: int, length: int) -> bytes:
        """Some bytes without waiting. Raises ObjectMissing."""
        with self._open_lock:
            opened = self._open.get(name, self._file(name))
            if opened is None:
                raise ObjectMissing(name)
            return opened.read(offset, length)

    async def info(self, name: str) -> ObjectInfo | None:
        """What is stored under a name, or None."""
        check_object_name(name)
        return await asyncio.to_thread(self._info, name)

    async def delete(self, name: str) -> bool:
        """Remove; whether there was anything."""
        check_object_name(name)
        is_gone = await asyncio.to_thread(self._delete, name)
        with self._open_lock:
            self._open.forget(name)
        return is_gone

    async def delete_folder(self, prefix: str) -> int:
        """Remove all whose names begin so; how many there were."""
        check_folder_name(prefix)
        names = await asyncio.to_thread(self._names, prefix)
        for name in names:
            await self.delete(name)
        return len(names)

    def bytes_free(self) -> int | None:
        """Room left above the floor."""
        numbers = os.statvfs(self._path)
        return max(0, numbers.f_bavail * numbers.f_frsize - self._bytes_free_min)

    def close(self) -> None:
        """Let go of the files that are open for reading."""
        with self._open_lock:
            self._open.close()

    def _file(self, name: str) -> Path:
        check_object_name(name)
        return self._folder(name) / name.replace("/", SLASH)

    def _folder(self, name: str) -> Path:
        begin = "/".join(name.split("/")[:FOLDER_PARTS])
        return self._path / hashlib.sha256(begin.encode()).hexdigest()[:2]

    def _names(self, prefix: str) -> list[str]:
        """The names that begin so."""
        begin = prefix.replace("/", SLASH)
        files = os.listdir(self._folder(prefix))
        return [file.replace(SLASH, "/") for file in files if file.startswith(begin)]

    def _write_all(self, descriptor: int, body: bytes) -> None:
        bytes_free = self.bytes_free()
        if bytes_free is not None and bytes_free < len(body):
            raise ObjectsFull(f"less than {self._bytes_free_min} bytes would stay free")
        rest = body
        with _mapped():
            while rest:
                rest = rest[self._write_some(descriptor, rest) :]

    def _opened(self, name: str) -> OpenObject:
        opened = open_object(self._file(name))
        if opened is None:
            raise ObjectMissing(name)
        return opened

    def _read(self, name: str, offset: int, length: int) -> bytes:
        opened = self._opened(name)
        try:
            return opened.read(offset, length)
        finally:
            opened.close()

    def _info(self, name: str) -> ObjectInfo | None:
        opened = open_object(self._file(name))
        if opened is None:
            return None
        opened.close()
        return ObjectInfo(name, opened.size_bytes, opened.sha256)

    def _delete(self, name: str) -> bool:
        file = self._file(name)
        try:
            file.unlink()
        except FileNotFoundError:
            return False
        _sync_folder(file.parent)
        return True


class _Incoming:
    """A file that is being written; its lock tells a sweeper that somebody still writes it.

    One thread works on it at a time: after a cancelled upload, `discard` waits for the step that
    is still running, so that no thread ever writes to a descriptor that was closed.
    """

    def __init__(self, folder: Path, write_all: Callable[[int, bytes], None]) -> None:
        with _mapped():
            self._path, self._descriptor = _new_file(folder)
        self._write_all = write_all
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._is_open = True

    def append(self, piece: bytes) -> None:
        with self._lock:
            self._write_all(self._descriptor, piece)
            self._digest.update(piece)
            self._size_bytes += len(piece)

    def finish(self, name: str, file: Path) -> ObjectInfo:
        """Make the file the object of this name."""
        digest = self._digest.digest()
        with self._lock, _mapped():
            self._write_all(self._descriptor, trailer(digest))
            os.fsync(self._descriptor)
            os.replace(self._path, file)
            self._close()
            _sync_folder(file.parent)
        return ObjectInfo(name, self._size_bytes, digest.hex())

    def discard(self) -> None:
        """Remove the file, unless it has become the object."""
        with self._lock:
            if self._is_open:
                self._path.unlink(missing_ok=True)
                self._close()

    def _close(self) -> None:
        self._is_open = False
        os.close(self._descriptor)


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """The operating system's words for a full disk become ObjectsFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ObjectsFull(os.strerror(error.errno)) from error
        raise


def _new_file(folder: Path) -> tuple[Path, int]:
    """A fresh file with our lock on it."""
    while True:
        path = folder / os.urandom(12).hex()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        # A sweeper took it for a leftover between the two calls.
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove the files that nobody has a lock on: their writers are gone."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about a mebibyte, so that few of them go to a thread."""
    gathered: list[bytes] = []
    size_bytes = 0
    async for chunk in chunks:
        gathered.append(chunk)
        size_bytes += len(chunk)
        if size_bytes >= PIECE_BYTES:
            yield b"".join(gathered)
            gathered, size_bytes = [], 0
    if gathered:
        yield b"".join(gathered)
