"""Decides from the walls that were checked around a runtime what a car may say of its isolation."""

from enum import StrEnum

import msgspec


class SandboxReport(msgspec.Struct, frozen=True):
    """Which walls were checked to hold around the runtime; nothing else is claimed.

    The runtime: reaches no network; ends when the agent ends; has no privilege and can't get
    one; gets no more memory than lent; writes no file. It sees no process but its own; sees no
    file but its interpreter, its libraries and the models; leaves no core dump; runs as a user
    that nothing else on the computer runs as; can't start threads without end; and computes only
    when nobody else on the computer wants to.
    """

    has_no_network: bool
    dies_with_agent: bool
    cannot_gain_privileges: bool
    has_limited_memory: bool
    filesystem_read_only: bool
    sees_no_other_process: bool = False
    sees_only_its_files: bool = False
    leaves_no_memory_image: bool = False
    has_own_identity: bool = False
    has_limited_threads: bool = False
    has_idle_priority: bool = False


class IsolationLevel(StrEnum):
    """What stands between a model and the car, from nothing to the most that is built."""

    NONE = "none"
    PROCESS = "process"
    NAMESPACED = "namespaced"
    CONFINED = "confined"


WALLS_OF_LEVEL: dict[IsolationLevel, tuple[str, ...]] = {
    IsolationLevel.NONE: (),
    IsolationLevel.PROCESS: (
        "has_no_network",
        "dies_with_agent",
        "cannot_gain_privileges",
        "has_limited_memory",
    ),
    IsolationLevel.NAMESPACED: (
        "filesystem_read_only",
        "sees_no_other_process",
        "sees_only_its_files",
        "leaves_no_memory_image",
    ),
    IsolationLevel.CONFINED: ("has_own_identity", "has_limited_threads"),
}
"""What each level asks for beside all that the levels below it ask for.

The walls of the highest are those that trust research asks of a worker for foreign models:
namespaces, no capability, a read-only view, a filter of system calls, a user a job, bounds.
"""


def isolation_level(report: SandboxReport | None) -> IsolationLevel:
    """The highest level whose walls all hold, with those of the levels below; None is no runtime.

    Priority is no wall: it serves the owner and changes no level.
    """
    reached = IsolationLevel.NONE
    for level in IsolationLevel:
        if report is None or missing_walls(report, level):
            break
        reached = level
    return reached


def missing_walls(report: SandboxReport, level: IsolationLevel) -> tuple[str, ...]:
    """The walls that a level asks for itself and that do not hold, by the report's names."""
    return tuple(name for name in WALLS_OF_LEVEL[level] if not getattr(report, name))
