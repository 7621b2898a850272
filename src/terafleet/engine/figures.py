"""What an engine has done, for metrics."""

import msgspec


class Figures(msgspec.Struct):
    """What the engine has done since it began, for metrics. Times in milliseconds."""

    groups: int = 0
    events: int = 0
    refused: int = 0
    commits: int = 0
    commits_failed: int = 0
    commit_ms_last: float = 0.0
    commit_ms_total: float = 0.0
    inbox_length: int = 0
    sequence: int = 0
    snapshots: int = 0
    snapshot_pause_ms_last: float = 0.0

    @property
    def commit_ms_mean(self) -> float:
        """Mean duration of a commit."""
        return self.commit_ms_total / self.commits if self.commits else 0.0
