"""Starts the runtime: takes the pipes, builds the walls, then loads foreign libraries.

The command line is `python -m terafleet.agent.runtime_host KIND SETTINGS`, with the settings as
JSON. This is the composition root of the runtime's process.
"""

import os
import sys

import msgspec

from terafleet.agent.adapters.sandbox.linux import Walls, enclose
from terafleet.agent.runtime_host.frames import write_body
from terafleet.agent.runtime_host.host import Host
from terafleet.agent.runtime_host.messages import ENCODER, HostSettings, NotReady, Ready
from terafleet.agent.runtime_host.models import LoadModel
from terafleet.core.reasons import Failure

_INPUT, _OUTPUT, _ERRORS = 0, 1, 2


def main() -> None:
    """Run until the agent is gone or wants no more."""
    kind = sys.argv[1]
    settings = msgspec.json.decode(sys.argv[2], type=HostSettings)
    # onnxruntime looks this up when it is loaded, and would call home without it.
    assert os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    incoming, outgoing = _take_pipes()
    try:
        enclosure = enclose(_walls(kind, settings))
    except OSError as error:
        _refuse(outgoing, NotReady(Failure.SANDBOX_UNAVAILABLE, str(error)))
        return
    if not enclosure.report.has_no_network:
        held = ", ".join(enclosure.mechanisms) or "nothing"
        detail = f"no wall keeps the network away; the kernel gave {held}"
        _refuse(outgoing, NotReady(Failure.SANDBOX_UNAVAILABLE, detail))
        return
    try:
        load_model = _model_loader(kind, settings)
    except ImportError as error:
        _refuse(outgoing, NotReady(Failure.RUNTIME_REFUSED, str(error)))
        return
    host = Host(load_model, settings.slots, outgoing)
    enclosure.stand_back()
    host.tell(Ready(enclosure.report, enclosure.mechanisms))
    host.serve(incoming)
    # Threads may be deep in a library; what they do is not wanted any more.
    os._exit(0)


def _take_pipes() -> tuple[int, int]:
    """Keep the pipes to the agent for frames; whatever a library prints goes to the errors."""
    incoming, outgoing = os.dup(_INPUT), os.dup(_OUTPUT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, _INPUT)
    os.dup2(_ERRORS, _OUTPUT)
    os.close(nothing)
    return incoming, outgoing


def _walls(kind: str, settings: HostSettings) -> Walls:
    return Walls(
        models_folder=settings.models_folder,
        memory_bytes=settings.memory_bytes,
        niceness=settings.niceness,
        parent_id=settings.parent_id,
        # The library of language models won't start without a socket to listen on.
        may_listen=kind == "llama",
        shown=settings.shown,
        outside=settings.outside,
        user_id=settings.user_id,
        group_id=settings.group_id,
    )


def _model_loader(kind: str, settings: HostSettings) -> LoadModel:
    """The way to load models of a kind; its libraries are loaded here. Raises ImportError."""
    if kind == "onnx":
        from terafleet.agent.runtime_host import embedder

        return embedder.loader(settings.threads)
    assert kind == "llama", kind
    from terafleet.agent.runtime_host import llama

    return llama.loader(settings.threads, settings.slots)


def _refuse(outgoing: int, message: NotReady) -> None:
    write_body(outgoing, ENCODER.encode(message))


if __name__ == "__main__":
    main()
