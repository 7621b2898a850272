"""The vehicle that replays a recording: the same readings, at the right times of the agent."""

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from terafleet.agent.adapters.vehicle.replay import (
    ReplayVehicle,
    recording_of,
)
from terafleet.agent.readings_csv import (
    ReadingsRefused,
    Recorded,
    encode_header,
    encode_row,
    readings_of,
)
from terafleet.agent.replay_settings import Pace, pace_faults
from terafleet.core.policy_preview import HOLD_MS
from terafleet.core.readings import Readings
from terafleet.engine.clock import Clock
from tests.contract.vehicle_contract import (
    ABSURD,
    BEGIN_MS,
    VehicleContract,
    VehicleWorld,
    VirtualPassing,
)

ROW_MS = 500


class ReplayWorld(VehicleWorld):
    """A recording that is written while it is replayed: a row each half second."""

    # A row is read ahead of its time, so what is set is on the next row but one.
    poll_ms = 2 * ROW_MS
    # A line can't hold another one, and an empty label is a missing one.
    absurd = dict(ABSURD) | {"place": ("x" * 65, "ho\tme")}

    def __init__(self) -> None:
        super().__init__(VirtualPassing())
        self._said: dict[str, Any] = {}
        self._open = 0

    def make(
        self, clock: Clock, sample_ms: int, sleep: Callable[[float], Awaitable[None]]
    ) -> ReplayVehicle:
        return ReplayVehicle(self._recording, sample_ms, clock, sleep=sleep)

    async def set(self, name: str, value: Any) -> None:
        self._said[name] = value

    async def break_sensor(self, name: str) -> None:
        self._said[name] = None

    def leftovers(self) -> list[str]:
        return ["a recording"] * self._open

    def _recording(self) -> Recorded:
        self._open += 1
        try:
            yield from readings_of(self._lines(), "the recording")
        finally:
            self._open -= 1

    def _lines(self) -> Iterator[bytes]:
        yield encode_header()
        at_ms = self.passing.clock.now_ms()
        while True:
            yield encode_row(Readings(at_ms, **self._said))
            at_ms += ROW_MS


class TestReplay(VehicleContract):
    """The contract of all vehicle adapters."""

    @pytest.fixture
    def world(self) -> ReplayWorld:
        return ReplayWorld()


class EndOfTest(Exception):
    """The time of a test is over."""


async def drive(
    path: Path, until_ms: int, pace: Pace | None = None, sample_ms: int = 10**9
) -> list[tuple[int, Readings]]:
    """Replay a file for so long; when samples came from the beginning, and what they said."""
    passing = VirtualPassing()
    samples: list[Readings] = []

    async def sleep(pause_s: float) -> None:
        assert pause_s > 0
        passing.clock.advance(round(pause_s * 1_000))
        if passing.now_ms() > BEGIN_MS + until_ms:
            raise EndOfTest

    vehicle = ReplayVehicle(
        recording_of(path), sample_ms, passing.clock, pace or Pace(), sleep=sleep
    )
    with pytest.raises(EndOfTest):
        await vehicle.run(samples.append)
    return [(sample.at_ms - BEGIN_MS, sample) for sample in samples]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Three rows of another year, the last of them after a gap."""
    path = tmp_path / "trace.csv"
    path.write_text(
        "at_ms,is_parked,soc_percent,departure_at_ms,utc_offset_ms\n"
        "7000,true,80,67000,3600000\n"
        "9000,false,79,,3600000\n"
        "1009000,true,70,,3600000\n"
    )
    return path


async def test_rows_come_at_their_times_and_a_gap_is_missing(trace: Path) -> None:
    seen = await drive(trace, until_ms=2_000_000)
    assert [(at_ms, one.is_parked, one.soc_percent) for at_ms, one in seen] == [
        (0, True, 80.0),
        (2_000, False, 79.0),
        (2_000 + HOLD_MS, None, None),
        (1_002_000, True, 70.0),
        (1_002_000 + HOLD_MS, None, None),
    ]
    assert seen[0][1].departure_at_ms == BEGIN_MS + 60_000


async def test_all_times_follow_the_speed(trace: Path) -> None:
    seen = await drive(trace, until_ms=20_000, pace=Pace(speed=100))
    assert [at_ms for at_ms, _ in seen] == [0, 20, 20 + HOLD_MS // 100, 10_020, 16_620]
    assert seen[0][1].departure_at_ms == BEGIN_MS + 600


async def test_it_repeats_and_cuts_off_what_is_longer(trace: Path) -> None:
    seen = await drive(trace, until_ms=12_500, pace=Pace(repeat_s=5))
    assert [(at_ms, one.is_parked) for at_ms, one in seen] == [
        (0, True),
        (2_000, False),
        (5_000, True),
        (7_000, False),
        (10_000, True),
        (12_000, False),
    ]
    assert seen[2][1].departure_at_ms == BEGIN_MS + 65_000


async def test_a_car_that_slept_over_rounds_says_what_holds(trace: Path) -> None:
    passing = VirtualPassing()
    samples: list[Readings] = []

    async def sleep(_: float) -> None:
        if len(samples) == 2:
            raise EndOfTest
        passing.clock.advance(1_003_000)

    vehicle = ReplayVehicle(
        recording_of(trace), 1_000, passing.clock, Pace(repeat_s=5), sleep=sleep
    )
    with pytest.raises(EndOfTest):
        await vehicle.run(samples.append)
    assert [sample.is_parked for sample in samples] == [True, False]


async def test_seconds_and_a_longer_hold(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_s,is_parked\n10,true\n5010.5,false\n")
    seen = await drive(path, until_ms=5_000_600, pace=Pace(hold_s=10_000))
    assert [(at_ms, one.is_parked) for at_ms, one in seen] == [(0, True), (5_000_500, False)]


async def test_a_line_that_is_damaged_ends_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_s,is_parked\n0,true\n1,perhaps\n2,true\n")
    seen = await drive(path, until_ms=10_000, pace=Pace(hold_s=3), sample_ms=1_000)
    assert [one.is_parked for _, one in seen] == [True, True, True] + [None] * 8


async def test_a_recording_that_goes_away_is_missing_in_the_next_round(trace: Path) -> None:
    passing = VirtualPassing()
    samples: list[Readings] = []
    go_away = partial(trace.unlink, missing_ok=True)

    async def sleep(pause_s: float) -> None:
        go_away()
        passing.clock.advance(round(pause_s * 1_000))
        if len(samples) == 4:
            raise EndOfTest

    vehicle = ReplayVehicle(
        recording_of(trace), 1_000, passing.clock, Pace(repeat_s=1.5), sleep=sleep
    )
    with pytest.raises(EndOfTest):
        await vehicle.run(samples.append)
    times = [(sample.at_ms - BEGIN_MS, sample.is_parked) for sample in samples]
    assert times == [(0, True), (1_000, True), (1_500, None), (2_000, None)]


def test_what_is_no_recording_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    for text, fault in (("at_s,is_parked\n", "no sample"), ("is_parked\n", "header")):
        path.write_text(text)
        with pytest.raises(ReadingsRefused, match=fault):
            recording_of(path)
    with pytest.raises(ReadingsRefused, match="No such file"):
        recording_of(tmp_path / "none.csv")


def test_a_pace_that_makes_no_sense_is_said_so() -> None:
    assert pace_faults(Pace()) == []
    nan = float("nan")
    for wrong in (Pace(speed=0), Pace(speed=nan), Pace(repeat_s=-1), Pace(hold_s=0)):
        assert len(pace_faults(wrong)) == 1
    assert len(pace_faults(msgspec.structs.replace(Pace(nan, nan), hold_s=nan))) == 3
