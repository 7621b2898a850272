"""How a command fails, and how that is told: what went wrong, its code, and what to do."""

import contextlib
import errno
import sys
from collections.abc import Iterator


class CommandFailed(Exception):
    """A command can't do what it was asked; it ends with exit code 1.

    `message` is a sentence for a person, `code` its stable name, `advice` what to do, or empty.
    """

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(code, message, advice)
        self.code = code
        self.message = message
        self.advice = advice


def show_failure(failure: CommandFailed) -> None:
    """Tell a failure on stderr."""
    sys.stderr.write(f"error: {printable(failure.message)} ({printable(failure.code)})\n")
    if failure.advice:
        sys.stderr.write(f"       {printable(failure.advice)}\n")


def printable(text: str) -> str:
    """A foreign text on one line, without what would move the cursor or hide other text."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


@contextlib.contextmanager
def files_mapped() -> Iterator[None]:
    """Files of this computer that can't be read or written become CommandFailed."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            # Whoever read our output has enough of it; that is no fault of a file.
            raise
        cause = error.strerror or type(error).__name__
        where = f"{error.filename}: " if error.filename else ""
        raise CommandFailed("file_unusable", f"{where}{cause}.") from error


@contextlib.contextmanager
def extra_needed(extra: str) -> Iterator[None]:
    """A library that is missing becomes CommandFailed that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"This needs {error.name}, which is not installed."
        advice = f"Install it with: pip install 'terafleet[{extra}]'"
        raise CommandFailed("extra_missing", message, advice) from error
