"""The second act of the demo: a streamed story, while owners come back to the car that tells it."""

import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
from openai import OpenAI

from terafleet.cli.demo.screen import Screen
from terafleet.cli.demo.stage import parked
from terafleet.cli.local_fleet import LocalFleet

MODEL = "terafleet-story"
PROMPT = "Once upon a time, there was a little red car"
TOKENS_MAX = 500
TOKEN_MS = 25
"""The model is so small that a story would be over before anybody could come back to a car."""

CARS = ("Iris", "Jens", "Kaya")
CUES = (0.3, 0.65)
"""At which shares of the story an owner comes back."""

AWAY = {"steps": [{**parked(80.0), "is_driver_present": True}]}


class Told(msgspec.Struct):
    """A story as its reader got it."""

    text: str = ""
    pieces: int = 0
    moves: int = 0
    gap_ms_max: float = 0.0


def model_file() -> Path:
    """The project's own tiny model; tools/story_model says how it was made."""
    return Path(str(resources.files("terafleet.cli.demo").joinpath("story.gguf")))


def car_settings() -> dict[str, Any]:
    """A car that tells one story at a time, at a reader's pace, and looks often for its owner."""
    return {
        "slots": 1,
        "runtime_threads": 1,
        "memory_mb": 1_024,
        "runtimes": ["llama"],
        "session_token_ms": TOKEN_MS,
        "vehicle": {"adapter": "scripted", "file": "timetable.json", "sample_ms": 50},
        "policy": {"yield": {"settle_ms": 500, "stale_ms": 20_000}},
    }


def enrol_cars(fleet: LocalFleet) -> None:
    """Bring the story's cars to the fleet."""
    for name in CARS:
        fleet.enrol(name, car_settings(), {"steps": [parked(80.0)]})
        fleet.start_car(name)


def play_story(screen: Screen, fleet: LocalFleet, client: OpenAI) -> dict[str, Any]:
    """Tell the story undisturbed, then with two owners coming back; the figures of both."""
    screen.say("\n6  a story, streamed from a car; then again, while owners come back to theirs")
    alone = tell(client, lambda _: None)
    screen.say(f"   undisturbed: {alone.pieces} pieces, longest gap {alone.gap_ms_max:.0f} ms\n")
    director = _Director(screen, fleet, alone.pieces)
    screen.console.print(f"[dim]{PROMPT}[/]", end="")
    told = tell(client, director.hear)
    screen.say("\n")
    is_same = told.text == alone.text
    screen.say(
        f"   {told.moves} moves; the longest gap that the reader saw: {told.gap_ms_max:.0f} ms; "
        f"the text is {'the same' if is_same else 'ANOTHER ONE'}"
    )
    checks = {
        "the story that moved is the undisturbed one": is_same and told.pieces == alone.pieces,
        "it moved once for each owner": told.moves == len(CUES),
    }
    for check, is_passed in checks.items():
        screen.say(f"  {'[green]passed[/]' if is_passed else '[red]FAILED[/]'}  {check}")
    return {
        "story": told.text,
        "story_identical": is_same,
        "moves": told.moves,
        "gap_ms_max": told.gap_ms_max,
        "gap_ms_max_undisturbed": alone.gap_ms_max,
        "story_checks": checks,
    }


class _Director:
    """Shows the story as it comes, and sends owners back to the car that tells it."""

    def __init__(self, screen: Screen, fleet: LocalFleet, pieces: int) -> None:
        self._screen = screen
        self._fleet = fleet
        self._cues = [int(pieces * share) for share in CUES]
        self._heard = 0

    def hear(self, text: str) -> None:
        """A piece has come to the reader."""
        self._screen.console.print(text, end="", markup=False)
        self._heard += 1
        if self._cues and self._heard >= self._cues[0]:
            self._cues.pop(0)
            name = self._telling()
            if name:
                self._fleet.write_timetable(name, AWAY)
                self._screen.console.print(f" [bold]▸{name}'s owner is back▸[/] ", end="")

    def _telling(self) -> str:
        with self._fleet.admin() as admin:
            vehicles = admin.vehicles().vehicles
        return next((one.name for one in vehicles if one.name in CARS and one.leases), "")


def tell(client: OpenAI, hear: Callable[[str], None]) -> Told:
    """Ask for the story and read it to its end."""
    told, last_s = Told(), 0.0
    stream = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=TOKENS_MAX,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"Terafleet-Explain": "1"},
    )
    for chunk in stream:
        explained = (chunk.model_extra or {}).get("terafleet") or {}
        told.moves = max(told.moves, int(explained.get("moves", 0)))
        text = "".join(choice.text for choice in chunk.choices)
        if text:
            now_s = time.perf_counter()
            if last_s:
                told.gap_ms_max = max(told.gap_ms_max, (now_s - last_s) * 1_000)
            last_s = now_s
            told.text += text
            told.pieces += 1
            hear(text)
    return told
