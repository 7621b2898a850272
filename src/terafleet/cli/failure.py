"""How a command fails, and how that is told: what went wrong, its code, and what to do."""

import sys


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
