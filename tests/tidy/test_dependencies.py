"""Each dependency says in a sentence why it is there."""

import re
import tomllib

from tests.tidy.source_files import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
REQUIREMENT = re.compile(r"^\s*\"(?P<requirement>[^\"]+)\",?(?P<comment>.*)$")
SENTENCE = re.compile(r"\s*# \S.* .*\.$")


def dependencies(project: str) -> list[str]:
    """The direct dependencies that a pyproject.toml declares, extras included, as written."""
    table = tomllib.loads(project)["project"]
    extras = table.get("optional-dependencies", {}).values()
    return [*table["dependencies"], *(requirement for extra in extras for requirement in extra)]


def unexplained(project: str) -> list[str]:
    """The dependencies that no sentence stands beside."""
    explained: dict[str, bool] = {}
    for line in project.splitlines():
        found = REQUIREMENT.match(line)
        if found:
            is_sentence = SENTENCE.match(found["comment"]) is not None
            requirement = found["requirement"]
            explained[requirement] = explained.get(requirement, True) and is_sentence
    return [each for each in dependencies(project) if not explained.get(each, False)]


def test_each_dependency_has_a_reason() -> None:
    assert len(dependencies(PROJECT)) > 10
    assert unexplained(PROJECT) == []


def test_planted_faults_are_found() -> None:
    planted = """
[project]
dependencies = [
  "msgspec>=0.20", # The only schema system here.
  "left-pad>=1",
  "right-pad>=1", # padding
]
optional-dependencies.one = ["middle-pad>=1"] # A list on one line explains nothing in it.
"""
    assert unexplained(planted) == ["left-pad>=1", "right-pad>=1", "middle-pad>=1"]
