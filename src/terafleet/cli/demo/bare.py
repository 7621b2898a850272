"""Embeds texts in one process without a fleet: what the fleet's answers and speed are held to.

Run as a program: `python -m terafleet.cli.demo.bare MODEL_FOLDER PAYLOAD VECTORS THREADS UNIT`.
PAYLOAD holds JSON Lines of request bodies, VECTORS is written as a NumPy array, and one line of
JSON with `requests`, `seconds` and `tokens` is printed.
"""

import base64
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

ENDPOINT = "/v1/embeddings"


def main(arguments: list[str]) -> int:
    """Embed a payload with one thread a core, in pieces of the fleet's unit size."""
    import numpy as np

    from terafleet.agent.runtime_host.embedder import Embedder

    folder, payload_file, vectors_file = (Path(one) for one in arguments[:3])
    threads, unit = int(arguments[3]), int(arguments[4])
    embedder = Embedder(folder, threads=1)
    lines = payload_file.read_bytes().splitlines(keepends=True)
    pieces = [b"".join(lines[at : at + unit]) for at in range(0, len(lines), unit)]
    embedder.answer(pieces[0], ENDPOINT)  # The first run allocates; it is not timed.
    started_s = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        answered = list(pool.map(lambda piece: embedder.answer(piece, ENDPOINT), pieces))
    seconds = time.perf_counter() - started_s
    vectors = [
        np.frombuffer(base64.b64decode(json.loads(line)["body"]["data"][0]["embedding"]), "<f4")
        for payload, _ in answered
        for line in payload.splitlines()
    ]
    np.save(vectors_file, np.stack(vectors))
    tokens = sum(count for _, count in answered)
    sys.stdout.write(
        json.dumps({"requests": len(lines), "seconds": seconds, "tokens": tokens}) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
