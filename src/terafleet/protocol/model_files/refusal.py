"""Why a model file is refused, and how a parser says so."""

from enum import StrEnum

import msgspec

_QUOTED_CHARACTERS_MAX = 64


class ModelFileReason(StrEnum):
    """Every reason for which a model file is refused."""

    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    TRAILING_DATA = "trailing_data"
    SIZE_MISMATCH = "size_mismatch"
    TOO_LARGE = "too_large"
    BAD_MAGIC = "bad_magic"
    UNSUPPORTED_VERSION = "unsupported_version"
    MALFORMED = "malformed"
    ABSURD_HEADER = "absurd_header"
    TOO_DEEP = "too_deep"
    BAD_TEXT = "bad_text"
    UNSAFE_NAME = "unsafe_name"
    DUPLICATE_NAME = "duplicate_name"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_TENSOR_TYPE = "unknown_tensor_type"
    MISALIGNED_TENSOR = "misaligned_tensor"
    OVERLAPPING_TENSORS = "overlapping_tensors"
    HOLE_BETWEEN_TENSORS = "hole_between_tensors"
    OUT_OF_BOUNDS = "out_of_bounds"
    EMPTY_MODEL = "empty_model"
    EXTERNAL_DATA = "external_data"
    CUSTOM_OPERATOR = "custom_operator"
    PICKLE = "pickle"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNKNOWN_FORMAT = "unknown_format"


class ModelFileRefused(msgspec.Struct, frozen=True):
    """A model file that is not taken: the reason, and a sentence for a person."""

    reason: ModelFileReason
    detail: str


class ParseRefused(Exception):
    """Ends a parse; every public check turns it into its `ModelFileRefused`."""

    def __init__(self, reason: ModelFileReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.refusal = ModelFileRefused(reason, detail)


def quoted(text: str) -> str:
    """`text` of a foreign file as short, plain ASCII in quotes, safe to log and to print."""
    shown = text[:_QUOTED_CHARACTERS_MAX]
    return ascii(shown) + ("…" if len(text) > len(shown) else "")


def decoded(raw: bytes, what: str) -> str:
    """`raw` as text; refuses with `bad_text` what is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParseRefused(ModelFileReason.BAD_TEXT, f"{what} is not UTF-8") from error


def checked_name(name: str, what: str) -> str:
    """`name` itself; refuses with `unsafe_name` an empty one and one with invisible characters.

    Invisible are control characters, line ends and marks that change the direction of writing:
    they deceive a person who reads a log, and a NUL ends a name early in C.
    """
    if not name or not name.isprintable():
        raise ParseRefused(ModelFileReason.UNSAFE_NAME, f"{what} has the name {quoted(name)}")
    return name
