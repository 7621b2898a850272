"""Names the tokens of a character that came in several, of which llama.cpp tells only the last."""

from collections.abc import Mapping
from typing import Final

# A character has four bytes at most (RFC 3629, section 3), and the last token is told.
_UNTOLD_MAX: Final = 3


class Fragments:
    """The tokens of a model that are bytes and not whole characters."""

    def __init__(self, bytes_of: Mapping[int, bytes]) -> None:
        """`bytes_of` has the bytes of each such token, and all tokens of one byte."""
        self._bytes_of = bytes_of
        self._tokens = {spelled: token for token, spelled in bytes_of.items()}
        self._longest = max(map(len, self._tokens), default=0)

    def tokens_of(self, text: str, last: int, untold: int) -> tuple[int, ...]:
        """The tokens of `text`: `untold` ones, and behind them the token `last`.

        Where the bytes of a character can be cut in several ways, the longest tokens are taken
        first. Where the bytes are not to be had any more, because they were no text and became
        replacement characters, the tokens are those of the text that the customer has.
        """
        spelled = text.encode(errors="replace")
        end = self._bytes_of.get(last, b"")
        if end and spelled.endswith(end) and untold <= _UNTOLD_MAX:
            begin = self._cut(spelled[: -len(end)], untold)
            if begin is not None:
                return (*begin, last)
        return self._spelled(spelled) or (last,)

    def _cut(self, spelled: bytes, count: int) -> tuple[int, ...] | None:
        """The bytes as so many tokens, if there is a way."""
        if not count:
            return None if spelled else ()
        # The others need a byte each.
        for length in range(min(self._longest, len(spelled) - count + 1), 0, -1):
            token = self._tokens.get(spelled[:length])
            rest = self._cut(spelled[length:], count - 1) if token is not None else None
            if token is not None and rest is not None:
                return (token, *rest)
        return None

    def _spelled(self, spelled: bytes) -> tuple[int, ...]:
        """The bytes as however many tokens, the longest first; none if one byte has no token."""
        tokens = []
        while spelled:
            for length in range(min(self._longest, len(spelled)), 0, -1):
                token = self._tokens.get(spelled[:length])
                if token is not None:
                    tokens.append(token)
                    spelled = spelled[length:]
                    break
            else:
                return ()
        return tuple(tokens)
