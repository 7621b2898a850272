"""What `/metrics` tells, in which form, and whom."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openai import APIError
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.canary import CANARY, Canary, CanarySettings
from terafleet.control.gateway.health import Watch
from terafleet.control.gateway.live.sessions import LiveRequest, LiveStream
from terafleet.control.gateway.metrics import LiveFigures
from terafleet.core import session_effects as fx
from terafleet.core import session_events as ev
from terafleet.core.ids import CustomerId, Epoch, LeaseId, ModelId, SessionId, VehicleId
from terafleet.core.reasons import LeaseEnding, Refused
from terafleet.core.session import Session
from terafleet.core.session_events import Piece, SessionSettings
from terafleet.protocol.openai import COMPLETIONS
from terafleet.protocol.shard import GetStatus, TimesTaken, WarmView
from tests.contract.agent_stage import until
from tests.contract.fake_answers import shard_status
from tests.contract.fake_live_fleet import LEFT, QUEUED, REFUSED, Plan
from tests.contract.gateway_app import Stage, code_of, serving
from tests.contract.live_gateway import WRITER, live_server

HERE, ELSEWHERE = "127.0.0.1", "192.0.2.7"
PAGE = Path(__file__).parents[2] / "docs/mechanisms/health-and-metrics.md"
UNITS = ("seconds", "bytes", "fds")
WARM = WarmView(ModelId("m"), "writer", 5, 4, 3)

Samples = Mapping[tuple[str, tuple[str, ...]], float]


def samples(text: str) -> Samples:
    """Every value, by its name and the values of its labels."""
    return {
        (sample.name.removeprefix("terafleet_"), tuple(sample.labels.values())): sample.value
        for family in families(text)
        for sample in family.samples
    }


def families(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


@asynccontextmanager
async def asking(
    stage: Stage, client: str = HERE, watch: Watch | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client at an address that the gateway sees."""
    await stage.start()
    app: Any = create_app(stage.context, watch or Watch())
    transport = httpx.ASGITransport(app, client=(client, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as asker:
        yield asker


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_the_form() -> None:
    stage = Stage()
    canary = Canary(stage.context, CanarySettings())
    async with asking(stage, watch=Watch(canary)) as client:
        await canary.send()
        response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = families(response.text)
    assert len(found) > 25
    for family in found:
        assert family.name.startswith("terafleet_"), family.name
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        for unit in UNITS:
            assert unit not in family.name or family.name.endswith(unit), family.name
        for sample in family.samples:
            assert not sample.name.endswith("_created")
            assert family.type != "counter" or sample.name.endswith("_total")


async def test_the_page_has_a_row_for_each() -> None:
    stage = Stage()
    stage.shard.answers[GetStatus] = msgspec.structs.replace(
        shard_status(), bytes_free=1, sessions_queued={"writer": 0}, warm=(WARM,)
    )
    canary = Canary(stage.context, CanarySettings())
    async with asking(stage, watch=Watch(canary)) as client:
        await canary.send()
        found = families((await client.get("/metrics")).text)
    told = {
        f"{one.name}_total" if one.type == "counter" else one.name: [one.type, labels_of(one)]
        for one in found
    }
    rows = [line.split("|")[1:4] for line in PAGE.read_text("utf-8").splitlines()]
    written = {
        name.strip(" `"): [kind.strip(), {one.strip(" `") for one in labels.split(",")} - {""}]
        for name, kind, labels in (row for row in rows if len(row) == 3)
        if name.startswith(" `terafleet_")
    }
    # Requests have no series before the first one has ended.
    told["terafleet_requests_total"][1] = {"method", "route", "status"}
    assert told == written


def labels_of(family: Metric) -> set[str]:
    """The names of a family's labels, but for what makes a histogram."""
    return {name for sample in family.samples for name in sample.labels} - {"le"}


async def test_who_may_read_them_and_who_not() -> None:
    stage = Stage()
    operator, customer = stage.add_key("operator"), stage.add_key()
    async with asking(stage) as client:
        assert (await client.get("/metrics")).status_code == 200
        # A key that is sent must be a right one, wherever it comes from.
        assert code_of(await client.get("/metrics", headers=bearer("x"))) == "invalid_api_key"
        assert code_of(await client.get("/metrics", headers=bearer(customer))) == "operator_only"
        assert (await client.get("/metrics", headers=bearer(operator))).status_code == 200
    async with asking(stage, ELSEWHERE) as client:
        assert code_of(await client.get("/metrics")) == "invalid_api_key"
        assert code_of(await client.get("/metrics", headers=bearer(customer))) == "operator_only"
        assert (await client.get("/metrics", headers=bearer(operator))).status_code == 200
    async with asking(stage, ELSEWHERE, Watch(is_metrics_open=True)) as client:
        assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize(
    ("client", "is_here"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.7", False),
        ("192.0.2.7", False),
        ("0.0.0.0", False),  # noqa: S104
        ("localhost", False),
        ("", False),
    ],
)
async def test_which_addresses_are_of_this_computer(client: str, is_here: bool) -> None:
    async with asking(Stage(), client) as asker:
        assert ((await asker.get("/metrics")).status_code == 200) is is_here


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "Via"])
async def test_a_proxy_on_this_computer_is_somebody_else(name: str) -> None:
    async with asking(Stage()) as client:
        response = await client.get("/metrics", headers={name: "127.0.0.1"})
    assert code_of(response) == "invalid_api_key"


async def test_over_a_socket() -> None:
    async with serving(Stage()) as client:
        assert (await client.get("/metrics")).status_code == 200
        forwarded = await client.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
        assert forwarded.status_code == 401


async def test_requests_are_counted_by_route_and_nothing_of_a_stranger_is_kept() -> None:
    stage = Stage()
    secret = stage.add_key("operator")
    (key,) = stage.catalogue.keys()
    async with asking(stage) as client:
        for name in ("one", "two"):
            await client.get(f"/v1/files/file-{name}", headers=bearer(secret))
            await client.get(f"/stranger-{name}?q=stranger")
        await client.post("/healthz")
        await client.request("STRANGER", "/healthz")
        await client.get("/admin/v1/keys", headers=bearer(secret))
        text = (await client.get("/metrics")).text
    requests = {labels: value for (_, labels), value in samples(text).items() if len(labels) == 3}
    assert requests == {
        ("GET", "/v1/files/{file_id}", "404"): 2,
        ("GET", "unmatched", "404"): 2,
        ("POST", "unmatched", "405"): 1,
        ("other", "unmatched", "405"): 1,
        ("GET", "/admin/v1/keys", "200"): 1,
    }
    for private in (secret, secret[3:], key.hint, key.key_id, key.customer_id, "stranger"):
        assert private not in text
    assert stage.context.address_secret.decode() not in text


async def test_what_the_shard_says() -> None:
    stage = Stage()
    figures = {
        "events": 70.0,
        "events_refused": 3.0,
        "commits": 40.0,
        "commits_failed": 2.0,
        "inbox_length": 9.0,
        "snapshots": 1.0,
    }
    stage.shard.answers[GetStatus] = msgspec.structs.replace(
        shard_status(batches_open=4),
        is_storage_full=True,
        bytes_free=1_000,
        vehicles={"idle": 5, "refusing": 6},
        units_waiting=7,
        units_running=8,
        journal_sequence=123,
        figures=figures,
        sessions_queued={"writer": 3, "embedder": 0},
        warm=(WARM,),
        commit_times=TimesTaken((2.5, 10.0), (30, 8, 2), 150.0),
    )
    async with asking(stage) as client:
        found = samples((await client.get("/metrics")).text)
        expected = {
            "shard_up": 1,
            "batches_open": 4,
            "units_waiting": 7,
            "units_running": 8,
            "storage_full": 1,
            "journal_sequence": 123,
            "commit_seconds_count": 40,
            "commit_seconds_sum": 0.15,
            "inbox_events": 9,
            "events_total": 70,
            "events_refused_total": 3,
            "commits_total": 40,
            "commits_failed_total": 2,
            "snapshots_total": 1,
        }
        assert {name: found[name, ()] for name in expected} == expected
        states = ("offline", "refusing", "idle", "leased", "draining")
        assert [found["vehicles", (state,)] for state in states] == [0, 6, 5, 0, 0]
        assert [found["sessions_queued", (one,)] for one in ("writer", "embedder")] == [3, 0]
        warm = [found[f"warm_slots_{figure}", ("writer",)] for figure in ("wanted", "loaded")]
        assert warm == [5, 3]
        taken = [found["commit_seconds_bucket", (bound,)] for bound in ("0.0025", "0.01", "+Inf")]
        assert taken == [30, 38, 40]
        assert found["storage_free_bytes", ("record",)] == 1_000
        assert found["process_cpu_seconds_total", ()] > 0
        assert found["process_resident_memory_bytes", ()] > 1e7
        # A shard that is away takes only its own figures with it.
        await stage.shard.bus.close()
        stage.now_ms += 1_000
        response = await client.get("/metrics")
    assert response.status_code == 200
    found = samples(response.text)
    assert found["shard_up", ()] == 0
    assert ("batches_open", ()) not in found
    assert found["sessions_open", ()] == 0


async def test_what_canaries_say() -> None:
    stage = Stage()
    canary = Canary(stage.context, CanarySettings())
    async with asking(stage, watch=Watch(canary)) as client:
        found = samples((await client.get("/metrics")).text)
        assert found["canary_healthy", ()] == 0
        assert ("canary_seconds", ()) not in found
        await canary.send()
        found = samples((await client.get("/metrics")).text)
    assert found["canary_healthy", ()] == 1
    assert [found["canaries_total", (one,)] for one in ("shard", "session", "failed")] == [1, 0, 0]
    assert ("canary_seconds", ()) in found


async def test_live_sessions_over_http() -> None:
    async with live_server() as server, server.open() as gateway:
        figures = Figures()
        gateway.stage.sessions.observe = figures.live.observe
        client, prompt = gateway.client.completions, "Where?"
        await client.create(model=WRITER, prompt=prompt, max_tokens=5)
        gateway.fleet.plans.append(Plan(messages=2, ending=LEFT))
        await client.create(model=WRITER, prompt=prompt, max_tokens=5)
        gateway.fleet.plans.append(Plan(REFUSED))
        with pytest.raises(APIError):
            await client.create(model=WRITER, prompt=prompt)
        gateway.fleet.plans.append(Plan(QUEUED, wait_ms=5))
        await client.create(model=WRITER, prompt=prompt, max_tokens=5)
        gateway.fleet.plans.append(Plan(pause_s=0.05))
        async with await client.create(model=WRITER, prompt=prompt, stream=True) as stream:
            await anext(aiter(stream))
            assert figures.value("sessions_open") == 1
        await until(lambda: figures.value("sessions_open") == 0)
    ended = {one: figures.value("sessions_ended_total", one) for one in ("finished", "left")}
    assert ended == {"finished": 3, "left": 1}
    assert figures.value("sessions_ended_total", "refused") == 1
    assert figures.value("session_moves_total") == 1
    assert figures.value("move_gap_seconds_count") == 1
    assert figures.value("queue_wait_seconds_count") == 1
    assert figures.value("first_token_seconds_count", COMPLETIONS) == 4
    assert figures.value("tokens_delivered_total") >= 15


class Figures:
    """What a test lets become of sessions by hand, at times of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.now_s = 0.0
        self.live = LiveFigures(self.registry, lambda: self.now_s)

    def value(self, name: str, *labels: str) -> float:
        """One value."""
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in self.registry.collect()
            for sample in family.samples
        }
        return found[f"terafleet_{name}", *labels]

    def stream(self, customer: str = "cust") -> LiveStream:
        """A session that is yet to begin."""
        request = LiveRequest(CustomerId(customer), ModelId("m"), COMPLETIONS, b"", 1, True)
        return LiveStream(SessionId("ses_1"), request, Session(SessionSettings()))

    def give(self, stream: LiveStream, at_s: float, event: ev.AnySessionEvent) -> None:
        """Something happens to a session."""
        self.now_s = at_s
        for effect in stream.machine.handle(event):
            self.live.observe(stream, effect)

    def end(self, stream: LiveStream, at_s: float) -> None:
        """It is over."""
        self.now_s = at_s
        self.live.observe(stream, None)


def granted(lease: int, car: str) -> ev.LeaseGranted:
    return ev.LeaseGranted(0, lease, LeaseId(lease), VehicleId(car), Epoch(1), 10**6)


def pieces(lease: int, number: int, *token_ids: int) -> ev.Pieces:
    return ev.Pieces(0, LeaseId(lease), number, (Piece(0, token_ids, "x"),))


def test_times_of_a_session() -> None:
    figures = Figures()
    stream = figures.stream()
    figures.give(stream, 10.0, ev.SessionBegun(0, True))
    figures.give(stream, 10.5, ev.LeaseQueued(0, 1, 5_000, 9_000))
    figures.give(stream, 13.0, granted(1, "car-1"))
    figures.give(stream, 14.0, pieces(1, 0, 1, 2))
    figures.give(stream, 15.0, pieces(1, 1, 3))
    figures.give(stream, 15.5, ev.LeaseLost(0, LeaseId(1), LeaseEnding.OWNER_RETURNED))
    figures.give(stream, 15.6, granted(2, "car-2"))
    figures.give(stream, 16.75, pieces(2, 0, 4))
    figures.give(stream, 17.0, pieces(2, 1, 5))
    figures.give(stream, 18.0, ev.AttemptSettled(0, LeaseId(2), 2, 3, 5))
    figures.end(stream, 18.0)
    assert figures.value("queue_wait_seconds_sum") == 2.5
    assert figures.value("first_token_seconds_sum", COMPLETIONS) == 4.0
    assert figures.value("move_gap_seconds_sum") == 1.75
    assert figures.value("move_gap_seconds_count") == 1
    assert figures.value("tokens_delivered_total") == 5
    assert figures.value("session_moves_total") == 1
    assert figures.value("sessions_ended_total", "finished") == 1
    assert figures.value("sessions_open") == 0


def test_a_session_that_waited_in_vain() -> None:
    figures = Figures()
    stream = figures.stream()
    figures.give(stream, 1.0, ev.SessionBegun(0, True))
    figures.give(stream, 1.0, ev.LeaseQueued(0, 1, 5_000, 9_000))
    figures.give(stream, 5.0, ev.LeaseRefused(0, 1, Refused.NO_SLOT_FREE, "", 1))
    figures.end(stream, 5.0)
    assert figures.value("queue_wait_seconds_sum") == 4.0
    assert figures.value("sessions_ended_total", "refused") == 1
    assert figures.value("first_token_seconds_count", COMPLETIONS) == 0


def test_a_customer_that_leaves_and_one_that_reads_too_slowly() -> None:
    figures = Figures()
    for is_too_slow, outcome in ((False, "left"), (True, "reader_too_slow")):
        stream = figures.stream()
        figures.give(stream, 0.0, ev.SessionBegun(0, True))
        stream.is_too_slow = is_too_slow
        figures.give(stream, 1.0, ev.CustomerLeft(0))
        figures.end(stream, 1.0)
        assert figures.value("sessions_ended_total", outcome) == 1


def test_every_way_to_fail_has_its_series_from_the_start() -> None:
    figures = Figures()
    for failure in fx.SessionFailure:
        assert figures.value("sessions_ended_total", failure) == 0


def test_canaries_are_no_customers() -> None:
    figures = Figures()
    stream = figures.stream(CANARY)
    figures.give(stream, 0.0, ev.SessionBegun(0, True))
    assert figures.value("sessions_open") == 0
    figures.give(stream, 1.0, granted(1, "car-1"))
    figures.give(stream, 1.0, pieces(1, 0, 1))
    figures.end(stream, 1.0)
    assert figures.value("sessions_ended_total", "left") == 0
    assert figures.value("tokens_delivered_total") == 0
