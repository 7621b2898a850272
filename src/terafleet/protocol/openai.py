"""The subset of the OpenAI API that the gateway keeps: files, batches, their lines, and models.

Times are in seconds since 1970. What goes beyond OpenAI stands in fields named `terafleet`.
"""

import re
from typing import Final, Literal

import msgspec

from terafleet.core.units import MS_PER_HOUR, MS_PER_MINUTE

FILES_PATH = "/v1/files"
BATCHES_PATH = "/v1/batches"
MODELS_PATH = "/v1/models"

EMBEDDINGS: Final = "/v1/embeddings"
COMPLETIONS: Final = "/v1/completions"
CHAT_COMPLETIONS: Final = "/v1/chat/completions"
BATCH_ENDPOINTS = (EMBEDDINGS, COMPLETIONS, CHAT_COMPLETIONS)
"""What the lines of a batch may ask for."""

BATCH, BATCH_OUTPUT = "batch", "batch_output"
"""The purposes of files: what customers send, and what they get."""

METADATA_PAIRS_MAX = 16
METADATA_KEY_MAX = 64
METADATA_VALUE_MAX = 512
CUSTOM_ID_MAX = 512

WINDOW_MS_MIN = MS_PER_MINUTE
WINDOW_MS_MAX = 24 * MS_PER_HOUR

_WINDOW = re.compile(r"([1-9][0-9]{0,3})([mh])")


def window_ms(completion_window: str) -> int | None:
    """The length of a `completion_window`, or None for one that is not kept.

    OpenAI has `24h` only; `<n>m` and `<n>h` from a minute to 24 hours are an extension.
    """
    found = _WINDOW.fullmatch(completion_window)
    if found is None:
        return None
    length_ms = int(found[1]) * (MS_PER_HOUR if found[2] == "h" else MS_PER_MINUTE)
    return length_ms if WINDOW_MS_MIN <= length_ms <= WINDOW_MS_MAX else None


def completion_window(length_ms: int) -> str:
    """The shortest way to write a window of whole minutes."""
    if length_ms % MS_PER_HOUR == 0:
        return f"{length_ms // MS_PER_HOUR}h"
    return f"{length_ms // MS_PER_MINUTE}m"


class FileObject(msgspec.Struct, frozen=True):
    """A file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None


class FileList(msgspec.Struct, frozen=True):
    """A page of files; `last_id` goes into `after` of the next one."""

    data: tuple[FileObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class FileDeleted(msgspec.Struct, frozen=True):
    """A file is deleted."""

    id: str
    deleted: bool = True
    object: Literal["file"] = "file"


class BatchCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask for a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


class BatchError(msgspec.Struct, frozen=True):
    """Why a batch failed; `line` counts from 1 in the input file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct, frozen=True):
    """The errors of a batch."""

    data: tuple[BatchError, ...]
    object: Literal["list"] = "list"


class BatchRequestCounts(msgspec.Struct, frozen=True):
    """How many requests a batch has, and how many of them have ended how."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(msgspec.Struct, frozen=True):
    """A part of the usage; nothing is cached here."""

    cached_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """A part of the usage; no reasoning is told apart here."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True):
    """The tokens of a batch."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()


class BatchProgress(msgspec.Struct, frozen=True):
    """Our extension: why a batch waits, if it does, and how many of its work units have ended."""

    waiting: str | None
    units: int
    units_ended: int


class BatchObject(msgspec.Struct, frozen=True):
    """A batch."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    created_at: int
    request_counts: BatchRequestCounts
    terafleet: BatchProgress
    object: Literal["batch"] = "batch"
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    metadata: dict[str, str] | None = None
    usage: BatchUsage | None = None


class BatchList(msgspec.Struct, frozen=True):
    """A page of batches; `last_id` goes into `after` of the next one."""

    data: tuple[BatchObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class ModelFacts(msgspec.Struct, frozen=True):
    """Our extension: the exact model behind a name, and what it can be asked for."""

    model_id: str
    endpoints: tuple[str, ...]


class ModelObject(msgspec.Struct, frozen=True):
    """A model; `id` is the name that requests call it by."""

    id: str
    created: int
    terafleet: ModelFacts
    owned_by: str = "terafleet"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    """All models."""

    data: tuple[ModelObject, ...]
    object: Literal["list"] = "list"


class BatchLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a batch's input file."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: Literal["POST"] = "POST"


class BatchResponse(msgspec.Struct, frozen=True):
    """What a request was answered; `body` is OpenAI's body for the endpoint, or its error form."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class RequestError(msgspec.Struct, frozen=True):
    """Why a request was not answered; `line` counts from 1 in the input file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchResultLine(msgspec.Struct, frozen=True):
    """A line of an output or error file; `custom_id` is None where the input line had none."""

    id: str
    custom_id: str | None
    response: BatchResponse | None
    error: RequestError | None
