"""The few things that the log asks of the operating system, each checked for its result."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from apl_guard.audit import locks
from apl_guard.errors import AuditUnavailable
from apl_guard.storage import FULL_SYNC, sync_folder
from apl_guard.storage import sync as _sync_all

__all__ = [
    "append_through",
    "check_disk",
    "check_owner",
    "check_system",
    "create_private",
    "cut_off",
    "destroy",
    "make_folder",
    "network_file_system",
    "read_private",
    "sync",
    "unavailable",
    "write_all",
]

# macOS has no fdatasync; where there is one it spares the writing of times.
sync = getattr(os, "fdatasync", _sync_all)
_AS_IT_IS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and its parents, where they are not there yet, and return when their names are on disk.

    What is synced in a folder whose own name a power cut takes is lost with it.

    Raises:
        OSError: It cannot be made.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode, exist_ok=True)
    sync_folder(path.parent)


def write_all(handle: int, content: bytes) -> None:
    """Write all of it, or raise.

    Raises:
        OSError: A part was not written.
    """
    view = memoryview(content)
    while view:
        written = os.write(handle, view)
        if written <= 0:
            raise OSError(5, "nothing was written")
        view = view[written:]


def append_through(path: Path, content: bytes) -> None:
    """Append to a file, and return when it is on disk.

    A witness may be in other hands, so no link is followed, and no pipe is waited for.

    Raises:
        OSError: It is not on disk; a part of it may be. It names the file.
    """
    is_new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _AS_IT_IS, 0o640)
    try:
        write_all(handle, content)
        sync(handle)
    except OSError as error:
        error.filename = str(path)  # which the system does not say of a file that is open
        raise
    finally:
        os.close(handle)
    if is_new:
        sync_folder(path.parent)


def cut_off(path: Path, length: int) -> None:
    """Leave only the first bytes of a file. No link is followed, as in `append_through`.

    Raises:
        OSError: It cannot be done.
    """
    handle = os.open(path, os.O_WRONLY | _AS_IT_IS)
    try:
        os.ftruncate(handle, length)
    finally:
        os.close(handle)


def create_private(path: Path, content: bytes) -> None:
    """Make a file that only its owner can read, whole or not at all. One that exists stays as it is.

    Raises:
        OSError: It cannot be made.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            write_all(handle, content)
            _sync_all(handle)
        finally:
            os.close(handle)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename, does not replace what another process made meanwhile
    finally:
        os.unlink(temporary)
    sync_folder(path.parent)


def destroy(path: Path) -> None:
    """Overwrite a key where it stands, then remove it.

    Copies in backups are out of reach. File systems that copy on write and flash memory may keep what was
    overwritten for a while.

    Raises:
        OSError: It cannot be destroyed.
    """
    handle = os.open(path, os.O_WRONLY)
    try:
        write_all(handle, bytes(os.fstat(handle).st_size))
        _sync_all(handle)
    finally:
        os.close(handle)
    path.unlink()
    sync_folder(path.parent)


def read_private(path: Path) -> bytes:
    """Read a key.

    Raises:
        AuditUnavailable: It is missing, or others can read it too.
    """
    try:
        if os.name != "nt" and path.stat().st_mode & 0o077:
            raise AuditUnavailable(f"{path}: others can read the key; make it private with: chmod 600 {path}")
        return path.read_bytes()
    except PermissionError as error:
        raise AuditUnavailable(
            f"{path}: this account may not read the key ({error.strerror}); run this as the account that owns the log"
        ) from error
    except OSError as error:
        raise AuditUnavailable(
            f"{path}: the key cannot be read ({error.strerror}); put it back from where its backup is, name the "
            "folder where it is (keys=, --keys), or start a log in a new folder"
        ) from error


def check_system() -> None:
    """Refuse to write to a log in a folder where the system lacks what that needs, before anything else is changed.

    Raises:
        AuditUnavailable: There are no file locks of POSIX, as on Windows.
    """
    if not locks.HAS_LOCKS:
        raise AuditUnavailable(
            "a log in a folder needs a system with file locks of POSIX; log to your platform instead: "
            "audit=AuditLog(logger=…)"
        )


def check_disk(folder: Path) -> None:
    """Refuse a folder where records that were acknowledged may not outlast a power cut.

    Raises:
        AuditUnavailable: It is on a network file system, or on macOS on one that cannot empty the memory of its drive.
        OSError: The folder cannot be opened.
    """
    if kind := network_file_system(folder):
        raise AuditUnavailable(
            f"{folder} is on {kind}, whose locks and syncs do not keep their word; put the log on a "
            "local disk and the witness there"
        )
    if FULL_SYNC is None:
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.fcntl(handle, FULL_SYNC)
    except OSError as error:
        raise AuditUnavailable(
            f"{folder} is on a file system that cannot empty the memory of its drive ({error.strerror}), so a power "
            "cut could lose records; put the log on a local disk and the witness there"
        ) from error
    finally:
        os.close(handle)


def check_owner(path: Path) -> None:
    """Refuse to write into what belongs to another account, which could not read what is written.

    Only an account that may do everything comes this far; it would lock out the guards that run.

    Args:
        path: A file that the owner made.

    Raises:
        AuditUnavailable: Another account owns it.
        OSError: It is not there.
    """
    if os.name == "nt" or (owner := path.stat().st_uid) == os.geteuid():
        return
    raise AuditUnavailable(
        f"{path}: belongs to account {_account(owner)}, and this runs as {_account(os.geteuid())}; run it as the "
        "account that owns the log, or give the whole folder to another: chown -R"
    )


def _account(id: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(id).pw_name
    except KeyError:
        return str(id)


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The kind of network file system that a path is on; None for a local one, and where nobody can tell.

    Args:
        path: An existing path.
        mounts: What stands in `/proc/self/mountinfo`. None reads it.
    """
    try:
        mounts = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()) if mounts is None else mounts
        places = [str(path.resolve()), *map(str, path.resolve().parents)]
    except OSError:
        return None
    kinds: dict[str, str] = {}
    for line in mounts.split("\n"):
        before, dash, after = line.partition(" - ")
        if dash and len(before.split(" ")) > 4 and after:
            # A space in a name is written as \040, others as they are. Of two mounts on one place, the later counts.
            place = _OCTAL.sub(lambda found: chr(int(found[1], 8)), before.split(" ")[4])
            kinds[place] = after.split(" ")[0]
    kind = next((kinds[place] for place in places if place in kinds), "")
    return kind if kind in _NETWORK else None


_OCTAL = re.compile(r"\\([0-7]{3})")
_NETWORK = frozenset(
    [
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.s3fs"),
        *("fuse.rclone", "fuse.glusterfs", "fuse.ceph", "fuse.gcsfuse", "fuse.blobfuse2", "fuse.juicefs"),
    ]
)


def unavailable(error: BaseException, where: str | Path) -> AuditUnavailable:
    """The error for a record that could not be written. It holds no text of the record."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    return AuditUnavailable(f"{where}: the record could not be written ({reason}), so there is no image")
