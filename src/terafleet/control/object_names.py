"""Which names objects may have; strict, because a folder keeps them under these names."""

import re

NAME_CHARACTERS_MAX = 200

FOLDER_PARTS = 2
"""So many parts of a name say in which folder an object lies."""

_PART = r"[a-z0-9_-][a-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")


def is_object_name(name: str) -> bool:
    """Whether it is parts of a-z, 0-9, `_`, `-`, `.` with slashes between; no part begins with `.`.

    So neither `..` nor an absolute path nor a hidden file is a name.
    """
    return len(name) <= NAME_CHARACTERS_MAX and _NAME.fullmatch(name) is not None


def check_folder_name(prefix: str) -> None:
    """Raise ValueError unless objects' names may begin so: two parts at least, then a slash."""
    is_whole = prefix.count("/") >= FOLDER_PARTS and prefix.endswith("/")
    if not is_whole or not is_object_name(prefix[:-1]):
        raise ValueError(f"not a folder of objects: {prefix[:NAME_CHARACTERS_MAX]!r}")


def check_object_name(name: str) -> None:
    """Raise ValueError unless it is the name of an object."""
    if not is_object_name(name):
        raise ValueError(f"not the name of an object: {name[:NAME_CHARACTERS_MAX]!r}")
