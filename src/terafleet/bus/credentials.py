"""Keys and signed credentials of the bus: NATS's nkeys and JWTs, of operator, accounts and users.

The formats are those of nats-io/nkeys and nats-io/jwt (version 2).
"""

import base64
import binascii
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Sequence
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from terafleet.bus.subjects import check_permissions

# A user may answer what it was asked, once and within this time, wherever the answer is to go.
ANSWERS_MAX = 1
ANSWER_WITHIN_S = 60
# Our shells listen with a few wildcards; without a limit one vehicle could fill the server.
SUBSCRIPTIONS_MAX = 1024
TOKEN_CHARACTERS_MAX = 16 * 1024

_UNLIMITED = -1
_SEED_BYTES = 32
_SEED_PREFIX = 18 << 3
_CRC_BYTES = 2
_BASE64_URL = re.compile(r"[A-Za-z0-9_-]+")
_HEADER = b'{"typ":"JWT","alg":"ed25519-nkey"}'


class KeyKind(IntEnum):
    """Whose key it is: the first byte of its public form, which gives the first letter."""

    OPERATOR = 14 << 3  # O
    ACCOUNT = 0  # A
    USER = 20 << 3  # U


class KeyInvalid(ValueError):
    """The text is not a key of the kind that is wanted, or it was damaged."""


class KeyFileUnsafe(Exception):
    """Others than the owner of the file can read or change the secret in it."""


def encode_public_key(kind: KeyKind, raw: bytes) -> str:
    """The text form of a public key of 32 bytes: 56 letters and digits."""
    return _encode(bytes([kind]) + raw)


def decode_public_key(text: str, kind: KeyKind) -> bytes:
    """The 32 bytes of a public key. Raises KeyInvalid."""
    raw = _decode(text, 1 + _SEED_BYTES)
    if raw[0] != kind:
        raise KeyInvalid(f"not the public key of an {kind.name.lower()}")
    return raw[1:]


def encode_seed(kind: KeyKind, seed: bytes) -> str:
    """The text form of a secret seed of 32 bytes: 58 letters and digits that begin with S."""
    # Five bits say "seed", five say whose, and both lie in the first two bytes.
    return _encode(bytes([_SEED_PREFIX | kind >> 5, (kind & 31) << 3]) + seed)


def decode_seed(text: str) -> tuple[KeyKind, bytes]:
    """Whose seed it is, and its 32 bytes. Raises KeyInvalid."""
    raw = _decode(text, 2 + _SEED_BYTES)
    kind = (raw[0] & 7) << 5 | raw[1] >> 3
    if raw[0] & 0xF8 != _SEED_PREFIX or raw[1] & 7 or kind not in KeyKind.__members__.values():
        raise KeyInvalid("not a seed of an operator, account or user")
    return KeyKind(kind), raw[2:]


def _encode(payload: bytes) -> str:
    checksum = binascii.crc_hqx(payload, 0).to_bytes(_CRC_BYTES, "little")
    return base64.b32encode(payload + checksum).decode().rstrip("=")


def _decode(text: str, payload_bytes: int) -> bytes:
    # The length is compared first, so that a long text is never decoded.
    characters = -(-8 * (payload_bytes + _CRC_BYTES) // 5)
    if len(text) != characters:
        raise KeyInvalid(f"a key of this kind has {characters} characters")
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError as error:
        raise KeyInvalid("a key has only the letters A to Z and the digits 2 to 7") from error
    payload = raw[:-_CRC_BYTES]
    # Encoding again finds a wrong checksum, and bits that carry nothing but aren't zero.
    if _encode(payload) != text:
        raise KeyInvalid("the checksum is wrong")
    return payload


class NKey:
    """A secret Ed25519 key of an operator, an account or a user."""

    def __init__(self, kind: KeyKind, seed: bytes) -> None:
        """`seed` are 32 secret bytes."""
        self.kind = kind
        self._seed = seed
        self._private_key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._private_key.public_key().public_bytes_raw()
        self._public = encode_public_key(kind, raw)

    @classmethod
    def generate(cls, kind: KeyKind = KeyKind.USER) -> Self:
        """A fresh key, from the system's source of chance."""
        return cls(kind, secrets.token_bytes(_SEED_BYTES))

    @classmethod
    def from_seed(cls, text: str) -> Self:
        """The key with this seed. Raises KeyInvalid."""
        return cls(*decode_seed(text))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The key kept in a file. Raises OSError, KeyFileUnsafe or KeyInvalid."""
        return cls.from_seed(_read_secret(path).strip())

    def save(self, path: Path) -> None:
        """Keep the seed in a file that only its owner can read. Raises OSError."""
        _write_secret(path, self.seed + "\n")

    @property
    def public(self) -> str:
        """The public key as text."""
        return self._public

    @property
    def seed(self) -> str:
        """The secret as text."""
        return encode_seed(self.kind, self._seed)

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes."""
        return self._private_key.sign(data)

    def __repr__(self) -> str:
        return f"NKey({self._public})"


class UserCredentials(msgspec.Struct, frozen=True):
    """What one logs in with: who one is, and how to prove it.

    `sign` signs the server's challenge with the key that the JWT was issued to, so that the key may
    stay wherever it is kept.
    """

    jwt: str
    sign: Callable[[bytes], bytes]


class UserClaims(msgspec.Struct, frozen=True):
    """What a user's JWT says, after its signature was checked."""

    public_key: str
    name: str
    issuer: str
    issued_s: int
    expires_s: int
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


class JwtRefusal(StrEnum):
    """Why a JWT is not believed."""

    MALFORMED = "malformed"
    WRONG_SIGNATURE = "wrong_signature"
    EXPIRED = "expired"


class _Subjects(msgspec.Struct, frozen=True, omit_defaults=True):
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class _Answers(msgspec.Struct, frozen=True):
    max: int
    ttl: int  # nanoseconds


class _User(msgspec.Struct, frozen=True):
    pub: _Subjects
    sub: _Subjects
    resp: _Answers
    subs: int
    data: int = _UNLIMITED
    payload: int = _UNLIMITED
    type: str = "user"
    version: int = 2


class _AccountLimits(msgspec.Struct, frozen=True):
    subs: int = _UNLIMITED
    data: int = _UNLIMITED
    payload: int = _UNLIMITED
    conn: int = _UNLIMITED
    wildcards: bool = True
    imports: int = 0
    exports: int = 0
    leaf: int = 0


class _Account(msgspec.Struct, frozen=True):
    limits: _AccountLimits
    type: str = "account"
    version: int = 2


class _Operator(msgspec.Struct, frozen=True):
    system_account: str
    type: str = "operator"
    version: int = 2


class _Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    iat: int
    iss: str
    name: str
    sub: str
    nats: msgspec.Raw
    exp: int = 0
    jti: str = ""


class OperatorKeys:
    """The secret keys that the bus's trust begins with: operator, account, system account.

    The operator vouches for the accounts, the account for each user. No user is ever made in the
    system account; the server only wants one to exist.
    """

    def __init__(self, operator: NKey, account: NKey, system_account: NKey) -> None:
        kinds = (operator.kind, account.kind, system_account.kind)
        if kinds != (KeyKind.OPERATOR, KeyKind.ACCOUNT, KeyKind.ACCOUNT):
            raise KeyInvalid("wanted are the keys of an operator and of two accounts")
        self.operator = operator
        self.account = account
        self.system_account = system_account

    @classmethod
    def generate(cls) -> Self:
        """Fresh keys: a bus of its own, that believes no credential made before."""
        return cls(
            NKey.generate(KeyKind.OPERATOR),
            NKey.generate(KeyKind.ACCOUNT),
            NKey.generate(KeyKind.ACCOUNT),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """The keys kept in a file. Raises OSError, KeyFileUnsafe or KeyInvalid."""
        try:
            kept = msgspec.json.decode(_read_secret(path), type=_KeptKeys)
        except msgspec.MsgspecError as error:
            raise KeyInvalid("the file holds no keys of an operator") from error
        return cls(
            NKey.from_seed(kept.operator),
            NKey.from_seed(kept.account),
            NKey.from_seed(kept.system_account),
        )

    def save(self, path: Path) -> None:
        """Keep the seeds in a file that only its owner can read. Raises OSError."""
        kept = _KeptKeys(self.operator.seed, self.account.seed, self.system_account.seed)
        _write_secret(path, msgspec.json.format(msgspec.json.encode(kept)).decode() + "\n")

    def operator_jwt(self, now_s: int) -> str:
        """The operator's word about itself, for the server's configuration."""
        body = _Operator(self.system_account.public)
        return _sign(self.operator, self.operator.public, "terafleet", now_s, body)

    def account_jwt(self, now_s: int) -> str:
        """The operator's word about the account that all users are in."""
        body = _Account(_AccountLimits())
        return _sign(self.operator, self.account.public, "fleet", now_s, body)

    def system_account_jwt(self, now_s: int) -> str:
        """The operator's word about the system account, which nobody may connect to."""
        body = _Account(_AccountLimits(conn=0))
        return _sign(self.operator, self.system_account.public, "system", now_s, body)

    def user_jwt(
        self,
        public_key: str,
        name: str,
        publish: Sequence[str],
        subscribe: Sequence[str],
        ttl_s: int,
        now_s: int,
    ) -> str:
        """Let the holder of a user's key speak and listen on these subjects until `ttl_s` is over.

        Patterns with `*` and `>` allow all that they cover; an empty list allows nothing. To answer
        requests is always allowed. Raises KeyInvalid if `public_key` is not a user's, ValueError
        for a malformed pattern or one that ends in `*` in `subscribe` (see `check_permissions`).
        """
        check_permissions(publish, subscribe)
        assert ttl_s > 0, "a credential without an end can't be taken back"
        decode_public_key(public_key, KeyKind.USER)
        body = _User(
            pub=_only(publish),
            sub=_only(subscribe),
            resp=_Answers(ANSWERS_MAX, ANSWER_WITHIN_S * 1_000_000_000),
            subs=SUBSCRIPTIONS_MAX,
        )
        return _sign(self.account, public_key, name, now_s, body, expires_s=now_s + ttl_s)


def verify_user_jwt(token: str, account_public_key: str, now_s: int) -> UserClaims | JwtRefusal:
    """What a user's JWT says, if this account signed it and it has not expired.

    Nothing of it is read before its signature was checked. Raises KeyInvalid if
    `account_public_key` is not an account's.
    """
    account = Ed25519PublicKey.from_public_bytes(
        decode_public_key(account_public_key, KeyKind.ACCOUNT)
    )
    parts = token.split(".") if len(token) <= TOKEN_CHARACTERS_MAX else []
    try:
        header, body, signature = (_from_base64(part) for part in parts)
        account.verify(signature, f"{parts[0]}.{parts[1]}".encode())
        claims = msgspec.json.decode(body, type=_Claims)
        user = msgspec.json.decode(claims.nats, type=_User)
        decode_public_key(claims.sub, KeyKind.USER)
    except InvalidSignature:
        return JwtRefusal.WRONG_SIGNATURE
    except ValueError:  # Of the number of parts, of base64, of JSON or of the key.
        return JwtRefusal.MALFORMED
    if (header, user.type, user.version) != (_HEADER, "user", 2):
        return JwtRefusal.MALFORMED
    if now_s >= claims.exp:
        return JwtRefusal.EXPIRED
    return UserClaims(
        claims.sub, claims.name, claims.iss, claims.iat, claims.exp, user.pub.allow, user.sub.allow
    )


class _KeptKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    operator: str
    account: str
    system_account: str


def _only(subjects: Sequence[str]) -> _Subjects:
    # Without an entry, NATS reads an empty list as "all".
    return _Subjects(allow=tuple(subjects)) if subjects else _Subjects(deny=(">",))


def _sign(
    issuer: NKey,
    subject: str,
    name: str,
    now_s: int,
    body: _User | _Account | _Operator,
    expires_s: int = 0,
) -> str:
    claims = _Claims(
        iat=now_s,
        iss=issuer.public,
        name=name,
        sub=subject,
        nats=msgspec.Raw(msgspec.json.encode(body)),
        exp=expires_s,
    )
    # The id is a digest of all the rest, as nats-io/jwt makes it.
    digest = hashlib.sha256(msgspec.json.encode(claims)).digest()
    named = msgspec.structs.replace(claims, jti=base64.b32encode(digest).decode().rstrip("="))
    text = f"{_to_base64(_HEADER)}.{_to_base64(msgspec.json.encode(named))}"
    return f"{text}.{_to_base64(issuer.sign(text.encode()))}"


def _to_base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _from_base64(text: str) -> bytes:
    """Raises ValueError."""
    if _BASE64_URL.fullmatch(text) is None:
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _write_secret(path: Path, text: str) -> None:
    """Write a whole file or nothing, readable by its owner only from its first moment."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _read_secret(path: Path) -> str:
    with path.open(encoding="ascii", errors="replace") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o077:
            raise KeyFileUnsafe(f"{path} must be readable by its owner only (chmod 600)")
        if status.st_uid not in (os.getuid(), 0):
            raise KeyFileUnsafe(f"{path} belongs to another person")
        return file.read(TOKEN_CHARACTERS_MAX)
