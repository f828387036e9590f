"""What is in the folder of a log, and how one is begun."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from time import time

from apl_guard.audit import disk, seal_key
from apl_guard.audit.checkpoint import Identity, key_file, log_file
from apl_guard.audit.witness import CHECKPOINTS
from apl_guard.errors import AuditUnavailable, InvalidInput
from apl_guard.storage import sync_folder, write_file

__all__ = ["DIGEST_KEY", "KEYS", "LOCK", "SEGMENTS", "find_segments", "open_or_create"]

SEGMENTS = "segments"
KEYS = "keys"
DIGEST_KEY = "digest.key"
LOCK = ".lock"


def find_segments(folder: Path) -> Path:
    """The folder of the segments of a log.

    Raises:
        InvalidInput: The folder holds no log.
    """
    if not (folder / SEGMENTS).is_dir():
        raise InvalidInput("holds no audit log; expected log.json and a folder of segments", where=folder)
    return folder / SEGMENTS


def open_or_create(folder: Path, keys: Path, epochs: int) -> Identity:
    """The identity of a log, which is begun if there is none. Called with the log's lock held.

    Args:
        folder: The folder of the log.
        keys: The folder of its keys.
        epochs: How many keys a generation of a new log has.

    Raises:
        AuditUnavailable: What is there is damaged.
        OSError: The folder cannot be used.
    """
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
    (keys / seal_key.FILE_NAME).unlink(missing_ok=True)  # of a start that did not come this far
    disk.create_private(keys / DIGEST_KEY, secrets.token_bytes(seal_key.KEY_BYTES))
    public = seal_key.SealKey.create(keys / seal_key.FILE_NAME, int(time()), epochs)
    write_file(folder / key_file(0), b"".join(public))
    identity = Identity(secrets.token_hex(16), seal_key.key_root(public).hex(), epochs)
    write_file(path, identity.to_json())
    sync_folder(folder)
    return identity
