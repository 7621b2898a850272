"""Decides whether there is room for new work in the record, with two levels."""

from collections.abc import Callable

from terafleet.engine.ports import Store
from terafleet.engine.settings import EngineSettings


class StorageWatch:
    """Whether the record is full or about to be; says so at each change.

    A failed commit, or less room than `bytes_free_min`, makes it full; it stays so until
    a commit passes and there is room for `bytes_free_enough`.
    """

    def __init__(
        self,
        store: Store,
        settings: EngineSettings,
        changed: Callable[[bool], None],
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin as not full; nothing is read until the first check.

        `failed` is called at each commit that found no room.
        """
        self._store = store
        self._settings = settings
        self._changed = changed
        self._failed = failed
        self._check_next_ms = 0
        self.is_full = False
        self.is_commit_failing = False

    def commit_failed(self) -> None:
        """Note that the record could not grow."""
        self.is_commit_failing = True
        self._set(True)
        self._failed()

    def commit_passed_again(self) -> None:
        """Look at once, now that a commit that had failed went through."""
        self.is_commit_failing = False
        self._check_next_ms = 0

    def check(self, now_ms: int) -> None:
        """Look at the room that is left, at most once an interval."""
        # Room that a commit does not get, such as beyond a quota, is none.
        if self.is_commit_failing or now_ms < self._check_next_ms:
            return
        self._check_next_ms = now_ms + self._settings.check_interval_ms
        bytes_free = self._store.bytes_free()
        if bytes_free is None or bytes_free >= self._settings.bytes_free_enough:
            self._set(False)
        elif bytes_free < self._settings.bytes_free_min:
            self._set(True)

    def _set(self, is_full: bool) -> None:
        if is_full != self.is_full:
            self.is_full = is_full
            self._changed(is_full)
