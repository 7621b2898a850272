"""The settings of an agent: a file, the command line, and what is refused by name."""

from pathlib import Path

import pytest

from terafleet.agent.settings import AgentSettings, SettingsRefused, load_settings
from terafleet.core.policy import ChargePolicy, OwnerPolicy, YieldPolicy


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("slots = 0", "slots"),
        ("slot = 1", "slot"),
        ('runtimes = ["torch"]', "runtimes"),
        ('runtimes = ["noop", "onnx"]', "noop"),
        ('gateway_url = "ftp://x"', "gateway_url"),
        ('gateway_url = "http://user:secret@x"', "gateway_url"),
        ("[policy.charge]\nsoc_percent_min = 200", "policy.charge.soc_percent_min"),
        ("[policy]\nis_pausd = true", "is_pausd"),
        ("[vehicle]\nsample_ms = 0", "sample_ms"),
        ("slots = [", "agent.toml"),
    ],
)
def test_wrong_settings_are_refused_with_their_name(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "agent.toml").write_text(text)
    settings = load_settings(tmp_path)
    assert isinstance(settings, SettingsRefused)
    assert fault in " ".join(settings.faults)


def test_the_command_line_overrules_the_file(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('slots = 2\nname = "a"\n[policy.yield]\nsettle_ms = 1\n')
    settings = load_settings(tmp_path, {"slots": 3, "policy": {"charge": {"needs_plug": False}}})
    assert isinstance(settings, AgentSettings)
    assert (settings.slots, settings.name) == (3, "a")
    assert settings.policy == OwnerPolicy(
        charge=ChargePolicy(needs_plug=False), giving_back=YieldPolicy(settle_ms=1)
    )
    assert settings.data_folder.is_absolute()
