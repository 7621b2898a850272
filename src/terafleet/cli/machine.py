"""Says on what machine and at which commit figures were measured."""

import os
import platform
import subprocess
from pathlib import Path


def machine_and_commit() -> dict[str, str]:
    """Processor and cores in words, and the commit (`unknown` outside a checkout)."""
    return {"machine": _machine(), "commit": _commit()}


def _machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    usable = len(os.sched_getaffinity(0))
    return f"{name}, {usable} cores, Python {platform.python_version()}"


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return ended.stdout.strip() or "unknown"
