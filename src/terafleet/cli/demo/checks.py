"""Holds the fleet's answers to those of one process, and uses them to answer a question."""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

COSINE_MIN = 0.9999
"""Below it an answer does not count as equal: rounding in another order moves it by about 1e-7."""


class Answers(msgspec.Struct, frozen=True):
    """What the batch's files held: embeddings by `custom_id`, how often each came, and errors."""

    embeddings: dict[str, Any]
    times: Counter[str]
    errors: list[str]


def read_answers(output: bytes, errors: bytes) -> Answers:
    """Read an output and an error file of OpenAI's form with base64 embeddings."""
    embeddings: dict[str, Any] = {}
    times: Counter[str] = Counter()
    failed = []
    for line in output.splitlines():
        answer = msgspec.json.decode(line)
        times[answer["custom_id"]] += 1
        embedding = answer["response"]["body"]["data"][0]["embedding"]
        embeddings[answer["custom_id"]] = np.frombuffer(base64.b64decode(embedding), "<f4")
    for line in errors.splitlines():
        answer = msgspec.json.decode(line)
        times[answer["custom_id"]] += 1
        failed.append(f"{answer['custom_id']}: {answer.get('error') or answer.get('response')}")
    return Answers(embeddings, times, failed)


def answered_once(names: Iterable[str], answers: Answers) -> int:
    """How many requests have exactly one answer, and that no error."""
    return sum(answers.times[name] == 1 and name in answers.embeddings for name in names)


def cosine_min(names: Sequence[str], expected: Vectors, answers: Answers) -> float:
    """The least cosine between an answer and the expected vector; -1 where one is missing."""
    if any(name not in answers.embeddings for name in names):
        return -1.0
    given = np.stack([answers.embeddings[name] for name in names]).astype(np.float64)
    wanted = expected.astype(np.float64)
    lengths = np.linalg.norm(given, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((given * wanted).sum(axis=1) / lengths).min())


def nearest(
    question: Vectors, names: Sequence[str], answers: Answers, count: int
) -> list[tuple[str, float]]:
    """The names whose answers lie nearest to a question, with their cosines, best first."""
    found = [name for name in names if name in answers.embeddings]
    matrix = np.stack([answers.embeddings[name] for name in found])
    scores = matrix @ question / np.linalg.norm(matrix, axis=1)
    best = np.argsort(-scores)[:count]
    return [(found[index], float(scores[index])) for index in best]
