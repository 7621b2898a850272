"""The form of an object's file: its bytes, and behind them a trailer with their SHA-256.

One file holds both, so that one rename makes them appear together.
"""

import os
from pathlib import Path

import msgspec

from terafleet.control.ports import ObjectMissing

TRAILER_MAGIC = b"tfobj\x00\x00\x01"
TRAILER_BYTES = len(TRAILER_MAGIC) + 32


class ObjectDamaged(ObjectMissing):
    """A file in the objects' folder is not one that was stored there."""


class OpenObject(msgspec.Struct, frozen=True):
    """An open object; `size_bytes` is without the trailer."""

    descriptor: int
    size_bytes: int
    sha256: str

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range, cut at the object's end; a negative length is all of the rest."""
        rest = max(0, self.size_bytes - offset)
        count = rest if length < 0 else min(length, rest)
        parts = []
        while count:
            part = os.pread(self.descriptor, count, offset)
            if not part:
                raise ObjectDamaged("the file of an object became shorter")
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)


def trailer(digest: bytes) -> bytes:
    """What stands behind an object's bytes; `digest` is their SHA-256, 32 bytes."""
    return TRAILER_MAGIC + digest


def open_object(path: Path) -> OpenObject | None:
    """Open an object's file; None if there is none. Raises ObjectDamaged."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return _checked(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise


def _checked(descriptor: int, path: Path) -> OpenObject:
    size_bytes = os.fstat(descriptor).st_size - TRAILER_BYTES
    end = os.pread(descriptor, TRAILER_BYTES, size_bytes) if size_bytes >= 0 else b""
    if not end.startswith(TRAILER_MAGIC) or len(end) != TRAILER_BYTES:
        raise ObjectDamaged(f"{path.name} has no trailer")
    return OpenObject(descriptor, size_bytes, end[len(TRAILER_MAGIC) :].hex())


class OpenObjects:
    """Keeps the descriptors of the objects that were read last; not safe for several threads."""

    def __init__(self, count_max: int) -> None:
        """Keep at most `count_max` open."""
        self._count_max = count_max
        self._open: dict[str, OpenObject] = {}

    def get(self, name: str, path: Path) -> OpenObject | None:
        """The object, opened if it was not; None if there is none."""
        found = self._open.pop(name, None) or open_object(path)
        if found is None:
            return None
        self._open[name] = found
        if len(self._open) > self._count_max:
            self.forget(next(iter(self._open)))
        return found

    def forget(self, name: str) -> None:
        """The name stands for something else from here on, or for nothing."""
        known = self._open.pop(name, None)
        if known is not None:
            known.close()

    def close(self) -> None:
        """Let go of all files."""
        for name in list(self._open):
            self.forget(name)
