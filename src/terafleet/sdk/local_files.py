"""Reads local files for sending, counts their bytes, and puts received ones in their place."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from terafleet.sdk.errors import FileChanged

CHUNK_BYTES = 256 * 1024

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes of all."""


def ignore_progress(_: int, __: int) -> None:
    """Tell nobody."""


def chunks_of(file: BinaryIO, size_bytes: int, progress: Progress) -> Iterator[bytes]:
    """The bytes of a file in pieces. Raises FileChanged unless it has `size_bytes`; OSError."""
    done_bytes = 0
    progress(0, size_bytes)
    while chunk := file.read(CHUNK_BYTES):
        done_bytes += len(chunk)
        if done_bytes > size_bytes:
            break
        yield chunk
        progress(done_bytes, size_bytes)
    if done_bytes != size_bytes:
        raise FileChanged("file_changed", "The file was changed while it was sent; send it again.")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when it is whole, and else not at all.

    Raises OSError. What `path` held before stays until then.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
