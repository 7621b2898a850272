"""The description of the gateway is true: whatever is sent by it, the answer is in its form."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok

from terafleet.control.gateway.app import create_app
from terafleet.control.ports import CodeRow, VehicleRow
from tests.contract.gateway_app import START_MS, Stage
from tests.contract.http_stage import served
from tests.contract.thrown_requests import NEGATIVE, POSITIVE, Thrower

EXAMPLES_PER_OPERATION = 6


class Background:
    """A gateway in the event loop of another thread."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.secret = self.stage.add_key("operator")
        self.url = ""
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
        async with served(create_app(self.stage.context)) as (_, self.url):
            self._has_started.set()
            await self._may_end.wait()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Background]:
    with Background() as background:
        background.stage.catalogue.add_code(CodeRow(b"1" * 32, START_MS, START_MS + 1))
        row = VehicleRow("veh-abcdefghij", "a car", "UABC", START_MS)
        background.stage.catalogue.use_code(b"1" * 32, row, START_MS)
        yield background


def test_the_description_is_kept_whatever_is_sent(gateway: Background) -> None:
    good: dict[str, int] = {}
    with Thrower(gateway.url, gateway.secret, EXAMPLES_PER_OPERATION) as thrower:
        schema = schemathesis.openapi.from_dict(thrower.get("/openapi.json"))
        for result in schema.get_all_operations():
            assert isinstance(result, Ok), result
            operation = result.ok()
            good[operation.label] = thrower.throw(operation, POSITIVE)
            # Of what takes nothing there is nothing that could be wrong.
            with contextlib.suppress(Unsatisfiable):
                thrower.throw(operation, NEGATIVE)
    assert len(good) > 30
    for label in ("GET /", "GET /v1/files", "GET /admin/v1/keys", "GET /admin/v1/vehicles"):
        assert good[label] > 0
    for label in ("GET /healthz", "GET /readyz", "GET /metrics"):
        assert good[label] > 0, label


def test_the_description_names_every_error_once(gateway: Background) -> None:
    found = requests.get(f"{gateway.url}/openapi.json", timeout=10).json()
    assert found["components"]["securitySchemes"] == {
        "api_key": {"type": "http", "scheme": "bearer"}
    }
    assert not any(path.startswith("/schema") for path in found["paths"])
    for path, operations in found["paths"].items():
        for operation in operations.values():
            reference = operation["responses"]["default"]["content"]["application/json"]["schema"]
            assert reference == {"$ref": "#/components/schemas/ErrorReply"}
            needs_key = path.startswith(("/v1/", "/admin/"))
            security = operation.get("security", [])
            assert (bool(security) and {} not in security) is needs_key, path


def test_no_route_but_the_known_ones_is_open_to_strangers(gateway: Background) -> None:
    address = gateway.url
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
        "head /healthz 200",
        "get /readyz 200",
        "head /readyz 200",
        # From this computer only, but for a setting.
        "get /metrics 200",
        # A small body is read first, and an address that is not signed opens nothing.
        "post /fleet/v1/enrol 400",
        "post /fleet/v1/renew 400",
        "get /fleet/v1/models/{model_id} 403",
        "get /fleet/v1/objects/{name} 403",
        "put /fleet/v1/objects/{name} 403",
    }
