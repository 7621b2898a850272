"""Shows the demo as it runs: steps, a progress bar and the cars; plain lines where no one looks."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from terafleet.protocol.shard import VehicleView

LINE_EVERY_S = 5.0
MILLI = 1_000
MICRO = 1_000_000


class Screen:
    """Where the demo speaks: the terminal, or standard error when the figures go to JSON."""

    def __init__(self, is_json: bool) -> None:
        self.console = Console(stderr=is_json, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total = 0
        self._line_due_s = 0.0

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text)

    def begin(self, total: int) -> None:
        """The job begins."""
        self._total = total
        self._progress = Progress(
            TextColumn("requests"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self.console,
        )  # fmt: skip
        self._task = self._progress.add_task("requests", total=total)
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def show(self, done: int, vehicles: Sequence[VehicleView]) -> None:
        """The job goes on."""
        assert self._progress is not None
        self._progress.update(self._task, completed=done)
        if self._live is not None:
            self._live.update(Group(self._progress, cars_now(vehicles)))
        elif time.monotonic() >= self._line_due_s:
            self._line_due_s = time.monotonic() + LINE_EVERY_S
            states = ", ".join(f"{one.name} {one.state}" for one in vehicles)
            self.say(f"  {done} of {self._total} requests · {states}")

    def end(self) -> None:
        """The job is over."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def write_out(self, text: str) -> None:
        """To standard output, as it is."""
        sys.stdout.write(text + "\n")


def cars_now(vehicles: Sequence[VehicleView]) -> Table:
    """The cars at this moment."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("car", "state", "why", "units", "lost"):
        table.add_column(heading, justify="right" if heading in ("units", "lost") else "left")
    for one in vehicles:
        lost = sum(one.attempts_lost.values())
        why = ", ".join(one.refusals)
        table.add_row(one.name, one.state, why, str(one.units_succeeded), str(lost))
    return table


def cars_at_the_end(rows: Sequence[dict[str, object]]) -> Table:
    """What became of each car; `rows` as in the figures."""
    table = Table(title="The cars", title_justify="left", header_style="bold")
    table.add_column("car")
    table.add_column("its part", no_wrap=True)
    for heading in ("units", "lost", "mWh*", "vain*", "earned"):
        table.add_column(heading, justify="right")
    table.add_column("why lost")
    for row in rows:
        lost = row["attempts_lost"]
        assert isinstance(lost, dict)
        earned_micro = row["reward_micro"]
        assert isinstance(earned_micro, int)
        table.add_row(
            str(row["name"]),
            str(row["trouble"]),
            str(row["units_succeeded"]),
            str(sum(lost.values())),
            str(row["energy_mwh"]),
            str(row["energy_lost_mwh"]),
            f"{earned_micro / MICRO:.6f}",
            ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in lost.items()),
        )
    return table
