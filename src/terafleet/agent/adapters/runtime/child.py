"""Runs AI models in a child process behind walls, and speaks with it over pipes."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

import terafleet
from terafleet.agent.adapters.runtime.child_process import ChildProcess
from terafleet.agent.adapters.runtime.stillness import LOOK_MS, Stillness
from terafleet.agent.adapters.sandbox.bubblewrap import View
from terafleet.agent.adapters.sandbox.outside import Outside
from terafleet.agent.ports import (
    RuntimeFailure,
    RuntimeLoaded,
    RuntimeModel,
    RuntimeResult,
    RuntimeUnavailable,
    RuntimeWork,
    SandboxReport,
    SessionEnd,
    SessionPiece,
    SessionRefused,
    SessionWork,
)
from terafleet.agent.runtime_host.frames import FRAME_BYTES_MAX
from terafleet.agent.runtime_host.messages import (
    ENCODER,
    FROM_RUNTIME,
    AnyToRuntime,
    Done,
    Ended,
    Failed,
    HostSettings,
    Load,
    Loaded,
    LoadFailed,
    NotReady,
    Open,
    Piece,
    Ready,
    Refused,
    Run,
    Stop,
)
from terafleet.core.reasons import Failure
from terafleet.protocol.errors import ERRORS

_SOURCE_FOLDER: Final = Path(terafleet.__file__).parents[1]
_PROGRAM: Final = "terafleet.agent.runtime_host"
_START_SECONDS_MAX: Final = 60.0
_LOOK_SECONDS: Final = LOOK_MS / 1000
_STOP_LOOKS_MAX: Final = 75
"""At how many looks the program may still be at what it was told to stop, 15 s in all: a batch, or
a part of a prompt, takes far less. A request may keep a library busy for ever."""
_PAYLOAD_BYTES_MAX: Final = FRAME_BYTES_MAX - 4096
# An integer in MessagePack, with its type.
_TOKEN_BYTES_MAX: Final = 9
# What a runtime needs of the agent's environment: where the system's libraries are, no secrets.
_INHERITED: Final = ("LD_LIBRARY_PATH", "LANG", "TZ")


class ChildSettings(msgspec.Struct, frozen=True):
    """How the child runs.

    `threads` is for one attempt, `slots` is how many attempts run at once, `memory_bytes` bounds
    what it can allocate. Models lie below `models_folder`, the only data that it may read.
    `niceness` is added to the agent's own; with any, the program computes only when nobody else
    on the computer wants to. `shows_errors` lets it write to the agent's standard error. Without
    `may_wrap` it has only the walls that it builds itself.
    """

    models_folder: Path
    slots: int = 1
    threads: int = 1
    memory_bytes: int = 2 * 1024**3
    niceness: int = 10
    shows_errors: bool = False
    may_wrap: bool = True


class ChildRuntime:
    """The port `Runtime` on a child process; it can be started again after it has ended.

    `mechanisms` names what of the kernel makes the walls hold, for people to read.
    """

    def __init__(self, kind: str, settings: ChildSettings) -> None:
        """`kind` is `onnx` or `llama`."""
        self._kind = kind
        self._settings = settings
        self._life: _Life | None = None
        self._numbers = itertools.count(1)
        self._is_held = False
        self.mechanisms: tuple[str, ...] = ()

    async def start(self, on_exit: Callable[[str], None]) -> SandboxReport:
        """Start the program and wait until its walls stand and its libraries are loaded.

        Raises RuntimeUnavailable.
        """
        assert self._life is None or self._life.is_over, "the runtime already runs"
        outside = Outside()
        if self._settings.may_wrap:
            await outside.prepare(self._view())
        life = self._life = _Life(on_exit, outside)
        errors = None if self._settings.shows_errors else subprocess.DEVNULL
        try:
            program = (self._command(), self._environment(), errors)
            await life.child.start(*program, is_wrapped=outside.is_wrapping)
            if self._is_held:
                # It was to be suspended before there was a program.
                self.suspend()
            life.watch()
            async with asyncio.timeout(_START_SECONDS_MAX):
                ready = await life.ready
        except TimeoutError:
            ready = NotReady(Failure.RUNTIME_REFUSED, "it did not get ready in time")
        except OSError as error:
            self._life = None
            raise RuntimeUnavailable(Failure.RUNTIME_REFUSED, str(error)) from error
        if isinstance(ready, NotReady):
            await self.kill()
            raise RuntimeUnavailable(ready.reason, ready.detail)
        bounds = await life.outside.bound(life.child.process_id, self._host_settings())
        if life.is_over:
            life.outside.clear()
        self.mechanisms = (*ready.mechanisms, *bounds)
        return life.outside.checked(ready.report, bounds, life.child.process_id)

    async def load(self, model: RuntimeModel) -> RuntimeLoaded | RuntimeFailure:
        """Bring a model into memory; the result is the same for all who ask meanwhile."""
        if model.runtime != self._kind:
            return RuntimeFailure("", Failure.RUNTIME_REFUSED, f"this is {self._kind}")
        life = self._life
        if life is None or life.is_over:
            return RuntimeFailure("", Failure.RUNTIME_CRASHED, "the runtime does not run")
        if model.model_id not in life.loads:
            life.loads[model.model_id] = asyncio.get_running_loop().create_future()
            life.outside.lend(model.folder)
            life.send(Load(model.model_id, str(model.folder), dict(model.options)))
            life.watch()
        return await asyncio.shield(life.loads[model.model_id])

    async def run(self, work: RuntimeWork) -> RuntimeResult | RuntimeFailure:
        """Run one attempt; one that nobody waits for any more is stopped."""
        number = next(self._numbers)
        message = Run(number, work.model_id, work.endpoint, work.payload)
        waiting = _Attempt(work.attempt_id)
        outcome = await self._outcome(waiting, message, len(work.payload))
        assert isinstance(outcome, RuntimeResult | RuntimeFailure)
        return outcome

    async def open(
        self, work: SessionWork, take: Callable[[SessionPiece], None]
    ) -> SessionEnd | SessionRefused | RuntimeFailure:
        """Answer one live request; one that nobody waits for any more is stopped."""
        number = next(self._numbers)
        message = Open(number, work.model_id, work.endpoint, work.body, work.delivered)
        waiting = _Attempt(work.session_id, take)
        input_bytes = len(work.body) + _TOKEN_BYTES_MAX * len(work.delivered)
        outcome = await self._outcome(waiting, message, input_bytes)
        assert not isinstance(outcome, RuntimeResult)
        return outcome

    async def _outcome(
        self, waiting: "_Attempt", message: Run | Open, input_bytes: int
    ) -> "_Outcome":
        """Give an attempt or a session to the program, and wait for its end."""
        life = self._life
        name, refused = waiting.attempt_id, Failure.RUNTIME_REFUSED
        if life is None or life.is_over:
            return RuntimeFailure(name, Failure.RUNTIME_CRASHED, "the runtime does not run")
        if len(life.attempts) >= self._settings.slots:
            return RuntimeFailure(name, refused, "no slot is free")
        if input_bytes > _PAYLOAD_BYTES_MAX:
            return RuntimeFailure(name, refused, "too large an input")
        number = message.number
        life.attempts[number] = waiting
        life.send(message)
        life.watch()
        try:
            return await waiting.outcome
        finally:
            if life.attempts.pop(number, None) is not None:
                life.tell_to_stop(number)

    async def stop(self, attempt_id: str) -> None:
        """Give up an attempt or a session; its slot is free at once.

        Its thread ends after its current batch or token, and nothing more is heard of it. A
        program whose thread does not end is ended.
        """
        life = self._life
        attempts = life.attempts.items() if life is not None else ()
        for number in [number for number, one in attempts if one.attempt_id == attempt_id]:
            assert life is not None
            life.tell_to_stop(number)
            life.finish(number, RuntimeFailure(attempt_id, Failure.STOPPED))

    def suspend(self) -> None:
        """Stop all threads of the program where they are; one that is starting as it begins."""
        self._is_held = True
        if self._life is not None:
            self._life.is_suspended = True
            self._life.child.signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._is_held = False
        if self._life is not None:
            self._life.child.signal_group(signal.SIGCONT)
            self._life.is_suspended = False

    async def kill(self) -> None:
        """End the program, suspended or not; its attempts count as stopped."""
        self._is_held = False
        if self._life is not None:
            self._life.is_unwanted = True
            self._life.outside.hurry()
            await self._life.child.kill()

    def cpu_ms(self) -> int:
        """Processor time since the last start, all threads, whether it still runs or not."""
        return self._life.child.cpu_ms() if self._life is not None else 0

    @property
    def process_id(self) -> int:
        """The process that runs the models, for who looks at the computer from outside."""
        assert self._life is not None
        return self._life.child.process_id

    @property
    def wrapping_faults(self) -> tuple[str, str]:
        """Why the program is not wrapped, and why it has no user of its own; empty where it is."""
        return self._life.outside.faults if self._life is not None else ("", "")

    def _view(self) -> View:
        sources = tuple(str(_SOURCE_FOLDER).split(os.pathsep))
        return View(str(self._settings.models_folder), sources)

    def _host_settings(self) -> HostSettings:
        return HostSettings(
            slots=self._settings.slots,
            threads=self._settings.threads,
            memory_bytes=self._settings.memory_bytes,
            niceness=self._settings.niceness,
            models_folder=str(self._settings.models_folder),
            parent_id=os.getpid(),
        )

    def _command(self) -> list[str]:
        assert self._life is not None
        return self._life.outside.command(self._host_settings(), self._program)

    def _program(self, settings: HostSettings) -> list[str]:
        words = msgspec.json.encode(settings).decode()
        return [sys.executable, "-P", "-m", _PROGRAM, self._kind, words]

    def _environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        threads = str(self._settings.threads)
        return {
            **inherited,
            "PYTHONPATH": str(_SOURCE_FOLDER),
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/nonexistent",
            # Must stand here before the library is loaded, or it calls its maker.
            "ORT_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "true" if self._settings.threads > 1 else "false",
            "RAYON_NUM_THREADS": threads,
            # Arrays are only carried from tokenizer to model; their library needs no threads.
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }


_Outcome = RuntimeResult | SessionEnd | SessionRefused | RuntimeFailure


class _Attempt:
    """An attempt or a session that somebody waits for; only a session takes pieces."""

    def __init__(self, attempt_id: str, take: Callable[[SessionPiece], None] | None = None) -> None:
        self.attempt_id = attempt_id
        self.take = take
        self.outcome: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()

    def is_answered_by(self, message: Done | Ended | Refused | Failed) -> bool:
        """Whether a sane program could say that of it."""
        match message:
            case Done():
                return self.take is None
            case Refused():
                return self.take is not None and message.code in ERRORS
            case Ended():
                return self.take is not None
            case Failed():
                return True


class _Life:
    """The program from one start to its end, and who waits for what from it.

    One that owes something and stands still, but was not told to, or goes on with what it was told
    to stop, is ended as a crash.
    """

    def __init__(self, on_exit: Callable[[str], None], outside: Outside) -> None:
        self._on_exit = on_exit
        self.outside = outside
        self.child = ChildProcess(self._take, self._end)
        self.ready: asyncio.Future[Ready | NotReady] = asyncio.get_running_loop().create_future()
        self.loads: dict[str, asyncio.Future[RuntimeLoaded | RuntimeFailure]] = {}
        self.attempts: dict[int, _Attempt] = {}
        self.is_unwanted = False
        self.is_suspended = False
        self.is_over = False
        self._stillness = Stillness()
        self._stopping: dict[int, int] = {}
        """What it was told to stop, and at how many looks since."""
        self._fault = ""
        self._next_look: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Look after the program from now on, for as long as it owes anything."""
        if self._next_look is None and not self.is_over:
            self._stillness.forget()
            self._look()

    def tell_to_stop(self, number: int) -> None:
        """Let the program give up an attempt or a session, and see that it does."""
        self.send(Stop(number))
        self._stopping[number] = 0
        self.watch()

    def send(self, message: AnyToRuntime) -> None:
        """Say something to the program; what it can't hear any more is lost."""
        self.child.send(ENCODER.encode(message))

    def finish(self, number: int, outcome: _Outcome) -> None:
        """Give the outcome of an attempt or a session to who waits for it, once."""
        attempt = self.attempts.pop(number, None)
        if attempt is not None and not attempt.outcome.done():
            attempt.outcome.set_result(outcome)

    def _look(self) -> None:
        self._next_look = None
        if self.child.has_ended or not self._owes():
            return
        if self.is_suspended:
            self._stillness.forget()
        elif self._stillness.look(self.child.cpu_ns(), self.child.states):
            self._fault = "it stood still"
        elif not self._obeys():
            self._fault = "it did not stop what it was told to"
        if self._fault:
            self.child.signal_group(signal.SIGKILL)
            return
        self._next_look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _obeys(self) -> bool:
        """Whether it has stopped, or may still stop, what it was told to."""
        for number in self._stopping:
            self._stopping[number] += 1
        return max(self._stopping.values(), default=0) <= _STOP_LOOKS_MAX

    def _owes(self) -> bool:
        """Whether anything is expected of the program."""
        is_loading = not all(waiting.done() for waiting in self.loads.values())
        return bool(self.attempts or self._stopping) or is_loading or not self.ready.done()

    def _take(self, body: bytes) -> None:
        try:
            message = FROM_RUNTIME.decode(body)
        except msgspec.DecodeError:
            # Only a program that a model has taken over speaks like that.
            self.child.signal_group(signal.SIGKILL)
            return
        match message:
            case Piece():
                self._pass_on(message)
            case Ready() | NotReady():
                if not self.ready.done():
                    self.ready.set_result(message)
            case Loaded() | LoadFailed():
                self._answer_load(message)
            case Done() | Ended() | Refused() | Failed():
                self._answer_attempt(message)

    def _answer_load(self, message: Loaded | LoadFailed) -> None:
        waiting = self.loads.get(message.model_id)
        if waiting is None or waiting.done():
            return
        if isinstance(message, Loaded):
            occupied_bytes = self.child.resident_bytes()
            waiting.set_result(RuntimeLoaded(message.model_id, message.load_ms, occupied_bytes))
            return
        del self.loads[message.model_id]
        waiting.set_result(RuntimeFailure("", message.reason, message.detail))

    def _pass_on(self, message: Piece) -> None:
        """A piece for its session; one that comes after the end of it is nobody's."""
        session = self.attempts.get(message.number)
        if session is not None and session.take is not None:
            session.take(message.piece)

    def _answer_attempt(self, message: Done | Ended | Refused | Failed) -> None:
        self._stopping.pop(message.number, None)
        attempt = self.attempts.get(message.number)
        if attempt is None:
            return
        if not attempt.is_answered_by(message):
            self.child.signal_group(signal.SIGKILL)
            return
        self.finish(message.number, _outcome_of(attempt.attempt_id, message))

    def _end(self, exit_code: int) -> None:
        """The program is gone: so is everything that was expected of it."""
        self.is_over = True
        self.outside.clear()
        if self._next_look is not None:
            self._next_look.cancel()
        reason = Failure.STOPPED if self.is_unwanted else Failure.RUNTIME_CRASHED
        detail = f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
        detail = self._fault or detail
        for number, attempt in list(self.attempts.items()):
            self.finish(number, RuntimeFailure(attempt.attempt_id, reason, detail))
        for waiting in self.loads.values():
            if not waiting.done():
                waiting.set_result(RuntimeFailure("", reason, detail))
        if not self.ready.done():
            self.ready.set_result(NotReady(reason, detail))
        elif not self.is_unwanted:
            self._on_exit(reason)


def _outcome_of(name: str, message: Done | Ended | Refused | Failed) -> _Outcome:
    """What the program says, in the words of the port."""
    match message:
        case Done():
            tokens = (message.prompt_tokens, message.completion_tokens)
            return RuntimeResult(name, message.payload, *tokens, cpu_ms=message.cpu_ms)
        case Ended():
            tokens = (message.prompt_tokens, message.completion_tokens)
            return SessionEnd(name, *tokens, cpu_ms=message.cpu_ms)
        case Refused():
            return SessionRefused(name, message.code, message.message, message.param)
        case Failed():
            return RuntimeFailure(name, message.reason, message.detail)
