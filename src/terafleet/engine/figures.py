"""What an engine has done, for metrics."""

from bisect import bisect_left
from typing import Final

import msgspec

COMMIT_MS_BOUNDS: Final = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0)
"""Where the counts of commits by their duration are parted."""


class Figures(msgspec.Struct):
    """What the engine has done since it began, for metrics. Times in milliseconds.

    `commits_by_ms` counts commits that took up to each of `COMMIT_MS_BOUNDS` and longer than the
    one before it, then those that took longer than all of them.
    """

    groups: int = 0
    events: int = 0
    refused: int = 0
    commits: int = 0
    commits_failed: int = 0
    commit_ms_last: float = 0.0
    commit_ms_total: float = 0.0
    commits_by_ms: list[int] = msgspec.field(
        default_factory=lambda: [0] * (len(COMMIT_MS_BOUNDS) + 1)
    )
    inbox_length: int = 0
    sequence: int = 0
    snapshots: int = 0
    snapshot_pause_ms_last: float = 0.0

    def committed(self, commit_ms: float) -> None:
        """A commit has taken so long."""
        self.commits += 1
        self.commit_ms_last = commit_ms
        self.commit_ms_total += commit_ms
        self.commits_by_ms[bisect_left(COMMIT_MS_BOUNDS, commit_ms)] += 1

    @property
    def commit_ms_mean(self) -> float:
        """Mean duration of a commit."""
        return self.commit_ms_total / self.commits if self.commits else 0.0
