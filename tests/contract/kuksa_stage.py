"""What tests of the kuksa vehicle share: a car whose signals a broker in this process gives."""

import datetime
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from terafleet.agent.adapters.vehicle import kuksa_signals as vss
from terafleet.agent.adapters.vehicle.kuksa import CHECKS_PER_SILENCE, KuksaVehicle
from terafleet.agent.kuksa_settings import KuksaSettings
from terafleet.core.readings import SENSORS
from terafleet.engine.clock import Clock
from tests.contract.kuksa_broker import Databroker
from tests.contract.vehicle_contract import ABSURD, EXAMPLES, Drive, RealPassing, VehicleWorld

RESOURCES = "Vehicle.ControlUnit.Central.Health.Resources"
PLACES = {"Lake View": "home", "Works": "work"}
NETWORKS = {label: name for name, label in PLACES.items()}
SILENCE_MS = 600

SENSORS_OF_VSS = tuple(
    name
    for name in SENSORS
    if name not in ("is_sentry_on", "is_updating", "fan_percent", "other_load_percent")
)


def signals_of(name: str, value: Any) -> dict[str, Any]:
    """What a car's signals say when a sensor has this value; other signals say nothing of it."""
    paths = {
        "is_driver_present": vss.SEAT_OCCUPIED,
        "is_plugged_in": vss.CABLE,
        "soc_percent": vss.SOC_SHOWN,
        "compute_temperature_c": f"{RESOURCES}.Temperature",
        "battery_temperature_c": vss.HOTTEST_CELL,
        "ambient_temperature_c": vss.AMBIENT,
        "is_charging": vss.IS_CHARGING,
        "charge_limit_percent": vss.CHARGE_LIMIT,
        "is_preconditioning": vss.IS_BATTERY_CONDITIONED,
    }
    whole = {
        "charging_mw": vss.BATTERY_POWER,
        "compute_mw": f"{RESOURCES}.Power",
        "low_voltage_mv": vss.LOW_VOLTAGE,
    }
    said: dict[str, Any]
    match name:
        case "is_parked":
            said = {vss.SELECTED_GEAR: 126 if value else 127}
        case "departure_at_ms":
            said = {vss.TIMER_MODE: "END_TIME", vss.TIMER_TIME: iso(value)}
        case "is_in_service":
            said = {vss.POWER_LEVEL: 7 if value else 0}
        case "place":
            said = {vss.WIFI_NAME: NETWORKS.get(value, value)}
        case "is_link_metered":
            said = {vss.LINKS: ("WIFI",), vss.WIFI_IS_METERED: value}
        case _ if name in whole:
            said = {whole[name]: value / 1_000}
        case _:
            said = {paths[name]: value}
    return said


def iso(at_ms: int) -> str:
    """A time as VSS writes it."""
    try:
        moment = datetime.datetime.fromtimestamp(at_ms / 1_000, datetime.UTC)
    except ValueError:
        return "+55838-01-01T00:00:00Z"
    return moment.isoformat().replace("+00:00", "Z")


PARKED = {
    path: said
    for name in SENSORS_OF_VSS
    for path, said in signals_of(name, EXAMPLES[name][0]).items()
}
PARKED_READINGS = {name: EXAMPLES[name][0] for name in SENSORS_OF_VSS}


def settings_for(broker: Databroker, **changes: Any) -> KuksaSettings:
    """What a car is set to, with the owner's places."""
    said = {"address": broker.address, "places": PLACES, "silence_ms": SILENCE_MS}
    return KuksaSettings(**{**said, **changes})


ABSURD_SIGNALS: Mapping[str, tuple[Any, ...]] = {
    **ABSURD,
    # What comes out of the battery goes not into it: that is no power, and no fault.
    "charging_mw": (1_000_001_000,),
    "compute_mw": (-1_000, 1_000_001_000),
    "low_voltage_mv": (-1_000, 101_000),
}


class KuksaWorld(VehicleWorld):
    """A databroker that knows all signals, and has no value of any until a test sets it."""

    sensors = SENSORS_OF_VSS
    absurd = ABSURD_SIGNALS
    sample_ms = 100
    rare_sample_ms = 20_000
    poll_ms = SILENCE_MS // CHECKS_PER_SILENCE

    def __init__(self, broker: Databroker) -> None:
        super().__init__(RealPassing())
        self.broker = broker
        self.changes: dict[str, Any] = {}

    def make(
        self, clock: Clock, sample_ms: int, sleep: Callable[[float], Awaitable[None]]
    ) -> KuksaVehicle:
        return KuksaVehicle(settings_for(self.broker, **self.changes), sample_ms, clock, sleep)

    async def set(self, name: str, value: Any) -> None:
        for path, said in signals_of(name, value).items():
            self.broker.set(path, said)

    async def break_sensor(self, name: str) -> None:
        for path in signals_of(name, EXAMPLES[name][0]):
            self.broker.set(path, None)

    def leftovers(self) -> list[str]:
        return [f"a stream to port {self.broker.port}" for _ in self.broker.streams]

    async def until_questioned(self, count: int) -> None:
        """Wait until so many more questions came to the broker."""
        wanted = len(self.broker.questions) + count
        deadline_ms = self.passing.clock.now_ms() + 5_000
        while len(self.broker.questions) < wanted:
            assert self.passing.clock.now_ms() < deadline_ms, "nobody asks any more"
            await self.passing.pass_ms(10)


def running_world() -> Iterator[KuksaWorld]:
    """A broker that runs and knows all signals; it ends with the iterator."""
    broker = Databroker(dict.fromkeys(vss.SignalTable("Central", 0, PLACES).kinds))
    broker.start()
    yield KuksaWorld(broker)
    broker.stop()


async def until_missing(one: Drive, within_ms: int = 4 * SILENCE_MS) -> None:
    """Let time pass until no reading is there."""
    await one.until(lambda: one.says_all(dict.fromkeys(SENSORS)), within_ms)
