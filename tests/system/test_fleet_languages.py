"""A real language model, from `model add` to the text that its authors publish, and what the
commands tell about it."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.contract.models_on_disk import STORIES_TEXT
from tests.system.fleet_stage import (
    FleetStage,
    car_settings,
    line_of,
    lines_of,
    stage,
    submit_file,
)

__all__ = ["stage"]

NAME = "stories"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "Once upon a time"
TOKENS = 100


def test_a_language_model_says_what_its_authors_publish(
    stage: FleetStage, tmp_path: Path, shared_file: Callable[[str], Path]
) -> None:
    model = shared_file("models/stories260k.gguf")
    stage.fleet.start_plane()
    added = stage.command("model", "add", NAME, str(model), "--context-tokens", "512", "--json")
    assert added.returncode == 0, added.stderr
    assert msgspec.json.decode(added.stdout)["manifest"]["runtime"] == "llama"
    vehicle_id = stage.add_car("car-0", car_settings(slots=2, runtime="llama"))
    stage.until(lambda: stage.states() == ["idle"], "the car is idle")
    client = stage.client()
    assert [one.id for one in client.models.list()] == [NAME]

    asked = {"model": NAME, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    lines = [line_of(f"story-{number}", asked, COMPLETIONS) for number in range(4)]
    batch = stage.finish(client, submit_file(client, b"".join(lines), COMPLETIONS).id)
    assert batch.status == "completed"
    answers = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in answers] == [f"story-{number}" for number in range(4)]
    for line in answers:
        body = line["response"]["body"]
        assert body["choices"][0]["text"] and STORIES_TEXT.startswith(body["choices"][0]["text"])
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == TOKENS
        assert body["model"] == NAME
    assert batch.usage.output_tokens == 4 * TOKENS

    check_what_is_told(stage, batch.id, vehicle_id, tmp_path)


def check_what_is_told(stage: FleetStage, batch_id: str, vehicle_id: str, folder: Path) -> None:
    """The commands that a person asks afterwards."""
    listed = msgspec.json.decode(stage.command("vehicle", "list", "--json").stdout)
    (vehicle,) = listed["vehicles"]
    assert (vehicle["vehicle_id"], vehicle["name"]) == (vehicle_id, "car-0")
    assert (vehicle["state"], vehicle["refusals"], vehicle["attempts_lost"]) == ("idle", [], {})
    assert vehicle["units_succeeded"] >= 1
    assert vehicle["runtime_ms"] > 0

    told = stage.command("story", batch_id).stdout.splitlines()
    for word in ("asked for: 4 requests", f"granted to {vehicle_id}", "is completed: 4 of 4"):
        assert any(word in line for line in told), told
    about_car = stage.command("story", vehicle_id).stdout
    assert "enrolled as car-0" in about_car
    assert "handed in unit-1 under lease-1" in about_car

    # The operator is a customer of its own and does not see what others have.
    unknown = stage.command("batch", "results", batch_id)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "batch_not_found" in unknown.stderr


def test_a_batch_from_the_command_line(
    stage: FleetStage, tmp_path: Path, shared_file: Callable[[str], Path]
) -> None:
    model = shared_file("models/stories260k.gguf")
    stage.fleet.start_plane()
    added = stage.command("model", "add", NAME, str(model), "--context-tokens", "512")
    assert added.returncode == 0, added.stderr
    stage.add_car("car-0", car_settings(slots=2, runtime="llama"))
    requests = tmp_path / "requests.jsonl"
    chat = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 12,
    }
    requests.write_bytes(
        line_of("chat", chat, CHAT) + line_of("long", {**chat, "max_tokens": 9_999}, CHAT)
    )
    submitted = stage.command("batch", "submit", str(requests), "--wait", "--json")
    assert submitted.returncode == 0, submitted.stderr
    batch = msgspec.json.decode(submitted.stdout)
    print(batch)
    output, errors = tmp_path / "answers.jsonl", tmp_path / "errors.jsonl"
    fetched = stage.command(
        *("batch", "results", batch["id"], "-o", str(output), "--errors", str(errors))
    )
    print(fetched.stdout, fetched.stderr)
    assert fetched.returncode == 0, fetched.stderr
    print(output.read_text(), errors.read_text() if errors.exists() else None)
