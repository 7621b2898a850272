"""Keeps snapshot bodies as files beside the database, whole or not at all."""

import contextlib
import hashlib
import os
from pathlib import Path

PIECE_BYTES = 4 * 1024 * 1024
DIGEST_IN_NAME = 8


class SnapshotFiles:
    """Files `<database>-snapshot-<sequence>-<digest>.bin` in the folder of the database."""

    def __init__(self, database: Path) -> None:
        """Nothing is read or written yet."""
        self._folder = database.parent
        self._prefix = f"{database.name}-snapshot-"

    def write(self, sequence: int, body: bytes) -> tuple[str, bytes]:
        """Write a body durably; its file's name and SHA-256 digest. Raises OSError."""
        digest = hashlib.sha256(body).digest()
        name = f"{self._prefix}{sequence}-{digest.hex()[:DIGEST_IN_NAME]}.bin"
        partial = self._folder / f"{name}.partial"
        try:
            _write_durably(partial, body)
            partial.rename(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        self._sync_folder()
        return name, digest

    def read(self, name: str, digest: bytes) -> bytes | None:
        """A body, or None if its file is gone or damaged."""
        try:
            body = (self._folder / name).read_bytes()
        except OSError:
            return None
        return body if hashlib.sha256(body).digest() == digest else None

    def delete(self, name: str) -> None:
        """Remove one file; a failure leaves it for `keep_only`."""
        with contextlib.suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)

    def keep_only(self, names: set[str]) -> None:
        """Remove what a crash left behind: files that no row names."""
        for path in self._folder.iterdir():
            if path.name.startswith(self._prefix) and path.name not in names:
                self.delete(path.name)

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_durably(path: Path, body: bytes) -> None:
    """Sync piece by piece: one sync of it all would hold up the commits of the same disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        rest = memoryview(body)
        while rest:
            written = os.write(descriptor, rest[:PIECE_BYTES])
            os.fsync(descriptor)
            rest = rest[written:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
