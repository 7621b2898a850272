"""A program that goes on with what it was told to stop is ended."""

import asyncio
from typing import Any

import msgspec
import pytest

from terafleet.agent.adapters.runtime import child
from terafleet.agent.adapters.runtime.child import ChildRuntime, ChildSettings
from terafleet.agent.adapters.runtime.stillness import LOOK_MS
from terafleet.agent.ports import RuntimeFailure, RuntimeLoaded, RuntimeModel, SessionWork
from terafleet.core.reasons import Failure
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS
from tests.contract.agent_stage import until
from tests.contract.models_on_disk import stories_model

DEEP, WIDE = 25, 30
STOP_LOOKS = 5


def endless_schema() -> dict[str, Any]:
    """A small schema with so many ways through it that llama.cpp is at it for ages."""
    below = [{"$ref": f"#/$defs/d{level + 1}"} for level in range(DEEP)]
    levels: dict[str, Any] = {
        f"d{level}": {"anyOf": [below[level]] * WIDE} for level in range(DEEP)
    }
    levels[f"d{DEEP}"] = {"type": "string"}
    return {"$ref": "#/$defs/d0", "$defs": levels}


def endless(model: RuntimeModel) -> SessionWork:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "endless", "schema": endless_schema()},
        },
    }
    return SessionWork("endless", model.model_id, CHAT_COMPLETIONS, msgspec.json.encode(body))


async def test_a_program_that_does_not_stop_is_ended_and_may_begin_anew(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_STOP_LOOKS_MAX", STOP_LOOKS)
    model = stories_model(tmp_path_factory)
    runtime = ChildRuntime("llama", ChildSettings(models_folder=model.folder.parent))
    endings: list[str] = []
    await runtime.start(endings.append)
    assert isinstance(await runtime.load(model), RuntimeLoaded)
    session = asyncio.create_task(runtime.open(endless(model), lambda _piece: None))
    await asyncio.sleep(0.2)
    await runtime.stop("endless")
    assert await session == RuntimeFailure("endless", Failure.STOPPED)
    body = msgspec.json.encode({"model": "m", "prompt": "Once", "max_tokens": 4})
    behind = SessionWork("behind", model.model_id, COMPLETIONS, body)
    outcome = await runtime.open(behind, lambda _piece: None)
    detail = "it did not stop what it was told to"
    assert outcome == RuntimeFailure("behind", Failure.RUNTIME_CRASHED, detail)
    await until(lambda: endings == [Failure.RUNTIME_CRASHED])
    await runtime.start(endings.append)
    assert isinstance(await runtime.load(model), RuntimeLoaded)
    assert not isinstance(await runtime.open(behind, lambda _piece: None), RuntimeFailure)
    await runtime.kill()


async def test_a_program_that_stops_lives_on(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_STOP_LOOKS_MAX", STOP_LOOKS)
    model = stories_model(tmp_path_factory)
    runtime = ChildRuntime("llama", ChildSettings(models_folder=model.folder.parent))
    endings: list[str] = []
    await runtime.start(endings.append)
    assert isinstance(await runtime.load(model), RuntimeLoaded)
    body = msgspec.json.encode({"model": "m", "prompt": "Once", "max_tokens": 400, "n": 8})
    work = SessionWork("long", model.model_id, COMPLETIONS, body)
    session = asyncio.create_task(runtime.open(work, lambda _piece: None))
    await asyncio.sleep(0.2)
    await runtime.stop("long")
    assert isinstance(await session, RuntimeFailure)
    await asyncio.sleep(2 * STOP_LOOKS * LOOK_MS / 1000)
    assert endings == []
    await runtime.kill()
