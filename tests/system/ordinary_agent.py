"""Wraps a prisoner as an agent that is not root would wrap a runtime, and lets it try."""

import json
import os
import subprocess
import sys
from pathlib import Path

from terafleet.agent.adapters.sandbox.bubblewrap import View, Wrapping, find_wrapping
from terafleet.agent.adapters.sandbox.tries import namespaces

HERE = Path(__file__).parent
targets = json.loads(sys.argv[1])
assert os.geteuid() != 0
found = find_wrapping(View(targets["models"], (targets["sources"], str(HERE))))
assert isinstance(found, Wrapping), found
words = json.dumps({**targets, "wrapped": {"shown": found.shown, "outside": namespaces()}})
command = found.command([sys.executable, "-P", str(HERE / "prisoner.py"), "kept", words])
sys.exit(subprocess.run(command, check=False).returncode)
