"""Writes amounts as people read them: energy, bytes, money, lengths of time, times of day."""

from collections.abc import Callable
from datetime import UTC, datetime

from terafleet.core.units import MICRO, MS_PER_HOUR, MS_PER_MINUTE, MS_PER_S

Words = Callable[[int], str]
"""Writes an amount."""

_MWH_PER_WH = 1_000
_WH_PER_KWH = 1_000
_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_DAY_HOURS = 24
_YEAR_MS_MAX = 253_402_300_799_999
"""The last moment of the year 9999: calendars end there."""


def energy(energy_mwh: int) -> str:
    """An energy in Wh, or in kWh from 1,000 Wh on."""
    energy_wh = energy_mwh / _MWH_PER_WH
    if energy_wh >= _WH_PER_KWH:
        return f"{energy_wh / _WH_PER_KWH:.2f} kWh"
    return f"{energy_wh:.1f} Wh"


def data(count_bytes: int) -> str:
    """A number of bytes in its largest unit."""
    for unit_bytes, unit in _SIZES:
        if count_bytes >= unit_bytes:
            return f"{count_bytes / unit_bytes:.1f} {unit}"
    return f"{count_bytes} bytes"


def money(micro: int) -> str:
    """Money to a hundredth of a hundredth: what a car earns in an hour is small."""
    return f"{micro / MICRO:,.4f}"


def hours(length_ms: int) -> str:
    """A length of time in hours, to a tenth."""
    return f"{length_ms / MS_PER_HOUR:,.1f} h"


def length(length_ms: int) -> str:
    """A length of time in its two largest units."""
    if length_ms < MS_PER_S:
        return f"{max(0, length_ms)} ms"
    if length_ms < MS_PER_MINUTE:
        return f"{length_ms / MS_PER_S:.1f} s"
    minutes, rest_ms = divmod(length_ms, MS_PER_MINUTE)
    if length_ms < MS_PER_HOUR:
        return f"{minutes} min {rest_ms // MS_PER_S} s"
    full_hours, minutes = divmod(minutes, 60)
    if full_hours < _DAY_HOURS:
        return f"{full_hours} h {minutes} min"
    return f"{full_hours // _DAY_HOURS} d {full_hours % _DAY_HOURS} h"


def moment(at_ms: int, utc_offset_ms: int = 0) -> str:
    """A date and time of the place's own clock, `utc_offset_ms` ahead of UTC; `-` for 0."""
    local_ms = at_ms + utc_offset_ms
    if at_ms <= 0 or not 0 <= local_ms <= _YEAR_MS_MAX:
        return "-"
    return f"{datetime.fromtimestamp(local_ms // MS_PER_S, tz=UTC):%Y-%m-%d %H:%M:%S}"


def count(number: int, thing: str) -> str:
    """`1 attempt`, `2 attempts`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
