"""The scripted vehicle: what its timetable says becomes readings, at the right time."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from terafleet.agent.adapters.vehicle.scripted import ScriptedVehicle
from terafleet.agent.adapters.vehicle.timetable import (
    READINGS,
    Step,
    Timetable,
    TimetableFile,
    TimetableRefused,
    load_timetable,
    turns,
)
from terafleet.agent.sampling import Sampling
from terafleet.core.policy import OwnerPolicy, YieldPolicy
from terafleet.core.readings import Readings
from terafleet.engine.clock import Clock, ManualClock
from tests.contract.vehicle_contract import VehicleContract, VehicleWorld, VirtualPassing

BEGIN_MS = 1_000_000


class ScriptedWorld(VehicleWorld):
    """A play that writes its timetable anew at each change."""

    sensors = READINGS

    def __init__(self) -> None:
        super().__init__(VirtualPassing())
        self._said: dict[str, Any] = {}
        self._waiting: Timetable | None = None

    def make(
        self, clock: Clock, sample_ms: int, sleep: Callable[[float], Awaitable[None]]
    ) -> ScriptedVehicle:
        return ScriptedVehicle(
            self._timetable(), sample_ms, clock, sleep=sleep, another=self._another
        )

    async def set(self, name: str, value: Any) -> None:
        self._said[name] = value
        self._waiting = self._timetable()

    async def break_sensor(self, name: str) -> None:
        await self.set(name, None)

    def _timetable(self) -> Timetable:
        return Timetable((Step(at_s=0, **self._said),))

    def _another(self) -> Timetable | None:
        timetable, self._waiting = self._waiting, None
        return timetable


class TestScripted(VehicleContract):
    """The contract of all vehicle adapters."""

    @pytest.fixture
    def world(self) -> ScriptedWorld:
        return ScriptedWorld()


class EndOfTest(Exception):
    """The time of a test is over."""


async def drive(timetable: Timetable, until_ms: int, sample_ms: int = 1_000) -> "Drive":
    """Run the vehicle for so long on a clock that moves only while the vehicle sleeps."""
    clock = ManualClock(BEGIN_MS)
    seen = Drive()

    async def sleep(pause_s: float) -> None:
        clock.advance(round(pause_s * 1_000))
        if clock.now_ms() > BEGIN_MS + until_ms:
            raise EndOfTest

    def cut(duration_ms: int) -> None:
        seen.cuts.append((clock.now_ms() - BEGIN_MS, duration_ms))

    vehicle = ScriptedVehicle(timetable, sample_ms, clock, cut, sleep)
    with pytest.raises(EndOfTest):
        await vehicle.run(seen.samples.append)
    return seen


class Drive:
    """What a drive delivered."""

    def __init__(self) -> None:
        self.samples: list[Readings] = []
        self.cuts: list[tuple[int, int]] = []

    def times(self) -> list[int]:
        """When the samples were taken, from the beginning."""
        return [sample.at_ms - BEGIN_MS for sample in self.samples]


async def test_a_sample_each_interval_and_at_once_at_each_turn() -> None:
    steps = (Step(at_s=0, is_parked=True, soc_percent=80), Step(at_s=1.25, is_parked=False))
    seen = await drive(Timetable(steps), until_ms=3_000)
    assert seen.times() == [0, 1_000, 1_250, 2_000, 3_000]
    assert [sample.is_parked for sample in seen.samples] == [True, True, False, False, False]
    assert {sample.soc_percent for sample in seen.samples} == {80.0}, "it holds until it changes"
    assert {sample.compute_temperature_c for sample in seen.samples} == {None}, (
        "never named is missing"
    )


async def test_a_reading_may_come_to_be_missing() -> None:
    steps = (
        Step(at_s=0, is_parked=True, compute_temperature_c=20),
        Step(at_s=1, is_parked=None),
        Step(at_s=2, missing=("compute_temperature_c",)),
        Step(at_s=3, is_parked=True),
    )
    seen = await drive(Timetable(steps), until_ms=3_500)
    assert [(one.is_parked, one.compute_temperature_c) for one in seen.samples] == [
        (True, 20),
        (None, 20),
        (None, None),
        (True, None),
    ]


async def test_the_link_is_cut_where_the_timetable_says_so() -> None:
    steps = (Step(at_s=0, cut_link_s=0.5), Step(at_s=2, cut_link_s=3))
    seen = await drive(Timetable(steps, repeat_s=10), until_ms=12_500)
    assert seen.cuts == [(0, 500), (2_000, 3_000), (10_000, 500), (12_000, 3_000)]


async def test_a_car_that_slept_over_turns_says_what_holds() -> None:
    steps = (Step(at_s=0, soc_percent=1), Step(at_s=1, soc_percent=2), Step(at_s=2, soc_percent=3))
    clock = ManualClock(BEGIN_MS)
    samples: list[Readings] = []

    async def sleep(_: float) -> None:
        if clock.now_ms() > BEGIN_MS:
            raise EndOfTest
        clock.advance(60_000)

    with pytest.raises(EndOfTest):
        await ScriptedVehicle(Timetable(steps), 1_000, clock, sleep=sleep).run(samples.append)
    assert [sample.soc_percent for sample in samples] == [1, 3]


def test_jitter_is_seeded_and_keeps_the_order() -> None:
    steps = tuple(Step(at_s=float(second)) for second in range(5))
    one, again, other = (
        [turn.at_ms for turn in turns(Timetable(steps, jitter_s=2, seed=seed))]
        for seed in (7, 7, 8)
    )
    assert one == again == sorted(one)
    assert one != other
    assert one[0] == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.toml", "seed = 3\n[[steps]]\nat_s = 0\nis_parked = true\nmissing = ['soc_percent']\n"),
        ("t.json", '{"seed": 3, "steps": [{"at_s": 0, "is_parked": true, "soc_percent": null}]}'),
    ],
)
def test_both_forms_of_the_file_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    timetable = load_timetable(tmp_path / name)
    assert [turn.readings for turn in turns(timetable)] == [Readings(0, is_parked=True)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("steps = []", "first step"),
        ("[[steps]]\nat_s = 1", "first step"),
        ("[[steps]]\nat_s = 0\n[[steps]]\nat_s = 0", "must rise"),
        ("repeat_s = 1\n[[steps]]\nat_s = 0\n[[steps]]\nat_s = 1", "behind the last"),
        ("jitter_s = -1\n[[steps]]\nat_s = 0", "negative"),
        ("[[steps]]\nat_s = 0\nmissing = ['mileage']", "mileage"),
        ("[[steps]]\nat_s = 0\nis_praked = true", "is_praked"),
        ("[[steps]]\nat_s = 0\nis_parked = 'yes'", "bool"),
        ("[[steps", "TOML"),
    ],
)
def test_a_wrong_timetable_is_refused_with_the_reason(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = tmp_path / "timetable.toml"
    path.write_text(text)
    with pytest.raises(TimetableRefused, match=fault if fault != "TOML" else r"timetable\.toml"):
        load_timetable(path)


def test_no_timetable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TimetableRefused, match="No such file"):
        load_timetable(tmp_path / "timetable.toml")


PARKED = Readings(0, True, False, True, 80.0, 20.0)


def passed_on(policy: OwnerPolicy, samples: list[Readings]) -> list[int]:
    """When a sample was passed on."""
    times: list[int] = []
    sampling = Sampling(policy, lambda readings: times.append(readings.at_ms))
    for sample in samples:
        sampling.take(sample)
    return times


def sampled(at_ms: int, **changes: object) -> Readings:
    """The parked car with changes."""
    return msgspec.structs.replace(PARKED, at_ms=at_ms, **changes)


def test_samples_that_say_nothing_else_are_passed_on_rarely() -> None:
    policy = OwnerPolicy(giving_back=YieldPolicy(stale_ms=30_000))
    samples = [sampled(second * 1_000, soc_percent=80 - second / 100) for second in range(60)]
    assert passed_on(policy, samples) == [0, 10_000, 20_000, 30_000, 40_000, 50_000]


@pytest.mark.parametrize(
    "change",
    [
        {"is_parked": False},
        {"is_driver_present": True},
        {"is_plugged_in": False},
        {"soc_percent": 54.9},
        {"soc_percent": 49.9},
        {"compute_temperature_c": 80.1},
        {"compute_temperature_c": None},
        {"is_parked": None},
    ],
)
def test_what_could_change_the_answer_is_passed_on_at_once(change: dict[str, object]) -> None:
    samples = [PARKED, sampled(1_000), sampled(2_000, **change), sampled(3_000, **change)]
    assert passed_on(OwnerPolicy(), samples) == [0, 2_000]


async def test_another_timetable_takes_its_place_at_once_and_begins_anew() -> None:
    clock = ManualClock(BEGIN_MS)
    samples: list[Readings] = []
    waiting = [Timetable((Step(at_s=0, is_parked=False), Step(at_s=2, is_parked=True)))]

    def another() -> Timetable | None:
        return waiting.pop() if waiting and clock.now_ms() >= BEGIN_MS + 3_000 else None

    async def sleep(pause_s: float) -> None:
        clock.advance(round(pause_s * 1_000))
        if clock.now_ms() > BEGIN_MS + 6_000:
            raise EndOfTest

    first = Timetable((Step(at_s=0, is_parked=True),))
    vehicle = ScriptedVehicle(first, 1_000, clock, sleep=sleep, another=another)
    with pytest.raises(EndOfTest):
        await vehicle.run(samples.append)
    parked = [(sample.at_ms - BEGIN_MS, sample.is_parked) for sample in samples]
    assert parked == [
        (0, True),
        (1_000, True),
        (2_000, True),
        (3_000, False),
        (4_000, False),
        (5_000, True),
        (6_000, True),
    ]


def test_a_file_that_changed_is_another_timetable_and_a_broken_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "timetable.json"
    write_anew(path, b'{"steps": [{"at_s": 0, "is_parked": true}]}')
    file = TimetableFile(path)
    assert file.another() is None
    write_anew(path, b'{"steps": [{"at_s": 0, "is_parked": false}]}')
    changed = file.another()
    assert changed is not None
    assert changed.steps[0].is_parked is False
    assert file.another() is None
    write_anew(path, b"{")
    assert file.another() is None
    assert file.timetable is changed
    path.unlink()
    assert file.another() is None


def write_anew(path: Path, text: bytes) -> None:
    """Write a file as one does that others read: beside it, then in its place."""
    beside = path.with_name("fresh")
    beside.write_bytes(text)
    beside.replace(path)
