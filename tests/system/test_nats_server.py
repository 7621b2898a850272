"""The NATS server as a child process: its start, its refusals to start, and its end."""

import asyncio
import datetime
import ipaddress
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from terafleet.bus import nats_server
from terafleet.bus.adapters.nats import NatsBus
from terafleet.bus.credentials import OperatorKeys
from terafleet.bus.nats_server import (
    NatsServer,
    NatsServerFailed,
    NatsServerMissing,
    PortInUse,
    TlsFiles,
)
from terafleet.bus.ports import BusUnavailable
from tests.contract.bus_fixtures import Listener, issue, lasting_port, until

HOST = "127.0.0.1"


async def test_a_server_is_started_and_stopped_and_started_again(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, HOST, lasting_port(), OperatorKeys.generate())
    for _ in range(2):
        await server.start()
        assert server.is_running
        assert is_reachable(server.port)
        await server.stop()
        assert not server.is_running
        assert server.process_id is None
        assert not is_reachable(server.port)
    await server.stop()
    assert server.log_path.read_text().count("Server is ready") == 2


def is_reachable(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            return connection.recv(5) == b"INFO "
    except ConnectionRefusedError:
        return False


async def test_a_free_port_is_taken_and_told(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, HOST, 0, OperatorKeys.generate())
    await server.start()
    assert server.url == f"nats://{HOST}:{server.port}"
    assert is_reachable(server.port)
    await server.stop()


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    port = lasting_port()
    with socket.create_server((HOST, port)):
        server = NatsServer(tmp_path, HOST, port, OperatorKeys.generate())
        with pytest.raises(PortInUse) as raised:
            await server.start()
        assert (raised.value.host, raised.value.port) == (HOST, port)
        assert not server.is_running
    await server.start()
    await server.stop()


async def test_what_the_server_says_when_it_fails_is_told(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, "192.0.2.1", 0, OperatorKeys.generate())
    with pytest.raises(NatsServerFailed, match="cannot assign requested address"):
        await server.start()


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_has_it = nats_server.find_program()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert nats_server.find_program() == wheel_has_it
    monkeypatch.setattr(nats_server, "_DISTRIBUTION", "no-such-wheel-is-installed")
    with pytest.raises(NatsServerMissing):
        nats_server.find_program()


async def test_no_secret_is_in_what_the_server_reads_or_writes(tmp_path: Path) -> None:
    keys = OperatorKeys.generate()
    server = NatsServer(tmp_path, HOST, 0, keys)
    await server.start()
    await server.stop()
    seeds = [key.seed.encode() for key in (keys.operator, keys.account, keys.system_account)]
    for name, content in read_all(tmp_path).items():
        assert not any(seed in content for seed in seeds), name


def read_all(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


PARENT = """
import asyncio, sys
from pathlib import Path
from terafleet.bus.credentials import OperatorKeys
from terafleet.bus.nats_server import NatsServer

async def main():
    server = NatsServer(Path(sys.argv[1]), "127.0.0.1", 0, OperatorKeys.generate())
    await server.start()
    print(server.process_id, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    with start_parent(tmp_path) as parent:
        assert parent.stdout is not None
        server_id = int(await asyncio.to_thread(parent.stdout.readline))
        assert is_alive(server_id)
        parent.send_signal(signal.SIGKILL)
    await until(lambda: not is_alive(server_id))


def start_parent(data_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PARENT, data_dir], stdout=subprocess.PIPE)


def is_alive(process_id: int) -> bool:
    """Whether the process runs; one that ended and was not yet collected does not."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def test_the_way_to_the_server_can_be_sealed(tmp_path: Path) -> None:
    keys = OperatorKeys.generate()
    files = make_certificate(tmp_path)
    server = NatsServer(tmp_path, HOST, 0, keys, files)
    await server.start()
    assert server.url.startswith("tls://")
    credentials = issue(keys, [">"], [">"])
    trusting = ssl.create_default_context(cafile=files.certificate)
    bus = NatsBus([server.url], lambda: credentials, "test", tls=trusting)
    await bus.connect()
    listener = Listener()
    await bus.subscribe("a", listener)
    bus.publish("a", b"x" * 1_000_000)
    await listener.wait_for(1)
    for url, context in (
        (server.url, None),
        (server.url, ssl.create_default_context()),
        (server.url.replace("tls://", "nats://"), trusting),
    ):
        distrusting = NatsBus([url], lambda: credentials, "test", tls=context)
        with pytest.raises(BusUnavailable):
            await distrusting.connect()
    await bus.close()
    await server.stop()


async def test_a_server_without_tls_gets_no_word_of_who_wants_tls(tmp_path: Path) -> None:
    keys = OperatorKeys.generate()
    server = NatsServer(tmp_path, HOST, 0, keys)
    await server.start()
    credentials = issue(keys, [">"], [">"])
    bus = NatsBus([server.url.replace("nats://", "tls://")], lambda: credentials, "test")
    with pytest.raises(BusUnavailable):
        await bus.connect()
    await server.stop()


def make_certificate(directory: Path) -> TlsFiles:
    """A certificate for the loopback address that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bus")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address(HOST))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = TlsFiles(directory / "bus.crt", directory / "bus.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.private_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
