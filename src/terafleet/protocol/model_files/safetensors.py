"""Decides whether a safetensors file is well formed, from its header alone.

The format: a 64-bit length, a JSON object of that length with name, type, shape and place of every
tensor, then the data, which the tensors fill without holes. Limits and types follow the reference
implementation; names that come twice are refused, which it doesn't do.
"""

from math import prod
from typing import Any, BinaryIO

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

LENGTH_BYTES = 8
# The limit of the format, and a stricter one that the largest published shards keep.
FORMAT_HEADER_BYTES_MAX = 100_000_000
HEADER_BYTES_MAX = 25_000_000
TENSORS_MAX = 100_000
METADATA_ENTRIES_MAX = 10_000
ENTRY_CHARACTERS_MAX = 4096
NAME_CHARACTERS_MAX = 1024
DIMENSIONS_MAX = 64
SIZE_BYTES_MAX = 2**63 - 1

# Bits of one element. Elements of less than a byte are packed.
TENSOR_TYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

_METADATA = "__metadata__"
_ENTRY_KEYS = frozenset({"dtype", "shape", "data_offsets"})
KEYS_MAX = TENSORS_MAX * (1 + len(_ENTRY_KEYS)) + METADATA_ENTRIES_MAX
_TEXT = msgspec.json.Decoder(str)
_SHAPE = msgspec.json.Decoder(list[int])
_OFFSETS = msgspec.json.Decoder(tuple[int, int])


class SafetensorsHeader(msgspec.Struct, frozen=True):
    """What the header of an accepted safetensors file says.

    `tensor_types` are the format's own names; `parameters` counts elements of all tensors.
    """

    tensor_types: frozenset[str]
    tensor_count: int
    tensor_bytes: int
    parameters: int


class _Key:
    """A key of a JSON object that equals no other, so that a key that comes twice is seen."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Tensor(msgspec.Struct, frozen=True):
    """One entry of the header; offsets are in bytes from the start of the data."""

    name: str
    tensor_type: str
    element_count: int
    start: int
    end: int


class _Objects:
    """Decodes JSON objects without losing a key, and counts keys over a whole header."""

    def __init__(self) -> None:
        self._key_count = 0
        self._decoder = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=self._key)

    def decode(self, text: str | msgspec.Raw, what: str) -> dict[str, msgspec.Raw]:
        """The members of the JSON object `text`, their values still encoded."""
        members: dict[str, msgspec.Raw] = {}
        for key, value in _decoded(self._decoder, text, what).items():
            if key.text in members:
                detail = f"{what} has {quoted(key.text)} twice"
                raise ParseRefused(ModelFileReason.DUPLICATE_NAME, detail)
            members[key.text] = value
        return members

    def _key(self, _type: type, text: str) -> _Key:
        self._key_count += 1
        if self._key_count > KEYS_MAX:
            detail = f"the header has more than {KEYS_MAX} keys"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
        return _Key(text)


def check_safetensors(
    file: BinaryIO, size_bytes: int, header_bytes_max: int = HEADER_BYTES_MAX
) -> SafetensorsHeader | ModelFileRefused:
    """The header of the safetensors `file` of `size_bytes` bytes, or why it is refused.

    Reads the header only, at most `header_bytes_max` bytes of it. Raises nothing for any content.
    """
    assert header_bytes_max <= FORMAT_HEADER_BYTES_MAX
    try:
        reader = BoundedReader(file, size_bytes, LENGTH_BYTES + header_bytes_max)
        return _read_header(reader, header_bytes_max)
    except ParseRefused as error:
        return error.refusal


def _read_header(reader: BoundedReader, header_bytes_max: int) -> SafetensorsHeader:
    header_bytes = reader.u64()
    if header_bytes > header_bytes_max:
        detail = f"the header has {header_bytes} bytes, more than {header_bytes_max}"
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
    text = decoded(reader.take(header_bytes), "the header")
    if not text.startswith("{"):
        raise ParseRefused(ModelFileReason.BAD_MAGIC, "the header does not begin with {")
    objects = _Objects()
    members = objects.decode(text, "the header")
    metadata = members.pop(_METADATA, None)
    if metadata is not None:
        _check_metadata(objects.decode(metadata, _METADATA))
    if not members:
        raise ParseRefused(ModelFileReason.EMPTY_MODEL, "the file has no tensors")
    if len(members) > TENSORS_MAX:
        detail = f"the header has {len(members)} tensors, more than {TENSORS_MAX}"
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
    tensors = [_tensor(objects, name, entry) for name, entry in members.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_places(tensors, reader.size_bytes - reader.position)
    return SafetensorsHeader(
        tensor_types=frozenset(tensor.tensor_type for tensor in tensors),
        tensor_count=len(tensors),
        tensor_bytes=tensors[-1].end,
        parameters=sum(tensor.element_count for tensor in tensors),
    )


def _check_metadata(metadata: dict[str, msgspec.Raw]) -> None:
    for key, value in metadata.items():
        _decoded(_TEXT, value, f"{_METADATA} {quoted(key)}")


def _tensor(objects: _Objects, name: str, entry: msgspec.Raw) -> _Tensor:
    what = f"the tensor {quoted(name)}"
    checked_name(name, "a tensor")
    if len(name) > NAME_CHARACTERS_MAX or len(entry) > ENTRY_CHARACTERS_MAX:
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, f"{what} has an absurdly long entry")
    members = objects.decode(entry, what)
    for key in members.keys() - _ENTRY_KEYS:
        raise ParseRefused(ModelFileReason.UNKNOWN_FIELD, f"{what} has the key {quoted(key)}")
    for key in _ENTRY_KEYS - members.keys():
        raise ParseRefused(ModelFileReason.MISSING_FIELD, f"{what} has no {key}")
    tensor_type = _decoded(_TEXT, members["dtype"], what)
    if tensor_type not in TENSOR_TYPE_BITS:
        detail = f"{what} has the unknown type {quoted(tensor_type)}"
        raise ParseRefused(ModelFileReason.UNKNOWN_TENSOR_TYPE, detail)
    shape = _decoded(_SHAPE, members["shape"], what)
    if len(shape) > DIMENSIONS_MAX or any(not 0 <= size <= SIZE_BYTES_MAX for size in shape):
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, f"{what} has an absurd shape")
    start, end = _decoded(_OFFSETS, members["data_offsets"], what)
    if not 0 <= start <= end <= SIZE_BYTES_MAX:
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, f"{what} lies from {start} to {end}")
    element_count = prod(shape)
    if element_count * TENSOR_TYPE_BITS[tensor_type] != (end - start) * 8:
        detail = f"{what} has {end - start} bytes, which its shape and type contradict"
        raise ParseRefused(ModelFileReason.SIZE_MISMATCH, detail)
    return _Tensor(name, tensor_type, element_count, start, end)


def _check_places(tensors: list[_Tensor], data_bytes: int) -> None:
    """Checks that `tensors`, in order of their places, fill exactly `data_bytes` bytes."""
    end = 0
    for tensor in tensors:
        where = f"the tensor {quoted(tensor.name)} lies from byte {tensor.start} to {tensor.end}"
        if tensor.end > data_bytes:
            detail = f"{where}, the data end at byte {data_bytes}"
            raise ParseRefused(ModelFileReason.OUT_OF_BOUNDS, detail)
        if tensor.start < end:
            detail = f"{where}, another one until byte {end}"
            raise ParseRefused(ModelFileReason.OVERLAPPING_TENSORS, detail)
        if tensor.start > end:
            detail = f"{where}, and nothing from byte {end}"
            raise ParseRefused(ModelFileReason.HOLE_BETWEEN_TENSORS, detail)
        end = tensor.end
    if end < data_bytes:
        detail = f"tensors have {end} bytes, and {data_bytes - end} follow"
        raise ParseRefused(ModelFileReason.TRAILING_DATA, detail)


def _decoded(decoder: msgspec.json.Decoder[Any], text: str | msgspec.Raw, what: str) -> Any:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise ParseRefused(ModelFileReason.WRONG_TYPE, f"{what}: {error}") from error
    except msgspec.DecodeError as error:
        raise ParseRefused(ModelFileReason.MALFORMED, f"{what}: {error}") from error
    except RecursionError as error:
        raise ParseRefused(ModelFileReason.TOO_DEEP, f"{what} is nested too deeply") from error
