"""Measures what the fleet costs: batch embeddings through it, against the bare runtime."""

import tempfile
from pathlib import Path
from typing import Any

from openai import OpenAI

from terafleet.cli.demo import play
from terafleet.cli.demo.corpus import Docstring, choose, read_docstrings
from terafleet.cli.demo.screen import Screen
from terafleet.cli.demo.stage import parked
from terafleet.cli.local_fleet import LocalFleet

KINDS = ("threads", "processes")
WARM_TEXTS = 64
PARKED = {"steps": [parked(80.0)]}


def measure_overhead(texts: int, seed: int) -> dict[str, Any]:
    """As many cars as cores, one thread each, nobody leaves; before and after it the bare runtime.

    The bare figure is the better of two ways to use the cores (threads of one process, one process
    a core), each as the mean of a run before and a run after, so that a machine whose speed drifts
    favours neither side.
    """
    screen = Screen(is_json=True)
    with tempfile.TemporaryDirectory(prefix="terafleet-bench-") as temporary:
        work = Path(temporary)
        model = play.import_model(screen, work)
        docstrings = choose(read_docstrings(), texts, seed)
        sentences = [one.text for one in docstrings]
        before = {kind: _alone_s(work, model, sentences, kind) for kind in KINDS}
        seconds = _through_the_fleet(screen, work, model, docstrings)
        after = {kind: _alone_s(work, model, sentences, kind) for kind in KINDS}
    alone = {kind: (before[kind] + after[kind]) / 2 for kind in KINDS}
    return {
        "requests": len(docstrings),
        "texts_per_s": len(docstrings) / seconds,
        **{f"texts_per_s_alone_{kind}": len(docstrings) / alone[kind] for kind in KINDS},
        "throughput_share": min(alone.values()) / seconds,
    }


def _alone_s(work: Path, model: Path, sentences: list[str], kind: str) -> float:
    return play.run_alone(work, model, sentences, kind)[0].seconds


def _through_the_fleet(
    screen: Screen, work: Path, model: Path, docstrings: list[Docstring]
) -> float:
    """Seconds from the batch's creation to its end, on cars that have worked before."""
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
        warm_up = docstrings[: WARM_TEXTS * play.cores()]
        play.run_batch(screen, fleet, client, warm_up, lambda *_: None)
        seconds, _ = play.run_batch(screen, fleet, client, docstrings, lambda *_: None)
    return seconds
