"""A runtime that runs no model and answers at once, to measure everything around it."""

from collections.abc import Callable

from terafleet.agent.ports import (
    RuntimeFailure,
    RuntimeLoaded,
    RuntimeModel,
    RuntimeResult,
    RuntimeWork,
    SandboxReport,
)
from terafleet.core.reasons import Failure

_ANSWER = b'{"status_code":200,"body":{"object":"list","data":[]}}\n'
_ONLY_SANE_CLAIM = SandboxReport(
    has_no_network=False,
    dies_with_agent=True,
    cannot_gain_privileges=False,
    has_limited_memory=False,
    filesystem_read_only=False,
)


class NoopRuntime:
    """Answers each request with an empty list, in the agent's own process.

    It has no walls and needs none, for it touches nothing; it dies with the agent because it is
    the agent. There is never anything to suspend or to stop: an attempt takes no time.
    """

    def __init__(self) -> None:
        self._loaded: set[str] = set()

    async def start(self, on_exit: Callable[[str], None]) -> SandboxReport:  # noqa: ARG002
        """Nothing starts, and nothing ends by itself."""
        return _ONLY_SANE_CLAIM

    async def load(self, model: RuntimeModel) -> RuntimeLoaded | RuntimeFailure:
        """Any model will do; its files are not read."""
        self._loaded.add(model.model_id)
        return RuntimeLoaded(model.model_id, load_ms=0, memory_bytes=0)

    async def run(self, work: RuntimeWork) -> RuntimeResult | RuntimeFailure:
        """One answer for each line, each counted as one token."""
        if work.model_id not in self._loaded:
            return RuntimeFailure(work.attempt_id, Failure.MODEL_UNAVAILABLE, "not loaded")
        requests = work.payload.count(b"\n") + (not work.payload.endswith(b"\n"))
        return RuntimeResult(work.attempt_id, _ANSWER * requests, requests, 0, 0)

    async def stop(self, attempt_id: str) -> None:
        """An attempt that could be stopped is already over."""

    def suspend(self) -> None:
        """There is nothing to take off the processor."""

    def resume(self) -> None:
        """There is nothing that waits."""

    async def kill(self) -> None:
        """Forget the models."""
        self._loaded.clear()

    def cpu_ms(self) -> int:
        """None that could be told from the agent's own."""
        return 0
