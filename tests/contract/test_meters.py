"""The energy of attempts, by meters that a test drives."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.meters import (
    MeteredEnergy,
    MeterFigures,
    PowerMeter,
    Sources,
    readings_meter,
)
from terafleet.core.computer_power import GAP_MS_MAX
from terafleet.core.readings import Readings
from terafleet.core.units import MS_PER_HOUR
from terafleet.engine.clock import ManualClock

CORE_POWER_MW = 5_000
MWH = MS_PER_HOUR
"""In microjoules."""


class CounterMeter:
    """A meter whose counter a test moves; None can't be read."""

    def __init__(self, name: str = "counter") -> None:
        self.name = name
        self.counter_uj: int | None = 0

    def energy_uj(self) -> int | None:
        """The counter."""
        return self.counter_uj


class Computer:
    """A computer that draws what a test says, and its account."""

    def __init__(self, *meters: CounterMeter) -> None:
        self.clock = ManualClock(1_000_000)
        self.meters = meters
        self.cpu_ms = 0
        self.is_working = False
        self.energy = MeteredEnergy(
            Sources(
                meters=meters,
                core_power_mw=CORE_POWER_MW,
                cpu_ms=lambda: self.cpu_ms,
                is_working=lambda: self.is_working,
                now_ms=self.clock.now_ms,
            )
        )

    def draw(self, power_mw: int, duration_ms: int, cpu_ms: int = 0) -> None:
        """Every meter counts so much power, and the runtimes use so much processor time."""
        self.clock.advance(duration_ms)
        self.cpu_ms += cpu_ms
        for meter in self.meters:
            if meter.counter_uj is not None:
                meter.counter_uj += power_mw * duration_ms

    def idle(self, power_mw: int, seconds: int) -> None:
        """Nothing is done, and a sample is taken each second."""
        for _ in range(seconds):
            self.draw(power_mw, 1_000)
            self.energy.take()

    def work(self, power_mw: int, seconds: int, cpu_ms: int) -> None:
        """Attempts run, each second using so much processor time."""
        self.is_working = True
        for _ in range(seconds):
            self.draw(power_mw, 1_000, cpu_ms)
            self.energy.take()


def test_what_is_drawn_above_idleness_is_the_attempts() -> None:
    computer = Computer(CounterMeter("rapl"))
    computer.idle(10_000, 20)
    computer.work(46_000, 100, cpu_ms=2_000)
    assert computer.energy.of_cpu(200_000) == 36_000 * 100_000 // MWH == 1_000
    assert computer.energy.figures() == MeterFigures(
        meter="rapl",
        idle_w=10,
        work_mwh=1_000,
        anyway_mwh=10_000 * 100_000 // MWH,
        unclaimed_mwh=0,
    )


def test_attempts_that_run_at_once_share_by_processor_time() -> None:
    computer = Computer(CounterMeter())
    computer.idle(10_000, 20)
    computer.work(46_000, 100, cpu_ms=400)
    assert computer.energy.of_cpu(10_000) == 250
    assert computer.energy.of_cpu(30_000) == 750
    assert computer.energy.total_mwh == 1_000


def test_without_a_meter_it_is_the_model() -> None:
    computer = Computer()
    computer.work(46_000, 100, cpu_ms=400)
    assert computer.energy.of_cpu(36_000) == 50
    assert computer.energy.of_cpu(7_200) == 10, "of which 3.2 s no counter has shown"
    assert computer.energy.of_cpu(-5) == 0
    assert computer.energy.figures().meter == "model"


def test_a_meter_is_believed_when_its_idle_power_is_known() -> None:
    computer = Computer(CounterMeter())
    computer.idle(10_000, 9)
    assert computer.energy.figures() == MeterFigures("model", None, 0, 0, 0)
    computer.work(46_000, 10, cpu_ms=1_000)
    assert computer.energy.of_cpu(10_000) == 10_000 * CORE_POWER_MW // MWH
    computer.is_working = False
    computer.idle(10_000, 2)
    assert computer.energy.figures().meter == "counter"


def test_the_best_meter_that_can_be_read_is_taken() -> None:
    best, other = CounterMeter("best"), CounterMeter("other")
    computer = Computer(best, other)
    computer.idle(10_000, 20)
    computer.work(46_000, 5, cpu_ms=1_000)
    assert computer.energy.figures().meter == "best"
    best.counter_uj = None
    computer.work(46_000, 5, cpu_ms=1_000)
    assert computer.energy.figures().meter == "other"
    best.counter_uj = 7
    computer.work(46_000, 1, cpu_ms=1_000)
    assert computer.energy.figures().meter == "other", "a while has two ends"
    computer.work(46_000, 1, cpu_ms=1_000)
    assert computer.energy.figures().meter == "best"
    assert computer.energy.of_cpu(12_000) == 36_000 * 12_000 // MWH


def test_what_nobody_can_have_drawn_is_estimated() -> None:
    meter = CounterMeter()
    computer = Computer(meter)
    computer.idle(10_000, 20)
    assert meter.counter_uj is not None
    meter.counter_uj += 10**12
    computer.work(46_000, 1, cpu_ms=1_000)
    assert computer.energy.figures().meter == "model"
    meter.counter_uj = 0
    computer.work(46_000, 1, cpu_ms=1_000)
    computer.draw(46_000, GAP_MS_MAX + 1, cpu_ms=1_000)
    assert computer.energy.of_cpu(3_000) == 3_000 * CORE_POWER_MW // MWH


def test_a_runtime_that_works_for_no_attempt_is_neither_idle_nor_anybodys() -> None:
    computer = Computer(CounterMeter())
    computer.idle(10_000, 20)
    for _ in range(100):
        computer.draw(46_000, 1_000, cpu_ms=1_000)  # A model is loaded.
        computer.energy.take()
    figures = computer.energy.figures()
    assert (figures.idle_w, figures.unclaimed_mwh, figures.work_mwh) == (10, 1_000, 0)
    computer.work(46_000, 100, cpu_ms=1_000)
    assert computer.energy.of_cpu(100_000) == 1_000


def test_an_attempt_without_a_sample_is_measured_at_its_end() -> None:
    computer = Computer(CounterMeter())
    computer.idle(10_000, 20)
    computer.draw(730_000, 50, cpu_ms=50)
    assert computer.energy.of_cpu(50) == 720_000 * 50 // MWH == 10


def test_noise_below_idleness_is_made_up_for() -> None:
    computer = Computer(CounterMeter())
    computer.idle(10_000, 20)
    computer.is_working = True
    for number in range(200):
        computer.draw(10_000 + (9_000 if number % 2 else -9_000), 1_000, cpu_ms=10)
        computer.energy.take()
    assert computer.energy.of_cpu(2_000) == 0


def test_a_runtime_that_was_started_anew_counts_from_nothing() -> None:
    computer = Computer()
    computer.work(0, 10, cpu_ms=1_000)
    computer.cpu_ms = 2_000
    computer.clock.advance(1_000)
    assert computer.energy.of_cpu(12_000) == 12_000 * CORE_POWER_MW // MWH
    assert computer.energy.of_cpu(0) == 0


Whiles = Sequence[tuple[int, int, int, int]]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 200_000), st.integers(2, 5_000), st.integers(0, 8_000), st.integers(0, 3)
        ),
        max_size=40,
    )
)
def test_energy_is_neither_made_nor_lost(whiles: Whiles) -> None:
    """What a meter counts while there is work is somebody's, is drawn anyway, or is unclaimed."""
    computer = Computer(CounterMeter())
    computer.idle(10_000, 20)
    meter = computer.meters[0]
    assert meter.counter_uj is not None
    before_uj = meter.counter_uj
    computer.is_working = True
    open_ms = 0
    for power_mw, duration_ms, cpu_ms, what in whiles:
        computer.draw(power_mw, duration_ms, cpu_ms)
        open_ms += cpu_ms
        claim_ms = (0, open_ms // 3, open_ms, 0)[what]
        if what:
            computer.energy.of_cpu(claim_ms)
            open_ms -= claim_ms
        else:
            computer.energy.take()
    computer.energy.of_cpu(open_ms)
    computer.is_working = False
    computer.idle(10_000, 1)
    figures = computer.energy.figures()
    told_mwh = figures.work_mwh + figures.anyway_mwh + figures.unclaimed_mwh
    assert meter.counter_uj is not None
    drawn_uj = meter.counter_uj - 10_000 * 1_000 - before_uj
    # Each of the three is rounded down, and a debt of the last while is below a while's idleness.
    assert drawn_uj // MWH - 3 <= told_mwh <= drawn_uj // MWH
    assert figures.idle_w == 10


def test_a_power_is_counted_in_the_mean_of_its_ends() -> None:
    clock = ManualClock(0)
    power: list[int | None] = [10_000]
    meter = PowerMeter("vss", lambda: power[0], clock.now_ms)
    assert meter.energy_uj() == 0
    clock.advance(1_000)
    power[0] = 20_000
    assert meter.energy_uj() == 15_000_000
    clock.advance(1_000)
    power[0] = None
    assert meter.energy_uj() is None
    clock.advance(1_000)
    power[0] = 20_000
    assert meter.energy_uj() == 15_000_000, "nothing is made up for what was not seen"
    clock.advance(500)
    assert meter.energy_uj() == 25_000_000


def test_readings_that_are_old_say_no_power() -> None:
    clock = ManualClock(1_000_000)
    newest: list[Readings | None] = [None]
    meter = readings_meter(lambda: newest[0], clock.now_ms)
    assert (meter.name, meter.energy_uj()) == ("readings", None)
    newest[0] = Readings(clock.now_ms(), compute_mw=30_000)
    assert meter.energy_uj() == 0
    clock.advance(1_000)
    assert meter.energy_uj() == 30_000_000
    clock.advance(GAP_MS_MAX)
    assert meter.energy_uj() is None
    newest[0] = Readings(clock.now_ms())
    assert meter.energy_uj() is None
