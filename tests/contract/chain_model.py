"""A language model whose next token follows from the last one alone, for exact expectations.

Its hidden state is the last token itself, and its output the row of a table of successors.
"""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from terafleet.agent.ports import RuntimeModel

WIDTH, HEADS, INNER, CONTEXT = 320, 5, 32, 1024
BEGIN_ID, END_ID, FIRST_BYTE_ID = 1, 2, 3
CERTAINTY = 8.0
"""What the successor's logit has before the others, which is multiplied by the state's length."""

Matrix = npt.NDArray[np.float32]


def byte_ids(text: str) -> list[int]:
    """A text as tokens of one byte each."""
    return [FIRST_BYTE_ID + byte for byte in text.encode()]


def number_spelled(pieces: Sequence[str]) -> tuple[list[bytes], list[int]]:
    """A vocabulary with bytes as numbers, with the types of its tokens."""
    control = [b"<unk>", b"<s>", b"</s>"]
    numbers = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.NORMAL] * len(pieces)
    return [*control, *numbers, *[piece.encode() for piece in pieces]], [int(one) for one in kinds]


def character_spelled(pieces: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """A vocabulary with bytes as printable characters, with the types of its tokens."""
    control = [b"<none>", b"<begin>", b"<end>"]
    pieces = [*[bytes([byte]) for byte in range(256)], *pieces]
    kinds = [int(gguf.TokenType.CONTROL)] * 3 + [int(gguf.TokenType.NORMAL)] * len(pieces)
    return control + [printed(piece).encode() for piece in pieces], kinds


def printed(piece: bytes) -> str:
    """Bytes as GPT-2's tokenizer prints them."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in itself]
    return "".join(chr(b if b in itself else 256 + others.index(b)) for b in piece)


def chain_model(
    folder: Path,
    tokenizer: str,
    vocabulary: tuple[list[bytes], list[int]],
    chain: Sequence[int],
    template: str | None = None,
) -> RuntimeModel:
    """Write a model that says the tokens of `chain`, each at most once in it, over and over."""
    folder.mkdir(parents=True)
    tokens, kinds = vocabulary
    assert len(set(chain)) == len(chain)
    assert len(tokens) <= WIDTH
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    add_shape(writer)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_bos_token_id(BEGIN_ID)
    writer.add_eos_token_id(END_ID)
    if tokenizer == "gpt2":
        writer.add_tokenizer_pre("default")
        writer.add_token_merges([f"{printed(b'a')} {printed(b'b')}"])
    if template is not None:
        writer.add_chat_template(template)
    for name, numbers in tensors(len(tokens), chain):
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return RuntimeModel(folder.name, "llama", folder, {"context_tokens": CONTEXT})


def add_shape(writer: gguf.GGUFWriter) -> None:
    """The numbers that llama.cpp asks for."""
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)


def tensors(vocabulary: int, chain: Sequence[int]) -> list[tuple[str, Matrix]]:
    """One layer that adds nothing, between a table of tokens and one of their successors."""
    embedding = np.eye(vocabulary, WIDTH, dtype=np.float32)
    output = np.zeros((vocabulary, WIDTH), np.float32)
    for token in range(vocabulary):
        output[chain[0], token] = CERTAINTY
    for token, successor in zip(chain, [*chain[1:], chain[0]], strict=True):
        output[chain[0], token] = 0
        output[successor, token] = CERTAINTY
    ones = np.ones(WIDTH, np.float32)
    square = np.zeros((WIDTH, WIDTH), np.float32)
    wide = np.zeros((INNER, WIDTH), np.float32)
    layer = {
        "attn_norm": ones,
        "attn_q": square,
        "attn_k": square,
        "attn_v": square,
        "attn_output": square,
        "ffn_norm": ones,
        "ffn_gate": wide,
        "ffn_up": wide,
        "ffn_down": np.zeros((WIDTH, INNER), np.float32),
    }
    return [
        ("token_embd.weight", embedding),
        ("output_norm.weight", ones),
        ("output.weight", output),
        *[(f"blk.0.{name}.weight", numbers) for name, numbers in layer.items()],
    ]
