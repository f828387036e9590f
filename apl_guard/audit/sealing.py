"""The one who writes in this process, and the thread that seals what was written."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from apl_guard._version import __version__
from apl_guard.audit import disk, seal
from apl_guard.audit.checkpoint import Identity
from apl_guard.audit.checkpoints import EPOCH_SECONDS, CheckpointLog
from apl_guard.audit.folder import LOCK, SEGMENTS
from apl_guard.audit.recover import is_alive, read_remains, writers_in
from apl_guard.audit.segments import SEGMENT_BYTES
from apl_guard.audit.witness import Witness
from apl_guard.audit.writer import Writer
from apl_guard.errors import AplGuardError, AuditUnavailable

__all__ = ["LogOptions", "SealedWriter"]


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


class SealedWriter:
    """The writer of this process, the checkpoints over it, and the thread that makes them.

    It knows nothing of the log that uses it, so that its thread does not keep the log alive.

    Args:
        folder: The folder of the log. Its lock is held.
        keys: The folder of its keys.
        identity: The identity of the log.
        witnesses: Folders that receive the checkpoints.
        options: How often it is sealed.

    Raises:
        OSError: The folder, a witness or a key cannot be used.
        AuditUnavailable: What is in them does not fit together.
    """

    def __init__(
        self, folder: Path, keys: Path, identity: Identity, witnesses: Sequence[Path], options: LogOptions
    ) -> None:
        self.is_left = False
        self._options = options
        self._lock_file = folder / LOCK
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
        except Exception as error:  # whatever it is: the thread must go on trying, and the guard say why it stops
            own = str(error) if isinstance(error, AplGuardError) else type(error).__name__
            self._problem = getattr(error, "strerror", None) or own
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


def _boot_id() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None
