"""The attempts that run in the car: input to the runtime, output to the guard, and their energy."""

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from terafleet.agent.answers import count_answers
from terafleet.agent.deeds import DeedLine, Spawn
from terafleet.agent.energy import CpuShares
from terafleet.agent.gateway import Gateway, GatewayFault
from terafleet.agent.inputs import LeasedInputs
from terafleet.agent.meters import Meter, MeteredEnergy, Sources
from terafleet.agent.ports import Runtime, RuntimeFailure, RuntimeResult, RuntimeWork
from terafleet.agent.results import ResultHooks, Results
from terafleet.core.guard_effects import StartAttempts
from terafleet.core.guard_events import AttemptBroke
from terafleet.core.ids import LeaseId, WorkUnitId, attempt_name
from terafleet.core.reasons import Failure
from terafleet.core.work import UNIT_INPUT_BYTES_MAX, AttemptResult
from terafleet.protocol.agent import OfferedUnit

INPUT_BYTES_MAX = 16 * UNIT_INPUT_BYTES_MAX
"""A unit of one large request may be larger than a unit's aim."""

DETAIL_CHARACTERS_MAX = 500


class AttemptFigures(msgspec.Struct):
    """What the attempts of this process came to."""

    finished: int = 0
    broken: int = 0
    answers: int = 0
    answers_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cpu_ms: int = 0
    energy_mwh: int = 0


class Surroundings(msgspec.Struct, frozen=True):
    """What attempts need. `runtime_of` finds the runtime that holds a model, or None."""

    results: ResultHooks
    inputs: LeasedInputs
    gateway: Gateway
    runtime_of: Callable[[str], Runtime | None]
    runtime_cpu_ms: Callable[[], int]
    spawn: Spawn
    core_power_mw: int
    meters: Sequence[Meter] = ()


class _Run:
    """A lease's attempts on their way, one after the other.

    `name` is the attempt at hand, begun at `began_ms`; `is_running` whether the runtime has it,
    `cpu_ms` what it took there if it gave nothing.
    """

    __slots__ = (
        "began_ms",
        "cpu_ms",
        "effect",
        "is_running",
        "is_stopped",
        "name",
        "results",
        "runtime",
        "units",
    )

    def __init__(
        self,
        effect: StartAttempts,
        units: dict[WorkUnitId, OfferedUnit],
        results: Results,
        runtime: Runtime | None,
    ) -> None:
        self.effect = effect
        self.units = units
        self.results = results
        self.runtime = runtime
        self.name = ""
        self.began_ms = 0
        self.cpu_ms = 0
        self.is_stopped = False
        self.is_running = False


class Attempts:
    """Every attempt that begins ends in `AttemptsFinished` or `AttemptBroke`, stopped or not."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._clock = around.results.clock
        self._runs: dict[LeaseId, _Run] = {}
        self._line: DeedLine[_Run] = DeedLine(self._run, around.spawn, _tell)
        self.shares: CpuShares[object] = CpuShares(around.runtime_cpu_ms)
        self.energy = MeteredEnergy(
            Sources(
                meters=around.meters,
                core_power_mw=around.core_power_mw,
                cpu_ms=around.runtime_cpu_ms,
                is_working=lambda: len(self.shares) > 0,
                now_ms=self._clock.now_ms,
            )
        )
        self.figures = AttemptFigures()

    def __len__(self) -> int:
        """How many leases have attempts on their way."""
        return len(self._runs)

    def start(self, effect: StartAttempts) -> None:
        """Begin the attempts of a lease."""
        lease_id = effect.lease_id
        found = self._around.inputs.of(lease_id)
        units = found.units if found else {}
        address = found.outputs_address if found else ""
        results = Results(lease_id, address, self._around.results)
        run = _Run(effect, units, results, self._around.runtime_of(effect.model_id))
        self._runs[lease_id] = run
        self._line.add(run)

    def stop(self, lease_id: LeaseId) -> None:
        """Give up a lease's attempts; the runtime's slot is free when the next attempt begins."""
        run = self._runs.get(lease_id)
        if run is None or run.is_stopped:
            return
        run.is_stopped = True
        if run.is_running and run.runtime is not None:
            self._around.spawn(run.runtime.stop(run.name))

    async def _run(self, run: _Run) -> None:
        run.began_ms = self._clock.now_ms()
        for unit_id in run.effect.unit_ids:
            fault = await self._attempt(run, unit_id)
            if fault is not None:
                run.results.tell()
                self._break(run, unit_id, fault)
            if fault is not None or run.is_stopped:
                break
        run.results.tell()
        if self._runs.get(run.effect.lease_id) is run:
            del self._runs[run.effect.lease_id]

    async def _attempt(self, run: _Run, unit_id: WorkUnitId) -> RuntimeFailure | None:
        """Attempt one unit; what went wrong, or None when its result is taken."""
        run.cpu_ms = 0
        effect, unit = run.effect, run.units.get(unit_id)
        if unit is None:
            return _failure(Failure.INPUT_UNAVAILABLE, "its grant is gone")
        payload: bytes | GatewayFault = unit.payload
        if unit.input_address:
            payload = await self._around.gateway.fetch(unit.input_address, INPUT_BYTES_MAX)
        if isinstance(payload, GatewayFault):
            return _failure(Failure.INPUT_UNAVAILABLE, f"{payload.code}: {payload.detail}")
        if hashlib.sha256(payload).digest() != unit.digest:
            return _failure(Failure.INPUT_DAMAGED, "the digest is another one")
        if run.is_stopped:
            return _failure(Failure.STOPPED, "")
        if run.runtime is None:
            return _failure(Failure.RUNTIME_CRASHED, "the runtime is not up")
        run.name = attempt_name(effect.lease_id, unit_id)
        self.shares.begin(run)
        run.is_running = True
        work = RuntimeWork(run.name, effect.model_id, effect.endpoint, payload)
        outcome = await run.runtime.run(work)
        run.is_running = False
        run.cpu_ms = self.shares.end(run)
        if run.is_stopped:
            return _failure(Failure.STOPPED, "")
        if isinstance(outcome, RuntimeFailure):
            return outcome
        return self._finished(run, unit, outcome)

    def _finished(
        self, run: _Run, unit: OfferedUnit, result: RuntimeResult
    ) -> RuntimeFailure | None:
        """Take an output; what is wrong with it, or None."""
        count = count_answers(result.payload)
        if count is None or count.answers != unit.requests:
            answers = "unreadable" if count is None else str(count.answers)
            detail = f"{answers} answers to {unit.requests} requests"
            return _failure(Failure.OUTPUT_INCOMPLETE, detail)
        now_ms = self._clock.now_ms()
        found = AttemptResult(
            unit.unit_id,
            count.answers,
            count.answers_failed,
            result.prompt_tokens,
            result.completion_tokens,
            self.energy.of_cpu(result.cpu_ms),
            now_ms - run.began_ms,
        )
        run.began_ms = now_ms
        self._count(found, result.cpu_ms)
        run.results.add(found, result.payload)
        return None

    def _break(self, run: _Run, unit_id: WorkUnitId, fault: RuntimeFailure) -> None:
        cpu_ms = run.cpu_ms
        energy_mwh = self.energy.of_cpu(cpu_ms)
        self.figures.broken += 1
        self.figures.cpu_ms += cpu_ms
        self.figures.energy_mwh += energy_mwh
        event = AttemptBroke(
            at_ms=self._clock.now_ms(),
            lease_id=run.effect.lease_id,
            unit_id=unit_id,
            failure=failure_named(fault.reason),
            detail=fault.detail[:DETAIL_CHARACTERS_MAX],
            energy_mwh=energy_mwh,
        )
        self._around.results.submit(event, ())

    def _count(self, result: AttemptResult, cpu_ms: int) -> None:
        figures = self.figures
        figures.finished += 1
        figures.answers += result.answers
        figures.answers_failed += result.answers_failed
        figures.prompt_tokens += result.prompt_tokens
        figures.completion_tokens += result.completion_tokens
        figures.cpu_ms += cpu_ms
        figures.energy_mwh += result.energy_mwh


def failure_named(reason: str) -> Failure:
    """A runtime's reason as the core's; one that it does not know counts as a crash."""
    try:
        return Failure(reason)
    except ValueError:
        return Failure.RUNTIME_CRASHED


def _tell(run: _Run) -> None:
    """What a lease has brought so far shall not wait while the next attempt runs."""
    run.results.tell()


def _failure(reason: Failure, detail: str) -> RuntimeFailure:
    return RuntimeFailure("", reason, detail)
