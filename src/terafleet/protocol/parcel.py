"""Packs the outputs that ride in one receipt, and finds one of them again.

What an output holds is nobody's matter here.
"""

from collections.abc import Iterable

import msgspec

from terafleet.core.ids import WorkUnitId

ENTRY_BYTES_MAX = 16
"""What an output takes in a parcel beside its own bytes, at most: a pair, a number, a length."""

PARCEL_BYTES_MIN = 5
"""What a parcel takes beside its entries, at most."""

_Parcel = tuple[tuple[WorkUnitId, bytes], ...]

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Parcel)


def pack(outputs: Iterable[tuple[WorkUnitId, bytes]]) -> bytes:
    """Outputs with the numbers of their units."""
    return _ENCODER.encode(list(outputs))


def unpack(parcel: bytes) -> dict[WorkUnitId, bytes]:
    """The outputs by unit; empty if the bytes, which come from a car, are no parcel."""
    try:
        return dict(_DECODER.decode(parcel))
    except msgspec.DecodeError:
        return {}
