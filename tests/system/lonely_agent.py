"""An agent that starts a runtime, tells its process, gives it work and waits to be killed."""

import asyncio
import sys
from pathlib import Path

from terafleet.agent.adapters.runtime.child import ChildRuntime, ChildSettings
from terafleet.agent.ports import RuntimeModel, RuntimeWork


async def main(kind: str, folder: Path, deed: str) -> None:
    """Never ends by itself."""
    runtime = ChildRuntime(kind, ChildSettings(models_folder=folder.parent))
    await runtime.start(lambda _reason: None)
    await runtime.load(RuntimeModel("model", kind, folder))
    body = b'{"model":"m","input":"car","prompt":"car"}\n'
    endpoint = "/v1/embeddings" if kind == "onnx" else "/v1/completions"
    running = asyncio.create_task(
        runtime.run(RuntimeWork("attempt", "model", endpoint, body * 1000))
    )
    await asyncio.sleep(0.05)
    if deed == "suspend":
        runtime.suspend()
    print(runtime.process_id, flush=True)
    await running
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
