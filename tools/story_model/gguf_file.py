"""Writes a trained network with its vocabulary as a GGUF file, and reads its weights back.

Keys and names of tensors are those that llama.cpp reads for the architecture `llama`. It turns
neighbouring pairs of a head's numbers, as the network here does, so no matrix is rearranged.
"""

from pathlib import Path

import gguf
import numpy as np

from tools.story_model.shape import EMBEDDING, LAST_NORM, Numbers, Shape, Weights
from tools.story_model.vocabulary import BEGIN, BYTES, CONTROL, END, UNKNOWN, Vocabulary

ARCHITECTURE = "llama"
# The last message is what the story begins with.
CHAT_TEMPLATE = "{{ messages[-1]['content'] }}"


def write_gguf(path: Path, weights: Weights, vocabulary: Vocabulary, name: str) -> None:
    """Write the model as 32-bit numbers; the file is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    _add_general(writer, name)
    _add_shape(writer, weights.shape)
    _add_vocabulary(writer, vocabulary)
    for tensor, numbers in _tensors(weights):
        writer.add_tensor(f"{tensor}.weight", np.ascontiguousarray(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def read_gguf(path: Path) -> tuple[Weights, Vocabulary]:
    """The weights and the vocabulary of a file that `write_gguf` has written."""
    reader = gguf.GGUFReader(path)

    def number(key: str) -> float:
        return float(reader.fields[f"{ARCHITECTURE}.{key}"].contents())

    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    shape = Shape(
        vocabulary=len(tokens),
        context=int(number("context_length")),
        layers=int(number("block_count")),
        width=int(number("embedding_length")),
        heads=int(number("attention.head_count")),
        key_value_heads=int(number("attention.head_count_kv")),
        inner_width=int(number("feed_forward_length")),
        rope_base=number("rope.freq_base"),
        epsilon=number("attention.layer_norm_rms_epsilon"),
    )
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = Weights(shape, np.zeros(shape.parameters(), np.float32))
    for tensor, window in _tensors(weights):
        window[:] = found[f"{tensor}.weight"]
    return weights, Vocabulary(tokens[len(CONTROL) + len(BYTES) :])


def _add_general(writer: gguf.GGUFWriter, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description("Tells simple stories for children; learned from a grammar of them.")
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * len(BYTES)
    kinds += [gguf.TokenType.NORMAL] * (len(vocabulary) - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_scores(vocabulary.scores())
    writer.add_token_types(kinds)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(weights: Weights) -> list[tuple[str, Numbers]]:
    """The matrices as llama.cpp names them; those that are one here are windows into it."""
    shape = weights.shape
    tensors = [(EMBEDDING, weights[EMBEDDING])]
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        places = (shape.width, shape.width + shape.key_value_width)
        queries, keys, values = np.split(weights[block + "attn_qkv"], places)
        gate, up = np.split(weights[block + "ffn_gate_up"], 2)
        tensors += [
            (block + "attn_norm", weights[block + "attn_norm"]),
            (block + "attn_q", queries),
            (block + "attn_k", keys),
            (block + "attn_v", values),
            (block + "attn_output", weights[block + "attn_output"]),
            (block + "ffn_norm", weights[block + "ffn_norm"]),
            (block + "ffn_gate", gate),
            (block + "ffn_up", up),
            (block + "ffn_down", weights[block + "ffn_down"]),
        ]
    return [*tensors, (LAST_NORM, weights[LAST_NORM])]
