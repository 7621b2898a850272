"""Any computer that runs Linux, as a parked car: so that an idle desktop can take part.

Quality: read from the kernel's own files, without rights and without another program. It passes
the contract suite of vehicle adapters on folders that look like the kernel's, and ran on one
virtual machine, which has no power supply, no sensors and no keyboard. No laptop, no desktop and
no counter of RAPL was at hand.
"""

import asyncio
from collections.abc import Awaitable, Callable

from terafleet.agent.adapters.meter.rapl import RaplMeter
from terafleet.agent.adapters.vehicle import linux_network
from terafleet.agent.adapters.vehicle.linux_heat import Heat
from terafleet.agent.adapters.vehicle.linux_inputs import Presence
from terafleet.agent.adapters.vehicle.linux_load import OtherLoad
from terafleet.agent.adapters.vehicle.linux_power import Supplies, read_supplies
from terafleet.agent.linux_settings import LinuxSettings
from terafleet.agent.place_clock import utc_offset_ms
from terafleet.agent.readings_check import clean
from terafleet.core.computer_power import is_plausible
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_S
from terafleet.engine.clock import Clock

POLL_MS = 200
"""Input is looked for so often between samples, as the owner waits for the answer."""
POWER_MS_MIN = 500
"""A power is measured over at least so long: the counters move in steps."""


class LinuxVehicle:
    """Keeps the promise of `VehicleInterface` from `/sys`, `/proc` and `/dev/pts`.

    A computer has no wheels: it is always parked, and never at its sentry or preconditioned.
    """

    def __init__(
        self,
        settings: LinuxSettings,
        sample_ms: int,
        clock: Clock,
        root: str = "",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`root` is set before the names of all files; tests have a folder of their own there."""
        assert sample_ms > 0
        self._settings = settings
        self._sample_ms = sample_ms
        self._clock = clock
        self._root = root
        self._sleep = sleep
        self._presence = Presence(settings.idle_s, is_headless=settings.is_headless, root=root)
        self._load = OtherLoad(root)
        self._heat = Heat(root)
        self._power = _ComputerPower(RaplMeter(root))

    async def run(self, deliver: Callable[[Readings], None]) -> None:
        """Deliver a sample each interval, and at once when somebody comes or has gone.

        What tells of input lies in the kernel's memory. All else is read in a thread, as an
        embedded controller may take its time to answer.
        """
        due_ms = 0
        told: bool | None = None
        while True:
            now_ms = self._clock.now_ms()
            is_present = self._presence.is_driver_present(now_ms)
            if now_ms >= due_ms or is_present is not told:
                readings = await asyncio.to_thread(self._sample, now_ms, is_present)
                deliver(clean(readings))
                told, due_ms = is_present, now_ms - now_ms % self._sample_ms + self._sample_ms
            pause_ms = min(POLL_MS, due_ms - self._clock.now_ms())
            await self._sleep(max(1, pause_ms) / MS_PER_S)

    def _sample(self, now_ms: int, is_present: bool | None) -> Readings:
        """Read all that is left."""
        supplies = read_supplies(self._root)
        temperature_c, fan_percent = self._heat.look()
        route = linux_network.default_route(self._root)
        return Readings(
            at_ms=now_ms,
            is_parked=True,
            is_driver_present=is_present,
            is_plugged_in=supplies.is_plugged_in,
            soc_percent=supplies.soc_percent,
            compute_temperature_c=temperature_c,
            battery_temperature_c=supplies.battery_temperature_c,
            is_charging=supplies.is_charging,
            charging_mw=supplies.charging_mw,
            charge_limit_percent=supplies.charge_limit_percent,
            is_preconditioning=False,
            is_sentry_on=False,
            is_updating=False,
            is_in_service=False,
            place=linux_network.place(self._settings, route, self._root),
            is_link_metered=linux_network.is_link_metered(self._settings, route, self._root),
            fan_percent=fan_percent,
            compute_mw=self._power.power_mw(now_ms, supplies),
            other_load_percent=self._load.percent(),
            utc_offset_ms=utc_offset_ms(now_ms),
        )


class _ComputerPower:
    """What the computer draws: the mean of RAPL's counters since the last look.

    Where they can't be read it is what the battery gives, which is known only without the plug.
    """

    def __init__(self, meter: RaplMeter) -> None:
        self._meter = meter
        self._seen: tuple[int, int] | None = None
        self._power_mw: int | None = None

    def power_mw(self, now_ms: int, supplies: Supplies) -> int | None:
        energy_uj = self._meter.energy_uj()
        if energy_uj is None:
            self._seen = self._power_mw = None
            is_on_battery = supplies.is_plugged_in is False and supplies.discharging_mw
            return supplies.discharging_mw if is_on_battery else None
        if self._seen is not None and now_ms - self._seen[0] < POWER_MS_MIN:
            return self._power_mw
        seen, self._seen = self._seen, (now_ms, energy_uj)
        self._power_mw = None
        if seen is not None and is_plausible(energy_uj - seen[1], now_ms - seen[0]):
            self._power_mw = (energy_uj - seen[1]) // (now_ms - seen[0])
        return self._power_mw
