"""How fast the car's computer ages: hours of operation, weighted by temperature."""

import math

from terafleet.core.temperature import kelvin
from terafleet.core.units import MS_PER_HOUR

ACTIVATION_EV = 0.7
"""The generic activation energy of semiconductor failures (JEDEC JEP122H)."""

BOLTZMANN_EV_PER_KELVIN = 8.617e-5
REFERENCE_C = 90.0
"""The temperature at which an hour counts an hour."""

MISSION_MS = 12_000 * MS_PER_HOUR
"""What a car's control unit is built for: 12,000 hours in 15 years (the example mission profile of
AEC-Q100). They are taken as hours at the reference temperature, as in the owner's yearly budget."""


def acceleration(temperature_c: float, reference_c: float = REFERENCE_C) -> float:
    """How many hours at the reference temperature one hour at this temperature counts.

    Arrhenius: exp(Ea/k (1/T_reference - 1/T)), temperatures in kelvin (JEDEC JEP122H).
    `temperature_c` is that of the junction, where the wear happens, not that of the board.
    """
    inverse = 1 / kelvin(reference_c) - 1 / kelvin(temperature_c)
    return math.exp(ACTIVATION_EV / BOLTZMANN_EV_PER_KELVIN * inverse)


def weighted_ms(duration_ms: int, temperature_c: float) -> int:
    """Time in operation, weighted to the reference temperature, in ms.

    Rounded up, so that wear told piece by piece is never less than told at once.
    """
    assert duration_ms >= 0, "an interval does not end before it begins"
    return math.ceil(duration_ms * acceleration(temperature_c))
