"""The control plane's disk runs full, at a level and then in earnest: it takes nothing new, keeps
what it has, says so, and goes on by itself when there is room again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from tests.system.fleet_stage import (
    ENDPOINT,
    PARKED,
    FleetStage,
    answered,
    batch_file,
    car_settings,
    submit_file,
)
from tests.system.small_disk import any_disk, memory_disk

REQUESTS = 30_000
NEARLY_NOTHING_BYTES = 32 * 1024


def status_of(stage: FleetStage) -> tuple[int, dict[str, Any]]:
    """The exit code and the words of `terafleet status --json`."""
    done = stage.command("status", "--json")
    return done.returncode, msgspec.json.decode(done.stdout)


def is_full(stage: FleetStage) -> bool:
    with stage.fleet.admin() as admin:
        return admin.status().is_storage_full


def check_refused(deed: Callable[[], object]) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        deed()
    assert refused.value.status_code == 507
    assert refused.value.code == "storage_full"
    assert refused.value.type == "overloaded_error"
    # There is no use in asking again at once.
    assert int(refused.value.response.headers["retry-after"]) >= 30


def test_a_disk_that_is_nearly_full_takes_no_new_work(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    with any_disk(folder / "control") as disk, FleetStage(folder, disk.plane) as stage:
        stage.start(cars=1)
        client = stage.client(retries=0)
        before = stage.finish(client, stage.submit(client, 10).id)
        assert status_of(stage)[0] == 0

        disk.take_room()
        stage.until(lambda: is_full(stage), "the disk counts as full")
        check_refused(lambda: client.files.create(file=("b.jsonl", batch_file(1)), purpose="batch"))
        check_refused(
            lambda: client.batches.create(
                input_file_id=before.input_file_id, endpoint=ENDPOINT, completion_window="24h"
            )
        )
        assert client.batches.retrieve(before.id).status == "completed"
        assert len(answered(client, before)) == 10
        assert len(client.files.content(before.input_file_id).content) == len(batch_file(10))
        code, status = status_of(stage)
        assert code == 1
        assert status["is_storage_full"]
        assert status["shard"]["is_storage_full"]

        disk.make_room()
        stage.until(lambda: not is_full(stage), "there is room again")
        after = stage.finish(client, stage.submit(client, 10).id)
        assert after.status == "completed"
        assert status_of(stage)[0] == 0


def test_a_disk_that_is_full_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    with memory_disk(folder / "control") as disk, FleetStage(folder) as stage:
        stage.start(cars=0)
        for name in ("car-0", "car-1"):
            stage.fleet.enrol(name, car_settings(), {"steps": [PARKED]})
        client = stage.client()
        batch = submit_file(client, batch_file(REQUESTS))
        stage.until(
            lambda: client.batches.retrieve(batch.id).status == "in_progress", "the batch is cut"
        )
        disk.take_room(NEARLY_NOTHING_BYTES)
        for name in ("car-0", "car-1"):
            stage.fleet.start_car(name)
        stage.until(lambda: commits_failed(stage) > 0, "the record can't grow")
        assert client.batches.retrieve(batch.id).status == "in_progress"

        # Also a control plane that begins with a full disk waits for room.
        assert stage.fleet.plane is not None
        stage.fleet.plane.kill()
        stage.fleet.start_plane()
        stage.until(lambda: is_full(stage), "the disk counts as full")
        assert client.batches.retrieve(batch.id).status == "in_progress"
        assert status_of(stage)[0] == 1

        disk.make_room()
        batch = stage.finish(client, batch.id)
        assert batch.status == "completed"
        names = answered(client, batch)
        assert len(names) == len(set(names)) == batch.request_counts.completed == REQUESTS


def commits_failed(stage: FleetStage) -> float:
    with stage.fleet.admin() as admin:
        shard = admin.status().shard
    return 0 if shard is None else shard.figures["commits_failed"]
