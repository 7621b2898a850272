"""Makes simple stories for children by chance, from the plots and the words beside this file.

A file of the grammar has sections. `[table NAME: SLOTS]` has a row a line, its columns parted by
bars. `[rule NAME]` has an alternative a line. `[plot NAME: TABLES]` has a line that says what it
is about, and then a paragraph a line; one row of each of its tables fills the slots. In a
sentence `{slot}` stands for what the slot holds (`{Slot}` with a large first letter), `<rule>`
for one of its alternatives, and `(one|other)` for one of two.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TypeVar

import msgspec

_FOLDER = Path(__file__).resolve().parent
_FILES = ("words.txt", "stories.txt")
_SECTION = re.compile(r"\[(table|rule|plot) (\w+)(?:: (.+))?\]")
_PART = re.compile(r"<(\w+)>|\(([^()]*)\)|\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_ABOUT = "about "

# What every story has, whatever its plot draws besides.
_CAST = ("home", "look", "parent", "friend_look", "friend_kind")
_GIRL = {"he": "she", "him": "her", "his": "her"}
_BOY = {"he": "he", "him": "him", "his": "his"}
_CHILDREN_SHARE = 0.6
_REQUEST_SHARE = 0.4

# The n-th alternative has the weight 1 / (n + 4): likely ones stand out, rare ones are seen.
_RANK_OFFSET = 4

_Slots = dict[str, str]
_Choice = TypeVar("_Choice")


class Table(msgspec.Struct, frozen=True):
    """Rows to draw from, and the slots that a row fills."""

    slots: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Plot(msgspec.Struct, frozen=True):
    """The paragraphs of one kind of story, and the tables that it draws a row of."""

    tables: tuple[str, ...]
    about: str
    paragraphs: tuple[str, ...]


class Grammar(msgspec.Struct, frozen=True):
    """All that stories are made of."""

    tables: dict[str, Table]
    rules: dict[str, tuple[str, ...]]
    plots: dict[str, Plot]


def read_grammar() -> Grammar:
    """The grammar of the files beside this one."""
    grammar = Grammar({}, {}, {})
    for file in _FILES:
        for kind, name, arguments, lines in _sections((_FOLDER / file).read_text("utf-8")):
            if kind == "table":
                rows = tuple(tuple(column.strip() for column in row.split("|")) for row in lines)
                assert all(len(row) == len(arguments) for row in rows), name
                grammar.tables[name] = Table(arguments, rows)
            elif kind == "rule":
                grammar.rules[name] = tuple(lines)
            else:
                assert lines[0].startswith(_ABOUT), name
                about = lines[0].removeprefix(_ABOUT)
                grammar.plots[name] = Plot(arguments, about, tuple(lines[1:]))
    return grammar


def stories(grammar: Grammar, seed: str) -> Iterator[str]:
    """Endless stories, the same for the same seed; some begin with a request for them."""
    chance = Random(seed)  # noqa: S311 - it makes stories, it guards nothing.
    while True:
        yield _Story(grammar, chance).text()


def _sections(text: str) -> Iterator[tuple[str, str, tuple[str, ...], list[str]]]:
    """The kind, name, arguments and lines of each section."""
    for block in re.split(r"\n(?=\[)", text):
        first, *lines = block.strip().splitlines()
        section = _SECTION.fullmatch(first)
        if section is not None:
            arguments = tuple((section[3] or "").split(", "))
            yield section[1], section[2], arguments, [line for line in lines if line]


class _Story:
    """One story in the making; it says no sentence of a rule twice."""

    def __init__(self, grammar: Grammar, chance: Random) -> None:
        self._grammar = grammar
        self._chance = chance
        self._said: set[str] = set()
        self._plot = grammar.plots[chance.choice(sorted(grammar.plots))]
        self._slots = self._cast()

    def text(self) -> str:
        """The story's paragraphs, each on a line of its own."""
        paragraphs = [self._expanded(paragraph) for paragraph in self._plot.paragraphs]
        story = "\n".join(paragraphs)
        if self._chance.random() < _REQUEST_SHARE:
            return f"{self._expanded('<request>')} {story}"
        return story

    def _cast(self) -> _Slots:
        """Who and what the story is about; the friend is of another kind than the hero."""
        while True:
            slots = self._hero()
            for table in (*_CAST, *self._plot.tables):
                slots |= self._row(table)
            slots["about"] = self._plot.about
            if slots["friend_kind"] not in (slots["kind"], slots.get("judge")):
                return slots

    def _hero(self) -> _Slots:
        is_girl, is_friend_girl = self._chance.choices((True, False), k=2)
        slots = dict(_GIRL if is_girl else _BOY)
        slots |= {
            f"friend_{key}": word for key, word in (_GIRL if is_friend_girl else _BOY).items()
        }
        slots |= self._row("girl" if is_girl else "boy")
        slots |= self._row("friend_girl" if is_friend_girl else "friend_boy")
        is_child = self._chance.random() < _CHILDREN_SHARE
        child = "girl" if is_girl else "boy"
        slots["kind"] = child if is_child else self._row("creature")["kind"]
        return slots

    def _row(self, table: str) -> _Slots:
        found = self._grammar.tables[table]
        return dict(zip(found.slots, self._pick(found.rows), strict=True))

    def _pick(self, choices: tuple[_Choice, ...]) -> _Choice:
        weights = [1 / (rank + _RANK_OFFSET) for rank in range(len(choices))]
        return self._chance.choices(choices, weights)[0]

    def _expanded(self, text: str) -> str:
        """The text with all its parts filled in, from the outside to the inside."""
        while _PART.search(text):
            text = _PART.sub(self._filled, text)
        return _ARTICLE.sub(r"\1n ", text)

    def _filled(self, part: re.Match[str]) -> str:
        rule: str | None = part[1]
        options: str | None = part[2]
        slot: str = part[3] or ""
        if rule is not None:
            fresh = tuple(one for one in self._grammar.rules[rule] if one not in self._said)
            sentence = self._pick(fresh)
            self._said.add(sentence)
            return sentence
        if options is not None:
            return self._pick(tuple(options.split("|")))
        word = self._slots[slot[0].lower() + slot[1:]]
        return word if slot[0].islower() else word[0].upper() + word[1:]
