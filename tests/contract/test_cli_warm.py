"""`terafleet model warm`, and where people see what is kept loaded."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from terafleet.core.ids import ModelId
from terafleet.core.reasons import Refused
from terafleet.protocol.manifest import Manifest
from terafleet.protocol.shard import (
    Answered,
    GetStatus,
    ListVehicles,
    VehicleList,
    WarmModel,
    WarmView,
)
from terafleet.sdk import AdminClient
from tests.contract.cli_stage import Person, operator, silent_gateway_thread
from tests.contract.fake_answers import shard_status, vehicle_view
from tests.contract.gateway_thread import GatewayThread, Opened

NAME = "org/teller"


@pytest.fixture(scope="module")
def thread() -> Iterator[GatewayThread]:
    with silent_gateway_thread() as running:
        yield running


@pytest.fixture
def gateway(thread: GatewayThread) -> Iterator[Opened]:
    with thread.operators() as opened:
        yield opened


@pytest.fixture
def person(gateway: Opened, tmp_path: Path) -> Person:
    return operator(gateway, tmp_path)


@pytest.fixture
def model_id(gateway: Opened) -> str:
    """A model of the catalogue that needs no files."""
    secret = gateway.stage.add_key("operator")
    with AdminClient(gateway.url, secret) as client:
        view = client.create_model(Manifest(NAME, "noop", ("/v1/embeddings",), 1, (), {}))
    return view.model_id


def say(gateway: Opened, model_id: str, slots: int, chosen: int, loaded: int) -> None:
    """The shard tells how far it is with a model."""
    warm = (WarmView(ModelId(model_id), NAME, slots, chosen, loaded),)
    gateway.shard.answers[GetStatus] = msgspec.structs.replace(shard_status(), warm=warm)


@pytest.mark.parametrize(
    ("chosen", "loaded", "told"),
    [
        (4, 2, "2 of 4 slots of org/teller are loaded now; 2 more are on their way, "),
        (4, 4, "4 of 4 slots of org/teller are loaded now.\n"),
        (8, 6, "4 of 4 slots of org/teller are loaded now.\n"),
        (3, 3, "3 of 4 slots of org/teller are loaded now; no car can take 1 more at present"),
        (0, 0, "0 of 4 slots of org/teller are loaded now; no car can take 4 more at present"),
    ],
)
def test_it_says_how_far_it_is(
    person: Person, gateway: Opened, model_id: str, chosen: int, loaded: int, told: str
) -> None:
    say(gateway, model_id, 4, chosen, loaded)
    assert person.succeeds("model", "warm", NAME, "--slots", "4").startswith(told)
    assert gateway.shard.asked(WarmModel) == [WarmModel(ModelId(model_id), 4)]


def test_it_can_be_read_by_programs_and_ended(
    person: Person, gateway: Opened, model_id: str
) -> None:
    say(gateway, model_id, 2, 2, 1)
    read = person.reads("model", "warm", model_id, "--slots", "2")
    assert (read["slots"], read["slots_chosen"], read["slots_loaded"]) == (2, 2, 1)
    gateway.shard.answers[GetStatus] = shard_status()
    ended = person.succeeds("model", "warm", model_id[:12], "--slots", "0")
    assert ended == "org/teller need not stay loaded any more.\n"


def test_what_is_wrong_is_told(person: Person, gateway: Opened, model_id: str) -> None:
    told = person.fails("model_not_found", "model", "warm", "org/nobody", "--slots", "1")
    assert "model list" in told
    for given in (("--slots", "-1"), ("--slots", "many"), ()):
        result = person.gives("model", "warm", NAME, *given)
        assert result.exit_code == 2
        assert "--slots" in result.stderr
    assert gateway.shard.asked(WarmModel) == []
    gateway.shard.answers[WarmModel] = Answered(Refused.NO_FEASIBLE_VEHICLE, "lends 1 MB")
    told = person.fails("no_feasible_vehicle", "model", "warm", model_id, "--slots", "1")
    assert "lends 1 MB" in told


def test_lists_and_the_status_show_it(person: Person, gateway: Opened, model_id: str) -> None:
    plain = person.succeeds("model", "list")
    assert "WARM" not in plain
    say(gateway, model_id, 4, 4, 2)
    head, row = person.succeeds("model", "list").splitlines()
    assert head.split()[-1] == "WARM"
    assert row.endswith("2 of 4")
    assert person.reads("model", "list")["warm"][0]["slots"] == 4
    assert "org/teller in 2 of 4 slots" in person.succeeds("status")
    car = msgspec.structs.replace(vehicle_view("veh-abcdefghij"), loaded=(NAME, "other"))
    gateway.shard.answers[ListVehicles] = VehicleList((car,))
    head, row = person.succeeds("vehicle", "list").splitlines()
    assert "LOADED" in head
    assert "org/teller other" in row


def test_models_are_listed_without_the_shard(
    person: Person, gateway: Opened, model_id: str
) -> None:
    gateway.run(gateway.shard.bus.close())
    result = person.gives("model", "list")
    assert (result.exit_code, model_id[:12] in result.stdout) == (0, True)
    assert "does not answer" in result.stderr
