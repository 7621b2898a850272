"""The GGUF parser takes what the reference library writes and refuses everything crooked."""

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terafleet.protocol.model_files import gguf as ours
from terafleet.protocol.model_files.gguf import GgufHeader, GgufPooling, check_gguf
from terafleet.protocol.model_files.reader import WINDOW_BYTES
from terafleet.protocol.model_files.refusal import ModelFileReason, ModelFileRefused
from tests.contract.model_file_bytes import CountingFile, reason_of

UINT8, INT32, UINT32, BOOL, STRING, ARRAY, UINT64 = 0, 5, 4, 7, 8, 9, 10
F32, Q4_0 = 0, 2
STORIES = Path(__file__).resolve().parents[2].parent / "shared/models/stories260k.gguf"

Entry = tuple[str, int, bytes]
TensorEntry = tuple[str, list[int], int, int]


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw)) + raw


def array(element_type: int, count: int, elements: bytes = b"") -> bytes:
    return u32(element_type) + u64(count) + elements


ARCHITECTURE: Entry = ("general.architecture", STRING, string("llama"))
TENSOR: TensorEntry = ("a", [8], F32, 0)


def header(entries: list[Entry], tensors: list[TensorEntry], version: int = 3) -> bytes:
    parts = [b"GGUF", u32(version), u64(len(tensors)), u64(len(entries))]
    for key, value_type, value in entries:
        parts += [string(key), u32(value_type), value]
    for name, dimensions, tensor_type, offset in tensors:
        parts += [string(name), u32(len(dimensions)), *map(u64, dimensions)]
        parts += [u32(tensor_type), u64(offset)]
    return b"".join(parts)


def model(
    *entries: Entry,
    tensors: list[TensorEntry] | None = None,
    data_bytes: int = 32,
    alignment: int = 32,
) -> bytes:
    head = header([ARCHITECTURE, *entries], [TENSOR] if tensors is None else tensors)
    return head + bytes(-len(head) % alignment) + bytes(data_bytes)


def check(content: bytes) -> GgufHeader | ModelFileRefused:
    return check_gguf(io.BytesIO(content), len(content))


def reason(content: bytes) -> ModelFileReason:
    return reason_of(check(content))


def written(path: Path, tensors: dict[str, np.ndarray[Any, Any]], alignment: int = 32) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_name("tiny")
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(3)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list(["<s>", "é", "\u4e2d"])
    writer.add_token_scores([0.0, -1.0, -2.0])
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "token_embd.weight": np.ones((3, 64), np.float32),
        "blk.0.attn_q.weight": np.ones((5, 7), np.float16),
        "output_norm.weight": np.ones(1, np.float32),
    }
    return written(tmp_path_factory.mktemp("gguf") / "valid.gguf", tensors)


def test_a_file_of_the_reference_library_is_taken_with_its_figures(valid: bytes) -> None:
    assert check(valid) == GgufHeader(
        version=3,
        architecture="llama",
        name="tiny",
        context_length=2048,
        embedding_length=64,
        block_count=3,
        vocabulary_size=3,
        has_chat_template=True,
        pooling=GgufPooling.CLASSIFIER,
        alignment=32,
        tensor_count=3,
        tensor_bytes=3 * 64 * 4 + 5 * 7 * 2 + 4,
        parameters=3 * 64 + 5 * 7 + 1,
    )


def test_only_the_header_is_read() -> None:
    data_bytes = 10_000_000
    content = model(tensors=[("a", [data_bytes // 4], F32, 0)], data_bytes=data_bytes)
    file = CountingFile(content)
    assert isinstance(check_gguf(file, len(content)), GgufHeader)
    assert file.bytes_read <= WINDOW_BYTES


def test_the_real_model_is_taken() -> None:
    if not STORIES.exists():
        pytest.skip("shared/models/stories260k.gguf is not here")
    with STORIES.open("rb") as file:
        found = check_gguf(file, STORIES.stat().st_size)
    assert isinstance(found, GgufHeader)
    assert (found.architecture, found.vocabulary_size, found.context_length) == ("llama", 512, 512)
    assert (found.block_count, found.embedding_length) == (5, 64)
    assert found.tensor_bytes == 4 * found.parameters


@pytest.mark.parametrize("tensor_type", list(GGMLQuantizationType), ids=lambda t: t.name)
def test_every_type_of_the_reference_library_is_taken(
    tensor_type: GGMLQuantizationType, tmp_path: Path
) -> None:
    elements, size_bytes = GGML_QUANT_SIZES[tensor_type]
    path = tmp_path / "typed.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    rows = np.zeros((3, 2 * size_bytes), np.uint8)
    writer.add_tensor("weight", rows, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = check(path.read_bytes())
    assert isinstance(found, GgufHeader)
    assert (found.parameters, found.tensor_bytes) == (3 * 2 * elements, 3 * 2 * size_bytes)


def test_the_table_of_types_is_that_of_the_reference_library() -> None:
    theirs = {int(number): sizes for number, sizes in GGML_QUANT_SIZES.items()}
    assert ours.TENSOR_TYPES.items() <= theirs.items()


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_alignments_are_kept(alignment: int, tmp_path: Path) -> None:
    tensors = {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)}
    found = check(written(tmp_path / "aligned.gguf", tensors, alignment))
    assert isinstance(found, GgufHeader)
    assert found.alignment == alignment


def test_version_2_is_taken(valid: bytes) -> None:
    found = check(valid[:4] + u32(2) + valid[8:])
    assert isinstance(found, GgufHeader)
    assert found.version == 2


def test_a_last_tensor_needs_no_padding() -> None:
    tensors: list[TensorEntry] = [("a", [3], F32, 0), ("b", [3], F32, 32)]
    assert isinstance(check(model(tensors=tensors, data_bytes=44)), GgufHeader)
    assert isinstance(check(model(tensors=tensors, data_bytes=64)), GgufHeader)


def test_absent_figures_are_none_and_the_key_tells_the_vocabulary() -> None:
    found = check(model())
    assert isinstance(found, GgufHeader)
    absent = (found.name, found.context_length, found.vocabulary_size, found.pooling)
    assert absent == (None, None, None, None)
    assert not found.has_chat_template
    with_size = check(model(("llama.vocab_size", UINT32, u32(77))))
    assert isinstance(with_size, GgufHeader)
    assert with_size.vocabulary_size == 77


def test_a_name_that_is_not_printable_is_not_shown() -> None:
    found = check(model(("general.name", STRING, string("tiny\x1b[2J"))))
    assert isinstance(found, GgufHeader)
    assert found.name is None


def test_a_large_vocabulary_with_bytes_that_are_no_text_is_taken() -> None:
    tokens = b"".join(string(b"\xff%d" % number) for number in range(262_144))
    merges = b"".join(string(b"%d %d" % (number, number)) for number in range(514_906))
    content = model(
        ("tokenizer.ggml.tokens", ARRAY, array(STRING, 262_144, tokens)),
        ("tokenizer.ggml.merges", ARRAY, array(STRING, 514_906, merges)),
        ("tokenizer.ggml.token_type", ARRAY, array(INT32, 262_144, bytes(4 * 262_144))),
    )
    file = CountingFile(content)
    found = check_gguf(file, len(content))
    assert isinstance(found, GgufHeader)
    assert found.vocabulary_size == 262_144
    assert file.bytes_read <= len(content)


LONG = "x" * 70
Reason = ModelFileReason
REFUSED: dict[str, tuple[bytes, ModelFileReason]] = {
    "empty": (b"", Reason.TRUNCATED),
    "only magic": (b"GGUF", Reason.TRUNCATED),
    "other magic": (b"GGML" + bytes(60), Reason.BAD_MAGIC),
    "version 1": (header([ARCHITECTURE], [TENSOR], 1), Reason.UNSUPPORTED_VERSION),
    "version 4": (header([ARCHITECTURE], [TENSOR], 4), Reason.UNSUPPORTED_VERSION),
    "big-endian": (header([ARCHITECTURE], [TENSOR], 3 << 24), Reason.UNSUPPORTED_VERSION),
    "many tensors": (b"GGUF" + u32(3) + u64(65_537) + u64(0) + bytes(99), Reason.ABSURD_HEADER),
    "many fields": (b"GGUF" + u32(3) + u64(1) + u64(4097) + bytes(99), Reason.ABSURD_HEADER),
    "counts of 64 bits": (b"GGUF" + u32(3) + u64(2**64 - 1) * 2 + bytes(9), Reason.ABSURD_HEADER),
    "no tensors": (model(tensors=[], data_bytes=0), Reason.EMPTY_MODEL),
    "no architecture": (header([], [TENSOR]) + bytes(64), Reason.MISSING_FIELD),
    "architecture is a path": (
        header([("general.architecture", STRING, string("../x"))], [TENSOR]) + bytes(64),
        Reason.UNSAFE_NAME,
    ),
    "architecture is a number": (
        header([("general.architecture", UINT32, u32(1))], [TENSOR]) + bytes(64),
        Reason.WRONG_TYPE,
    ),
    "key twice": (model(ARCHITECTURE), Reason.DUPLICATE_NAME),
    "empty key": (model(("", UINT8, b"\0")), Reason.UNSAFE_NAME),
    "key with a line end": (model(("a\nb", UINT8, b"\0")), Reason.UNSAFE_NAME),
    "endless key": (model(("k" * 1025, UINT8, b"\0")), Reason.ABSURD_HEADER),
    "value of unknown type": (model(("k", 13, b"\0")), Reason.WRONG_TYPE),
    "value no text": (model(("k", STRING, string(b"\xff"))), Reason.BAD_TEXT),
    "endless string": (model(("k", STRING, u64(2**63))), Reason.ABSURD_HEADER),
    "string behind the end": (model(("k", STRING, u64(4_000_000))), Reason.TRUNCATED),
    "truth value 2": (model(("k", BOOL, b"\2")), Reason.MALFORMED),
    "endless array": (model(("k", ARRAY, array(UINT8, 2**40))), Reason.ABSURD_HEADER),
    "array behind the end": (model(("k", ARRAY, array(UINT64, 4_000_000))), Reason.TRUNCATED),
    "array of unknown type": (model(("k", ARRAY, array(99, 1))), Reason.WRONG_TYPE),
    "array of arrays": (
        model(("k", ARRAY, array(ARRAY, 1, array(UINT8, 1, b"\0")))),
        Reason.TOO_DEEP,
    ),
    "many strings": (
        header([ARCHITECTURE, ("k", ARRAY, array(STRING, 2_000_001))], [TENSOR])[:-33] + bytes(64),
        Reason.ABSURD_HEADER,
    ),
    "strings behind the end": (
        header([ARCHITECTURE, ("k", ARRAY, array(STRING, 1_000_000))], [TENSOR])[:-33] + bytes(64),
        Reason.TRUNCATED,
    ),
    "endless string in an array": (
        model(("k", ARRAY, array(STRING, 1, u64(2**64 - 1)))),
        Reason.ABSURD_HEADER,
    ),
    "length is a text": (
        model(("llama.context_length", STRING, string("9"))),
        Reason.WRONG_TYPE,
    ),
    "length is true": (model(("llama.context_length", BOOL, b"\1")), Reason.WRONG_TYPE),
    "length is negative": (
        model(("llama.block_count", INT32, struct.pack("<i", -1))),
        Reason.ABSURD_HEADER,
    ),
    "length of 64 bits": (
        model(("llama.embedding_length", UINT64, u64(2**40))),
        Reason.ABSURD_HEADER,
    ),
    "tokens are no array": (model(("tokenizer.ggml.tokens", UINT8, b"\0")), Reason.WRONG_TYPE),
    "template is no text": (model(("tokenizer.chat_template", UINT8, b"\0")), Reason.WRONG_TYPE),
    "unknown pooling": (model(("llama.pooling_type", UINT32, u32(5))), Reason.ABSURD_HEADER),
    "split over files": (
        model(("split.count", 2, struct.pack("<H", 2))),
        Reason.EXTERNAL_DATA,
    ),
    "alignment 0": (model(("general.alignment", UINT32, u32(0))), Reason.ABSURD_HEADER),
    "alignment 48": (model(("general.alignment", UINT32, u32(48))), Reason.ABSURD_HEADER),
    "alignment 2^31": (model(("general.alignment", UINT32, u32(2**31))), Reason.ABSURD_HEADER),
    "alignment of 64 bits": (model(("general.alignment", UINT64, u64(32))), Reason.WRONG_TYPE),
    "tensor without name": (model(tensors=[("", [8], F32, 0)]), Reason.UNSAFE_NAME),
    "tensor with NUL": (model(tensors=[("a\0b", [8], F32, 0)]), Reason.UNSAFE_NAME),
    "tensor with a long name": (model(tensors=[(LONG, [8], F32, 0)]), Reason.ABSURD_HEADER),
    "tensor twice": (
        model(tensors=[("a", [8], F32, 0), ("a", [8], F32, 32)], data_bytes=64),
        Reason.DUPLICATE_NAME,
    ),
    "no dimension": (model(tensors=[("a", [], F32, 0)]), Reason.ABSURD_HEADER),
    "five dimensions": (model(tensors=[("a", [1] * 5, F32, 0)]), Reason.ABSURD_HEADER),
    "dimension 0": (model(tensors=[("a", [8, 0], F32, 0)]), Reason.ABSURD_HEADER),
    "half a block": (model(tensors=[("a", [16, 2], Q4_0, 0)]), Reason.ABSURD_HEADER),
    "product over 64 bits": (
        model(tensors=[("a", [2**32, 2**32, 2**32, 2**32], F32, 0)]),
        Reason.OUT_OF_BOUNDS,
    ),
    "removed type": (model(tensors=[("a", [8], 4, 0)]), Reason.UNKNOWN_TENSOR_TYPE),
    "negative type": (model(tensors=[("a", [8], 2**32 - 1, 0)]), Reason.UNKNOWN_TENSOR_TYPE),
    "misaligned": (model(tensors=[("a", [4], F32, 4)]), Reason.MISALIGNED_TENSOR),
    "offset over 64 bits": (model(tensors=[("a", [8], F32, 2**64 - 32)]), Reason.OUT_OF_BOUNDS),
    "data cut": (model(data_bytes=31), Reason.OUT_OF_BOUNDS),
    "overlap": (
        model(tensors=[("a", [16], F32, 0), ("b", [8], F32, 32)], data_bytes=96),
        Reason.OVERLAPPING_TENSORS,
    ),
    "hole": (
        model(tensors=[("a", [8], F32, 0), ("b", [8], F32, 64)], data_bytes=96),
        Reason.HOLE_BETWEEN_TENSORS,
    ),
    "more than tensors": (model(data_bytes=33), Reason.TRAILING_DATA),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    content, expected = REFUSED[case]
    assert reason(content) is expected


def test_a_wrong_size_is_refused(valid: bytes) -> None:
    assert reason_of(check_gguf(io.BytesIO(valid), len(valid) + 1)) is ModelFileReason.SIZE_MISMATCH


def test_a_file_that_cannot_be_read_is_refused(valid: bytes) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error", size)

    class Pipe(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            raise OSError(29, "Illegal seek", (offset, whence))

    assert reason_of(check_gguf(Broken(valid), len(valid))) is ModelFileReason.UNREADABLE
    assert reason_of(check_gguf(Pipe(valid), len(valid))) is ModelFileReason.UNREADABLE


def test_a_file_that_shrinks_is_refused_and_short_reads_are_not(valid: bytes) -> None:
    class Shrunk(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return b"" if self.tell() >= 100 else super().read(min(size or 0, 50))

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 7))

    assert reason_of(check_gguf(Shrunk(valid), len(valid))) is ModelFileReason.TRUNCATED
    assert check_gguf(Slow(valid), len(valid)) == check(valid)


def test_a_header_longer_than_the_limit_is_refused_without_reading_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ours, "HEADER_BYTES_MAX", 1_000_000)
    content = model(*((f"k{number}", STRING, string(bytes(90_000))) for number in range(12)))
    file = CountingFile(content)
    assert reason_of(check_gguf(file, len(content))) is Reason.ABSURD_HEADER
    assert file.bytes_read <= 1_000_000


def test_long_texts_cost_no_memory_after_they_are_read() -> None:
    text = "\U0001f697" * 200_000
    content = model(*((f"k{number}", STRING, string(text)) for number in range(20)))
    file = io.BytesIO(content)
    tracemalloc.start()
    try:
        assert isinstance(check_gguf(file, len(content)), GgufHeader)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5_000_000


@pytest.mark.parametrize("case", ["endless string", "endless array", "counts of 64 bits"])
def test_a_lying_header_costs_no_memory(case: str) -> None:
    content = REFUSED[case][0]
    tracemalloc.start()
    try:
        check(content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 500_000


def opens_in_reference_library(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    reader = gguf.GGUFReader(path)
    assert reader.tensors


fuzzed = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@fuzzed
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_get_an_answer(content: bytes, with_magic: bool) -> None:
    content = (b"GGUF" + u32(3) + content) if with_magic else content
    assert isinstance(check(content), GgufHeader | ModelFileRefused)


@fuzzed
@given(data=st.data())
def test_every_truncation_is_refused(valid: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(valid) - 33))
    assert reason(valid[:end]) in {ModelFileReason.TRUNCATED, ModelFileReason.OUT_OF_BOUNDS}


@fuzzed
@given(data=st.data())
def test_what_is_taken_after_a_mutation_opens_in_the_reference_library(
    valid: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1 - 1100))
        width = data.draw(st.sampled_from([1, 4, 8]))
        content[position : position + width] = data.draw(st.binary(min_size=width, max_size=width))
    file = CountingFile(bytes(content))
    found = check_gguf(file, len(content))
    assert file.bytes_read <= len(content)
    if isinstance(found, GgufHeader):
        opens_in_reference_library(bytes(content), tmp_path / "mutated.gguf")
