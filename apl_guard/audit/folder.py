"""What is in the folder of a log, and how one is begun."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from time import time

from apl_guard.audit import disk, seal_key
from apl_guard.audit.checkpoint import LOG_FILE, Identity, key_file
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
    path = folder / LOG_FILE
    if path.exists():
        try:
            return Identity.parse(path.read_bytes())
        except ValueError as error:
            raise AuditUnavailable(f"{path}: {error}; put it back from a witness") from error
    segments = folder / SEGMENTS
    if (folder / CHECKPOINTS).exists() or (segments.is_dir() and os.listdir(segments)):
        raise AuditUnavailable(f"{path} is missing, but there are records; put it back from a witness")
    disk.make_folder(segments)
    disk.make_folder(keys, 0o700)
    public = _make_seal_key(folder, keys / seal_key.FILE_NAME, epochs)
    disk.create_private(keys / DIGEST_KEY, secrets.token_bytes(seal_key.KEY_BYTES))
    identity = Identity(secrets.token_hex(16), seal_key.key_root(public).hex(), epochs)
    write_file(path, identity.to_json())
    sync_folder(folder)
    return identity


def _make_seal_key(folder: Path, path: Path, epochs: int) -> list[bytes]:
    """Make the signing key of a new log; the public key of each epoch of its first generation.

    These are written first, so that a key which was left by a start that failed is told from that of another log.

    Raises:
        AuditUnavailable: There is the key of another log, which could not be verified any more without it.
        OSError: It cannot be made.
    """
    key, public = seal_key.SealKey(path), folder / key_file(0)
    if path.exists():
        (*_, state) = key.read()
        known = public.read_bytes() if public.exists() else b""
        if (state.generation, state.epoch) != (0, 0) or not known.startswith(state.public_key):
            raise _of_another_log(path)
        disk.destroy(path)
    state = seal_key.KeyState(0, 0, int(time()), os.urandom(seal_key.KEY_BYTES))
    keys = seal_key.public_keys(state.seed, epochs)
    write_file(public, b"".join(keys))
    key.create(state)
    if key.read() != [state]:  # two logs are begun at the same moment
        raise _of_another_log(path)
    return keys


def _of_another_log(path: Path) -> AuditUnavailable:
    return AuditUnavailable(
        f"{path}: is the signing key of another log, which stays as it is; give each log a folder of keys of its "
        "own, or remove this one where its log is gone"
    )
