"""Which files belong to the project, for tests that read the project itself."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What tools and builds leave behind; everything else that lies in the tree is the project.
LEFT_BEHIND = {"__pycache__", "build", "dist", "node_modules"}
HIDDEN_BUT_OURS = {".ci", ".github", ".gitignore"}


def project_files(folder: Path = ROOT) -> Iterator[Path]:
    """All files of the project below a folder."""
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith(".") and path.name not in HIDDEN_BUT_OURS
        if is_hidden or path.name in LEFT_BEHIND or path.is_symlink():
            continue
        if path.is_dir():
            yield from project_files(path)
        else:
            yield path


def python_files(*folders: str) -> list[Path]:
    """The Python files below folders of the project."""
    return [
        path
        for folder in folders
        if (ROOT / folder).is_dir()
        for path in project_files(ROOT / folder)
        if path.suffix == ".py"
    ]


def text_files() -> Iterator[tuple[str, str]]:
    """Name (from the root) and text of all files of the project that hold text."""
    for path in project_files():
        try:
            yield name_of(path), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


def name_of(path: Path) -> str:
    """The name of a file from the root on."""
    return path.relative_to(ROOT).as_posix()
