"""`terafleet up` as a person runs it: it starts, the other commands find it, Ctrl-C ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

WAIT_S = 30.0
FORWARDED = {"X-Forwarded-For": "192.0.2.7"}


def terafleet(*given: str) -> list[str]:
    return [sys.executable, "-m", "terafleet.cli", *given]


def environment_of(folder: Path) -> dict[str, str]:
    """This process' environment, but with no control plane in it."""
    names = ("TERAFLEET_URL", "TERAFLEET_API_KEY", "TERAFLEET_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["XDG_DATA_HOME"] = str(folder / "nobody")
    return environment


@contextmanager
def control_plane(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """One that runs on `data` in a folder; it must end well once it is told to."""
    data = folder / "data"
    listening = ["--listen", "127.0.0.1:0", "--bus-listen", "127.0.0.1:0"]
    plane = subprocess.Popen(
        terafleet("up", "--data", str(data), *listening, *options),
        env=environment_of(folder),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not (data / "url").exists():
            assert plane.poll() is None, plane.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        yield plane
        plane.send_signal(signal.SIGINT)
        _, told = plane.communicate(timeout=WAIT_S)
        assert plane.returncode == 0, told
        assert "Traceback" not in told
    finally:
        plane.kill()
        plane.wait()


def test_a_control_plane_starts_answers_and_ends(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with control_plane(tmp_path):
        assert (data / "operator.key").stat().st_mode & 0o777 == 0o600
        asked = subprocess.run(
            terafleet("status", "--data", str(data), "--json"),
            env=environment_of(tmp_path),
            capture_output=True,
            check=False,
            timeout=WAIT_S,
        )
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout)["shard"]["batches_open"] == 0
        url = (data / "url").read_text().strip()
        assert httpx.get(f"{url}/metrics", headers=FORWARDED).status_code == 401
        deadline_s = time.monotonic() + WAIT_S
        while (health := httpx.get(f"{url}/healthz")).status_code != 200:
            assert time.monotonic() < deadline_s, health.text
            time.sleep(0.02)
        told = health.json()
        assert (told["depth"], told["shallow"]) == ("shard", "there is no model")


def test_its_canaries_and_the_lock_on_its_metrics_can_be_left_out(tmp_path: Path) -> None:
    with control_plane(tmp_path, "--canary-period-s", "0", "--open-metrics"):
        url = (tmp_path / "data" / "url").read_text().strip()
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        metrics = httpx.get(f"{url}/metrics", headers=FORWARDED)
        assert metrics.status_code == 200
        assert "terafleet_canar" not in metrics.text
