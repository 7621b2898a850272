"""Live requests by the description: what it allows, and what it doesn't, is answered as it says."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.core.result import Ok

from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS
from tests.contract.chat_stage import Opened, live_thread
from tests.contract.customer_stage import ALICE
from tests.contract.live_gateway import EMBEDDER, WRITER
from tests.contract.thrown_requests import NEGATIVE, POSITIVE, Thrower

EXAMPLES_PER_OPERATION = 50
MODELS = {CHAT_COMPLETIONS: WRITER, COMPLETIONS: WRITER, EMBEDDINGS: EMBEDDER}
TEXTS_MAX = {"n": 3, "max_tokens": 8, "max_completion_tokens": 8}
"""What the fleet of a test can say in time."""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Opened]:
    with live_thread() as thread, thread.open() as opened:
        yield opened


def fit(case: Any) -> None:
    """Ask for a model that there is, and for no more than a test has time for."""
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = MODELS[case.path]
    for name, most in TEXTS_MAX.items():
        if type(body.get(name)) is int and body[name] > most:
            body[name] = 1 + body[name] % most
    if isinstance(body.get("prompt"), list):
        body["prompt"] = body["prompt"][:4]


def operations(thrower: Thrower) -> dict[str, Any]:
    """What the description says of live inference."""
    schema = schemathesis.openapi.from_dict(thrower.get("/openapi.json"))
    found = {}
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        if operation.path in MODELS:
            found[operation.path] = operation
    return found


@pytest.mark.parametrize("path", MODELS)
def test_what_is_described_is_answered(gateway: Opened, path: str) -> None:
    with Thrower(gateway.url, ALICE, EXAMPLES_PER_OPERATION, fit) as thrower:
        operation = operations(thrower)[path]
        # Not all: some values go with others only, which no description says.
        assert thrower.throw(operation, POSITIVE) >= EXAMPLES_PER_OPERATION // 10
        thrower.throw(operation, NEGATIVE)


def test_the_description_has_all_that_may_be_asked(gateway: Opened) -> None:
    with Thrower(gateway.url, ALICE, 1) as thrower:
        found = thrower.get("/openapi.json")
    schemas = found["components"]["schemas"]
    for path, name in ((CHAT_COMPLETIONS, "LiveChat"), (COMPLETIONS, "LiveCompletion")):
        operation = found["paths"][path]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{name}"}
        assert schemas[name]["additionalProperties"] is False
        assert {"stream", "n", "seed", "stop", "logit_bias", "user"} <= set(
            schemas[name]["properties"]
        )
        assert set(operation["responses"]["200"]["content"]) == {
            "application/json",
            "text/event-stream",
        }
        assert [one["name"] for one in operation["parameters"]] == ["terafleet-explain"]
    assert {"tools", "tool_choice", "response_format", "logprobs"} <= set(
        schemas["LiveChat"]["properties"]
    )
    assert "ChatChunk" in schemas
    embeddings = found["paths"][EMBEDDINGS]["post"]["responses"]["200"]["content"]
    assert set(embeddings) == {"application/json"}
    assert found["paths"]["/metrics"]["get"]["security"] == [{}, {"api_key": []}]
