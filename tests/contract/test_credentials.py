"""Keys and JWTs of the bus: their text forms, their files and their signatures."""

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from terafleet.bus.credentials import (
    JwtRefusal,
    KeyFileUnsafe,
    KeyInvalid,
    KeyKind,
    NKey,
    OperatorKeys,
    UserClaims,
    decode_public_key,
    decode_seed,
    encode_public_key,
    encode_seed,
    verify_user_jwt,
)

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
NOW_S = 1_800_000_000

kinds = st.sampled_from(KeyKind)
raw_keys = st.binary(min_size=32, max_size=32)


@given(kinds, raw_keys)
def test_text_forms_come_back_as_they_went(kind: KeyKind, raw: bytes) -> None:
    public, seed = encode_public_key(kind, raw), encode_seed(kind, raw)
    assert public[0] == {KeyKind.OPERATOR: "O", KeyKind.ACCOUNT: "A", KeyKind.USER: "U"}[kind]
    assert seed[:2] == "S" + public[0]
    assert (len(public), len(seed)) == (56, 58)
    assert decode_public_key(public, kind) == raw
    assert decode_seed(seed) == (kind, raw)


@given(kinds, raw_keys, st.data())
def test_any_other_character_is_noticed(kind: KeyKind, raw: bytes, data: st.DataObject) -> None:
    public, seed = encode_public_key(kind, raw), encode_seed(kind, raw)
    for text in (public, seed):
        index = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.sampled_from(sorted(set(ALPHABET + "a1=.é") - {text[index]})))
        damaged = text[:index] + other + text[index + 1 :]
        with pytest.raises(KeyInvalid):
            decode_public_key(damaged, kind)
        with pytest.raises(KeyInvalid):
            decode_seed(damaged)


@given(st.text())
def test_any_text_is_a_key_or_refused(text: str) -> None:
    for decode in (decode_seed, lambda text: decode_public_key(text, KeyKind.USER)):
        with pytest.raises(KeyInvalid):
            decode(text)


@given(kinds, kinds, raw_keys)
def test_a_key_of_another_kind_is_refused(kind: KeyKind, other: KeyKind, raw: bytes) -> None:
    if kind is not other:
        with pytest.raises(KeyInvalid):
            decode_public_key(encode_public_key(kind, raw), other)
    with pytest.raises(KeyInvalid):
        decode_seed(encode_public_key(kind, raw))
    with pytest.raises(KeyInvalid):
        decode_public_key(encode_seed(kind, raw), kind)


def test_a_published_key_is_read() -> None:
    """The operator's key in the README of nats-io/nkeys.net."""
    key = NKey.from_seed("SOAELH6NJCEK4HST5644G4HK7TOAFZGRRJHNM4EUKUY7PPNDLIKO5IH4JM")
    assert key.public == "ODPWIBQJVIQ42462QAFI2RKJC4RZHCQSIVPRDDHWFCJAP52NRZK6Z2YC"
    assert key.kind is KeyKind.OPERATOR


def test_a_key_signs_for_its_public_form() -> None:
    key = NKey.generate()
    assert key.kind is KeyKind.USER
    again = NKey.from_seed(key.seed)
    raw = decode_public_key(key.public, KeyKind.USER)
    Ed25519PublicKey.from_public_bytes(raw).verify(again.sign(b"challenge"), b"challenge")
    assert NKey.generate().public != key.public
    assert key.seed not in repr(key)


def test_a_seed_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "vehicle.seed"
    key = NKey.generate()
    path.write_text("older")
    path.chmod(0o644)
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert NKey.load(path).public == key.public
    assert [entry.name for entry in tmp_path.iterdir()] == ["vehicle.seed"]
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(KeyFileUnsafe):
            NKey.load(path)


def test_operator_keys_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    keys = OperatorKeys.generate()
    keys.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = OperatorKeys.load(path)
    assert again.operator.public == keys.operator.public
    assert again.account.public == keys.account.public
    assert again.system_account.public == keys.system_account.public
    path.chmod(0o644)
    with pytest.raises(KeyFileUnsafe):
        OperatorKeys.load(path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"operator": "SO", "account": "SA", "system_account": "SA"}']
)
def test_a_damaged_file_of_operator_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "operator.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyInvalid):
        OperatorKeys.load(path)


def test_operator_keys_must_be_of_their_kind() -> None:
    operator, account = NKey.generate(KeyKind.OPERATOR), NKey.generate(KeyKind.ACCOUNT)
    with pytest.raises(KeyInvalid):
        OperatorKeys(account, operator, account)


def read_claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


KEYS = OperatorKeys.generate()
USER = NKey.generate()


def user_jwt(keys: OperatorKeys = KEYS, ttl_s: int = 60) -> str:
    return keys.user_jwt(USER.public, "car", ["v.1.up"], ["v.1.>"], ttl_s=ttl_s, now_s=NOW_S)


def test_a_user_jwt_says_who_may_do_what() -> None:
    assert verify_user_jwt(user_jwt(), KEYS.account.public, NOW_S) == UserClaims(
        public_key=USER.public,
        name="car",
        issuer=KEYS.account.public,
        issued_s=NOW_S,
        expires_s=NOW_S + 60,
        publish=("v.1.up",),
        subscribe=("v.1.>",),
    )
    assert user_jwt() == user_jwt()


def test_an_empty_list_allows_nothing() -> None:
    claims = read_claims(KEYS.user_jwt(USER.public, "car", [], [], ttl_s=60, now_s=NOW_S))
    assert claims["nats"]["pub"] == {"deny": [">"]}
    assert claims["nats"]["sub"] == {"deny": [">"]}


@pytest.mark.parametrize(("after_s", "is_valid"), [(0, True), (59, True), (60, False)])
def test_a_user_jwt_ends(after_s: int, is_valid: bool) -> None:
    read = verify_user_jwt(user_jwt(), KEYS.account.public, NOW_S + after_s)
    assert isinstance(read, UserClaims) == is_valid
    assert is_valid or read is JwtRefusal.EXPIRED


def test_a_jwt_of_another_account_is_refused() -> None:
    other = OperatorKeys.generate()
    read = verify_user_jwt(user_jwt(other), KEYS.account.public, NOW_S)
    assert read is JwtRefusal.WRONG_SIGNATURE


def test_a_jwt_that_only_claims_the_issuer_is_refused() -> None:
    header, body, _ = user_jwt().split(".")
    _, _, foreign_signature = user_jwt(OperatorKeys.generate()).split(".")
    read = verify_user_jwt(f"{header}.{body}.{foreign_signature}", KEYS.account.public, NOW_S)
    assert read is JwtRefusal.WRONG_SIGNATURE


@given(st.data())
def test_no_changed_jwt_is_believed(data: st.DataObject) -> None:
    token = user_jwt()
    # The last character of each part may carry bits that mean nothing.
    last_ones = {index - 1 for index in (*find_all(token, "."), len(token))}
    index = data.draw(st.sampled_from(sorted(set(range(len(token))) - last_ones)))
    other = data.draw(st.characters().filter(lambda character: character != token[index]))
    read = verify_user_jwt(token[:index] + other + token[index + 1 :], KEYS.account.public, NOW_S)
    assert isinstance(read, JwtRefusal)


def find_all(text: str, character: str) -> list[int]:
    return [index for index, found in enumerate(text) if found == character]


@given(st.text() | st.lists(st.text(), min_size=3, max_size=3).map(".".join))
def test_any_text_is_refused(text: str) -> None:
    assert isinstance(verify_user_jwt(text, KEYS.account.public, NOW_S), JwtRefusal)


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c.d", "a.b.ü", "a" * 20_000 + ".b.c"])
def test_what_has_no_three_parts_is_malformed(text: str) -> None:
    assert verify_user_jwt(text, KEYS.account.public, NOW_S) is JwtRefusal.MALFORMED


def test_a_signed_text_with_another_header_is_refused() -> None:
    header = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').decode().rstrip("=")
    text = f"{header}.{user_jwt().split('.')[1]}"
    signature = base64.urlsafe_b64encode(KEYS.account.sign(text.encode())).decode().rstrip("=")
    read = verify_user_jwt(f"{text}.{signature}", KEYS.account.public, NOW_S)
    assert read is JwtRefusal.MALFORMED


def test_jwts_of_the_operator_are_no_user_jwts() -> None:
    for token in (KEYS.account_jwt(NOW_S), KEYS.operator_jwt(NOW_S)):
        read = verify_user_jwt(token, KEYS.account.public, NOW_S)
        assert read is JwtRefusal.WRONG_SIGNATURE


def test_only_the_key_of_a_user_gets_a_user_jwt() -> None:
    with pytest.raises(KeyInvalid):
        KEYS.user_jwt(KEYS.account.public, "car", [], [], ttl_s=60, now_s=NOW_S)
