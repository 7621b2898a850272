"""The interfaces that the vehicle agent's shell needs from the world."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from terafleet.core.readings import Readings
from terafleet.core.reasons import Failure


class RuntimeModel(msgspec.Struct, frozen=True):
    """A model that is on the car's disk, checked, ready to be loaded.

    `folder` holds the files that the manifest names. `options` are the runtime's own
    (for `llama`: `context_tokens`; for `onnx`: `tokens_max`), all integers.
    """

    model_id: str
    runtime: str
    folder: Path
    options: Mapping[str, int] = {}


class RuntimeWork(msgspec.Struct, frozen=True):
    """The input of one attempt: JSON Lines of OpenAI request bodies, one endpoint for all."""

    attempt_id: str
    model_id: str
    endpoint: str
    payload: bytes


class RuntimeResult(msgspec.Struct, frozen=True):
    """The output of one attempt: JSON Lines `{"status_code": …, "body": …}` in input order."""

    attempt_id: str
    payload: bytes
    prompt_tokens: int
    completion_tokens: int
    cpu_ms: int


class RuntimeFailure(msgspec.Struct, frozen=True):
    """Why an attempt or a load gave no result; `reason` is a name of `core.reasons`."""

    attempt_id: str
    reason: str
    detail: str = ""


class RuntimeLoaded(msgspec.Struct, frozen=True):
    """A model stands in memory."""

    model_id: str
    load_ms: int
    memory_bytes: int


class SandboxReport(msgspec.Struct, frozen=True):
    """Which walls were checked to hold around the runtime; nothing else is claimed."""

    has_no_network: bool
    dies_with_agent: bool
    cannot_gain_privileges: bool
    has_limited_memory: bool
    filesystem_read_only: bool


class RuntimeUnavailable(Exception):
    """The program did not start behind its walls; `reason` says why."""

    def __init__(self, reason: Failure, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Runtime(Protocol):
    """The program that runs AI models in the car; one a vehicle, several slots."""

    async def start(self, on_exit: Callable[[str], None]) -> SandboxReport:
        """Start the program; `on_exit(reason)` is called once when it ends by itself.

        It may be started again after its end. Raises RuntimeUnavailable.
        """
        ...

    async def load(self, model: RuntimeModel) -> RuntimeLoaded | RuntimeFailure:
        """Bring a model into memory; loading a loaded model answers at once."""
        ...

    async def run(self, work: RuntimeWork) -> RuntimeResult | RuntimeFailure:
        """Run one attempt to its end; several may run at once, up to the slots."""
        ...

    async def stop(self, attempt_id: str) -> None:
        """Give up one attempt; its `run` returns a failure with reason `stopped`."""
        ...

    def suspend(self) -> None:
        """Take the program off the processor at once; never blocks, never raises."""
        ...

    def resume(self) -> None:
        """Let a suspended program go on."""
        ...

    async def kill(self) -> None:
        """End the program and give its memory back; safe to call twice."""
        ...

    def cpu_ms(self) -> int:
        """Processor time that the program has used since it started."""
        ...


RuntimeFactory = Callable[[], Awaitable[Runtime]]


class VehicleInterface(Protocol):
    """What the car's sensors say, wherever they are read."""

    async def run(self, deliver: Callable[[Readings], None]) -> None:
        """Deliver a sample at each interval and at each change, until cancelled.

        A sensor that can't be read is a missing reading; it never ends the samples. `at_ms` is
        the agent's clock at the moment of the sample.
        """
        ...
