"""The tree holds no address of a package index, no path of somebody's machine, no key, no ballast.

The patterns are written so that none of them matches this file.
"""

import re

import pytest

from tests.tidy.source_files import name_of, project_files, text_files

BYTES_MAX = 2_000_000

FORBIDDEN = {
    "the host of a package index": re.compile(
        r"\b(pypi|pythonhosted|npmjs|crates)\.(org|com|io)\b"
        r"|https?://[^\s/\"']*(pypi|registry|artifact|nexus|mirror|wheels)"
        r"|https?://[^\s\"']*/simple\b"
    ),
    "the setting of a package index": re.compile(
        r"\bindex-ur[l]|\bregistry *= *[\"'{]|[\"']resolved[\"'] *: *[\"']http"
    ),
    "a path of somebody's machine": re.compile(
        r"(?<![\w.:/~$}-])/(home|root|Users|work)/[\w.]|[A-Z]:\\Users\\"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE[ ]KEY-----\s+[A-Za-z0-9+/]{20}"),
    "a password in an address": re.compile(r"\b[a-z]+://[^\s/:@\"'{<]+:[^\s/:@\"'{<]+@[\w-]+\.\w"),
}


def secret_faults(text: str) -> list[str]:
    """What a text must not hold, with its line, in words."""
    return [
        f"line {text.count(chr(10), 0, found.start()) + 1}: {what}: {found[0]}"
        for what, pattern in FORBIDDEN.items()
        for found in pattern.finditer(text)
    ]


def test_no_text_gives_anything_away() -> None:
    faults = {name: secret_faults(text) for name, text in text_files()}
    assert {name: found for name, found in faults.items() if found} == {}


def test_no_file_is_ballast() -> None:
    large = [name_of(path) for path in project_files() if path.stat().st_size > BYTES_MAX]
    assert large == []


def test_the_lock_of_uv_is_not_kept() -> None:
    assert [path for path in project_files() if path.name == "uv.lock"] == [], (
        "it carries the address of an index; requirements.lock takes its place"
    )


PLANTED = [
    ("see https://{}.org/project/x", "pypi"),
    ("https://files.{}.org/packages/x", "pythonhosted"),
    ("https://{}.example.com/npm", "registry"),
    ("https://host.example/a/{}/x", "simple"),
    ("{}-url = https://host.example", "index"),
    ("{} = 'https://host.example'", "registry"),
    ('"{}": "https://host.example/x.tgz"', "resolved"),
    ("open('/{}/somebody/x')", "home"),
    ("see /{}/project/x", "work"),
    ("/{}/.cache", "root"),
    ("-----BEGIN PRIVATE {}-----\n" + "MIIBVQIBADANBgkqhkiG9w0B", "KEY"),
    ("{}://me:pass1@db.example.com/x", "postgres"),
]


@pytest.mark.parametrize(("text", "word"), PLANTED, ids=range(len(PLANTED)))
def test_a_planted_fault_is_found(text: str, word: str) -> None:
    assert len(secret_faults("first line\n" + text.format(word))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "https://www.apache.org/licenses/",
        "https://example.com/home/index.html and ./here/x and ~/.cache",
        "PyPI has a simple index of wheels",
        "http://127.0.0.1:8080/v1/models",
        "sqlite:///var/lib/terafleet/record.db",
    ],
)
def test_what_is_harmless_is_no_fault(text: str) -> None:
    assert secret_faults(text) == []
