"""Decides whether an ONNX file is well formed and keeps to itself.

It takes what one file with standard operators needs and refuses what reaches outside (data in
other files) or brings code (foreign operators, functions of the model). It doesn't know whether
the graph makes sense; the runtime decides that.
"""

from collections.abc import Callable
from math import prod
from typing import BinaryIO

import msgspec

from terafleet.protocol.model_files.onnx_schema import (
    DATA_FIELDS,
    SCHEMAS,
    TENSOR_TYPE_STRING,
    TENSOR_TYPES,
    tensor_bytes,
)
from terafleet.protocol.model_files.protobuf import (
    LENGTH_BYTES_MAX,
    NUMBER_BYTES_MAX,
    Kind,
    Message,
    Walker,
    read_tag,
    read_varint,
)
from terafleet.protocol.model_files.reader import BoundedReader
from terafleet.protocol.model_files.refusal import (
    ModelFileReason,
    ModelFileRefused,
    ParseRefused,
    checked_name,
    quoted,
)

# A protocol buffer message can't be larger.
FILE_BYTES_MAX = 2**31 - 1
IR_VERSIONS = range(3, 15)
# onnxruntime promises operator sets from 7 on; 28 is the last one that onnx.proto's age knows.
OPSET_VERSIONS = range(7, 29)
NODES_MAX = 200_000
TENSORS_MAX = 100_000
VALUES_MAX = 200_000
OPSET_IMPORTS_MAX = 32
DIMENSION_MAX = 2**31 - 1
TOP_LEVEL_FIELDS_MAX = 1000

# The two names of the standard operators.
_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
_INLINE = "; functions can be inlined with onnx.inliner.inline_local_functions"
_REFUSED_PARTS = {
    "functions": (ModelFileReason.CUSTOM_OPERATOR, f"functions of its own{_INLINE}"),
    "training_info": (
        ModelFileReason.UNSUPPORTED_FORMAT,
        "graphs for training; export it for inference",
    ),
    "configuration": (
        ModelFileReason.UNSUPPORTED_FORMAT,
        "a placement on several devices; export it for one",
    ),
}


class OnnxHeader(msgspec.Struct, frozen=True):
    """What an accepted ONNX file contains.

    `inputs` are those that a caller must feed, without the ones that initializers fill.
    `operators` are names of the standard ones, and `domain::name` of others that were allowed.
    `node_count` includes nested graphs; `initializer_bytes` counts all tensors that the file
    carries, initializers and constants, as bytes of their elements.
    """

    ir_version: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    node_count: int
    initializer_bytes: int
    operators: frozenset[str]


class _Graph(msgspec.Struct, frozen=True):
    """The outer names of a graph."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Tensor(msgspec.Struct, frozen=True):
    """The name of a tensor, which only an initializer must have."""

    name: str


class _OperatorSet(msgspec.Struct, frozen=True):
    """One imported operator set."""

    domain: str
    version: int


def check_onnx(
    file: BinaryIO, size_bytes: int, allowed_domains: frozenset[str] = frozenset()
) -> OnnxHeader | ModelFileRefused:
    """What the ONNX `file` of `size_bytes` bytes contains, or why it is refused.

    Operators of `allowed_domains` are taken beside the standard ones. Reads every byte at most
    once and passes over raw weights. Raises nothing for any content.
    """
    if size_bytes > FILE_BYTES_MAX:
        detail = f"{size_bytes} bytes are more than an ONNX file can have"
        return ModelFileRefused(ModelFileReason.TOO_LARGE, detail)
    if size_bytes == 0:
        return ModelFileRefused(ModelFileReason.TRUNCATED, "the file is empty")
    try:
        return _Check(allowed_domains).run(BoundedReader(file, size_bytes))
    except ParseRefused as error:
        return error.refusal


def looks_like_onnx(reader: BoundedReader) -> bool:
    """Whether the fields of the outermost message, from where `reader` stands, are ONNX's.

    A file that ends early still looks like ONNX if its graph has begun.
    """
    has_graph = False
    schema = SCHEMAS["ModelProto"]
    try:
        for _ in range(TOP_LEVEL_FIELDS_MAX):
            if reader.position == reader.size_bytes:
                break
            field, _wire_type = read_tag(reader, "ModelProto", schema)
            has_graph = has_graph or field.name == "graph"
            if field.kind is Kind.NUMBER:
                read_varint(reader, NUMBER_BYTES_MAX)
            else:
                reader.skip(read_varint(reader, LENGTH_BYTES_MAX))
    except ParseRefused as error:
        return has_graph and error.refusal.reason is ModelFileReason.TRUNCATED
    return has_graph


class _Check:
    """The walk over one file: one method for each message that decides something."""

    def __init__(self, allowed_domains: frozenset[str]) -> None:
        self._domains = _STANDARD_DOMAINS | allowed_domains
        self._operators: set[str] = set()
        self._node_count = 0
        self._tensor_count = 0
        self._tensor_bytes = 0
        self._value_count = 0
        self._visits: dict[str, Callable[[Message], object]] = {
            "ModelProto": self._model,
            "OperatorSetIdProto": self._operator_set,
            "GraphProto": self._graph,
            "NodeProto": self._node,
            "TensorProto": self._tensor,
            "SparseTensorProto": self._sparse_tensor,
            "ValueInfoProto": self._value,
        }

    def run(self, reader: BoundedReader) -> OnnxHeader:
        """Walks the whole file."""
        header = Walker(reader, SCHEMAS, self._visit).walk("ModelProto")
        assert isinstance(header, OnnxHeader)
        return header

    def _visit(self, message: Message) -> object:
        visit = self._visits.get(message.schema)
        return None if visit is None else visit(message)

    def _model(self, message: Message) -> OnnxHeader:
        ir_version = message.number("ir_version")
        if ir_version is None:
            raise ParseRefused(ModelFileReason.MISSING_FIELD, "the model has no ir_version")
        if ir_version not in IR_VERSIONS:
            raise _version_refused("ir_version", ir_version, IR_VERSIONS)
        for part, (reason, what) in _REFUSED_PARTS.items():
            if part in message.counts:
                raise ParseRefused(reason, f"the model brings {what}")
        graph = message.values.get("graph", [None])[0]
        if not isinstance(graph, _Graph):
            raise ParseRefused(ModelFileReason.MISSING_FIELD, "the model has no graph")
        if self._node_count == 0:
            raise ParseRefused(ModelFileReason.EMPTY_MODEL, "the model has no operators")
        return OnnxHeader(
            ir_version=ir_version,
            opset=_standard_opset(message.values.get("opset_import", [])),
            inputs=graph.inputs,
            outputs=graph.outputs,
            node_count=self._node_count,
            initializer_bytes=self._tensor_bytes,
            operators=frozenset(self._operators),
        )

    def _operator_set(self, message: Message) -> _OperatorSet:
        version = message.number("version")
        if version is None:
            raise ParseRefused(ModelFileReason.MISSING_FIELD, "an operator set has no version")
        return _OperatorSet(message.text("domain"), version)

    def _graph(self, message: Message) -> _Graph:
        inputs = _names(message.values.get("input", []), "an input")
        outputs = _names(message.values.get("output", []), "an output")
        initializers = message.values.get("initializer", []) + message.values.get(
            "sparse_initializer", []
        )
        filled = frozenset(_names(initializers, "an initializer"))
        return _Graph(tuple(name for name in inputs if name not in filled), tuple(outputs))

    def _node(self, message: Message) -> None:
        self._node_count += 1
        if self._node_count > NODES_MAX:
            detail = f"the model has more than {NODES_MAX} nodes"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
        operator = checked_name(message.text("op_type"), "an operator")
        domain = message.text("domain")
        if domain not in self._domains:
            detail = f"the operator {quoted(operator)} is of the domain {quoted(domain)}{_INLINE}"
            raise ParseRefused(ModelFileReason.CUSTOM_OPERATOR, detail)
        if message.text("overload"):
            detail = f"the operator {quoted(operator)} is an overloaded function"
            raise ParseRefused(ModelFileReason.CUSTOM_OPERATOR, detail)
        is_standard = domain in _STANDARD_DOMAINS
        self._operators.add(operator if is_standard else f"{domain}::{operator}")

    def _value(self, message: Message) -> str:
        self._value_count += 1
        if self._value_count > VALUES_MAX:
            detail = f"the model describes more than {VALUES_MAX} values"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
        return message.text("name")

    def _sparse_tensor(self, message: Message) -> _Tensor:
        values = message.values.get("values", [None])[0]
        if not isinstance(values, _Tensor) or "indices" not in message.counts:
            detail = "a sparse tensor has no values or no indices"
            raise ParseRefused(ModelFileReason.MISSING_FIELD, detail)
        return values

    def _tensor(self, message: Message) -> _Tensor:
        name = message.text("name")
        what = f"the tensor {quoted(name)}"
        self._tensor_count += 1
        if self._tensor_count > TENSORS_MAX:
            detail = f"the model has more than {TENSORS_MAX} tensors"
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
        # Readers that cut the number to 32 bits would see EXTERNAL in others than 1.
        if message.number("data_location") or "external_data" in message.counts:
            detail = f"{what} lies in another file; save the model with its data in one file"
            raise ParseRefused(ModelFileReason.EXTERNAL_DATA, detail)
        dimensions = message.numbers("dims")
        if any(size > DIMENSION_MAX for size in dimensions):
            raise ParseRefused(ModelFileReason.ABSURD_HEADER, f"{what} has an absurd shape")
        self._tensor_bytes += _checked_bytes(message, prod(dimensions), what)
        return _Tensor(name)


def _checked_bytes(message: Message, element_count: int, what: str) -> int:
    """Bytes of the elements; refuses a tensor whose data are more or fewer than its shape says."""
    tensor_type = message.number("data_type")
    data_fields = DATA_FIELDS & message.counts.keys()
    if tensor_type == TENSOR_TYPE_STRING:
        expected = {"string_data": element_count}
        size_bytes = message.sizes.get("string_data", 0)
    elif tensor_type in TENSOR_TYPES:
        _bits, field, elements_per_entry = TENSOR_TYPES[tensor_type]
        size_bytes = tensor_bytes(tensor_type, element_count)
        if elements_per_entry > 0:
            expected = {field: -(-element_count // elements_per_entry)}
        else:
            expected = {field: element_count * -elements_per_entry}
    else:
        detail = f"{what} has the unknown type {tensor_type}"
        raise ParseRefused(ModelFileReason.UNKNOWN_TENSOR_TYPE, detail)
    actual = {field: message.counts[field] for field in data_fields if message.counts[field]}
    if "raw_data" in actual and tensor_type != TENSOR_TYPE_STRING:
        expected = {"raw_data": size_bytes}
        actual["raw_data"] = message.sizes["raw_data"]
    fits = actual == expected if element_count else not any(actual.values())
    if not fits:
        detail = f"{what} has {element_count} elements, and other data than these need"
        raise ParseRefused(ModelFileReason.SIZE_MISMATCH, detail)
    return size_bytes


def _names(values: list[object], what: str) -> list[str]:
    """The names in `values`, each fit to be shown and none twice."""
    seen: dict[str, None] = {}
    for value in values:
        name = value.name if isinstance(value, _Tensor) else value
        assert isinstance(name, str)
        if checked_name(name, what) in seen:
            detail = f"{what} called {quoted(name)} comes twice"
            raise ParseRefused(ModelFileReason.DUPLICATE_NAME, detail)
        seen[name] = None
    return list(seen)


def _standard_opset(imports: list[object]) -> int:
    """The version of the standard operators.

    Other domains may be imported, as exporters do by habit; without an operator they do nothing.
    """
    if len(imports) > OPSET_IMPORTS_MAX:
        detail = f"the model imports {len(imports)} operator sets"
        raise ParseRefused(ModelFileReason.ABSURD_HEADER, detail)
    versions: dict[str, int] = {}
    for operator_set in imports:
        assert isinstance(operator_set, _OperatorSet)
        domain = "" if operator_set.domain in _STANDARD_DOMAINS else operator_set.domain
        if domain in versions:
            detail = f"the operator set {quoted(domain)} is imported twice"
            raise ParseRefused(ModelFileReason.DUPLICATE_NAME, detail)
        versions[domain] = operator_set.version
    version = versions.get("")
    if version is None:
        detail = "the model does not say which standard operators it needs"
        raise ParseRefused(ModelFileReason.MISSING_FIELD, detail)
    if version not in OPSET_VERSIONS:
        raise _version_refused("opset", version, OPSET_VERSIONS)
    return version


def _version_refused(what: str, version: int, versions: range) -> ParseRefused:
    detail = f"{what} {version} is not in {versions.start} to {versions.stop - 1}"
    return ParseRefused(ModelFileReason.UNSUPPORTED_VERSION, detail)
