"""What the child of a fork has to make new: threads end there, and a lock may be held by one that is no more."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["FreshLock", "mend_after_fork"]


class _Mended(Protocol):
    def after_fork(self) -> None:
        """Runs in the child, before anything else does."""


def mend_after_fork(what: _Mended) -> None:
    """Have `what.after_fork()` called in every child of a fork, for as long as something else holds on to `what`.

    Example:
        >>> class Cache:
        ...     def after_fork(self):
        ...         print("new in the child")
        >>> cache = Cache()
        >>> mend_after_fork(cache)
    """
    _mended.add(what)


_mended: weakref.WeakSet[_Mended] = weakref.WeakSet()


class FreshLock:
    """Has a lock, and in every child of a fork a new one.

    It is not a lock itself, because Ctrl-C may come before the `__enter__` of a class in Python has returned.

    Example:
        >>> mine = FreshLock()
        >>> with mine.lock:
        ...     pass
    """

    def __init__(self) -> None:
        self.after_fork()
        mend_after_fork(self)

    def after_fork(self) -> None:
        """In the child of a fork. A thread of the parent may have held the lock."""
        self.lock = threading.Lock()


def _mend_all() -> None:
    for what in list(_mended):
        what.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mend_all)
