"""The small parts of a streamed text: what is held back, whose bytes a token is, chance."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.runtime_host.fragments import Fragments
from terafleet.agent.runtime_host.gguf_facts import read_gguf_facts
from terafleet.agent.runtime_host.held_text import Growth, HeldText
from terafleet.agent.runtime_host.live_requests import completion_logprobs, seed_at
from terafleet.agent.runtime_host.models import ModelFailed
from terafleet.core.reasons import Failure
from tests.contract.chain_model import (
    FIRST_BYTE_ID,
    byte_ids,
    chain_model,
    character_spelled,
    number_spelled,
)

LETTERS = st.text("abc", max_size=4)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def told_of(texts: Sequence[str], stops: Sequence[str], first: int = 0) -> list[Growth]:
    """The pieces of a text whose tokens are numbered from `first` on."""
    held = HeldText(stops)
    pieces = []
    for token, text in enumerate(texts, first):
        told = held.push(Growth((token,), text))
        if told is not None:
            pieces.append(told)
        if held.has_stopped:
            return pieces
    return [*pieces, held.flush()]


def right_text(texts: Sequence[str], stops: Sequence[str]) -> str:
    """The text up to the first stop that becomes whole."""
    whole = ""
    for text in texts:
        whole += text
        found = [whole.find(stop) for stop in stops if stop in whole]
        if found:
            return whole[: min(found)]
    return whole


def joined(pieces: Sequence[Growth]) -> str:
    """The text of pieces."""
    return "".join(piece.text for piece in pieces)


@given(st.lists(LETTERS, max_size=12), STOPS)
def test_a_text_ends_before_a_stop_and_loses_nothing_else(
    texts: list[str], stops: list[str]
) -> None:
    assert joined(told_of(texts, stops)) == right_text(texts, stops)


@given(st.lists(LETTERS, max_size=12), STOPS, st.integers(0, 12))
def test_a_text_goes_on_behind_any_piece(texts: list[str], stops: list[str], cut: int) -> None:
    pieces = told_of(texts, stops)
    begin, is_last = pieces[:cut], cut >= len(pieces)
    tokens = [token for piece in begin for token in piece.token_ids]
    assert tokens == list(range(len(tokens)))
    if not is_last:
        rest = told_of(texts[len(tokens) :], stops, first=len(tokens))
        assert joined(begin) + joined(rest) == joined(pieces)
        assert joined(begin) == "".join(texts[: len(tokens)])


@given(st.lists(LETTERS, max_size=12))
def test_without_stops_each_text_is_told_at_once(texts: list[str]) -> None:
    pieces = told_of(texts, [])
    assert [piece.text for piece in pieces[:-1]] == [text for text in texts if text]


def test_a_token_without_text_waits_for_the_next() -> None:
    held = HeldText([])
    assert held.push(Growth((1,), "")) is None
    assert held.push(Growth((2,), "a")) == Growth((1, 2), "a")
    assert held.push(Growth((3,), "")) is None
    assert held.flush() == Growth((3,), "")


def test_what_may_begin_a_stop_is_held_in_whole_tokens() -> None:
    held = HeldText(["stop", "top"])
    assert held.push(Growth((1,), "a")) == Growth((1,), "a")
    assert held.push(Growth((2,), "bs", ("p",))) is None
    assert held.push(Growth((3,), "t")) is None
    assert held.push(Growth((4,), "ay")) == Growth((2, 3, 4), "bstay", ("p",))
    assert held.push(Growth((5,), "xt")) is None
    told = held.push(Growth((6,), "op!"))
    assert (told, held.has_stopped) == (Growth((), "x"), True)


@pytest.mark.parametrize(
    ("text", "last", "untold", "tokens"),
    [
        ("é", 4, 1, (3, 4)),
        (" é", 4, 1, (5, 4)),
        # Of two ways to cut it, the one with the longer first token.
        (" é", 4, 2, (7, 3, 4)),
        ("aé", 4, 1, (3, 4)),
        # The bytes were no text: the tokens are those of what stands in their place.
        ("\ufffd(", 9, 1, (10, 11, 12)),
    ],
)
def test_untold_tokens_of_a_character_are_found(
    text: str, last: int, untold: int, tokens: tuple[int, ...]
) -> None:
    names = {3: b"\xc3", 4: b"\xa9", 5: b" \xc3", 6: b"a", 7: b" ", 10: b"\xef", 11: b"\xbf\xbd"}
    names[12] = b"("
    if text == "aé":
        tokens = (6, *tokens)
    assert Fragments(names).tokens_of(text, last, untold) == tokens


def test_a_vocabulary_without_bytes_tells_the_token_that_it_knows() -> None:
    assert Fragments({}).tokens_of("é", 4, 1) == (4,)


@pytest.mark.parametrize("untold", [4, 40])
def test_more_untold_tokens_than_a_character_has_are_not_searched(untold: int) -> None:
    names = {byte: bytes([byte]) for byte in range(256)} | {300: b"\xef\xbf", 301: b"\xbf\xbd"}
    text = "\ufffd" * untold
    assert Fragments(names).tokens_of(text, 0xBD, untold) == (300, 0xBD) * untold


def test_both_spellings_of_bytes_are_read(tmp_path: Path) -> None:
    chain = byte_ids("ab")
    numbers = chain_model(tmp_path / "a", "llama", number_spelled(["\u2581x"]), chain, "{{ x }}")
    facts = read_gguf_facts(numbers.folder / "model.gguf")
    assert (facts.template, facts.first_text) == ("{{ x }}", "<s>")
    assert facts.fragments.tokens_of("é", FIRST_BYTE_ID + 0xA9, 1) == tuple(byte_ids("é"))

    pieces = [b" \xf0\x9f", b"ab", "ü".encode()]
    characters = chain_model(tmp_path / "b", "gpt2", character_spelled(pieces), chain)
    facts = read_gguf_facts(characters.folder / "model.gguf")
    assert facts.template is None
    last = FIRST_BYTE_ID + 0x80
    tokens = (FIRST_BYTE_ID + 256, FIRST_BYTE_ID + 0x98, last)
    assert facts.fragments.tokens_of(" 😀", last, 2) == tokens


@pytest.mark.parametrize("length", [0, 10, 30, 200])
def test_a_file_that_is_cut_is_no_model(tmp_path: Path, length: int) -> None:
    whole = chain_model(tmp_path / "a", "llama", number_spelled([]), byte_ids("a"))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((whole.folder / "model.gguf").read_bytes()[:length])
    with pytest.raises(ModelFailed) as raised:
        read_gguf_facts(cut)
    assert raised.value.reason == Failure.MODEL_UNAVAILABLE


@given(st.integers(0, 2**32 - 2), st.integers(0, 10**6))
def test_a_seed_stays_what_llama_takes(seed: int, position: int) -> None:
    assert 0 <= seed_at(seed, position) < 2**32 - 1
    assert seed_at(seed, 0) == seed


def test_each_position_has_its_own_seed() -> None:
    assert len({seed_at(7, position) for position in range(1000)}) == 1000
    assert seed_at(7, 5) == seed_at(7, 5) != seed_at(8, 5)


def test_places_of_tokens_count_from_the_piece() -> None:
    entries = [
        {"token": " a", "logprob": -1.0, "top_logprobs": [{"token": " a", "logprob": -1.0}]},
        {"token": "b", "logprob": -2.0, "top_logprobs": []},
    ]
    assert completion_logprobs(entries, 0) == (
        b'{"text_offset":[0,2],"token_logprobs":[-1.0,-2.0],"tokens":[" a","b"],'
        b'"top_logprobs":null}'
    )
