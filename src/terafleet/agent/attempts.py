"""The attempts that run in the car: input to the runtime, output to the guard, and their energy."""

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from terafleet.agent.answers import count_answers
from terafleet.agent.deeds import DeedLine, Spawn
from terafleet.agent.energy import CpuShares, EnergyEstimate
from terafleet.agent.gateway import Gateway, GatewayFault
from terafleet.agent.inputs import LeasedInputs
from terafleet.agent.ports import Runtime, RuntimeFailure, RuntimeResult, RuntimeWork
from terafleet.core.guard_effects import StartAttempt
from terafleet.core.guard_events import AnyGuardEvent, AttemptBroke, AttemptFinished
from terafleet.core.ids import LeaseId, WorkUnitId, attempt_name, output_name
from terafleet.core.reasons import Failure
from terafleet.core.work import UNIT_INPUT_BYTES_MAX
from terafleet.engine.clock import Clock
from terafleet.engine.ports import Blob
from terafleet.protocol.agent import INLINE_BYTES_MAX, OfferedUnit

INPUT_BYTES_MAX = 16 * UNIT_INPUT_BYTES_MAX
"""A unit of one large request may be larger than a unit's aim."""

DETAIL_CHARACTERS_MAX = 500

Submit = Callable[[AnyGuardEvent, Sequence[Blob]], bool]
Key = tuple[LeaseId, WorkUnitId]


def address_name(lease_id: LeaseId, unit_id: WorkUnitId) -> str:
    """The blob with the address to put a large output to."""
    return f"{output_name(lease_id, unit_id)}/address"


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
    """What attempts need.

    `runtime_of` finds the runtime that holds a model, or None. `keep_output` hears of each output
    just before the guard does, which will have it handed in.
    """

    submit: Submit
    keep_output: Callable[[LeaseId, WorkUnitId, bytes], None]
    clock: Clock
    inputs: LeasedInputs
    gateway: Gateway
    runtime_of: Callable[[str], Runtime | None]
    runtime_cpu_ms: Callable[[], int]
    spawn: Spawn
    core_power_mw: int


class _Attempt:
    """An attempt on its way; `is_running` once the runtime has it."""

    __slots__ = ("effect", "is_running", "is_stopped", "key", "name", "unit")

    def __init__(self, effect: StartAttempt, unit: OfferedUnit | None) -> None:
        self.effect = effect
        self.unit = unit
        self.key = (effect.lease_id, effect.unit_id)
        self.name = attempt_name(effect.lease_id, effect.unit_id)
        self.is_stopped = False
        self.is_running = False


class Attempts:
    """Every attempt ends in one `AttemptFinished` or `AttemptBroke`, also one that is stopped."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._attempts: dict[Key, _Attempt] = {}
        self._line: DeedLine[_Attempt] = DeedLine(self._run, around.spawn)
        self._energy = EnergyEstimate(around.core_power_mw)
        self._shares: CpuShares[_Attempt] = CpuShares(around.runtime_cpu_ms)
        self.figures = AttemptFigures()

    def __len__(self) -> int:
        """How many are on their way."""
        return len(self._attempts)

    def start(self, effect: StartAttempt) -> None:
        """Begin an attempt."""
        unit = self._around.inputs.unit(effect.lease_id, effect.unit_id)
        attempt = _Attempt(effect, unit)
        self._attempts[attempt.key] = attempt
        self._line.add(attempt)

    def stop(self, lease_id: LeaseId, unit_id: WorkUnitId) -> None:
        """Give up an attempt; the runtime's slot is free when the next attempt begins."""
        attempt = self._attempts.get((lease_id, unit_id))
        if attempt is None or attempt.is_stopped:
            return
        attempt.is_stopped = True
        runtime = self._around.runtime_of(attempt.effect.model_id)
        if attempt.is_running and runtime is not None:
            self._around.spawn(runtime.stop(attempt.name))

    async def _run(self, attempt: _Attempt) -> None:
        began_ms = self._around.clock.now_ms()
        outcome = await self._outcome(attempt)
        if self._attempts.get(attempt.key) is attempt:
            del self._attempts[attempt.key]
        cpu_ms = self._shares.end(attempt)
        if isinstance(outcome, RuntimeResult) and not attempt.is_stopped:
            self._finish(attempt, outcome, began_ms)
        else:
            reason, detail = Failure.STOPPED.value, ""
            if isinstance(outcome, RuntimeFailure) and not attempt.is_stopped:
                reason, detail = outcome.reason, outcome.detail
            self._break(attempt, reason, detail, cpu_ms)

    async def _outcome(self, attempt: _Attempt) -> RuntimeResult | RuntimeFailure:
        effect = attempt.effect
        if attempt.unit is None:
            return _failure(attempt, Failure.INPUT_UNAVAILABLE, "the grant's input is not here")
        payload: bytes | GatewayFault = attempt.unit.payload
        if attempt.unit.input_address:
            address = attempt.unit.input_address
            payload = await self._around.gateway.fetch(address, INPUT_BYTES_MAX)
        if isinstance(payload, GatewayFault):
            detail = f"{payload.code}: {payload.detail}"
            return _failure(attempt, Failure.INPUT_UNAVAILABLE, detail)
        if hashlib.sha256(payload).digest() != attempt.unit.digest:
            return _failure(attempt, Failure.INPUT_DAMAGED, "the digest is another one")
        runtime = self._around.runtime_of(effect.model_id)
        if runtime is None or attempt.is_stopped:
            return _failure(attempt, Failure.RUNTIME_CRASHED, "the runtime is not up")
        attempt.is_running = True
        self._shares.begin(attempt)
        work = RuntimeWork(attempt.name, effect.model_id, effect.endpoint, payload)
        return await runtime.run(work)

    def _finish(self, attempt: _Attempt, result: RuntimeResult, began_ms: int) -> None:
        lease_id, unit_id = attempt.key
        assert attempt.unit is not None, "what has run had an input"
        count = count_answers(result.payload)
        if count is None or count.answers != attempt.unit.requests:
            answers = "unreadable" if count is None else str(count.answers)
            detail = f"{answers} answers to {attempt.unit.requests} requests"
            self._break(attempt, Failure.OUTPUT_INCOMPLETE, detail, result.cpu_ms)
            return
        now_ms = self._around.clock.now_ms()
        energy_mwh = self._energy.of_cpu(result.cpu_ms)
        event = AttemptFinished(
            at_ms=now_ms,
            lease_id=lease_id,
            unit_id=unit_id,
            answers=count.answers,
            answers_failed=count.answers_failed,
            prompt_tokens=result.prompt_tokens,
            completion_tokens=result.completion_tokens,
            energy_mwh=energy_mwh,
            runtime_ms=now_ms - began_ms,
            digest=hashlib.sha256(result.payload).digest(),
        )
        self._count(event, result.cpu_ms)
        self._around.keep_output(lease_id, unit_id, result.payload)
        self._around.submit(event, _blobs(event, result.payload, attempt.unit.output_address))

    def _break(self, attempt: _Attempt, reason: str, detail: str, cpu_ms: int) -> None:
        lease_id, unit_id = attempt.key
        energy_mwh = self._energy.of_cpu(cpu_ms)
        self.figures.broken += 1
        self.figures.cpu_ms += cpu_ms
        self.figures.energy_mwh += energy_mwh
        event = AttemptBroke(
            at_ms=self._around.clock.now_ms(),
            lease_id=lease_id,
            unit_id=unit_id,
            failure=failure_named(reason),
            detail=detail[:DETAIL_CHARACTERS_MAX],
            energy_mwh=energy_mwh,
        )
        self._around.submit(event, ())

    def _count(self, event: AttemptFinished, cpu_ms: int) -> None:
        self.figures.finished += 1
        self.figures.answers += event.answers
        self.figures.answers_failed += event.answers_failed
        self.figures.prompt_tokens += event.prompt_tokens
        self.figures.completion_tokens += event.completion_tokens
        self.figures.cpu_ms += cpu_ms
        self.figures.energy_mwh += event.energy_mwh


def failure_named(reason: str) -> Failure:
    """A runtime's reason as the core's; one that it does not know counts as a crash."""
    try:
        return Failure(reason)
    except ValueError:
        return Failure.RUNTIME_CRASHED


def _blobs(event: AttemptFinished, payload: bytes, output_address: str) -> list[Blob]:
    """The output, and where it will go if it is too large for a receipt."""
    key = (event.lease_id, event.unit_id)
    blobs = [Blob(output_name(*key), payload)]
    if len(payload) > INLINE_BYTES_MAX:
        # After a restart nothing but the record knows the address.
        blobs.append(Blob(address_name(*key), output_address.encode()))
    return blobs


def _failure(attempt: _Attempt, reason: Failure, detail: str) -> RuntimeFailure:
    return RuntimeFailure(attempt.name, reason, detail)
