"""Objects in memory: for tests and simulations, with a capacity that can be full."""

import hashlib
from collections.abc import AsyncIterator

from terafleet.control.object_names import check_folder_name, check_object_name
from terafleet.control.ports import ObjectInfo, ObjectMissing, ObjectsFull

PIECE_BYTES = 1024 * 1024


class MemoryObjects:
    """Keeps the promises of `Objects` as long as the process lives."""

    def __init__(self, bytes_max: int | None = None) -> None:
        """`bytes_max` is the capacity; None has no limit."""
        self._bytes_max = bytes_max
        self._objects: dict[str, bytes] = {}
        self._digests: dict[str, str] = {}

    async def write(self, name: str, chunks: AsyncIterator[bytes]) -> ObjectInfo:
        """Store. Raises ObjectsFull; then, or on any other fault, nothing is kept."""
        check_object_name(name)
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            self._check_room(len(body))
        self._check_room(len(body))
        self._objects[name] = bytes(body)
        self._digests[name] = hashlib.sha256(body).hexdigest()
        return ObjectInfo(name, len(body), self._digests[name])

    async def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """Some bytes. Raises ObjectMissing."""
        return self.read_now(name, offset, length)

    async def stream(self, name: str, offset: int = 0, length: int = -1) -> AsyncIterator[bytes]:
        """Bytes in pieces of a mebibyte. Raises ObjectMissing at the first piece."""
        body = self.read_now(name, offset, length)
        for begin in range(0, len(body), PIECE_BYTES):
            yield body[begin : begin + PIECE_BYTES]

    def read_now(self, name: str, offset: int, length: int) -> bytes:
        """Some bytes without waiting. Raises ObjectMissing."""
        check_object_name(name)
        body = self._objects.get(name)
        if body is None:
            raise ObjectMissing(name)
        return body[offset:] if length < 0 else body[offset : offset + length]

    async def info(self, name: str) -> ObjectInfo | None:
        """What is stored under a name, or None."""
        check_object_name(name)
        if name not in self._objects:
            return None
        return ObjectInfo(name, len(self._objects[name]), self._digests[name])

    async def delete(self, name: str) -> bool:
        """Remove; whether there was anything."""
        check_object_name(name)
        self._digests.pop(name, None)
        return self._objects.pop(name, None) is not None

    async def delete_folder(self, prefix: str) -> int:
        """Remove all whose names begin so; how many there were."""
        check_folder_name(prefix)
        names = [name for name in self._objects if name.startswith(prefix)]
        for name in names:
            await self.delete(name)
        return len(names)

    def bytes_free(self) -> int | None:
        """Room left, or None without a limit."""
        if self._bytes_max is None:
            return None
        return max(0, self._bytes_max - sum(map(len, self._objects.values())))

    def _check_room(self, size_bytes: int) -> None:
        bytes_free = self.bytes_free()
        if bytes_free is not None and size_bytes > bytes_free:
            raise ObjectsFull(f"no room for {size_bytes} bytes")
