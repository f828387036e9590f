"""The one who writes in this process, and the thread that seals what was written."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import platform
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from apl_guard._version import __version__
from apl_guard.audit import locks, seal_key
from apl_guard.audit.checkpoint import Identity
from apl_guard.audit.checkpoint_log import EPOCH_SECONDS, CheckpointLog
from apl_guard.audit.folder import LOCK, SEGMENTS
from apl_guard.audit.recover import read_remains
from apl_guard.audit.segment_files import is_alive, writers_in
from apl_guard.audit.segments import SEGMENT_BYTES
from apl_guard.audit.witness import Witness
from apl_guard.audit.writer import Writer
from apl_guard.errors import AplGuardError, AuditUnavailable

__all__ = ["LogOptions", "SealedWriter", "leave_all"]

_log = logging.getLogger("apl_guard")


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
    epochs: int = seal_key.EPOCHS
    """Keys of one generation, chosen when the log is made."""
    segment_bytes: int = SEGMENT_BYTES


class SealedWriter:
    """The writer of this process, the checkpoints over it, and the thread that makes them.

    It knows nothing of the log that uses it, so that its thread does not keep the log alive.

    Args:
        folder: The folder of the log. Its lock is held.
        keys: The folder of its keys.
        identity: The identity of the log.
        witnesses: Who receives the checkpoints.
        options: How often it is sealed.

    Raises:
        OSError: The folder, a witness or a key cannot be used.
        AuditUnavailable: What is in them does not fit together.
    """

    def __init__(
        self, folder: Path, keys: Path, identity: Identity, witnesses: Sequence[Witness], options: LogOptions
    ) -> None:
        self.is_left = False
        self._options = options
        self._log = identity.log
        self._lock_file = folder / LOCK
        self._sealing = threading.Lock()
        self._ending = threading.Lock()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes the thread, to look at these:
        self._has_some = False  # there is something to seal
        self._has_enough = False  # there is so much that it does not wait longer
        self._is_let_go = False
        self._is_closed = False
        self._new_records = 0
        self._unsealed_since: float | None = None
        self._problem = "no checkpoint was made"
        self._is_failing = False
        self._checkpoints = CheckpointLog(
            folder, keys / seal_key.FILE_NAME, identity, witnesses, epoch_seconds=options.epoch_seconds
        )
        self._checkpoints.refresh()
        self._checkpoints.export()
        self._checkpoints.check_key()
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
        """Start the thread that makes checkpoints.

        Raises:
            AuditUnavailable: There are too many threads already.
        """
        try:
            threading.Thread(target=self._run, name="apl-guard-audit", daemon=True).start()
        except RuntimeError as error:
            self.writer.release()
            raise AuditUnavailable(
                f"the thread that seals the audit log cannot start ({error}), so there are no images"
            ) from error
        _writing.add(self)
        _close_with_process()

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

    def let_go(self) -> None:
        """Have the thread close it soon.

        The garbage collector calls this in the middle of whatever a thread is doing, holding whatever lock. So
        nothing is written here, and nothing waited for.
        """
        self._is_let_go = True
        self._bell.put(None)

    def close(self) -> None:
        """The last record and the last checkpoint. Who comes second waits for the first."""
        if self.is_left:
            return
        with self._ending:
            if self._is_closed:
                return
            self.writer.close()
            with contextlib.suppress(AuditUnavailable):  # another process makes up for it
                self._seal(closed=True)
            self.writer.release()
            self._is_closed = True
        _writing.discard(self)
        self._bell.put(None)

    def leave(self) -> None:
        """In a child of a fork. The descriptors are shared with the parent, so its locks stay held there."""
        self.is_left = True
        self.writer.release()
        _writing.discard(self)

    def _committed(self, count: int) -> None:
        self._new_records += count
        if self._unsealed_since is None:
            self._unsealed_since = monotonic()
        if not self._has_some:
            self._has_some = True
            self._bell.put(None)
        if self._new_records >= self._options.checkpoint_records and not self._has_enough:
            self._has_enough = True
            self._bell.put(None)

    def _run(self) -> None:
        while not self._is_closed:
            self._wait(lambda: self._has_some, self._options.heartbeat_seconds)
            self._wait(lambda: self._has_enough, self._options.checkpoint_seconds)
            if self._is_closed:
                return
            if self._is_let_go:
                self.close()
                return
            try:
                self._seal(closed=False)
            except AuditUnavailable:
                # Tried again; `check_exposure` stops the guard before the exposure grows too long.
                self._has_some, self._has_enough = True, False

    def _wait(self, is_so: Callable[[], bool], seconds: float) -> None:
        end = monotonic() + seconds
        while not (is_so() or self._is_let_go or self._is_closed) and (left := end - monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=left)

    def _seal(self, *, closed: bool) -> None:
        try:
            with self._sealing, locks.lock(self._lock_file):
                self._has_some = self._has_enough = False
                self._new_records = 0
                began = monotonic()
                try:
                    self._checkpoints.add(self.writer.id, self.writer.durable, closed=closed)
                except BaseException:
                    if self._unsealed_since is None:
                        self._unsealed_since = began
                    self._has_some = True  # the thread tries again, also where no record comes
                    self._bell.put(None)
                    raise
                # Not before: while one attempt after the other fails slowly, nothing is sealed either.
                self._unsealed_since = None
                if self._new_records:  # they came meanwhile
                    self._unsealed_since = began
        except Exception as error:  # whatever it is: the thread must go on trying, and the guard say why it stops
            own = str(error) if isinstance(error, AplGuardError) else type(error).__name__
            reason, place = getattr(error, "strerror", None) or own, getattr(error, "filename", None)
            self._problem = f"{place}: {reason}" if place else reason
            self._say(failing=True)
            raise AuditUnavailable(f"no checkpoint could be made: {self._problem}") from error
        self._say(failing=False)

    def _say(self, *, failing: bool) -> None:
        """Once where it begins, while there are images still, and once where it ends."""
        was_failing, self._is_failing = self._is_failing, failing
        with contextlib.suppress(Exception):  # what the platform put into its logging must not end the thread
            if failing and not was_failing:
                _log.error(
                    "no checkpoint of the audit log can be made (%s); after %g seconds there are no images",
                    self._problem,
                    self._options.max_exposure_seconds,
                )
            elif was_failing and not failing:
                _log.warning("checkpoints of the audit log are made again")

    def _recover(self, segments: Path) -> None:
        """Record and seal what dead processes left."""
        for writer, numbers in writers_in(segments).items():
            if writer == self.writer.id or writer in self._checkpoints.closed or is_alive(segments, writer, numbers):
                continue
            remains = read_remains(segments, writer, numbers)
            if remains.log not in (None, self._log):
                continue  # somebody put it there, which `verify` says
            self.writer.append("audit.recovery", remains.fields())
            if remains.tree.size >= self._checkpoints.sealed.get(writer, 0):
                self._checkpoints.add(writer, remains.tree, closed=True)


def _boot_id() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


# The thread of each ends with the interpreter, whether or not it has come to close what was let go of.
_writing: set[SealedWriter] = set()


def _close_all() -> None:
    for writer in list(_writing):
        writer.close()


@atexit.register
def _close_at_exit() -> None:
    if _finalizers() is None:
        _close_all()


def _close_with_process() -> None:
    """In a process that `multiprocessing` started, after the finalizers of the program, which may still write."""
    finalizers = _finalizers()
    if finalizers is not None:
        finalizers.Finalize(None, _close_all, exitpriority=-1)


def _finalizers() -> Any | None:
    """The module that ends a process that `multiprocessing` started. `atexit` does not run there, or from Python 3.13
    on it runs before what the program has left to that module."""
    process, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    return util if process is not None and process.parent_process() is not None else None


def leave_all() -> None:
    """In a child of a fork: all of them, even those that nobody has a hold of any more."""
    for writer in list(_writing):
        writer.leave()
