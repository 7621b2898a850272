"""What the car's sensors say; any reading may be missing."""

import msgspec


class Readings(msgspec.Struct, frozen=True, array_like=True):
    """One sample of the car's sensors, taken at `at_ms` of the agent's clock; None is missing.

    `utc_offset_ms` is what the place's own clock is ahead of UTC. `place` is a label of the
    owner's (`home`, `work` …), never a position. `departure_at_ms` is when the car expects to be
    driven, by the same clock as `at_ms`; None is no plan that the car knows of, which is no fault.
    Power is in mW: `charging_mw` what goes into the traction battery, `compute_mw` what the
    computer draws. `other_load_percent` is what programs that are not ours use of the processor.
    """

    at_ms: int
    is_parked: bool | None = None
    is_driver_present: bool | None = None
    is_plugged_in: bool | None = None
    soc_percent: float | None = None
    compute_temperature_c: float | None = None
    battery_temperature_c: float | None = None
    ambient_temperature_c: float | None = None
    is_charging: bool | None = None
    charging_mw: int | None = None
    charge_limit_percent: float | None = None
    departure_at_ms: int | None = None
    is_preconditioning: bool | None = None
    is_sentry_on: bool | None = None
    is_updating: bool | None = None
    is_in_service: bool | None = None
    place: str | None = None
    is_link_metered: bool | None = None
    fan_percent: float | None = None
    compute_mw: int | None = None
    low_voltage_mv: int | None = None
    other_load_percent: float | None = None
    utc_offset_ms: int = 0


SENSORS = tuple(
    name for name in Readings.__struct_fields__ if name not in ("at_ms", "utc_offset_ms")
)
"""The names of all readings that a sensor gives."""
