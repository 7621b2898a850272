"""Cuts text into pieces of words and back, exactly as llama.cpp does for vocabularies of type SPM.

The pieces are found by byte-pair encoding (Sennrich and others, 2016): the pair that is most
frequent in the texts becomes a piece, again and again. The earlier a piece was found, the higher
its score; of two neighbours whose union is a piece, those with the highest score are joined first.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

UNKNOWN, BEGIN, END = 0, 1, 2
CONTROL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIRST_PIECE = len(CONTROL) + len(BYTES)

# SPM writes a space as this character and puts one before the text.
SPACE = "\u2581"
_NEWLINE = "\n"

# No piece holds letters and other characters at once, so units are cut one by one.
_UNIT = re.compile(rf"\n|{SPACE}?[A-Za-z]+|{SPACE}?[^A-Za-z{SPACE}\n]+|{SPACE}")


class Vocabulary:
    """Pieces by number; the first ones are control tokens and single bytes."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.tokens = (*CONTROL, *BYTES, *pieces)
        self._numbers = {
            piece: number for number, piece in enumerate(self.tokens) if number >= FIRST_PIECE
        }
        self._cuts: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def scores(self) -> list[float]:
        """The score of each token: pieces found earlier have higher ones."""
        return [0.0] * FIRST_PIECE + [-float(rank) for rank in range(len(self) - FIRST_PIECE)]

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, without those of its beginning and end."""
        units = _UNIT.findall(SPACE + text.replace(" ", SPACE))
        return [number for unit in units for number in self._cut(unit)]

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of tokens; control tokens have none."""
        text = b"".join(self._bytes(number) for number in numbers).decode("utf-8", "replace")
        return text.removeprefix(" ")

    def _bytes(self, number: int) -> bytes:
        if number < len(CONTROL):
            return b""
        if number < FIRST_PIECE:
            return bytes([number - len(CONTROL)])
        return self.tokens[number].replace(SPACE, " ").encode()

    def _cut(self, unit: str) -> tuple[int, ...]:
        if unit not in self._cuts:
            self._cuts[unit] = tuple(self._joined(list(unit)))
        return self._cuts[unit]

    def _joined(self, parts: list[str]) -> Iterator[int]:
        """Join the neighbours whose union was found first, the leftmost of equals."""
        while True:
            unions = [
                (self._numbers[left + right], at)
                for at, (left, right) in enumerate(pairwise(parts))
                if left + right in self._numbers
            ]
            if not unions:
                break
            _, at = min(unions)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        for part in parts:
            if part in self._numbers:
                yield self._numbers[part]
            else:
                yield from (len(CONTROL) + byte for byte in part.encode())


def find_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """A vocabulary of `size` tokens for `texts`.

    A unit counts with the root of its frequency, so that rare words have pieces as well.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_UNIT.findall(SPACE + text.replace(" ", SPACE)))
    del counts[_NEWLINE]
    letters = sorted({letter for unit in counts for letter in unit})
    cuts = {unit: list(unit) for unit in counts}
    pieces: list[str] = []
    while FIRST_PIECE + len(pieces) + len(letters) < size:
        pairs: defaultdict[tuple[str, str], float] = defaultdict(float)
        for unit, parts in cuts.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[unit] ** 0.5
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        pieces.append("".join(best))
        for unit, parts in cuts.items():
            cuts[unit] = _with_union(parts, best)
    return Vocabulary([*pieces, *letters])


def _with_union(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
