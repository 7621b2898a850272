"""Files, functions and lines stay small, and every module is named after what it does."""

import ast
from pathlib import Path, PurePosixPath

import pytest

from tests.tidy.source_files import name_of, python_files

LINES_PER_FILE = 500
LINES_PER_FUNCTION = 70
PARAMETERS = 6
COLUMNS = 100

# A room with such a name takes in everything and tells a stranger nothing.
HOMELESS = {"base", "common", "helper", "helpers", "manager", "misc", "shared", "util", "utils"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def size_faults(name: str, text: str) -> list[str]:
    """What is too large in a Python file, or has no home, in words."""
    lines = text.splitlines()
    faults = []
    if len(lines) > LINES_PER_FILE:
        faults.append(f"{len(lines)} lines: split this file")
    faults += [
        f"line {number}: {len(line)} columns"
        for number, line in enumerate(lines, 1)
        if len(line) > COLUMNS
    ]
    path = PurePosixPath(name)
    faults += [
        f"{part}: name it after what it does"
        for part in (*path.parent.parts, path.stem)
        if part in HOMELESS
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            faults += function_faults(node)
    return faults


def function_faults(function: Function) -> list[str]:
    """What is too large in one function, in words."""
    faults = []
    line_count = (function.end_lineno or function.lineno) - function.lineno + 1
    if line_count > LINES_PER_FUNCTION:
        faults.append(f"{function.name}: {line_count} lines")
    parameters = parameter_names(function.args)
    if len(parameters) > PARAMETERS:
        faults.append(f"{function.name}: {len(parameters)} parameters")
    return faults


def parameter_names(arguments: ast.arguments) -> list[str]:
    """The parameters that a caller has to think of."""
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    names = [argument.arg for argument in (*named, *starred)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


@pytest.mark.parametrize("path", python_files("src", "tests", "tools"), ids=name_of)
def test_sizes(path: Path) -> None:
    assert size_faults(name_of(path), path.read_text("utf-8")) == []


def test_what_just_fits_is_no_fault() -> None:
    body = "    pass\n" * (LINES_PER_FUNCTION - 1)
    comment = "#" * COLUMNS + "\n"
    text = f"def fits(self, a, b, c, d, e, f):\n{body}" + comment * 430
    assert len(text.splitlines()) == LINES_PER_FILE
    assert size_faults("src/terafleet/core/lease.py", text) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("src/long.py", "x = 1\n" * 501, "501 lines"),
        ("src/wide.py", "#" * 101 + "\n", "line 1: 101 columns"),
        ("src/terafleet/utils.py", "", "utils: name it"),
        ("src/terafleet/common/lease.py", "", "common: name it"),
        ("src/deep.py", "def deep():\n" + "    pass\n" * 70, "deep: 71 lines"),
        ("src/deep.py", "async def deep():\n" + "    pass\n" * 70, "deep: 71 lines"),
        ("src/many.py", "def many(a, b, c, d, e, f, g): ...\n", "many: 7 parameters"),
        ("src/many.py", "def many(a, b, c, d, e, *f, g): ...\n", "many: 7 parameters"),
        ("src/many.py", "class A:\n def many(self, a, b, c, d, e, f, *, g): ...", "many: 7"),
    ],
)
def test_a_planted_fault_is_found(name: str, text: str, fault: str) -> None:
    assert any(found.startswith(fault) for found in size_faults(name, text))
