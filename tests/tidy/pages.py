"""The Markdown pages of the project, and what is code in them."""

import re
from collections.abc import Iterator

from tests.tidy.source_files import name_of, project_files

FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")


def pages() -> dict[str, str]:
    """The text of every page by its name."""
    files = (path for path in project_files() if path.suffix == ".md")
    return {name_of(path): path.read_text("utf-8") for path in files}


def prose(page: str) -> str:
    """The page without its code."""
    return SPAN.sub("", FENCE.sub("", page))


def fenced_lines(page: str) -> Iterator[str]:
    """The lines of the fenced blocks; a line that ends in a backslash goes on in the next."""
    for block in FENCE.findall(page):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip()


def code(page: str) -> list[str]:
    """The lines of the fenced blocks, and the code in the prose."""
    return [*fenced_lines(page), *SPAN.findall(FENCE.sub("", page))]
