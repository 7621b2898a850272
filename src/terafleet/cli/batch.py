"""Commands about batches."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from terafleet.cli.connection import Asking, Connection, fleet_client
from terafleet.cli.failure import CommandFailed, files_mapped
from terafleet.cli.options import add_command, noun
from terafleet.cli.output import moment, note, print_facts, print_json, print_table
from terafleet.cli.words import ADVICE, waiting_in_words
from terafleet.core.units import MS_PER_S
from terafleet.protocol.openai import BATCH_ENDPOINTS, BatchObject

if TYPE_CHECKING:
    from terafleet.sdk import FleetClient

LIST_MAX = 100
LINE_BYTES_MAX = 1024 * 1024

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.")]


class Submit(Asking, frozen=True, kw_only=True):
    """The options of `batch submit`."""

    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="JSON Lines as OpenAI's batch API takes them.",
        ),
    ]
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help=f"One of {', '.join(BATCH_ENDPOINTS)}.",
            show_default="what the first line asks for",
        ),
    ] = ""
    window: Annotated[
        str, typer.Option(metavar="TIME", help="How long it may take: 24h, or 1m to 24h.")
    ] = "24h"
    is_waiting: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False


class Watch(Asking, frozen=True, kw_only=True):
    """The options of `batch status`."""

    batch_id: BatchId
    is_watching: Annotated[
        bool, typer.Option("--watch", help="Go on until the batch has ended.")
    ] = False


class List(Asking, frozen=True, kw_only=True):
    """The options of `batch list`."""

    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=LIST_MAX, help="At most so many.")
    ] = 20
    after: Annotated[
        str, typer.Option(metavar="ID", help="Those before this batch.", show_default=False)
    ] = ""


class Results(Connection, frozen=True, kw_only=True):
    """The options of `batch results`."""

    batch_id: BatchId
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where the answers go.", show_default="stdout"
        ),
    ] = None
    errors: Annotated[
        Path | None,
        typer.Option("--errors", metavar="FILE", help="Where the requests go that failed."),
    ] = None


class Cancel(Asking, frozen=True, kw_only=True):
    """The options of `batch cancel`."""

    batch_id: BatchId


def register(app: typer.Typer) -> None:
    """Add the commands below `batch`."""
    batches = noun("batch", "Submit batches, watch them, fetch their results.")
    add_command(
        batches, "submit", Submit, submit_batch, "terafleet batch submit requests.jsonl --wait"
    )
    add_command(batches, "status", Watch, show_batch, "terafleet batch status batch_0f3c… --watch")
    add_command(batches, "list", List, list_batches, "terafleet batch list")
    add_command(
        batches,
        "results",
        Results,
        fetch_results,
        "terafleet batch results batch_0f3c… -o answers.jsonl --errors errors.jsonl",
    )
    add_command(batches, "cancel", Cancel, cancel_batch, "terafleet batch cancel batch_0f3c…")
    app.add_typer(batches)


def submit_batch(options: Submit) -> None:
    """Send a file of requests and make a batch of it.

    The answer comes at once: accepted, or refused with the reason. With --wait the exit code is 0
    only if the batch is completed.
    """
    from terafleet.cli.batch_progress import upload_shown

    endpoint = options.endpoint or _endpoint_of(options.file)
    with fleet_client(options) as client:
        with files_mapped(), upload_shown(options.file) as progress:
            file = client.upload_file(options.file, progress)
        with _undone_on_failure(client, file.id):
            batch = client.create_batch(file.id, endpoint, options.window)
        if options.is_waiting:
            batch = _watched(client, batch.id)
    if options.is_json:
        print_json(batch)
    elif options.is_waiting:
        print_facts(facts_of(batch))
    else:
        typer.echo(batch.id)
        note(f"Accepted: {batch.request_counts.total} requests. To watch it:")
        note(f"  terafleet batch status {batch.id} --watch")
    if options.is_waiting:
        _exit_with(batch)


def show_batch(options: Watch) -> None:
    """Say how a batch is.

    With --watch until it has ended; then the exit code is 0 only if it is completed.
    """
    with fleet_client(options) as client:
        watch = _watched if options.is_watching else type(client).batch
        batch = watch(client, options.batch_id)
    if options.is_json:
        print_json(batch)
    else:
        print_facts(facts_of(batch))
    if options.is_watching:
        _exit_with(batch)


def list_batches(options: List) -> None:
    """List your batches, newest first."""
    with fleet_client(options) as client:
        page = client.batches(options.after, options.limit)
    if options.is_json:
        print_json(page)
        return
    columns = ("ID", "STATE", "DONE", "FAILED", "OF", "ENDPOINT", "CREATED", "WAITING BECAUSE")
    rows = [
        (
            batch.id,
            batch.status,
            str(batch.request_counts.completed),
            str(batch.request_counts.failed),
            str(batch.request_counts.total),
            batch.endpoint,
            moment(batch.created_at * MS_PER_S),
            waiting_in_words(batch.terafleet.waiting),
        )
        for batch in page.data
    ]
    print_table(columns, rows)
    if page.has_more and page.last_id:
        note(f"There are more: --after {page.last_id}")


def fetch_results(options: Results) -> None:
    """Fetch the answers of a batch, and with --errors what failed.

    A file appears only when all of it is there.
    """
    with fleet_client(options) as client, files_mapped():
        batch = client.batch(options.batch_id)
        _check_has_files(batch)
        if batch.output_file_id is not None:
            _save(client, batch.output_file_id, options.output)
        if batch.error_file_id is not None and options.errors is not None:
            _save(client, batch.error_file_id, options.errors)
    failed = batch.request_counts.failed
    if failed and options.errors is None:
        note(f"{failed} requests failed; --errors FILE fetches them with their reasons.")
    elif options.errors is not None and batch.error_file_id is None:
        note(f"No request failed; {options.errors} was not written.")
    if batch.output_file_id is None and options.output is not None:
        note(f"There are no answers; {options.output} was not written.")


def cancel_batch(options: Cancel) -> None:
    """Do no more of a batch; what is done can be fetched."""
    with fleet_client(options) as client:
        batch = client.cancel_batch(options.batch_id)
    if options.is_json:
        print_json(batch)
    else:
        print_facts(facts_of(batch))


def facts_of(batch: BatchObject) -> list[tuple[str, str]]:
    """What a customer wants to know of a batch, by name."""
    counts = batch.request_counts
    units = batch.terafleet
    facts = [
        ("batch", batch.id),
        ("state", batch.status.replace("_", " ")),
        ("requests", f"{counts.completed} done, {counts.failed} failed, of {counts.total}"),
        ("work units", f"{units.units_ended} of {units.units} ended" if units.units else "-"),
        ("created", moment(batch.created_at * MS_PER_S)),
        ("expires", moment((batch.expires_at or 0) * MS_PER_S)),
    ]
    if units.waiting is not None:
        facts.append(("waiting", waiting_in_words(units.waiting)))
    if batch.usage is not None and batch.usage.total_tokens:
        read, written = batch.usage.input_tokens, batch.usage.output_tokens
        facts.append(("tokens", f"{read} read, {written} written"))
    errors = batch.errors.data if batch.errors is not None else ()
    facts += [("error", f"{error.message} ({error.code})") for error in errors]
    has_files = batch.output_file_id or batch.error_file_id
    return [*facts, ("results", f"terafleet batch results {batch.id}")] if has_files else facts


class _FirstLine(msgspec.Struct, frozen=True):
    """What a line of a batch's file asks for."""

    url: str


def _endpoint_of(path: Path) -> str:
    """The endpoint that the first line of a file asks for. Raises BadParameter, CommandFailed."""
    with files_mapped(), path.open("rb") as file:
        line = next((line for line in _lines(file) if line.strip()), b"")
    try:
        return msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"), type=_FirstLine).url
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"the first line of {path} does not say an endpoint ({error}); give --endpoint"
        raise typer.BadParameter(message) from error


def _lines(file: object) -> Iterator[bytes]:
    """The lines of a file, none longer than a batch's line may be."""
    readline = file.readline  # type: ignore[attr-defined]
    while line := readline(LINE_BYTES_MAX):
        yield line


@contextlib.contextmanager
def _undone_on_failure(client: "FleetClient", file_id: str) -> Iterator[None]:
    """Delete the uploaded file if no batch comes of it."""
    from terafleet.sdk import TerafleetError

    try:
        yield
    except TerafleetError:
        with contextlib.suppress(TerafleetError):
            client.delete_file(file_id)
        raise


def _watched(client: "FleetClient", batch_id: str) -> BatchObject:
    """Wait for the end of a batch and show how it goes; Ctrl-C leaves it alone."""
    from terafleet.cli.batch_progress import batch_shown

    try:
        with batch_shown() as changed:
            return client.wait(batch_id, changed)
    except KeyboardInterrupt:
        note("The batch goes on. To watch it again:")
        note(f"  terafleet batch status {shlex.quote(batch_id)} --watch")
        raise


def _exit_with(batch: BatchObject) -> None:
    if batch.status != "completed":
        raise typer.Exit(1)


def _check_has_files(batch: BatchObject) -> None:
    if batch.output_file_id is not None or batch.error_file_id is not None:
        return
    if batch.status in ("failed", "expired", "cancelled", "completed"):
        message = f"{batch.id} is {batch.status} and has written nothing."
        advice = f"terafleet batch status {batch.id} says more."
        raise CommandFailed("no_results", message, advice)
    state = batch.status.replace("_", " ")
    raise CommandFailed("batch_not_ended", f"{batch.id} is {state}.", ADVICE["batch_not_ended"])


def _save(client: "FleetClient", file_id: str, path: Path | None) -> None:
    from terafleet.cli.batch_progress import download_shown

    if path is None:
        client.download_file(file_id, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with download_shown(path) as progress:
        client.save_file(file_id, path, progress)
