"""Writes vectors as OpenAI's clients expect them: numbers in JSON, or base64."""

import base64
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

# Nine significant digits tell any two 32-bit numbers apart (IEEE 754-2019, 5.12.2).
_DIGITS: Final = 9
# Powers of ten up to this one are exact as 64-bit numbers.
_EXACT_POWER_MAX: Final = 22
_POWERS: Final = np.array([float(f"1e{power}") for power in range(_EXACT_POWER_MAX + 1)])


def as_numbers(vector: npt.NDArray[np.float32]) -> bytes:
    """A vector as a JSON array whose numbers have at most nine digits and give it back exactly."""
    return msgspec.json.encode(nine_digits(vector).tolist())


def as_base64(vector: npt.NDArray[np.float32]) -> bytes:
    """A vector as a JSON string: base64 of its 32-bit little-endian numbers."""
    return b'"' + base64.b64encode(vector.astype("<f4").tobytes()) + b'"'


def nine_digits(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The nearest 64-bit numbers to the nine digits of 32-bit ones, so that they print short.

    Numbers below 1e-14 or from 1e9 on stay as they are: they would need inexact powers of ten.
    """
    exact = vector.astype(np.float64)
    magnitude = np.abs(exact)
    is_scalable = (magnitude >= 1e-14) & (magnitude < 1e9)  # noqa: PLR2004 - as said above.
    logarithm = np.floor(np.log10(np.where(is_scalable, magnitude, 1.0)))
    power = np.clip(_DIGITS - 1 - logarithm, 0, _EXACT_POWER_MAX).astype(np.int64)
    scale = _POWERS[power]
    return np.where(is_scalable, np.round(exact * scale) / scale, exact)
