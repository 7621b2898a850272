"""A model stays loaded in as many slots as the operator wants, whichever real cars come and go."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from openai import OpenAI

from tests.conftest import ROOT
from tests.system.fleet_stage import FleetStage, car_settings

STORY = ROOT / "src/terafleet/cli/demo/story.gguf"
NAME = "org/teller"
CARS = ("car-0", "car-1", "car-2")
SLOTS = 2


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[FleetStage]:
    """Three cars of one slot, and a model that two of them shall keep."""
    with FleetStage(tmp_path) as stage:
        stage.fleet.start_plane()
        added = stage.command("model", "add", NAME, str(STORY))
        assert added.returncode == 0, added.stderr
        for name in CARS:
            stage.add_car(name, car_settings(slots=1, runtime="llama"))
        stage.until(lambda: stage.states().count("idle") == len(CARS), "all cars are idle")
        yield stage


def told(stage: FleetStage, *words: str) -> str:
    """What a command prints that works."""
    ended = stage.command(*words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def loaded(stage: FleetStage) -> set[str]:
    """The cars that have the model in memory."""
    with stage.fleet.admin() as admin:
        return {one.name for one in admin.vehicles().vehicles if NAME in one.loaded}


def figures(stage: FleetStage) -> tuple[int, int]:
    """The wanted slots, and those with the model in memory."""
    with stage.fleet.admin() as admin:
        found = admin.models().warm
    assert found is not None
    ((slots, slots_loaded),) = ((one.slots, one.slots_loaded) for one in found)
    return slots, slots_loaded


def until_loaded(stage: FleetStage, *without: str) -> set[str]:
    """Wait until the wanted slots are loaded, in none of these cars; the cars that have them."""

    def holds() -> bool:
        return figures(stage) == (SLOTS, SLOTS) and not loaded(stage) & set(without)

    stage.until(holds, f"{SLOTS} slots are loaded")
    return loaded(stage)


def tell_story(client: OpenAI) -> str:
    """The model's words."""
    answer = client.completions.create(model=NAME, prompt="One day", max_tokens=8)
    return answer.choices[0].text


def model_id_of(stage: FleetStage) -> str:
    """The id of the only model."""
    (view,) = msgspec.json.decode(told(stage, "model", "list", "--json"))["models"]
    return str(view["model_id"])


def read(url: str) -> str:
    """What is at an address of this computer."""
    with httpx.Client(trust_env=False) as client:
        return client.get(url).text


def test_the_number_is_kept_through_departures_and_a_restart(warm: FleetStage) -> None:
    first = told(warm, "model", "warm", NAME, "--slots", str(SLOTS))
    assert first.startswith("0 of 2 slots of org/teller are loaded now; 2 more are on their way")
    cars = until_loaded(warm)
    (cold,) = set(CARS) - cars
    assert "2 of 2" in told(warm, "model", "list").splitlines()[1]
    assert not warm.has_runtime(cold)

    # A request finds the model in memory: no car loads anything for it.
    assert tell_story(warm.client(retries=0))
    assert loaded(warm) == cars
    assert not warm.has_runtime(cold)

    # A car that dies is replaced by the cold one.
    dead = min(cars)
    warm.fleet.cars[dead].kill()
    cars = until_loaded(warm, dead)
    assert cold in cars
    warm.fleet.start_car(dead)
    warm.until(lambda: warm.vehicle(dead).state == "idle", "the car is back")
    assert loaded(warm) == cars, "who is back is not needed at once"

    # The control plane dies and comes back; the cars keep what they have.
    processes = {name: warm.runtime_process(name) for name in cars}
    assert warm.fleet.plane is not None
    warm.fleet.plane.kill()
    warm.fleet.start_plane()
    assert until_loaded(warm) == cars
    assert {name: warm.runtime_process(name) for name in cars} == processes

    # An owner comes back: the memory is theirs, and the third car loads.
    owned = min(cars)
    warm.turn(owned, is_driver_present=True)
    cars = until_loaded(warm, owned)
    assert dead in cars
    warm.until(lambda: not warm.has_runtime(owned), "the owner has the memory back")
    assert warm.vehicle(owned).state == "refusing"

    model_id = model_id_of(warm)
    story = told(warm, "story", model_id)
    assert f"{model_id} shall stay in memory in 2 slots" in story
    assert f"{warm.vehicle(owned).vehicle_id} is asked to keep in memory: {model_id}" in story
    metrics = warm.fleet.url + "/metrics"
    assert 'terafleet_warm_slots_loaded{model="org/teller"} 2.0' in read(metrics)

    assert told(warm, "model", "warm", NAME, "--slots", "0") == (
        f"{NAME} need not stay loaded any more.\n"
    )
    with warm.fleet.admin() as admin:
        assert admin.models().warm == ()
