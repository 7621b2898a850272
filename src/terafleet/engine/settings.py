"""The numbers that bound the engine: groups, waiting, storage, snapshots."""

import os

import msgspec

MIB = 1024 * 1024
DAY_MS = 86_400_000


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one engine; the defaults are those of a shard.

    A group is what the machine handles at once. What no effect waits for is written within
    `commit_gather_ms`. Else the machine waits `commit_patience_ms` for a commit, then it goes on
    deciding, until `groups_waiting_max` groups wait to be written.
    `bytes_free_min` and `bytes_free_enough` are the two levels of free storage between which the
    answer does not change.
    """

    group_max: int = 1024
    group_bytes_max: int = 8 * MIB
    inbox_max: int = 200_000
    inbox_bytes_max: int = 256 * MIB
    wake_interval_min_ms: int = 10
    check_interval_ms: int = 1000
    commit_patience_ms: int = 20
    commit_gather_ms: int = 10
    groups_waiting_max: int = 1_000
    retry_ms_min: int = 200
    retry_ms_max: int = 5000
    bytes_free_min: int = 512 * MIB
    bytes_free_enough: int = 1024 * MIB
    snapshot_events: int = 500_000
    snapshot_interval_ms: int = 60_000
    snapshot_timeout_ms: int = 600_000
    journal_keep_ms: int = 14 * DAY_MS
    commits_in_thread: bool = True
    snapshots_by_fork: bool = hasattr(os, "fork")

    def __post_init__(self) -> None:
        """Assert what no setting may break."""
        assert self.group_max > 0
        assert self.inbox_max > 0
        assert self.wake_interval_min_ms > 0
        assert self.check_interval_ms > 0
        assert 0 < self.retry_ms_min <= self.retry_ms_max
        assert self.bytes_free_min <= self.bytes_free_enough
        assert self.snapshot_events > 0
