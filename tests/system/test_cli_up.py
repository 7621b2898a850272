"""`terafleet up` as a person runs it: it starts, the other commands find it, Ctrl-C ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

WAIT_S = 30.0


def terafleet(*given: str) -> list[str]:
    return [sys.executable, "-m", "terafleet.cli", *given]


def test_a_control_plane_starts_answers_and_ends(tmp_path: Path) -> None:
    data = tmp_path / "data"
    names = ("TERAFLEET_URL", "TERAFLEET_API_KEY", "TERAFLEET_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["XDG_DATA_HOME"] = str(tmp_path / "nobody")
    listening = ["--listen", "127.0.0.1:0", "--bus-listen", "127.0.0.1:0"]
    plane = subprocess.Popen(
        terafleet("up", "--data", str(data), *listening),
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not (data / "url").exists():
            assert plane.poll() is None, plane.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert (data / "operator.key").stat().st_mode & 0o777 == 0o600
        asked = subprocess.run(
            terafleet("status", "--data", str(data), "--json"),
            env=environment,
            capture_output=True,
            check=False,
            timeout=WAIT_S,
        )
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout)["shard"]["batches_open"] == 0
        plane.send_signal(signal.SIGINT)
        _, told = plane.communicate(timeout=WAIT_S)
        assert plane.returncode == 0, told
        assert "Traceback" not in told
    finally:
        plane.kill()
        plane.wait()
