"""Reads of a GGUF file what streaming needs and llama.cpp doesn't tell: template, pieces of bytes.

The file was checked when it came; this reads it again, strictly, inside the walls.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from terafleet.agent.runtime_host.fragments import Fragments
from terafleet.agent.runtime_host.models import ModelFailed
from terafleet.core.reasons import Failure
from terafleet.protocol.model_files.gguf import (
    ARRAY_STRING_BYTES_MAX,
    HEADER_BYTES_MAX,
    KEY_BYTES_MAX,
    STRING_BYTES_MAX,
)
from terafleet.protocol.model_files.reader import BoundedReader
from terafleet.protocol.model_files.refusal import ModelFileReason, ParseRefused

_TEMPLATE: Final = "tokenizer.chat_template"
_TOKENIZER: Final = "tokenizer.ggml.model"
_TOKENS: Final = "tokenizer.ggml.tokens"
_FIRST_TOKEN: Final = "tokenizer.ggml.bos_token_id"

# Types of values and their sizes in bytes, from the GGUF specification.
_STRING, _ARRAY = 8, 9
_SCALAR_BYTES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAGIC_AND_VERSION_BYTES = 8

# How the two kinds of tokenizers spell bytes: as a number, or as a printable character each.
_SENTENCEPIECE, _BYTE_PAIRS = "llama", "gpt2"
_BYTE_TOKEN: Final = re.compile(rb"<0x([0-9A-F]{2})>")


class GgufFacts(msgspec.Struct, frozen=True):
    """What the file says: the chat template if it has one, and the first token of all texts.

    `fragments` are the tokens that are not whole characters, as far as the tokenizer is known.
    """

    template: str | None
    first_text: str
    fragments: Fragments


class _Found(msgspec.Struct):
    """What has been read so far."""

    template: str | None = None
    tokenizer: str = ""
    first_token: int = -1
    tokens: list[bytes] = []


def read_gguf_facts(path: Path) -> GgufFacts:
    """Read the header of a GGUF file. Raises ModelFailed."""
    found = _Found()
    try:
        with path.open("rb") as file:
            reader = BoundedReader(file, path.stat().st_size, HEADER_BYTES_MAX)
            reader.skip(_MAGIC_AND_VERSION_BYTES)
            _tensor_count, field_count = reader.u64(), reader.u64()
            for _ in range(field_count):
                _read_field(reader, found)
    except ParseRefused as error:
        raise ModelFailed(Failure.MODEL_UNAVAILABLE, error.refusal.detail) from error
    except OSError as error:
        raise ModelFailed(Failure.MODEL_UNAVAILABLE, str(error)) from error
    first = found.tokens[found.first_token] if 0 <= found.first_token < len(found.tokens) else b""
    spelled = _SPELLINGS.get(found.tokenizer, _none_spelled)(found.tokens)
    return GgufFacts(found.template, first.decode(errors="replace"), Fragments(dict(spelled)))


def _read_field(reader: BoundedReader, found: _Found) -> None:
    key = _string(reader, KEY_BYTES_MAX).decode(errors="replace")
    value_type = reader.u32()
    if value_type == _ARRAY:
        tokens = _array(reader, is_kept=key == _TOKENS)
        found.tokens = tokens or found.tokens
    elif value_type == _STRING:
        text = _string(reader, STRING_BYTES_MAX)
        if key == _TEMPLATE:
            found.template = text.decode(errors="replace")
        elif key == _TOKENIZER:
            found.tokenizer = text.decode(errors="replace")
    elif key == _FIRST_TOKEN:
        found.first_token = int.from_bytes(reader.take(_scalar_bytes(value_type)), "little")
    else:
        reader.skip(_scalar_bytes(value_type))


def _array(reader: BoundedReader, *, is_kept: bool) -> list[bytes]:
    element_type, count = reader.u32(), reader.u64()
    if element_type != _STRING:
        reader.skip(count * _scalar_bytes(element_type))
    elif is_kept:
        return [_string(reader, ARRAY_STRING_BYTES_MAX) for _ in range(count)]
    else:
        reader.skip_strings(count, ARRAY_STRING_BYTES_MAX)
    return []


def _string(reader: BoundedReader, length_max: int) -> bytes:
    length = reader.u64()
    if length > length_max:
        detail = f"a text of {length} bytes, more than {length_max}"
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
    return reader.take(length)


def _scalar_bytes(value_type: int) -> int:
    if value_type not in _SCALAR_BYTES:
        raise ParseRefused(ModelFileReason.WRONG_TYPE, f"a value of the type {value_type}")
    return _SCALAR_BYTES[value_type]


def _none_spelled(_tokens: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Other tokenizers have whole characters only."""
    return iter(())


def _bytes_of_numbers(tokens: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Such as `<0xE2>`."""
    for token_id, token in enumerate(tokens):
        if len(token) == len("<0x00>") and (number := _BYTE_TOKEN.fullmatch(token)):
            yield token_id, bytes.fromhex(number[1].decode())


def _bytes_of_characters(tokens: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Each byte stands as a character of its own, which is itself where it can be printed."""
    table = _printed_bytes()
    for token_id, token in enumerate(tokens):
        # Of printable ASCII, which stands for itself, only single characters are fragments.
        if len(token) > 1 and token.isascii():
            continue
        try:
            spelled = bytes([table[character] for character in token.decode()])
        except (KeyError, UnicodeDecodeError):
            continue
        if len(spelled) == 1 or not _is_text(spelled):
            yield token_id, spelled


def _printed_bytes() -> dict[str, int]:
    """The table of GPT-2's tokenizer: bytes that can't be printed come behind the first 256."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    table = {chr(byte): byte for byte in printed}
    return table | {chr(0x100 + position): byte for position, byte in enumerate(others)}


def _is_text(spelled: bytes) -> bool:
    try:
        spelled.decode()
    except UnicodeDecodeError:
        return False
    return True


_SPELLINGS: Final = {_SENTENCEPIECE: _bytes_of_numbers, _BYTE_PAIRS: _bytes_of_characters}
