"""Writes the graph of a BERT sentence encoder: tokens in, one vector a text out.

The layers are those of Devlin and others, "BERT" (2018), in the form that was published with
it: after attention and after the inner layer comes the sum, then the normalisation.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]

OPSET: Final = 23
"""The first operator set with `Attention`, which onnxruntime runs fused."""

_IR_VERSION: Final = 10


class BertShape(msgspec.Struct, frozen=True):
    """What the graph must know of a model beside its weights."""

    layers: int
    heads: int
    hidden: int
    layer_norm_epsilon: float
    pooling: Literal["mean", "cls"]
    is_normalized: bool


def bert_graph(shape: BertShape, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """The model from `input_ids` and `attention_mask` (texts, tokens) to `embedding`.

    `weights` bear their published names, without the prefix `bert.`, as 32-bit numbers.
    """
    graph = _Graph(shape, weights)
    graph.write()
    texts_by_tokens = ["texts", "tokens"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, texts_by_tokens)
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", shape.hidden])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "bert", inputs, [output], graph.tensors),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="terafleet",
    )
    assert isinstance(model, onnx.ModelProto)
    return model


class _Graph:
    """Nodes and tensors as they are written; every value bears the name of what made it."""

    def __init__(self, shape: BertShape, weights: Mapping[str, Array]) -> None:
        self._shape = shape
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def write(self) -> None:
        """Write the whole graph."""
        self._prepare_mask()
        states = self._embed()
        for layer in range(self._shape.layers):
            states = self._layer(states, f"encoder.layer.{layer}")
        self._pool(states)

    def _prepare_mask(self) -> None:
        """Which token may look at which: `allowed`, texts by 1 by tokens by tokens."""
        self._node("Shape", ["input_ids"], "text_count", start=0, end=1)
        self._node("Shape", ["input_ids"], "token_count", start=1, end=2)
        self._integers("one", [1])
        sizes = ["text_count", "one", "token_count", "token_count"]
        self._node("Concat", sizes, "allowed_size", axis=0)
        self._integers("middle_axes", [1, 2])
        self._node("Cast", ["attention_mask"], "is_token", to=TensorProto.BOOL)
        self._node("Unsqueeze", ["is_token", "middle_axes"], "allowed_row")
        self._node("Expand", ["allowed_row", "allowed_size"], "allowed")

    def _embed(self) -> str:
        """Word, position and the one kind of text there is; the latter two are summed here."""
        positions = self._weights["embeddings.position_embeddings.weight"]
        kinds = self._weights["embeddings.token_type_embeddings.weight"]
        self._numbers("words", self._weights["embeddings.word_embeddings.weight"])
        self._numbers("positions", positions + kinds[0])
        self._integers("zero", [0])
        self._node("Gather", ["words", "input_ids"], "word_states")
        self._node("Slice", ["positions", "zero", "token_count", "zero"], "position_states")
        self._node("Add", ["word_states", "position_states"], "embedding_sum")
        return self._normalized("embedding_sum", "embeddings.LayerNorm")

    def _layer(self, states: str, name: str) -> str:
        attended = self._attention(states, f"{name}.attention")
        inner = self._linear(attended, f"{name}.intermediate.dense")
        active = self._node("Gelu", [inner], f"{name}.active")
        outer = self._linear(active, f"{name}.output.dense")
        summed = self._node("Add", [outer, attended], f"{name}.sum")
        return self._normalized(summed, f"{name}.output.LayerNorm")

    def _attention(self, states: str, name: str) -> str:
        """All heads at once; queries, keys and values come from one multiplication."""
        parts = [f"{name}.self.{part}" for part in ("query", "key", "value")]
        weight = np.concatenate([self._weights[f"{part}.weight"] for part in parts])
        bias = np.concatenate([self._weights[f"{part}.bias"] for part in parts])
        together = self._product(states, f"{name}.self", weight, bias)
        self.nodes.append(
            helper.make_node(
                "Split", [together], parts, name=f"{name}.split", axis=-1, num_outputs=3
            )
        )
        heads = self._shape.heads
        context = self._node(
            "Attention",
            [*parts, "allowed"],
            f"{name}.context",
            q_num_heads=heads,
            kv_num_heads=heads,
        )
        projected = self._linear(context, f"{name}.output.dense")
        summed = self._node("Add", [projected, states], f"{name}.sum")
        return self._normalized(summed, f"{name}.output.LayerNorm")

    def _pool(self, states: str) -> None:
        pooled = self._mean(states) if self._shape.pooling == "mean" else self._first(states)
        if self._shape.is_normalized:
            self._node("LpNormalization", [pooled], "embedding", axis=-1, p=2)
        else:
            self._node("Identity", [pooled], "embedding")

    def _mean(self, states: str) -> str:
        """The mean over the tokens that are no padding; every text has at least one."""
        self._integers("last_axis", [-1])
        self._node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        self._node("Unsqueeze", ["mask", "last_axis"], "mask_column")
        self._node("Mul", [states, "mask_column"], "masked")
        self._node("ReduceSum", ["masked", "one"], "masked_sum", keepdims=0)
        self._node("ReduceSum", ["mask", "one"], "mask_sum", keepdims=1)
        return self._node("Div", ["masked_sum", "mask_sum"], "pooled")

    def _first(self, states: str) -> str:
        first = helper.make_tensor("first", TensorProto.INT64, [], [0])
        self.tensors.append(first)
        return self._node("Gather", [states, "first"], "pooled", axis=1)

    def _linear(self, states: str, name: str) -> str:
        return self._product(
            states, name, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        )

    def _product(self, states: str, name: str, weight: Array, bias: Array) -> str:
        """`states` times the transposed `weight` plus `bias`; published weights are out by in."""
        self._numbers(f"{name}.weight", weight.T)
        self._numbers(f"{name}.bias", bias)
        product = self._node("MatMul", [states, f"{name}.weight"], f"{name}.product")
        return self._node("Add", [product, f"{name}.bias"], name)

    def _normalized(self, states: str, name: str) -> str:
        self._numbers(f"{name}.weight", self._weights[f"{name}.weight"])
        self._numbers(f"{name}.bias", self._weights[f"{name}.bias"])
        inputs = [states, f"{name}.weight", f"{name}.bias"]
        epsilon = self._shape.layer_norm_epsilon
        return self._node("LayerNormalization", inputs, name, axis=-1, epsilon=epsilon)

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _numbers(self, name: str, values: Array) -> None:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))

    def _integers(self, name: str, values: list[int]) -> None:
        self.tensors.append(numpy_helper.from_array(np.array(values, np.int64), name))
