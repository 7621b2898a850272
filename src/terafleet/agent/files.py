"""Small files that appear whole or not at all, readable by their owner only."""

import os
import secrets
import stat
from pathlib import Path

PRIVATE = 0o600


def replace_file(
    path: Path, body: bytes, is_durable: bool = True, *, keeps_owner: bool = False
) -> None:
    """Write `body` in the place of `path`, with mode 0600 from its first moment. Raises OSError.

    Without `is_durable` a power cut may leave the file empty; it spares the flash. What
    `keeps_owner` belongs to whom the file belonged before, or its folder, with the mode of before.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(beside, flags, PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            if keeps_owner:
                _keep_owner(file.fileno(), path)
            if is_durable:
                os.fsync(file.fileno())
        beside.replace(path)
        if is_durable:
            sync_folder(path.parent)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _keep_owner(descriptor: int, path: Path) -> None:
    """Whoever writes may be another than who reads it: the system's administrator, say."""
    is_there = path.exists()
    found = path.stat() if is_there else path.parent.stat()
    if found.st_uid != os.geteuid():
        os.fchown(descriptor, found.st_uid, found.st_gid)
    if is_there:
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))


def sync_folder(folder: Path) -> None:
    """Make names that were written into a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
