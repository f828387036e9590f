"""Where prefixes lie: names, versions, and the files of a prefix folder."""

from __future__ import annotations

import re
from pathlib import Path

from platformdirs import user_cache_path

from apl_guard.user_folders import user_folder

__all__ = [
    "CARD_NAME",
    "ENTRY_NAME",
    "FILE_NAME",
    "NAME_PATTERN",
    "REVOKED_FOLDER",
    "REVOKED_NAME",
    "SIGNATURE_NAME",
    "cache_root",
    "current_folder",
    "is_name",
    "versions",
]

FILE_NAME = "prefix.safetensors"
CARD_NAME = "card.md"
ENTRY_NAME = "entry.json"
SIGNATURE_NAME = "model.sig"
REVOKED_NAME = "revoked.json"
REVOKED_FOLDER = "revoked"
"""Where each revocation has a file of its own, for places that have no locks."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def is_name(text: str) -> bool:
    """Whether a prefix may be called so. Such a name is a folder's name on every system, and never a path.

    Example:
        >>> is_name("sd15"), is_name("../evil"), is_name("a/b"), is_name("")
        (True, False, False, False)
    """
    return re.fullmatch(NAME_PATTERN[1:-1], text) is not None


def versions(folder: Path) -> dict[int, Path]:
    """Version → folder of it, lowest first, for the folder of one name."""
    children = folder.iterdir() if folder.is_dir() else ()
    found = {int(child.name): child for child in children if _VERSION.fullmatch(child.name)}
    return {number: found[number] for number in sorted(found) if (found[number] / FILE_NAME).is_file()}


def current_folder(folder: Path) -> Path | None:
    """The folder of the highest version of one name, or None where there is none."""
    return max(versions(folder).items(), default=(0, None))[1]


def cache_root() -> Path:
    """Where copies of what lies elsewhere are kept: `APL_GUARD_CACHE`, or the user's cache folder."""
    return user_folder("APL_GUARD_CACHE", user_cache_path)
