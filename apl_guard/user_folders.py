"""Where the package keeps what belongs to a user: their prefixes, copies and lists of names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from apl_guard.errors import InvalidInput

__all__ = ["user_folder"]


def user_folder(variable: str, find: Callable[..., Path], *inside: str) -> Path:
    """What an environment variable names, or else a folder of this account.

    Args:
        variable: The environment variable.
        find: The function of `platformdirs` for the folder of this account.
        inside: Which folder in it.

    Raises:
        InvalidInput: The variable is not set, and the account has no home, as in containers.
    """
    if given := os.environ.get(variable):
        return Path(given)
    try:
        folder = find("apl-guard", appauthor=False)
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # older versions of platformdirs give ~ back as it is
        raise InvalidInput("is not set, and this account has no home folder; set it to a folder", where=variable)
    return folder.joinpath(*inside)
