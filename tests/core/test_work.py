"""The size of work units and the rule that cuts a batch."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.core import events as ev
from terafleet.core import guard_events
from terafleet.core.ids import Epoch, LeaseId, VehicleId, WorkUnitId
from terafleet.core.units import divide_up, energy_mwh
from terafleet.core.verification import Appraisal, appraise_count
from terafleet.core.work import (
    BATCH_ENDS,
    UNIT_COST_MIN,
    UNIT_INPUT_BYTES_MAX,
    UNIT_REQUESTS_MAX,
    AttemptResult,
    BatchState,
    cut,
    predicted_cost,
    unit_cost,
)

requests = st.lists(
    st.tuples(st.integers(0, 5_000), st.integers(0, UNIT_INPUT_BYTES_MAX * 3 // 2)), max_size=80
)
many = st.integers(0, 3 * UNIT_REQUESTS_MAX)


@given(requests=requests, cost_per_unit=st.integers(0, 10_000))
def test_a_cut_covers_every_request_once_and_in_order(
    requests: list[tuple[int, int]], cost_per_unit: int
) -> None:
    costs, sizes = [cost for cost, _ in requests], [size for _, size in requests]
    units = cut(costs, sizes, cost_per_unit)
    assert [index for unit in units for index in unit] == list(range(len(requests)))
    assert all(len(unit) > 0 for unit in units)


@given(requests=requests, cost_per_unit=st.integers(0, 10_000))
def test_no_unit_is_too_large_but_for_a_single_request_that_is(
    requests: list[tuple[int, int]], cost_per_unit: int
) -> None:
    costs, sizes = [cost for cost, _ in requests], [size for _, size in requests]
    for unit in cut(costs, sizes, cost_per_unit):
        if len(unit) > 1:
            assert sum(costs[unit.start : unit.stop]) <= cost_per_unit
            assert sum(sizes[unit.start : unit.stop]) <= UNIT_INPUT_BYTES_MAX


@given(requests=requests, cost_per_unit=st.integers(0, 10_000))
def test_no_two_neighbours_would_fit_into_one_unit(
    requests: list[tuple[int, int]], cost_per_unit: int
) -> None:
    costs, sizes = [cost for cost, _ in requests], [size for _, size in requests]
    units = cut(costs, sizes, cost_per_unit)
    for unit, following in itertools.pairwise(units):
        stop = following.start + 1
        assert (
            sum(costs[unit.start : stop]) > cost_per_unit
            or sum(sizes[unit.start : stop]) > UNIT_INPUT_BYTES_MAX
            or len(unit) == UNIT_REQUESTS_MAX
        )


@given(count=many)
def test_no_unit_has_too_many_requests(count: int) -> None:
    units = cut([0] * count, [0] * count, 1)
    assert all(len(unit) <= UNIT_REQUESTS_MAX for unit in units)
    assert len(units) == divide_up(count, UNIT_REQUESTS_MAX)


def test_costs_and_sizes_belong_together() -> None:
    with pytest.raises(ValueError, match="zip"):
        cut([1, 2], [1], 10)


def test_a_request_larger_than_a_unit_is_a_unit_of_its_own() -> None:
    assert cut([1, 500, 1], [1, 1, 1], 100) == [range(1), range(1, 2), range(2, 3)]


@given(
    total=st.integers(0, 10**12), tokens_per_s=st.integers(1, 10**6), slots=st.integers(0, 10**6)
)
def test_a_unit_is_short_and_never_tiny(total: int, tokens_per_s: int, slots: int) -> None:
    cost = unit_cost(total, tokens_per_s, slots)
    assert cost >= UNIT_COST_MIN
    assert cost <= max(UNIT_COST_MIN, tokens_per_s * 20), "20 s of a typical slot"


def test_a_batch_is_cut_finely_enough_for_all_slots() -> None:
    assert unit_cost(1_200_000, 10_000, 1) == 100_000, "twelve for one slot"
    assert unit_cost(1_200_000, 10_000, 10) == 10_000, "twelve for each of ten"
    assert unit_cost(1_200_000, 10_000, 0) == unit_cost(1_200_000, 10_000, 1)
    assert unit_cost(10**9, 1_000, 1) == 20_000, "twenty seconds at a thousand a second"
    assert unit_cost(1, 1_000, 1) == UNIT_COST_MIN


def test_the_predicted_work_of_a_request() -> None:
    assert predicted_cost(0, 0) == 4
    assert predicted_cost(1, 0) == 5, "a part of a token is a token"
    assert predicted_cost(400, 32) == 4 + 100 + 32


def test_the_ends_of_a_batch() -> None:
    going_on = {
        BatchState.VALIDATING,
        BatchState.IN_PROGRESS,
        BatchState.FINALIZING,
        BatchState.CANCELLING,
    }
    assert set(BatchState) - BATCH_ENDS == going_on


# Verification and units of measure.


@pytest.mark.parametrize(
    ("requests", "answers", "failed", "appraisal"),
    [
        (3, 3, 0, Appraisal.VALID),
        (3, 3, 3, Appraisal.VALID),
        (3, 2, 0, Appraisal.INVALID),
        (3, 4, 0, Appraisal.INVALID),
        (3, 3, 4, Appraisal.INVALID),
        (3, 3, -1, Appraisal.INVALID),
    ],
)
def test_a_result_answers_every_request_once(
    requests: int, answers: int, failed: int, appraisal: Appraisal
) -> None:
    assert appraise_count(requests, answers, failed) is appraisal


def test_energy_is_rounded_to_the_nearest() -> None:
    assert energy_mwh(1_000, 3_600_000) == 1_000
    assert energy_mwh(1, 1_799_999) == 0
    assert energy_mwh(1, 1_800_000) == 1


@given(dividend=st.integers(0, 10**12), divisor=st.integers(1, 10**6))
def test_dividing_up_is_just_enough(dividend: int, divisor: int) -> None:
    quotient = divide_up(dividend, divisor)
    assert (quotient - 1) * divisor < dividend <= quotient * divisor


# Results.

LARGEST = 10**12
FIGURES = AttemptResult.__struct_fields__[1:]


def result_with(**figures: int) -> AttemptResult:
    """A result with these figures and the largest ones that there may be."""
    largest = dict.fromkeys(FIGURES, LARGEST)
    return AttemptResult(WorkUnitId(1), **(largest | figures))


def told_with(result: AttemptResult) -> tuple[tuple[type, msgspec.Struct], ...]:
    """The facts that hold a result, each with what it is read as."""
    car = (VehicleId("veh"), Epoch(1), LeaseId(1))
    return (
        (ev.AttemptsReturned, ev.AttemptsReturned(1, *car, (result,))),
        (
            guard_events.AttemptsFinished,
            guard_events.AttemptsFinished(1, LeaseId(1), (result,), b"digest", b"parcel"),
        ),
    )


def test_the_largest_and_the_smallest_figures_are_read() -> None:
    assert len(FIGURES) == 6
    for result in (result_with(), result_with(**dict.fromkeys(FIGURES, 0))):
        for kind, event in told_with(result):
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=kind) == event


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("figure", [-1, LARGEST + 1])
def test_a_figure_that_no_attempt_can_have_is_not_read(name: str, figure: int) -> None:
    for kind, event in told_with(result_with(**{name: figure})):
        with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
            msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=kind)
