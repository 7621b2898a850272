"""Decides by content, never by name, which format a model file has.

What is not taken is refused with a sentence that says what to do instead. A format that is
recognised here is not yet checked.
"""

import re
from enum import StrEnum
from typing import BinaryIO

import msgspec

from terafleet.protocol.model_files import gguf
from terafleet.protocol.model_files.onnx import looks_like_onnx
from terafleet.protocol.model_files.reader import BoundedReader
from terafleet.protocol.model_files.refusal import ModelFileReason, ModelFileRefused, ParseRefused
from terafleet.protocol.model_files.safetensors import FORMAT_HEADER_BYTES_MAX, LENGTH_BYTES

HEAD_BYTES = 4096
# The table of contents of a ZIP archive stands at its end.
TAIL_BYTES = 64 * 1024


class ModelFormat(StrEnum):
    """The formats of model files that are taken."""

    GGUF = "gguf"
    ONNX = "onnx"
    SAFETENSORS = "safetensors"


class _Mark(msgspec.Struct, frozen=True):
    """Bytes that give away a format which is not taken: they stand at `offset` of the file."""

    mark: bytes
    detail: str
    offset: int = 0


_PICKLE_ADVICE = (
    "which can run any code when it is loaded; convert the weights to safetensors"
    " (safetensors.torch.save_file) and add those"
)
_COMPRESSED = "a compressed file; decompress it and add the model file inside"
_OLD_GGML = "a GGML file from before GGUF; get the model as GGUF"
_MARKS = (
    _Mark(b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes; export the model to ONNX"),
    _Mark(b"ustar", "a tar archive; add the model file inside", offset=257),
    _Mark(b"\x1f\x8b", _COMPRESSED),
    _Mark(b"BZh", _COMPRESSED),
    _Mark(b"\xfd7zXZ", _COMPRESSED),
    _Mark(b"7z\xbc\xaf\x27\x1c", _COMPRESSED),
    _Mark(b"\x28\xb5\x2f\xfd", _COMPRESSED),
    _Mark(b"\x04\x22\x4d\x18", _COMPRESSED),
    _Mark(b"\x78\x01", _COMPRESSED),
    _Mark(b"\x78\x9c", _COMPRESSED),
    _Mark(b"\x78\xda", _COMPRESSED),
    _Mark(b"lmgg", _OLD_GGML),
    _Mark(b"fmgg", _OLD_GGML),
    _Mark(b"tjgg", _OLD_GGML),
    _Mark(b"TFL3", "a LiteRT (TFLite) model; export the model to ONNX", offset=4),
    _Mark(b"ET12", "an ExecuTorch program; export the model to ONNX", offset=4),
    _Mark(b"ORTM", "a model in ORT format; add the ONNX file that it was made of", offset=4),
    _Mark(b"\x93NUMPY", "a NumPy array; write the arrays of the model as safetensors"),
    _Mark(b"version https://git-lfs", "a Git LFS pointer; fetch the model with: git lfs pull"),
)
_ZIP_MARKS = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_CONTENTS = (
    (b".npy", "a NumPy archive; write the arrays of the model as safetensors"),
    (b".weights.h5", "a Keras model; export the model to ONNX"),
)
_NUMPY_OBJECTS = re.compile(rb"\x93NUMPY.{0,64}'descr': *'\|?O'", re.DOTALL)
# What torch.save wrote before it wrote archives begins with this number, pickled.
_OLD_TORCH_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
# From protocol 2 on a pickle begins with a mark and its protocol; before, only its first
# instructions show it: an imported name, or an empty container.
_PICKLE_MARKED = re.compile(rb"\x80[\x02-\x05]")
_PICKLE_UNMARKED = re.compile(rb"c[\w.]+\n[\w.]+\n|\([cdilt(]|[\]})]q")
_PICKLE_STOP = b"."
_WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_JSON = re.compile(rb"\s*[\[{]\s*[\"\[{\]}]")


def sniff(file: BinaryIO, size_bytes: int) -> ModelFormat | ModelFileRefused:
    """The format of `file`, of `size_bytes` bytes, or why it is none that is taken.

    Raises nothing for any content.
    """
    try:
        return _format(file, size_bytes)
    except ParseRefused as error:
        return error.refusal


def _format(file: BinaryIO, size_bytes: int) -> ModelFormat:
    reader = BoundedReader(file, size_bytes)
    if size_bytes == 0:
        raise ParseRefused(ModelFileReason.TRUNCATED, "the file is empty")
    head = reader.take(min(size_bytes, HEAD_BYTES))
    if head.startswith(gguf.MAGIC):
        return ModelFormat.GGUF
    # The length that it begins with can look like another format's mark, so it comes first.
    if _is_safetensors(head):
        return ModelFormat.SAFETENSORS
    reader.skip(max(0, size_bytes - TAIL_BYTES - len(head)))
    tail = reader.take(size_bytes - reader.position) or head
    _refuse_pickle(head, tail)
    _refuse_archive(head, tail)
    for mark in _MARKS:
        if head.startswith(mark.mark, mark.offset):
            raise _unsupported(mark.detail)
    if looks_like_onnx(BoundedReader(file, size_bytes)):
        return ModelFormat.ONNX
    if _WEB_PAGE.match(head):
        raise _unsupported("a web page, perhaps an error; look at where it was downloaded from")
    if _JSON.match(head):
        raise _unsupported("JSON, perhaps a configuration or an index; add the file of the weights")
    detail = "this is none of the formats GGUF, ONNX and safetensors; export the model to one"
    raise ParseRefused(ModelFileReason.UNKNOWN_FORMAT, detail)


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    return head.startswith(b"{", LENGTH_BYTES) and length <= FORMAT_HEADER_BYTES_MAX


def _refuse_pickle(head: bytes, tail: bytes) -> None:
    is_unmarked = _PICKLE_UNMARKED.match(head) and tail.endswith(_PICKLE_STOP)
    if head.startswith(_OLD_TORCH_MAGIC):
        what = "an old PyTorch checkpoint, a pickle"
    elif head.startswith(_ZIP_MARKS) and (b".pkl" in head or b".pkl" in tail):
        what = "a PyTorch checkpoint with a pickle inside"
    elif _NUMPY_OBJECTS.match(head):
        what = "a NumPy array of objects, a pickle"
    elif _PICKLE_MARKED.match(head) and (b"joblib" in head or b"sklearn" in head):
        detail = "this is a pickle written by joblib, which can run any code; export it to ONNX"
        raise ParseRefused(ModelFileReason.PICKLE, detail)
    elif _PICKLE_MARKED.match(head) or is_unmarked:
        what = "a pickle"
    else:
        return
    raise ParseRefused(ModelFileReason.PICKLE, f"this is {what}, {_PICKLE_ADVICE}")


def _refuse_archive(head: bytes, tail: bytes) -> None:
    if not head.startswith(_ZIP_MARKS):
        return
    for name, detail in _ZIP_CONTENTS:
        if name in head or name in tail:
            raise _unsupported(detail)
    raise _unsupported("a ZIP archive; add the model file inside")


def _unsupported(detail: str) -> ParseRefused:
    return ParseRefused(ModelFileReason.UNSUPPORTED_FORMAT, f"this is {detail}")
