"""Looks at a stored file of a model as the rules of `protocol.model_rules` want it."""

import io
from collections.abc import Callable
from typing import BinaryIO, cast

from terafleet.control.ports import ObjectMissing
from terafleet.protocol.manifest import ManifestFile, object_name
from terafleet.protocol.model_rules import content_fault

READ_BYTES_MAX = 64 * 1024

ReadNow = Callable[[str, int, int], bytes]
"""`Objects.read_now`: name, offset and length; it may be called in a thread."""


def file_fault(file: ManifestFile, read_now: ReadNow) -> str | None:
    """Why a stored file is not taken, in words, or None. Blocks: for a thread."""
    body = cast(BinaryIO, io.BufferedReader(_ObjectReader(file, read_now), READ_BYTES_MAX))
    fault = content_fault(body, file)
    return fault and f"{file.name}: {fault}"


class _ObjectReader(io.RawIOBase):
    """A stored object as a file that is read from any place."""

    def __init__(self, file: ManifestFile, read_now: ReadNow) -> None:
        super().__init__()
        self._name = object_name(file)
        self._size_bytes = file.size_bytes
        self._read_now = read_now
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}
        self._position = max(0, begin[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), READ_BYTES_MAX)
        try:
            body = self._read_now(self._name, self._position, count)
        except ObjectMissing as error:
            raise OSError("the file is gone") from error
        buffer[: len(body)] = body
        self._position += len(body)
        return len(body)
