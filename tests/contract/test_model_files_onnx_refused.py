"""The ONNX parser refuses what reaches outside its file, brings code, or is crooked."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import GraphProto, TensorProto, helper

from terafleet.protocol.model_files import protobuf as walker
from terafleet.protocol.model_files.onnx import OnnxHeader, check_onnx
from terafleet.protocol.model_files.reader import WINDOW_BYTES
from terafleet.protocol.model_files.refusal import ModelFileReason
from tests.contract.model_file_bytes import CountingFile, reason_of
from tests.contract.model_file_onnx_bytes import (
    NODE,
    OPSET,
    branch,
    check,
    conditional,
    graph,
    message,
    model,
    number,
    raw_model,
    sparse,
    tensor,
    typed,
    varint,
    weights,
)

Reason = ModelFileReason


def outside(tensor: TensorProto | None = None) -> TensorProto:
    found = weights("e") if tensor is None else tensor
    found.ClearField("raw_data")
    found.data_location = TensorProto.EXTERNAL
    found.external_data.add(key="location", value="../../etc/passwd")
    return found


def sparse_outside(part: str) -> onnx.SparseTensorProto:
    found = sparse("s")
    outside(getattr(found, part))
    return found


def with_sparse_initializer(part: str) -> GraphProto:
    found = graph()
    found.sparse_initializer.append(sparse_outside(part))
    return found


def constant(**attributes: Any) -> GraphProto:
    return graph(helper.make_node("Constant", [], ["y"], **attributes))


def with_location(location: int) -> bytes:
    tensor = number(1, 1) + number(2, TensorProto.UINT8) + message(9, b"a") + number(14, location)
    return raw_model(b"", message(5, tensor))


OUTSIDE: dict[str, Callable[[], bytes]] = {
    "initializer": lambda: model(graph(initializers=[outside()])),
    "constant": lambda: model(constant(value=outside())),
    "list of constants": lambda: model(constant(values=[weights(), outside()])),
    "nested graph": lambda: model(
        graph(conditional(helper.make_node("Constant", [], ["b"], value=outside())))
    ),
    "graph nested twice": lambda: model(
        graph(conditional(conditional(helper.make_node("Constant", [], ["b"], value=outside()))))
    ),
    "list of graphs": lambda: model(constant(bodies=[branch(), graph(initializers=[outside()])])),
    "sparse initializer, values": lambda: model(with_sparse_initializer("values")),
    "sparse initializer, indices": lambda: model(with_sparse_initializer("indices")),
    "sparse constant": lambda: model(constant(sparse_value=sparse_outside("indices"))),
    "list of sparse constants": lambda: model(
        constant(values=[sparse("s"), sparse_outside("values")])
    ),
    "only the location": lambda: with_location(1),
    "location cut to 32 bits": lambda: with_location(2**32 + 1),
    "location 2": lambda: with_location(2),
    "only the entries": lambda: raw_model(
        b"",
        message(
            5, number(1, 1) + number(2, 2) + message(9, b"a") + message(13, message(1, b"location"))
        ),
    ),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_data_outside_the_file_are_refused(case: str) -> None:
    assert reason_of(check(OUTSIDE[case]())) is Reason.EXTERNAL_DATA


def with_functions() -> bytes:
    node = helper.make_node("Neg", ["a"], ["b"])
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("local", "F", ["a"], ["b"], [node], [opset])
    return model(functions=[function])


def nested_graphs(depth: int) -> bytes:
    content = NODE
    for _ in range(depth):
        content = message(1, message(4, b"If") + message(5, message(6, content)))
    return number(1, 10) + OPSET + message(7, content)


def nested_types(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = message(9, message(1, content))
    return raw_model(b"", message(13, message(1, b"v") + message(2, content)))


IMPORTED = helper.make_opsetid("", 17)
REFUSED: dict[str, tuple[bytes, ModelFileReason]] = {
    "empty": (b"", Reason.TRUNCATED),
    "cut in a tag": (raw_model() + b"\x80", Reason.TRUNCATED),
    "cut in the graph": (raw_model()[:-2], Reason.TRUNCATED),
    "graph ends behind the file": (number(1, 10) + b"\x3a\x7f\x0a", Reason.TRUNCATED),
    "node ends behind the graph": (
        number(1, 10) + OPSET + message(7, b"\x0a\x10" + b"\x22\x04Relu") + bytes(99),
        Reason.TRUNCATED,
    ),
    "number runs over its message": (
        number(1, 10) + message(7, message(5, b"\x10\x80")) + b"\x01",
        Reason.TRUNCATED,
    ),
    "packed dimensions run over": (tensor(message(1, b"\x80"), number(2, 2)), Reason.TRUNCATED),
    "packed numbers end inside one": (
        tensor(typed(7, 1), message(7, b"\x80")),
        Reason.TRUNCATED,
    ),
    "packed number with 11 bytes": (
        tensor(typed(7, 1), message(7, b"\x80" * 10 + b"\x01")),
        Reason.MALFORMED,
    ),
    "number with 11 bytes": (b"\x08" + b"\x80" * 10 + b"\x01", Reason.MALFORMED),
    "number with 65 bits": (b"\x08" + b"\x80" * 9 + b"\x02", Reason.MALFORMED),
    "tag with six bytes": (b"\x88" + b"\x80" * 4 + b"\x00\x0a", Reason.MALFORMED),
    "field 0": (raw_model(in_model=number(0, 1)), Reason.UNKNOWN_FIELD),
    "unknown field": (raw_model(in_model=number(99, 1)), Reason.UNKNOWN_FIELD),
    "tensor in segments": (tensor(message(3, b"")), Reason.UNKNOWN_FIELD),
    "opaque type": (
        raw_model(b"", message(13, message(2, message(7, b"")))),
        Reason.UNKNOWN_FIELD,
    ),
    "node on devices": (raw_model(message(10, b"")), Reason.UNKNOWN_FIELD),
    "group": (raw_model(in_model=varint(7 << 3 | 3)), Reason.WRONG_TYPE),
    "graph is a number": (number(1, 10) + number(7, 1), Reason.WRONG_TYPE),
    "version is packed": (message(1, b"\x0a"), Reason.WRONG_TYPE),
    "two graphs": (raw_model(in_model=message(7, NODE)), Reason.MALFORMED),
    "two locations": (tensor(number(14, 0), number(14, 0)), Reason.MALFORMED),
    "half a float": (tensor(typed(1, 1), message(4, b"abc")), Reason.MALFORMED),
    "name is no text": (raw_model(message(3, b"\xff")), Reason.BAD_TEXT),
    "endless name": (raw_model(message(3, b"n" * 513)), Reason.ABSURD_HEADER),
    "endless text": (raw_model(message(6, b"n" * 1_048_577)), Reason.ABSURD_HEADER),
    "operator without name": (
        number(1, 10) + OPSET + message(7, message(1, b"")),
        Reason.UNSAFE_NAME,
    ),
    "input without name": (raw_model(b"", message(11, b"")), Reason.UNSAFE_NAME),
    "output with a line end": (raw_model(b"", message(12, message(1, b"\n"))), Reason.UNSAFE_NAME),
    "initializer without name": (
        raw_model(b"", message(5, typed(2, 0))),
        Reason.UNSAFE_NAME,
    ),
    "input twice": (raw_model(b"", message(11, message(1, b"x")) * 2), Reason.DUPLICATE_NAME),
    "initializer twice": (
        model(graph(initializers=[weights(), weights()])),
        Reason.DUPLICATE_NAME,
    ),
    "operator set twice": (
        model(opset_imports=[IMPORTED, helper.make_opsetid("ai.onnx", 17)]),
        Reason.DUPLICATE_NAME,
    ),
    "many operator sets": (
        model(opset_imports=[helper.make_opsetid(f"d{n}", 1) for n in range(33)]),
        Reason.ABSURD_HEADER,
    ),
    "no version": (OPSET + message(7, NODE), Reason.MISSING_FIELD),
    "no graph": (number(1, 10) + OPSET, Reason.MISSING_FIELD),
    "no operator set": (number(1, 10) + message(7, NODE), Reason.MISSING_FIELD),
    "only a foreign operator set": (
        model(opset_imports=[helper.make_opsetid("com.microsoft", 1)]),
        Reason.MISSING_FIELD,
    ),
    "operator set without version": (
        number(1, 10) + message(8, b"") + message(7, NODE),
        Reason.MISSING_FIELD,
    ),
    "foreign operator set without version": (
        raw_model(in_model=message(8, message(1, b"d"))),
        Reason.MISSING_FIELD,
    ),
    "sparse tensor without values": (raw_model(b"", message(15, b"")), Reason.MISSING_FIELD),
    "no operators": (number(1, 10) + OPSET + message(7, b""), Reason.EMPTY_MODEL),
    "old version": (model(ir_version=2), Reason.UNSUPPORTED_VERSION),
    "future version": (model(ir_version=15), Reason.UNSUPPORTED_VERSION),
    "old operators": (
        model(opset_imports=[helper.make_opsetid("", 6)]),
        Reason.UNSUPPORTED_VERSION,
    ),
    "future operators": (
        model(opset_imports=[helper.make_opsetid("", 29)]),
        Reason.UNSUPPORTED_VERSION,
    ),
    "foreign operator": (raw_model(message(7, b"evil")), Reason.CUSTOM_OPERATOR),
    "operators of ai.onnx.ml": (raw_model(message(7, b"ai.onnx.ml")), Reason.CUSTOM_OPERATOR),
    "foreign operator in a nested graph": (
        model(graph(conditional(helper.make_node("X", [], ["b"], domain="e")))),
        Reason.CUSTOM_OPERATOR,
    ),
    "overloaded operator": (raw_model(message(8, b"o")), Reason.CUSTOM_OPERATOR),
    "functions": (with_functions(), Reason.CUSTOM_OPERATOR),
    "training": (raw_model(in_model=message(20, b"")), Reason.UNSUPPORTED_FORMAT),
    "several devices": (raw_model(in_model=message(26, b"")), Reason.UNSUPPORTED_FORMAT),
    "nested graphs": (nested_graphs(100), Reason.TOO_DEEP),
    "nested types": (nested_types(1000), Reason.TOO_DEEP),
    "tensor without type": (tensor(number(1, 1)), Reason.UNKNOWN_TENSOR_TYPE),
    "tensor of unknown type": (tensor(typed(99, 1)), Reason.UNKNOWN_TENSOR_TYPE),
    "type cut to 32 bits": (tensor(typed(2**32 + 1, 1)), Reason.UNKNOWN_TENSOR_TYPE),
    "negative dimension": (tensor(typed(2, 2**64 - 1)), Reason.ABSURD_HEADER),
    "many dimensions": (tensor(typed(2, *[1] * 65)), Reason.ABSURD_HEADER),
    "product over 64 bits": (
        tensor(typed(1, *[2**31 - 1] * 8), message(9, b"abcd")),
        Reason.SIZE_MISMATCH,
    ),
    "raw data too short": (tensor(typed(1, 2), message(9, b"abcd")), Reason.SIZE_MISMATCH),
    "raw data too long": (tensor(typed(2, 2), message(9, b"abcd")), Reason.SIZE_MISMATCH),
    "raw data of no elements": (tensor(typed(2, 0), message(9, b"a")), Reason.SIZE_MISMATCH),
    "raw data of texts": (tensor(typed(8, 1), message(9, b"a")), Reason.SIZE_MISMATCH),
    "no data": (tensor(typed(1, 2)), Reason.SIZE_MISMATCH),
    "fewer texts": (tensor(typed(8, 2), message(6, b"a")), Reason.SIZE_MISMATCH),
    "data of another type": (tensor(typed(1, 1), message(7, b"\x01")), Reason.SIZE_MISMATCH),
    "data twice": (
        tensor(typed(2, 1), message(9, b"a"), message(5, b"\x01")),
        Reason.SIZE_MISMATCH,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    content, expected = REFUSED[case]
    assert reason_of(check(content)) is expected


def test_what_the_cases_vary_is_itself_taken() -> None:
    assert isinstance(check(raw_model()), OnnxHeader)
    assert isinstance(check(tensor(typed(2, 3), message(9, b"abc"), number(14, 0))), OnnxHeader)
    assert isinstance(check(nested_graphs(10)), OnnxHeader)


def test_a_file_over_two_gigabytes_is_refused_unread() -> None:
    file = CountingFile(raw_model())
    assert reason_of(check_onnx(file, 2**31)) is Reason.TOO_LARGE
    assert file.bytes_read == 0


def test_endless_packed_numbers_are_refused_unread() -> None:
    count = walker.PACKED_BYTES_MAX + 1
    file = CountingFile(tensor(typed(2, 1), message(5, bytes(count))))
    assert reason_of(check_onnx(file, len(file.getvalue()))) is Reason.TOO_LARGE
    assert file.bytes_read <= WINDOW_BYTES


@pytest.mark.parametrize(
    ("repeated", "limit"),
    [
        (message(1, message(4, b"Relu")), "onnx.NODES_MAX"),
        (message(5, message(8, b"t") + typed(2, 0)), "onnx.TENSORS_MAX"),
        (message(13, b""), "onnx.VALUES_MAX"),
        (message(16, b""), "protobuf.FIELDS_MAX"),
    ],
    ids=["nodes", "tensors", "values", "fields"],
)
def test_endless_parts_are_refused(
    repeated: bytes, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"terafleet.protocol.model_files.{limit}", 100)
    assert reason_of(check(raw_model(b"", repeated * 101))) is Reason.ABSURD_HEADER


def test_a_lying_length_costs_no_memory() -> None:
    content = number(1, 10) + varint(7 << 3 | 2) + varint(2**34) + b"abc"
    tracemalloc.start()
    try:
        check(content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 200_000
