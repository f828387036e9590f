"""The log in a folder."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apl_guard.audit import disk, locks
from apl_guard.audit.checkpoint import LOG_FILE, Identity
from apl_guard.audit.digest_keys import DigestKeys
from apl_guard.audit.folder import KEYS, LOCK, open_or_create
from apl_guard.audit.sealed_writer import LogOptions, SealedWriter, leave_all
from apl_guard.audit.witness import Witness
from apl_guard.errors import AplGuardError, AuditUnavailable

__all__ = ["DurableLog", "LogOptions"]

_log = logging.getLogger("apl_guard")


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
        disk.check_system()
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
        """The key of the digests that is in use now; another process may exchange it at any moment.

        Raises:
            AuditUnavailable: It is missing or damaged.
        """
        return self._digest_keys.in_use

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

    def refuse(self, event: str, decision: str | None, *, closes: bool = True) -> None:
        """Say in the next record that this one is missing.

        Args:
            event: What happened.
            decision: The decision that it is about.
            closes: Whether no other record of this decision follows.
        """
        self._core.writer.refuse(event, decision, closes=closes)

    def seal(self) -> None:
        """Make a checkpoint now.

        Raises:
            AuditUnavailable: It is not on disk, or not at every witness.
        """
        self._core.seal()

    def close(self) -> None:
        """Write the last record and the last checkpoint. Closing twice is fine."""
        self._finalizer.detach()
        self._core.close()

    def __enter__(self) -> DurableLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def leave(self) -> None:
        """In a child of a fork: what belongs to the parent is left to it; the next record opens a row of its own."""
        self._core.leave()
        self._finalizer.detach()
        self._reopening = threading.Lock()

    def _reopen(self) -> SealedWriter:
        with self._reopening:
            if self._core.is_left:
                self._open()
            return self._core

    def _open(self) -> None:
        try:
            disk.make_folder(self._folder)
            if (self._folder / LOG_FILE).exists():
                disk.check_owner(self._folder / LOG_FILE)
            disk.check_disk(self._folder)
            with locks.lock(self._folder / LOCK):
                self._identity = open_or_create(self._folder, self._keys, self._options.epochs)
                self._digest_keys = DigestKeys(self._keys)
                _ = self._digest_keys.in_use  # so that what is wrong with it shows at the start
            witnesses = [Witness(witness, self._folder, self._identity) for witness in self._witnesses]
            for witness in witnesses:
                witness.compare()  # takes long where the log is old; meanwhile, others have to be able to seal
            with locks.lock(self._folder / LOCK):
                for witness in witnesses:
                    if witness.is_new:
                        _log.warning(
                            "%s: this witness holds nothing of a log that has checkpoints; it receives them now, and "
                            "vouches only for what comes from now on. If it is not new: is its disk mounted?",
                            witness.folder,
                        )
                self._core = SealedWriter(self._folder, self._keys, self._identity, witnesses, self._options)
                self._core.start()
        except (OSError, AplGuardError) as error:
            if isinstance(error, AuditUnavailable):
                raise
            raise AuditUnavailable(
                f"{getattr(error, 'filename', None) or self._folder}: the audit log cannot be used "
                f"({getattr(error, 'strerror', None) or error}), so there are no images"
            ) from error
        self._finalizer = weakref.finalize(self, self._core.let_go)
        self._finalizer.atexit = False  # those that are still open then are closed one by one


_logs: weakref.WeakSet[DurableLog] = weakref.WeakSet()


def _leave_all() -> None:
    leave_all()
    for log in list(_logs):
        log.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
