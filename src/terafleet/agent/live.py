"""The live sessions in the car: a request from a gateway, and pieces straight back to it."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.attempts import AttemptFigures, failure_named
from terafleet.agent.deeds import Spawn
from terafleet.agent.energy import CpuShares
from terafleet.agent.meters import MeteredEnergy
from terafleet.agent.ports import (
    Runtime,
    RuntimeFailure,
    RuntimeResult,
    RuntimeWork,
    SessionEnd,
    SessionPiece,
    SessionRefused,
    SessionWork,
)
from terafleet.agent.results import ResultHooks
from terafleet.agent.waking import Sleep
from terafleet.core.guard_effects import StartAttempts
from terafleet.core.guard_events import AttemptBroke, AttemptsFinished
from terafleet.core.ids import SESSION_UNIT, LeaseId, SessionId, VehicleId
from terafleet.core.reasons import Failure, LeaseEnding
from terafleet.core.session_events import Piece
from terafleet.core.units import MS_PER_S
from terafleet.core.work import AttemptResult
from terafleet.protocol.agent import StartSession
from terafleet.protocol.openai import EMBEDDINGS
from terafleet.protocol.parcel import pack
from terafleet.protocol.sessions import (
    BEAT_MS,
    ENCODER,
    START_WAIT_MS,
    AnswerEnded,
    AnyFromCar,
    AtWork,
    CarLeft,
    ModelRefused,
    PiecesSent,
    vehicle_subject,
)

EARLY_MAX = 64
"""How many requests may lie here before their leases: gateway and shard speak side by side."""

LOAD_MS_MAX = 120_000
"""How long a request waits for its lease to begin, which is when its model has been loaded."""

_NO_OUTPUTS = pack(())

log: FilteringBoundLogger = structlog.get_logger()


class LiveSurroundings(msgspec.Struct, frozen=True):
    """What live sessions need. `publish` sends to a subject, or loses what it is given.

    `is_granted` says whether the car holds a lease, begun or not.

    `token_ms` is the least time between two pieces of a session; `sleep` waits for so many seconds.
    """

    vehicle_id: VehicleId
    results: ResultHooks
    publish: Callable[[str, bytes], None]
    runtime_of: Callable[[str], Runtime | None]
    is_granted: Callable[[LeaseId], bool]
    spawn: Spawn
    energy: MeteredEnergy
    shares: CpuShares[object]
    figures: AttemptFigures
    token_ms: int = 0
    sleep: Sleep = asyncio.sleep


class _Run:
    """One session's lease: it waits for its request, then the runtime answers it."""

    def __init__(self, effect: StartAttempts, session_id: SessionId) -> None:
        self.effect = effect
        self.session_id = session_id
        self.request: StartSession | None = None
        self.has_request = asyncio.Event()
        self.runtime: Runtime | None = None
        self.subject = ""
        self.number = 0
        self.sent_ms = 0
        self.completion_tokens = 0
        self.waiting: deque[SessionPiece] = deque()
        self.is_unwanted = False
        self.is_stopped = False

    @property
    def is_wanted(self) -> bool:
        """Whether guard and gateway still want it."""
        return not self.is_stopped and not self.is_unwanted

    @property
    def name(self) -> str:
        """What the runtime knows it by; the same session may be here twice, one after the other."""
        return f"{self.session_id}-{self.effect.lease_id}"


class LiveRuns:
    """The sessions of a car. Each lease ends in `AttemptsFinished` or `AttemptBroke`."""

    def __init__(self, around: LiveSurroundings) -> None:
        self._around = around
        self._clock = around.results.clock
        self._runs: dict[LeaseId, _Run] = {}
        self._early: dict[LeaseId, StartSession] = {}

    def __len__(self) -> int:
        """How many are on their way."""
        return len(self._runs)

    def start(self, effect: StartAttempts, session_id: SessionId) -> None:
        """Begin a session's lease; its request has come, or comes soon."""
        run = self._runs[effect.lease_id] = _Run(effect, session_id)
        early = self._early.pop(effect.lease_id, None)
        if early is not None:
            self._set_request(run, early)
        self._around.spawn(self._run(run))

    def take_request(self, request: StartSession) -> None:
        """A gateway has sent the request of a lease; it may come before the lease."""
        run = self._runs.get(request.lease_id)
        if run is not None:
            self._set_request(run, request)
            return
        self._early[request.lease_id] = request
        if len(self._early) > EARLY_MAX:
            del self._early[next(iter(self._early))]
        self._around.spawn(self._beat_early(request))

    def stop(self, lease_id: LeaseId) -> None:
        """The guard wants no more of it: tell its gateway first, which has a customer waiting."""
        run = self._runs.get(lease_id)
        if run is not None and not run.is_stopped:
            run.is_stopped = True
            if not run.is_unwanted:
                self._say(
                    run,
                    CarLeft(run.session_id, lease_id, run.number, LeaseEnding.CONDITIONS_CHANGED),
                )
            self._end_in_runtime(run)

    def unwanted(self, lease_id: LeaseId) -> None:
        """The gateway wants no more of it; what was done for it counts."""
        self._early.pop(lease_id, None)
        run = self._runs.get(lease_id)
        if run is not None and not run.is_unwanted:
            run.is_unwanted = True
            run.has_request.set()
            self._end_in_runtime(run)

    async def _beat_early(self, request: StartSession) -> None:
        """Say that the car is at it while the model of a lease that it holds is being loaded."""
        subject = vehicle_subject(self._around.vehicle_id, request.gateway_id)
        at_work = AtWork(request.session_id, request.lease_id, 0)
        for _ in range(LOAD_MS_MAX // BEAT_MS):
            await self._around.sleep(BEAT_MS / MS_PER_S)
            if self._early.get(request.lease_id) is not request:
                return
            if self._around.is_granted(request.lease_id):
                self._around.publish(subject, ENCODER.encode(at_work))
        self._early.pop(request.lease_id, None)

    def _set_request(self, run: _Run, request: StartSession) -> None:
        if request.session_id == run.session_id:
            run.request = request
            run.subject = vehicle_subject(self._around.vehicle_id, request.gateway_id)
            run.has_request.set()

    def _end_in_runtime(self, run: _Run) -> None:
        if run.runtime is not None:
            self._around.spawn(run.runtime.stop(run.name))

    async def _run(self, run: _Run) -> None:
        began_ms = run.sent_ms = self._clock.now_ms()
        beside = [self._around.spawn(self._beat(run))]
        if self._around.token_ms:
            beside.append(self._around.spawn(self._pace(run)))
        try:
            outcome = await self._outcome(run)
            while run.waiting and run.is_wanted:
                await self._around.sleep(self._around.token_ms / MS_PER_S)
        finally:
            for task in beside:
                task.cancel()
        run.runtime = None
        if self._runs.get(run.effect.lease_id) is run:
            del self._runs[run.effect.lease_id]
        took_ms = self._clock.now_ms() - began_ms
        self._finish(run, outcome, took_ms, self._around.shares.end(run))

    async def _outcome(self, run: _Run) -> SessionEnd | SessionRefused | RuntimeFailure:
        await run.has_request.wait()
        if run.request is None and run.is_wanted:
            return _failure(run, Failure.INPUT_UNAVAILABLE, "no gateway sent the request")
        run.runtime = self._around.runtime_of(run.effect.model_id)
        if run.runtime is None:
            return _failure(run, Failure.RUNTIME_CRASHED, "the runtime is not up")
        if run.request is None or run.is_stopped or run.is_unwanted:
            return _failure(run, Failure.STOPPED, "")
        self._around.shares.begin(run)
        if run.effect.endpoint == EMBEDDINGS:
            return await self._embed(run, run.runtime, run.request.body)
        work = SessionWork(
            run.name,
            run.effect.model_id,
            run.effect.endpoint,
            run.request.body,
            run.request.delivered,
        )
        return await run.runtime.open(work, lambda piece: self._take(run, piece))

    async def _embed(
        self, run: _Run, runtime: Runtime, body: bytes
    ) -> SessionEnd | SessionRefused | RuntimeFailure:
        """Embeddings come as a whole, in the form of a batch's answers."""
        work = RuntimeWork(run.name, run.effect.model_id, EMBEDDINGS, body + b"\n")
        outcome = await runtime.run(work)
        if not isinstance(outcome, RuntimeResult):
            return outcome
        try:
            text = outcome.payload.decode()
        except UnicodeDecodeError:
            return _failure(run, Failure.OUTPUT_INCOMPLETE, "the output is no text")
        self._take(run, SessionPiece(0, (), text, finish_reason="stop"))
        return SessionEnd(run.name, outcome.prompt_tokens, 0, outcome.cpu_ms)

    def _take(self, run: _Run, piece: SessionPiece) -> None:
        """A piece has come: it goes on at once, or at its pace."""
        if self._around.token_ms:
            run.waiting.append(piece)
        else:
            self._send(run, piece)

    async def _pace(self, run: _Run) -> None:
        """Send the pieces that have come, one at a time."""
        while True:
            if run.waiting:
                self._send(run, run.waiting.popleft())
            await self._around.sleep(self._around.token_ms / MS_PER_S)

    def _send(self, run: _Run, piece: SessionPiece) -> None:
        """Send a piece on, unless it comes too late to count."""
        if not run.is_wanted:
            return
        run.completion_tokens += max(1, len(piece.token_ids))
        told = Piece(*msgspec.structs.astuple(piece))
        self._say(run, PiecesSent(run.session_id, run.effect.lease_id, run.number, (told,)))
        run.number += 1

    async def _beat(self, run: _Run) -> None:
        """Say that the car is at work while there is nothing else to say.

        It also gives up on a request that does not come.
        """
        began_ms = self._clock.now_ms()
        while True:
            if self._clock.now_ms() - began_ms >= START_WAIT_MS:
                run.has_request.set()
            quiet_ms = self._clock.now_ms() - run.sent_ms
            if quiet_ms >= BEAT_MS:
                self._say(run, AtWork(run.session_id, run.effect.lease_id, run.number))
                quiet_ms = 0
            await self._around.sleep((BEAT_MS - quiet_ms) / MS_PER_S)

    def _say(self, run: _Run, said: AnyFromCar) -> None:
        run.sent_ms = self._clock.now_ms()
        if run.subject:
            self._around.publish(run.subject, ENCODER.encode(said))

    def _finish(
        self,
        run: _Run,
        outcome: SessionEnd | SessionRefused | RuntimeFailure,
        took_ms: int,
        cpu_ms: int,
    ) -> None:
        """Tell the gateway how it ended, and the guard what it came to."""
        lease_id = run.effect.lease_id
        energy_mwh = self._around.energy.of_cpu(cpu_ms)
        self._around.figures.cpu_ms += cpu_ms
        self._around.figures.energy_mwh += energy_mwh
        prompt_tokens, completion_tokens = 0, run.completion_tokens
        if isinstance(outcome, SessionEnd):
            prompt_tokens, completion_tokens = outcome.prompt_tokens, outcome.completion_tokens
            ended = (prompt_tokens, completion_tokens)
            self._say(run, AnswerEnded(run.session_id, lease_id, run.number, *ended))
        elif isinstance(outcome, SessionRefused):
            refused = (outcome.code, outcome.message, outcome.param)
            self._say(run, ModelRefused(run.session_id, lease_id, run.number, *refused))
        elif not run.is_unwanted:
            self._break(run, outcome, energy_mwh)
            return
        # What another car has told before is not this one's work.
        before = (
            len(run.request.delivered) if run.request and isinstance(outcome, SessionEnd) else 0
        )
        told_here = max(0, completion_tokens - before)
        self._around.figures.finished += 1
        result = AttemptResult(
            SESSION_UNIT, 1, 0, prompt_tokens, told_here, energy_mwh, max(0, took_ms)
        )
        now_ms = self._clock.now_ms()
        digest = hashlib.sha256(_NO_OUTPUTS).digest()
        event = AttemptsFinished(now_ms, lease_id, (result,), digest, _NO_OUTPUTS)
        self._around.results.submit(event, ())

    def _break(self, run: _Run, failure: RuntimeFailure, energy_mwh: int) -> None:
        lease_id = run.effect.lease_id
        self._around.figures.broken += 1
        if not run.is_stopped:
            ending = LeaseEnding.ATTEMPT_FAILED
            facts = {"cause": failure.reason, "detail": failure.detail}
            log.warning("session_broke", lease_id=lease_id, **facts)
            self._say(run, CarLeft(run.session_id, lease_id, run.number, ending))
        event = AttemptBroke(
            self._clock.now_ms(),
            lease_id,
            SESSION_UNIT,
            failure_named(failure.reason),
            failure.detail[:500],
            energy_mwh,
        )
        self._around.results.submit(event, ())


def _failure(run: _Run, reason: Failure, detail: str) -> RuntimeFailure:
    return RuntimeFailure(run.name, reason, detail)
