"""The ONNX parser takes what the reference library writes and says what is in it."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, TensorProto, helper

from terafleet.protocol.model_files import onnx_schema
from terafleet.protocol.model_files.onnx import OnnxHeader, check_onnx
from terafleet.protocol.model_files.reader import WINDOW_BYTES
from terafleet.protocol.model_files.refusal import ModelFileReason, ModelFileRefused
from tests.contract.model_file_bytes import CountingFile, reason_of
from tests.contract.model_file_onnx_bytes import (
    check,
    conditional,
    graph,
    message,
    model,
    number,
    raw_model,
    sparse,
    varint,
    weights,
)

Reason = ModelFileReason
NUMERIC_TYPES = sorted(onnx_schema.TENSOR_TYPES)


VALID = model(
    graph(
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Constant", [], ["c"], value=weights("c")),
        helper.make_node("Clip", ["m", "", "c"], ["n"], domain="ai.onnx"),
        helper.make_node("Split", ["n"], ["p"], axis=1, sizes=[1, -1], alpha=0.5, mode="a"),
        conditional(helper.make_node("Neg", ["p"], ["b"])),
    )
)


def test_a_file_of_the_reference_library_is_taken_with_its_figures() -> None:
    assert check(VALID) == OnnxHeader(
        ir_version=10,
        opset=17,
        inputs=("x",),
        outputs=("y",),
        node_count=7,
        initializer_bytes=4 * 16,
        operators=frozenset({"MatMul", "Constant", "Clip", "Split", "If", "Neg", "Identity"}),
    )


def test_weights_are_passed_over() -> None:
    size_bytes = 20_000_000
    tensor = helper.make_tensor("w", TensorProto.UINT8, [size_bytes], bytes(size_bytes), True)
    file = CountingFile(model(graph(initializers=[tensor])))
    found = check_onnx(file, len(file.getvalue()))
    assert isinstance(found, OnnxHeader)
    assert found.initializer_bytes == size_bytes
    assert file.bytes_read <= 2 * WINDOW_BYTES


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("shape", [[], [3], [2, 3], [0, 2]], ids=str)
@pytest.mark.parametrize("data_type", NUMERIC_TYPES, ids=TensorProto.DataType.Name)
def test_every_type_of_the_reference_library_is_taken(
    data_type: int, shape: list[int], raw: bool
) -> None:
    array_type = helper.tensor_dtype_to_np_dtype(data_type)
    values = np.zeros(shape, array_type)
    if raw:
        tensor = onnx.numpy_helper.from_array(values, "w")
    else:
        tensor = helper.make_tensor("w", data_type, shape, values.flatten())
    assert tensor.data_type == data_type
    assert tensor.HasField("raw_data") is raw
    found = check(model(graph(initializers=[tensor])))
    assert isinstance(found, OnnxHeader), found
    assert found.initializer_bytes == onnx_schema.tensor_bytes(data_type, values.size)


def test_every_type_of_the_reference_library_is_known() -> None:
    theirs = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}
    assert set(NUMERIC_TYPES) == theirs


def test_texts_and_negative_numbers_are_taken() -> None:
    texts = TensorProto(name="t", data_type=TensorProto.STRING, dims=[2])
    texts.string_data.extend([b"abc", b"\xff"])
    numbers = helper.make_tensor("n", TensorProto.INT64, [3], [-1, 2**62, -(2**63)])
    found = check(model(graph(initializers=[texts, numbers])))
    assert isinstance(found, OnnxHeader)
    assert found.initializer_bytes == 4 + 3 * 8
    assert found.inputs == ("x", "w")


def test_many_packed_numbers_are_counted_over_the_edges_of_chunks() -> None:
    count = 100_003
    tensor = helper.make_tensor("n", TensorProto.INT64, [count], [2**40 + n for n in range(count)])
    assert isinstance(check(model(graph(initializers=[tensor]))), OnnxHeader)


def test_sparse_tensors_sequences_and_annotations_are_taken() -> None:
    found = graph(helper.make_node("Constant", [], ["y"], sparse_value=sparse("s")))
    found.sparse_initializer.append(sparse("z"))
    found.quantization_annotation.add(tensor_name="w").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="w"
    )
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    kind = helper.make_optional_type_proto(helper.make_sequence_type_proto(inner))
    found.value_info.append(helper.make_value_info("v", kind))
    whole = ModelProto()
    whole.ParseFromString(model(found))
    helper.set_model_props(whole, {"author": "somebody"})
    assert isinstance(check(whole.SerializeToString()), OnnxHeader)


def test_lists_of_numbers_are_taken_packed_and_not() -> None:
    node = helper.make_node("Constant", [], ["y"], value_ints=[1, 2, 300])
    assert isinstance(check(model(graph(node))), OnnxHeader)
    packed = message(1, b"value_ints") + message(8, varint(1) + varint(2) + varint(300))
    packed += number(20, AttributeProto.INTS)
    assert isinstance(check(raw_model(message(5, packed))), OnnxHeader)


def test_a_domain_can_be_allowed() -> None:
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")
    content = model(graph(node))
    assert reason_of(check(content)) is Reason.CUSTOM_OPERATOR
    found = check(content, frozenset({"com.microsoft"}))
    assert isinstance(found, OnnxHeader)
    assert found.operators == {"com.microsoft::FusedMatMul"}


def test_a_foreign_operator_set_that_is_not_used_is_taken() -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    assert isinstance(check(model(opset_imports=imports)), OnnxHeader)


fuzzed = settings(max_examples=400, deadline=None)


def agrees_with_reference_library(content: bytes) -> None:
    file = CountingFile(content)
    found = check_onnx(file, len(content))
    assert file.bytes_read <= len(content)
    if isinstance(found, OnnxHeader):
        opened = onnx.load_model_from_string(content)
        assert opened.ir_version == found.ir_version
        assert tuple(output.name for output in opened.graph.output) == found.outputs
    else:
        assert isinstance(found, ModelFileRefused)


@fuzzed
@given(st.binary(max_size=100))
def test_random_bytes_get_an_answer(content: bytes) -> None:
    agrees_with_reference_library(content)


def fields(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Fields with numbers, and fields that hold `inner`."""
    field = st.integers(1, 27)
    numbers = st.builds(number, field, st.integers(0, 2**64))
    return st.lists(numbers | st.builds(message, field, inner), max_size=4).map(b"".join)


@fuzzed
@given(st.recursive(st.binary(max_size=6), fields, max_leaves=20))
def test_random_messages_get_an_answer(content: bytes) -> None:
    agrees_with_reference_library(content)
    agrees_with_reference_library(raw_model(content))
    agrees_with_reference_library(raw_model(b"", content))


@fuzzed
@given(st.integers(0, len(VALID) - 1))
def test_every_truncation_is_refused(end: int) -> None:
    assert reason_of(check(VALID[:end])) in {Reason.TRUNCATED, Reason.MISSING_FIELD}


@fuzzed
@given(st.data())
def test_what_is_taken_after_a_mutation_opens_in_the_reference_library(data: st.DataObject) -> None:
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    agrees_with_reference_library(bytes(content))
