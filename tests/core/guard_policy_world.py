"""Any owner's car for the guard's stories: random policies, sensors, and what an owner does."""

import math
import random
from typing import Any

import msgspec

from terafleet.core import guard_events as ev
from terafleet.core.hours import Window
from terafleet.core.limits import LIMITS, QUIET_FAN, levels_of
from terafleet.core.policy import (
    ActivityPolicy,
    ChargePolicy,
    HoursPolicy,
    LinkPolicy,
    OwnerPolicy,
    PlacePolicy,
    WorkPolicy,
    YieldPolicy,
)
from terafleet.core.policy_faults import policy_faults
from terafleet.core.readings import SENSORS
from terafleet.core.units import MS_PER_HOUR
from terafleet.core.wear import WearCaps
from tests.core.guard_world import CarWorld
from tests.core.policy_world import WELL

NEVER = (Window(("mon",), "03:00", "03:01"),)
OWNER_STEPS = (
    "sense", "sense", "plan", "hours", "hours", "consume", "limits", "come_and_go",
    "come_and_go", "come_and_go", "stopping", "night", "dear",
)  # fmt: skip
"""What an owner and a car do beside all that happens to any car."""

STOPS: dict[str, tuple[float, ...]] = {
    "soc_percent_min": (0.0, 50.0, 79.0),
    "compute_c_max": (40.0, 60.0),
    "battery_c_max": (30.0, 40.0),
    "battery_c_min": (-10.0, 5.0),
    "ambient_c_max": (25.0, 40.0),
    "compute_mw_max": (100_000, 400_000),
    "low_voltage_mv_min": (11_000, 12_500),
    "others_percent_max": (20.0, 60.0),
    "quiet_fan_percent_max": (40.0, 80.0),
}


def any_yield(chance: random.Random) -> YieldPolicy:
    """Any way to give a car back, with times of a second or so."""
    return YieldPolicy(
        finish_ms=chance.choice([0, 0, 5, 2_000]),
        stop_ms=chance.choice([0, 400, 2_000]),
        suspend_ms=chance.choice([0, 700, 3_000, 3_000]),
        release_ms=chance.choice([0, 500]),
        settle_ms=chance.choice([0, 1_000, 1_000, 2_500]),
        stale_ms=chance.choice([1_500, 5_000]),
    )


def any_policy(chance: random.Random, giving_back: YieldPolicy) -> OwnerPolicy:
    """Any limits and wishes that a car which is well can meet."""
    quiet = chance.choice([(), (), (Window(),)])
    policy = OwnerPolicy(
        charge=ChargePolicy(needs_plug=chance.random() < 0.7, departure_lead_ms=10_000),
        hours=HoursPolicy(quiet=quiet),
        places=PlacePolicy(chance.choice([(), ("home",)])),
        link=LinkPolicy(chance.random() < 0.5, chance.choice([None, 7_000])),
        activity=ActivityPolicy(*(chance.random() < 0.5 for _ in range(3))),
        wear=chance.choice([*4 * [WearCaps()], WearCaps(10**6, 20_000, 10**6)]),
        work=WorkPolicy(reward_micro_per_hour_min=chance.choice([0, 0, 40_000])),
        giving_back=giving_back,
    )
    for limit in LIMITS:
        needed = limit is QUIET_FAN and quiet
        stop = chance.choice(STOPS[limit.name]) if needed or chance.random() < 0.4 else None
        table = msgspec.structs.replace(getattr(policy, limit.table), **{limit.name: stop})
        policy = msgspec.structs.replace(policy, **{limit.table: table})
    assert not policy_faults(policy)
    return policy


def any_value(chance: random.Random, policy: OwnerPolicy, name: str) -> Any:
    """What a sensor may say: what it should, the contrary, next to a limit, or nonsense."""
    well = getattr(WELL, name)
    if name == "departure_at_ms" or chance.random() < 0.15:
        return None
    if isinstance(well, bool):
        return chance.random() < 0.5
    if isinstance(well, str):
        return chance.choice(["home", "work"])
    levels = [levels_of(policy, limit) for limit in LIMITS if limit.sensor == name]
    near = [value for one in levels if one for value in (one.stop, one.begin)]
    if well is None or not near:
        return well
    if chance.random() < 0.1:
        return math.nan
    return chance.choice([*near, chance.choice(near) + chance.choice([-0.1, 0.1, -9.0, 9.0])])


def any_car(chance: random.Random, slots: int) -> CarWorld:
    """A car whose owner may want anything; all that it needs is read."""
    well = msgspec.structs.replace(
        WELL,
        is_charging=chance.random() < 0.5,
        charging_mw=chance.choice([0, 400_000, 11_000_000]),
        utc_offset_ms=chance.randint(-14, 14) * MS_PER_HOUR,
    )
    return CarWorld(slots, any_policy(chance, any_yield(chance)), well)


def owner_step(world: CarWorld, name: str, chance: random.Random) -> None:
    """Let an owner, or the car around the guard, do one thing."""
    if name in ("hours", "come_and_go", "plan") and chance.random() < 0.5:
        world.get_to_work(chance.randint(1, 3))
    policy = world.policy
    match name:
        case "sense":
            names = chance.sample(SENSORS, chance.randint(1, 3))
            world.read(**{one: any_value(chance, policy, one) for one in names})
        case "plan":
            in_ms = chance.choice([None, 0, 9_000, 10_500])
            world.read(departure_at_ms=None if in_ms is None else world.now_ms + in_ms)
        case "hours":
            hours = msgspec.structs.replace(policy.hours, compute=chance.choice([(), NEVER]))
            world.change_policy(msgspec.structs.replace(policy, hours=hours))
        case "consume":
            flash, link = chance.choice([0, 10**4, 10**6]), chance.choice([0, 5_000])
            world.happen(ev.Consumed(world.now_ms, flash, link))
        case "limits":
            world.change_policy(any_policy(chance, policy.giving_back))
        case "come_and_go":
            if chance.random() < 0.2:
                learn_brief_stops(world)
                world.get_to_work(chance.randint(1, 3))
            come_and_go(world, chance.choice([0, 100, 100, 2_000]))
        case "stopping":
            world.happen(ev.AgentStopping(world.now_ms))
            world.tick(chance.randint(0, 3_000))
            world.restart()
        case "night":
            world.tick(8_000)
            if world.is_killed:
                world.exit()
            world.tick(chance.randint(1, 14) * MS_PER_HOUR)
        case "dear":
            world.asking_limit = chance.choice([0, 60_000, 10**7, 10**7])
            world.welcome(world.guard.epoch + 1)


def come_and_go(world: CarWorld, ms: int = 100) -> None:
    """Somebody opens a door and closes it."""
    world.read(is_driver_present=True)
    world.tick(ms)
    world.read()


def learn_brief_stops(world: CarWorld) -> None:
    """Let a car see often enough that a door is closed soon."""
    for _ in range(9):
        world.permit()
        come_and_go(world)
        if world.is_killed:
            world.exit()
