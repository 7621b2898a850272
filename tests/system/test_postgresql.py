"""A fleet whose record is in PostgreSQL: kills of the control plane and the server lose nothing."""

import time
from pathlib import Path

import openai
import pytest

from tests.postgresql_server import PostgresqlDatabase
from tests.system.fleet_stage import FleetStage, answered, batch_file, command

REQUESTS = 4_000
REFUSED_S = 5.0


def check_answered_once(stage: FleetStage, client: openai.OpenAI, batch_id: str) -> None:
    batch = stage.finish(client, batch_id)
    assert batch.status == "completed", batch
    names = answered(client, batch)
    assert len(names) == len(set(names)) == batch.request_counts.completed == REQUESTS
    # A lease that was committed but never sent is unknown to the car; no other loss is allowed.
    assert set(stage.lost()) <= {"lease_unknown"}


def test_kill_of_the_control_plane_in_the_middle(
    tmp_path: Path, postgresql_database: PostgresqlDatabase
) -> None:
    with FleetStage(tmp_path, {"database_url": postgresql_database.url}) as stage:
        stage.start(cars=2)
        client = stage.client()
        batch = stage.submit(client, REQUESTS)
        stage.until_done(client, batch.id, REQUESTS // 4)
        assert stage.fleet.plane is not None
        stage.fleet.plane.kill()
        stage.fleet.start_plane()
        check_answered_once(stage, client, batch.id)
        assert sorted(path.name for path in stage.fleet.data.glob("*.db*")) == []


def test_the_server_goes_away_in_the_middle_and_comes_back(
    tmp_path: Path, postgresql_database: PostgresqlDatabase
) -> None:
    server = postgresql_database.server
    with FleetStage(tmp_path, {"database_url": postgresql_database.url}) as stage:
        stage.start(cars=2)
        client, impatient = stage.client(), stage.client(retries=0)
        batch = stage.submit(client, REQUESTS)
        stage.until_done(client, batch.id, REQUESTS // 4)
        server.kill()
        try:
            begin_s = time.monotonic()
            for deed in (
                lambda: impatient.batches.retrieve(batch.id),
                lambda: impatient.batches.cancel(batch.id),
                lambda: impatient.files.create(
                    file=("batch.jsonl", batch_file(1)), purpose="batch"
                ),
            ):
                with pytest.raises(openai.APIStatusError) as refused:
                    deed()
                assert refused.value.code in ("overloaded", "storage_full")
            assert time.monotonic() - begin_s < REFUSED_S, "it does not wait for the server"
        finally:
            server.start()
        check_answered_once(stage, client, batch.id)


def test_a_control_plane_that_has_lost_its_record_to_another_one_ends(
    tmp_path: Path, postgresql_database: PostgresqlDatabase
) -> None:
    settings = {"database_url": postgresql_database.url}
    with FleetStage(tmp_path / "one", settings) as stage:
        stage.start(cars=1)
        second = command(
            *("up", "--data", str(tmp_path / "two"), "--database", postgresql_database.url),
            *("--listen", "127.0.0.1:0", "--bus-listen", "127.0.0.1:0"),
        )
        assert second.returncode == 1
        assert "another control plane" in second.stderr
        assert "Traceback" not in second.stderr
        postgresql_database.sql("UPDATE terafleet_record.format SET writer = writer + 1")
        postgresql_database.server.kill()
        postgresql_database.server.start()
        # That the car leaves is to be written.
        stage.fleet.cars["car-0"].stop()
        plane = stage.fleet.plane
        assert plane is not None
        stage.until(lambda: not plane.is_running, "it ends")
        assert "StoreInUse" in plane.last_words()


def test_a_database_that_cannot_be_used_is_said_and_its_password_is_not(
    tmp_path: Path, postgresql_database: PostgresqlDatabase
) -> None:
    url = postgresql_database.url.replace("postgres@", "stranger:hush@")
    done = command(
        *("up", "--data", str(tmp_path / "data"), "--database", url),
        *("--listen", "127.0.0.1:0", "--bus-listen", "127.0.0.1:0"),
    )
    assert done.returncode == 1
    shown = f"postgresql://stranger@/{postgresql_database.name}"
    assert f"{shown} can't be used" in done.stderr
    assert 'role "stranger" does not exist' in done.stderr
    assert "PGPASSWORD" in done.stderr
    assert "hush" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
