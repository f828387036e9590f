"""The files in which several processes count: their room on the disk, and what a gauge begins with.

prometheus_client writes through a memory map of a file with holes. Where the disk is full when a hole is first written
to, the system kills the process. So the room is taken when such a file is made and whenever it grows: a full disk is
then an error like any other, and nothing of the file has changed.

In the child of a fork, it begins each value anew, with 0. Where the least of all processes counts and 0 means that
something failed, a child would say so that has only been forked.
"""

from __future__ import annotations

import contextlib
import os

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

__all__ = ["prepare_files"]

_FIRST = 1 << 16
"""Bytes of a new file, as prometheus_client makes it."""
_BESIDE_KEY = 64
"""More than an entry takes besides its key."""
_LEAST_COUNTS = "gauge_livemin_"
"""How the name of a file begins whose gauges are served with the least value of all processes."""
_OURS = '["apl_guard_'
"""How the key of a metric of the guard begins."""


def prepare_files() -> None:
    """From now on, every file that this process counts in has its room before it is written to.

    A gauge of the guard of which the least counts begins with 1: until this process says otherwise, the others decide.
    """
    values.MmapedDict = _File  # type: ignore[attr-defined]


class _File(MmapedDict):
    """The values of one process, in a file without holes.

    Raises:
        OSError: There is no room. The file is as it was; a new one is not there.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            _make(filename)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _BESIDE_KEY > self._capacity:
            _take(self._f.fileno(), 2 * self._capacity, self._fname)
        super()._init_value(key)  # type: ignore[no-untyped-call]
        if key.startswith(_OURS) and os.path.basename(self._fname).startswith(_LEAST_COUNTS):
            self.write_value(key, 1.0, 0.0)  # type: ignore[no-untyped-call]


def _make(filename: str) -> None:
    handle = os.open(filename, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        try:
            _take(handle, max(size, _FIRST), filename)
        except OSError:
            if not size:
                with contextlib.suppress(OSError):
                    os.unlink(filename)  # an empty file could not be read by who serves the metrics
            raise
    finally:
        os.close(handle)


def _take(handle: int, size: int, filename: str) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, filename) from None
