"""A BERT with random weights, large enough to spend seconds on a request of some dozen texts."""

from pathlib import Path

import numpy as np

from tests.contract.small_bert import WORDS, Weights, publish
from tests.system.fleet_stage import FleetStage, line_of

NAME = "slow"
HIDDEN, INNER, HEADS, LAYERS, POSITIONS = 192, 768, 3, 6, 256
TEXT = "car " * 200
"""About 20 ms on a processor of 2024 that does nothing else."""


def slow_weights() -> Weights:
    """Random weights under the names that BERT publishes; all layers are alike."""
    chance = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    normals = ["embeddings.LayerNorm"]
    parts = {
        **dict.fromkeys(("attention.self.query", "attention.self.key"), (HIDDEN, HIDDEN)),
        **dict.fromkeys(("attention.self.value", "attention.output.dense"), (HIDDEN, HIDDEN)),
        "intermediate.dense": (INNER, HIDDEN),
        "output.dense": (HIDDEN, INNER),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part, (rows, columns) in parts.items():
            shapes[f"{name}.{part}.weight"] = (rows, columns)
            shapes[f"{name}.{part}.bias"] = (rows,)
        normals += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name in normals:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (HIDDEN,)
    return {
        name: chance.normal(0.0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()
    }


def add_slow_encoder(stage: FleetStage, folder: Path) -> None:
    """Publish the model as an operator does, from a folder as its makers would give it."""
    published = publish(
        folder,
        slow_weights(),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        max_position_embeddings=POSITIONS,
    )
    added = stage.command("model", "add", NAME, str(published))
    assert added.returncode == 0, added.stderr


def slow_file(requests: int, texts: int) -> bytes:
    """A batch file in which each request has so many texts; a work unit has one request at least.

    Of up to a dozen requests for each slot, each is a unit of its own.
    """
    body = {"model": NAME, "input": [TEXT] * texts}
    return b"".join(line_of(f"request-{number}", body) for number in range(requests))
