"""Makes secrets and ids from random bytes that are passed in: API keys, enrolment codes, cars."""

import base64
import hashlib

from terafleet.control.ports import CodeRow, KeyRow
from terafleet.core.ids import VehicleId

KEY_PREFIX = "tf-"
KEY_RANDOM_BYTES = 32
HINT_CHARACTERS = 7
"""How much of a secret is kept readable: its prefix and 24 of its 256 bits."""

CODE_RANDOM_BYTES = 20
CODE_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""No letters that people confuse; a person types a code into a car."""

CODE_GROUP = 5
VEHICLE_LETTERS = 10


def key_secret(random_bytes: bytes) -> str:
    """The secret of an API key: `tf-` and 43 url-safe characters."""
    assert len(random_bytes) == KEY_RANDOM_BYTES
    return KEY_PREFIX + base64.urlsafe_b64encode(random_bytes).decode().rstrip("=")


def sha256_of(secret: str) -> bytes:
    """What is stored of a secret. All have so many random bits that a plain hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


def key_row(
    key_id: str, secret: str, name: str, role: str, customer_id: str, created_ms: int
) -> KeyRow:
    """What the catalogue keeps of an API key."""
    hint = secret[:HINT_CHARACTERS]
    return KeyRow(key_id, sha256_of(secret), hint, name, role, customer_id, created_ms)


def enrolment_code(random_bytes: bytes) -> str:
    """A one-time code: four groups of five letters and digits, 99 random bits."""
    assert len(random_bytes) == CODE_RANDOM_BYTES
    number = int.from_bytes(random_bytes, "big")
    letters = _letters(number, CODE_LETTERS, CODE_RANDOM_BYTES)
    return "-".join(
        letters[begin : begin + CODE_GROUP] for begin in range(0, len(letters), CODE_GROUP)
    )


def code_sha256(code: str) -> bytes:
    """What is stored of an enrolment code; how it was typed makes no difference."""
    plain = "".join(character for character in code.lower() if character not in "- \t")
    return sha256_of(plain)


def code_row(code: str, created_ms: int, expires_ms: int) -> CodeRow:
    """What the catalogue keeps of an enrolment code."""
    return CodeRow(code_sha256(code), created_ms, expires_ms)


def vehicle_id_of(code: str, public_key: str) -> VehicleId:
    """The id of the car that enrols with this code and key: `veh-` and ten letters.

    It follows from the two, so that a car which asks again gets the same id, and says nothing of
    them: the code alone has 99 random bits.
    """
    digest = hashlib.sha256(code_sha256(code) + public_key.encode()).digest()
    number = int.from_bytes(digest, "big")
    return VehicleId("veh-" + _letters(number, "abcdefghijklmnopqrstuvwxyz", VEHICLE_LETTERS))


def _letters(number: int, alphabet: str, count: int) -> str:
    """The last `count` digits of a number, written in an alphabet."""
    letters = []
    for _ in range(count):
        number, digit = divmod(number, len(alphabet))
        letters.append(alphabet[digit])
    return "".join(letters)
