"""Says in words what each field of an owner policy means, and what a wish comes to."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from terafleet.agent import amounts
from terafleet.core.hours import DAYS, Departure, Window
from terafleet.core.policy import OwnerPolicy
from terafleet.core.reasons import Refusal
from terafleet.core.tariff import TariffWindow
from terafleet.core.units import MICRO, MS_PER_HOUR

_PER_MILLI = 1_000
_PPM_PER_PERCENT = 10_000
_MINUTES_PER_HOUR = 60


class FieldWords(NamedTuple):
    """What a field means, and sentences for a wish.

    `wish` is said of a value with `{}` in its place, `without` where the owner wants none of it;
    `refusal` is the reason that it leads to, from which follow the sensors that it needs.
    """

    means: str
    wish: str
    without: str = ""
    refusal: Refusal | None = None


class Wish(NamedTuple):
    """A field that differs from the default: by its path, its value, and in a sentence."""

    path: str
    value: Any
    sentence: str
    refusal: Refusal | None


FIELDS: dict[str, FieldWords] = {
    "is_paused": FieldWords(
        "no work at all", "The car is paused: no work at all.", "The car is not paused."
    ),
    "resume_at": FieldWords(
        "a pause ends at this moment by itself; empty: when the owner says so",
        "A pause ends by itself at {}.",
    ),
    "charge.needs_plug": FieldWords(
        "only while plugged in",
        "It works only while plugged in.",
        "It works also when it is not plugged in.",
        Refusal.UNPLUGGED,
    ),
    "charge.soc_percent_min": FieldWords(
        "the floor: below it the car stops",
        "It stops when the battery falls below {}.",
        "There is no floor: work may empty the battery.",
        Refusal.SOC_BELOW_FLOOR,
    ),
    "charge.soc_percent_resume": FieldWords(
        "it begins again from here; 5 above the floor if not written",
        "It begins again when the battery is at {}.",
    ),
    "charge.is_charge_first": FieldWords(
        "while the car charges, nothing may delay the charge that the next departure needs",
        "Charging for the next departure goes before work.",
        "Work may go on while it charges for the next departure.",
        Refusal.CHARGE_FIRST,
    ),
    "charge.soc_percent_departure": FieldWords(
        "the charge for departures that only the car knows of; if nobody knows one, what must be"
        " there at any time",
        "A departure that you did not write needs {} of charge.",
    ),
    "charge.capacity_mwh": FieldWords(
        "the battery's capacity; not known: no work while it charges and the charge is not there",
        "The battery holds {}.",
    ),
    "charge.spare_ms_min": FieldWords(
        "the time that must be left over when the charge is there; less stops",
        "It stops if the charge would be there less than {} before the departure.",
    ),
    "charge.spare_ms_resume": FieldWords(
        "the same, to begin",
        "It begins if the charge will be there {} before the departure.",
    ),
    "charge.departures": FieldWords(
        "when the car is driven: `days`, `at`, `soc_percent` (80)",
        "You drive {}.",
        "It knows no departures from you.",
        Refusal.DEPARTURE_SOON,
    ),
    "charge.departure_lead_ms": FieldWords(
        "so long before a departure the car stops", "It stops {} before a departure."
    ),
    "charge.departure_late_ms": FieldWords(
        "so long after it the driver may still come",
        "It waits for a late driver for {} after a departure.",
    ),
    "hours.compute": FieldWords(
        "windows (`days`, `from`, `to`) in which the car may compute; none: always",
        "It computes only {}.",
        "It computes at any hour.",
        Refusal.OUTSIDE_COMPUTE_HOURS,
    ),
    "hours.network": FieldWords(
        "windows in which it may use the network; none: always",
        "It uses the network for work only {}.",
        "It uses the network at any hour.",
        Refusal.OUTSIDE_NETWORK_HOURS,
    ),
    "hours.quiet": FieldWords(
        "windows in which it must be quiet",
        "It is quiet {}.",
        "There are no quiet hours.",
        Refusal.QUIET_HOURS,
    ),
    "hours.quiet_fan_percent_max": FieldWords(
        "how fast the fan may turn then; none or 0: no work at all then",
        "In quiet hours the fan may turn at {} of its speed.",
        "In quiet hours there is no work at all.",
    ),
    "hours.quiet_fan_percent_resume": FieldWords(
        "it begins again from here down; 80 % of the limit if not written",
        "In quiet hours it begins again when the fan is down to {}.",
    ),
    "places.allowed": FieldWords(
        "labels of places where it may compute; none: anywhere",
        "It works only at {}.",
        "It works anywhere.",
        Refusal.PLACE_NOT_ALLOWED,
    ),
    "link.allows_metered": FieldWords(
        "also over a link that is metered",
        "It works also over a link that is paid by the byte.",
        "It does not work over a link that is paid by the byte.",
        Refusal.METERED_LINK,
    ),
    "link.day_bytes_max": FieldWords(
        "bytes sent and received a day",
        "It sends and receives {} a day at the most.",
        "There is no cap on its data.",
        Refusal.DATA_CAP,
    ),
    "temperature.compute_c_max": FieldWords(
        "the computer",
        "It stops when the computer is warmer than {}.",
        "The computer may become as warm as it wants.",
        Refusal.TEMPERATURE_COMPUTE,
    ),
    "temperature.compute_c_resume": FieldWords(
        "5 below if not written", "It begins again when the computer is down to {}."
    ),
    "temperature.battery_c_max": FieldWords(
        "the traction battery",
        "It stops when the battery is warmer than {}.",
        "Heat of the battery is no reason to stop.",
        Refusal.TEMPERATURE_BATTERY,
    ),
    "temperature.battery_c_max_resume": FieldWords(
        "5 below if not written", "It begins again when the battery is down to {}."
    ),
    "temperature.battery_c_min": FieldWords(
        "the traction battery, when it is cold",
        "It stops when the battery is colder than {}.",
        "Cold of the battery is no reason to stop.",
        Refusal.TEMPERATURE_BATTERY,
    ),
    "temperature.battery_c_min_resume": FieldWords(
        "5 above if not written", "It begins again when the battery is up to {}."
    ),
    "temperature.ambient_c_max": FieldWords(
        "outside",
        "It stops when it is warmer outside than {}.",
        "Heat outside is no reason to stop.",
        Refusal.TEMPERATURE_AMBIENT,
    ),
    "temperature.ambient_c_resume": FieldWords(
        "5 below if not written", "It begins again when it is down to {} outside."
    ),
    "power.compute_mw_max": FieldWords(
        "what the computer may draw",
        "It stops when the computer draws more than {}.",
        "There is no cap on the computer's power.",
        Refusal.POWER_CAP,
    ),
    "power.compute_mw_resume": FieldWords(
        "80 % of it if not written", "It begins again when the computer draws {} or less."
    ),
    "power.low_voltage_mv_min": FieldWords(
        "the low-voltage battery; 12,200 is right for lead-acid",
        "It stops when the low-voltage battery falls below {}.",
        "The low-voltage battery is not looked at.",
        Refusal.LOW_VOLTAGE,
    ),
    "power.low_voltage_mv_resume": FieldWords(
        "300 above if not written", "It begins again when the low-voltage battery is at {}."
    ),
    "power.others_percent_max": FieldWords(
        "what programs that are not ours may use of the processor",
        "It stops when other programs use more than {} of the processor.",
        "Other programs are no reason to stop.",
        Refusal.OTHERS_BUSY,
    ),
    "power.others_percent_resume": FieldWords(
        "80 % of it if not written", "It begins again when other programs use {} or less."
    ),
    "activity.allows_preconditioning": FieldWords(
        "also while the car heats or cools itself for a drive",
        "It works also while the car heats or cools itself for a drive.",
        "It does not work while the car heats or cools itself for a drive.",
    ),
    "activity.allows_sentry": FieldWords(
        "also while the car watches over itself",
        "It works also while the car watches over itself.",
        "It does not work while the car watches over itself.",
    ),
    "activity.needs_all": FieldWords(
        "a car that does not say whether it does these, or is updated, or in service, refuses",
        "A car that does not say whether it heats up, watches, is updated or in service refuses.",
        "A car that does not say whether it heats up, watches, is updated or in service works.",
    ),
    "wear.pack_mwh": FieldWords(
        "energy through the battery a day; see [wear](wear.md)",
        "Work takes {} a day out of the battery at the most.",
        refusal=Refusal.WEAR_BUDGET,
    ),
    "wear.electronics_ms": FieldWords(
        "weighted hours of the electronics a day",
        "Work wears the electronics by {} a day at the most, counted at 90 °C.",
        refusal=Refusal.WEAR_BUDGET,
    ),
    "wear.flash_bytes": FieldWords(
        "bytes written to flash a day",
        "It writes {} a day to flash at the most.",
        refusal=Refusal.WEAR_BUDGET,
    ),
    "wear.resume_percent": FieldWords(
        "an account at its cap permits again below this share of it",
        "An account of wear that was at its cap permits again below {} of it.",
    ),
    "work.kinds": FieldWords("which kinds of work", "It does {} work only."),
    "work.endpoints": FieldWords(
        "`embeddings`, `completions`, `chat`, or an endpoint's path; none: all",
        "It does only work of {}.",
        "It does work of all endpoints.",
    ),
    "work.reward_micro_per_hour_min": FieldWords(
        "what an hour must pay at the least, whatever it asks for",
        "An hour of work must pay {} at the least.",
        refusal=Refusal.REWARD_TOO_LOW,
    ),
    "yield.finish_ms": FieldWords(
        "how long work at hand may go on if it ends within that",
        "Work at hand may go on for {} where nobody waits for the car.",
        "Work at hand stops at once.",
    ),
    "yield.stop_ms": FieldWords(
        "how long the runtime may take to stop by itself",
        "The runtime has {} to stop by itself.",
        "The runtime is ended without waiting for it.",
    ),
    "yield.suspend_ms": FieldWords(
        "how long it may stay in memory, off the processor, where the car is likely to be free"
        " again soon",
        "The runtime may stay in memory for {}, off the processor, if you are likely to be gone"
        " again soon.",
        "The runtime never stays in memory while you are there.",
    ),
    "yield.release_ms": FieldWords(
        "after so long a kill is repeated", "A runtime that does not end is killed again after {}."
    ),
    "yield.settle_ms": FieldWords(
        "how long all must be well before work begins",
        "All must be well for {} before work begins.",
        "Work begins as soon as all is well.",
    ),
    "yield.stale_ms": FieldWords(
        "how old a sample may be", "Readings older than {} are not believed."
    ),
    "terms.tariff.micro_per_kwh": FieldWords(
        "what you pay for a kWh, in millionths of the currency", "You pay {} a kWh."
    ),
    "terms.tariff.windows": FieldWords(
        "hours with another price: micro_per_kwh, begin_minute, end_minute, weekdays (0 Monday)",
        "You pay {}.",
        "Your energy has one price at all hours.",
    ),
    "terms.pack.chemistry": FieldWords(
        "the battery's: NCA or LFP; empty where it is another or unknown",
        "The battery's chemistry is {}.",
    ),
    "terms.pack.capacity_mwh": FieldWords(
        "the battery's capacity, for its wear", "The battery whose wear is counted holds {}."
    ),
    "terms.pack.price_micro": FieldWords("what the battery is worth", "The battery is worth {}."),
    "terms.pack.usable_loss_ppm": FieldWords(
        "the loss of capacity at which the battery is worn out",
        "The battery is worn out when {} of its capacity are lost.",
    ),
    "terms.pack.life.days": FieldWords(
        "the battery's life without work", "The battery shall live for {} days."
    ),
    "terms.pack.life.cycles": FieldWords(
        "full cycles in that life without work", "It makes {} full cycles without work."
    ),
    "terms.pack.life.soc_percent": FieldWords(
        "its mean charge without work", "Its mean charge is {} without work."
    ),
    "terms.pack.life.temperature_c": FieldWords(
        "its mean temperature without work", "It has {} on average without work."
    ),
    "terms.pack.life.depth_percent": FieldWords(
        "how much of its capacity a usual day takes", "A usual day takes {} of its capacity."
    ),
    "terms.pack.life.rate_per_h": FieldWords(
        "the mean power of charging and driving, over the capacity",
        "It charges and drives at {} of its capacity an hour on average.",
    ),
    "terms.computer.price_micro": FieldWords(
        "what the computer is worth", "The computer is worth {}."
    ),
    "terms.computer.life_ms": FieldWords(
        "the electronics' life, in hours at 90 °C", "The electronics live for {} at 90 °C."
    ),
    "terms.computer.flash_price_micro": FieldWords(
        "what the flash is worth", "The flash is worth {}."
    ),
    "terms.computer.flash_life_bytes": FieldWords(
        "what can be written to the flash in its life", "The flash bears {} in its life."
    ),
    "terms.margin_percent": FieldWords(
        "what you want on top of energy and wear", "You want {} on top of energy and wear."
    ),
    "terms.margin_micro_per_hour": FieldWords(
        "what you want on top at the least, for an hour of work",
        "You want {} an hour on top at the least.",
    ),
    "terms.overhead_mw": FieldWords(
        "what the car draws only because it is awake",
        "Being awake takes {}, charged to work that keeps the car awake.",
    ),
    "terms.converter_loss_ppm": FieldWords(
        "what is lost between battery and computer", "{} are lost between battery and computer."
    ),
    "terms.charging_loss_ppm": FieldWords(
        "what is lost in charging; none: it follows from the charging power",
        "{} are lost in charging.",
        "The loss in charging follows from the charging power.",
    ),
}
"""Every field of a policy, by its path."""


def fields(policy: msgspec.Struct, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each field of a policy with its value, by its path; tables are gone into."""
    for field in msgspec.structs.fields(policy):
        value = getattr(policy, field.name)
        if isinstance(value, msgspec.Struct):
            yield from fields(value, f"{path}{field.encode_name}.")
        else:
            yield f"{path}{field.encode_name}", value


def wishes(policy: OwnerPolicy) -> list[Wish]:
    """Every field that says something else than the default, in a sentence each."""
    usual = dict(fields(OwnerPolicy()))
    return [
        Wish(path, value, sentence_of(path, value), FIELDS[path].refusal)
        for path, value in fields(policy)
        if value != usual[path]
    ]


def sentence_of(path: str, value: Any) -> str:
    """What a value of a field comes to."""
    words = FIELDS[path]
    is_nothing = value is None or value is False or value in ((), "")
    if path.startswith("yield.") and value == 0:
        is_nothing = True
    if is_nothing:
        return words.without or f"{path} is not set: {words.means}."
    return words.wish.format(in_words(path, value))


def in_words(path: str, value: Any) -> str:
    """A value with its unit, which is in the name of its field."""
    name = path.rpartition(".")[2]
    if isinstance(value, tuple):
        return _list(value)
    for ending, written in _UNITS:
        if f"_{name}_".find(ending) >= 0 and isinstance(value, int | float):
            return written(value)
    return str(value)


def _list(values: tuple[Any, ...]) -> str:
    return ", and ".join(map(_entry, values))


def _entry(value: Any) -> str:
    match value:
        case Window(days=days, begin=begin, end=end):
            return f"{_days(days)} from {begin} to {end}"
        case Departure(days=days, at=at, soc_percent=soc):
            return f"{_days(days)} at {at} with {soc:g} %"
        case TariffWindow(micro_per_kwh=micro, begin_minute=begin, end_minute=end, weekdays=days):
            named = tuple(DAYS[day] for day in days)
            return f"{_days(named)} from {_clock(begin)} to {_clock(end)} {_money(micro)} a kWh"
        case _:
            return str(value)


def _days(days: tuple[str, ...]) -> str:
    return "every day" if set(days) == set(DAYS) else "on " + " ".join(days)


def _clock(minute: int) -> str:
    return f"{minute // _MINUTES_PER_HOUR:02}:{minute % _MINUTES_PER_HOUR:02}"


def _money(micro: float) -> str:
    return f"{micro / MICRO:g}"


def _time(value_ms: float) -> str:
    if value_ms >= MS_PER_HOUR:
        return f"{value_ms / MS_PER_HOUR:.3g} h"
    return amounts.length(int(value_ms))


# The first that stands in a name: a price per kWh is money, not energy.
_UNITS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("_micro_", _money),
    ("_percent_", lambda value: f"{value:g} %"),
    ("_ppm_", lambda value: f"{value / _PPM_PER_PERCENT:g} %"),
    ("_mwh_", lambda value: amounts.energy(int(value))),
    ("_mw_", lambda value: f"{value / _PER_MILLI:g} W"),
    ("_mv_", lambda value: f"{value / _PER_MILLI:g} V"),
    ("_c_", lambda value: f"{value:g} °C"),
    ("_bytes_", lambda value: amounts.data(int(value))),
    ("_ms_", _time),
)
