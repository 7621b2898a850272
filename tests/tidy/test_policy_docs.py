"""The page on the owner policy names every field with its default, and its example is a policy."""

import re
import tomllib
from collections.abc import Iterator

import msgspec

from terafleet.core.policy import OwnerPolicy
from terafleet.core.policy_tables import policy_from
from terafleet.core.reasons import Refusal
from tests.tidy.source_files import ROOT
from tests.tidy.test_error_docs import rows

PAGE = (ROOT / "docs" / "mechanisms" / "owner-policy.md").read_text("utf-8")
NOT_OF_THE_RULE = {"settling", "yielding", "agent_starting", "agent_stopping", "reward_too_low"}
"""Reasons that come from the guard, not from policy and readings."""


def fields(value: msgspec.Struct, path: str = "") -> Iterator[tuple[str, str]]:
    """Each field of a policy by its path, with its default as JSON has it; `terms` is one."""
    for field in msgspec.structs.fields(value):
        below = getattr(value, field.name)
        if field.encode_name == "terms":
            yield "terms", "see [wear](wear.md)"
        elif isinstance(below, msgspec.Struct):
            yield from fields(below, f"{path}{field.encode_name}.")
        else:
            text = msgspec.json.format(msgspec.json.encode(below), indent=0).decode()
            yield f"{path}{field.encode_name}", text


def test_every_field_stands_on_the_page_with_its_default() -> None:
    told = [row[:2] for row in rows(PAGE, "Fields")]
    assert told == list(fields(OwnerPolicy()))


def test_every_reason_of_the_rule_stands_on_the_page() -> None:
    told = re.findall(r"^\| (.+?) \|", PAGE.partition("## Which reasons")[2], re.MULTILINE)
    named = [name for cell in told for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted({str(one) for one in Refusal} - NOT_OF_THE_RULE)


def test_the_example_is_a_policy() -> None:
    found = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert found
    policy = policy_from(tomllib.loads(found[1]))
    assert isinstance(policy, OwnerPolicy), policy
    assert policy.charge.departures[0].at == "07:30"
    assert policy.hours.quiet_fan_percent_max == 40
    assert policy.giving_back.finish_ms == 30_000
