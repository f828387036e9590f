"""Writing files so that nothing half-written is ever taken for whole, and reading those that a user names."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from apl_guard.errors import StorageFailed

try:
    import fcntl
except ImportError:  # Windows
    FULL_SYNC: int | None = None
else:
    FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)

__all__ = [
    "FULL_SYNC",
    "alone",
    "check_place",
    "make_folder",
    "read_regular",
    "refuse_device",
    "sync",
    "sync_folder",
    "write_file",
    "write_folder",
]

_LOOK_AGAIN_SECONDS = 0.01


@contextlib.contextmanager
def alone(file: Path, patience: float) -> Iterator[bool]:
    """Keep out all other threads and processes that ask for the same file, for what reads, changes and writes again.

    The system lets them in when a process dies.

    Args:
        file: A file for this alone, which is made. Its folder has to be there.
        patience: Seconds to wait for one who is in there.

    Yields:
        Whether nobody else is in there; False where somebody still was when patience ended.

    Raises:
        OSError: The file cannot be made or opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, alone(Path(folder, "lock"), 0) as first:
        ...     with alone(Path(folder, "lock"), 0) as second:
        ...         first, second
        (True, False)
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=patience, mode=0o666)
    is_alone = True
    try:
        lock.acquire(poll_interval=_LOOK_AGAIN_SECONDS)
    except Timeout:
        is_alone = False
    try:
        yield is_alone
    finally:
        if is_alone:
            lock.release()


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents, where they are not there yet.

    Raises:
        StorageFailed: It cannot be made, such as where a file has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(f"cannot be made ({error.strerror}); choose another place", path=folder) from error
    return folder


def check_place(path: Path) -> None:
    """Make sure that a file can be written there, before hours of work whose result it shall hold. Its folder is made.

    Raises:
        StorageFailed: It cannot.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise StorageFailed("is a folder; expected a place for a file", path=path)
    if not os.access(path.parent, os.W_OK):
        raise StorageFailed("its folder cannot be written; choose another place", path=path)


def read_regular(path: Path, limit: int, *, follow_links: bool = True) -> bytes:
    """Read a file that a user names. Pipes and devices are refused: one could wait or read without end, or take a part
    for the whole.

    Args:
        path: The file.
        limit: The most bytes that it may have.
        follow_links: Whether it may be a symbolic link to one.

    Raises:
        OSError: There is none, it cannot be read, it is a folder, a pipe or a device, or it is larger.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_regular(write_file(Path(folder, "a.txt"), b"whole"), limit=5)
        b'whole'
    """
    besides = getattr(os, "O_NONBLOCK", 0) | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | besides)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return content


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder: all of them, or nothing.

    A new folder is written beside its place and renamed. In a folder that exists, each file is replaced at
    once, in the order given, so the file that makes the folder count comes last.

    Args:
        folder: Where. Parents are made.
        files: Name → content.

    Returns:
        The folder.

    Raises:
        StorageFailed: Something could not be written, such as on a full disk.
    """
    if folder.is_dir():
        for name, content in files.items():
            write_file(folder / name, content)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(folder)
        temporary.mkdir(0o755)  # less what the umask forbids, as for files
        try:
            for name, content in files.items():
                _write_through(temporary / name, content)
            sync_folder(temporary)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(folder.parent)
    except OSError as error:
        raise _storage_failed(error, folder) from error
    return folder


def refuse_device(path: Path) -> None:
    """Refuse a device or a pipe, which a file renamed to its place would replace: /dev/null, say, became a file.

    Raises:
        StorageFailed: It is one.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise StorageFailed("is a device or a pipe; choose a file", path=path)


def write_file(path: Path, content: bytes, *, private: bool = False) -> Path:
    """Write one file: the whole content, or what was there before.

    Args:
        path: The file.
        content: Its content.
        private: Whether it is for its owner alone to read, at every moment.

    Raises:
        StorageFailed: It could not be written, such as on a full disk, or is a device or a pipe.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(Path(folder, "a.txt"), b"whole").read_bytes()
        b'whole'
    """
    refuse_device(path)
    try:
        temporary = _beside(path)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644))
        try:
            _write_through(temporary, content)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise _storage_failed(error, path) from error
    return path


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody can guess."""
    return path.parent / f".{path.name}.{os.urandom(4).hex()}"


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        sync(stream.fileno())


def sync(handle: int) -> None:
    """Return when what was written to an open file or folder is on disk.

    On macOS, fsync leaves it in the memory of the drive, where a power cut loses it, so the drive is told to empty
    that; a network share, which cannot, gets the fsync.

    Raises:
        OSError: It is not on disk.
    """
    if FULL_SYNC is not None:
        try:
            fcntl.fcntl(handle, FULL_SYNC)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL):
                raise
    os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows cannot open folders and needs no such step."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def _storage_failed(error: OSError, path: Path) -> StorageFailed:
    reason = error.strerror or type(error).__name__
    first = {errno.ENOSPC: "free some space or ", errno.ENOENT: "make its folder or "}.get(error.errno or 0, "")
    return StorageFailed(f"could not be written ({reason}); {first}choose another place", path=path)
