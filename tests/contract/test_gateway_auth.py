"""Who is let in, and how everybody else is told."""

import asyncio
import hashlib

import structlog
from litestar import get
from litestar.testing import AsyncTestClient
from structlog.testing import capture_logs

from terafleet.control.gateway.app import create_app
from terafleet.control.gateway.keys import key_secret
from terafleet.protocol.shard import GetStatus
from tests.contract.gateway_app import Stage, code_of, serving


async def test_a_customers_key_opens_the_customers_routes_and_no_others() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("customer")) as client:
        assert (await client.get("/v1/models")).status_code == 200
        for method, path in (
            ("GET", "/admin/v1/keys"),
            ("POST", "/admin/v1/keys"),
            ("GET", "/admin/v1/status"),
            ("DELETE", "/admin/v1/vehicles/veh-abcdefghij"),
            ("PUT", f"/admin/v1/objects/model/{'0' * 64}"),
        ):
            assert code_of(await client.request(method, path)) == "operator_only"


async def test_an_operators_key_opens_all_of_them() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/admin/v1/keys")).status_code == 200


async def test_no_key_and_wrong_keys_are_refused() -> None:
    stage = Stage()
    stage.add_key()
    unknown = key_secret(bytes(32))
    async with serving(stage) as client:
        assert code_of(await client.get("/v1/models")) == "invalid_api_key"
        for authorization in (
            "Bearer",
            "Bearer tf-",
            f"Bearer {unknown}",
            f"Bearer {unknown}x",
            f"Basic {unknown}",
            f"{unknown}",
            f"Bearer  {unknown}",
            "Bearer \xff\xfe",
        ):
            headers = {b"authorization": authorization.encode("latin-1")}
            response = await client.get("/v1/models", headers=headers)
            assert code_of(response) == "invalid_api_key", authorization
            assert response.headers["www-authenticate"] == "Bearer"


async def test_the_name_of_the_scheme_may_be_in_any_case() -> None:
    stage = Stage()
    secret = stage.add_key()
    async with serving(stage) as client:
        response = await client.get("/v1/models", headers={"authorization": f"bearer {secret}"})
        assert response.status_code == 200


async def test_a_revoked_key_is_refused_from_the_next_request_on() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key()) as client:
        assert (await client.get("/v1/models")).status_code == 200
        (row,) = stage.catalogue.keys()
        stage.catalogue.revoke_key(row.key_id, stage.now_ms)
        assert code_of(await client.get("/v1/models")) == "revoked_api_key"


async def test_a_stranger_is_refused_before_the_body_is_read() -> None:
    stage = Stage()
    async with serving(stage) as client:
        port = client.base_url.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /admin/v1/keys HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n{")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b" 401 " in head
        writer.close()


async def test_only_a_hash_of_a_secret_is_kept() -> None:
    stage = Stage()
    secret = stage.add_key()
    (row,) = stage.catalogue.keys()
    assert row.secret_sha256 == hashlib.sha256(secret.encode()).digest()
    assert secret not in repr(row)
    assert len(secret) == 46
    assert secret.startswith(row.hint)


async def test_each_request_has_one_line_without_secrets() -> None:
    stage = Stage()
    secret = stage.add_key("operator")
    async with serving(stage, secret) as client:
        with capture_logs() as lines:
            answer = await client.get("/admin/v1/status?signature=abc")
            await client.get("/nowhere")
            await client.post("/admin/v1/keys", json={"name": "the body of a request"})
    assert [line["event"] for line in lines] == ["request"] * 3
    assert lines[0]["path"] == "/admin/v1/status"
    assert lines[0]["status"] == 200
    assert lines[0]["request_id"] == answer.headers["x-request-id"]
    assert lines[0]["key_id"].startswith("key_")
    assert lines[1]["status"] == 404
    everything = repr(lines)
    for part in (secret, "signature", "abc", "the body of a request"):
        assert part not in everything


async def test_what_litestar_refuses_is_told_in_the_same_form() -> None:
    stage = Stage()
    async with serving(stage, stage.add_key("operator")) as client:
        assert code_of(await client.get("/nowhere")) == "not_found"
        assert code_of(await client.get("/schema/openapi.json")) == "not_found"
        refused = await client.put("/healthz")
        assert code_of(refused) == "method_not_allowed"
        assert "GET" in refused.headers["allow"]
        for body in (b"", b"[]", b"null", b"{", b"\xff", b'{"name": 1}', b'{"name":"a","b":1}'):
            response = await client.post("/admin/v1/keys", content=body)
            assert code_of(response) in ("invalid_request", "invalid_value"), body
        for depth in (2_000, 100_000):
            response = await client.post("/admin/v1/keys", content=b"[" * depth)
            assert code_of(response) == "invalid_request"
        response = await client.post("/admin/v1/keys", content=b" " * 1_100_000)
        assert code_of(response) == "file_too_large"
        response = await client.get("/admin/v1/story/x?limit=abc")
        assert code_of(response) == "invalid_value"
        assert response.json()["error"]["param"] == "limit"


async def test_a_fault_of_ours_shows_nothing_of_the_inside() -> None:
    @get("/broken")
    async def broken() -> None:
        raise RuntimeError("the inside")

    stage = Stage()
    app = create_app(stage.context)
    app.register(broken)
    async with AsyncTestClient(app) as client:
        with capture_logs() as lines:
            response = await client.get("/broken")
    assert code_of(response) == "internal_error"
    assert "inside" not in response.text
    (fault, _) = lines
    assert fault["event"] == "request_failed"
    assert "RuntimeError: the inside" in fault["cause"]


async def test_health_says_why_nothing_can_be_done() -> None:
    stage = Stage()
    async with serving(stage) as client:
        assert (await client.get("/")).json()["name"] == "terafleet"
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        await stage.shard.bus.close()
        assert (await client.get("/healthz")).status_code == 200
        stage.now_ms += 1_000
        assert code_of(await client.get("/healthz")) == "shard_unavailable"
        stage.now_ms += 1_000
        stage.bus.broker.cut(stage.bus)
        response = await client.get("/healthz")
        assert "bus is not connected" in response.text
        assert response.headers["retry-after"] == "2"


async def test_many_who_ask_for_health_at_once_ask_the_shard_once() -> None:
    stage = Stage()
    stage.shard.delay_s = 0.05
    async with serving(stage) as client:
        answers = await asyncio.gather(*(client.get("/healthz") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(stage.shard.asked(GetStatus)) == 1


def test_two_gateways_can_live_in_one_process() -> None:
    assert create_app(Stage().context) is not create_app(Stage().context)


async def test_the_request_id_is_in_the_other_lines_of_a_request() -> None:
    stage = Stage()
    seen: list[dict[str, object]] = []

    def keep(_: object, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        seen.append(dict(entry))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    try:
        async with serving(stage, stage.add_key("operator")) as client:
            await stage.shard.bus.close()
            response = await client.get("/admin/v1/vehicles")
    finally:
        structlog.reset_defaults()
    assert code_of(response) == "shard_unavailable"
    request_id = response.headers["x-request-id"]
    assert {entry["event"] for entry in seen} == {"shard_unavailable", "request"}
    assert {entry["request_id"] for entry in seen} == {request_id}
