"""Absolute temperature, for the formulas of physics."""

ZERO_C_KELVIN = 273.15


def kelvin(temperature_c: float) -> float:
    """The absolute temperature.

    What is no temperature (no number, or below absolute zero) is a bug of the caller: a reading
    is refused before it gets here.
    """
    assert temperature_c > -ZERO_C_KELVIN, "no temperature, or one below absolute zero"
    return temperature_c + ZERO_C_KELVIN
