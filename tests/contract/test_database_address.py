"""Addresses of databases: which are taken, and that nothing secret of them is shown."""

from pathlib import Path

import pytest

from terafleet.control.database_address import DatabaseAddressUnusable, database_address
from terafleet.engine.adapters.postgresql import PostgresqlStore
from terafleet.engine.ports import StorageUnavailable
from tests.postgresql_server import PostgresqlDatabase


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/record.db", "/var/lib/record.db"),
        ("sqlite://record.db", "record.db"),
        ("sqlite:///a folder/who@here?.db", "/a folder/who@here?.db"),
    ],
)
def test_a_file_is_taken_as_it_is(url: str, path: str) -> None:
    address = database_address(url)
    assert address.path == Path(path)
    assert address.shown == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://", "postgresql://"),
        ("postgresql:///db", "postgresql:///db"),
        ("postgresql://me@host:5433/db", "postgresql://me@host:5433/db"),
        ("postgresql://me:hush@host/db", "postgresql://me@host/db"),
        ("postgresql://me:hu:sh@host/db", "postgresql://me@host/db"),
        ("postgresql://me:hu%40sh@[::1]:5432/db", "postgresql://me@[::1]:5432/db"),
        ("postgresql://:hush@one:1,two:2/db", "postgresql://one:1,two:2/db"),
        ("postgresql://me@/db?host=/run/db&password=hush", "postgresql://me@/db"),
    ],
)
def test_of_a_database_the_password_is_not_shown(url: str, shown: str) -> None:
    address = database_address(url)
    assert address.path is None
    assert (address.url, address.shown) == (url, shown)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib/record.db",
        "sqlite://",
        "sqlite:/record.db",
        "mysql://me:hush@host/db",
        "postgres://me:hush@host/db",
        "postgresql:hush",
        "postgresql://me:hu/sh@host/db",
        "postgresql://me:hu#sh@host/db",
        "postgresql://me:hu?sh@host/db",
        "postgresql://me:hu@sh@host/db",
        "postgresql://me:hush/db",
        "postgresql://host/db?password=hu@sh",
        "postgresql://host/db#hush",
    ],
)
def test_what_cannot_be_read_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(DatabaseAddressUnusable) as refused:
        database_address(url)
    assert "sh" not in str(refused.value)


@pytest.mark.parametrize("query", ["sslmode=hush", "target_session_attrs=hush", "x=y"])
def test_what_the_library_or_the_server_does_not_take_is_said(
    query: str, postgresql_database: PostgresqlDatabase
) -> None:
    url = postgresql_database.url.replace("postgres@", "postgres:hush-hush@")
    with pytest.raises(StorageUnavailable) as refused:
        PostgresqlStore(f"{url}&{query}")
    assert query.partition("=")[0] in str(refused.value)
    assert "hush-hush" not in str(refused.value)
