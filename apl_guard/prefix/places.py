"""Where prefixes are: what a path or a name stands for."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from platformdirs import user_data_path

from apl_guard.errors import PrefixInvalid
from apl_guard.prefix.layout import FILE_NAME, current_folder, is_name
from apl_guard.printable import printable
from apl_guard.user_folders import user_folder

__all__ = ["SHIPPED_NAME", "find_path", "registry_root", "shipped_path", "shipped_world"]

SHIPPED_NAME = "minifaces"


def find_path(path_or_name: str | os.PathLike[str]) -> Path:
    """Find the folder or file that a path or a name stands for.

    Raises:
        PrefixInvalid: It stands for nothing.
    """
    path = Path(path_or_name)
    if os.path.exists(path):  # unlike Path.exists, False for a path that cannot be
        return path
    if str(path_or_name) == SHIPPED_NAME:
        shipped = shipped_path()
        if shipped is not None:
            return shipped
    elif is_name(str(path_or_name)):
        registered = current_folder(registry_root() / path.name)
        if registered is not None:
            return registered
    raise PrefixInvalid(
        "no such folder, and no such name in the registry; `apl-guard prefix list` shows the names",
        where=printable(str(path_or_name)),
    )


def registry_root() -> Path:
    """The folder of registered prefixes: `APL_GUARD_REGISTRY`, or one in the user's data folder."""
    return user_folder("APL_GUARD_REGISTRY", user_data_path, "prefixes")


def shipped_path() -> Path | None:
    """The folder of the prefix that is shipped with the reference world, or None where it is not there."""
    world = shipped_world()
    path = None if world is None else world / "prefix"
    return path if path is not None and (path / FILE_NAME).is_file() else None


def shipped_world() -> Path | None:
    """The folder of the reference world that is shipped, or None where it is not there: model, judges, prefix."""
    spec = importlib.util.find_spec("apl_guard.trainer")  # found, not imported
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root, "minifaces", "weights")
        if path.is_dir():
            return path
    return None
