"""One writer at a time in the folder of a registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from apl_guard.errors import StorageFailed
from apl_guard.storage import alone, make_folder

__all__ = ["only_writer"]

_LOCK_NAME = ".lock"
_PATIENCE_SECONDS = 60.0


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Keep out whoever else adds a version or a revocation, so that neither of two at once is lost.

    Args:
        root: The registry's folder. It is made where it is not there yet.

    Raises:
        StorageFailed: The folder cannot be written, or another process has been writing there for too long.
    """
    make_folder(root)
    with ExitStack() as stack:
        try:
            is_alone = stack.enter_context(alone(root / _LOCK_NAME, _PATIENCE_SECONDS))
        except OSError as error:
            raise StorageFailed(f"cannot be written ({error.strerror})", path=root) from error
        if not is_alone:
            raise StorageFailed(f"another process has been writing for {_PATIENCE_SECONDS:g} s; try again", path=root)
        yield
