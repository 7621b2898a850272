"""The SDK against the real gateway, and against what is no gateway at all."""

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from terafleet.control.ports import CodeRow, VehicleRow
from terafleet.core.ids import ModelId
from terafleet.core.reasons import Refused
from terafleet.core.work import BatchState
from terafleet.protocol.errors import ERRORS
from terafleet.protocol.manifest import Manifest, ManifestFile
from terafleet.protocol.openai import BatchObject
from terafleet.protocol.shard import (
    Answered,
    CreateBatch,
    DrainVehicle,
    GetStatus,
    GetStory,
    GetVehiclePolicy,
    ListVehicles,
    RemoveVehicle,
    SetVehiclePolicy,
    Story,
    StoryLine,
    VehicleList,
    VehiclePolicy,
    WarmModel,
    WarmView,
)
from terafleet.sdk import AdminClient, FleetClient, TerafleetError, errors
from terafleet.sdk.fleet import PATIENCE_S
from terafleet.sdk.gateway import checked_url
from tests.contract.customer_stage import ALICE, lines
from tests.contract.fake_answers import shard_status, vehicle_view
from tests.contract.gateway_app import START_MS
from tests.contract.gateway_thread import GatewayThread, Opened, gateway_thread

VEHICLE_ID = "veh-abcdefghij"


@pytest.fixture(scope="module")
def thread() -> Iterator[GatewayThread]:
    with gateway_thread() as running:
        yield running


@pytest.fixture
def gateway(thread: GatewayThread) -> Iterator[Opened]:
    with thread.operators() as opened:
        yield opened


@pytest.fixture
def admin(gateway: Opened) -> Iterator[AdminClient]:
    with AdminClient(gateway.url, gateway.stage.add_key("operator")) as client:
        yield client


@pytest.fixture
def fleet(thread: GatewayThread) -> Iterator[Opened]:
    with thread.customers() as opened:
        yield opened


@pytest.fixture
def alice(fleet: Opened) -> Iterator[FleetClient]:
    with FleetClient(fleet.url, ALICE) as client:
        yield client


def text_model(folder: Path, name: str = "encoder") -> tuple[Manifest, dict[str, Path]]:
    """A model for the runtime that computes nothing, of two files."""
    paths = {"a.json": folder / "a.json", "b.txt": folder / "b.txt"}
    paths["a.json"].write_bytes(b'{"tokens": [' + b"1," * 300_000 + b"2]}")
    paths["b.txt"].write_bytes(b"some words")
    files = tuple(
        ManifestFile(one, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for one, path in paths.items()
    )
    return Manifest(name, "noop", ("/v1/embeddings",), 100, files, {}), paths


def test_keys_are_made_listed_and_revoked(admin: AdminClient, gateway: Opened) -> None:
    created = admin.create_key("my app")
    assert created.key.role == "customer"
    assert created.secret.startswith(created.key.hint)
    assert created.key in admin.keys().keys
    with FleetClient(gateway.url, created.secret) as customer:
        assert customer.models().data == ()
        assert admin.revoke_key(created.key.key_id).revoked_ms == START_MS
        with pytest.raises(errors.KeyRefused, match="revoked") as caught:
            customer.models()
    assert caught.value.code == "revoked_api_key"
    with pytest.raises(errors.NotFound):
        admin.revoke_key("key_0")


def test_a_customer_can_get_one_more_key(admin: AdminClient) -> None:
    first = admin.create_key("one").key
    second = admin.create_key("two", customer_id=first.customer_id).key
    assert second.customer_id == first.customer_id
    assert second.key_id != first.key_id
    with pytest.raises(errors.RequestInvalid) as caught:
        admin.create_key("three", role="king")
    assert caught.value.param == "role"


def test_customers_are_no_operators(gateway: Opened) -> None:
    secret = gateway.stage.add_key("customer")
    with AdminClient(gateway.url, secret) as client, pytest.raises(errors.NotAllowed):
        client.status()


def test_codes_status_and_story(admin: AdminClient, gateway: Opened) -> None:
    code = admin.create_code(60)
    assert code.expires_ms == START_MS + 60_000
    status = admin.status()
    assert status.is_bus_connected
    assert status.shard == shard_status()
    line = StoryLine(5, 1, "it happened")
    gateway.shard.answers[GetStory] = Story((line,), False)
    page = admin.story("batch_1", 7)
    assert (page.lines, page.is_complete) == ((line,), False)
    (question,) = gateway.shard.asked(GetStory)
    assert (question.about, question.limit) == ("batch_1", 7)


def test_cars_are_listed_drained_and_removed(admin: AdminClient, gateway: Opened) -> None:
    view = vehicle_view(VEHICLE_ID)
    gateway.shard.answers[ListVehicles] = VehicleList((view,))
    assert admin.vehicles().vehicles == (view,)
    vehicle = VehicleRow(VEHICLE_ID, "a car", "U", START_MS)
    gateway.stage.catalogue.add_code(CodeRow(b"code", START_MS, START_MS + 1))
    assert gateway.stage.catalogue.use_code(b"code", vehicle, START_MS) is None
    assert admin.drain_vehicle(VEHICLE_ID).vehicle_id == VEHICLE_ID
    assert admin.undrain_vehicle(VEHICLE_ID).vehicle_id == VEHICLE_ID
    assert [each.is_draining for each in gateway.shard.asked(DrainVehicle)] == [True, False]
    assert admin.set_vehicle_policy(VEHICLE_ID, {"is_paused": True}).vehicle_id == VEHICLE_ID
    gateway.shard.answers[GetVehiclePolicy] = VehiclePolicy(b'{"is_paused": true}')
    assert admin.vehicle_policy(VEHICLE_ID) == {"is_paused": True}
    assert admin.clear_vehicle_policy(VEHICLE_ID).vehicle_id == VEHICLE_ID
    asked = [each.policy for each in gateway.shard.asked(SetVehiclePolicy)]
    assert asked == [b'{"is_paused":true}', b""]
    assert admin.remove_vehicle(VEHICLE_ID).vehicle_id == VEHICLE_ID
    assert len(gateway.shard.asked(RemoveVehicle)) == 1
    with pytest.raises(errors.NotFound):
        admin.drain_vehicle("veh-nobodyhere")


def test_a_model_is_sent_once_and_published(admin: AdminClient, tmp_path: Path) -> None:
    manifest, paths = text_model(tmp_path)
    seen: list[tuple[str, int, int]] = []
    view = admin.add_model(manifest, paths, lambda *done: seen.append(done))
    size_bytes = manifest.files[0].size_bytes
    assert size_bytes > 2 * 256 * 1024
    sent = [done for name, done, total in seen if name == "a.json" and total == size_bytes]
    assert sent[0] == 0
    assert sent == sorted(sent)
    assert len(sent) >= 4
    assert sent[-1] == size_bytes
    assert admin.models().models == (view,)
    seen.clear()
    assert admin.add_model(manifest, paths, lambda *done: seen.append(done)) == view
    assert seen == [(file.name, file.size_bytes, file.size_bytes) for file in manifest.files]
    assert admin.put_model_file(paths["b.txt"], manifest.files[1]) is False
    removed = admin.remove_model(view.model_id)
    assert set(removed.files_deleted) == {file.sha256 for file in manifest.files}
    assert admin.models().models == ()


def test_a_model_is_kept_loaded(admin: AdminClient, gateway: Opened, tmp_path: Path) -> None:
    view = admin.add_model(*text_model(tmp_path))
    warm = WarmView(ModelId(view.model_id), view.manifest.name, 4, 4, 2)
    gateway.shard.answers[GetStatus] = msgspec.structs.replace(shard_status(), warm=(warm,))
    assert admin.warm_model(view.model_id, 4) == warm
    assert gateway.shard.asked(WarmModel) == [WarmModel(ModelId(view.model_id), 4)]
    assert admin.models().warm == (warm,)
    with pytest.raises(errors.RequestInvalid) as caught:
        admin.warm_model(view.model_id, -1)
    assert caught.value.param == "slots"
    with pytest.raises(errors.NotFound):
        admin.warm_model("0" * 64, 1)


def test_a_name_belongs_to_one_model(admin: AdminClient, tmp_path: Path) -> None:
    manifest, paths = text_model(tmp_path)
    admin.add_model(manifest, paths)
    other = Manifest("encoder", "noop", ("/v1/embeddings",), 200, manifest.files, {})
    with pytest.raises(errors.Conflict) as caught:
        admin.add_model(other, paths)
    assert caught.value.code == "model_name_taken"
    with pytest.raises(errors.NotFound):
        admin.remove_model("0" * 64)


def test_a_wrong_manifest_is_told_with_its_field(admin: AdminClient, tmp_path: Path) -> None:
    manifest, paths = text_model(tmp_path, name="no name!")
    with pytest.raises(errors.RequestInvalid) as caught:
        admin.add_model(manifest, paths)
    assert caught.value.param == "manifest.name"


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_file_that_changes_while_it_is_sent(
    admin: AdminClient, tmp_path: Path, difference: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 1_000)
    file = ManifestFile("a.txt", 1_000 + difference, "0" * 64)
    with pytest.raises(errors.FileChanged):
        admin.put_model_file(path, file)
    assert admin.find_model_file(file.sha256) is None


def test_wrong_bytes_are_not_stored(admin: AdminClient, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    with pytest.raises(errors.RequestInvalid) as caught:
        admin.put_model_file(path, ManifestFile("a.txt", 1, "0" * 64))
    assert caught.value.code == "digest_wrong"


@pytest.mark.parametrize("size_bytes", [0, 1, 300_000, 1_000_000])
def test_model_files_of_any_size(admin: AdminClient, tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * size_bytes)
    file = ManifestFile("a.txt", size_bytes, hashlib.sha256(path.read_bytes()).hexdigest())
    assert admin.put_model_file(path, file) is True
    stored = admin.find_model_file(file.sha256)
    assert stored is not None
    assert stored.size_bytes == size_bytes


def test_a_full_or_silent_control_plane_says_so(admin: AdminClient, gateway: Opened) -> None:
    gateway.shard.answers[ListVehicles] = Answered(Refused.OVERLOADED, "too much to do")
    with pytest.raises(errors.Overloaded, match="too much"):
        admin.vehicles()
    gateway.shard.answers[GetStatus] = Answered(Refused.OVERLOADED)
    assert admin.status().shard is None


def test_files_go_up_and_come_down_unchanged(alice: FleetClient, tmp_path: Path) -> None:
    body = lines(3_000)
    path = tmp_path / 'odd "name"; größe\n.jsonl'
    path.write_bytes(body)
    seen: list[tuple[int, int]] = []
    file = alice.upload_file(path, lambda *done: seen.append(done))
    assert (file.bytes, file.purpose) == (len(body), "batch")
    assert file.filename.endswith(".jsonl")
    assert (seen[0], seen[-1]) == ((0, len(body)), (len(body), len(body)))
    assert alice.file(file.id) == file
    into = io.BytesIO()
    assert alice.download_file(file.id, into, lambda *done: seen.append(done)) == len(body)
    assert into.getvalue() == body
    assert seen[-1] == (len(body), len(body))
    assert alice.delete_file(file.id).deleted
    with pytest.raises(errors.NotFound):
        alice.file(file.id)


def test_a_saved_file_appears_whole_or_not_at_all(alice: FleetClient, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(2))
    file = alice.upload_file(tmp_path / "in.jsonl")
    target = tmp_path / "out.jsonl"
    target.write_text("before")
    with pytest.raises(errors.NotFound):
        alice.save_file("file-0", target)
    assert target.read_text() == "before"
    assert alice.save_file(file.id, target) == file.bytes
    assert target.read_bytes() == lines(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def submitted(client: FleetClient, folder: Path, count: int = 4) -> BatchObject:
    path = folder / "in.jsonl"
    path.write_bytes(lines(count))
    return client.create_batch(client.upload_file(path).id, "/v1/embeddings", "2h", {"a": "b"})


def test_batches_are_made_listed_and_cancelled(alice: FleetClient, tmp_path: Path) -> None:
    batches = [submitted(alice, tmp_path) for _ in range(3)]
    assert batches[0].completion_window == "2h"
    assert batches[0].metadata == {"a": "b"}
    page = alice.batches(limit=2)
    assert [batch.id for batch in page.data] == [batches[2].id, batches[1].id]
    assert page.has_more
    rest = alice.batches(page.last_id or "")
    assert [batch.id for batch in rest.data] == [batches[0].id]
    assert alice.cancel_batch(batches[0].id).status == "cancelling"
    assert alice.batch(batches[0].id).status == "cancelling"
    with pytest.raises(errors.NotFound):
        alice.batch("batch_0")


def test_what_the_fleet_can_not_do_is_refused_with_the_reason(
    alice: FleetClient, fleet: Opened, tmp_path: Path
) -> None:
    refusal = Answered(Refused.NO_FEASIBLE_VEHICLE, "no car lends 900 MB")
    fleet.shard.refuse[CreateBatch] = refusal
    with pytest.raises(errors.NotAdmitted, match="no car lends 900 MB") as caught:
        submitted(alice, tmp_path)
    assert caught.value.code == "no_feasible_vehicle"


def test_waiting_tells_each_change_and_survives_a_silence(fleet: Opened, tmp_path: Path) -> None:
    steps: list[float] = []
    batch_id = ""

    def sleep(seconds: float) -> None:
        steps.append(seconds)
        match len(steps):
            case 1:
                fleet.shard.set_view(batch_id, requests_completed=1)
            case 3:
                fleet.run(fleet.shard.stop())
            case 5:
                fleet.run(fleet.shard.start())
            case 6:
                fleet.shard.set_view(batch_id, state=BatchState.COMPLETED, ended_ms=1)

    fleet.shard.wants_cuts = False
    seen: list[tuple[str, int]] = []
    with FleetClient(fleet.url, ALICE, sleep) as client:
        batch_id = submitted(client, tmp_path).id
        ended = client.wait(
            batch_id, lambda batch: seen.append((batch.status, batch.request_counts.completed))
        )
    assert ended.status == "completed"
    assert seen == [("validating", 0), ("validating", 1), ("completed", 1)]
    assert len(steps) == 6
    assert steps[1] < steps[2] < steps[3], "who sees no change asks less often"


def test_waiting_ends_after_its_time_or_a_long_silence(fleet: Opened, tmp_path: Path) -> None:
    slept: list[float] = []
    fleet.shard.wants_cuts = False
    with FleetClient(fleet.url, ALICE, slept.append) as client:
        batch_id = submitted(client, tmp_path).id
        with pytest.raises(errors.StillWaiting):
            client.wait(batch_id, timeout_s=30)
        assert 30 <= sum(slept) < 36
        slept.clear()

        def silence(_: BatchObject) -> None:
            fleet.run(fleet.shard.stop())

        with pytest.raises(errors.Overloaded):
            client.wait(batch_id, silence)
    assert PATIENCE_S <= sum(slept) < PATIENCE_S + 6


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of something on loopback that says this to everybody and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


WHOLE = b"HTTP/1.1 %s\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("answer", "leaf", "code"),
    [
        (WHOLE % b"200 OK", errors.AnswerOdd, "gateway_odd"),
        (WHOLE % b"404 Not Found", errors.AnswerOdd, "gateway_odd"),
        (WHOLE % b"301 Moved\r\nlocation: http://10.0.0.1/", errors.AnswerOdd, "gateway_odd"),
        (WHOLE % b"502 Bad Gateway", errors.Unreachable, "gateway_unreachable"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", errors.Unreachable, "gateway_unreachable"),
        (b"", errors.Unreachable, "gateway_unreachable"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
            errors.Unreachable,
            "gateway_unreachable",
        ),
    ],
)
def test_what_is_no_control_plane(answer: bytes, leaf: type[TerafleetError], code: str) -> None:
    with answering(answer) as url, AdminClient(url, "tf-x") as client:
        with pytest.raises(leaf) as caught:
            client.status()
        assert caught.value.code == code
        assert url in caught.value.message


def test_where_nobody_listens_the_message_names_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with FleetClient(f"{url}/", "tf-x") as client, pytest.raises(errors.Unreachable) as caught:
            client.models()
    assert caught.value.message.startswith(f"{url} can't be reached")
    assert str(caught.value) == caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8600",
        "ftp://host",
        "http://",
        "http://host:0",
        "http://host:70000",
        "http://user:secret@host",
        "http://host/?a=b",
        "http://[::1",
        "http://hö.example",
        "http://host\x1b[0m",
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(errors.AddressInvalid) as caught:
        AdminClient(url, "tf-x")
    assert caught.value.message.isprintable()


def test_good_addresses() -> None:
    assert checked_url(" https://host.example:8600/ ") == "https://host.example:8600"
    assert checked_url("http://[::1]:8600") == "http://[::1]:8600"
    assert checked_url("https://host.example/fleet/") == "https://host.example/fleet"


@pytest.mark.parametrize("secret", ["tf-ü", "tf- x", "tf-\r\nx-other: 1"])
def test_what_is_no_key_is_refused_before_anything_is_sent(secret: str) -> None:
    with pytest.raises(errors.KeyRefused):
        AdminClient("http://127.0.0.1:1", secret)


@pytest.mark.parametrize("batch_id", ["", ".", ".."])
def test_an_id_leads_nowhere_else(alice: FleetClient, batch_id: str) -> None:
    with pytest.raises(errors.RequestInvalid):
        alice.batch(batch_id)


@pytest.mark.parametrize("batch_id", ["../files", "a?b=c", "a#b", "a%2fb", "ü"])
def test_an_odd_id_is_not_found(alice: FleetClient, batch_id: str) -> None:
    with pytest.raises(errors.NotFound):
        alice.batch(batch_id)


def test_each_code_has_a_leaf_that_says_whether_it_passes() -> None:
    for code, kind in ERRORS.items():
        error = errors.error_of(kind.status, code, "words", None)
        assert type(error) is not TerafleetError, code
        assert (error.code, str(error)) == (code, "words")
        passes = kind.status >= 500 or kind.status in (408, 429)
        assert isinstance(error, errors.PASSING) == passes, code
    assert type(errors.error_of(418, "new_code", "words", None)) is errors.RequestInvalid
