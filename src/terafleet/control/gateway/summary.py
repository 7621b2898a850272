"""Looks at a batch's input file while it comes in: is it JSON Lines, and what do its lines ask for.

What it sees is kept with the file, so that a batch can be decided about at once.
"""

import msgspec

from terafleet.control.gateway.context import GatewayLimits
from terafleet.control.gateway.errors import ApiError
from terafleet.control.gateway.lines import RefusedLine, TakenLine, check_line
from terafleet.control.gateway.splitting import Line, LineSplitter

FIRST_LINES = 10
"""A file of which so many lines from the first on are no JSON objects is not JSON Lines."""

FIRST_BYTES = 64
"""How much of the first line is looked at to say what the file is instead."""

ENDPOINTS_KEPT = 8
"""Two different ones are one too many; a few more make the message useful."""

MODELS_MAX = 16
"""A file is read once for each of its models when it is cut."""

ERRORS_KEPT = 20
DUPLICATES_KEPT = 5


class EndpointSeen(msgspec.Struct, frozen=True):
    """An address that lines ask for, how many, and the first of them."""

    endpoint: str
    lines: int
    first_line: int


class ModelSeen(msgspec.Struct, frozen=True):
    """A name of a model that lines ask for, how many, and the first of them."""

    name: str
    lines: int
    first_line: int


class Duplicate(msgspec.Struct, frozen=True):
    """A custom_id that stands in two lines."""

    custom_id: str
    first_line: int
    second_line: int


class FileSummary(msgspec.Struct, frozen=True):
    """What was seen of an input file; stored as JSON in `FileRow.summary`.

    `requests` counts all lines that are not blank, `refused` those of them that can't be taken.
    `endpoints` and `models` are in the order of their first lines and hold only the first
    `ENDPOINTS_KEPT` and `MODELS_MAX + 1`; `errors` and `duplicates` hold only the first ones.
    """

    requests: int
    refused: int
    endpoints: tuple[EndpointSeen, ...]
    models: tuple[ModelSeen, ...]
    errors: tuple[RefusedLine, ...]
    duplicates: tuple[Duplicate, ...]


SUMMARY_DECODER = msgspec.json.Decoder(FileSummary)


class FileLook:
    """Takes the bytes of one file in pieces; raises ApiError as soon as the file can't be used."""

    def __init__(self, limits: GatewayLimits) -> None:
        """Begin at the first line."""
        self._limits = limits
        self._splitter = LineSplitter(limits.line_bytes_max)
        self._requests = 0
        self._refused = 0
        self._not_objects = 0
        self._first_text = b""
        self._line_of: dict[str, int] = {}
        self._endpoints: dict[str, tuple[int, int]] = {}
        self._models: dict[str, tuple[int, int]] = {}
        self._errors: list[RefusedLine] = []
        self._duplicates: list[Duplicate] = []

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes, about a millisecond for 64 KiB."""
        for line in self._splitter.feed(piece):
            self._look(line)

    def end(self) -> None:
        """There are no more bytes."""
        for line in self._splitter.end():
            self._look(line)
        if self._requests == 0:
            message = "The file has no lines; write one JSON object a line, one for each request."
            raise ApiError("empty_file", message, "file")
        if self._not_objects == self._requests:
            raise self._not_json_lines()

    @property
    def summary(self) -> FileSummary:
        """What was seen."""
        return FileSummary(
            requests=self._requests,
            refused=self._refused,
            endpoints=tuple(EndpointSeen(key, *seen) for key, seen in self._endpoints.items()),
            models=tuple(ModelSeen(key, *seen) for key, seen in self._models.items()),
            errors=tuple(self._errors),
            duplicates=tuple(self._duplicates),
        )

    def _look(self, line: Line) -> None:
        self._requests += 1
        if self._requests == 1:
            self._first_text = line.text[:FIRST_BYTES]
        if self._requests > self._limits.file_requests_max:
            message = (
                f"The file has more than {self._limits.file_requests_max} requests; "
                "split it into several batches."
            )
            raise ApiError("too_many_requests_in_file", message, "file")
        checked = check_line(line, self._limits.line_bytes_max)
        if isinstance(checked, RefusedLine):
            self._see_refused(checked, line)
        else:
            _count(self._models, checked.model, line.number, MODELS_MAX + 1)
        if checked.endpoint is not None:
            _count(self._endpoints, checked.endpoint, line.number, ENDPOINTS_KEPT)
        self._see_custom_id(checked)

    def _see_refused(self, refused: RefusedLine, line: Line) -> None:
        self._refused += 1
        if len(self._errors) < ERRORS_KEPT:
            self._errors.append(refused)
        is_long_object = refused.code == "line_too_long" and line.text.lstrip()[:1] == b"{"
        if refused.code in ("invalid_json_line", "line_too_long") and not is_long_object:
            self._not_objects += 1
        if self._requests == FIRST_LINES == self._not_objects:
            raise self._not_json_lines()

    def _see_custom_id(self, checked: TakenLine | RefusedLine) -> None:
        if checked.custom_id is None:
            return
        first_line = self._line_of.setdefault(checked.custom_id, checked.line_number)
        is_second = first_line != checked.line_number
        if is_second and len(self._duplicates) < DUPLICATES_KEPT:
            duplicate = Duplicate(checked.custom_id, first_line, checked.line_number)
            self._duplicates.append(duplicate)

    def _not_json_lines(self) -> ApiError:
        message = f"{_what_to_do(self._first_text)} {self._errors[0].message}"
        return ApiError("invalid_file", message, "file")


def _what_to_do(first_text: bytes) -> str:
    if first_text.lstrip().startswith(b"["):
        return (
            "The file is a JSON array; write each of its elements on a line of its own, "
            "without commas between the lines."
        )
    if not first_text.isascii() or b"\0" in first_text:
        return (
            "The file is binary, compressed or not in UTF-8; send plain text, JSON Lines in UTF-8."
        )
    return "The file is not JSON Lines; write each request as one JSON object on one line."


def _count(seen: dict[str, tuple[int, int]], key: str, line_number: int, keys_max: int) -> None:
    if key in seen:
        lines, first_line = seen[key]
        seen[key] = (lines + 1, first_line)
    elif len(seen) < keys_max:
        seen[key] = (1, line_number)
