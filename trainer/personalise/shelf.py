"""Where what was learned is kept: a folder for each, in the user's cache, named by a digest of all that decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from apl_guard.prefix.layout import cache_root
from apl_guard.trainer.minifaces.whole import whole, writing

_FORMAT: Final = 1
"""Counted up when the same settings begin to give something else."""


def kept(way: str, decided_by: Mapping[str, Any], make: Callable[[Path, Path], None]) -> Path:
    """The folder of what was learned; learned now, if it is not there. While one process learns it, others wait.

    Args:
        way: How people are added.
        decided_by: All that decides the result, as JSON can say it.
        make: Takes a file for checkpoints, which is there still after the process was killed, and a folder that it
            fills. Only a whole folder gets the name by which it is found.

    Raises:
        StorageFailed: The cache cannot be written.

    Example:
        >>> import os, tempfile
        >>> from unittest.mock import patch
        >>> with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, APL_GUARD_CACHE=cache):
        ...     folder = kept("demo", {"steps": 2}, lambda checkpoint, to: to.mkdir())
        ...     folder.is_dir(), folder == kept("demo", {"steps": 2}, lambda checkpoint, to: print("never"))
        (True, True)
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, way, decided_by], sort_keys=True).encode()).hexdigest()
    folder = cache_root() / "models" / f"{way}-{digest[:20]}"
    if folder.is_dir():
        return folder
    checkpoint = folder.with_name(f".{folder.name}.pt")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                with whole(folder) as partial:
                    make(checkpoint, partial)
                checkpoint.unlink(missing_ok=True)
    return folder
