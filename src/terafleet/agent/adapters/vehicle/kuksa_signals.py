"""Decides which signals of a car are asked for, and what readings follow from what they say.

Names, types and units are those of the COVESA Vehicle Signal Specification 6 (VSS), a few older
names beside them. Everything here is pure; it knows of no broker.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum

from terafleet.agent.kuksa_settings import POWER_LEVEL_MAX
from terafleet.agent.readings_check import clean
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR, MS_PER_S

Value = bool | int | float | str | tuple[str, ...]
Values = Mapping[str, Value]
"""What the signals say, by path; one that says nothing of use is not there."""

TEXT_CHARACTERS_MAX = 64
TEXTS_MAX = 16
NUMBER_MAX = 1e12
"""No quantity of a car comes near it."""

MW_PER_W = 1_000
MW_PER_KW = 1_000_000
MV_PER_V = 1_000
GEAR_PARK = 126
"""`Transmission.SelectedGear`: 126 is park, 127 drive, 0 neutral (VSS 6)."""
GEAR_NEUTRAL = 0
STILL_KM_H = 1.0
"""A speed below it may be the noise of a sensor; no car in park moves."""
LATE_MS = MS_PER_HOUR
"""A departure so long ago has come to nothing."""
ELSEWHERE = "elsewhere"
"""The place of a car on a network that the owner gave no label."""

SWITCHED_ON = frozenset({"ON", "START"})
SWITCHED_OFF = frozenset({"LOCK", "OFF"})
WIFI, CELLULAR = "WIFI", "CELLULAR"

IS_MOVING = "Vehicle.IsMoving"
SPEED = "Vehicle.Speed"
SWITCH = "Vehicle.LowVoltageSystemState"
LOW_VOLTAGE = "Vehicle.LowVoltageBattery.CurrentVoltage"
POWER_LEVEL = "Vehicle.PowerOptimizeLevel"
AMBIENT = "Vehicle.Exterior.AirTemperature"
IS_AIR_CONDITIONED = "Vehicle.Cabin.HVAC.IsAirConditioningActive"
PARKING_BRAKE = "Vehicle.Chassis.ParkingBrake.IsEngaged"
SELECTED_GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
CURRENT_GEAR = "Vehicle.Powertrain.Transmission.CurrentGear"
PARK_LOCK = "Vehicle.Powertrain.Transmission.IsParkLockEngaged"

_DRIVERS_SEAT = "Vehicle.Cabin.Seat.Row1.DriverSide"
SEAT_OCCUPIED = f"{_DRIVERS_SEAT}.IsOccupied"
SEAT_STATUS = f"{_DRIVERS_SEAT}.OccupancyStatus"
DOORS = tuple(
    f"Vehicle.Cabin.Door.{row}.{side}.IsOpen"
    for row in ("Row1", "Row2")
    for side in ("DriverSide", "PassengerSide")
)

_BATTERY = "Vehicle.Powertrain.TractionBattery"
SOC_SHOWN = f"{_BATTERY}.StateOfCharge.Displayed"
SOC = f"{_BATTERY}.StateOfCharge.Current"
HOTTEST_CELL = f"{_BATTERY}.Temperature.Max"
AVERAGE_CELL = f"{_BATTERY}.Temperature.Average"
BATTERY_POWER = f"{_BATTERY}.CurrentPower"
IS_BATTERY_CONDITIONED = f"{_BATTERY}.BatteryConditioning.IsOngoing"

_CHARGING = f"{_BATTERY}.Charging"
IS_CHARGING = f"{_CHARGING}.IsCharging"
CHARGING_POWER = f"{_CHARGING}.AveragePower"
CHARGE_LIMIT = f"{_CHARGING}.ChargeLimit"
TIMER_MODE = f"{_CHARGING}.Timer.Mode"
TIMER_TIME = f"{_CHARGING}.Timer.Time"
OLD_CABLE = f"{_CHARGING}.IsChargingCableConnected"
_PORTS = ("FrontLeft", "FrontMiddle", "FrontRight", "RearLeft", "RearMiddle", "RearRight")
CABLE = f"{_CHARGING}.ChargingPort.AnyPosition.IsChargingCableConnected"
CABLES = (
    CABLE,
    *(f"{_CHARGING}.ChargingPort.{port}.IsChargingCableConnected" for port in _PORTS),
    OLD_CABLE,
)

LINKS = "Vehicle.Connectivity.ConnectivityType"
WIFI_IS_METERED = "Vehicle.Connectivity.WiFi.IsMetered"
WIFI_NAME = "Vehicle.Connectivity.WiFi.SSID"


class Kind(Enum):
    """What a signal may say."""

    TRUTH = "truth"
    CODE = "code"
    """A number that stands for something, and changes seldom."""
    QUANTITY = "quantity"
    """A number that was measured; a car may say it a hundred times a second."""
    TEXT = "text"
    TEXTS = "texts"


_KINDS = {
    Kind.TRUTH: (
        IS_MOVING,
        IS_AIR_CONDITIONED,
        PARKING_BRAKE,
        PARK_LOCK,
        SEAT_OCCUPIED,
        *DOORS,
        IS_BATTERY_CONDITIONED,
        IS_CHARGING,
        *CABLES,
        WIFI_IS_METERED,
    ),
    Kind.CODE: (POWER_LEVEL, SELECTED_GEAR, CURRENT_GEAR),
    Kind.QUANTITY: (
        SPEED,
        LOW_VOLTAGE,
        AMBIENT,
        SOC_SHOWN,
        SOC,
        HOTTEST_CELL,
        AVERAGE_CELL,
        BATTERY_POWER,
        CHARGING_POWER,
        CHARGE_LIMIT,
    ),
    Kind.TEXT: (SWITCH, SEAT_STATUS, TIMER_MODE, TIMER_TIME),
    Kind.TEXTS: (LINKS,),
}


class SignalTable:
    """What one car's signals mean: its control unit, its level of power, its owner's places."""

    def __init__(self, control_unit: str, power_level_max: int, places: Mapping[str, str]) -> None:
        """`places` are labels by the names of Wi-Fi networks; without any the name isn't asked."""
        resources = f"Vehicle.ControlUnit.{control_unit}.Health.Resources"
        self._temperature = f"{resources}.Temperature"
        self._power = f"{resources}.Power"
        self._power_level_max = power_level_max
        self._places = places
        self.kinds = {path: kind for kind, paths in _KINDS.items() for path in paths}
        """What is asked for, by path. The car's position is not among it."""
        self.kinds |= {self._temperature: Kind.QUANTITY, self._power: Kind.QUANTITY}
        if places:
            self.kinds[WIFI_NAME] = Kind.TEXT

    def is_urgent(self, path: str) -> bool:
        """Whether a change of the signal must be heard of at once; quantities change slowly."""
        return self.kinds[path] is not Kind.QUANTITY

    def value_of(self, path: str, said: object) -> Value | None:
        """What a signal says, or None if it isn't of the signal's kind and size."""
        return _CHECKS[self.kinds[path]](said)

    def readings_of(self, values: Values, at_ms: int, utc_offset_ms: int) -> Readings:
        """The sample that follows from the signals at a time; what can't be true is missing."""
        watts = _number(values, self._power)
        volts = _number(values, LOW_VOLTAGE)
        readings = Readings(
            at_ms,
            is_parked=is_parked(values),
            is_driver_present=is_driver_present(values),
            is_plugged_in=_any(values, CABLES),
            soc_percent=_first(values, SOC_SHOWN, SOC),
            compute_temperature_c=_number(values, self._temperature),
            battery_temperature_c=_first(values, HOTTEST_CELL, AVERAGE_CELL),
            ambient_temperature_c=_number(values, AMBIENT),
            is_charging=_truth(values, IS_CHARGING),
            charging_mw=charging_mw(values),
            charge_limit_percent=_number(values, CHARGE_LIMIT),
            departure_at_ms=departure_at_ms(values, at_ms),
            is_preconditioning=_any(values, (IS_BATTERY_CONDITIONED, IS_AIR_CONDITIONED)),
            is_in_service=self._is_in_service(values),
            place=self._place(values),
            is_link_metered=is_link_metered(values),
            compute_mw=None if watts is None else round(watts * MW_PER_W),
            low_voltage_mv=None if volts is None else round(volts * MV_PER_V),
            utc_offset_ms=utc_offset_ms,
        )
        return clean(readings)

    def _is_in_service(self, values: Values) -> bool | None:
        """Whether the car wants its computer back: work for others is what it needs least.

        VSS has no word for a car in service. A level of power optimisation above 0 asks for less
        consumption, 10 for none that isn't essential (VSS 6, include/PowerOptimize.vspec).
        """
        level = _number(values, POWER_LEVEL)
        if level is None or not 0 <= level <= POWER_LEVEL_MAX:
            return None
        return level > self._power_level_max

    def _place(self, values: Values) -> str | None:
        name = _text(values, WIFI_NAME)
        # A car without Wi-Fi may be anywhere, at home too.
        return self._places.get(name, ELSEWHERE) if name else None


def is_parked(values: Values) -> bool | None:
    """Whether the car stands and nobody means to drive it; one signal against it is enough.

    For it speaks a gear in park, a park lock, or a parking brake while the car is switched off.
    """
    selected, current = _number(values, SELECTED_GEAR), _number(values, CURRENT_GEAR)
    locked = _truth(values, PARK_LOCK)
    switch = _text(values, SWITCH)
    moves = _truth(values, IS_MOVING) is True or abs(_number(values, SPEED) or 0) >= STILL_KM_H
    # Cars that know no park among their current gears say neutral.
    in_gear = selected not in (None, GEAR_PARK) or current not in (None, GEAR_PARK, GEAR_NEUTRAL)
    if moves or in_gear or locked is False or switch in SWITCHED_ON:
        return False
    braked = _truth(values, PARKING_BRAKE) is True and switch in SWITCHED_OFF
    return True if locked or braked or GEAR_PARK in (selected, current) else None


def is_driver_present(values: Values) -> bool | None:
    """Whether somebody sits at the wheel or opened a door; that nobody does only the seat says."""
    occupied, status = _truth(values, SEAT_OCCUPIED), _text(values, SEAT_STATUS)
    if occupied or status == "OCCUPIED" or _any(values, DOORS):
        return True
    return False if occupied is False or status == "EMPTY" else None


def charging_mw(values: Values) -> int | None:
    """What goes into the traction battery, in mW; what comes out of it is no charging.

    The average of a charge is taken while it lasts, where the battery's own power isn't known.
    """
    watts = _number(values, BATTERY_POWER)
    if watts is not None:
        return max(0, round(watts * MW_PER_W))
    charges, kilowatts = _truth(values, IS_CHARGING), _number(values, CHARGING_POWER)
    if charges is False:
        return 0
    return round(kilowatts * MW_PER_KW) if charges and kilowatts is not None else None


def departure_at_ms(values: Values, at_ms: int) -> int | None:
    """When the car expects to be driven: the time by which its timer wants the charge complete.

    Another mode of the timer is no plan to drive, and a departure `LATE_MS` ago is none any more.
    """
    text = _text(values, TIMER_TIME)
    if _text(values, TIMER_MODE) != "END_TIME" or not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    # VSS says that it is UTC, so a text that doesn't is taken for it.
    stamped = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    departure_ms = round(stamped.timestamp() * MS_PER_S)
    return departure_ms if departure_ms > at_ms - LATE_MS else None


def is_link_metered(values: Values) -> bool | None:
    """Whether each byte may cost: mobile data does, and Wi-Fi says so itself."""
    links, metered = values.get(LINKS), _truth(values, WIFI_IS_METERED)
    if isinstance(links, tuple) and WIFI in links:
        return metered
    if metered or (isinstance(links, tuple) and CELLULAR in links):
        return True
    return None


def _truth(values: Values, path: str) -> bool | None:
    value = values.get(path)
    return value if isinstance(value, bool) else None


def _number(values: Values, path: str) -> float | None:
    value = values.get(path)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(values: Values, path: str) -> str | None:
    value = values.get(path)
    return value if isinstance(value, str) else None


def _any(values: Values, paths: tuple[str, ...]) -> bool | None:
    """Whether one of the signals says yes; None if none of them says anything."""
    said = {_truth(values, path) for path in paths}
    return True if True in said else (False if False in said else None)


def _first(values: Values, *paths: str) -> float | None:
    """What the first signal says that says a number."""
    return next((one for one in (_number(values, path) for path in paths) if one is not None), None)


def _as_truth(said: object) -> Value | None:
    return said if isinstance(said, bool) else None


def _as_number(said: object) -> Value | None:
    # True and False are numbers to Python, but no quantity.
    if not isinstance(said, int | float) or isinstance(said, bool):
        return None
    return said if math.isfinite(said) and abs(said) <= NUMBER_MAX else None


def _as_text(said: object) -> Value | None:
    if not isinstance(said, str) or len(said) > TEXT_CHARACTERS_MAX:
        return None
    return said if said.isprintable() else None


def _as_texts(said: object) -> Value | None:
    if not isinstance(said, tuple) or len(said) > TEXTS_MAX:
        return None
    return said if all(_as_text(one) is not None for one in said) else None


_CHECKS = {
    Kind.TRUTH: _as_truth,
    Kind.CODE: _as_number,
    Kind.QUANTITY: _as_number,
    Kind.TEXT: _as_text,
    Kind.TEXTS: _as_texts,
}
