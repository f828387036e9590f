"""Another key for the digests of prompts, and the end of one. Both are recorded; the log stays whole."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from apl_guard.audit import disk, locks
from apl_guard.audit.checkpoint import LOG_FILE
from apl_guard.audit.digest_keys import DigestKeys
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.folder import LOCK
from apl_guard.audit.keyed_digests import key_id
from apl_guard.audit.reading import digest_keys_named
from apl_guard.audit.seal_key import KEY_BYTES

__all__ = ["destroy_digest_key", "rotate"]


def rotate(folder: Path, *, witnesses: Sequence[Path] = (), keys: Path | None = None) -> tuple[str, str]:
    """Put a new digest key in use, also for the guards that run. The one before it is kept.

    Args:
        folder: The log.
        witnesses: Folders that receive the checkpoints.
        keys: Folder of the log's keys, where it is not inside the log.

    Returns:
        The ids of the key before and of the new one.

    Raises:
        InvalidInput: There is no log, or somebody else rotated at the same moment.
        AuditUnavailable: It cannot be recorded, so nothing was changed.
        OSError: It is recorded, and the key could not be exchanged.
    """
    found = DigestKeys.of_log(folder, keys)
    before, after = found.in_use, secrets.token_bytes(KEY_BYTES)
    with DurableLog(folder, witnesses, keys) as log:
        log.append("audit.rotation", {"before": key_id(before), "after": key_id(after)}, decision=None)
        with locks.lock(folder / LOCK):
            found.exchange(before, after)
    return key_id(before), key_id(after)


def destroy_digest_key(folder: Path, id: str, *, witnesses: Sequence[Path] = (), keys: Path | None = None) -> None:
    """Destroy a digest key that is no longer in use. What it digested can no longer be looked for by its text.

    Args:
        folder: The log.
        id: The id of the key, as it stands in records.
        witnesses: Folders that receive the checkpoints.
        keys: Folder of the log's keys, where it is not inside the log.

    Raises:
        InvalidInput: There is no log, no such key, the key is in use, or the keys are those of another log.
        AuditUnavailable: It cannot be recorded. The key is destroyed all the same.
        OSError: The key cannot be destroyed.
    """
    found = DigestKeys.of_log(folder, keys)
    disk.check_system()
    disk.check_owner(folder / LOG_FILE)  # before it is destroyed, which could then not be recorded
    found.check_are_of(digest_keys_named(folder))
    found.destroy(id)
    with DurableLog(folder, witnesses, keys) as log:
        log.append("audit.key_destruction", {"key_id": id}, decision=None)
