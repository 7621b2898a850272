"""A pause is written into the owner's file, and nothing else in it is touched."""

import os
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terafleet.agent.files import replace_file
from terafleet.agent.owner_pause import paused_text, write_pause
from terafleet.agent.owner_policy_files import OWNER_FILE, OwnerPolicyFiles, PolicyRefused
from terafleet.cli.first_steps import first_policy
from terafleet.cli.policy_example import example
from terafleet.core.policy import OwnerPolicy

AT = "2026-11-24 07:00"

FILE = """\
# mine
# since spring

is_paused = false  # my own note
resume_at = ""
charge.soc_percent_min = 60 # high

[[hours.compute]]
from = "18:00"
to = "07:00"
"""


@pytest.mark.parametrize(
    ("text", "fresh"),
    [
        ("", f'is_paused = true\nresume_at = "{AT}"\n'),
        ("[charge]\n", f'is_paused = true\nresume_at = "{AT}"\n[charge]\n'),
        ("# a\n\n[charge]\n", f'# a\n\nis_paused = true\nresume_at = "{AT}"\n[charge]\n'),
        (
            "# of charge\n[charge]\n",
            f'is_paused = true\nresume_at = "{AT}"\n# of charge\n[charge]\n',
        ),
        ("is_paused=false", None),
        (FILE, FILE.replace("false", "true").replace('""', f'"{AT}"')),
        ("'is_paused'\t=\tfalse#x\n", None),
        (
            "is_paused = true\nresume_at = 2026-01-01T07:00:00 # bare\n",
            f'is_paused = true\nresume_at = "{AT}" # bare\n',
        ),
        (
            "resume_at = 2026-01-01 07:00:00Z\nis_paused = true\n",
            f'resume_at = "{AT}"\nis_paused = true\n',
        ),
        (
            "is_paused = false\r\n[charge]\r\n",
            f'is_paused = true\r\nresume_at = "{AT}"\r\n[charge]\r\n',
        ),
        ('resume_at = "none # at all"\n', f'is_paused = true\nresume_at = "{AT}"\n'),
    ],
)
def test_a_pause_is_one_value_and_all_else_stays(text: str, fresh: str | None) -> None:
    found = paused_text(text, True, AT)
    assert found is not None
    wanted = {**tomllib.loads(text), "is_paused": True, "resume_at": AT}
    assert tomllib.loads(found) == wanted
    if fresh is not None:
        assert found == fresh


def test_what_looks_like_the_field_but_is_none_is_left_alone() -> None:
    text = '[places]\nallowed = ["""\nis_paused = false\n"""]\n[other]\nis_paused = false\n'
    found = paused_text(text, True, "")
    assert found == "is_paused = true\n" + text


def test_a_pause_without_an_end_takes_an_old_end_away() -> None:
    assert paused_text(f'resume_at = "{AT}"\n', True, "") == 'is_paused = true\nresume_at = ""\n'
    assert paused_text("", True, "") == "is_paused = true\n"
    assert paused_text("is_paused = true\n", False, "") == "is_paused = false\n"


def test_what_says_so_already_is_not_changed() -> None:
    assert paused_text(FILE, False, "") == FILE


def test_what_cant_be_edited_is_not_guessed_at() -> None:
    assert paused_text('is_paused = """\nx"""\n', True, "") is None
    with pytest.raises(tomllib.TOMLDecodeError):
        paused_text("is_paused = ", True, "")


LINES = st.sampled_from(
    [
        "is_paused = false",
        "is_paused = true # x",
        'resume_at = "2026-01-01T00:00"',
        "# resume_at = 3",
        "",
        "[charge]",
        "needs_plug = true",
        'note = """',
        '"""',
        "x = [",
        "]",
    ]
)


@given(st.lists(LINES, max_size=10).map("\n".join), st.booleans(), st.sampled_from(["", AT]))
def test_any_file_says_afterwards_what_it_said_and_the_pause(
    text: str, is_paused: bool, resume_at: str
) -> None:
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = paused_text(text, is_paused, resume_at)
    if found is None:
        return
    after = tomllib.loads(found)
    assert after.pop("is_paused") is is_paused
    assert after.pop("resume_at", "") == resume_at
    before.pop("is_paused", None)
    before.pop("resume_at", None)
    assert after == before


@pytest.mark.parametrize("text", [first_policy(), example(), FILE])
def test_our_own_files_can_be_paused_and_resumed(tmp_path: Path, text: str) -> None:
    path = tmp_path / OWNER_FILE
    path.write_text(text)
    policy_files = OwnerPolicyFiles(tmp_path, OwnerPolicy())
    policy_files.reload()
    before = policy_files.policy
    assert write_pause(tmp_path, OwnerPolicy(), True, AT) is None
    assert policy_files.reload()
    assert (policy_files.policy.is_paused, policy_files.policy.resume_at) == (True, AT)
    assert write_pause(tmp_path, OwnerPolicy(), False, "") is None
    assert policy_files.reload()
    assert policy_files.policy == before


@pytest.mark.parametrize(
    "text", ["is_paused = 3\n", "[charge]\nsoc_percent_min = 200\n", "[[[\n", "\x00", "a = 1\n"]
)
def test_a_file_with_faults_is_not_written_and_its_faults_are_told(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / OWNER_FILE).write_text(text)
    refused = write_pause(tmp_path, OwnerPolicy(), True, "")
    assert isinstance(refused, PolicyRefused)
    assert refused.faults
    assert (tmp_path / OWNER_FILE).read_text() == text


def test_a_file_that_would_be_too_large_is_not_written(tmp_path: Path) -> None:
    text = "#" * 65_530
    (tmp_path / OWNER_FILE).write_text(text)
    assert isinstance(write_pause(tmp_path, OwnerPolicy(), True, ""), PolicyRefused)
    assert (tmp_path / OWNER_FILE).read_text() == text


def test_a_fresh_file_is_its_owners_alone_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / OWNER_FILE
    assert write_pause(tmp_path, OwnerPolicy(), True, "") is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert write_pause(tmp_path, OwnerPolicy(), False, "") is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_what_root_writes_belongs_to_the_agents_user(tmp_path: Path) -> None:
    root = os.geteuid()
    user = 12_345 if root == 0 else root
    os.chown(tmp_path, user, -1)
    assert write_pause(tmp_path, OwnerPolicy(), True, "") is None
    assert (tmp_path / OWNER_FILE).stat().st_uid == user
    replace_file(tmp_path / OWNER_FILE, b"", keeps_owner=True)
    assert (tmp_path / OWNER_FILE).stat().st_uid == user
    replace_file(tmp_path / OWNER_FILE, b"")
    assert (tmp_path / OWNER_FILE).stat().st_uid == root


def test_a_link_is_written_through(tmp_path: Path) -> None:
    kept = tmp_path / "kept.toml"
    kept.write_text("# elsewhere\n")
    (tmp_path / OWNER_FILE).symlink_to(kept)
    assert write_pause(tmp_path, OwnerPolicy(), True, "") is None
    assert (tmp_path / OWNER_FILE).is_symlink()
    assert kept.read_text() == "is_paused = true\n# elsewhere\n"
