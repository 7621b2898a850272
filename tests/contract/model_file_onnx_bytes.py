"""ONNX files for tests: whole ones by the reference library, crooked ones byte by byte."""

import io
from typing import Any

import numpy as np
import onnx.numpy_helper
from onnx import GraphProto, NodeProto, TensorProto, helper

from terafleet.protocol.model_files.onnx import OnnxHeader, check_onnx
from terafleet.protocol.model_files.refusal import ModelFileRefused


def value(name: str) -> onnx.ValueInfoProto:
    """A value of two columns."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])


def weights(name: str = "w") -> TensorProto:
    """A tensor of four numbers."""
    return onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), name)


def graph(*nodes: NodeProto, initializers: list[TensorProto] | None = None) -> GraphProto:
    """A graph of `nodes`, or of one."""
    found = nodes or (helper.make_node("MatMul", ["x", "w"], ["y"]),)
    tensors = [weights()] if initializers is None else initializers
    return helper.make_graph(found, "g", [value("x"), value("w")], [value("y")], tensors)


def model(found: GraphProto | None = None, **more: Any) -> bytes:
    """A file with the graph; `more` goes to the reference library."""
    more.setdefault("ir_version", 10)
    more.setdefault("opset_imports", [helper.make_opsetid("", 17)])
    whole = helper.make_model(graph() if found is None else found, **more)
    content: bytes = whole.SerializeToString()
    return content


def branch(*nodes: NodeProto) -> GraphProto:
    """A graph to be nested."""
    return helper.make_graph(nodes, "branch", [], [value("b")], [weights("v")])


def conditional(*nodes: NodeProto) -> NodeProto:
    """A node with two nested graphs."""
    identity = helper.make_node("Identity", ["v"], ["b"])
    return helper.make_node(
        "If", ["x"], ["y"], then_branch=branch(*nodes), else_branch=branch(identity)
    )


def sparse(name: str) -> onnx.SparseTensorProto:
    """A sparse tensor."""
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [3])
    values = helper.make_tensor(name, TensorProto.FLOAT, [1], [2.5])
    return helper.make_sparse_tensor(values, indices, [4])


def check(
    content: bytes, allowed_domains: frozenset[str] = frozenset()
) -> OnnxHeader | ModelFileRefused:
    """The answer of the parser."""
    return check_onnx(io.BytesIO(content), len(content), allowed_domains)


def varint(rest: int) -> bytes:
    """A number of variable length."""
    encoded = b""
    while rest > 0x7F:
        encoded += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return encoded + bytes([rest])


def number(field: int, content: int) -> bytes:
    """A field with a number."""
    return varint(field << 3) + varint(content)


def message(field: int, content: bytes) -> bytes:
    """A field with bytes: a text, a message or packed numbers."""
    return varint(field << 3 | 2) + varint(len(content)) + content


NODE = message(1, message(4, b"Relu"))
OPSET = message(8, number(2, 17))


def raw_model(in_node: bytes = b"", in_graph: bytes = b"", in_model: bytes = b"") -> bytes:
    """A file with one node, and with more in its three outer messages."""
    node = message(1, message(4, b"Relu") + in_node)
    return number(1, 10) + OPSET + message(7, node + in_graph) + in_model


def tensor(*parts: bytes) -> bytes:
    """A file with one initializer."""
    return raw_model(b"", message(5, message(8, b"t") + b"".join(parts)))


def typed(data_type: int, *dimensions: int) -> bytes:
    """Type and shape of a tensor."""
    return b"".join(number(1, size) for size in dimensions) + number(2, data_type)
