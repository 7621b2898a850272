"""Counts what the gateway does, and tells it with the shard's figures in Prometheus' text format.

No label has a value that a stranger chooses, and none names a customer, a key or a car; a model is
named where sessions may wait for it, or where the operator wants it to stay in memory.
"""

import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_address
from itertools import accumulate
from typing import Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from terafleet.control.gateway.auth import require_operator
from terafleet.control.gateway.canary import CANARY, Canary, Depth
from terafleet.control.gateway.context import GatewayContext
from terafleet.control.gateway.health import VERSION, Watch, health_check_of
from terafleet.control.gateway.live.sessions import LiveStream
from terafleet.core import session_effects as fx
from terafleet.core.ids import SessionId
from terafleet.core.records import VehicleState
from terafleet.core.units import MS_PER_S
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from terafleet.protocol.shard import ShardStatus, TimesTaken

METRICS_PATH: Final = "/metrics"
TEXT_FORMAT: Final = "text/plain; version=0.0.4"
"""Prometheus' text format; the character set is added where it is sent."""

METRICS_KEY: Final = "metrics"
"""Where the application keeps its Metrics."""

METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER: Final = "other"
UNMATCHED: Final = "unmatched"
UNANSWERED: Final = "none"
"""The labels of a method that is none of HTTP's usual ones, of an address that has no route, and
of a request whose client left before its answer."""

FINISHED, LEFT, TOO_SLOW = "finished", "left", "reader_too_slow"
OUTCOMES: Final = (FINISHED, LEFT, TOO_SLOW, *map(str, fx.SessionFailure))

FIRST_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MOVE_GAP_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 30)
QUEUE_WAIT_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
"""Upper bounds of histograms; the budgets lie at some of them."""

_FORWARDED: Final = ("forwarded", "via", "x-real-ip")
_FORWARDED_PREFIX: Final = "x-forwarded-"

# When a counter began would be one more series for each, and the process' start says the same.
# The library has no types for this function.
disable_created_metrics()  # type: ignore[no-untyped-call]


class _Session(msgspec.Struct):
    """A session on its way: when it began, had to queue, and last gave a piece, in seconds."""

    began_s: float
    queued_s: float | None = None
    piece_s: float | None = None
    moves: int = 0
    moves_told: int = 0
    outcome: str = LEFT


class LiveFigures:
    """What became of the live sessions of customers; `observe` hears it from `LiveSessions`."""

    def __init__(
        self, registry: CollectorRegistry, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`now_s` never goes back."""
        self._now_s = now_s
        self._open: dict[SessionId, _Session] = {}
        name = "terafleet_sessions_open"
        Gauge(name, "Live sessions on their way.", registry=registry).set_function(
            lambda: len(self._open)
        )
        self._ended = Counter(
            "terafleet_sessions_ended",
            "Live sessions that are over: finished, left by their customer, or why they failed.",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._ended.labels(outcome)
        self._moves = Counter(
            "terafleet_session_moves", "Times a session left its car.", registry=registry
        )
        self._tokens = Counter(
            "terafleet_tokens_delivered", "Tokens given to customers live.", registry=registry
        )
        self._first_token = Histogram(
            "terafleet_first_token_seconds",
            "From a live request to the first piece of its answer.",
            ["endpoint"],
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        for endpoint in (CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS):
            self._first_token.labels(endpoint)
        self._move_gap = Histogram(
            "terafleet_move_gap_seconds",
            "Between the last piece before a move and the first one after it.",
            buckets=MOVE_GAP_S,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "terafleet_queue_wait_seconds",
            "How long sessions that had to queue waited for a slot, in vain or not.",
            buckets=QUEUE_WAIT_S,
            registry=registry,
        )

    def observe(self, stream: LiveStream, effect: fx.AnySessionEffect | None) -> None:
        """Something has become of a session; None: it is over. Canaries are not counted."""
        if stream.request.customer_id == CANARY:
            return
        session = self._open.get(stream.session_id)
        if session is None:
            session = self._open[stream.session_id] = _Session(self._now_s())
        match effect:
            case fx.Deliver():
                self._delivered(session, stream.request.endpoint, effect)
            case fx.AskForLease():
                self._moves.inc(stream.machine.moves - session.moves)
                session.moves = stream.machine.moves
            case fx.SayQueued():
                if session.queued_s is None:
                    session.queued_s = self._now_s()
            case fx.StartOn():
                self._waited(session)
            case fx.FinishSession():
                session.outcome = FINISHED
            case fx.FailSession():
                session.outcome = str(effect.failure)
            case None:
                self._over(stream, session)

    def _delivered(self, session: _Session, endpoint: str, effect: fx.Deliver) -> None:
        now_s = self._now_s()
        self._tokens.inc(sum(len(piece.token_ids) for piece in effect.pieces))
        if session.piece_s is None:
            self._first_token.labels(endpoint).observe(now_s - session.began_s)
        elif session.moves > session.moves_told:
            self._move_gap.observe(now_s - session.piece_s)
        session.piece_s = now_s
        session.moves_told = session.moves

    def _waited(self, session: _Session) -> None:
        if session.queued_s is not None:
            self._queue_wait.observe(self._now_s() - session.queued_s)
            session.queued_s = None

    def _over(self, stream: LiveStream, session: _Session) -> None:
        self._waited(session)
        outcome = TOO_SLOW if stream.is_too_slow else session.outcome
        self._ended.labels(outcome).inc()
        del self._open[stream.session_id]


class _Asked(Collector):
    """What is not counted here but asked for at each reading: shard, objects and canary."""

    def __init__(self, canary: Canary | None) -> None:
        self.canary = canary
        self.status: ShardStatus | None = None
        self.objects_bytes_free: int | None = None

    def collect(self) -> Iterator[Metric]:
        """All of it; without a shard that answers only that it does not."""
        status = self.status
        yield _gauge("shard_up", "Whether the shard answers.", status is not None)
        free = GaugeMetricFamily(
            "terafleet_storage_free_bytes",
            "Room left for the shard's record, and for the objects.",
            labels=["place"],
        )
        if status is not None and status.bytes_free is not None:
            free.add_metric(["record"], status.bytes_free)
        if self.objects_bytes_free is not None:
            free.add_metric(["objects"], self.objects_bytes_free)
        yield free
        if status is not None:
            yield from _of_fleet(status)
            yield from _of_warm(status)
            yield from _of_engine(status)
        if self.canary is not None:
            yield from _of_canary(self.canary)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"terafleet_{name}", words, float(value))


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(f"terafleet_{name}", words, float(value))


def _times(name: str, words: str, taken: TimesTaken) -> Metric:
    bounds_s = [str(bound_ms / MS_PER_S) for bound_ms in taken.bounds_ms]
    buckets = zip([*bounds_s, "+Inf"], accumulate(taken.counts), strict=True)
    total_s = taken.total_ms / MS_PER_S
    return HistogramMetricFamily(f"terafleet_{name}", words, list(buckets), total_s)


def _of_fleet(status: ShardStatus) -> Iterator[Metric]:
    yield _gauge("batches_open", "Batches that have not ended.", status.batches_open)
    yield _gauge("units_waiting", "Work units that wait for a slot.", status.units_waiting)
    yield _gauge("units_running", "Work units under a lease.", status.units_running)
    vehicles = GaugeMetricFamily("terafleet_vehicles", "Enrolled cars.", labels=["state"])
    for state in VehicleState:
        vehicles.add_metric([state], status.vehicles.get(state, 0))
    yield vehicles
    queued = GaugeMetricFamily(
        "terafleet_sessions_queued", "Live sessions that wait for a slot.", labels=["model"]
    )
    for name, waiting in status.sessions_queued.items():
        queued.add_metric([name], waiting)
    yield queued


def _of_warm(status: ShardStatus) -> Iterator[Metric]:
    name = "terafleet_warm_slots"
    words = "Slots in which a model shall stay in memory."
    wanted = GaugeMetricFamily(f"{name}_wanted", words, labels=["model"])
    words = "Slots of cars that have a model in memory which shall stay there."
    loaded = GaugeMetricFamily(f"{name}_loaded", words, labels=["model"])
    for one in status.warm:
        wanted.add_metric([one.name], one.slots)
        loaded.add_metric([one.name], one.slots_loaded)
    yield wanted
    yield loaded


def _of_engine(status: ShardStatus) -> Iterator[Metric]:
    figures = status.figures
    started_s = status.started_ms / MS_PER_S
    yield _gauge("shard_start_time_seconds", "When the shard began, since 1970.", started_s)
    yield _gauge("storage_full", "Whether new work is refused for room.", status.is_storage_full)
    yield _gauge("journal_sequence", "The newest event of the journal.", status.journal_sequence)
    yield _times("commit_seconds", "What commits of the record took.", status.commit_times)
    yield _gauge("inbox_events", "Events that wait for the shard.", figures.get("inbox_length", 0))
    for name, figure, words in (
        ("events", "events", "Events that the shard has handled."),
        ("events_refused", "events_refused", "Events that found the inbox full."),
        ("commits", "commits", "Transactions of the record."),
        ("commits_failed", "commits_failed", "Transactions that found no room."),
        ("snapshots", "snapshots", "Snapshots that were taken."),
    ):
        yield _counter(name, words, figures.get(figure, 0))


def _of_canary(canary: Canary) -> Iterator[Metric]:
    last = canary.last
    is_well = not canary.fault()
    yield _gauge("canary_healthy", "Whether the last canary went through, in time.", is_well)
    if last is not None:
        yield _gauge("canary_seconds", "What the last canary took.", last.took_ms / MS_PER_S)
    sent = CounterMetricFamily(
        "terafleet_canaries", "Canaries: how far they went, or failed.", labels=["outcome"]
    )
    for depth in Depth:
        sent.add_metric([depth], canary.through[depth])
    sent.add_metric(["failed"], canary.failed)
    yield sent


class Metrics:
    """All that is counted of one gateway."""

    def __init__(self, watch: Watch) -> None:
        self.is_open = watch.is_metrics_open
        self._registry = registry = CollectorRegistry()
        self.live = LiveFigures(registry)
        self._requests = Counter(
            "terafleet_requests",
            "HTTP requests that have ended, by the template of their route.",
            ["method", "route", "status"],
            registry=registry,
        )
        about = Gauge("terafleet_build_info", "What runs here.", ["version"], registry=registry)
        about.labels(VERSION).set(1)
        self._asked = _Asked(watch.canary)
        registry.register(self._asked)
        ProcessCollector("terafleet", registry=registry)

    def count_request(self, scope: HTTPScope, status: int) -> None:
        """A request has ended; status 0: without an answer."""
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = scope.get("path_template") or UNMATCHED
        self._requests.labels(method, route, str(status or UNANSWERED)).inc()

    def text(self, status: ShardStatus | None, objects_bytes_free: int | None) -> bytes:
        """Everything, with what the shard says at this moment."""
        self._asked.status = status
        self._asked.objects_bytes_free = objects_bytes_free
        return generate_latest(self._registry)


class RequestCount:
    """Wraps the whole application, so that refused requests count as well."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of the server."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            self._metrics.count_request(scope, status)


AnyConnection = ASGIConnection[Any, Any, Any, Any]


def is_from_here(connection: AnyConnection) -> bool:
    """Whether a request comes from this computer itself, and through no proxy on it."""
    client = connection.client
    for name in connection.headers:
        if name.lower() in _FORWARDED or name.lower().startswith(_FORWARDED_PREFIX):
            return False
    try:
        address = ip_address(client.host if client else "")
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback


async def require_reader(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Guard: let in operators, and without an API key who is on this computer.

    A key that is sent is looked at wherever it comes from. A setting lets in everybody.
    """
    if metrics_of(connection).is_open:
        return
    if "authorization" in connection.headers or not is_from_here(connection):
        await require_operator(connection, handler)


def metrics_of(connection: AnyConnection) -> Metrics:
    """The metrics of the gateway that got a request."""
    metrics = connection.app.state[METRICS_KEY]
    assert isinstance(metrics, Metrics)
    return metrics


@get(METRICS_PATH, tags=["health"], guards=[require_reader], media_type=TEXT_FORMAT)
async def get_metrics(
    request: Request[Any, Any, Any], context: NamedDependency[GatewayContext]
) -> Response[bytes]:
    """What is counted, for Prometheus; from elsewhere it needs the API key of an operator."""
    said = await health_check_of(request).shard(context)
    status = said if isinstance(said, ShardStatus) else None
    text = metrics_of(request).text(status, context.objects.bytes_free())
    return Response(text, media_type=TEXT_FORMAT)
