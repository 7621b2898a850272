"""The lock files pin and hash every package, name no index, and keep up with pyproject.toml."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tidy.source_files import ROOT
from tests.tidy.test_dependencies import PROJECT, dependencies

LOCKS = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("requirements.lock", "requirements-sumo.lock", "tools/installer.lock")
}


def lock_faults(lock: str) -> list[str]:
    """What makes a lock file no lock, in words."""
    faults = [f"an address: {found}" for found in re.findall(r"\S*://\S*", lock)]
    faults += [f"an option: {line}" for line in lock.splitlines() if line.startswith("-")]
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        pin, *rest = entry.replace("\\\n", "\n").splitlines()
        if "==" not in pin:
            faults.append(f"no version: {pin.strip()}")
        if not any(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64} *", line) for line in rest):
            faults.append(f"no hash: {pin.strip()}")
    return faults


def pins(lock: str) -> dict[str, set[str]]:
    """The versions that a lock file holds, by the name of the package."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", lock, re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def missing(requirements: list[str], lock: str) -> list[str]:
    """The requirements that no version in a lock file meets."""
    held = pins(lock)
    parsed = [Requirement(requirement) for requirement in requirements]
    return [
        str(each)
        for each in parsed
        if not any(each.specifier.contains(v) for v in held.get(canonicalize_name(each.name), ()))
    ]


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_and_hashed(name: str) -> None:
    assert pins(LOCKS[name])
    assert lock_faults(LOCKS[name]) == []


def test_the_lock_keeps_up_with_the_project() -> None:
    held = LOCKS["requirements.lock"] + LOCKS["requirements-sumo.lock"]
    assert missing(dependencies(PROJECT), held) == [], "say: make lock"


def test_an_extra_with_a_lock_of_its_own_has_the_same_versions() -> None:
    usual, sumo = pins(LOCKS["requirements.lock"]), pins(LOCKS["requirements-sumo.lock"])
    assert "libsumo" in sumo.keys() - usual.keys(), "what is large is not everybody's"
    assert {name: sumo[name] for name in sumo.keys() & usual.keys()} == {
        name: usual[name] for name in sumo.keys() & usual.keys()
    }


def test_planted_faults_are_found() -> None:
    checksum = "--hash=sha256:" + "0" * 64
    good = f"one==1.0 \\\n    {checksum} \\\n    {checksum}\n    # via terafleet\n"
    assert lock_faults(good) == []
    assert lock_faults(good + "two==1.0\n    # via one\n") == ["no hash: two==1.0"]
    assert lock_faults(f"two>=1.0 \\\n    {checksum}\n") == ["no version: two>=1.0"]
    assert lock_faults(good + f"--find-links x\ntwo==1 \\\n    {checksum}\n")[0].startswith("an op")
    assert lock_faults(good + "# from https://host.example/\n")[0].startswith("an address")
    assert missing(["One>=1", "one>=2", "two"], good) == ["one>=2", "two"]
