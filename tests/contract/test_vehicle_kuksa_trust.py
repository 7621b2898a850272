"""Whom the kuksa vehicle believes, and what it shows to whom: TLS and tokens."""

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from terafleet.core.readings import SENSORS
from tests.contract.vehicle_contract import drive

pytest.importorskip("kuksa.val.v2", reason="needs kuksa-client: install the extra kuksa")

from terafleet.agent.adapters.vehicle import kuksa_signals as vss
from tests.contract.kuksa_broker import HOST, Databroker
from tests.contract.kuksa_stage import PARKED, PARKED_READINGS, KuksaWorld

TOKEN = "aGVhZA.Ym9keQ.c2lnbg"


@pytest.fixture
def parked() -> Iterator[KuksaWorld]:
    """A broker without TLS whose signals say that the car is parked."""
    broker = Databroker(PARKED)
    broker.start()
    yield KuksaWorld(broker)
    broker.stop()


async def test_a_token_is_shown_and_read_anew(parked: KuksaWorld, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old.old.old\n")
    parked.broker.token = TOKEN
    parked.changes = {"token_file": str(token)}
    with capture_logs() as logs:
        async with drive(parked, 100) as one:
            await one.until(lambda: bool(logs), 2_000)
            assert one.says_all(dict.fromkeys(SENSORS))
            token.write_text(f"{TOKEN}\n")
            await one.until(lambda: one.says_all(PARKED_READINGS), 3_000)
            # It runs out, and another one lies there.
            parked.broker.token = f"{TOKEN}x"
            token.write_text(f"{TOKEN}x")
            subscriptions = len(parked.broker.subscribed)
            await one.until(lambda: len(parked.broker.subscribed) > subscriptions, 3_000)
    assert logs[0]["cause"] == "unauthenticated"
    assert TOKEN not in str(logs)


@pytest.mark.parametrize(
    "text", [None, "", "no token", "a.b.c\nx-other: 1", "é.b.c", "a.b." * 9_999]
)
async def test_a_token_that_is_none_is_not_shown(
    parked: KuksaWorld, tmp_path: Path, text: str | None
) -> None:
    token = tmp_path / "token"
    if text is not None:
        token.write_text(text)
    parked.changes = {"token_file": str(token)}
    with capture_logs() as logs:
        async with drive(parked, 100) as one:
            await one.until(lambda: bool(logs), 2_000)
    assert logs[0]["cause"] == "token_unusable"
    assert parked.broker.questions == []


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Two certificates that vouch for themselves, each with its private key."""
    folder = tmp_path_factory.mktemp("certificates")
    return {name: make_certificate(folder, name) for name in ("car", "other")}


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for the loopback address and for `broker.car`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName(f"broker.{name}")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.crt", folder / f"{name}.key"
    pem = serialization.Encoding.PEM
    files[0].write_bytes(certificate.public_bytes(pem))
    bare = serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, bare))
    return files


@pytest.fixture
def sealed(certificates: dict[str, tuple[Path, Path]]) -> Iterator[KuksaWorld]:
    """A broker that speaks TLS."""
    broker = Databroker(PARKED)
    broker.start(certificates["car"])
    world = KuksaWorld(broker)
    world.changes = {"ca_file": str(certificates["car"][0])}
    yield world
    broker.stop()


@pytest.mark.parametrize("server_name", ["", "broker.car"])
async def test_tls_and_token_together(sealed: KuksaWorld, tmp_path: Path, server_name: str) -> None:
    (tmp_path / "token").write_text(TOKEN)
    sealed.broker.token = TOKEN
    sealed.changes |= {"token_file": str(tmp_path / "token"), "server_name": server_name}
    async with drive(sealed, 20_000) as one:
        await one.until(lambda: one.says_all(PARKED_READINGS), 2_000)
        sealed.broker.set(vss.SEAT_OCCUPIED, True)
        await one.until_says(PARKED_READINGS | {"is_driver_present": True})


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"server_name": "broker.other"}, "unreachable"),
        ({"ca_file": "other"}, "unreachable"),
        ({"ca_file": ""}, "unreachable"),
        ({"ca_file": "missing"}, "ca_unusable"),
        ({"ca_file": "nonsense"}, "ca_unusable"),
    ],
)
async def test_a_broker_that_can_not_show_who_it_is_is_told_nothing(
    sealed: KuksaWorld,
    certificates: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    change: dict[str, str],
    cause: str,
) -> None:
    (tmp_path / "nonsense").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
    files = {
        "other": certificates["other"][0],
        "missing": tmp_path / "missing",
        "nonsense": tmp_path / "nonsense",
    }
    told = {name: str(files.get(value, value)) for name, value in change.items()}
    sealed.changes |= told
    with capture_logs() as logs:
        async with drive(sealed, 100) as one:
            await one.until(lambda: bool(logs), 3_000)
            assert one.says_all(dict.fromkeys(SENSORS))
    assert logs[0]["cause"] == cause
    assert sealed.broker.questions == []
