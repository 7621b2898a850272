"""The safetensors parser takes what the reference library writes and refuses everything crooked."""

import io
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from terafleet.protocol.model_files import safetensors as ours
from terafleet.protocol.model_files.reader import WINDOW_BYTES
from terafleet.protocol.model_files.refusal import ModelFileReason, ModelFileRefused
from terafleet.protocol.model_files.safetensors import SafetensorsHeader, check_safetensors
from tests.contract.model_file_bytes import CountingFile, reason_of

Reason = ModelFileReason


def raw_model(text: str | bytes, data_bytes: int = 0) -> bytes:
    header = text.encode() if isinstance(text, str) else text
    return len(header).to_bytes(8, "little") + header + bytes(data_bytes)


def model(entries: dict[str, Any], data_bytes: int) -> bytes:
    return raw_model(json.dumps(entries), data_bytes)


def entry(start: int, end: int, shape: list[int], dtype: str = "U8", **more: object) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


def check(content: bytes) -> SafetensorsHeader | ModelFileRefused:
    return check_safetensors(io.BytesIO(content), len(content))


def reason(content: bytes) -> ModelFileReason:
    return reason_of(check(content))


def opened_tensor_count(content: bytes) -> int:
    """How many tensors the reference library finds."""
    return len(safetensors.deserialize(content))  # type: ignore[no-untyped-call]


TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "embeddings.weight": np.ones((3, 5), np.float32),
    "layer.0.bias": np.ones(7, np.float16),
    "position_ids": np.ones((1, 2, 1), np.int64),
    "scale": np.array(3, np.float64),
    "nothing": np.ones((0, 4), np.uint8),
}
VALID = save(TENSORS, {"format": "pt", "config": '{"a": {"b": 1}}'})


def test_a_file_of_the_reference_library_is_taken_with_its_figures() -> None:
    assert check(VALID) == SafetensorsHeader(
        tensor_types=frozenset({"F32", "F16", "I64", "F64", "U8"}),
        tensor_count=5,
        tensor_bytes=15 * 4 + 7 * 2 + 2 * 8 + 8,
        parameters=15 + 7 + 2 + 1,
    )


@pytest.mark.parametrize(
    "dtype", ["bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8"]
)
def test_every_type_of_numpy_is_taken(dtype: str) -> None:
    values = np.zeros((2, 3), dtype)
    found = check(save({"a": values, "b": values[:1]}))
    assert isinstance(found, SafetensorsHeader)
    assert found.tensor_bytes == values.nbytes * 3 // 2


@pytest.mark.parametrize("dtype", ours.TENSOR_TYPE_BITS)
def test_every_type_of_the_table_is_one_of_the_reference_library(dtype: str) -> None:
    size_bytes = ours.TENSOR_TYPE_BITS[dtype]
    content = model({"a": entry(0, size_bytes, [8], dtype)}, size_bytes)
    assert isinstance(check(content), SafetensorsHeader)
    assert opened_tensor_count(content) == 1


def test_spaces_order_and_escapes_are_free() -> None:
    text = (
        '{ "\\u0062" : {"data_offsets":[ 4,6 ], "shape":[2],"dtype":"U8"},\n'
        '  "a": {"dtype":"F32","shape":[],"data_offsets":[0,4]} }   \n'
    )
    found = check(raw_model(text, 6))
    assert isinstance(found, SafetensorsHeader)
    assert found.parameters == 3


def test_only_the_header_is_read() -> None:
    data_bytes = 10_000_000
    file = CountingFile(model({"a": entry(0, data_bytes, [data_bytes])}, data_bytes))
    found = check_safetensors(file, len(file.getvalue()))
    assert isinstance(found, SafetensorsHeader)
    assert file.bytes_read <= WINDOW_BYTES


def test_the_limit_of_the_header_can_be_chosen() -> None:
    assert (
        reason_of(check_safetensors(io.BytesIO(VALID), len(VALID), header_bytes_max=100))
        is Reason.ABSURD_HEADER
    )


GOOD = '"dtype":"U8","shape":[2],"data_offsets":[0,2]'
HUGE = 10**30
REFUSED: dict[str, tuple[bytes, ModelFileReason]] = {
    "empty": (b"", Reason.TRUNCATED),
    "only a length": (bytes(7), Reason.TRUNCATED),
    "header of no bytes": (bytes(8), Reason.BAD_MAGIC),
    "header behind the end": (raw_model("{}")[:9], Reason.TRUNCATED),
    "endless header": ((2**64 - 1).to_bytes(8, "little") + b"{}", Reason.ABSURD_HEADER),
    "header over the limit": ((25_000_001).to_bytes(8, "little") + b"{}", Reason.ABSURD_HEADER),
    "header is a list": (raw_model("[]"), Reason.BAD_MAGIC),
    "header begins with a space": (raw_model(" {}"), Reason.BAD_MAGIC),
    "header is no text": (raw_model(b'{"\xff":1}'), Reason.BAD_TEXT),
    "header is cut": (raw_model('{"a":'), Reason.MALFORMED),
    "two headers": (raw_model("{}{}"), Reason.MALFORMED),
    "NUL after the header": (raw_model("{}\0"), Reason.MALFORMED),
    "half a surrogate": (raw_model('{"\\ud800":{}}'), Reason.MALFORMED),
    "no tensors": (raw_model("{}"), Reason.EMPTY_MODEL),
    "only metadata": (raw_model('{"__metadata__":{"a":"b"}}'), Reason.EMPTY_MODEL),
    "nested without end": (raw_model('{"a":' + "[" * 100_000), Reason.TOO_DEEP),
    "tensor is a list": (raw_model('{"a":[]}'), Reason.WRONG_TYPE),
    "metadata is a list": (raw_model('{"__metadata__":[]}'), Reason.WRONG_TYPE),
    "metadata is null": (raw_model('{"__metadata__":null}'), Reason.WRONG_TYPE),
    "metadata has a number": (raw_model('{"__metadata__":{"a":1}}'), Reason.WRONG_TYPE),
    "metadata twice": (
        raw_model('{"__metadata__":{},"__metadata__":{}}'),
        Reason.DUPLICATE_NAME,
    ),
    "key of metadata twice": (
        raw_model('{"__metadata__":{"a":"b","a":"b"}}'),
        Reason.DUPLICATE_NAME,
    ),
    "tensor twice": (raw_model(f'{{"a":{{{GOOD}}},"a":{{{GOOD}}}}}', 2), Reason.DUPLICATE_NAME),
    "tensor twice, once escaped": (
        raw_model(f'{{"a":{{{GOOD}}},"\\u0061":{{{GOOD}}}}}', 2),
        Reason.DUPLICATE_NAME,
    ),
    "field twice": (raw_model(f'{{"a":{{{GOOD},"dtype":"U8"}}}}', 2), Reason.DUPLICATE_NAME),
    "field too many": (model({"a": entry(0, 2, [2], extra=1)}, 2), Reason.UNKNOWN_FIELD),
    "field missing": (model({"a": {"dtype": "U8", "shape": []}}, 1), Reason.MISSING_FIELD),
    "tensor without name": (model({"": entry(0, 2, [2])}, 2), Reason.UNSAFE_NAME),
    "tensor with a line end": (model({"a\nb": entry(0, 2, [2])}, 2), Reason.UNSAFE_NAME),
    "text written backwards": (model({"a\u202eb": entry(0, 2, [2])}, 2), Reason.UNSAFE_NAME),
    "tensor with a long name": (model({"a" * 1025: entry(0, 2, [2])}, 2), Reason.ABSURD_HEADER),
    "long entry": (model({"a": entry(0, 1, [1] * 3000)}, 1), Reason.ABSURD_HEADER),
    "many dimensions": (model({"a": entry(0, 1, [1] * 65)}, 1), Reason.ABSURD_HEADER),
    "unknown type": (model({"a": entry(0, 2, [2], "Q4")}, 2), Reason.UNKNOWN_TENSOR_TYPE),
    "type is a number": (
        raw_model('{"a":{"dtype":1,"shape":[],"data_offsets":[0,1]}}', 1),
        Reason.WRONG_TYPE,
    ),
    "shape is a number": (
        raw_model('{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}', 1),
        Reason.WRONG_TYPE,
    ),
    "shape with a fraction": (
        raw_model('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', 1),
        Reason.WRONG_TYPE,
    ),
    "shape with true": (
        raw_model('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', 1),
        Reason.WRONG_TYPE,
    ),
    "negative dimensions": (model({"a": entry(0, 1, [-1, -1])}, 1), Reason.ABSURD_HEADER),
    "dimension over 64 bits": (model({"a": entry(0, 0, [0, HUGE])}, 0), Reason.ABSURD_HEADER),
    "three offsets": (
        raw_model('{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1,2]}}', 1),
        Reason.WRONG_TYPE,
    ),
    "negative offsets": (model({"a": entry(-1, 0, [1])}, 1), Reason.ABSURD_HEADER),
    "offsets backwards": (model({"a": entry(2, 0, [2])}, 2), Reason.ABSURD_HEADER),
    "offsets over 64 bits": (model({"a": entry(HUGE, HUGE, [0])}, 2), Reason.ABSURD_HEADER),
    "shape and place differ": (model({"a": entry(0, 2, [3])}, 2), Reason.SIZE_MISMATCH),
    "half a byte": (model({"a": entry(0, 2, [3], "F4")}, 2), Reason.SIZE_MISMATCH),
    "data cut": (model({"a": entry(0, 2, [2])}, 1), Reason.OUT_OF_BOUNDS),
    "more than tensors": (model({"a": entry(0, 2, [2])}, 3), Reason.TRAILING_DATA),
    "overlap": (
        model({"a": entry(0, 4, [4]), "b": entry(2, 6, [4])}, 6),
        Reason.OVERLAPPING_TENSORS,
    ),
    "the same place twice": (
        model({"a": entry(0, 2, [2]), "b": entry(0, 2, [2])}, 2),
        Reason.OVERLAPPING_TENSORS,
    ),
    "hole": (
        model({"a": entry(0, 2, [2]), "b": entry(3, 4, [1])}, 4),
        Reason.HOLE_BETWEEN_TENSORS,
    ),
    "hole before the first": (model({"a": entry(1, 2, [1])}, 2), Reason.HOLE_BETWEEN_TENSORS),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    content, expected = REFUSED[case]
    assert reason(content) is expected


def test_too_many_tensors_are_refused() -> None:
    count = ours.TENSORS_MAX + 1
    text = ",".join(
        f'"{number}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(count)
    )
    assert reason(raw_model(f"{{{text}}}")) is Reason.ABSURD_HEADER


@pytest.mark.parametrize("filler", ['"a":0,', '"a":{},'])
def test_keys_without_end_cost_bounded_memory(filler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "KEYS_MAX", 1000)
    content = raw_model("{" + filler * 200_000 + '"z":0}')
    tracemalloc.start()
    try:
        assert reason(content) is Reason.ABSURD_HEADER
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * len(content)


def test_a_list_without_end_costs_bounded_memory() -> None:
    shape = "[" + "[]," * 1_000_000 + "1]"
    content = raw_model(f'{{"a":{{"dtype":"U8","shape":{shape},"data_offsets":[0,1]}}}}', 1)
    tracemalloc.start()
    try:
        assert reason(content) is Reason.ABSURD_HEADER
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * len(content)


fuzzed = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.text(max_size=3) | st.just("U8"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner)
    ),
    max_leaves=8,
)


def agrees_with_reference_library(content: bytes) -> None:
    file = CountingFile(content)
    found = check_safetensors(file, len(content))
    assert file.bytes_read <= len(content)
    if isinstance(found, SafetensorsHeader):
        assert opened_tensor_count(content) == found.tensor_count
    else:
        assert isinstance(found, ModelFileRefused)


@fuzzed
@given(st.binary(max_size=100))
def test_random_bytes_get_an_answer(content: bytes) -> None:
    agrees_with_reference_library(content)


@fuzzed
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), json_values), st.integers(0, 9))
def test_random_headers_get_an_answer(entries: dict[str, Any], data_bytes: int) -> None:
    agrees_with_reference_library(model(entries, data_bytes))


@fuzzed
@given(st.integers(0, len(VALID) - 1))
def test_every_truncation_is_refused(end: int) -> None:
    assert reason(VALID[:end]) in {Reason.TRUNCATED, Reason.OUT_OF_BOUNDS}


@fuzzed
@given(st.data())
def test_what_is_taken_after_a_mutation_opens_in_the_reference_library(data: st.DataObject) -> None:
    content = bytearray(VALID)
    header_end = 8 + int.from_bytes(VALID[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, header_end - 1))
        content[position] = data.draw(
            st.sampled_from(b'0123456789,:"[]{} \\aU8F') | st.integers(0, 255)
        )
    agrees_with_reference_library(bytes(content))


@fuzzed
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8),
        st.tuples(
            st.sampled_from(["f4", "f2", "i8", "u1", "bool"]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_the_reference_library_writes_is_taken(
    shapes: dict[str, tuple[str, list[int]]],
) -> None:
    tensors = {name: np.zeros(shape, dtype) for name, (dtype, shape) in shapes.items()}
    found = check(save(tensors))
    assert isinstance(found, SafetensorsHeader)
    assert found.parameters == sum(values.size for values in tensors.values())
