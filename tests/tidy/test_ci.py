"""The build server's command installs what the tests ask for and then runs what people run."""

import os
import re

from tests.tidy.source_files import ROOT, python_files

SCRIPT = ROOT / ".ci" / "run"


def listed_packages(script: str) -> set[str]:
    """The Debian packages that a script's list `packages` names."""
    found = re.search(r"^packages=\(([^)]*)\)", script, re.MULTILINE)
    return set(found[1].split()) if found else set()


def asked_packages(text: str) -> set[str]:
    """The Debian packages that a test file asks for."""
    return set(re.findall(r"debian_package\(\s*\"([a-z0-9.+-]+)\"", text))


def test_every_package_that_a_test_asks_for_is_installed() -> None:
    asked = [asked_packages(path.read_text("utf-8")) for path in python_files("tests")]
    assert set().union(*asked) <= listed_packages(SCRIPT.read_text("utf-8"))


def test_the_script_runs_the_tests_that_people_run() -> None:
    lines = SCRIPT.read_text("utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1] == "exec make test"
    assert os.access(SCRIPT, os.X_OK)


def test_the_readers_read() -> None:
    assert listed_packages("# packages=(no)\npackages=(make bubblewrap)\n") == {
        "make",
        "bubblewrap",
    }
    planted = "@pytest.mark.debian_" + 'package("chromium", program="chromium")'
    assert asked_packages(planted) == {"chromium"}
