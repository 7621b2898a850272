"""Shows on stderr how transfers and batches go: bars for a person, lines for a log."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from terafleet.cli.failure import printable
from terafleet.cli.output import console_for_progress, note
from terafleet.cli.words import waiting_in_words
from terafleet.protocol.openai import BatchObject

LINE_SHARE = 10
"""A log gets a line for every tenth of a batch."""

BytesDone = Callable[[int, int], None]
FileBytesDone = Callable[[str, int, int], None]
BatchChanged = Callable[[BatchObject], None]


@contextlib.contextmanager
def upload_shown(path: Path) -> Iterator[BytesDone]:
    """A bar for one file that is sent."""
    with _transfers() as shown:
        yield lambda done, total: shown(path.name, done, total)


@contextlib.contextmanager
def download_shown(path: Path) -> Iterator[BytesDone]:
    """A bar for one file that is fetched."""
    with _transfers() as shown:
        yield lambda done, total: shown(path.name, done, max(done, total))


@contextlib.contextmanager
def files_shown() -> Iterator[FileBytesDone]:
    """A bar for each of some files that are sent one after the other."""
    with _transfers() as shown:
        yield shown


@contextlib.contextmanager
def batch_shown() -> Iterator[BatchChanged]:
    """How a batch goes: a bar where a person looks, else a line at each change that matters."""
    console = console_for_progress()
    if not console.is_terminal:
        yield _BatchLines().show
        return
    columns = (
        TextColumn("{task.fields[state]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[remark]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=None, state="", remark="")
        yield lambda batch: _update_bar(progress, bar, batch)


class _BatchLines:
    """Writes a line when the state, the reason to wait, or a tenth of the requests changes."""

    def __init__(self) -> None:
        self._written: tuple[object, ...] = ()

    def show(self, batch: BatchObject) -> None:
        counts = batch.request_counts
        done = counts.completed + counts.failed
        tenth = done * LINE_SHARE // max(1, counts.total)
        written = (batch.status, batch.terafleet.waiting, tenth)
        if written != self._written:
            self._written = written
            remark = _remark(batch)
            state = batch.status.replace("_", " ")
            note(f"{batch.id} is {state}: {done} of {counts.total} requests, {remark}")


@contextlib.contextmanager
def _transfers() -> Iterator[FileBytesDone]:
    console = console_for_progress()
    if not console.is_terminal:
        yield _ignore
        return
    with _bars(console) as progress:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task("", total=total, name=printable(name))
            progress.update(tasks[name], completed=done, total=total)

        yield show


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _ignore(_: str, __: int, ___: int) -> None:
    """A log needs no line for each piece of a file."""


def _update_bar(progress: Progress, bar: TaskID, batch: BatchObject) -> None:
    counts = batch.request_counts
    progress.update(
        bar,
        total=counts.total,
        completed=counts.completed + counts.failed,
        state=batch.status.replace("_", " "),
        remark=_remark(batch),
    )


def _remark(batch: BatchObject) -> str:
    """Work units, failures, and why nothing happens, in words."""
    units = batch.terafleet
    parts = [f"{units.units_ended} of {units.units} work units"] if units.units else []
    if batch.request_counts.failed:
        parts.append(f"{batch.request_counts.failed} failed")
    if units.waiting is not None:
        parts.append(waiting_in_words(units.waiting))
    return ", ".join(parts) or "no work units yet"
