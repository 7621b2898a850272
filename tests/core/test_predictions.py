"""How long a request takes: few samples, the median, the spread, and what outliers can do."""

from hypothesis import given, settings
from hypothesis import strategies as st

from terafleet.core.predictions import (
    SAMPLES_MAX,
    SAMPLES_MIN,
    SPREADS,
    US_PER_TOKEN_UNKNOWN,
    Durations,
)

SAMPLES = st.lists(st.integers(1, 10**9), max_size=SAMPLES_MAX)


def learnt(*ms_per_hundred_tokens: int) -> Durations:
    """What is known after requests of 100 tokens each took so long."""
    durations = Durations()
    for duration_ms in ms_per_hundred_tokens:
        durations.learn(duration_ms, 100)
    return durations


def test_with_few_samples_a_cautious_guess_stands_in() -> None:
    for samples in range(SAMPLES_MIN):
        durations = learnt(*[1] * samples)
        assert durations.usual_ms(1_000) == US_PER_TOKEN_UNKNOWN == 100_000
        assert durations.longest_ms(1_000) == 2 * US_PER_TOKEN_UNKNOWN
    assert learnt(*[1] * SAMPLES_MIN).usual_ms(1_000) == 10


def test_the_usual_is_the_median_and_the_longest_lies_spreads_above_it() -> None:
    # In µs a token: 1,000 2,000 3,000 5,000 90,000; away from the median: 2 1 0 2 87 thousand.
    durations = learnt(200, 9_000, 100, 300, 500)
    assert durations.usual_ms(100) == 300
    assert durations.longest_ms(100) == 300 + SPREADS * 200


def test_equal_samples_leave_room_for_another_one() -> None:
    durations = learnt(*[1_000] * 9)
    assert durations.usual_ms(100) == 1_000
    assert durations.longest_ms(100) == 1_000 + SPREADS * 100


def test_a_minority_of_wild_samples_moves_little() -> None:
    calm, disturbed = learnt(*[1_000] * 9), learnt(*[1_000] * 9, *[10**9] * 8)
    assert disturbed.usual_ms(100) == calm.usual_ms(100)
    assert disturbed.longest_ms(100) == calm.longest_ms(100)


def test_only_the_newest_samples_count() -> None:
    durations = learnt(*[9_000] * 100, *[1_000] * SAMPLES_MAX)
    assert durations.samples() == [10_000] * SAMPLES_MAX
    assert durations.usual_ms(100) == 1_000


def test_what_takes_no_time_or_has_no_tokens_is_a_sample_too() -> None:
    durations = Durations()
    durations.learn(0, 100)
    durations.learn(5, 0)
    assert durations.samples() == [1, 5_000]


@settings(max_examples=40)
@given(samples=SAMPLES, tokens=st.integers(0, 10**6), more=st.integers(0, 10**6))
def test_more_tokens_never_take_less(samples: list[int], tokens: int, more: int) -> None:
    durations = Durations(samples)
    assert durations.usual_ms(tokens) <= durations.usual_ms(tokens + more)
    assert durations.longest_ms(tokens) <= durations.longest_ms(tokens + more)


@settings(max_examples=40)
@given(samples=SAMPLES, tokens=st.integers(0, 10**6))
def test_the_longest_is_never_under_the_usual(samples: list[int], tokens: int) -> None:
    durations = Durations(samples)
    assert durations.longest_ms(tokens) >= durations.usual_ms(tokens)


@settings(max_examples=40)
@given(samples=SAMPLES, tokens=st.integers(0, 10**6))
def test_nothing_but_the_samples_is_remembered(samples: list[int], tokens: int) -> None:
    durations = Durations(samples)
    again = Durations(durations.samples())
    durations.learn(7, 3)
    again.learn(7, 3)
    assert again.samples() == durations.samples() == [*samples, 2_333][-SAMPLES_MAX:]
    assert again.longest_ms(tokens) == durations.longest_ms(tokens)
