"""Files over HTTP, as the official client sees them."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from terafleet.control.gateway.context import GatewayLimits
from terafleet.protocol.openai import BATCH_OUTPUT
from tests.contract.customer_stage import ALICE, Server, Service, line, lines, secret_of, server

LIMITS = GatewayLimits(file_bytes_max=200_000, file_requests_max=50, line_bytes_max=4_000)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_server() -> AsyncIterator[Server]:
    async with server() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(open_server: Server) -> AsyncIterator[Service]:
    async with open_server.open(LIMITS) as running:
        yield running


def form(*parts: tuple[str, bytes], end: bytes = b"--limit--\r\n") -> tuple[bytes, dict[str, str]]:
    """A multipart body by hand, and its header; a part is what follows `name=` and its bytes."""
    body = b"".join(
        b"--limit\r\nContent-Disposition: form-data; name="
        + name.encode()
        + b"\r\n\r\n"
        + value
        + b"\r\n"
        for name, value in parts
    )
    return body + end, {"content-type": "multipart/form-data; boundary=limit"}


async def post(gateway: Service, *parts: tuple[str, bytes], **kind: bytes) -> httpx.Response:
    body, headers = form(*parts, **kind)
    return await gateway.http.post("/v1/files", content=body, headers=headers)


def error_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


PURPOSE = ('"purpose"', b"batch")


async def test_a_file_is_stored_listed_read_and_deleted(gateway: Service) -> None:
    body = lines(3)
    stored = await gateway.alice.files.create(file=("work.jsonl", body), purpose="batch")
    assert (stored.object, stored.purpose, stored.filename) == ("file", "batch", "work.jsonl")
    assert (stored.bytes, stored.status) == (len(body), "processed")
    assert await gateway.alice.files.retrieve(stored.id) == stored
    assert (await gateway.alice.files.list()).data == [stored]
    content = await gateway.alice.files.content(stored.id)
    assert content.read() == body
    deleted = await gateway.alice.files.delete(stored.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (stored.id, True, "file")
    with pytest.raises(openai.NotFoundError):
        await gateway.alice.files.retrieve(stored.id)
    assert await gateway.stage.objects.info(f"file/{stored.id}") is None


async def test_files_are_listed_in_pages(gateway: Service) -> None:
    ids = [await gateway.upload(lines(1)) for _ in range(5)]
    page = await gateway.alice.files.list(limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == (ids[:2], True)
    assert [file.id async for file in gateway.alice.files.list(limit=2, order="asc")] == ids
    assert [file.id async for file in gateway.alice.files.list(limit=2)] == ids[::-1]
    assert (await gateway.alice.files.list(purpose=BATCH_OUTPUT)).data == []
    assert len((await gateway.alice.files.list(purpose="batch")).data) == 5
    wrong = await gateway.http.get("/v1/files", params={"limit": 0})
    assert error_of(wrong) == (400, "invalid_value", "limit")


async def test_nobody_sees_the_file_of_another(gateway: Service) -> None:
    file_id = await gateway.upload(lines(1))
    assert (await gateway.bob.files.list()).data == []
    for attempt in (
        gateway.bob.files.retrieve(file_id),
        gateway.bob.files.content(file_id),
        gateway.bob.files.delete(file_id),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            await attempt
        assert refused.value.code == "file_not_found"
    await gateway.alice.files.retrieve(file_id)


BAD_FILES = {
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\x56\x4a", "invalid_file", "binary"),
    "utf-16": (lines(3).decode().encode("utf-16"), "invalid_file", "UTF-8"),
    "latin-1": ("größe\n".encode("latin-1") * 20, "invalid_file", "UTF-8"),
    "no line ends": (b"\0" * 10_000, "invalid_file", "binary"),
    "an array": (b"[" + lines(2).replace(b"\n", b",") + b"]", "invalid_file", "JSON array"),
    "pretty": (b'{\n "custom_id": "a",\n "method": "POST"\n}', "invalid_file", "on one line"),
    "csv": (b"custom_id,text\na,hello\nb,bye\n", "invalid_file", "on one line"),
    "numbers": (b"1\n2\n3\n", "invalid_file", "on one line"),
    "empty": (b"", "empty_file", "no lines"),
    "blank": (b"\n  \r\n\n", "empty_file", "no lines"),
    "too many": (lines(51), "too_many_requests_in_file", "split"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
async def test_what_is_no_batch_file_is_refused_at_once(gateway: Service, kind: str) -> None:
    body, code, words = BAD_FILES[kind]
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.upload(body)
    assert (refused.value.code, refused.value.param) == (code, "file")
    assert words in refused.value.message
    assert (await gateway.alice.files.list()).data == []
    assert await gateway.stage.objects.info("file/file-" + f"{1:024x}") is None


@pytest.mark.parametrize(
    "body",
    [
        lines(3) + b"\nnot json",
        b"not json\n" + lines(1),
        b"\xef\xbb\xbf" + lines(2),
        lines(3).replace(b"\n", b"\r\n\r\n"),
        lines(2) + b"\n\n",
        line("a", text="x" * 5_000),
        lines(50),
    ],
    ids=["bad end", "bad begin", "mark", "crlf", "blank lines", "too long", "just so many"],
)
async def test_a_file_with_some_use_is_kept(gateway: Service, body: bytes) -> None:
    file_id = await gateway.upload(body)
    assert (await gateway.alice.files.content(file_id)).read() == body


async def test_purposes_that_are_not_kept_are_refused(gateway: Service) -> None:
    purposes: tuple[Any, ...] = ("fine-tune", "assistants", "vision", "user_data", "batch_output")
    for purpose in purposes:
        with pytest.raises(openai.BadRequestError) as refused:
            await gateway.alice.files.create(file=("a.jsonl", lines(1)), purpose=purpose)
        assert (refused.value.code, refused.value.param) == ("unsupported_purpose", "purpose")
    late = await post(gateway, ('"file"; filename="a"', lines(1)), ('"purpose"', b"vision"))
    assert error_of(late) == (400, "unsupported_purpose", "purpose")
    assert (await gateway.alice.files.list()).data == []


async def test_an_expiry_is_refused_by_name(gateway: Service) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 3_600}
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.alice.files.create(
            file=("a.jsonl", lines(1)), purpose="batch", expires_after=expiry
        )
    assert refused.value.code == "unsupported_parameter"
    assert (refused.value.param or "").startswith("expires_after")


async def test_the_file_may_come_before_its_purpose(gateway: Service) -> None:
    answer = await post(gateway, ('"file"; filename="C:\\dir\\ä.jsonl"', lines(1)), PURPOSE)
    assert answer.status_code == 200
    assert answer.json()["filename"] == "ä.jsonl"


FILE = ('"file"; filename="a"', lines(1))
BAD_FORMS = {
    "no file": ((PURPOSE,), "missing_parameter", "file"),
    "no purpose": ((FILE,), "missing_parameter", "purpose"),
    "two files": ((PURPOSE, FILE, FILE), "invalid_value", "file"),
    "a field as file": ((PURPOSE, ('"file"', lines(1))), "invalid_value", "file"),
    "long purpose": ((('"purpose"', b"b" * 2_000), FILE), "invalid_value", "purpose"),
    "more": ((PURPOSE, ('"colour"', b"red"), FILE), "unsupported_parameter", "colour"),
}


@pytest.mark.parametrize("kind", BAD_FORMS)
async def test_a_form_with_a_fault_is_refused_by_name(gateway: Service, kind: str) -> None:
    parts, code, param = BAD_FORMS[kind]
    assert error_of(await post(gateway, *parts)) == (400, code, param)


async def test_what_is_no_form_is_refused(gateway: Service) -> None:
    cut_off = await post(gateway, PURPOSE, FILE, end=b"")
    assert error_of(cut_off) == (400, "invalid_request", None)
    for headers in ({"content-type": "multipart/form-data"}, {"content-type": "text/plain"}):
        answer = await gateway.http.post("/v1/files", content=b"x", headers=headers)
        assert error_of(answer) == (400, "invalid_request", None)
    body, headers = form(PURPOSE, FILE)
    for wrong in (b"no boundary at all", body.replace(b"\r\nContent", b"x\r\nContent")):
        answer = await gateway.http.post("/v1/files", content=wrong, headers=headers)
        assert error_of(answer) == (400, "invalid_request", None)
    assert (await gateway.alice.files.list()).data == []


async def test_a_file_that_is_too_large_is_refused_early(gateway: Service) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await gateway.upload(b"x" * (LIMITS.file_bytes_max + 100_000))
    assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")


async def test_a_file_that_hides_its_size_is_refused_when_it_is_too_large(
    open_server: Server,
) -> None:
    body, headers = form(PURPOSE, ('"file"; filename="a"', lines(40, text="x" * 3_500) * 3))

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), 10_000):
            yield body[begin : begin + 10_000]

    wide = GatewayLimits(file_bytes_max=200_000)
    async with open_server.open(wide) as gateway:
        answer = await gateway.http.post("/v1/files", content=pieces(), headers=headers)
        assert error_of(answer) == (413, "file_too_large", "file")
        assert (await gateway.alice.files.list()).data == []


async def test_a_large_file_comes_back_whole(open_server: Server) -> None:
    body = lines(3_000, text="x" * 1_000)
    async with open_server.open() as gateway:
        file_id = await gateway.upload(body)
        async with gateway.http.stream("GET", f"/v1/files/{file_id}/content") as answer:
            assert answer.headers["content-length"] == str(len(body))
            assert await answer.aread() == body


async def test_a_full_disk_is_said(gateway: Service) -> None:
    gateway.stage.is_full = True
    with pytest.raises(openai.APIStatusError) as refused:
        await gateway.upload(lines(1))
    assert (refused.value.status_code, refused.value.code) == (507, "storage_full")


async def test_only_a_good_key_opens(gateway: Service) -> None:
    for secret in (secret_of("nobody"), "sk-other"):
        with pytest.raises(openai.AuthenticationError) as refused:
            await gateway.client(secret).files.list()
        assert refused.value.code == "invalid_api_key"
    gateway.stage.catalogue.revoke_key("alice", 1)
    with pytest.raises(openai.AuthenticationError) as refused:
        await gateway.client(ALICE).files.create(file=("a.jsonl", lines(1)), purpose="batch")
    assert refused.value.code == "revoked_api_key"
    without = await gateway.http.get("/v1/files", headers={"authorization": ""})
    assert error_of(without) == (401, "invalid_api_key", None)
