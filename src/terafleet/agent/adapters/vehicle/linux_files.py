"""Reads the small files in which the kernel says something; what can't be read is None."""

import os

FILE_BYTES_MAX = 1 << 20
"""Far more than any of them has; `/proc/interrupts` of 500 processors is half of it."""
_PIECE_BYTES = 1 << 16
_DIGITS_MAX = 20


def read_text(path: str) -> str | None:
    """All that stands in a file, or None where there is none, no permission, or far too much."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = b""
        # The kernel gives some of these files a page at a time.
        while piece := os.read(descriptor, _PIECE_BYTES):
            found += piece
            if len(found) > FILE_BYTES_MAX:
                return None
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return found.decode("utf-8", "replace")


def read_word(path: str) -> str | None:
    """The text of a file without the white space around it."""
    text = read_text(path)
    return None if text is None else text.strip()


def read_whole(path: str) -> int | None:
    """The whole number that is all of a file."""
    return whole(read_text(path))


def whole(text: str | None) -> int | None:
    """The whole number that a text is, in decimal, or None."""
    digits = "" if text is None else text.strip()
    bare = digits.removeprefix("-")
    if not bare.isascii() or not bare.isdigit() or len(bare) > _DIGITS_MAX:
        return None
    return int(digits)


def names_in(folder: str) -> tuple[str, ...] | None:
    """The names in a folder, sorted, or None where it can't be listed."""
    try:
        return tuple(sorted(os.listdir(folder)))
    except OSError:
        return None
