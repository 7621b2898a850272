"""Small files that appear whole or not at all, readable by their owner only."""

import os
import secrets
from pathlib import Path

PRIVATE = 0o600


def replace_file(path: Path, body: bytes, is_durable: bool = True) -> None:
    """Write `body` in the place of `path`, with mode 0600 from its first moment. Raises OSError.

    Without `is_durable` a power cut may leave the file empty; it spares the flash.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(beside, flags, PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        beside.replace(path)
        if is_durable:
            sync_folder(path.parent)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make names that were written into a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
