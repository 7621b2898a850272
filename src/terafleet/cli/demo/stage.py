"""The cars of the demo and the trouble that they meet; all of it follows from one seed."""

import random
from enum import StrEnum

import msgspec

CARS = 8


class Trouble(StrEnum):
    """What happens to a car in the middle of the job."""

    NONE = "stays"
    OWNER = "owner leaves"
    KILLED = "agent killed"
    LINK = "link cut"
    LATE = "joins late"


class Car(msgspec.Struct, frozen=True):
    """A car of the play; `at` is the share of the job that is done when its trouble comes."""

    number: int
    name: str
    trouble: Trouble
    at: float = 0.0
    cut_link_s: float = 0.0


NAMES = ("Asta", "Birk", "Ciro", "Dana", "Egil", "Faye", "Gwen", "Hugo")

TROUBLES = (
    Trouble.OWNER,
    Trouble.OWNER,
    Trouble.OWNER,
    Trouble.KILLED,
    Trouble.LINK,
    Trouble.LATE,
    Trouble.NONE,
    Trouble.NONE,
)


def cast(seed: int) -> list[Car]:
    """Who plays what: three owners come back, one agent dies, one link breaks, one car is late."""
    chance = random.Random(seed)  # noqa: S311 - it casts a play, it guards nothing.
    troubles = list(TROUBLES)
    chance.shuffle(troubles)
    return [
        _car(number, name, trouble, chance)
        for number, (name, trouble) in enumerate(zip(NAMES, troubles, strict=True))
    ]


def _car(number: int, name: str, trouble: Trouble, chance: random.Random) -> Car:
    match trouble:
        case Trouble.OWNER:
            at = chance.uniform(0.25, 0.6)
            return Car(number, name, trouble, at=at)
        case Trouble.KILLED:
            return Car(number, name, trouble, at=chance.uniform(0.3, 0.5))
        case Trouble.LINK:
            cut_link_s = chance.uniform(4.0, 7.0)
            return Car(number, name, trouble, at=chance.uniform(0.3, 0.5), cut_link_s=cut_link_s)
        case Trouble.LATE:
            return Car(number, name, trouble, at=chance.uniform(0.15, 0.25))
        case _:
            return Car(number, name, trouble)


def parked(soc_percent: float) -> dict[str, object]:
    """A car that stands plugged in, nobody in it; in the form of the scripted vehicle."""
    return {
        "at_s": 0,
        "is_parked": True,
        "is_driver_present": False,
        "is_plugged_in": True,
        "soc_percent": soc_percent,
        "compute_temperature_c": 24.0,
    }


def trouble_steps(car: Car, soc_percent: float) -> list[dict[str, object]]:
    """What happens to an owner's car, or to one that loses its link, from the cue on."""
    now = parked(soc_percent)
    if car.trouble is Trouble.LINK:
        return [now | {"cut_link_s": car.cut_link_s}]
    drives_off: dict[str, object] = {"at_s": 3.0, "is_parked": False, "is_plugged_in": False}
    return [now | {"is_driver_present": True}, drives_off]
