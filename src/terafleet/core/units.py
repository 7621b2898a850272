"""Integer units: milliseconds, milliwatt-hours, micro-units of money, tokens of work.

Money, time and energy are integers so that conservation can be checked exactly.
"""

MS_PER_S = 1_000
MS_PER_MINUTE = 60_000
MS_PER_HOUR = 3_600_000
MICRO = 1_000_000
MWH_PER_KWH = 1_000_000


def energy_mwh(power_mw: int, duration_ms: int) -> int:
    """Energy of a power in milliwatts over a time, rounded to the nearest mWh, halves up."""
    return (power_mw * duration_ms + MS_PER_HOUR // 2) // MS_PER_HOUR


def divide_up(dividend: int, divisor: int) -> int:
    """Whole-number division that rounds up."""
    return -(-dividend // divisor)
