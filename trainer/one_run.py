"""One run at a time in a folder: of training, and of whatever else goes on where it was stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apl_guard.errors import InvalidInput
from apl_guard.prefix.layout import cache_root
from apl_guard.storage import alone, make_folder

__all__ = ["only_run"]


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Keep a second run out of a folder, whose checkpoints and files would be those of both.

    The lock is in the user's cache, so that nothing of it is left in the folder; the system lets go of it when the
    process dies.

    Raises:
        InvalidInput: Another run writes into it.
        StorageFailed: The cache cannot be written.
    """
    name = hashlib.sha256(os.fsencode(output.resolve())).hexdigest()[:32]
    with alone(make_folder(cache_root() / "locks") / name, patience=0) as is_alone:
        if not is_alone:
            raise InvalidInput("another run writes into it now; wait for it, or choose another output", where=output)
        yield
