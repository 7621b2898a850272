"""Batches on the command line, with the real gateway and a shard that is played by hand."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from terafleet.core.reasons import Refused, Waiting
from terafleet.core.work import BatchState
from terafleet.protocol.shard import Answered, CreateBatch
from tests.contract.cli_stage import Person, silent_gateway_thread
from tests.contract.customer_stage import ALICE, MINI, line, lines, until
from tests.contract.gateway_thread import GatewayThread, Opened

WAIT_S = 20.0


@pytest.fixture(scope="module")
def thread() -> Iterator[GatewayThread]:
    with silent_gateway_thread() as running:
        yield running


@pytest.fixture
def gateway(thread: GatewayThread) -> Iterator[Opened]:
    with thread.customers() as opened:
        yield opened


@pytest.fixture
def alice(gateway: Opened, tmp_path: Path) -> Person:
    return Person(tmp_path, gateway.url, ALICE)


def written(folder: Path, body: bytes) -> str:
    path = folder / "in.jsonl"
    path.write_bytes(body)
    return str(path)


async def compute(gateway: Opened, batch_id: str) -> None:
    """Let the cars do a batch once it is cut."""
    await until(lambda: gateway.shard.views[batch_id].state is BatchState.IN_PROGRESS)
    outcomes = await gateway.shard.compute(batch_id)
    gateway.shard.ask(gateway.shard.assemble_of(batch_id, outcomes))
    await until(lambda: gateway.shard.views[batch_id].state is BatchState.COMPLETED)


def submitted(alice: Person, body: bytes | None = None) -> str:
    """Submit a batch; its id."""
    given = ["batch", "submit", written(alice.folder, body or lines(4))]
    return alice.succeeds(*given).strip()


def test_a_batch_from_file_to_answers(alice: Person, gateway: Opened) -> None:
    batch_id = submitted(alice, b"\n" + lines(4) + b"\n{not json\n")
    assert gateway.shard.created[batch_id].endpoint == "/v1/embeddings"
    assert "terafleet batch status" in alice.fails("batch_not_ended", "batch", "results", batch_id)
    gateway.run(compute(gateway, batch_id))
    gateway.shard.set_view(batch_id, requests_completed=4, requests_failed=1)
    text = alice.succeeds("batch", "status", batch_id)
    assert "completed" in text
    assert "4 done, 1 failed, of 5" in text
    assert f"terafleet batch results {batch_id}" in text
    answers = alice.gives("batch", "results", batch_id)
    assert "1 requests failed" in answers.stderr
    answered = [json.loads(one) for one in answers.stdout.splitlines()]
    assert [one["custom_id"] for one in answered] == [f"request-{number}" for number in range(4)]
    out, bad = alice.folder / "out.jsonl", alice.folder / "bad.jsonl"
    files = ["-o", str(out), "--errors", str(bad)]
    assert alice.succeeds("batch", "results", batch_id, *files) == ""
    assert out.read_text() == answers.stdout
    assert json.loads(bad.read_text())["error"]["code"] == "invalid_json_line"


def test_a_folder_that_is_not_there_is_told(alice: Person, gateway: Opened) -> None:
    batch_id = submitted(alice)
    gateway.run(compute(gateway, batch_id))
    target = str(alice.folder / "nowhere" / "out.jsonl")
    told = alice.fails("file_unusable", "batch", "results", batch_id, "-o", target)
    assert "nowhere" in told


def test_waiting_shows_how_it_goes(alice: Person, gateway: Opened) -> None:
    def play() -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not gateway.shard.views and time.monotonic() < deadline_s:
            time.sleep(0.005)
        (batch_id,) = gateway.shard.views
        gateway.run(compute(gateway, batch_id))

    fleet = threading.Thread(target=play)
    fleet.start()
    given = ["batch", "submit", written(alice.folder, lines(4)), "--wait", "--json"]
    result = alice.gives(*given)
    fleet.join(WAIT_S)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["status"] == "completed"
    assert "is completed: 0 of 4 requests" in result.stderr


def test_a_person_at_a_terminal_sees_bars(alice: Person, gateway: Opened) -> None:
    batch_id = submitted(alice)
    gateway.run(compute(gateway, batch_id))
    gateway.shard.set_view(batch_id, requests_completed=3, requests_failed=1, units_ended=1)
    del alice.environment["NO_COLOR"]
    alice.environment["FORCE_COLOR"] = "1"
    watched = alice.gives("batch", "status", batch_id, "--watch")
    assert "4/4" in watched.stderr
    assert "1 failed" in watched.stderr
    out = alice.folder / "out.jsonl"
    fetched = alice.gives("batch", "results", batch_id, "-o", str(out))
    assert "out.jsonl" in fetched.stderr
    assert "1.3/1.3 kB" in fetched.stderr, repr(fetched.stderr)
    assert "in.jsonl" in alice.gives("batch", "submit", str(alice.folder / "in.jsonl")).stderr


def test_a_batch_that_ends_badly_has_exit_code_1(alice: Person, gateway: Opened) -> None:
    batch_id = submitted(alice)
    gateway.run(until(lambda: bool(gateway.shard.units.get(batch_id))))
    errors = b'{"data": [{"code": "model_not_found", "message": "no such\\nmodel"}]}'
    gateway.shard.set_view(batch_id, state=BatchState.FAILED, errors=errors)
    result = alice.gives("batch", "status", batch_id, "--watch")
    assert result.exit_code == 1
    assert "no such�model (model_not_found)" in result.stdout
    assert alice.gives("batch", "status", batch_id).exit_code == 0
    assert "has written nothing" in alice.fails("no_results", "batch", "results", batch_id)


def test_why_a_batch_waits_is_said_in_words(alice: Person, gateway: Opened) -> None:
    batch_id = submitted(alice)
    gateway.run(until(lambda: bool(gateway.shard.units.get(batch_id))))
    gateway.shard.set_view(batch_id, waiting=Waiting.ALL_VEHICLES_REFUSE)
    assert "all cars refuse at present" in alice.succeeds("batch", "status", batch_id)
    assert "all cars refuse at present" in alice.succeeds("batch", "list")
    (batch,) = alice.reads("batch", "list")["data"]
    assert batch["terafleet"]["waiting"] == "all_vehicles_refuse"


def test_batches_are_listed_in_pages_and_cancelled(alice: Person, gateway: Opened) -> None:
    gateway.shard.wants_cuts = False
    first, second = submitted(alice), submitted(alice)
    result = alice.gives("batch", "list", "--limit", "1")
    assert second in result.stdout
    assert first not in result.stdout
    assert f"--after {second}" in result.stderr
    assert first in alice.succeeds("batch", "list", "--after", second)
    assert "cancelling" in alice.succeeds("batch", "cancel", first)
    assert alice.reads("batch", "status", first)["status"] == "cancelling"
    assert "batch list" in alice.fails("batch_not_found", "batch", "cancel", "batch_0")


def test_a_refused_batch_leaves_no_file_behind(alice: Person, gateway: Opened) -> None:
    refusal = Answered(Refused.FLEET_EMPTY, "no car has enrolled")
    gateway.shard.refuse[CreateBatch] = refusal
    path = written(alice.folder, lines(2))
    told = alice.fails("fleet_empty", "batch", "submit", path)
    assert "no car has enrolled" in told
    assert "vehicle code" in told
    assert gateway.stage.catalogue.files("cust-alice", "", "", 10, True) == []


def test_the_endpoint_is_that_of_the_first_line_or_the_one_given(
    alice: Person, gateway: Opened
) -> None:
    other = line("a", model="writer", url="/v1/completions")
    batch_id = submitted(alice, b"\xef\xbb\xbf" + other)
    assert gateway.shard.created[batch_id].endpoint == "/v1/completions"
    path = written(alice.folder, lines(1))
    told = alice.fails(
        "mismatched_endpoint", "batch", "submit", path, "--endpoint", "/v1/completions"
    )
    assert "Line 1" in told
    for body in (b"", b"\n\n", b"no json\n", b'{"custom_id": "a"}\n', b"\xff\n"):
        result = alice.gives("batch", "submit", written(alice.folder, body))
        assert result.exit_code == 2
        assert "--endpoint" in result.stderr


def test_the_window_is_passed_on(alice: Person) -> None:
    path = written(alice.folder, lines(1, model=MINI))
    assert alice.reads("batch", "submit", path, "--window", "2h")["completion_window"] == "2h"
    alice.fails("invalid_value", "batch", "submit", path, "--window", "25h")


def test_ctrl_c_leaves_the_batch_alone(alice: Person, gateway: Opened) -> None:
    gateway.shard.wants_cuts = False
    batch_id = submitted(alice)
    process = subprocess.Popen(
        [sys.executable, "-m", "terafleet.cli", "batch", "status", batch_id, "--watch"],
        env=alice.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "is validating" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    output, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert output == ""
    assert told.splitlines() == [
        "The batch goes on. To watch it again:",
        f"  terafleet batch status {batch_id} --watch",
    ]
    assert alice.reads("batch", "status", batch_id)["status"] == "validating"
