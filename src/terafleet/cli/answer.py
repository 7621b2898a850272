"""Shows one answer of a model as it comes, or tells of it in JSON once it is whole."""

import sys
import time
from collections.abc import Generator
from contextlib import closing
from typing import Final

import msgspec

from terafleet.cli.output import note, print_json
from terafleet.protocol.live_answers import Usage
from terafleet.sdk import Ended, Queued, Said, Text

NS_PER_MS: Final = 1_000_000
CUT_OFF: Final = "length"

_CONTROLS = (*range(32), *range(127, 160))
_SHOWN: Final = {code: "\N{REPLACEMENT CHARACTER}" for code in _CONTROLS if chr(code) not in "\n\t"}
"""What could move the cursor or hide other text; a model says whatever somebody made it say."""


class AnswerReport(msgspec.Struct, frozen=True):
    """An answer with its figures; times count from the question.

    `first_token_ms` is None for an answer without a word, `usage` and `moves` (on how many
    further cars it went on) where the control plane does not tell them.
    """

    model: str
    text: str
    finish_reason: str
    usage: Usage | None
    first_token_ms: int | None
    total_ms: int
    moves: int | None


class Answer:
    """One answer on its way; `text` is what has come of it so far."""

    def __init__(self, said: Generator[Said, None, None], model: str, is_json: bool) -> None:
        self._said = said
        self._model = model
        self._is_json = is_json
        self._parts: list[str] = []
        self._line_is_open = False
        self._wait_s = -1
        self._asked_ms = _now_ms()
        self._first_ms: int | None = None

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._parts)

    def show(self) -> None:
        """Show it to its end. Raises TerafleetError; the car stops when anything is raised."""
        with closing(self._said):
            try:
                for said in self._said:
                    self._take(said)
            finally:
                self._end_line()

    def _take(self, said: Said) -> None:
        match said:
            case Text():
                self._grow(said.text)
            case Queued():
                self._say_queued(said.wait_s)
            case Ended():
                self._end(said)

    def _grow(self, text: str) -> None:
        if self._first_ms is None:
            self._first_ms = _now_ms() - self._asked_ms
        self._parts.append(text)
        if not self._is_json:
            _write(text)
            self._line_is_open = not text.endswith("\n")

    def _say_queued(self, wait_s: int) -> None:
        if wait_s == self._wait_s:
            return
        self._wait_s = wait_s
        if self._line_is_open and sys.stdout.isatty():
            sys.stderr.write("\n")
        note(f"Queued, about {wait_s} s.")

    def _end(self, ended: Ended) -> None:
        total_ms = _now_ms() - self._asked_ms
        if self._is_json:
            parts = (self._model, self.text, ended.finish_reason, ended.usage)
            print_json(AnswerReport(*parts, self._first_ms, total_ms, ended.moves))
            return
        self._end_line()
        if ended.moves:
            times = "once" if ended.moves == 1 else f"{ended.moves} times"
            note(f"On its way the answer moved to another car {times}.")
        if ended.finish_reason == CUT_OFF:
            note("The answer is cut off: it has as many tokens as it may have.")

    def _end_line(self) -> None:
        if self._line_is_open:
            self._line_is_open = False
            _write("\n")


def _write(text: str) -> None:
    """Write a part of an answer at once; into a file it goes as it is."""
    shown = text.translate(_SHOWN) if sys.stdout.isatty() else text
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(shown.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _now_ms() -> int:
    return time.monotonic_ns() // NS_PER_MS
