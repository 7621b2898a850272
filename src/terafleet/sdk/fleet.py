"""What customers ask of a fleet: files, batches, models, chats; in the forms of the OpenAI API."""

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from terafleet.core.work import BATCH_ENDS
from terafleet.protocol.live_answers import ChatChunk, Completion
from terafleet.protocol.openai import (
    BATCH,
    BATCHES_PATH,
    CHAT_COMPLETIONS,
    COMPLETIONS,
    FILES_PATH,
    MODELS_PATH,
    BatchCreate,
    BatchList,
    BatchObject,
    FileDeleted,
    FileObject,
    ModelList,
)
from terafleet.sdk.chat import EXPLAIN, USUAL, Message, Said, Sampling, body_of, said_in
from terafleet.sdk.errors import PASSING, StillWaiting
from terafleet.sdk.gateway import FileForm, Gateway, segment
from terafleet.sdk.local_files import Progress, appearing, ignore_progress

WINDOW = "24h"
LIST_MAX = 20
POLL_S_MIN, POLL_S_MAX, POLL_GROWTH = 0.25, 5.0, 1.5
PATIENCE_S = 120.0
"""How long `wait` goes on asking a control plane that gives no answer: it may be restarting."""

Changed = Callable[[BatchObject], None]


def ignore_change(_: BatchObject) -> None:
    """Tell nobody."""


def has_ended(batch: BatchObject) -> bool:
    """Whether nothing more happens to a batch."""
    return batch.status in BATCH_ENDS


class FleetClient:
    """A fleet, as a customer sees it; a context manager that closes its connections.

    Every method raises TerafleetError.
    """

    def __init__(self, url: str, api_key: str, sleep: Callable[[float], None] = time.sleep) -> None:
        """`url` is the control plane's root, `api_key` a key's secret; `sleep` takes seconds."""
        self._gateway = Gateway(url, api_key)
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the control plane is."""
        return self._gateway.url

    def close(self) -> None:
        """Close the connections."""
        self._gateway.close()

    def models(self) -> ModelList:
        """The models that requests can name."""
        return self._gateway.get(MODELS_PATH, ModelList)

    def chat(
        self, model: str, messages: Sequence[Message], sampling: Sampling = USUAL
    ) -> Generator[Said, None, None]:
        """Go on with a chat: what comes while it is answered, and at last `Ended`.

        To stop the answer, `close` what is returned; then the car stops too.
        """
        body = body_of(model, messages, sampling)
        with self._gateway.told(CHAT_COMPLETIONS, body, EXPLAIN) as chunks:
            yield from said_in(chunks, ChatChunk, self.url)

    def complete(
        self, model: str, prompt: str, sampling: Sampling = USUAL
    ) -> Generator[Said, None, None]:
        """Go on with a text as it stands; else like `chat`."""
        body = body_of(model, prompt, sampling)
        with self._gateway.told(COMPLETIONS, body, EXPLAIN) as chunks:
            yield from said_in(chunks, Completion, self.url)

    def upload_file(self, path: Path, progress: Progress = ignore_progress) -> FileObject:
        """Send the input file of a batch. Raises OSError too."""
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            form = FileForm.of(file, path.name, {"purpose": BATCH})
            return self._gateway.post_form(FILES_PATH, form, size_bytes, FileObject, progress)

    def file(self, file_id: str) -> FileObject:
        """One file."""
        return self._gateway.get(f"{FILES_PATH}/{segment(file_id)}", FileObject)

    def delete_file(self, file_id: str) -> FileDeleted:
        """Delete a file; batches that were made from it go on."""
        return self._gateway.delete(f"{FILES_PATH}/{segment(file_id)}", FileDeleted)

    def download_file(
        self, file_id: str, into: BinaryIO, progress: Progress = ignore_progress
    ) -> int:
        """Write the bytes of a file; how many there were. Raises OSError too."""
        address = f"{FILES_PATH}/{segment(file_id)}/content"
        done_bytes = 0
        with self._gateway.streamed(address) as (size_bytes, chunks):
            for chunk in chunks:
                into.write(chunk)
                done_bytes += len(chunk)
                progress(done_bytes, size_bytes)
        return done_bytes

    def save_file(self, file_id: str, path: Path, progress: Progress = ignore_progress) -> int:
        """Write the bytes of a file to `path`, which appears when all are there; their number.

        Raises OSError too.
        """
        with appearing(path) as file:
            return self.download_file(file_id, file, progress)

    def create_batch(
        self,
        input_file_id: str,
        endpoint: str,
        window: str = WINDOW,
        metadata: dict[str, str] | None = None,
    ) -> BatchObject:
        """Make a batch of a file. `window` is the time for it: `24h`, or `<n>m`, `<n>h`.

        Raises NotAdmitted when the fleet can't do it, with the reason.
        """
        wanted = BatchCreate(input_file_id, endpoint, window, metadata)
        return self._gateway.post(BATCHES_PATH, wanted, BatchObject)

    def batch(self, batch_id: str) -> BatchObject:
        """One batch."""
        return self._gateway.get(f"{BATCHES_PATH}/{segment(batch_id)}", BatchObject)

    def batches(self, after: str = "", limit: int = LIST_MAX) -> BatchList:
        """Up to `limit` batches, newest first, behind the batch `after`."""
        query: dict[str, str | int] = {"limit": limit}
        if after:
            query["after"] = after
        return self._gateway.get(BATCHES_PATH, BatchList, query)

    def cancel_batch(self, batch_id: str) -> BatchObject:
        """Do no more of a batch; what is done is still written."""
        return self._gateway.post(f"{BATCHES_PATH}/{segment(batch_id)}/cancel", None, BatchObject)

    def wait(
        self, batch_id: str, changed: Changed = ignore_change, timeout_s: float | None = None
    ) -> BatchObject:
        """Wait for the end of a batch; `changed` is called at first and at each change of it.

        A control plane that is away for less than `PATIENCE_S` does no harm. Raises StillWaiting
        after `timeout_s`.
        """
        # What does not answer the first time is a wrong address rather than a restart.
        seen = self.batch(batch_id)
        changed(seen)
        waited_s = silent_s = 0.0
        poll_s = POLL_S_MIN
        while not has_ended(seen):
            if timeout_s is not None and waited_s >= timeout_s:
                message = f"{batch_id} has not ended within {timeout_s:g} s; it goes on."
                raise StillWaiting("still_waiting", message)
            self._sleep(poll_s)
            waited_s += poll_s
            try:
                batch = self.batch(batch_id)
            except PASSING:
                silent_s += poll_s
                if silent_s >= PATIENCE_S:
                    raise
                batch = seen
            else:
                silent_s = 0.0
            if batch == seen:
                poll_s = min(POLL_S_MAX, poll_s * POLL_GROWTH)
            else:
                poll_s, seen = POLL_S_MIN, batch
                changed(batch)
        return seen
