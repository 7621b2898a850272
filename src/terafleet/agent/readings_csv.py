"""Recorded readings as CSV: one row a sample, columns named as readings, nothing is missing.

A header begins a recording, and a file may hold several one after the other. Times are `at_ms`, or
`at_s` in seconds; they never go back within a file.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from terafleet.agent.readings_check import clean
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_S

FILE_BYTES_MAX = 64 * 1024 * 1024
LINE_BYTES_MAX = 1_024
AT_MS_MAX = 2**53 - 1
"""The largest time that programs which know no whole numbers, as spreadsheets, keep exact."""
AT_S_MAX = AT_MS_MAX // MS_PER_S
WHOLE = re.compile(r"-?[0-9]{1,16}")
FRACTION = re.compile(r"-?[0-9]{1,16}(\.[0-9]{1,16})?|nan|-?inf")
FRACTION_DIGITS = 3

COLUMNS = Readings.__struct_fields__
"""What a recording of ours has."""


Recorded = Generator[Readings, None, None]
"""Samples as they are read; closing it closes the file."""


class ReadingsRefused(Exception):
    """It holds no recorded readings; the text says what is wrong, and in which line."""


def encode_header() -> bytes:
    """The line that begins a recording."""
    return (",".join(COLUMNS) + "\n").encode()


def encode_row(readings: Readings) -> bytes:
    """One sample as a line, fractions to a thousandth. It must be one that `clean` has passed."""
    line = io.StringIO()
    cells = [_written(getattr(readings, name)) for name in COLUMNS]
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def _written(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.{FRACTION_DIGITS}f}".rstrip("0").rstrip(".")
    return str(value)


def read_readings(path: Path) -> Recorded:
    """The samples of a file, read while they are asked for. Raises ReadingsRefused.

    A last line that doesn't end was torn by a power cut, and is left out.
    """
    try:
        with path.open("rb") as file:
            yield from readings_of(_bounded(file, path), str(path))
    except OSError as error:
        raise ReadingsRefused(f"{path}: {error.strerror}") from error


def _bounded(file: io.BufferedReader, path: Path) -> Iterator[bytes]:
    taken = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        taken += len(line)
        if taken > FILE_BYTES_MAX:
            raise ReadingsRefused(f"{path}: it is larger than {FILE_BYTES_MAX} bytes")
        yield line


def readings_of(lines: Iterable[bytes], name: str) -> Recorded:
    """The samples of lines that each have their line end; `name` is told with what is wrong.

    Values that can't be true become missing. Raises ReadingsRefused.
    """
    columns: tuple[str, ...] = ()
    newest_ms = -1
    for number, line in enumerate(lines, start=1):
        place = f"{name}, line {number}"
        if not line.endswith(b"\n"):
            if len(line) > LINE_BYTES_MAX:
                raise ReadingsRefused(f"{place}: it is longer than {LINE_BYTES_MAX} bytes")
            break
        cells = _cells(line, place)
        if cells and cells[0] in TIMES:
            columns = _columns(cells, place)
            continue
        if not columns:
            raise ReadingsRefused(f"{place}: a header that begins with at_ms or at_s must be first")
        readings = _row(columns, cells, place)
        if readings.at_ms < newest_ms:
            raise ReadingsRefused(f"{place}: the times must not go back")
        newest_ms = readings.at_ms
        yield clean(readings)
    if not columns:
        raise ReadingsRefused(f"{name}: there is no header")


def _cells(line: bytes, place: str) -> list[str]:
    try:
        text = line.decode().removesuffix("\n").removesuffix("\r")
        rows = list(csv.reader([text], strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ReadingsRefused(f"{place}: {error}") from error
    return rows[0] if rows else []


def _columns(cells: list[str], place: str) -> tuple[str, ...]:
    unknown = [name for name in cells[1:] if name not in PARSERS or name in TIMES]
    if unknown:
        raise ReadingsRefused(f"{place}: no such reading: {', '.join(unknown)[:80]}")
    if len(set(cells)) < len(cells):
        raise ReadingsRefused(f"{place}: a reading is named twice")
    return tuple(cells)


def _row(columns: tuple[str, ...], cells: list[str], place: str) -> Readings:
    if len(cells) != len(columns):
        raise ReadingsRefused(f"{place}: {len(cells)} cells for {len(columns)} columns")
    values: dict[str, Any] = {}
    for name, cell in zip(columns, cells, strict=True):
        if cell == "" and name not in TIMES:
            continue
        try:
            values[name] = PARSERS[name](cell)
        except ValueError as error:
            raise ReadingsRefused(f"{place}: {name} can't be {cell[:40]!r}") from error
    if "at_s" in values:
        values["at_ms"] = values.pop("at_s")
    return Readings(**values)


def _flag(cell: str) -> bool:
    if cell not in ("true", "false"):
        raise ValueError
    return cell == "true"


def _whole(cell: str) -> int:
    if not WHOLE.fullmatch(cell):
        raise ValueError
    return int(cell)


def _fraction(cell: str) -> float:
    if not FRACTION.fullmatch(cell):
        raise ValueError
    return float(cell)


def _at_ms(cell: str) -> int:
    at_ms = _whole(cell)
    if not 0 <= at_ms <= AT_MS_MAX:
        raise ValueError
    return at_ms


def _at_s(cell: str) -> int:
    at_s = _fraction(cell)
    if not (math.isfinite(at_s) and 0 <= at_s <= AT_S_MAX):
        raise ValueError
    return round(at_s * MS_PER_S)


def _label(cell: str) -> str:
    return cell


TIMES: Mapping[str, Callable[[str], int]] = {"at_ms": _at_ms, "at_s": _at_s}


def _parser(name: str) -> Callable[[str], Any]:
    if name in TIMES:
        return TIMES[name]
    if name.startswith("is_"):
        return _flag
    if name == "place":
        return _label
    return _whole if name.endswith(("_ms", "_mw", "_mv")) else _fraction


PARSERS = {name: _parser(name) for name in ("at_s", *COLUMNS)}
