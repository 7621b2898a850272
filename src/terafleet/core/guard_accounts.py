"""What compute takes from a car, and what its owner asks for it: counted in the guard.

Time of work is split among the leases that run at the same moment, so that all of them together
are asked for what the car spends, and no more. It knows no permits and no leases by name.
"""

import math
from typing import NamedTuple

import msgspec

from terafleet.core.asking_price import Conditions, OwnerTerms, Usage, asking_price, wear_of
from terafleet.core.day_use import NOTHING_USED, DayUse, with_link_bytes, with_wear
from terafleet.core.local_time import MS_PER_DAY, MS_PER_WEEK, local_day
from terafleet.core.policy import OwnerPolicy
from terafleet.core.readings import Readings
from terafleet.core.tariff import Tariff, dearest_price
from terafleet.core.units import MS_PER_HOUR, MWH_PER_KWH

PERCENT = 100

TEMPERATURE_C_MIN, TEMPERATURE_C_MAX = -60.0, 150.0
"""No car's sensor is right beyond these."""

JUNCTION_ABOVE_C = 10.0
"""How much hotter the hottest junction is taken to be than the sensor beside it says."""

JUNCTION_UNKNOWN_C = 90.0
"""The reference temperature of electronics wear: a car that does not say counts hour for hour."""

PACK_UNKNOWN_C = 30.0
"""Warmer than packs mostly are: one that does not say shall not count as cool."""

SOC_UNKNOWN_PERCENT = 100.0
"""The charge at which a pack ages fastest."""

CHARGING_UNKNOWN_MW = 2_300_000
"""A household's socket: the charging power at which most is lost of those that were measured."""


class CarSpending(msgspec.Struct, frozen=True, array_like=True):
    """What compute took on one local day: time of work, energy, attempts, and what was asked."""

    day: int = -1
    work_ms: int = 0
    computer_mwh: int = 0
    attempts: int = 0
    asked_micro: int = 0


class CarBook(msgspec.Struct, frozen=True, array_like=True):
    """What outlives the agent's process: the use that caps are held to, and the day's spending.

    `work_ms` and `work_mwh` are of work whose wear is not written down yet, `owed_micro` is what
    no receipt has asked for so far. `utc_offset_ms` tells when the day ends.
    """

    usage: DayUse = NOTHING_USED
    spending: CarSpending = CarSpending()
    utc_offset_ms: int = 0
    work_ms: int = 0
    work_mwh: int = 0
    owed_micro: float = 0.0


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """What the owner spends and loses, as things stand, for an hour of work and for a kWh of it.

    Both together are never less than what `asking_price` has for the same conditions.
    """

    micro_per_hour: float
    micro_per_kwh: float


class Share(NamedTuple):
    """One lease's share of the time of work, what was spent on it, and the price of its energy.

    That is the sum over its ms of the micro-units that a kWh took at each of them: nobody knows
    when in an attempt its energy was drawn, so it counts as drawn evenly.
    """

    ms: float = 0.0
    micro: float = 0.0
    kwh_micro_ms: float = 0.0

    def since(self, mark: "Share") -> "Share":
        """What has come to it since a mark."""
        ms, micro, kwh_micro_ms = mark
        return Share(self.ms - ms, self.micro - micro, self.kwh_micro_ms - kwh_micro_ms)


def conditions_of(readings: Readings, now_ms: int) -> Conditions:
    """How the car stands, by its readings; what is missing is taken for the worse.

    While it charges, the work's energy comes from the charger and not out of the pack, and the
    car is awake anyway; so it is while it guards itself or is being warmed.
    """
    is_awake = bool(readings.is_charging or readings.is_sentry_on or readings.is_preconditioning)
    # What is taken out of the pack is charged again later, nobody knows how.
    charging_mw = readings.charging_mw if readings.is_charging else None
    junction_c = _temperature(readings.compute_temperature_c)
    pack_c = _temperature(readings.battery_temperature_c)
    return Conditions(
        local_ms=now_ms + readings.utc_offset_ms,
        soc_percent=_charge(readings.soc_percent),
        pack_temperature_c=PACK_UNKNOWN_C if pack_c is None else pack_c,
        junction_c=JUNCTION_UNKNOWN_C if junction_c is None else junction_c + JUNCTION_ABOVE_C,
        is_through_pack=not readings.is_charging,
        recharged_within_ms=MS_PER_DAY if readings.is_plugged_in else MS_PER_WEEK,
        charging_mw=CHARGING_UNKNOWN_MW if charging_mw is None else charging_mw,
        keeps_awake=not is_awake,
    )


def rate_of(terms: OwnerTerms, conditions: Conditions, hold_ms: int) -> Rate:
    """The rate of work that is done in these conditions within so much time from now on.

    Energy has the dearest price of that time, or of all the time until it is charged again. Each
    part is taken at its most: a pack of unknown chemistry wears as one that hates time and as one
    that hates cycles.
    """
    if conditions.is_through_pack:
        hold_ms += conditions.recharged_within_ms
    flat = Tariff(dearest_price(terms.tariff, conditions.local_ms, hold_ms))
    terms = msgspec.structs.replace(terms, tariff=flat)
    by_time = asking_price(terms, conditions, Usage(MS_PER_HOUR, 0))
    by_energy = asking_price(terms, conditions, Usage(0, MWH_PER_KWH))
    return Rate(by_time.spent_micro, by_energy.spent_micro)


class CarAccounts:
    """The accounts of one car. Time comes in with `advance`; conditions with `read`."""

    def __init__(self, book: CarBook) -> None:
        self._usage = book.usage
        self._spending = book.spending
        self._utc_offset_ms = book.utc_offset_ms
        self._work_ms = book.work_ms
        self._work_mwh = book.work_mwh
        self._owed_micro = book.owed_micro
        self._policy = OwnerPolicy()
        self._conditions: Conditions | None = None
        self._seen_ms = 0
        self._each = Share()
        """What a lease would have that had run from the first moment on until this rate held."""
        self._each_ms = 0.0
        """What it would have since then."""
        self.rate: Rate | None = None
        self.limit_micro_per_hour: int | None = None
        """Up to what the fleet meets what is asked; None is that it has not said so."""

    @property
    def usage(self) -> DayUse:
        """What the owner's caps are held to."""
        return self._usage

    @property
    def spending(self) -> CarSpending:
        """What compute took on the latest day."""
        return self._spending

    @property
    def each(self) -> Share:
        """A mark of this moment: what comes since a mark is one lease's share."""
        ms, micro, kwh_micro_ms = self._each
        new_ms, rate = self._each_ms, self.rate
        if rate is None or not new_ms:
            return self._each
        return Share(
            ms + new_ms,
            micro + new_ms * rate.micro_per_hour / MS_PER_HOUR,
            kwh_micro_ms + new_ms * rate.micro_per_kwh,
        )

    def book(self) -> CarBook:
        """What outlives the process."""
        return CarBook(
            self._usage,
            self._spending,
            self._utc_offset_ms,
            self._work_ms,
            self._work_mwh,
            self._owed_micro,
        )

    def forget_process(self, at_ms: int) -> None:
        """The car's sensors have not been read since the agent began, nor has the fleet spoken.

        What was not written down before is taken for the worst when it is.
        """
        self._conditions = self.rate = self.limit_micro_per_hour = None
        self._each, self._each_ms, self._seen_ms = Share(), 0.0, at_ms

    def advance(self, at_ms: int, running: int) -> None:
        """Time has passed in which so many leases ran."""
        passed_ms = at_ms - self._seen_ms
        self._seen_ms = at_ms
        if running and passed_ms > 0:
            self._work_ms += passed_ms
            self._each_ms += passed_ms / running

    def change_policy(self, policy: OwnerPolicy, at_ms: int) -> None:
        """Other terms hold from here on."""
        self._settle()
        self._policy = policy
        if self._conditions is not None:
            self._stand(msgspec.structs.replace(self._conditions, local_ms=self._local_ms(at_ms)))

    def read(self, readings: Readings, at_ms: int) -> None:
        """The sensors were read: what was done until here is written down as it stood before."""
        self._settle()
        self._utc_offset_ms = readings.utc_offset_ms
        self._stand(conditions_of(readings, at_ms))

    def link_used(self, link_bytes: int, at_ms: int) -> None:
        """Bytes have gone over the link, either way."""
        self._usage = with_link_bytes(self._usage, link_bytes, self._day(at_ms))

    def flash_written(self, flash_bytes: int) -> None:
        """The agent and its children have written to the car's flash; the next receipts ask for it.

        That is too little at a time to be rounded up each time.
        """
        self._write_down(Usage(0, 0, flash_bytes))
        terms = self._policy.terms
        share = flash_bytes / terms.computer.flash_life_bytes
        margin = 1 + terms.margin_percent / PERCENT
        self._owed_micro += share * terms.computer.flash_price_micro * margin

    def paid(self, share: Share, computer_mwh: int, attempts: int) -> int:
        """What is asked for attempts that gave results, in micro-units; it counts as asked.

        What is owed is asked with it, as far as the fleet meets so much for such a time.
        """
        asked = self._asked(share, computer_mwh)
        if self._owed_micro:
            asked += self._owed_within(share, asked)
        self._count(computer_mwh, attempts, asked)
        return asked

    def made_good(self, share: Share, computer_mwh: int) -> int:
        """What attempts took of which nothing came, in micro-units: no margin on that."""
        spent = math.ceil(self._spent(share, computer_mwh))
        self._count(computer_mwh, 0, spent)
        return spent

    def owe(self, share: Share, computer_mwh: int) -> None:
        """What attempts took under a lease that the fleet has ended, and of which no receipt tells.

        Later receipts ask for it.
        """
        self._owed_micro += self._spent(share, computer_mwh)
        self._count(computer_mwh, 0, 0)

    def asking_per_hour(self, computer_mw: int) -> int | None:
        """What an hour of work asks with a computer that draws so much; None without readings."""
        if self.rate is None:
            return None
        share = Share(MS_PER_HOUR, self.rate.micro_per_hour, self.rate.micro_per_kwh * MS_PER_HOUR)
        return self._asked(share, computer_mw)

    def _spent(self, share: Share, computer_mwh: int) -> float:
        kwh_micro = share.kwh_micro_ms / share.ms if share.ms > 0 else 0.0
        if share.ms <= 0 and self.rate is not None:
            kwh_micro = self.rate.micro_per_kwh
        return share.micro + kwh_micro * computer_mwh / MWH_PER_KWH

    def _asked(self, share: Share, computer_mwh: int) -> int:
        """What is spent and the owner's margin, but at least what the owner wants for the time."""
        terms, hours = self._policy.terms, share.ms / MS_PER_HOUR
        spent = self._spent(share, computer_mwh)
        margin = max(spent * terms.margin_percent / PERCENT, terms.margin_micro_per_hour * hours)
        return math.ceil(max(spent + margin, self._policy.work.reward_micro_per_hour_min * hours))

    def _owed_within(self, share: Share, asked_micro: int) -> int:
        """Take of what is owed what may be asked beside so much."""
        owed = math.ceil(self._owed_micro)
        if self.limit_micro_per_hour is not None:
            most = self.limit_micro_per_hour * share.ms / MS_PER_HOUR
            owed = min(owed, max(0, math.floor(most) - asked_micro))
        self._owed_micro = max(0.0, self._owed_micro - owed)
        return owed

    def _count(self, computer_mwh: int, attempts: int, asked_micro: int) -> None:
        self._work_mwh += computer_mwh
        today = self._today()
        self._spending = CarSpending(
            today.day,
            today.work_ms,
            today.computer_mwh + computer_mwh,
            today.attempts + attempts,
            today.asked_micro + asked_micro,
        )

    def _settle(self) -> None:
        """Write down what was done in the conditions that held while it was done."""
        if self._work_ms or self._work_mwh:
            work_ms, work_mwh = self._work_ms, self._work_mwh
            self._work_ms = self._work_mwh = 0
            today = self._today()
            done_ms = today.work_ms + work_ms
            self._spending = msgspec.structs.replace(today, work_ms=done_ms)
            self._write_down(Usage(work_ms, work_mwh))

    def _write_down(self, usage: Usage) -> None:
        conditions = self._conditions or _NOTHING_KNOWN
        worn = wear_of(self._policy.terms, conditions, usage)
        self._usage = with_wear(self._usage, worn, self._day(self._seen_ms))

    def _stand(self, conditions: Conditions) -> None:
        """Other conditions or terms hold from here on, at the longest until the sample is stale."""
        self._each, self._each_ms = self.each, 0.0
        self._conditions = conditions
        self.rate = rate_of(self._policy.terms, conditions, self._policy.giving_back.stale_ms)

    def _today(self) -> CarSpending:
        day = self._day(self._seen_ms)
        return self._spending if day <= self._spending.day else CarSpending(day)

    def _day(self, at_ms: int) -> int:
        return local_day(self._local_ms(at_ms))

    def _local_ms(self, at_ms: int) -> int:
        return at_ms + self._utc_offset_ms


_NOTHING_KNOWN = Conditions(0, SOC_UNKNOWN_PERCENT, PACK_UNKNOWN_C, JUNCTION_UNKNOWN_C)


def _temperature(value: float | None) -> float | None:
    """A sensor may also give what is no number, or no temperature of a car."""
    if value is None or not value >= TEMPERATURE_C_MIN:
        return None
    return min(value, TEMPERATURE_C_MAX)


def _charge(value: float | None) -> float:
    is_known = value is not None and 0 <= value <= SOC_UNKNOWN_PERCENT
    return value if value is not None and is_known else SOC_UNKNOWN_PERCENT
