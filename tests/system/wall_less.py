"""Starts the runtime's program on a computer that offers no wall against the network."""

import os
import sys

import msgspec

from terafleet.agent.adapters.sandbox import calls, linux
from terafleet.agent.runtime_host import __main__
from terafleet.agent.runtime_host.messages import HostSettings

setattr(calls, "leave_network", tuple)  # noqa: B010 - it stands in for a poorer kernel.
setattr(linux, "restrict_calls", lambda _may_listen: False)  # noqa: B010 - as above.
settings = HostSettings(
    slots=1,
    threads=1,
    memory_bytes=1 << 30,
    niceness=0,
    models_folder="/nonexistent",
    parent_id=os.getppid(),
)
sys.argv = ["runtime_host", "onnx", msgspec.json.encode(settings).decode()]
__main__.main()
