"""Reads lists of names from the files that a policy names."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

from platformdirs import user_config_path

from apl_guard.errors import PolicyInvalid
from apl_guard.policy.sources import Listed, Names
from apl_guard.storage import read_regular
from apl_guard.user_folders import user_folder

__all__ = ["names_folder", "read_names"]

_MAX_BYTES = 512 * 1024 * 1024
_MAX_FIELD = 4000
_COLUMNS = ("name", "aliases", "neutral")
_SEPARATORS = {";": "semicolons", "\t": "tabs"}
"""What spreadsheets write in place of commas in some countries, or on request."""


def names_folder() -> Path:
    """Where the lists of built-in policies are: `APL_GUARD_NAMES`, or a folder among the user's configuration."""
    return user_folder("APL_GUARD_NAMES", user_config_path, "names")


def read_names(names: Names, folder: Path) -> Names:
    """Read the file of a list.

    Args:
        names: A list that names a file.
        folder: Where the file is. It must not lead out of there.

    Raises:
        PolicyInvalid: The file is missing, outside of the folder, no such CSV, or not the one the policy wants.
    """
    path = folder / (names.file or "")
    content = _read(path, folder)
    sha256 = hashlib.sha256(content).hexdigest()
    if names.sha256 not in (None, sha256):
        raise PolicyInvalid(f"found sha256 {sha256}; the policy wants {names.sha256}", where=path)
    try:
        return names.holding(_parse(content, names), sha256)
    except UnicodeDecodeError:
        raise PolicyInvalid(
            "not UTF-8; expected a CSV file in UTF-8, which spreadsheets offer by that name", where=path
        ) from None
    except csv.Error as error:
        raise PolicyInvalid(f"not CSV: {error}", where=path) from None
    except ValueError as error:
        raise PolicyInvalid(str(error), where=path) from None


def _read(path: Path, folder: Path) -> bytes:
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise PolicyInvalid("leads out of the folder of the policy; put the list beside it", where=path)
        return read_regular(path, _MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise PolicyInvalid(
            f"cannot be read ({reason}); expected a CSV file with the columns {', '.join(_COLUMNS)}, of which the "
            "first is needed",
            where=path,
        ) from error


def _parse(content: bytes, names: Names) -> tuple[Listed, ...]:
    text = io.StringIO(content.decode("utf-8-sig"), newline="")
    rows = csv.reader(text, strict=True)
    header = next(rows, [])
    if "name" not in header or len(set(header)) != len(header) or not set(header) <= set(_COLUMNS):
        # What stands there may be the name of somebody.
        found = next((f"found {word}; " for sign, word in _SEPARATORS.items() if sign in "".join(header)), "")
        raise ValueError(
            f"line 1: {found}expected the columns {', '.join(_COLUMNS)}, written so and separated by commas, of which "
            "the first is needed"
        )
    at = {column: header.index(column) for column in header}
    listed = []
    for row in rows:
        if not any(row):
            continue
        if len(row) != len(header) or max(map(len, row)) > _MAX_FIELD:
            raise ValueError(f"line {rows.line_num}: expected {len(header)} fields of at most {_MAX_FIELD} characters")
        aliases = row[at["aliases"]].split(";") if "aliases" in at else ()
        neutral = row[at["neutral"]] if "neutral" in at else ""
        listed.append(Listed(row[at["name"]], tuple(a for a in aliases if a.strip()), neutral or names.neutral))
    if not listed:
        raise ValueError("no names")
    return tuple(listed)
