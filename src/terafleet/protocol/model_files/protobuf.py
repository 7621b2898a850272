"""Walks protocol buffer messages along a schema, within limits, without keeping their bulk.

It is stricter than the encoding asks: fields that the schema doesn't know, groups, and single
fields that come twice are refused, because another reader may understand them differently.
"""

import re
from collections.abc import Callable, Mapping
from enum import Enum

import msgspec

from terafleet.protocol.model_files.reader import BoundedReader
from terafleet.protocol.model_files.refusal import ModelFileReason, ParseRefused, decoded

DEPTH_MAX = 40
FIELDS_MAX = 1_000_000
TAG_BYTES_MAX = 5
LENGTH_BYTES_MAX = 5
NUMBER_BYTES_MAX = 10
NUMBER_MAX = 2**64 - 1
# Packed numbers of variable length must be read to be counted, so their total is bounded.
PACKED_BYTES_MAX = 64 * 1024 * 1024
KEPT_NUMBERS_MAX = 64

_CHUNK_BYTES = 64 * 1024
_CONTINUED = bytes(range(0x80, 0x100))
_OVERLONG_NUMBER = re.compile(rb"[\x80-\xff]{9}[\x02-\xff]")

_WIRE_VARINT = 0
_WIRE_FIXED64 = 1
_WIRE_DELIMITED = 2
_WIRE_FIXED32 = 5


class Kind(Enum):
    """How a field is encoded."""

    NUMBER = _WIRE_VARINT
    FIXED64 = _WIRE_FIXED64
    FIXED32 = _WIRE_FIXED32
    TEXT = "text"
    BYTES = "bytes"
    MESSAGE = "message"


_FIXED_BYTES = {Kind.FIXED64: 8, Kind.FIXED32: 4}
_DELIMITED_KINDS = (Kind.TEXT, Kind.BYTES, Kind.MESSAGE)


class Field(msgspec.Struct, frozen=True):
    """One field of a schema.

    `kept` says whether its values are collected; `bytes_max` bounds a text; `message` names the
    schema of a message.
    """

    name: str
    kind: Kind
    repeated: bool = False
    kept: bool = False
    bytes_max: int = 0
    message: str = ""


Schema = Mapping[int, Field]


class Message(msgspec.Struct):
    """What was collected of one message.

    `values` are those of kept fields, for messages what the visitor returned; `counts` how many
    elements every field had; `sizes` how many bytes the delimited ones had, without their tags.
    """

    schema: str
    values: dict[str, list[object]]
    counts: dict[str, int]
    sizes: dict[str, int]

    def number(self, name: str) -> int | None:
        """The number in the single field `name`, `None` when it is absent."""
        value = self.values.get(name, [None])[0]
        assert value is None or isinstance(value, int)
        return value

    def numbers(self, name: str) -> list[int]:
        """The numbers in the repeated field `name`."""
        return [value for value in self.values.get(name, []) if isinstance(value, int)]

    def text(self, name: str) -> str:
        """The text in the single field `name`, empty when it is absent."""
        value = self.values.get(name, [""])[0]
        assert isinstance(value, str)
        return value

    def texts(self, name: str) -> list[str]:
        """The texts in the repeated field `name`."""
        return [value for value in self.values.get(name, []) if isinstance(value, str)]


class Walker:
    """Walks one file.

    `visit` is called with every message when it ends, inner ones first; what it returns becomes
    the value of the field that holds the message, if that field is kept.
    """

    def __init__(
        self,
        reader: BoundedReader,
        schemas: Mapping[str, Schema],
        visit: Callable[[Message], object],
    ) -> None:
        self._reader = reader
        self._schemas = schemas
        self._visit = visit
        self._field_count = 0
        self._packed_bytes = 0

    def walk(self, schema_name: str) -> object:
        """Walks the whole file as one message; returns what `visit` made of it."""
        return self._message(schema_name, self._reader.size_bytes, depth=0)

    def _message(self, schema_name: str, end: int, depth: int) -> object:
        if depth > DEPTH_MAX:
            detail = f"messages are nested more than {DEPTH_MAX} deep"
            raise ParseRefused(ModelFileReason.TOO_DEEP, detail)
        schema = self._schemas[schema_name]
        message = Message(schema_name, {}, {}, {})
        while self._reader.position < end:
            field, wire_type = read_tag(self._reader, schema_name, schema)
            self._count_field()
            if not field.repeated and field.name in message.counts:
                detail = f"{schema_name}.{field.name} comes twice"
                raise ParseRefused(ModelFileReason.MALFORMED, detail)
            if wire_type == _WIRE_DELIMITED:
                self._delimited(message, field, end, depth)
            else:
                self._scalar(message, field)
        if self._reader.position > end:
            detail = f"a field of {schema_name} runs over its end"
            raise ParseRefused(ModelFileReason.TRUNCATED, detail)
        return self._visit(message)

    def _count_field(self) -> None:
        self._field_count += 1
        if self._field_count > FIELDS_MAX:
            detail = f"the file has more than {FIELDS_MAX} fields"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)

    def _scalar(self, message: Message, field: Field) -> None:
        if field.kind is Kind.NUMBER:
            number = read_varint(self._reader, NUMBER_BYTES_MAX)
            if field.kept:
                _keep_number(message, field, number)
        else:
            self._reader.skip(_FIXED_BYTES[field.kind])
        _add(message.counts, field.name, 1)

    def _delimited(self, message: Message, field: Field, outer_end: int, depth: int) -> None:
        length = read_varint(self._reader, LENGTH_BYTES_MAX)
        end = self._reader.position + length
        if end > outer_end:
            detail = f"{message.schema}.{field.name} ends behind what holds it"
            raise ParseRefused(ModelFileReason.TRUNCATED, detail)
        _add(message.sizes, field.name, length)
        if field.kind not in _DELIMITED_KINDS:
            self._packed(message, field, end)
            return
        _add(message.counts, field.name, 1)
        value: object = None
        if field.kind is Kind.MESSAGE:
            value = self._message(field.message, end, depth + 1)
        elif field.kind is Kind.TEXT:
            value = self._text(f"{message.schema}.{field.name}", length, field.bytes_max)
        else:
            self._reader.skip(length)
        if field.kept:
            message.values.setdefault(field.name, []).append(value)

    def _text(self, what: str, length: int, bytes_max: int) -> str:
        if length > bytes_max:
            detail = f"{what} has {length} bytes, more than {bytes_max}"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
        return decoded(self._reader.take(length), what)

    def _packed(self, message: Message, field: Field, end: int) -> None:
        length = end - self._reader.position
        if field.kind is not Kind.NUMBER:
            element_bytes = _FIXED_BYTES[field.kind]
            if length % element_bytes:
                detail = f"{message.schema}.{field.name} has {length} bytes"
                raise ParseRefused(ModelFileReason.MALFORMED, detail)
            self._reader.skip(length)
            _add(message.counts, field.name, length // element_bytes)
        elif field.kept:
            while self._reader.position < end:
                _keep_number(message, field, read_varint(self._reader, NUMBER_BYTES_MAX))
                _add(message.counts, field.name, 1)
            if self._reader.position > end:
                detail = f"{message.schema}.{field.name} ends inside a number"
                raise ParseRefused(ModelFileReason.TRUNCATED, detail)
        else:
            _add(message.counts, field.name, self._count_packed_numbers(length))

    def _count_packed_numbers(self, length: int) -> int:
        """How many numbers of variable length fill the next `length` bytes exactly."""
        self._packed_bytes += length
        if self._packed_bytes > PACKED_BYTES_MAX:
            detail = f"over {PACKED_BYTES_MAX} bytes of packed numbers; store them as raw_data"
            raise ParseRefused(ModelFileReason.TOO_LARGE, detail)
        count, cut = 0, b""
        while length:
            chunk = self._reader.take(min(length, _CHUNK_BYTES))
            length -= len(chunk)
            numbers = cut + chunk
            if _OVERLONG_NUMBER.search(numbers):
                raise ParseRefused(ModelFileReason.MALFORMED, "a packed number is overlong")
            # A number ends with its only byte below 0x80.
            count += len(numbers.translate(None, _CONTINUED))
            cut = numbers[len(numbers.rstrip(_CONTINUED)) :]
        if cut:
            raise ParseRefused(ModelFileReason.TRUNCATED, "packed numbers end inside a number")
        return count


def read_tag(reader: BoundedReader, schema_name: str, schema: Schema) -> tuple[Field, int]:
    """The field of `schema` that comes next, and its wire type, which fits the field."""
    tag = read_varint(reader, TAG_BYTES_MAX)
    field, wire_type = schema.get(tag >> 3), tag & 7
    if field is None:
        detail = f"{schema_name} has the unknown or refused field {tag >> 3}"
        raise ParseRefused(ModelFileReason.UNKNOWN_FIELD, detail)
    if field.kind in _DELIMITED_KINDS:
        fits = wire_type == _WIRE_DELIMITED
    else:
        is_packed = field.repeated and wire_type == _WIRE_DELIMITED
        fits = is_packed or wire_type == field.kind.value
    if not fits:
        detail = f"{schema_name}.{field.name} has the wire type {wire_type}"
        raise ParseRefused(ModelFileReason.WRONG_TYPE, detail)
    return field, wire_type


def read_varint(reader: BoundedReader, bytes_max: int) -> int:
    """The next number of variable length, refused when longer than `bytes_max` or 64 bits."""
    number = 0
    for index in range(bytes_max):
        byte = reader.byte()
        number |= (byte & 0x7F) << (7 * index)
        if byte < _CONTINUED[0]:
            break
    else:
        raise ParseRefused(ModelFileReason.MALFORMED, "a number has too many bytes")
    if number > NUMBER_MAX:
        raise ParseRefused(ModelFileReason.MALFORMED, "a number has more than 64 bits")
    return number


def _keep_number(message: Message, field: Field, number: int) -> None:
    kept = message.values.setdefault(field.name, [])
    if len(kept) == KEPT_NUMBERS_MAX:
        detail = f"{message.schema}.{field.name} has more than {KEPT_NUMBERS_MAX} values"
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
    kept.append(number)


def _add(totals: dict[str, int], name: str, amount: int) -> None:
    totals[name] = totals.get(name, 0) + amount
