"""Sets up the agent's log: one line for each thing worth knowing, to stderr or a file."""

import logging
import sys
from pathlib import Path
from typing import TextIO

import structlog

LINE = "%(asctime)s %(levelname)s %(name)s %(message)s"


def set_up_logs(level: str, path: Path | None) -> None:
    """Send everything from `level` upwards to a file, or to stderr. Raises OSError."""
    stream: TextIO = sys.stderr
    if path is not None:
        stream = path.open("a", encoding="utf-8", buffering=1)
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.INFO), stream=stream, format=LINE, force=True)
    # httpx tells of each request at this level, with the signature in its address.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
