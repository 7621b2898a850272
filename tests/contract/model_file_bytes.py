"""What the tests of model files share: a file that counts, and a check of how a refusal speaks."""

import io

from terafleet.protocol.model_files.refusal import ModelFileReason, ModelFileRefused


class CountingFile(io.BytesIO):
    """A file in memory that counts what is read of it."""

    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.bytes_read += len(part)
        return part


def reason_of(answer: object) -> ModelFileReason:
    """The reason of the refusal that `answer` is; its detail is one short printable line."""
    assert isinstance(answer, ModelFileRefused), answer
    assert answer.detail.isprintable()
    assert len(answer.detail) < 300
    return answer.reason
