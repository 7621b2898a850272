"""The names that core and protocol define use the words of GLOSSARY.md and no others for them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy.source_files import ROOT, name_of, python_files

Synonyms = dict[tuple[str, ...], str]


def glossary_rows(page: str) -> list[tuple[str, str]]:
    """The columns `word` and `not` of the page's table."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return [(word, refused) for word, _, refused in rows]


def glossary_synonyms(page: str) -> Synonyms:
    """The words that the page refuses, each with the word to say instead.

    A refused word with a remark in brackets is kept for another meaning, which only a reader can
    tell apart; a word of the left column is right somewhere.
    """
    rows = glossary_rows(page)
    right = {word for entry, _ in rows for word in words_of(entry)}
    return {
        synonym: word
        for word, refused in rows
        for entry in re.split(r"[,;]\s*(?![^(]*\))", refused)
        if "(" not in entry
        if (synonym := words_of(entry))
        if not right.issuperset(synonym)
    }


def words_of(name: str) -> tuple[str, ...]:
    """The words of an identifier or a phrase: `WorkUnit`, `work_unit` and `WORK_UNIT` are equal."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return tuple(word.lower() for word in words)


def defined_names(tree: ast.AST) -> Iterator[str]:
    """The names that a module chooses itself; those of other libraries are not its choice."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr
            case ast.alias(asname=str(name)):
                yield name
            case _:
                continue


def glossary_faults(text: str, synonyms: Synonyms) -> list[str]:
    """The names in a Python text that the glossary refuses, each with what to say."""
    return [
        f"{name}: say {word!r}"
        for name in sorted(set(defined_names(ast.parse(text))))
        for synonym, word in synonyms.items()
        if says(words_of(name), synonym)
    ]


def says(words: tuple[str, ...], synonym: tuple[str, ...]) -> bool:
    """Whether a name contains a refused word or phrase, in the singular or plural."""
    plural = (*synonym[:-1], synonym[-1] + "s")
    width = len(synonym)
    return any(words[at : at + width] in (synonym, plural) for at in range(len(words) - width + 1))


def is_held(path: Path) -> bool:
    """Whether a file chooses its own words; the OpenAI API's names are given."""
    return not any(part.startswith("openai") for part in path.parts)


PAGE = (ROOT / "GLOSSARY.md").read_text("utf-8")
HELD = [p for p in python_files("src/terafleet/core", "src/terafleet/protocol") if is_held(p)]


@pytest.mark.parametrize("path", HELD, ids=name_of)
def test_names_are_words_of_the_glossary(path: Path) -> None:
    synonyms = glossary_synonyms(PAGE)
    assert glossary_faults(path.read_text("utf-8"), synonyms) == []
    assert not any(says(words_of(path.stem), synonym) for synonym in synonyms), path.stem


def test_the_page_refuses_what_it_should() -> None:
    synonyms = glossary_synonyms(PAGE)
    assert synonyms["host",] == "vehicle"
    assert synonyms["join", "token"] == "enrolment, enrolment code"
    assert ("session",) not in synonyms, "a word of the left column is right somewhere"
    assert ("telemetry",) not in synonyms, "a remark keeps it"
    assert len(synonyms) > 60


def test_every_row_names_a_word_once() -> None:
    words = [word for word, _ in glossary_rows(PAGE)]
    assert len(words) > 40
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("PEER_LEASE = 1", "PEER_LEASE: say 'vehicle'"),
        ("class HostRecord: ...", "HostRecord: say 'vehicle'"),
        ("def evict(): ...", "evict: say 'preempt'"),
        ("def place(jobs): ...", "jobs: say 'work unit'"),
        ("self.join_tokens = []", "join_tokens: say 'enrolment, enrolment code'"),
        ("for worker in vehicles: ...", "worker: say 'vehicle'"),
        ("import fleet as swarm", "swarm: say 'fleet'"),
        ("class A:\n task_id: int", "task_id: say 'work unit'"),
    ],
)
def test_a_planted_synonym_is_found(text: str, fault: str) -> None:
    assert glossary_faults(text, glossary_synonyms(PAGE)) == [fault]


def test_a_name_of_a_library_is_no_fault() -> None:
    text = "for vehicle in fleet.items():\n    record = vehicle.job.copy()\n"
    assert glossary_faults(text, glossary_synonyms(PAGE)) == []
