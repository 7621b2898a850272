"""What a person reads of a refusal: what it is, since when, and what would end it."""

import pytest

from terafleet.agent.standing_words import ACCOUNTS, SENSORS, standing_in_words
from terafleet.core.local_time import MS_PER_DAY
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import SENSORS as READINGS
from terafleet.core.reasons import Refusal
from terafleet.core.standing import Ending, EndsBy, StandingRefusal, what_ends
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE
from terafleet.core.wear import WearKind

NOW_MS = 4 * MS_PER_DAY + 18 * MS_PER_HOUR
"""Monday, 18:00 UTC; the place's clock shows 20:00."""

OFFSET_MS = 2 * MS_PER_HOUR
SINCE_MS = NOW_MS - 118 * MS_PER_MINUTE


def said(refusal: Refusal, ending: Ending, since_ms: int = SINCE_MS) -> str:
    """The sentence of a refusal that stands since 18:02 of the place's clock."""
    return standing_in_words(StandingRefusal(refusal, since_ms), ending, NOW_MS, OFFSET_MS)


@pytest.mark.parametrize(
    ("refusal", "ending", "words"),
    [
        (
            Refusal.SOC_BELOW_FLOOR,
            Ending(EndsBy.LEVEL, ("soc_percent",), 48.04, 55.0),
            "the battery is below what its owner allows, 48 % since 18:02; "
            "permits again at 55 % or more",
        ),
        (
            Refusal.POWER_CAP,
            Ending(EndsBy.LEVEL, ("compute_mw",), 1_234_500, 100_000, is_ceiling=True),
            "the computer draws more than its owner allows, 1234.5 W since 18:02; "
            "permits again at 100 W or less",
        ),
        (
            Refusal.LOW_VOLTAGE,
            Ending(EndsBy.LEVEL, ("low_voltage_mv",), 11_940, 12_500),
            "the low-voltage battery is weak, 11.9 V since 18:02; permits again at 12.5 V or more",
        ),
        (
            Refusal.TEMPERATURE_COMPUTE,
            Ending(EndsBy.LEVEL, ("compute_temperature_c",), float("nan"), 40.0, is_ceiling=True),
            "the computer is too warm, no number since 18:02; permits again at 40 °C or less",
        ),
        (
            Refusal.OUTSIDE_COMPUTE_HOURS,
            Ending(EndsBy.TIME, at_ms=NOW_MS + 2 * MS_PER_HOUR),
            "it is not within the hours for compute since 18:02; until 22:00",
        ),
        (
            Refusal.OUTSIDE_COMPUTE_HOURS,
            Ending(EndsBy.TIME, at_ms=NOW_MS + 11 * MS_PER_HOUR),
            "it is not within the hours for compute since 18:02; until Tue 07:00",
        ),
        (
            Refusal.OWNER_PAUSED,
            Ending(EndsBy.TIME, at_ms=NOW_MS + 10 * MS_PER_DAY),
            "the owner has paused it since 18:02; until 1970-01-15 20:00",
        ),
        (
            Refusal.OWNER_PAUSED,
            Ending(EndsBy.OWNER),
            "the owner has paused it since 18:02; until its owner says otherwise",
        ),
        (
            Refusal.QUIET_HOURS,
            Ending(EndsBy.TIME, ("fan_percent",), 50.0, 24.0, True, NOW_MS + MS_PER_HOUR),
            "it must be quiet at this hour, 50 % since 18:02; until 21:00, or at 24 % or less",
        ),
        (
            Refusal.DRIVER_PRESENT,
            Ending(EndsBy.CAR, ("is_driver_present",)),
            "somebody is in the car since 18:02; until the driver leaves",
        ),
        (
            Refusal.PLACE_NOT_ALLOWED,
            Ending(EndsBy.CAR, ("place",), places=("home", "work")),
            "its owner does not want work at this place since 18:02; permits at home or work",
        ),
        (
            Refusal.READING_MISSING,
            Ending(EndsBy.READING, ("soc_percent", "is_parked")),
            "a sensor gives no reading since 18:02; "
            "until the car says again: the battery's charge, whether it is parked",
        ),
        (
            Refusal.READING_STALE,
            Ending(EndsBy.READING),
            "the readings are too old since 18:02; until the car says anything",
        ),
        (
            Refusal.WEAR_BUDGET,
            Ending(EndsBy.TIME, at_ms=NOW_MS + 4 * MS_PER_HOUR, accounts=(WearKind.FLASH,)),
            "the wear for today is used up, bytes written to flash since 18:02; until Tue 00:00",
        ),
        (
            Refusal.SETTLING,
            Ending(EndsBy.TIME, dwell_ms=120 * MS_PER_MINUTE),
            "it waits whether all stays well since 18:02; until 20:02",
        ),
        (
            Refusal.REWARD_TOO_LOW,
            Ending(EndsBy.WORK),
            "the work pays less than it must since 18:02; until work pays more",
        ),
        (
            Refusal.YIELDING,
            Ending(EndsBy.AGENT),
            "it gives the car back to its owner since 18:02; over in a moment",
        ),
    ],
)
def test_a_refusal_in_a_sentence(refusal: Refusal, ending: Ending, words: str) -> None:
    assert said(refusal, ending) == words


def test_what_stood_for_days_says_the_day() -> None:
    text = said(Refusal.UNPLUGGED, Ending(EndsBy.CAR), NOW_MS - MS_PER_DAY)
    assert text == "the car is not plugged in since Sun 20:00; until it is plugged in"


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_can_be_said(refusal: Refusal) -> None:
    assert said(refusal, what_ends(refusal, OwnerPolicy(), None, NOW_MS))


def test_every_account_and_every_sensor_has_its_words() -> None:
    assert set(ACCOUNTS) == set(WearKind)
    told_elsewhere = {"charging_mw", "charge_limit_percent", "departure_at_ms", "fan_percent"}
    assert set(SENSORS) == set(READINGS) - told_elsewhere
