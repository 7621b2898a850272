"""The description of the gateway is true: whatever is sent by it, the answer is in its form."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
)

from terafleet.control.ports import CodeRow, VehicleRow
from terafleet.protocol.errors import ERRORS, ErrorReply
from tests.contract.gateway_app import START_MS, Server, Stage

POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
EXAMPLES_PER_OPERATION = 6

NO_HTTP = b"Invalid HTTP request received."
"""What uvicorn answers to what is no HTTP; it never comes to us."""


class Background:
    """A gateway in the event loop of another thread."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.secret = self.stage.add_key("operator")
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._has_started = threading.Event()
        self._may_end = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> "Background":
        self._thread.start()
        assert self._has_started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._may_end.set)
        self._thread.join(30)
        self._loop.close()

    async def _run(self) -> None:
        await self.stage.start()
        async with Server(self.stage.context) as server:
            self.port = server.port
            self._has_started.set()
            await self._may_end.wait()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Background]:
    with Background() as background:
        background.stage.catalogue.add_code(CodeRow(b"1" * 32, START_MS, START_MS + 1))
        row = VehicleRow("veh-abcdefghij", "a car", "UABC", START_MS)
        background.stage.catalogue.use_code(b"1" * 32, row, START_MS)
        yield background


def checked(gateway: Background, operation: Any, session: requests.Session, mode: Any) -> int:
    """Send what the description allows (or what it doesn't); how many answers were good."""
    good = 0
    address = f"http://127.0.0.1:{gateway.port}"
    headers = {"authorization": f"Bearer {gateway.secret}"}

    @settings(
        max_examples=EXAMPLES_PER_OPERATION,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal good
        response = case.call(base_url=address, session=session, headers=headers)
        if response.content == NO_HTTP:
            return
        assert response.headers["x-request-id"][0].startswith("req_")
        if response.status_code < 400:
            good += 1
            case.validate_response(
                response, checks=[content_type_conformance, response_schema_conformance]
            )
            return
        assert response.status_code < 500, f"{case.as_curl_command()}\n{response.text}"
        if case.method.upper() != "HEAD":
            error = msgspec.json.decode(response.content, type=ErrorReply).error
            assert ERRORS[error.code].status == response.status_code
            assert ERRORS[error.code].type == error.type

    send()
    return good


def test_the_description_is_kept_whatever_is_sent(gateway: Background) -> None:
    good: dict[str, int] = {}
    with requests.Session() as session:
        found = session.get(f"http://127.0.0.1:{gateway.port}/openapi.json").json()
        schema = schemathesis.openapi.from_dict(found)
        for result in schema.get_all_operations():
            assert isinstance(result, Ok), result
            operation = result.ok()
            good[operation.label] = checked(gateway, operation, session, POSITIVE)
            # Of what takes nothing there is nothing that could be wrong.
            with contextlib.suppress(Unsatisfiable):
                checked(gateway, operation, session, NEGATIVE)
    assert len(good) > 30
    for label in ("GET /", "GET /v1/files", "GET /admin/v1/keys", "GET /admin/v1/vehicles"):
        assert good[label] > 0


def test_the_description_names_every_error_once(gateway: Background) -> None:
    found = requests.get(f"http://127.0.0.1:{gateway.port}/openapi.json", timeout=10).json()
    assert found["components"]["securitySchemes"] == {
        "api_key": {"type": "http", "scheme": "bearer"}
    }
    assert not any(path.startswith("/schema") for path in found["paths"])
    for path, operations in found["paths"].items():
        for operation in operations.values():
            reference = operation["responses"]["default"]["content"]["application/json"]["schema"]
            assert reference == {"$ref": "#/components/schemas/ErrorReply"}
            needs_key = path.startswith(("/v1/", "/admin/"))
            assert bool(operation.get("security")) is needs_key, path


def test_no_route_but_the_known_ones_is_open_to_strangers(gateway: Background) -> None:
    address = f"http://127.0.0.1:{gateway.port}"
    is_open = set()
    with requests.Session() as session:
        paths = session.get(f"{address}/openapi.json").json()["paths"]
        for path, operations in paths.items():
            for method in operations:
                response = session.request(method, address + path.replace("{", "").replace("}", ""))
                if response.status_code != 401:
                    is_open.add(f"{method} {path} {response.status_code}")
    assert is_open == {
        "get / 200",
        "get /healthz 200",
        "get /readyz 200",
        # From this computer only, but for a setting.
        "get /metrics 200",
        # A small body is read first, and an address that is not signed opens nothing.
        "post /fleet/v1/enrol 400",
        "post /fleet/v1/renew 400",
        "get /fleet/v1/models/{model_id} 403",
        "get /fleet/v1/objects/{name} 403",
        "put /fleet/v1/objects/{name} 403",
    }
