"""Measures what the fleet costs: batch embeddings through it, against the bare runtime."""

import tempfile
from pathlib import Path
from typing import Any

from openai import OpenAI

from terafleet.cli.demo import play
from terafleet.cli.demo.corpus import choose, read_docstrings
from terafleet.cli.demo.screen import Screen
from terafleet.cli.demo.stage import parked
from terafleet.cli.local_fleet import LocalFleet

PARKED = {"steps": [parked(80.0)]}


def measure_overhead(texts: int, seed: int) -> dict[str, Any]:
    """As many cars as cores, one thread each, nobody leaves; before and after it the bare runtime.

    The bare figure is the mean of the two, so that a machine whose speed drifts does not favour
    either side.
    """
    screen = Screen(is_json=True)
    with tempfile.TemporaryDirectory(prefix="terafleet-bench-") as temporary:
        work = Path(temporary)
        model = play.import_model(screen, work)
        docstrings = choose(read_docstrings(), texts, seed)
        sentences = [one.text for one in docstrings]
        before, _ = play.run_alone(work, model, sentences)
        with LocalFleet(work / "fleet") as fleet:
            fleet.start_plane()
            play.add_model(fleet, model)
            for number in range(play.cores()):
                fleet.enrol(f"car-{number}", play.car_settings(), PARKED)
                fleet.start_car(f"car-{number}")
            play.wait_until_ready(fleet, play.cores())
            with fleet.admin() as admin:
                secret = admin.create_key("bench", "customer").secret
            client = OpenAI(base_url=f"{fleet.url}/v1", api_key=secret)
            _warm(screen, fleet, client, docstrings[: 64 * play.cores()])
            seconds, _ = play.run_batch(screen, fleet, client, docstrings, lambda *_: None)
        after, _ = play.run_alone(work, model, sentences)
    seconds_alone = (before.seconds + after.seconds) / 2
    return {
        "requests": len(docstrings),
        "texts_per_s": len(docstrings) / seconds,
        "texts_per_s_alone": len(docstrings) / seconds_alone,
        "throughput_share": seconds_alone / seconds,
    }


def _warm(screen: Screen, fleet: LocalFleet, client: OpenAI, docstrings: Any) -> None:
    """Let every car fetch and load the model, as cars that have worked before have."""
    play.run_batch(screen, fleet, client, docstrings, lambda *_: None)
