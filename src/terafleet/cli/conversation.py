"""A conversation with a model at a terminal: reads lines, keeps what was said, knows commands."""

import contextlib
import sys
from typing import TYPE_CHECKING

import typer

from terafleet.cli.failure import show_failure
from terafleet.cli.output import note
from terafleet.sdk import Message, TerafleetError

if TYPE_CHECKING:
    from terafleet.cli.chat import Asked

ASK = "> "
COMMAND = "/"


def converse(asked: "Asked") -> None:
    """Answer what a person types until they have enough."""
    with contextlib.suppress(ImportError):
        # With it the keys that move the cursor and bring back lines work.
        import readline  # noqa: F401
    note(f"Talking with {asked.options.model}. Ctrl-C stops an answer, Ctrl-D ends.")
    if not asked.options.is_completion:
        note("/reset forgets what was said, /system TEXT says what the model shall be.")
    conversation = Conversation(asked)
    while conversation.is_open:
        try:
            line = _read_line()
        except EOFError:
            typer.echo(err=True)
            return
        except KeyboardInterrupt:
            typer.echo(err=True)
            continue
        except UnicodeDecodeError:
            note("That was not UTF-8 text.")
            continue
        conversation.take(line)


class Conversation:
    """What was said so far, and what a person can do with it."""

    def __init__(self, asked: "Asked") -> None:
        self._asked = asked
        self._system = asked.options.system
        self._said: list[Message] = []
        self.is_open = True

    def take(self, line: str) -> None:
        """Answer a line, or do what it commands."""
        if line.startswith(COMMAND):
            self._obey(line)
        elif line.strip():
            self._answer(line)

    def _obey(self, line: str) -> None:
        command, _, rest = line.strip().partition(" ")
        is_chat = not self._asked.options.is_completion
        match command:
            case "/quit":
                self.is_open = False
            case "/reset" if is_chat:
                self._said.clear()
                note("What was said is forgotten.")
            case "/system" if is_chat:
                self._system = rest.strip()
                note("The model is told so." if self._system else "The model is told nothing.")
            case _:
                known = "/reset, /system TEXT and /quit" if is_chat else "/quit"
                note(f"There is {known}. A line with a space before its / is said as it is.")

    def _answer(self, line: str) -> None:
        system = [Message("system", self._system)] if self._system else []
        said = [*self._said, Message("user", line)]
        answer = self._asked.answer([*system, *said])
        try:
            answer.show()
        except KeyboardInterrupt:
            note("Stopped.")
            if not answer.text:
                return
        except TerafleetError as error:
            # Nobody could tell later on what an answer that broke off would have been.
            show_failure(self._asked.failure(error))
            return
        self._said = [*said, Message("assistant", answer.text)]


def _read_line() -> str:
    """One line that a person types. Raises EOFError, KeyboardInterrupt, UnicodeDecodeError."""
    if sys.stdout.isatty():
        return input(ASK)
    # The answers go into a file, and the question is none of them.
    sys.stderr.write(ASK)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
