"""Writes a pause into the owner's own file, and takes it out again; all else in it stays.

The file is edited as text, so that comments stay, and what came out is read before it is written.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from terafleet.agent.files import replace_file
from terafleet.agent.owner_policy_files import (
    OWNER_FILE,
    POLICY_BYTES_MAX,
    OwnerPolicyFiles,
    PolicyRefused,
)
from terafleet.core.policy import OwnerPolicy

_VALUE = r"""("[^"\r\n]*"|'[^'\r\n]*'|[^#"'\r\n]*?)([ \t]*(?:#[^\r\n]*)?\r?\n?)"""


def write_pause(
    data_folder: Path, installed: OwnerPolicy, is_paused: bool, resume_at: str
) -> PolicyRefused | None:
    """Pause until `resume_at` (empty: until the owner says so) or go on; the agent heeds it.

    A policy that has faults is not in force, so a pause in it would not be either: it is refused,
    and nothing is written. Raises OSError.
    """
    policy_files = OwnerPolicyFiles(data_folder, installed)
    policy_files.reload()
    if policy_files.faults:
        return PolicyRefused(policy_files.faults)
    # A link is written through: the file may lie where the owner keeps such things.
    path = (data_folder / OWNER_FILE).resolve()
    text = path.read_bytes().decode() if path.exists() else ""
    fresh = paused_text(text, is_paused, resume_at)
    if fresh is None or len(fresh.encode()) > POLICY_BYTES_MAX:
        wanted = "true" if is_paused else "false"
        return PolicyRefused((f"{path}: it can't be edited; write is_paused = {wanted} yourself",))
    if fresh != text:
        replace_file(path, fresh.encode(), keeps_owner=True)
    return None


def paused_text(text: str, is_paused: bool, resume_at: str) -> str | None:
    """The text of a TOML file that says so, and else what it said; None if that is not possible.

    Raises tomllib.TOMLDecodeError if the text is no TOML.
    """
    fresh = _with_value(text, "is_paused", is_paused)
    if fresh is None or (not resume_at and "resume_at" not in tomllib.loads(fresh)):
        return fresh
    return _with_value(fresh, "resume_at", resume_at)


def _with_value(text: str, name: str, value: bool | str) -> str | None:
    table = tomllib.loads(text)
    wanted: Mapping[str, Any] = {**table, name: value}
    if table == wanted:
        return text
    written = f'"{value}"' if isinstance(value, str) else str(value).lower()
    return next((one for one in _tries(text, name, written) if _says(one, wanted)), None)


def _says(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


def _tries(text: str, name: str, written: str) -> Iterator[str]:
    """The text with the value at each place where it may belong; most of them are wrong."""
    lines = text.splitlines(keepends=True)
    line = re.compile(rf"""([ \t]*["']?{name}["']?[ \t]*=[ \t]*){_VALUE}""")
    for number, one in enumerate(lines):
        if found := line.fullmatch(one):
            yield "".join([*lines[:number], found[1], written, found[3], *lines[number + 1 :]])
    for number in _gaps(lines):
        end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
        yield "".join([*lines[:number], f"{name} = {written}{end}", *lines[number:]])


def _gaps(lines: list[str]) -> Iterator[int]:
    """Where a line may be put in: below the pause, below what heads the file, or before all."""
    for number, line in enumerate(lines):
        if line.lstrip().startswith("is_paused") and line.endswith("\n"):
            yield number + 1
    heading = next((at for at, line in enumerate(lines) if not line.startswith("#")), 0)
    if heading < len(lines) and not lines[heading].strip():
        yield heading + 1
    yield 0
