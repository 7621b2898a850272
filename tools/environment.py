"""Makes `.venv` exactly what requirements.lock says, with nothing but Python to begin with.

It runs before anything is installed, so it uses the standard library only, and its syntax stays
readable for older Pythons, which it sends away with a sentence.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "stamp.json"
LOCK = ROOT / "requirements.lock"
EXTRAS_VARIABLE = "TERAFLEET_EXTRAS"
# Extras that few need and that are large have locks of their own; the variable asks for them.
EXTRA_LOCKS = {"sumo": ROOT / "requirements-sumo.lock"}
PROJECT = ROOT / "pyproject.toml"
INSTALLER_LOCK = ROOT / "tools" / "installer.lock"
INSTALLER_FOLDER = ROOT / ".venv-uv"

# The llama.cpp wheel is built for these versions; with another one there is nothing to install.
PYTHON_VERSIONS = ((3, 11), (3, 12), (3, 13))
RUNNING_VERSION = sys.version_info[:2]
UV_VERSION_MIN = (0, 8)
FETCH_TIMEOUT_S = "180"

# What a shell may have set for another environment and must not leak into this one.
FOREIGN_VARIABLES = ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_PYTHON", "UV_SYSTEM_PYTHON", "PYTHONHOME")
# Who has told pip about a mirror or a certificate has told uv about it too.
PIP_SETTINGS = (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_CERT", "SSL_CERT_FILE"))
# The machine's own certificates also vouch for a proxy of its network; those inside uv do not.
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class SetUpFailed(Exception):
    """The environment can't be made; the message says why and what to do."""


def say(text: str) -> None:
    """Tell the person who waits what happens."""
    print("terafleet: " + text, flush=True)


def version_text(version: tuple[int, ...]) -> str:
    """`(3, 11)` as `3.11`."""
    return ".".join(str(number) for number in version[:2])


def runs(program: str) -> bool:
    """Whether a Python starts; the shims of version managers may stand for none."""
    return subprocess.run([program, "-c", ""], capture_output=True).returncode == 0


def fitting_python() -> str | None:
    """The path of a Python on PATH that fits, the newest first, or None."""
    for version in reversed(PYTHON_VERSIONS):
        found = shutil.which(f"python{version_text(version)}")
        if found is not None and runs(found):
            return found
    return None


def use_fitting_python() -> None:
    """Go on in this process with a Python that fits. Raises SetUpFailed if there is none."""
    if RUNNING_VERSION in PYTHON_VERSIONS:
        return
    running = version_text(RUNNING_VERSION)
    found = fitting_python()
    if found is None:
        first, last = version_text(PYTHON_VERSIONS[0]), version_text(PYTHON_VERSIONS[-1])
        raise SetUpFailed(
            f"this is Python {running}, and Python {first} to {last} is needed. "
            "Install one of them, or say where one is: make PYTHON=/path/to/python3.12 …"
        )
    say(f"Python {running} does not fit, going on with {found}")
    # The rule fears a program from outside; this one is a Python and has just run.
    os.execv(found, [found, *sys.argv])  # noqa: S606


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Let one set-up run at a time; a second one waits and then finds the work done."""
    with open(__file__, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(body: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(body).hexdigest()


def project_table() -> dict[str, object]:
    """The `[project]` table of pyproject.toml."""
    import tomllib  # Not there before 3.11, and this module must get as far as saying so.

    table: dict[str, object] = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    return table


def wanted_locks() -> list[Path]:
    """The locks of what is to be installed. Raises SetUpFailed for an extra that has none."""
    names = os.environ.get(EXTRAS_VARIABLE, "").split()
    for name in names:
        if name not in EXTRA_LOCKS:
            known = ", ".join(EXTRA_LOCKS)
            raise SetUpFailed(f"{EXTRAS_VARIABLE} names {name!r}; there is only {known}")
    return [LOCK, *(EXTRA_LOCKS[name] for name in sorted(set(names)))]


def wanted_stamp() -> dict[str, str]:
    """What the environment depends on; equal stamps mean that there is nothing to do."""
    return {
        "root": str(ROOT),
        "python": version_text(RUNNING_VERSION),
        "lock": digest(b"".join(path.read_bytes() for path in wanted_locks())),
        "project": digest(json.dumps(project_table(), sort_keys=True).encode()),
        "set-up": digest(Path(__file__).read_bytes()),
    }


def present_stamp() -> dict[str, str]:
    """What the environment that is there was made for; empty if there is none that runs."""
    if not (ENVIRONMENT / "bin" / "python").exists():
        return {}
    try:
        stamp = json.loads(STAMP.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def tool_environment() -> dict[str, str]:
    """The environment variables for uv and pip."""
    variables = {key: value for key, value in os.environ.items() if key not in FOREIGN_VARIABLES}
    for pip_name, uv_name in PIP_SETTINGS:
        if pip_name in variables:
            variables.setdefault(uv_name, variables[pip_name])
    if CERTIFICATES.exists():
        variables.setdefault("SSL_CERT_FILE", str(CERTIFICATES))
    variables.setdefault("UV_HTTP_TIMEOUT", FETCH_TIMEOUT_S)
    variables.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PIP_ROOT_USER_ACTION="ignore")
    return variables


def run(failure: str, *command: str | Path) -> None:
    """Run a command to its end. Raises SetUpFailed with the sentence `failure` if it fails."""
    result = subprocess.run([str(part) for part in command], cwd=ROOT, env=tool_environment())
    if result.returncode != 0:
        raise SetUpFailed(failure)


def uv_version(program: str | Path) -> tuple[int, ...] | None:
    """The version of a uv, or None where the file is missing or does not run here."""
    try:
        result = subprocess.run([str(program), "--version"], capture_output=True, text=True)
    except OSError:
        return None
    numbers = re.match(r"uv (\d+)\.(\d+)", result.stdout)
    return tuple(int(number) for number in numbers.groups()) if numbers else None


def find_uv() -> str:
    """The path of a uv that is new enough; fetched into a folder of its own if none is there."""
    for program in (shutil.which("uv"), INSTALLER_FOLDER / "bin" / "uv"):
        version = uv_version(program) if program is not None else None
        if version is not None and version >= UV_VERSION_MIN:
            return str(program)
    fetch_uv()
    return str(INSTALLER_FOLDER / "bin" / "uv")


def fetch_uv() -> None:
    """Install uv into a folder that nothing else uses. Raises SetUpFailed."""
    shutil.rmtree(INSTALLER_FOLDER, ignore_errors=True)
    pip = find_pip()
    say("fetching the installer, uv (about 20 MB, once)")
    run(
        "uv could not be fetched. Is there a network, and does pip need to know of a proxy or "
        "mirror? What went wrong stands above; when it is mended, run the same command again.",
        *(*pip, "install", "-qq", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", INSTALLER_LOCK),
        # A folder as target leaves the system's own packages alone (PEP 668).
        *("--upgrade", "--target", INSTALLER_FOLDER),
    )
    (INSTALLER_FOLDER / ".gitignore").write_text("*\n", "utf-8")


def find_pip() -> list[str]:
    """How to call pip: Python's own, or one in a small environment. Raises SetUpFailed."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    # Debian's Python has the module venv, but keeps what puts pip into it in python3-venv.
    if importlib.util.find_spec("ensurepip") is not None:
        command = [sys.executable, "-m", "venv", str(INSTALLER_FOLDER)]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return [str(INSTALLER_FOLDER / "bin" / "python"), "-m", "pip"]
    raise SetUpFailed(
        "this Python has neither pip nor a complete venv, and there is no uv. One of them is "
        "enough. On Debian and Ubuntu: sudo apt-get install python3-venv"
    )


def package_count() -> int:
    """How many packages the locks name."""
    found: set[str] = set()
    for path in wanted_locks():
        found.update(re.findall(r"^[a-z0-9][^=\s]*==", path.read_text("utf-8"), re.MULTILINE))
    return len(found)


def install_packages(uv: str, is_same_place: bool) -> None:
    """Make the environment hold what the lock says, checked by hash. Raises SetUpFailed."""
    if not is_same_place:
        python = Path(sys.executable).resolve()
        say(f"making .venv with Python {version_text(RUNNING_VERSION)} ({python})")
        run(
            "the virtual environment .venv could not be made; what went wrong stands above.",
            *(uv, "venv", "--quiet", "--clear", "--no-project", "--python", python, ENVIRONMENT),
        )
    say(f"installing {package_count()} packages; the first time this fetches some hundred MB")
    run(
        "the packages could not be installed. Is there a network, and room on the disk? What "
        "went wrong stands above. What was fetched is kept: run the same command again.",
        *(uv, "pip", "sync", "--python", ENVIRONMENT, "--require-hashes"),
        *wanted_locks(),
    )


def record_line(name: str, body: bytes) -> str:
    """A line of a wheel's RECORD: name, hash and size."""
    checksum = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
    return f"{name},sha256={checksum},{len(body)}\n"


def write_editable_wheel(folder: Path) -> Path:
    """Write the project as a wheel that points at `src`, as PEP 660 has it, and return its path.

    Building it here needs no build tool, and so nothing that no hash was checked of.
    """
    project = project_table()
    name, version = project["name"], project["version"]
    scripts = project.get("scripts", {})
    assert isinstance(scripts, dict)
    entry_points = "".join(f"{script} = {target}\n" for script, target in scripts.items())
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.pth": f"{ROOT / 'src'}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[console_scripts]\n{entry_points}",
    }
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    write_zip(wheel, files, f"{about}/RECORD")
    return wheel


def write_zip(path: Path, files: Mapping[str, str], record_name: str) -> None:
    """Write text files and a RECORD of them into a zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        record = ""
        for name, text in files.items():
            archive.writestr(name, text)
            record += record_line(name, text.encode())
        archive.writestr(record_name, f"{record}{record_name},,\n")


def install_project(uv: str) -> None:
    """Install this tree itself, so that its sources are used where they lie. Raises SetUpFailed."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = write_editable_wheel(Path(folder))
        run(
            "the project itself could not be installed; what went wrong stands above.",
            *(uv, "pip", "install", "--quiet", "--offline", "--no-cache", "--no-deps"),
            *("--reinstall", "--python", ENVIRONMENT, wheel),
        )


def set_up() -> None:
    """Bring the environment up to date, or find that it is. Raises SetUpFailed."""
    use_fitting_python()
    wanted = wanted_stamp()
    if present_stamp() == wanted:
        return
    with only_one():
        present = present_stamp()
        if present == wanted:
            return
        begun_s = time.monotonic()
        uv = find_uv()
        STAMP.unlink(missing_ok=True)
        is_same_place = all(present.get(key) == wanted[key] for key in ("root", "python"))
        install_packages(uv, is_same_place)
        install_project(uv)
        STAMP.write_text(json.dumps(wanted, indent=1), "utf-8")
        say(f"the environment is ready after {time.monotonic() - begun_s:.0f} s")


def lock(arguments: Sequence[str]) -> None:
    """Resolve the dependencies again and write both lock files. Raises SetUpFailed."""
    use_fitting_python()
    uv = find_uv()
    say("resolving the dependencies")
    resolve = (uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header")
    options = ("--python-version", version_text(PYTHON_VERSIONS[0]), *arguments)
    failure = "the dependencies could not be resolved; what went wrong stands above."
    # Relative names, because uv writes into the file where each package comes from.
    extras = project_table()["optional-dependencies"]
    assert isinstance(extras, dict)
    usual = [f"--extra={name}" for name in extras if name not in EXTRA_LOCKS]
    run(failure, *resolve, *options, *usual, PROJECT.name, "-o", LOCK.name)
    for name, path in EXTRA_LOCKS.items():
        alike = ("--extra", name, "--constraints", LOCK.name)
        run(failure, *resolve, *options, *alike, PROJECT.name, "-o", path.name)
    with tempfile.TemporaryDirectory() as folder:
        wish = Path(folder) / "installer.in"
        wish.write_text(f"uv>={version_text(UV_VERSION_MIN)}\n", "utf-8")
        run(failure, *resolve, *options, "--no-annotate", wish, "-o", INSTALLER_LOCK)
    others = ", ".join(path.name for path in EXTRA_LOCKS.values())
    say(f"{LOCK.name}, {others} and tools/{INSTALLER_LOCK.name} are written")


def main() -> int:
    """Do what the command line asks; 0 if it went well."""
    parser = argparse.ArgumentParser(description="Makes the environment of this project.")
    parser.add_argument("task", nargs="?", choices=["set-up", "lock"], default="set-up")
    task, rest = parser.parse_known_args()
    try:
        if task.task == "lock":
            lock(rest)
        else:
            set_up()
    except SetUpFailed as failure:
        print(f"terafleet: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("terafleet: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
