"""The files of one writer as it writes them: where a row of records goes, and how far it counts."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from time import sleep

from apl_guard.audit import disk, locks
from apl_guard.audit.segment_files import segment_name
from apl_guard.storage import sync_folder

__all__ = ["SEGMENT_BYTES", "Segments"]

SEGMENT_BYTES = 64 << 20
_LAST = 999_999
"""The greatest number that readers know in a name."""
_LOOKS = 100
_LOOK_AGAIN_SECONDS = 0.01
"""Who only asks whether a writer lives holds its lock for a moment."""


class Segments:
    """The segments of one writer, of which at most one is open.

    The lock on the first tells other processes that the writer lives.

    Args:
        folder: Where they are.
        writer: The id of the writer.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self.next_number = 0
        """Of the segment that is begun next."""
        self._folder = folder
        self._writer = writer
        self._handle: int | None = None
        self._number = -1
        """Of the one that is open."""
        self._alive: int | None = None
        self._suspect: set[int] = set()
        self._is_removed = False

    @property
    def is_open(self) -> bool:
        """Whether there is one to append to."""
        return self._handle is not None

    def is_suspect(self, number: int) -> bool:
        """Whether bytes may follow what counts of a segment."""
        return number in self._suspect

    def begin(self, content: bytes) -> int:
        """Begin the next segment, and return its number when its content is on disk.

        Raises:
            OSError: It is not on disk. Where nothing is left of it, the next has its number, for a disk may be full
                all night while calls go on to come in.
        """
        self._check_are_there()
        number = self.next_number
        if number > _LAST:
            raise OSError(errno.EOVERFLOW, "this process has begun a million segments; start the service anew")
        path = self._folder / segment_name(self._writer, number)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        try:
            handle = os.open(path, flags, 0o640)
        except FileExistsError:  # an interruption left it
            self.next_number += 1
            raise
        try:
            _lock_new(handle)
            disk.write_all(handle, content)
            disk.sync(handle)
            sync_folder(self._folder)
        except BaseException:
            os.close(handle)
            try:
                path.unlink()
            except OSError:
                self.next_number += 1
            raise
        self._handle, self._number, self.next_number = handle, number, number + 1
        if self._alive is None:
            self._alive = handle
        return number

    def append(self, content: bytes) -> None:
        """Append to the open segment, and return when it is on disk.

        Raises:
            OSError: It is not on disk for certain.
        """
        assert self._handle is not None
        disk.write_all(self._handle, content)
        disk.sync(self._handle)
        self._check_are_there()

    def end(self) -> None:
        """Append no more to the open segment."""
        if self._handle is not None and self._handle != self._alive:
            with contextlib.suppress(OSError):
                os.close(self._handle)
        self._handle = None

    def give_up(self, counted: int) -> None:
        """The same where nobody knows what is on disk.

        Args:
            counted: The last segment in which records count. One that was begun after it was begun in vain.
        """
        if self._handle is not None:
            if self._number == counted:
                self._suspect.add(counted)
            else:
                with contextlib.suppress(OSError):  # where it stays, readers pass over it
                    (self._folder / segment_name(self._writer, self._number)).unlink()
        self.end()

    def release(self) -> None:
        """Close all files, without writing. Other processes take the writer for dead from now on."""
        for handle in self._handles():
            with contextlib.suppress(OSError):
                os.close(handle)
        self._handle = self._alive = None

    def _handles(self) -> set[int]:
        return {handle for handle in (self._handle, self._alive) if handle is not None}

    def _check_are_there(self) -> None:
        """Refuse to go on where the log was removed: what is written into an open file is then gone with it.

        Raises:
            OSError: It was removed. A log that somebody began in its place since is another one.
        """
        self._is_removed = self._is_removed or any(os.fstat(handle).st_nlink == 0 for handle in self._handles())
        if self._is_removed:
            raise FileNotFoundError(errno.ENOENT, "a segment was removed while the log was in use")


def _lock_new(handle: int) -> None:
    """Take the lock on a new file."""
    for _ in range(_LOOKS):
        if locks.try_lock(handle):
            return
        sleep(_LOOK_AGAIN_SECONDS)
    raise OSError(errno.EAGAIN, "somebody else holds the lock of a new file")
