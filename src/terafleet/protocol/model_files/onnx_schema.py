"""The messages of ONNX that are taken, as a table of fields for the protobuf walker.

Field numbers are those of onnx.proto (IR version 14). What is absent here is refused, such as
opaque types, tensors in segments and the placement of a node on devices.
"""

from terafleet.protocol.model_files.protobuf import Field, Kind, Schema

NAME_BYTES_MAX = 512
TEXT_BYTES_MAX = 1024 * 1024


def _name(name: str, *, repeated: bool = False, kept: bool = False) -> Field:
    return Field(name, Kind.TEXT, repeated, kept, bytes_max=NAME_BYTES_MAX)


def _text(name: str, *, repeated: bool = False) -> Field:
    return Field(name, Kind.TEXT, repeated, bytes_max=TEXT_BYTES_MAX)


def _number(name: str, *, repeated: bool = False, kept: bool = False) -> Field:
    return Field(name, Kind.NUMBER, repeated, kept)


def _message(name: str, schema: str, *, repeated: bool = False, kept: bool = False) -> Field:
    return Field(name, Kind.MESSAGE, repeated, kept, message=schema)


def _messages(name: str, schema: str, *, kept: bool = False) -> Field:
    return _message(name, schema, repeated=True, kept=kept)


_PROPERTIES = _messages("metadata_props", "StringStringEntryProto")

SCHEMAS: dict[str, Schema] = {
    "ModelProto": {
        1: _number("ir_version", kept=True),
        2: _text("producer_name"),
        3: _text("producer_version"),
        4: _text("domain"),
        5: _number("model_version"),
        6: _text("doc_string"),
        7: _message("graph", "GraphProto", kept=True),
        8: _messages("opset_import", "OperatorSetIdProto", kept=True),
        14: _PROPERTIES,
        # The last three are known only to be refused by their names.
        20: Field("training_info", Kind.BYTES, repeated=True),
        25: Field("functions", Kind.BYTES, repeated=True),
        26: Field("configuration", Kind.BYTES, repeated=True),
    },
    "OperatorSetIdProto": {
        1: _name("domain", kept=True),
        2: _number("version", kept=True),
    },
    "GraphProto": {
        1: _messages("node", "NodeProto"),
        2: _text("name"),
        5: _messages("initializer", "TensorProto", kept=True),
        10: _text("doc_string"),
        11: _messages("input", "ValueInfoProto", kept=True),
        12: _messages("output", "ValueInfoProto", kept=True),
        13: _messages("value_info", "ValueInfoProto"),
        14: _messages("quantization_annotation", "TensorAnnotation"),
        15: _messages("sparse_initializer", "SparseTensorProto", kept=True),
        16: _PROPERTIES,
    },
    "NodeProto": {
        1: _name("input", repeated=True),
        2: _name("output", repeated=True),
        3: _name("name"),
        4: _name("op_type", kept=True),
        5: _messages("attribute", "AttributeProto"),
        6: _text("doc_string"),
        7: _name("domain", kept=True),
        8: _name("overload", kept=True),
        9: _PROPERTIES,
    },
    "AttributeProto": {
        1: _name("name"),
        2: Field("f", Kind.FIXED32),
        3: _number("i"),
        4: Field("s", Kind.BYTES),
        5: _message("t", "TensorProto"),
        6: _message("g", "GraphProto"),
        7: Field("floats", Kind.FIXED32, repeated=True),
        8: _number("ints", repeated=True),
        9: Field("strings", Kind.BYTES, repeated=True),
        10: _messages("tensors", "TensorProto"),
        11: _messages("graphs", "GraphProto"),
        13: _text("doc_string"),
        14: _message("tp", "TypeProto"),
        15: _messages("type_protos", "TypeProto"),
        20: _number("type"),
        21: _name("ref_attr_name"),
        22: _message("sparse_tensor", "SparseTensorProto"),
        23: _messages("sparse_tensors", "SparseTensorProto"),
    },
    "TensorProto": {
        1: _number("dims", repeated=True, kept=True),
        2: _number("data_type", kept=True),
        4: Field("float_data", Kind.FIXED32, repeated=True),
        5: _number("int32_data", repeated=True),
        6: Field("string_data", Kind.BYTES, repeated=True),
        7: _number("int64_data", repeated=True),
        8: _name("name", kept=True),
        9: Field("raw_data", Kind.BYTES),
        10: Field("double_data", Kind.FIXED64, repeated=True),
        11: _number("uint64_data", repeated=True),
        12: _text("doc_string"),
        13: _messages("external_data", "StringStringEntryProto"),
        14: _number("data_location", kept=True),
        16: _PROPERTIES,
    },
    "SparseTensorProto": {
        1: _message("values", "TensorProto", kept=True),
        2: _message("indices", "TensorProto"),
        3: _number("dims", repeated=True),
    },
    "ValueInfoProto": {
        1: _name("name", kept=True),
        2: _message("type", "TypeProto"),
        3: _text("doc_string"),
        4: _PROPERTIES,
    },
    "TypeProto": {
        1: _message("tensor_type", "TypeProto.Tensor"),
        4: _message("sequence_type", "TypeProto.Sequence"),
        5: _message("map_type", "TypeProto.Map"),
        6: _text("denotation"),
        8: _message("sparse_tensor_type", "TypeProto.Tensor"),
        9: _message("optional_type", "TypeProto.Optional"),
    },
    "TypeProto.Tensor": {
        1: _number("elem_type"),
        2: _message("shape", "TensorShapeProto"),
    },
    "TypeProto.Sequence": {1: _message("elem_type", "TypeProto")},
    "TypeProto.Map": {
        1: _number("key_type"),
        2: _message("value_type", "TypeProto"),
    },
    "TypeProto.Optional": {1: _message("elem_type", "TypeProto")},
    "TensorShapeProto": {1: _messages("dim", "Dimension")},
    "Dimension": {
        1: _number("dim_value"),
        2: _name("dim_param"),
        3: _text("denotation"),
    },
    "TensorAnnotation": {
        1: _name("tensor_name"),
        2: _messages("quant_parameter_tensor_names", "StringStringEntryProto"),
    },
    "StringStringEntryProto": {
        1: _text("key"),
        2: _text("value"),
    },
}

# Number of a TensorProto.DataType: (bits of an element in raw_data, the field that holds elements
# otherwise, elements in one entry of that field; a negative count: entries for one element).
TENSOR_TYPES: dict[int, tuple[int, str, int]] = {
    1: (32, "float_data", 1),  # FLOAT
    2: (8, "int32_data", 1),  # UINT8
    3: (8, "int32_data", 1),  # INT8
    4: (16, "int32_data", 1),  # UINT16
    5: (16, "int32_data", 1),  # INT16
    6: (32, "int32_data", 1),  # INT32
    7: (64, "int64_data", 1),  # INT64
    9: (8, "int32_data", 1),  # BOOL
    10: (16, "int32_data", 1),  # FLOAT16
    11: (64, "double_data", 1),  # DOUBLE
    12: (32, "uint64_data", 1),  # UINT32
    13: (64, "uint64_data", 1),  # UINT64
    14: (64, "float_data", -2),  # COMPLEX64
    15: (128, "double_data", -2),  # COMPLEX128
    16: (16, "int32_data", 1),  # BFLOAT16
    17: (8, "int32_data", 1),  # FLOAT8E4M3FN
    18: (8, "int32_data", 1),  # FLOAT8E4M3FNUZ
    19: (8, "int32_data", 1),  # FLOAT8E5M2
    20: (8, "int32_data", 1),  # FLOAT8E5M2FNUZ
    21: (4, "int32_data", 2),  # UINT4
    22: (4, "int32_data", 2),  # INT4
    23: (4, "int32_data", 2),  # FLOAT4E2M1
    24: (8, "int32_data", 1),  # FLOAT8E8M0
    25: (2, "int32_data", 4),  # UINT2
    26: (2, "int32_data", 4),  # INT2
    27: (6, "int32_data", 1),  # FLOAT6E2M3
    28: (6, "int32_data", 1),  # FLOAT6E3M2
}
TENSOR_TYPE_STRING = 8
DATA_FIELDS = frozenset({entry[1] for entry in TENSOR_TYPES.values()} | {"string_data", "raw_data"})


def tensor_bytes(data_type: int, element_count: int) -> int:
    """Bytes of `element_count` elements of a type of `TENSOR_TYPES`, packed as in raw_data."""
    return (element_count * TENSOR_TYPES[data_type][0] + 7) // 8
