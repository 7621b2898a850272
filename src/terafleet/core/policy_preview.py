"""What an owner policy would have lent and earned over recorded readings.

It plays the guard's rule, settling included, over what was recorded; it knows no work: it takes
it that there always was some, and that the computer drew the same power all the time.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import msgspec

from terafleet.core.asking_price import (
    AskingPrice,
    Conditions,
    Usage,
    asking_price_per_hour,
    wear_of,
)
from terafleet.core.day_use import NOTHING_USED, DayUse
from terafleet.core.guard_accounts import conditions_of
from terafleet.core.local_time import local_day
from terafleet.core.policy import OwnerPolicy, is_reward_enough
from terafleet.core.readings import Readings
from terafleet.core.reasons import Refusal
from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE, energy_mwh
from terafleet.core.wear import add

Refuses = Callable[[OwnerPolicy, Readings | None, DayUse, bool, int], Iterable[str]]
"""The rule: policy, readings, what the day has used, whether the car permits, and the time."""

HOLD_MS = 11 * MS_PER_MINUTE
"""So long a recorded sample holds: recordings say something every ten minutes at the least."""
STEP_MS = MS_PER_MINUTE
"""At each full minute the rule is asked again, as a policy has hours by its clock."""
QUARTER_MS = 15 * MS_PER_MINUTE

NOT_RECORDED = "not_recorded"
"""The reason of the time for which there is no sample; who knows whether it was allowed."""

WORKING_C = 60.0
"""A computer that works is so warm, or as warm as the policy lets it be; a recording is mostly of
one that rests."""


class Lending(msgspec.Struct, frozen=True):
    """What would have been lent: a computer that draws so much, and what an hour of it is paid.

    That is `reward_micro_per_hour`, or what the owner asks for where that is more, which is met up
    to `asking_micro_per_hour_max`.
    """

    computer_mw: int
    reward_micro_per_hour: int = 0
    asking_micro_per_hour_max: int = 0


class Preview(msgspec.Struct, frozen=True):
    """What came of it. Times in ms, `lent_ms` and `refused_ms` add up to the span.

    `reasons_ms` is how long each reason held; as several may hold at once, they add up to more.
    `stays` are the parked intervals that were recorded, `permits` the intervals that were lent.
    `spent_micro` is what energy and wear would have taken of the reward.
    """

    from_ms: int
    until_ms: int
    lent_ms: int
    refused_ms: int
    reasons_ms: dict[str, int]
    stays: int
    longest_stay_ms: int
    permits: int
    longest_permit_ms: int
    computer_mwh: int
    reward_micro: int
    spent_micro: int

    @property
    def earned_micro(self) -> int:
        """What would have been left to the owner."""
        return self.reward_micro - self.spent_micro


class _Slice(msgspec.Struct, frozen=True):
    """An interval over which nothing changes; None was not recorded. Ends before `until_ms`."""

    readings: Readings | None
    from_ms: int
    until_ms: int


class _Longest:
    """Counts intervals that are told piece by piece, and knows the longest."""

    def __init__(self) -> None:
        self.count = 0
        self.longest_ms = 0
        self._so_far_ms = 0

    def tell(self, is_on: bool, duration_ms: int) -> None:
        if not is_on:
            self._so_far_ms = 0
            return
        if not self._so_far_ms:
            self.count += 1
        self._so_far_ms += duration_ms
        self.longest_ms = max(self.longest_ms, self._so_far_ms)


def preview(
    samples: Iterable[Readings],
    policy: OwnerPolicy,
    refuses: Refuses,
    lending: Lending,
    span_ms: tuple[int, int] | None = None,
) -> Preview:
    """What the policy would have done with samples that come in time order.

    `span_ms` is from when until when; without it, from the first sample to the last. Samples
    outside of it are left out, and time without a sample refuses.
    """
    played = _Play(policy, refuses, lending)
    first_ms = last_ms = span_ms[0] if span_ms else 0
    for number, one in enumerate(_slices(samples, span_ms)):
        first_ms = first_ms if number else one.from_ms
        last_ms = one.until_ms
        for piece in _pieces(one):
            played.take(piece)
    return played.result(first_ms, last_ms)


def working(policy: OwnerPolicy, readings: Readings) -> Readings:
    """What the sensors would say of a car that works; one that was recorded mostly rests.

    What it has no sensor for stays unknown, and counts as the guard counts it.
    """
    recorded_c = readings.compute_temperature_c
    if recorded_c is None:
        return readings
    limit_c = policy.temperature.compute_c_max
    warm_c = WORKING_C if limit_c is None else min(WORKING_C, limit_c)
    return msgspec.structs.replace(readings, compute_temperature_c=max(recorded_c, warm_c))


def _slices(samples: Iterable[Readings], span_ms: tuple[int, int] | None) -> Iterator[_Slice]:
    """The time from the beginning to the end without a hole, by the sample that holds."""
    least_ms, most_ms = span_ms or (0, None)
    held: Readings | None = None
    at_ms = least_ms if span_ms else None
    for sample in chain(samples, [None]):
        end_ms = sample.at_ms if sample is not None else most_ms
        if end_ms is not None and most_ms is not None:
            end_ms = min(end_ms, most_ms)
        if at_ms is not None and end_ms is not None and end_ms > at_ms:
            yield from _held(held, at_ms, end_ms)
            at_ms = end_ms
        if sample is None:
            return
        assert held is None or sample.at_ms >= held.at_ms, "samples come in time order"
        held = sample
        at_ms = sample.at_ms if at_ms is None else at_ms


def _held(held: Readings | None, from_ms: int, until_ms: int) -> Iterator[_Slice]:
    known_until_ms = from_ms if held is None else min(until_ms, held.at_ms + HOLD_MS)
    if known_until_ms > from_ms:
        yield _Slice(held, from_ms, known_until_ms)
    if until_ms > max(from_ms, known_until_ms):
        yield _Slice(None, max(from_ms, known_until_ms), until_ms)


def _pieces(one: _Slice) -> Iterator[_Slice]:
    """The slice cut at each full minute."""
    if one.readings is None:
        yield one
        return
    at_ms = one.from_ms
    while at_ms < one.until_ms:
        next_ms = min(one.until_ms, at_ms - at_ms % STEP_MS + STEP_MS)
        yield _Slice(msgspec.structs.replace(one.readings, at_ms=at_ms), at_ms, next_ms)
        at_ms = next_ms


class _Play:
    """The guard's rule as it goes over the pieces, and the sums of what came of it."""

    def __init__(self, policy: OwnerPolicy, refuses: Refuses, lending: Lending) -> None:
        self._policy = policy
        self._refuses = refuses
        self._lending = lending
        self._used = NOTHING_USED
        self._is_permitting = False
        self._well_since_ms: int | None = None
        self._stays = _Longest()
        self._permits = _Longest()
        self._lent_ms = self._refused_ms = 0
        self._reasons_ms: dict[str, int] = {}
        # In micro-units times ms of an hour, so that nothing is rounded before the end.
        self._reward = self._spent = 0
        self._asked: tuple[Conditions, AskingPrice] | None = None

    def take(self, piece: _Slice) -> None:
        """Go over one piece; settling may end within it."""
        is_parked = piece.readings is not None and piece.readings.is_parked is True
        self._stays.tell(is_parked, piece.until_ms - piece.from_ms)
        if piece.readings is None:
            self._is_permitting, self._well_since_ms = False, None
            self._refuse((NOT_RECORDED,), piece.until_ms - piece.from_ms)
            return
        found = self._found(piece.readings, piece.from_ms)
        if found:
            self._is_permitting, self._well_since_ms = False, None
            self._refuse(found, piece.until_ms - piece.from_ms)
            return
        lends_from_ms = piece.from_ms
        if not self._is_permitting:
            lends_from_ms = self._settled_ms(piece)
        if lends_from_ms > piece.from_ms:
            self._refuse((Refusal.SETTLING,), lends_from_ms - piece.from_ms)
        if lends_from_ms < piece.until_ms:
            self._is_permitting = True
            self._lend(piece.readings, piece.until_ms - lends_from_ms)

    def _settled_ms(self, piece: _Slice) -> int:
        if self._well_since_ms is None:
            self._well_since_ms = piece.from_ms
        settled_ms = self._well_since_ms + self._policy.giving_back.settle_ms
        return min(piece.until_ms, max(piece.from_ms, settled_ms))

    def _found(self, readings: Readings, at_ms: int) -> tuple[str, ...]:
        """The reasons; a car that stops to permit has those of its second levels from then on."""
        stops = self._asked_at(readings, at_ms, True) if self._is_permitting else ()
        if self._is_permitting and not stops:
            return ()
        return self._asked_at(readings, at_ms, False) or stops

    def _asked_at(self, readings: Readings, at_ms: int, is_permitting: bool) -> tuple[str, ...]:
        return tuple(self._refuses(self._policy, readings, self._used, is_permitting, at_ms))

    def _refuse(self, reasons: Iterable[str], duration_ms: int) -> None:
        self._refused_ms += duration_ms
        for reason in reasons:
            self._reasons_ms[str(reason)] = self._reasons_ms.get(str(reason), 0) + duration_ms
        self._permits.tell(False, duration_ms)

    def _lend(self, readings: Readings, duration_ms: int) -> None:
        conditions = conditions_of(working(self._policy, readings), readings.at_ms)
        asked = self._ask(conditions)
        reward_micro = self._paid_micro(asked)
        if not is_reward_enough(self._policy, asked, reward_micro, MS_PER_HOUR):
            self._refuse((Refusal.REWARD_TOO_LOW,), duration_ms)
            return
        self._lent_ms += duration_ms
        self._reward += reward_micro * duration_ms
        self._spent += asked.spent_micro * duration_ms
        self._permits.tell(True, duration_ms)
        self._wear(readings, conditions, duration_ms)

    def _paid_micro(self, asked: AskingPrice) -> int:
        """What an hour is paid."""
        wanted_micro = max(asked.total_micro, self._policy.work.reward_micro_per_hour_min)
        met_micro = min(wanted_micro, self._lending.asking_micro_per_hour_max)
        return max(met_micro, self._lending.reward_micro_per_hour)

    def _ask(self, conditions: Conditions) -> AskingPrice:
        """The asking price, computed anew only when the car stands otherwise."""
        # A tariff seldom has finer steps than a quarter of an hour.
        begun_ms = conditions.local_ms - conditions.local_ms % QUARTER_MS
        begun = msgspec.structs.replace(conditions, local_ms=begun_ms)
        if self._asked is None or self._asked[0] != begun:
            terms, power_mw = self._policy.terms, self._lending.computer_mw
            self._asked = begun, asking_price_per_hour(terms, begun, power_mw)
        return self._asked[1]

    def _wear(self, readings: Readings, conditions: Conditions, duration_ms: int) -> None:
        usage = Usage(duration_ms, energy_mwh(self._lending.computer_mw, duration_ms))
        worn = wear_of(self._policy.terms, conditions, usage)
        day = local_day(readings.at_ms + readings.utc_offset_ms)
        self._used = msgspec.structs.replace(self._used, wear=add(self._used.wear, worn, day))

    def result(self, from_ms: int, until_ms: int) -> Preview:
        """All sums; the reward is rounded down, what is spent up."""
        return Preview(
            from_ms=from_ms,
            until_ms=until_ms,
            lent_ms=self._lent_ms,
            refused_ms=self._refused_ms,
            reasons_ms=dict(sorted(self._reasons_ms.items())),
            stays=self._stays.count,
            longest_stay_ms=self._stays.longest_ms,
            permits=self._permits.count,
            longest_permit_ms=self._permits.longest_ms,
            computer_mwh=energy_mwh(self._lending.computer_mw, self._lent_ms),
            reward_micro=self._reward // MS_PER_HOUR,
            spent_micro=-(-self._spent // MS_PER_HOUR),
        )
