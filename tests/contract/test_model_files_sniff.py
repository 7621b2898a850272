"""The format of a model file is told by its content, and a person is told what to do instead."""

import gzip
import io
import pickle  # noqa: TID251  The files that must be refused are made with it, none is loaded.
import tarfile
import zipfile
import zlib
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.numpy import save

from terafleet.protocol.model_files.gguf import check_gguf
from terafleet.protocol.model_files.onnx import check_onnx
from terafleet.protocol.model_files.refusal import ModelFileReason, ModelFileRefused
from terafleet.protocol.model_files.safetensors import check_safetensors
from terafleet.protocol.model_files.sniff import HEAD_BYTES, TAIL_BYTES, ModelFormat, sniff
from tests.contract.model_file_bytes import CountingFile, reason_of

Reason = ModelFileReason


def sniffed(content: bytes) -> ModelFormat | ModelFileRefused:
    return sniff(io.BytesIO(content), len(content))


def onnx_bytes(weight_bytes: int = 8) -> bytes:
    found = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [helper.make_tensor("w", TensorProto.UINT8, [weight_bytes], bytes(weight_bytes), True)],
    )
    content: bytes = helper.make_model(found, ir_version=10).SerializeToString()
    return content


def gguf_bytes(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("a", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_the_formats_are_told_by_content(tmp_path: Path) -> None:
    assert sniffed(gguf_bytes(tmp_path / "model.bin")) is ModelFormat.GGUF
    assert sniffed(save({"a": np.ones(3, np.float32)})) is ModelFormat.SAFETENSORS
    assert sniffed(onnx_bytes()) is ModelFormat.ONNX


def test_little_is_read_of_a_large_file() -> None:
    file = CountingFile(onnx_bytes(20_000_000))
    assert sniff(file, len(file.getvalue())) is ModelFormat.ONNX
    assert file.bytes_read < 4 * (HEAD_BYTES + TAIL_BYTES)


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x8B1F, 0x0178, 0x04034B50])
def test_the_length_of_a_safetensors_header_is_not_taken_for_a_mark(length: int) -> None:
    content = length.to_bytes(8, "little") + b'{"a":{"dtype":"U8","shape":[1]'
    assert sniffed(content) is ModelFormat.SAFETENSORS


def test_a_cut_file_is_still_told_so_that_its_check_says_what_is_wrong() -> None:
    content = onnx_bytes(1000)[:-500]
    assert sniffed(content) is ModelFormat.ONNX
    assert reason_of(check_onnx(io.BytesIO(content), len(content))) is Reason.TRUNCATED


def test_a_gguf_file_with_an_archive_behind_it_is_refused_by_its_check(tmp_path: Path) -> None:
    content = gguf_bytes(tmp_path / "model.bin") + zipped("x/data.pkl")
    assert sniffed(content) is ModelFormat.GGUF
    assert reason_of(check_gguf(io.BytesIO(content), len(content))) is Reason.TRAILING_DATA


def checked(model_format: ModelFormat, content: bytes) -> object:
    """The answer of the parser of this format."""
    file = io.BytesIO(content)
    match model_format:
        case ModelFormat.GGUF:
            return check_gguf(file, len(content))
        case ModelFormat.ONNX:
            return check_onnx(file, len(content))
        case ModelFormat.SAFETENSORS:
            return check_safetensors(file, len(content))


class Exploit:
    """What a hostile pickle holds: a call to make when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("called",)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pkl"))
    return file.getvalue()


def numpy_file(values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps({"a": 1}, protocol=2)
JOBLIB = pickle.dumps({"joblib.numpy_pickle": 1}, protocol=4)
OBJECTS = np.array([None, "x"], dtype=object)
REFUSED: dict[str, tuple[bytes, ModelFileReason, str]] = {
    "nothing": (b"", Reason.TRUNCATED, "empty"),
    "pickle 0": (pickle.dumps(Exploit(), protocol=0), Reason.PICKLE, "safetensors"),
    "pickle 0 of a dict": (pickle.dumps({"a": 1}, protocol=0), Reason.PICKLE, "safetensors"),
    "pickle 1": (pickle.dumps(["a", 1], protocol=1), Reason.PICKLE, "safetensors"),
    "pickle 1 of a dict": (pickle.dumps({"a": 1}, protocol=1), Reason.PICKLE, "safetensors"),
    **{
        f"pickle {protocol}": (
            pickle.dumps(Exploit(), protocol=protocol),
            Reason.PICKLE,
            "safetensors",
        )
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "old torch": (OLD_TORCH, Reason.PICKLE, "old PyTorch"),
    "torch": (zipped("archive/data.pkl", "archive/version"), Reason.PICKLE, "PyTorch"),
    "torch, pickle last": (
        zipped(*(f"archive/data/{number}" for number in range(900)), "archive/data.pkl"),
        Reason.PICKLE,
        "PyTorch",
    ),
    "joblib": (JOBLIB, Reason.PICKLE, "joblib"),
    "joblib, compressed": (zlib.compress(JOBLIB), Reason.UNSUPPORTED_FORMAT, "decompress"),
    "gzip": (gzip.compress(b"x"), Reason.UNSUPPORTED_FORMAT, "decompress"),
    "numpy objects": (numpy_file(OBJECTS), Reason.PICKLE, "NumPy"),
    "numpy": (numpy_file(np.ones(3)), Reason.UNSUPPORTED_FORMAT, "safetensors"),
    "numpy archive": (zipped("a.npy"), Reason.UNSUPPORTED_FORMAT, "safetensors"),
    "keras": (
        zipped("config.json", "model.weights.h5"),
        Reason.UNSUPPORTED_FORMAT,
        "export the model to ONNX",
    ),
    "another archive": (zipped("readme"), Reason.UNSUPPORTED_FORMAT, "ZIP"),
    "empty archive": (zipped(), Reason.UNSUPPORTED_FORMAT, "ZIP"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), Reason.UNSUPPORTED_FORMAT, "HDF5"),
    "tar": (tarred(), Reason.UNSUPPORTED_FORMAT, "tar"),
    "old ggml": (b"tjgg" + bytes(99), Reason.UNSUPPORTED_FORMAT, "GGUF"),
    "tflite": (bytes(4) + b"TFL3" + bytes(99), Reason.UNSUPPORTED_FORMAT, "ONNX"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        Reason.UNSUPPORTED_FORMAT,
        "git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html><html>", Reason.UNSUPPORTED_FORMAT, "web page"),
    "json": (b'{\n  "weight_map": {}}', Reason.UNSUPPORTED_FORMAT, "JSON"),
    # A TensorFlow SavedModel is a protocol buffer message too, without a graph where ONNX has it.
    "saved model": (b"\x08\x01\x12\x04abcd", Reason.UNKNOWN_FORMAT, "ONNX"),
    "zeros": (bytes(1000), Reason.UNKNOWN_FORMAT, "GGUF, ONNX and safetensors"),
    "text": (b"hello", Reason.UNKNOWN_FORMAT, "export"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_advice(case: str) -> None:
    content, expected, advice = REFUSED[case]
    refusal = sniffed(content)
    assert reason_of(refusal) is expected
    assert isinstance(refusal, ModelFileRefused)
    assert advice in refusal.detail


def test_a_wrong_size_is_refused() -> None:
    assert reason_of(sniff(io.BytesIO(b"GGUF"), 5)) is Reason.SIZE_MISMATCH


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_get_an_answer(content: bytes) -> None:
    assert isinstance(sniffed(content), ModelFormat | ModelFileRefused)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(REFUSED)), st.binary(max_size=40), st.integers(0, 300))
def test_what_is_refused_passes_no_check_however_it_is_changed(
    case: str, patch: bytes, position: int
) -> None:
    content = bytearray(REFUSED[case][0])
    content[position : position + len(patch)] = patch
    answer = sniffed(bytes(content))
    if isinstance(answer, ModelFormat):
        assert isinstance(checked(answer, bytes(content)), ModelFileRefused)
