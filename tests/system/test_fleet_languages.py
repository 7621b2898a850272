"""A real language model, from `model add` to the text that its authors publish, and what the
commands tell about it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.contract.models_on_disk import STORIES_TEXT
from tests.system.fleet_stage import FleetStage, car_settings, line_of, lines_of, submit_file

NAME = "stories"
CONTEXT_TOKENS = 512
COMPLETIONS = "/v1/completions"
PROMPT = "Once upon a time"
TOKENS = 100
ASKED: dict[str, Any] = {
    "model": NAME,
    "prompt": PROMPT,
    "max_tokens": TOKENS,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, shared_file: Callable[[str], Path]
) -> Iterator[FleetStage]:
    """A control plane with the model, and a car that can run it."""
    model = shared_file("models/stories260k.gguf")
    with FleetStage(tmp_path_factory.mktemp("languages")) as made:
        made.fleet.start_plane()
        tokens = ("--context-tokens", str(CONTEXT_TOKENS))
        added = made.command("model", "add", NAME, str(model), *tokens, "--json")
        assert added.returncode == 0, added.stderr
        assert msgspec.json.decode(added.stdout)["manifest"]["runtime"] == "llama"
        made.add_car("car-0", car_settings(slots=2, runtime="llama"))
        made.until(lambda: made.states() == ["idle"], "the car is idle")
        yield made


def check_answer(line: dict[str, Any]) -> None:
    body = line["response"]["body"]
    (choice,) = body["choices"]
    assert len(choice["text"]) > TOKENS
    assert STORIES_TEXT.startswith(choice["text"])
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == TOKENS
    assert body["model"] == NAME


def test_a_model_says_what_its_authors_publish(stage: FleetStage) -> None:
    client = stage.client()
    assert [one.id for one in client.models.list()] == [NAME]
    lines = [line_of(f"story-{number}", ASKED, COMPLETIONS) for number in range(4)]
    batch = stage.finish(client, submit_file(client, b"".join(lines), COMPLETIONS).id)
    assert batch.status == "completed"
    answers = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in answers] == [f"story-{number}" for number in range(4)]
    for line in answers:
        check_answer(line)
    assert batch.usage.output_tokens == 4 * TOKENS

    # The operator is a customer too, and one who does not see what others have.
    foreign = stage.command("batch", "results", batch.id)
    assert (foreign.returncode, foreign.stdout) == (1, "")
    assert "batch_not_found" in foreign.stderr


def test_what_the_commands_tell(stage: FleetStage, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    too_long = {**ASKED, "prompt": f"{PROMPT} " * CONTEXT_TOKENS}
    requests.write_bytes(
        line_of("good", ASKED, COMPLETIONS) + line_of("too long", too_long, COMPLETIONS)
    )
    submitted = stage.command("batch", "submit", str(requests), "--wait", "--json")
    assert submitted.returncode == 0, submitted.stderr
    batch = msgspec.json.decode(submitted.stdout)
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}

    answers, errors = tmp_path / "answers.jsonl", tmp_path / "errors.jsonl"
    files = ("-o", str(answers), "--errors", str(errors))
    fetched = stage.command("batch", "results", batch["id"], *files)
    assert fetched.returncode == 0, fetched.stderr
    check_answer(msgspec.json.decode(answers.read_bytes()))
    refused = msgspec.json.decode(errors.read_bytes())
    assert refused["custom_id"] == "too long"
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["code"] == "context_length_exceeded"
    # Without files the answers go to stdout, and only they.
    shown = stage.command("batch", "results", batch["id"])
    assert shown.stdout == answers.read_text(encoding="utf-8")

    listed = msgspec.json.decode(stage.command("vehicle", "list", "--json").stdout)
    (vehicle,) = listed["vehicles"]
    assert (vehicle["name"], vehicle["refusals"], vehicle["attempts_lost"]) == ("car-0", [], {})
    assert vehicle["units_succeeded"] >= 1
    assert vehicle["runtime_ms"] > 0

    told = stage.command("story", batch["id"]).stdout.splitlines()
    vehicle_id = vehicle["vehicle_id"]
    for words in ("asked for: 2 requests", f"granted to {vehicle_id}", "completed: 2 of 2"):
        assert any(words in line for line in told), told
    about_car = stage.command("story", vehicle_id).stdout
    assert f"{vehicle_id} enrolled as car-0" in about_car
    assert f"{vehicle_id} handed in unit-" in about_car
