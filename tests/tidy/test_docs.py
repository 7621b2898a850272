"""The files and the targets of make that the pages name exist."""

import re

import pytest

from tests.tidy.pages import code, pages, prose
from tests.tidy.source_files import ROOT

LINK = re.compile(r"\]\(([^()\s]+)\)")
PAGES = pages()
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def link_faults(name: str, page: str) -> list[str]:
    """The relative links of a page that lead nowhere."""
    folder = (ROOT / name).parent
    return [
        target
        for target in LINK.findall(prose(page))
        if not re.match(r"[a-z]+:|#", target)
        if not (folder / target.partition("#")[0]).exists()
    ]


def make_faults(page: str, makefile: str) -> list[str]:
    """The targets of make that a page names and the Makefile does not have."""
    known = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    commands = [re.match(r"(?:\$ )?make((?: +[a-z][a-z-]*)+)", line) for line in code(page)]
    named = [target for found in commands if found for target in found[1].split()]
    return [target for target in named if target not in known]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_what_exists(name: str) -> None:
    assert link_faults(name, PAGES[name]) == []
    assert make_faults(PAGES[name], MAKEFILE) == []


def test_planted_faults_are_found() -> None:
    page = """
[there](README.md) [nowhere](docs/no-such-page.md#part) [out](https://example.com/x)
Say `make no-such-target` or `make test`, but `[this](is-code.md)`.
```sh
make demo   # a comment
$ make nothing ARGS=x
```
"""
    assert link_faults("README.md", page) == ["docs/no-such-page.md#part"]
    assert make_faults(page, "test: check\n\tpytest\ndemo:\n") == ["nothing", "no-such-target"]
