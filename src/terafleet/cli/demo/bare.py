"""Embeds texts on this computer without a fleet: what the fleet's answers and speed are held to.

Run as a program: `python -m terafleet.cli.demo.bare MODEL PAYLOAD VECTORS WORKERS UNIT KIND`.
MODEL is a folder, PAYLOAD holds JSON Lines of request bodies, VECTORS is written as a NumPy array,
KIND is `threads` (of one process) or `processes`. One line of JSON with `requests`, `seconds` and
`tokens` is printed.
"""

import base64
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

ENDPOINT = "/v1/embeddings"
WARM_TIMES = 2

_embedder: Any = None


def _load(folder: Path) -> None:
    """Load the model once a process; each worker uses one thread for one piece at a time."""
    from terafleet.agent.runtime_host.embedder import Embedder

    global _embedder
    if _embedder is None:
        _embedder = Embedder(folder, threads=1)


def _answer(piece: bytes) -> tuple[bytes, int]:
    answered: tuple[bytes, int] = _embedder.answer(piece, ENDPOINT)
    return answered


def _pool(kind: str, workers: int, folder: Path) -> Executor:
    if kind == "threads":
        return ThreadPoolExecutor(workers, initializer=_load, initargs=(folder,))
    context = get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_load, initargs=(folder,))


def embed(
    pieces: Sequence[bytes], kind: str, workers: int, folder: Path
) -> tuple[float, list[tuple[bytes, int]]]:
    """Answer all pieces; the seconds are without the load of the model and a first round."""
    with _pool(kind, workers, folder) as pool:
        # The first runs load the model and allocate; they are not timed.
        list(pool.map(_answer, [pieces[0]] * workers * WARM_TIMES))
        started_s = time.perf_counter()
        answered = list(pool.map(_answer, pieces))
        return time.perf_counter() - started_s, answered


def main(arguments: list[str]) -> int:
    """Embed a payload with a worker a core, in pieces of the fleet's unit size."""
    import numpy as np

    folder, payload_file, vectors_file = (Path(one) for one in arguments[:3])
    workers, unit, kind = int(arguments[3]), int(arguments[4]), arguments[5]
    lines = payload_file.read_bytes().splitlines(keepends=True)
    pieces = [b"".join(lines[at : at + unit]) for at in range(0, len(lines), unit)]
    seconds, answered = embed(pieces, kind, workers, folder)
    vectors = [
        np.frombuffer(base64.b64decode(json.loads(line)["body"]["data"][0]["embedding"]), "<f4")
        for payload, _ in answered
        for line in payload.splitlines()
    ]
    np.save(vectors_file, np.stack(vectors))
    tokens = sum(count for _, count in answered)
    figures = {"requests": len(lines), "seconds": seconds, "tokens": tokens}
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
