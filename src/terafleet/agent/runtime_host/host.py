"""Answers the agent's messages: loads models, runs attempts and sessions in threads, stops them."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from terafleet.agent.ports import SessionPiece
from terafleet.agent.runtime_host.frames import FRAME_BYTES_MAX, read_body, write_body
from terafleet.agent.runtime_host.messages import (
    ENCODER,
    TO_RUNTIME,
    AnyFromRuntime,
    Done,
    Ended,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Open,
    Piece,
    Refused,
    Run,
)
from terafleet.agent.runtime_host.models import HostedModel, LiveRequest, LoadModel, ModelFailed
from terafleet.agent.runtime_host.processor import ProcessorShares
from terafleet.core.reasons import Failure
from terafleet.protocol.live import LiveFault

_EXIT_AFTER_BUG = 70
# What surrounds a payload in its message is far less than this.
_PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX - 4096


class Host:
    """One runtime: its models, its running attempts and sessions, and the pipe to the agent.

    What an agent doesn't read fills the pipe, and then nothing is written any more: a session
    that is told faster than it is taken waits, and with it those that share the pipe.
    """

    def __init__(self, load_model: LoadModel, slots: int, outgoing: int) -> None:
        self._load_model = load_model
        self._outgoing = outgoing
        self._write_lock = threading.Lock()
        self._models: dict[str, HostedModel] = {}
        self._stopped: dict[int, threading.Event] = {}
        self._shares = ProcessorShares(time.process_time_ns)
        self._loader = ThreadPoolExecutor(1, "load")
        self._slots = ThreadPoolExecutor(slots, "slot")

    def serve(self, incoming: int) -> None:
        """Answer until the agent's end of the pipe is gone."""
        while (body := read_body(incoming)) is not None:
            message = TO_RUNTIME.decode(body)
            if isinstance(message, Load):
                self._loader.submit(_or_die, self._load, message)
            elif isinstance(message, Run | Open):
                stopped = self._stopped[message.number] = threading.Event()
                self._slots.submit(_or_die, self._run, message, stopped)
            elif (stop := self._stopped.get(message.number)) is not None:
                # What is unknown here has ended, and its answer is on its way.
                stop.set()

    def tell(self, message: AnyFromRuntime) -> None:
        """Send a message to the agent; nobody to hear it means that there is nothing to do."""
        body = ENCODER.encode(message)
        try:
            with self._write_lock:
                write_body(self._outgoing, body)
        except BrokenPipeError:
            os._exit(0)

    def _load(self, message: Load) -> None:
        began = time.monotonic()
        try:
            if message.model_id not in self._models:
                model = self._load_model(Path(message.folder), message.options)
                self._models[message.model_id] = model
        except ModelFailed as failure:
            self.tell(LoadFailed(message.model_id, failure.reason, failure.detail))
            return
        except MemoryError:
            self.tell(LoadFailed(message.model_id, Failure.OUT_OF_MEMORY, "while loading"))
            return
        load_ms = round((time.monotonic() - began) * 1000)
        self.tell(Loaded(message.model_id, load_ms))

    def _run(self, message: Run | Open, stopped: threading.Event) -> None:
        self._shares.begin(message.number)
        outcome = self._outcome(message, stopped)
        cpu_ms = self._shares.end_ms(message.number)
        del self._stopped[message.number]
        if isinstance(outcome, Done | Ended):
            outcome = msgspec.structs.replace(outcome, cpu_ms=cpu_ms)
        self.tell(outcome)

    def _outcome(
        self, message: Run | Open, stopped: threading.Event
    ) -> Done | Ended | Refused | Failed:
        number = message.number
        model = self._models.get(message.model_id)
        if model is None:
            return Failed(number, Failure.MODEL_UNAVAILABLE, "the model is not loaded")
        try:
            if isinstance(message, Open):
                return self._streamed(model, message, stopped)
            return _served(model, message, stopped)
        except ModelFailed as failure:
            return Failed(number, failure.reason, failure.detail)
        except MemoryError:
            return Failed(number, Failure.OUT_OF_MEMORY, "while running")

    def _streamed(
        self, model: HostedModel, message: Open, stopped: threading.Event
    ) -> Ended | Refused:
        number = message.number

        def take(piece: SessionPiece) -> None:
            self.tell(Piece(number, piece))

        request = LiveRequest(message.endpoint, message.body, message.delivered)
        end = model.stream(request, take, stopped.is_set)
        if isinstance(end, LiveFault):
            return Refused(number, end.code, end.message, end.param)
        return Ended(number, end.prompt_tokens, end.completion_tokens, cpu_ms=0)


def _served(model: HostedModel, message: Run, stopped: threading.Event) -> Done | Failed:
    number = message.number
    answers = model.serve(message.payload, message.endpoint, stopped.is_set)
    if stopped.is_set():
        return Failed(number, Failure.STOPPED, "")
    if len(answers.payload) > _PAYLOAD_BYTES_MAX:
        return Failed(number, Failure.RUNTIME_REFUSED, "the output is too large")
    tokens = (answers.prompt_tokens, answers.completion_tokens)
    return Done(number, answers.payload, *tokens, cpu_ms=0)


def _or_die(work: Callable[..., None], *arguments: object) -> None:
    """Do work in a thread; a bug in it ends the process, as it would in the main thread."""
    try:
        work(*arguments)
    except BaseException:  # noqa: BLE001 - a pool would keep the exception to itself.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(_EXIT_AFTER_BUG)
