"""What the car's sensors say; any reading may be missing."""

import msgspec


class Readings(msgspec.Struct, frozen=True, array_like=True):
    """One sample of the car's sensors, taken at `at_ms` of the agent's clock; None is missing."""

    at_ms: int
    is_parked: bool | None = None
    is_driver_present: bool | None = None
    is_plugged_in: bool | None = None
    soc_percent: float | None = None
    temperature_c: float | None = None
