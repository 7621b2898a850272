"""Control groups are found in both versions of the kernel's interface, bound and removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from terafleet.agent.adapters.sandbox.cgroups import PREFIX, Place, make_group, places, sweep

HYBRID = """\
30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/freezer rw,nosuid - cgroup cgroup rw,freezer
34 30 0:30 / /sys/fs/cgroup/my\\040memory rw,nosuid - cgroup cgroup rw,memory
35 25 254:1 / /home rw - ext4 /dev/vda rw
"""
OWN_HYBRID = """\
5:freezer:/
4:memory:/user/me
3:cpu,cpuacct:/
1:name=systemd:/user
0::/user.slice/agent.service
"""


def test_places_of_both_versions_at_once() -> None:
    assert places(HYBRID, OWN_HYBRID) == [
        Place(2, Path("/sys/fs/cgroup/unified/user.slice/agent.service"), ()),
        Place(1, Path("/sys/fs/cgroup/cpu,cpuacct"), ("cpu",)),
        Place(1, Path("/sys/fs/cgroup/my memory/user/me"), ("memory",)),
    ]


@pytest.mark.parametrize(
    ("root", "own", "folder"),
    [
        ("/", "0::/a/b\n", "/sys/fs/cgroup/a/b"),
        ("/a", "0::/a/b\n", "/sys/fs/cgroup/b"),
        # A container sees its own group as the mount, and a path that isn't there.
        ("/docker/1", "0::/elsewhere\n", "/sys/fs/cgroup"),
    ],
)
def test_a_place_is_where_the_mount_shows_it(root: str, own: str, folder: str) -> None:
    mounted = f"31 30 0:27 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert places(mounted, own) == [Place(2, Path(folder), ())]


def test_a_computer_without_groups_has_no_place() -> None:
    assert places("35 25 254:1 / / rw - ext4 /dev/vda rw\n", "0::/\n") == []


def test_only_the_groups_of_agents_that_have_died_are_swept(tmp_path: Path) -> None:
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    mine, before_me = f"{PREFIX}{os.getpid()}-{started}-1", f"{PREFIX}{os.getpid()}-1-1"
    dead, full, foreign = f"{PREFIX}999999999-5-1", f"{PREFIX}999999998-5-1", f"{PREFIX}mine"
    for name in (mine, before_me, dead, full, foreign):
        (tmp_path / name).mkdir()
    (tmp_path / full / "still in use").touch()
    sweep([Place(1, tmp_path, ("pids",))])
    assert {path.name for path in tmp_path.iterdir()} == {mine, full, foreign}


def test_a_group_bounds_what_is_put_into_it() -> None:
    """A program in the group can't start as many others as it likes."""
    group = make_group(1 << 30, is_idle=True)
    if group is None:
        pytest.skip(
            "the kernel lets nobody here make a control group, so none can be seen to bound "
            "anything (where they are found is tested on texts)"
        )
    code = "import os, sys; sys.stdin.read(1); print(open('/proc/self/cgroup').read())"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert group.add(process.pid)
        seen, _ = process.communicate(b"x")
    group.hurry()
    group.remove()
    assert f"{PREFIX}{os.getpid()}-".encode() in seen
    assert not any(Path("/sys/fs/cgroup").glob(f"**/{PREFIX}{os.getpid()}-*"))
