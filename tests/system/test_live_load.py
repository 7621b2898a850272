"""Streams by the dozen on real cars that are killed, cut off and frozen, and a control plane that
is killed once: each stream is right to the last token, or says why it is not."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from terafleet.agent.identity import ENROLMENT_FILE
from terafleet.agent.ports import SessionPiece
from terafleet.agent.runtime_host.llama import loader
from terafleet.agent.runtime_host.models import LiveRequest
from terafleet.protocol.manifest import Manifest
from tests.conftest import ROOT
from tests.system.fleet_stage import PARKED, FleetStage, is_alive
from tests.system.link_relay import LinkRelay
from tests.system.live_customers import COMPLETIONS, Crowd, Right, Told

STORY_FILE = ROOT / "src/terafleet/cli/demo/story.gguf"
COUNTING, STORY = "counting", "story"
TOKENS, TOKEN_MS = 60, 40
HEROES = ("big rabbit", "big car", "little boat", "little king", "big boy", "big horse")
"""Stories in which at each token the likeliest one is far ahead of the next (0.03 and more in
logits), so that no rounding can lead to another story."""

CARS = {COUNTING: ("c-0", "c-1", "c-2"), STORY: ("s-0", "s-1", "s-2", "s-3")}
SLOTS = {COUNTING: 6, STORY: 4}
CUSTOMERS = {COUNTING: 11, STORY: 10}
SEED = 20

PAUSE_S = (0.8, 1.4)
REPAIRED_S = 2.5
"""How long a trouble lasts: longer than a silent car is waited for."""


def car_settings(kind: str) -> dict[str, Any]:
    """A car whose owner settles at once, and which tells at a reader's pace."""
    return {
        "slots": SLOTS[kind],
        "memory_mb": 512,
        "runtimes": ["noop" if kind == COUNTING else "llama"],
        "session_token_ms": TOKEN_MS,
        "vehicle": {"file": "timetable.json", "sample_ms": 200},
        "policy": {"yield": {"settle_ms": 0}},
    }


def right_stories(folder: Path) -> list[Right]:
    """What the model says when nobody disturbs it, by llama.cpp in this process."""
    folder.mkdir()
    (folder / "model.gguf").write_bytes(STORY_FILE.read_bytes())
    model = loader(threads=1, slots=1)(folder, {"context_tokens": 512})
    rights = []
    for hero in HEROES:
        prompt = f"Once upon a time, there was a {hero}"
        body = {"model": STORY, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        pieces: list[SessionPiece] = []
        request = LiveRequest(COMPLETIONS, msgspec.json.encode(body), ())
        model.stream(request, pieces.append, lambda: False)
        rights.append(Right(STORY, prompt, TOKENS, "".join(piece.text for piece in pieces)))
    return rights


class Troubled:
    """A fleet of both kinds, its customers, and what goes wrong with it."""

    def __init__(self, stage: FleetStage, crowd: Crowd, seed: int) -> None:
        self.stage = stage
        self.crowd = crowd
        self.frozen: list[int] = []
        self.relays: dict[str, LinkRelay] = {}
        self._chance = random.Random(seed)
        self._repairs: dict[str, tuple[float, Callable[[], None]]] = {}

    def add_cars(self) -> None:
        """Enrol and start all cars, each with a link of its own."""
        for kind, names in CARS.items():
            for name in names:
                relay = self.relays[name] = self.crowd.relay(self.stage.fleet.bus_port)
                self.stage.fleet.enrol(name, car_settings(kind), {"steps": [PARKED]})
                file = self.stage.fleet.car_folder(name) / ENROLMENT_FILE
                enrolment = msgspec.json.decode(file.read_bytes())
                enrolment["bus_urls"] = [f"nats://127.0.0.1:{relay.port}"]
                file.write_bytes(msgspec.json.encode(enrolment))
                self.stage.fleet.start_car(name)
        self.wait_for_all("idle")

    def wait_for_all(self, *states: str) -> None:
        """Wait until each car is about one of these."""
        self.stage.until(lambda: set(self.stage.states()) <= set(states), f"all are {states}")

    def cast(self, troubles: list[tuple[str, str]]) -> None:
        """One trouble after the other, each with a car at work, and repair them in time."""
        for deed, kind in troubles:
            end_s = time.monotonic() + self._chance.uniform(*PAUSE_S)
            while time.monotonic() < end_s:
                self._repair(time.monotonic())
                time.sleep(0.05)
            name = self._victim(deed, kind)
            repair = getattr(self, f"_{deed}")(name)
            self._repairs[name] = (time.monotonic() + REPAIRED_S, repair)

    def repair_all(self) -> None:
        """End all troubles."""
        while self._repairs:
            self._repair(time.monotonic())
            time.sleep(0.05)

    def _repair(self, now_s: float) -> None:
        for name, (due_s, repair) in list(self._repairs.items()):
            if now_s >= due_s:
                repair()
                del self._repairs[name]

    def _victim(self, deed: str, kind: str) -> str:
        """A car with sessions, and without a trouble."""
        stage = self.stage
        names: list[str] = []

        def is_found() -> bool:
            with stage.fleet.admin() as admin:
                busy = {one.name for one in admin.vehicles().vehicles if one.leases}
            some = sorted(busy & set(CARS[kind]) - set(self._repairs))
            names[:] = [name for name in some if deed != "freeze" or stage.has_runtime(name)]
            return bool(names)

        stage.until(is_found, f"a {kind} car is at work")
        return self._chance.choice(names)

    # Troubles; each returns what ends it.

    def _kill(self, name: str) -> Callable[[], None]:
        """The whole car goes without a word."""
        self.stage.fleet.cars[name].kill()
        return lambda: void(self.stage.fleet.start_car(name))

    def _hold(self, name: str) -> Callable[[], None]:
        """The link becomes a black hole: the car works on, and what it says comes late."""
        self.crowd.switch(self.relays[name].hold)
        return lambda: self.crowd.switch(self.relays[name].let_pass)

    def _stop(self, name: str) -> Callable[[], None]:
        """The agent stands still; its runtime writes on until the pipe is full."""
        process_id = self.stage.fleet.cars[name].process.pid
        os.kill(process_id, signal.SIGSTOP)
        return lambda: os.kill(process_id, signal.SIGCONT)

    def _freeze(self, name: str) -> Callable[[], None]:
        """The runtime stands still, while its agent lives; nobody but the agent ends that."""
        self.frozen.append(self.stage.runtime_process(name))
        os.kill(self.frozen[-1], signal.SIGSTOP)
        return lambda: None


def void(_: object) -> None:
    """Nothing of it."""


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[Troubled]:
    """A fleet whose cars are idle, with customers who do not ask yet."""
    with FleetStage(tmp_path / "fleet") as stage:
        stage.fleet.start_plane()
        with stage.fleet.admin() as admin:
            admin.create_model(Manifest(COUNTING, "noop", (COMPLETIONS,), 1, (), {}))
            secret = admin.create_key("customer", "customer").secret
        added = stage.command("model", "add", STORY, str(STORY_FILE))
        assert added.returncode == 0, added.stderr
        crowd = Crowd(stage.fleet.url, secret, SEED)
        one = Troubled(stage, crowd, SEED)
        try:
            one.add_cars()
            yield one
        finally:
            crowd.close(list(one.relays.values()))


class Outage:
    """When the control plane was not there, or its cars were not back yet."""

    def __init__(self) -> None:
        self.began_s = self.back_s = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """What is done inside takes the control plane away, and brings it and its cars back."""
        self.began_s = time.monotonic()
        yield
        self.back_s = time.monotonic()

    def check(self, told: Told) -> None:
        """A stream that it has cut says so, and told nothing wrong until then; others are right."""
        assert told.ended_s, "a stream without an end"
        assert told.ending != "hung", told
        assert told.right.text.startswith(told.text), told
        if told.ending == "done":
            assert told.text == told.right.text, told
        else:
            assert told.began_s < self.back_s, told
            assert told.ended_s > self.began_s, told


TROUBLES = [
    ("kill", COUNTING),
    ("kill", STORY),
    ("hold", COUNTING),
    ("hold", STORY),
    ("stop", COUNTING),
    ("stop", STORY),
    ("freeze", STORY),
    ("freeze", STORY),
]


def test_each_stream_is_right_or_says_why_not(troubled: Troubled, tmp_path: Path) -> None:
    stage, crowd = troubled.stage, troubled.crowd
    numbers = "".join(f"{number} " for number in range(TOKENS))
    rights = {
        COUNTING: [Right(COUNTING, "count", TOKENS, numbers)],
        STORY: right_stories(tmp_path / "model"),
    }
    for kind, customers in CUSTOMERS.items():
        crowd.ask(rights[kind], customers)
    troubles = list(TROUBLES)
    random.Random(SEED).shuffle(troubles)
    half = len(troubles) // 2

    troubled.cast(troubles[:half])
    troubled.repair_all()
    outage = Outage()
    assert stage.fleet.plane is not None
    with outage.measured():
        stage.fleet.plane.kill()
        stage.fleet.start_plane()
        troubled.wait_for_all("idle", "leased")
    troubled.cast(troubles[half:])
    troubled.repair_all()
    crowd.rest()

    tell(crowd.told)
    for told in crowd.told:
        outage.check(told)
    done = Counter(told.right.model for told in crowd.told if told.ending == "done")
    assert min(done[COUNTING], done[STORY]) >= 2 * max(CUSTOMERS.values())
    assert sum(told.moves for told in crowd.told) >= len(TROUBLES), "the troubles hit nobody"
    assert not any(map(is_alive, troubled.frozen)), "an agent has not ended its frozen runtime"
    troubled.wait_for_all("idle")


def tell(streams: list[Told]) -> None:
    """The figures, for who looks at the test's output."""
    endings = Counter(f"{told.right.model} {told.ending}" for told in streams)
    gaps = sorted(told.gap_s for told in streams if told.moves and told.ending == "done")
    print(f"{dict(endings)}, {len(gaps)} moved; longest gaps {[f'{gap:.2f}' for gap in gaps[-8:]]}")
