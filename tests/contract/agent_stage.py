"""What the tests of the vehicle agent share: a gateway that misbehaves on order, models, waits."""

import asyncio
import hashlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terafleet.core.ids import ModelId, VehicleId
from terafleet.protocol.errors import ERRORS, error_reply
from terafleet.protocol.fleet_http import Enrolment
from terafleet.protocol.manifest import (
    Manifest,
    ManifestFile,
    ModelOffer,
    SignedManifest,
    manifest_bytes,
    model_id_of,
)

PATIENCE_S = 20.0

NOW_S = 1_800_000_000
LIFE_S = 86_400
VEHICLE = VehicleId("veh-abcdefghij")


class Heard(msgspec.Struct, frozen=True):
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FakeGateway:
    """A small HTTP server on loopback: objects with ranges, answers and faults on order."""

    def __init__(self) -> None:
        self.url = ""
        self.objects: dict[str, bytes] = {}
        self.heard: list[Heard] = []
        self.answers: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        """By path, what is answered to the next requests instead of anything else."""
        self.cuts: dict[str, list[int]] = defaultdict(list)
        """By path, after how many bytes of the body the next answers are cut."""
        self.knows_ranges = True
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["FakeGateway"]:
        """Listen while the context lasts."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        async with server:
            yield self

    def refuse(self, path: str, code: str, times: int = 1) -> None:
        """Answer the next requests with an error of the table."""
        body = msgspec.json.encode(error_reply(code, f"the {code} of a test"))
        self.answers[path] += [(ERRORS[code].status, body)] * times

    def paths(self, method: str = "GET") -> list[str]:
        """The paths that were asked for."""
        return [request.path for request in self.heard if request.method == method]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read_request(reader)
            self.heard.append(request)
            await self.gate.wait()
            status, headers, body = self._answer(request)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            cut = self.cuts[request.path].pop(0) if self.cuts[request.path] else len(body)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:cut])
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, request: Heard) -> tuple[int, dict[str, str], bytes]:
        if self.answers[request.path]:
            status, body = self.answers[request.path].pop(0)
            return status, {}, body
        if request.method == "PUT":
            self.objects[request.path] = request.body
            return 200, {}, b""
        body = self.objects.get(request.path, b"")
        if request.path not in self.objects:
            return 404, {}, msgspec.json.encode(error_reply("not_found", "nothing there"))
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if wanted is None or not self.knows_ranges:
            return 200, {}, body
        first = int(wanted[1])
        if first >= len(body):
            return 416, {}, b""
        contents = {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
        return 206, contents, body[first:]


async def _read_request(reader: asyncio.StreamReader) -> Heard:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *fields = head.strip().split("\r\n")
    method, path, _ = line.split(" ")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (field.partition(":") for field in fields)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Heard(method, path, headers, body)


class FakeModel:
    """A model with its files, signed by a key."""

    def __init__(
        self,
        files: dict[str, bytes],
        runtime: str = "noop",
        key: Ed25519PrivateKey | None = None,
        **changes: object,
    ) -> None:
        self.key = key or Ed25519PrivateKey.generate()
        self.files = files
        manifest = Manifest(
            name="a-model",
            runtime=runtime,
            endpoints=("/v1/embeddings",),
            memory_mb=64,
            files=tuple(
                ManifestFile(name, len(body), hashlib.sha256(body).hexdigest())
                for name, body in files.items()
            ),
            options={"tokens_max": 8},
        )
        self.manifest = msgspec.structs.replace(manifest, **changes)
        body = manifest_bytes(self.manifest)
        self.signed = SignedManifest(body, self.key.sign(body))
        self.model_id: ModelId = model_id_of(body)

    @property
    def manifest_key(self) -> bytes:
        """The public key that cars check the signature with."""
        return self.key.public_key().public_bytes_raw()

    @property
    def address(self) -> str:
        """Where its offer is."""
        return f"/offers/{self.model_id}"

    def file_path(self, name: str) -> str:
        """Where one of its files is."""
        return f"/files/{self.model_id[:8]}/{name}"

    def put_on(self, gateway: FakeGateway, signed: SignedManifest | None = None) -> None:
        """Offer it there, perhaps with another manifest."""
        addresses = {name: self.file_path(name) for name in self.files}
        offer = ModelOffer(signed or self.signed, addresses)
        gateway.objects[self.address] = msgspec.json.encode(offer)
        for name, body in self.files.items():
            gateway.objects[self.file_path(name)] = body


def an_enrolment(credential: str = "first", **changes: object) -> Enrolment:
    """What a gateway answers to a car that enrols or renews."""
    enrolment = Enrolment(
        vehicle_id=VEHICLE,
        bus_urls=("nats://127.0.0.1:4222",),
        credential=credential,
        expires_s=NOW_S + LIFE_S,
        manifest_key=b"k" * 32,
    )
    return msgspec.structs.replace(enrolment, **changes)


def answer(gateway: FakeGateway, path: str, enrolment: Enrolment) -> None:
    """Have the next request to a path answered with an enrolment."""
    gateway.answers[path].append((200, msgspec.json.encode(enrolment)))


async def no_pause(pause_s: float) -> None:
    """A sleep that lets everything else go on and takes no time."""
    del pause_s
    await asyncio.sleep(0)


async def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait until something holds; for what real sockets and threads bring about."""
    async with asyncio.timeout(patience_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)
