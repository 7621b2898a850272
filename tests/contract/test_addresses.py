"""Signed addresses: they open the one thing that they name, for a while, and nothing else."""

import string
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.protocol.addresses import (
    Method,
    address_below,
    address_fault,
    folder_fault,
    sign_address,
)
from terafleet.protocol.fleet_http import object_path
from tests.contract.gateway_app import START_MS, Stage, code_of, serving

SECRET = b"a secret of this test"
NOW_S = START_MS // 1_000

names = st.text(string.ascii_lowercase + string.digits + "-_./", min_size=1, max_size=30)
paths = st.builds(object_path, names, st.integers(0, 2**40), st.integers(-1, 2**40))
methods = st.sampled_from(["GET", "PUT"])
plain = st.text(string.ascii_lowercase + string.digits + "-_.", min_size=1, max_size=30)
folders = st.builds("{}/".format, names).map(object_path)


@given(path=paths, method=methods, valid_s=st.integers(0, 10_000))
def test_an_address_is_good_for_its_method_until_it_expires(
    path: str, method: Method, valid_s: int
) -> None:
    address = sign_address(SECRET, method, path, NOW_S + valid_s)
    other: Method = "PUT" if method == "GET" else "GET"
    assert address_fault(SECRET, method, address, NOW_S) is None
    assert address_fault(SECRET, method, address, NOW_S + valid_s) is None
    assert address_fault(SECRET, method, address, NOW_S + valid_s + 1) == "address_expired"
    assert address_fault(SECRET, other, address, NOW_S) == "signature_wrong"
    assert address_fault(b"another secret", method, address, NOW_S) == "signature_wrong"


@given(path=paths, method=methods, data=st.data())
def test_any_changed_character_is_refused(path: str, method: Method, data: st.DataObject) -> None:
    address = sign_address(SECRET, method, path, NOW_S + 60)
    at = data.draw(st.integers(0, len(address) - 1))
    character = data.draw(st.characters(codec="utf-8").filter(lambda drawn: drawn != address[at]))
    changed = address[:at] + character + address[at + 1 :]
    assert address_fault(SECRET, method, changed, NOW_S) == "signature_wrong"


@given(path=paths, method=methods, data=st.data())
def test_any_inserted_or_missing_character_is_refused(
    path: str, method: Method, data: st.DataObject
) -> None:
    address = sign_address(SECRET, method, path, NOW_S + 60)
    at = data.draw(st.integers(0, len(address)))
    end = data.draw(st.integers(at, len(address)))
    inserted = data.draw(st.text(string.printable, max_size=5))
    changed = address[:at] + inserted + address[end:]
    if changed != address:
        assert address_fault(SECRET, method, changed, NOW_S) == "signature_wrong"


@given(st.text(max_size=80))
def test_what_is_not_signed_is_refused(address: str) -> None:
    assert address_fault(SECRET, "GET", address, NOW_S) == "signature_wrong"


@given(folder=folders, name=plain, method=methods, valid_s=st.integers(0, 10_000))
def test_the_address_of_a_folder_is_good_for_what_lies_in_it(
    folder: str, name: str, method: Method, valid_s: int
) -> None:
    address = address_below(sign_address(SECRET, method, folder, NOW_S + valid_s), name)
    assert address.startswith(f"{folder}{name}?expires=")
    other: Method = "PUT" if method == "GET" else "GET"
    assert folder_fault(SECRET, method, address, NOW_S + valid_s) is None
    assert folder_fault(SECRET, method, address, NOW_S + valid_s + 1) == "address_expired"
    assert folder_fault(SECRET, other, address, NOW_S) == "signature_wrong"
    assert folder_fault(b"another secret", method, address, NOW_S) == "signature_wrong"
    assert address_fault(SECRET, method, address, NOW_S) == "signature_wrong"


@given(folder=folders, name=plain, deeper=names)
def test_it_is_good_for_nothing_deeper_and_for_no_other_folder(
    folder: str, name: str, deeper: str
) -> None:
    address = sign_address(SECRET, "PUT", folder, NOW_S + 60)
    for below in (f"{name}/{deeper}", f"/{name}", f"{name}/", f"../{name}", f"{name}/../{name}"):
        assert folder_fault(SECRET, "PUT", address_below(address, below), NOW_S) is not None
    above, _, _ = folder[:-1].rpartition("/")
    _, _, query = address.partition("?")
    for elsewhere in (above, f"{above}/{name}", f"{folder[:-1]}{name}/{name}", name):
        if elsewhere[: elsewhere.rfind("/") + 1] != folder:
            target = f"{elsewhere}?{query}"
            assert folder_fault(SECRET, "PUT", target, NOW_S) == "signature_wrong"


@given(folder=folders, name=plain, data=st.data())
def test_in_the_address_of_a_folder_only_the_last_name_is_free(
    folder: str, name: str, data: st.DataObject
) -> None:
    address = address_below(sign_address(SECRET, "PUT", folder, NOW_S + 60), name)
    at = data.draw(st.integers(0, len(address) - 1))
    character = data.draw(st.characters(codec="utf-8").filter(lambda drawn: drawn != address[at]))
    changed = address[:at] + character + address[at + 1 :]
    is_free = len(folder) <= at < len(folder) + len(name) and character not in "/?"
    expected = None if is_free else "signature_wrong"
    assert folder_fault(SECRET, "PUT", changed, NOW_S) == expected


@given(st.text(max_size=80))
def test_a_folder_that_is_not_signed_is_refused(address: str) -> None:
    assert folder_fault(SECRET, "GET", address, NOW_S) == "signature_wrong"


def with_more(address: str) -> list[str]:
    """The same address, said a little differently."""
    path, _, query = address.partition("?")
    return [
        f"{address}&",
        f"{address}&offset=1",
        f"{address}#",
        f"{path}?offset=0&{query}",
        f"{path}?{query}&{query}",
        f"{path}?{query.upper()}",
        f"{path}%20?{query}",
        f"{path.replace('/a/', '/%61/')}?{query}",
        f"{path.replace('/a/', '/./a/')}?{query}",
        f"{path.replace('/a/', '//a/')}?{query}",
        f"{path.replace('/a/', '/x/../a/')}?{query}",
        f"{path}/?{query}",
        path,
        f"{path}?",
        f"{path}?expires={NOW_S + 60}",
        f"{path}?signature={'0' * 64}",
        f"{path}?expires=x&signature={'0' * 64}",
    ]


@pytest.mark.parametrize("prefix", ["", "http://other"])
async def test_over_http_the_address_counts_as_it_was_sent(prefix: str) -> None:
    stage = Stage()
    await stage.objects.write("model/a/b", _body())
    address = sign_address(
        stage.context.address_secret, "GET", object_path("model/a/b"), NOW_S + 60
    )
    async with serving(stage) as client:

        async def get(target: str) -> httpx.Response:
            extensions = {"target": (prefix + target).encode()}
            return await client.get("/", extensions=extensions)

        assert (await get(address)).content == b"abc"
        for changed in with_more(address):
            if not changed.endswith("#"):
                response = await get(changed)
                assert code_of(response) in ("signature_wrong", "not_found"), changed
        stage.now_ms += 61_000
        assert code_of(await get(address)) == "address_expired"


async def _body() -> AsyncIterator[bytes]:
    yield b"abc"
