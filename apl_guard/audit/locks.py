"""Locks between the processes that write to one log."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

__all__ = ["HAS_LOCKS", "is_locked", "lock", "try_lock"]

PATIENCE_SECONDS = 60.0
"""For how long one process may hold a lock that others wait for."""
_LOOK_AGAIN_SECONDS = 0.002
_LOOK_AGAIN_SECONDS_AT_MOST = 0.05


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes. The operating system lets go of it when a process dies.

    Raises:
        OSError: The file cannot be opened.
        TimeoutError: One other process holds it for too long.
    """
    with _no_fork:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _wait_for(handle)
            with contextlib.suppress(OSError):
                os.utime(handle)  # so that who waits sees that another one has it now
            yield
        finally:
            # Before it is closed: where closing fails and the file stays open, the next to ask would wait for ever.
            # Nothing is called before it, so that no Ctrl-C comes in between.
            try:
                fcntl.flock(handle, fcntl.LOCK_UN)
            except OSError:
                pass
            finally:
                os.close(handle)


def _wait_for(handle: int) -> None:
    """Take the lock on an open file when nobody holds it any more.

    A hundred workers that start together all wait for each other. So what counts is how long the one that holds it has
    had it; and who waits for long looks less often, or the many that look would take the processor from the one.
    """
    taken, began = 0, monotonic()
    end = began + PATIENCE_SECONDS
    while not try_lock(handle):
        now, before = monotonic(), taken
        taken = os.fstat(handle).st_mtime_ns
        if taken != before:
            end = now + PATIENCE_SECONDS
        elif now > end:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"another process has held the lock for {PATIENCE_SECONDS:g} seconds; are its disk and its witness "
                "within reach?",
            )
        pause = min(max(_LOOK_AGAIN_SECONDS, (now - began) / 16), _LOOK_AGAIN_SECONDS_AT_MOST)
        sleep(pause * random.uniform(0.5, 1.5))


# A child of a fork would go on holding the lock of its parent, so no thread forks while one is held.
_no_fork = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_no_fork.release)


def try_lock(handle: int) -> bool:
    """Take the lock on an open file, if nobody holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(handle: int) -> bool:
    """Whether somebody holds the lock on an open file. Others who ask at the same moment do not count."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
