"""Reads the texts of the demo: the docstrings of Python's standard library, a real English corpus
that every machine with Python carries."""

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec

TEXT_CHARACTERS_MIN = 20
"""Shorter docstrings say too little to be found by."""

LEFT_OUT = frozenset({"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"})


class Docstring(msgspec.Struct, frozen=True):
    """What a function, class or method of the standard library says of itself."""

    name: str
    text: str


def read_docstrings(root: Path | None = None) -> list[Docstring]:
    """All docstrings of the standard library, by source file and line; nothing is imported."""
    folder = root or Path(sysconfig.get_path("stdlib"))
    found: dict[str, Docstring] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if not LEFT_OUT.intersection(parts):
            for docstring in _docstrings_of(path, ".".join(parts).removesuffix(".__init__")):
                found.setdefault(docstring.name, docstring)
    return list(found.values())


def choose(docstrings: list[Docstring], count: int, seed: int) -> list[Docstring]:
    """`count` of them by chance, in their order."""
    if count >= len(docstrings):
        return docstrings
    chance = random.Random(seed)  # noqa: S311 - it chooses texts, it guards nothing.
    chosen = sorted(chance.sample(range(len(docstrings)), count))
    return [docstrings[index] for index in chosen]


def _docstrings_of(path: Path, module: str) -> Iterator[Docstring]:
    try:
        with warnings.catch_warnings():
            # Some files of the library test the compiler's warnings.
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _within(tree, module)


def _within(node: ast.AST, name: str) -> Iterator[Docstring]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}"
            text = ast.get_docstring(child)
            if text and len(text) >= TEXT_CHARACTERS_MIN:
                yield Docstring(inner, text)
            yield from _within(child, inner)


def batch_lines(docstrings: list[Docstring], model: str) -> Iterator[bytes]:
    """The lines of an OpenAI batch file that asks for their embeddings; `custom_id` is the name."""
    for docstring in docstrings:
        line = {
            "custom_id": docstring.name,
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": model, "input": docstring.text, "encoding_format": "base64"},
        }
        yield msgspec.json.encode(line) + b"\n"
