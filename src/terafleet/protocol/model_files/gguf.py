"""Decides whether a GGUF file is well formed, from its header alone.

Layout and limits follow the GGUF specification of the ggml project; where llama.cpp is stricter
than the specification (order of tensors, no nested arrays, length of names), so is this.
"""

import re
import struct
from enum import StrEnum
from math import prod
from typing import BinaryIO

import msgspec

from terafleet.protocol.model_files.reader import BoundedReader
from terafleet.protocol.model_files.refusal import (
    ModelFileReason,
    ModelFileRefused,
    ParseRefused,
    checked_name,
    decoded,
    quoted,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_BYTES_MAX = 128 * 1024 * 1024
FIELDS_MAX = 4096
TENSORS_MAX = 65_536
KEY_BYTES_MAX = 1024
STRING_BYTES_MAX = 4 * 1024 * 1024
ARRAY_STRING_BYTES_MAX = 64 * 1024
# The largest vocabularies have 262,144 tokens and twice as many merges.
ARRAY_ELEMENTS_MAX = 4_000_000
ARRAY_STRINGS_MAX = 2_000_000
TENSOR_NAME_BYTES_MAX = 63
DIMENSIONS_MAX = 4
ALIGNMENT_DEFAULT = 32
ALIGNMENTS = frozenset({8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096})
FIGURE_MAX = 2**31 - 1
NAME_CHARACTERS_MAX = 256
# Of a text, which may be a licence or a template, only the beginning is kept.
KEPT_CHARACTERS_MAX = 1024

_BOOL = 7
_STRING = 8
_ARRAY = 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32 = 4

# Number of a ggml type: (elements in a block, bytes of a block), from ggml's type table. Types
# that ggml has removed (4, 5, 31 to 33, 36 to 38) are unknown here.
TENSOR_TYPES = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 40),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}

_KEY = re.compile(r"[!-~]+")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class GgufPooling(StrEnum):
    """How an encoder makes one vector of many; the order is that of the numbers in the file."""

    NONE = "none"
    MEAN = "mean"
    CLASSIFIER = "classifier"
    LAST = "last"
    RANK = "rank"


_POOLINGS = tuple(GgufPooling)


class GgufHeader(msgspec.Struct, frozen=True):
    """What the header of an accepted GGUF file says; `None` where it says nothing.

    `name` is also `None` when it is not printable or longer than 256 characters. `tensor_bytes`
    counts weights without the padding between them, `parameters` their elements.
    """

    version: int
    architecture: str
    name: str | None
    context_length: int | None
    embedding_length: int | None
    block_count: int | None
    vocabulary_size: int | None
    has_chat_template: bool
    pooling: GgufPooling | None
    alignment: int
    tensor_count: int
    tensor_bytes: int
    parameters: int


class _Array(msgspec.Struct, frozen=True):
    """An array of the header that was passed without being kept."""

    element_count: int


_Value = int | float | bool | str | _Array


class _Fields:
    """The key/value section, read as a whole, and the questions put to it."""

    def __init__(self, reader: BoundedReader, field_count: int) -> None:
        self._reader = reader
        self._values: dict[str, _Value] = {}
        self._types: dict[str, int] = {}
        self._array_strings = 0
        for _ in range(field_count):
            self._read_field()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str) -> str | None:
        """The string under `key` or its beginning, `None` when there is none."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise ParseRefused(ModelFileReason.WRONG_TYPE, f"{key} is not a string")
        return value

    def integer(self, key: str) -> int | None:
        """The integer under `key`, `None` when there is none."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise ParseRefused(ModelFileReason.WRONG_TYPE, f"{key} is not an integer")
        if not 0 <= value <= FIGURE_MAX:
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, f"{key} is {value}")
        return value

    def element_count(self, key: str) -> int | None:
        """How many elements the array under `key` has, `None` when there is none."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, _Array):
            raise ParseRefused(ModelFileReason.WRONG_TYPE, f"{key} is not an array")
        return value.element_count

    def alignment(self) -> int:
        """The alignment of tensors, in bytes."""
        key = "general.alignment"
        if key not in self:
            return ALIGNMENT_DEFAULT
        if self._types[key] != _UINT32:
            raise ParseRefused(ModelFileReason.WRONG_TYPE, f"{key} is not a 32-bit integer")
        alignment = self.integer(key)
        if alignment not in ALIGNMENTS:
            detail = f"an alignment of {alignment} is not a power of two from 8 to 4096"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
        return alignment

    def _read_field(self) -> None:
        key = _read_text(self._reader, KEY_BYTES_MAX, "a key")
        if not _KEY.fullmatch(key):
            raise ParseRefused(ModelFileReason.UNSAFE_NAME, f"a key is {quoted(key)}")
        if key in self._values:
            raise ParseRefused(ModelFileReason.DUPLICATE_NAME, f"the key {quoted(key)} comes twice")
        value_type = self._reader.u32()
        self._types[key] = value_type
        self._values[key] = self._read_value(value_type, key)

    def _read_value(self, value_type: int, key: str) -> _Value:
        if value_type == _STRING:
            text = _read_text(self._reader, STRING_BYTES_MAX, f"the value of {quoted(key)}")
            return text[:KEPT_CHARACTERS_MAX]
        if value_type == _ARRAY:
            return self._read_array(key)
        scalar = _SCALARS.get(value_type)
        if scalar is None:
            detail = f"the value of {quoted(key)} has the unknown type {value_type}"
            raise ParseRefused(ModelFileReason.WRONG_TYPE, detail)
        value: int | float = scalar.unpack(self._reader.take(scalar.size))[0]
        if value_type != _BOOL:
            return value
        if value not in (0, 1):
            detail = f"the truth value of {quoted(key)} is {value}"
            raise ParseRefused(ModelFileReason.MALFORMED, detail)
        return value == 1

    def _read_array(self, key: str) -> _Array:
        element_type, count = self._reader.u32(), self._reader.u64()
        if count > ARRAY_ELEMENTS_MAX:
            detail = f"the array {quoted(key)} has {count} elements, more than {ARRAY_ELEMENTS_MAX}"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
        if element_type == _ARRAY:
            raise ParseRefused(ModelFileReason.TOO_DEEP, f"the array {quoted(key)} holds arrays")
        if element_type == _STRING:
            # Tokens may be bytes that are no text, so they are measured and not decoded.
            self._array_strings += count
            if self._array_strings > ARRAY_STRINGS_MAX:
                detail = f"arrays hold more than {ARRAY_STRINGS_MAX} strings"
                raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
            self._reader.skip_strings(count, ARRAY_STRING_BYTES_MAX)
        elif element_type in _SCALARS:
            self._reader.skip(count * _SCALARS[element_type].size)
        else:
            detail = f"the array {quoted(key)} has elements of the unknown type {element_type}"
            raise ParseRefused(ModelFileReason.WRONG_TYPE, detail)
        return _Array(count)


class _Tensors:
    """The table of tensors, read and checked in order."""

    def __init__(self, reader: BoundedReader, alignment: int) -> None:
        self._reader = reader
        self._alignment = alignment
        self._names: set[str] = set()
        self._end = 0
        self.tensor_bytes = 0
        self.parameters = 0

    def read_table(self, tensor_count: int) -> None:
        """Reads `tensor_count` entries, then checks that their data fill the file."""
        for _ in range(tensor_count):
            self._read_entry()
        data_start = _padded(self._reader.position, self._alignment)
        file_bytes = self._reader.size_bytes
        if data_start + self._end > file_bytes:
            detail = f"tensors end at byte {data_start + self._end}, the file at byte {file_bytes}"
            raise ParseRefused(ModelFileReason.OUT_OF_BOUNDS, detail)
        if data_start + _padded(self._end, self._alignment) < file_bytes:
            detail = f"tensors end at byte {data_start + self._end}, the file goes on"
            raise ParseRefused(ModelFileReason.TRAILING_DATA, detail)

    def _read_entry(self) -> None:
        reader = self._reader
        name = checked_name(_read_text(reader, TENSOR_NAME_BYTES_MAX, "a tensor name"), "a tensor")
        if name in self._names:
            detail = f"the tensor {quoted(name)} comes twice"
            raise ParseRefused(ModelFileReason.DUPLICATE_NAME, detail)
        self._names.add(name)
        dimension_count = reader.u32()
        if not 1 <= dimension_count <= DIMENSIONS_MAX:
            detail = f"the tensor {quoted(name)} has {dimension_count} dimensions"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
        dimensions = [reader.u64() for _ in range(dimension_count)]
        size_bytes = _tensor_bytes(name, dimensions, reader.u32())
        self._place(name, reader.u64(), size_bytes)
        self.tensor_bytes += size_bytes
        self.parameters += prod(dimensions)

    def _place(self, name: str, offset: int, size_bytes: int) -> None:
        """Checks that the tensor begins where the one before it ended, rounded up."""
        expected = _padded(self._end, self._alignment)
        where = f"the tensor {quoted(name)} begins at byte {offset} of the data"
        if offset % self._alignment:
            detail = f"{where}, no multiple of {self._alignment}"
            raise ParseRefused(ModelFileReason.MISALIGNED_TENSOR, detail)
        if offset + size_bytes > self._reader.size_bytes:
            detail = f"{where} and ends behind the file"
            raise ParseRefused(ModelFileReason.OUT_OF_BOUNDS, detail)
        if offset < expected:
            detail = f"{where}, inside another one"
            raise ParseRefused(ModelFileReason.OVERLAPPING_TENSORS, detail)
        if offset > expected:
            detail = f"{where}, {offset - expected} bytes after the one before it"
            raise ParseRefused(ModelFileReason.HOLE_BETWEEN_TENSORS, detail)
        self._end = offset + size_bytes


def check_gguf(file: BinaryIO, size_bytes: int) -> GgufHeader | ModelFileRefused:
    """The header of the GGUF `file` of `size_bytes` bytes, or why it is refused.

    Reads at most 128 MiB and only the header. Raises nothing for any content.
    """
    try:
        return _read_header(BoundedReader(file, size_bytes, HEADER_BYTES_MAX))
    except ParseRefused as error:
        return error.refusal


def _read_header(reader: BoundedReader) -> GgufHeader:
    if reader.take(len(MAGIC)) != MAGIC:
        raise ParseRefused(ModelFileReason.BAD_MAGIC, "the file does not begin with GGUF")
    version = reader.u32()
    if version not in VERSIONS:
        # A big-endian file shows its version in the high bytes and is refused here as well.
        detail = f"GGUF version {version:#x} is not 2 or 3, little-endian"
        raise ParseRefused(ModelFileReason.UNSUPPORTED_VERSION, detail)
    tensor_count, field_count = reader.u64(), reader.u64()
    if tensor_count > TENSORS_MAX or field_count > FIELDS_MAX:
        detail = f"the header announces {tensor_count} tensors and {field_count} fields"
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
    if tensor_count == 0:
        raise ParseRefused(ModelFileReason.EMPTY_MODEL, "the file has no tensors")
    fields = _Fields(reader, field_count)
    architecture = fields.text("general.architecture")
    if architecture is None:
        raise ParseRefused(ModelFileReason.MISSING_FIELD, "general.architecture is missing")
    if not _ARCHITECTURE.fullmatch(architecture):
        detail = f"the architecture is {quoted(architecture)}"
        raise ParseRefused(ModelFileReason.UNSAFE_NAME, detail)
    if (fields.integer("split.count") or 0) > 1:
        # The runtime would open further files beside this one.
        detail = "the model is split over several files; merge it with llama-gguf-split --merge"
        raise ParseRefused(ModelFileReason.EXTERNAL_DATA, detail)
    alignment = fields.alignment()
    tensors = _Tensors(reader, alignment)
    tensors.read_table(tensor_count)
    return GgufHeader(
        version=version,
        architecture=architecture,
        name=_shown_name(fields.text("general.name")),
        context_length=fields.integer(f"{architecture}.context_length"),
        embedding_length=fields.integer(f"{architecture}.embedding_length"),
        block_count=fields.integer(f"{architecture}.block_count"),
        vocabulary_size=_vocabulary_size(fields, architecture),
        has_chat_template=fields.text("tokenizer.chat_template") is not None,
        pooling=_pooling(fields.integer(f"{architecture}.pooling_type")),
        alignment=alignment,
        tensor_count=tensor_count,
        tensor_bytes=tensors.tensor_bytes,
        parameters=tensors.parameters,
    )


def _read_text(reader: BoundedReader, length_max: int, what: str) -> str:
    length = reader.u64()
    if length > length_max:
        detail = f"{what} has {length} bytes, more than {length_max}"
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
    return decoded(reader.take(length), what)


def _tensor_bytes(name: str, dimensions: list[int], tensor_type: int) -> int:
    if tensor_type not in TENSOR_TYPES:
        detail = f"the tensor {quoted(name)} has the unknown type {tensor_type}"
        raise ParseRefused(ModelFileReason.UNKNOWN_TENSOR_TYPE, detail)
    block_elements, block_bytes = TENSOR_TYPES[tensor_type]
    if 0 in dimensions or dimensions[0] % block_elements:
        detail = (
            f"the tensor {quoted(name)} has the shape {dimensions},"
            f" its rows must be full blocks of {block_elements} elements"
        )
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
    return prod(dimensions) // block_elements * block_bytes


def _padded(size_bytes: int, alignment: int) -> int:
    return -(-size_bytes // alignment) * alignment


def _shown_name(name: str | None) -> str | None:
    if name is None or not name.isprintable() or len(name) > NAME_CHARACTERS_MAX:
        return None
    return name


def _vocabulary_size(fields: _Fields, architecture: str) -> int | None:
    token_count = fields.element_count("tokenizer.ggml.tokens")
    if token_count is not None:
        return token_count
    return fields.integer(f"{architecture}.vocab_size")


def _pooling(number: int | None) -> GgufPooling | None:
    if number is None:
        return None
    if number >= len(_POOLINGS):
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, f"the pooling type is {number}")
    return _POOLINGS[number]
