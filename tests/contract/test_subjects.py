"""The grammar of subjects: what is well formed and what a pattern covers."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.bus.subjects import check_group, check_pattern, check_subject, covers

parts = st.sampled_from(["a", "b"])
subjects = st.lists(parts, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda middle, end: ".".join([*middle, *end]),
    st.lists(parts | st.just("*"), max_size=3),
    st.sampled_from([["a"], ["*"], [">"]]),
)
# Longer than any pattern above, so that what a `>` covers is told from what it doesn't.
ALL_SUBJECTS = [
    ".".join(chosen) for length in range(1, 7) for chosen in itertools.product("ab", repeat=length)
]


def means(pattern: str, subject: str) -> bool:
    """What NATS's documentation says in words, as a regular expression."""
    expression = re.escape(pattern).replace(r"\*", "[^.]+").replace(">", ".+")
    return re.fullmatch(expression, subject) is not None


@given(patterns, subjects)
def test_a_pattern_covers_the_subjects_that_it_means(pattern: str, subject: str) -> None:
    check_pattern(pattern)
    check_subject(subject)
    assert covers(pattern, subject) == means(pattern, subject)


@given(patterns, patterns)
def test_a_pattern_covers_another_whose_subjects_it_covers_all(pattern: str, other: str) -> None:
    if covers(pattern, other):
        assert all(covers(pattern, s) for s in ALL_SUBJECTS if covers(other, s))
    else:
        # "c" stands for a part that no pattern names.
        wide = [subject.replace("b", "c") for subject in ALL_SUBJECTS] + ALL_SUBJECTS
        assert any(covers(other, s) and not covers(pattern, s) for s in wide)


@pytest.mark.parametrize("text", ["a", "$SYS.x", "_INBOX.1", "v.0123-ab.up", "a=b", "!.~"])
def test_well_formed_subjects_are_taken(text: str) -> None:
    check_subject(text)
    check_pattern(text)


@given(st.text(max_size=8))
def test_what_is_taken_is_one_word_of_the_protocol(text: str) -> None:
    for check in (check_subject, check_pattern, check_group):
        try:
            check(text)
        except ValueError:
            continue
        assert text.split() == [text] or text == ""
        assert text.isascii()
        assert text.isprintable()
