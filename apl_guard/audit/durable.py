"""The log in a folder: its writer, its checkpoints, and the thread that makes them."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

from apl_guard._version import __version__
from apl_guard.audit import disk, seal
from apl_guard.audit.checkpoint import Identity, key_file, log_file
from apl_guard.audit.checkpoints import EPOCH_SECONDS, CheckpointLog
from apl_guard.audit.recover import is_alive, read_remains, writers_in
from apl_guard.audit.witness import CHECKPOINTS, Witness
from apl_guard.audit.writer import SEGMENT_BYTES, Writer
from apl_guard.errors import AplGuardError, AuditUnavailable
from apl_guard.storage import sync_folder, write_file

__all__ = ["DIGEST_KEY", "SEGMENTS", "DurableLog", "LogOptions"]

SEGMENTS = "segments"
KEYS = "keys"
DIGEST_KEY = "digest.key"
_LOCK = ".lock"


@dataclass(frozen=True)
class LogOptions:
    """How often the log is sealed, and how long it may stay unsealed."""

    checkpoint_records: int = 256
    """A checkpoint is made when so many records are new,"""
    checkpoint_seconds: float = 1.0
    """or this long after the first of them."""
    heartbeat_seconds: float = 3600.0
    """Without records, a checkpoint says so often that nothing happened."""
    max_exposure_seconds: float = 60.0
    """Where checkpoints cannot be made or exported for longer than this, nothing more is written."""
    epoch_seconds: float = EPOCH_SECONDS
    """How long a signing key is in use before it is destroyed."""
    epochs: int = seal.EPOCHS
    """Keys of one generation, chosen when the log is made."""
    segment_bytes: int = SEGMENT_BYTES


class DurableLog:
    """Writes records into a folder.

    Args:
        folder: The folder. It is made if it is not there.
        witnesses: Folders that receive the checkpoints; best on another machine.
        keys: Folder of the keys. None stands for `keys` in the folder of the log.
        options: How often it is sealed.

    Raises:
        AuditUnavailable: The folder, a witness or the keys cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        witnesses: Sequence[Path] = (),
        keys: Path | None = None,
        options: LogOptions | None = None,
    ) -> None:
        if not disk.HAS_LOCKS:
            raise AuditUnavailable(
                "a log in a folder needs a system with file locks of POSIX; log to your platform instead"
            )
        self._folder = folder.absolute()
        self._witnesses = [witness.absolute() for witness in witnesses]
        self._keys = self._folder / KEYS if keys is None else keys.absolute()
        self._options = options or LogOptions()
        for witness in self._witnesses:
            if witness.resolve().is_relative_to(self._folder.resolve()):
                raise AuditUnavailable(f"{witness}: a witness inside the log falls with it; choose another place")
        self._reopening = threading.Lock()
        self._open()
        _logs.add(self)

    @property
    def digest_key(self) -> bytes:
        """The key of the digests."""
        return self._digest_key

    @property
    def keys(self) -> Path:
        """The folder of its keys."""
        return self._keys

    @property
    def identity(self) -> Identity:
        """The id and the public key of the log."""
        return self._identity

    def append(
        self, event: str, fields: Mapping[str, Any], *, decision: str | None, opens: bool = False, closes: bool = False
    ) -> None:
        """Write a record, and return when it is on disk.

        Raises:
            AuditUnavailable: It is not on disk for certain, or the log could not be sealed for too long.
        """
        core = self._core
        if core.is_left:
            core = self._reopen()
        try:
            core.check_exposure()
        except AuditUnavailable:
            core.writer.refuse(event, decision, closes=closes)
            raise
        core.writer.append(event, fields, decision=decision, opens=opens, closes=closes)

    def seal(self) -> None:
        """Make a checkpoint now.

        Raises:
            AuditUnavailable: It is not on disk, or not at every witness.
        """
        self._core.seal()

    def close(self) -> None:
        """Write the last record and the last checkpoint. Closing twice is fine."""
        self._finalizer()

    def leave(self) -> None:
        """In a child of a fork: what belongs to the parent is let go; the next record opens a row of its own."""
        self._core.leave()
        self._finalizer.detach()
        self._reopening = threading.Lock()

    def _reopen(self) -> _Core:
        with self._reopening:
            if self._core.is_left:
                self._open()
            return self._core

    def _open(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if kind := disk.network_file_system(self._folder):
                raise AuditUnavailable(
                    f"{self._folder} is on {kind}, whose locks and syncs do not keep their word; put the log on a "
                    "local disk and the witness there"
                )
            with disk.lock(self._folder / _LOCK):
                self._identity = _open_or_create(self._folder, self._keys, self._options.epochs)
                self._digest_key = disk.read_private(self._keys / DIGEST_KEY)
                if len(self._digest_key) != seal.KEY_BYTES:
                    raise AuditUnavailable(
                        f"{self._keys / DIGEST_KEY}: {len(self._digest_key)} bytes, expected {seal.KEY_BYTES}; put the "
                        "key back, or start a log in a new folder"
                    )
                self._core = _Core(self._folder, self._keys, self._identity, self._witnesses, self._options)
        except (OSError, AplGuardError) as error:
            if isinstance(error, AuditUnavailable):
                raise
            raise AuditUnavailable(
                f"{getattr(error, 'filename', None) or self._folder}: the audit log cannot be used "
                f"({getattr(error, 'strerror', None) or error}), so there are no images"
            ) from error
        self._core.start()
        self._finalizer = weakref.finalize(self, self._core.close)


class _Core:
    """What the thread needs too. It does not keep the log itself alive."""

    def __init__(
        self, folder: Path, keys: Path, identity: Identity, witnesses: Sequence[Path], options: LogOptions
    ) -> None:
        self.is_left = False
        self._options = options
        self._lock_file = folder / _LOCK
        self._sealing = threading.Lock()
        self._first = threading.Event()  # there is something to seal
        self._enough = threading.Event()  # there is so much that it does not wait longer
        self._is_closing = False
        self._new_records = 0
        self._unsealed_since: float | None = None
        self._problem = "no checkpoint was made"
        copies = [Witness(witness, folder, identity) for witness in witnesses]
        self._checkpoints = CheckpointLog(
            folder, keys / seal.FILE_NAME, identity, copies, epoch_seconds=options.epoch_seconds
        )
        self._checkpoints.refresh()
        self._checkpoints.export()
        about = {
            "log": identity.log,
            "apl_guard_version": __version__,
            "boot_id": _boot_id(),
            "host": platform.node(),
            "pid": os.getpid(),
        }
        self.writer = Writer(folder / SEGMENTS, about, self._committed, options.segment_bytes)
        try:
            self._recover(folder / SEGMENTS)
            self._checkpoints.add(self.writer.id, self.writer.durable)
        except BaseException:
            self.writer.release()
            raise
        self._unsealed_since = None

    def start(self) -> None:
        """Start the thread that makes checkpoints."""
        threading.Thread(target=self._run, name="apl-guard-audit", daemon=True).start()

    def check_exposure(self) -> None:
        """Refuse to go on where nobody could tell later that records were changed.

        Raises:
            AuditUnavailable: The log could not be sealed for too long.
        """
        since = self._unsealed_since
        if since is not None and monotonic() - since > self._options.max_exposure_seconds:
            raise AuditUnavailable(
                f"no checkpoint for {self._options.max_exposure_seconds:g} seconds ({self._problem}), so there are no "
                "images; make the log and its witnesses writable"
            )

    def seal(self) -> None:
        """Make a checkpoint of what is on disk.

        Raises:
            AuditUnavailable: It cannot be made, or not be exported.
        """
        self._seal(closed=False)

    def close(self) -> None:
        """The last record and the last checkpoint."""
        if self.is_left or self._is_closing:
            return
        self._is_closing = True
        self._first.set()
        self._enough.set()
        self.writer.close()
        with contextlib.suppress(AuditUnavailable):  # another process makes up for it
            self._seal(closed=True)
        self.writer.release()

    def leave(self) -> None:
        """In a child of a fork. The descriptors are shared with the parent, so its locks stay held there."""
        self.is_left = True
        self.writer.release()

    def _committed(self, count: int) -> None:
        self._new_records += count
        if self._unsealed_since is None:
            self._unsealed_since = monotonic()
        if not self._first.is_set():
            self._first.set()
        if self._new_records >= self._options.checkpoint_records and not self._enough.is_set():
            self._enough.set()

    def _run(self) -> None:
        while not self._is_closing:
            self._first.wait(self._options.heartbeat_seconds)
            self._enough.wait(self._options.checkpoint_seconds)
            if self._is_closing:
                return
            try:
                self._seal(closed=False)
            except AuditUnavailable:
                # Tried again; `check_exposure` stops the guard before the exposure grows too long.
                self._first.set()
                self._enough.clear()

    def _seal(self, *, closed: bool) -> None:
        try:
            with self._sealing, disk.lock(self._lock_file):
                self._first.clear()
                self._enough.clear()
                self._new_records = 0
                since, self._unsealed_since = self._unsealed_since, None
                try:
                    self._checkpoints.add(self.writer.id, self.writer.durable, closed=closed)
                except BaseException:
                    self._unsealed_since = monotonic() if since is None else since
                    raise
        except (OSError, AplGuardError) as error:
            self._problem = getattr(error, "strerror", None) or str(error)
            raise AuditUnavailable(f"no checkpoint could be made: {self._problem}") from error

    def _recover(self, segments: Path) -> None:
        """Record and seal what dead processes left."""
        for writer, numbers in writers_in(segments).items():
            if writer == self.writer.id or writer in self._checkpoints.closed or is_alive(segments, writer, numbers):
                continue
            remains = read_remains(segments, writer, numbers)
            self.writer.append("audit.recovery", remains.fields())
            if remains.tree.size >= self._checkpoints.sealed.get(writer, 0):
                self._checkpoints.add(writer, remains.tree, closed=True)


def _open_or_create(folder: Path, keys: Path, epochs: int) -> Identity:
    path = folder / log_file()
    if path.exists():
        try:
            return Identity.parse(path.read_bytes())
        except ValueError as error:
            raise AuditUnavailable(f"{path}: {error}; put it back from a witness") from error
    segments = folder / SEGMENTS
    if (folder / CHECKPOINTS).exists() or (segments.is_dir() and os.listdir(segments)):
        raise AuditUnavailable(f"{path} is missing, but there are records; put it back from a witness")
    segments.mkdir(exist_ok=True)
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    (keys / seal.FILE_NAME).unlink(missing_ok=True)  # of a start that did not come this far
    disk.create_private(keys / DIGEST_KEY, secrets.token_bytes(seal.KEY_BYTES))
    public = seal.SealKey.create(keys / seal.FILE_NAME, int(time()), epochs)
    write_file(folder / key_file(0), b"".join(public))
    identity = Identity(secrets.token_hex(16), seal.key_root(public).hex(), epochs)
    write_file(path, identity.to_json())
    sync_folder(folder)
    return identity


def _boot_id() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


_logs: weakref.WeakSet[DurableLog] = weakref.WeakSet()


def _leave_all() -> None:
    for log in list(_logs):
        log.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
