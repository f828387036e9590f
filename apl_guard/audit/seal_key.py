"""The keys that sign checkpoints. Each is in use for a short epoch and then destroyed.

A generation is a row of Ed25519 keys, one for each epoch. Their seeds are derived one from the other, so only
the present one is kept: who takes it can sign for this epoch and later ones, never for an earlier one. The root
of the Merkle tree over all public keys of the first generation is the public key of the log. The last key of a
generation signs the root of the next.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apl_guard.audit import disk, merkle
from apl_guard.errors import AuditUnavailable
from apl_guard.storage import sync

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["EPOCHS", "FILE_NAME", "KEY_BYTES", "KeyState", "SealKey", "key_root", "public_keys", "signature_fits"]

KEY_BYTES = 32
EPOCHS = 1024
FILE_NAME = "seal.key"
_SLOT = 4096
_CONTEXT = b"apl-guard checkpoint 1\n"


@dataclass(frozen=True)
class KeyState:
    """The seed in use, and since when."""

    generation: int
    epoch: int
    started: int
    """Seconds since 1970."""
    seed: bytes

    def following(self, now: int) -> KeyState:
        """The state of the next epoch of this generation."""
        return KeyState(self.generation, self.epoch + 1, now, _derive(self.seed, b"next"))

    def sign(self, content: bytes) -> bytes:
        """Sign with the key of this epoch; 64 bytes."""
        return _signing_key(self.seed).sign(_CONTEXT + content)

    @property
    def public_key(self) -> bytes:
        """The public key of this epoch."""
        return _signing_key(self.seed).public_key().public_bytes_raw()


class SealKey:
    """The file of the seed in use.

    It has two slots, so that a crash in the middle of a change leaves one of them whole. A seed that is over is
    overwritten in place. That destroys it on ordinary disks; file systems that copy on write and flash memory
    may keep an old copy for a while.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_unsure = False
        """Whether a seed was overwritten, and the disk did not say that it is gone."""

    def create(self, state: KeyState) -> None:
        """Make the file. One that exists stays as it is.

        Raises:
            OSError: It cannot be made.
        """
        disk.create_private(self._path, _pack(state) + bytes(_SLOT))

    def read(self) -> list[KeyState]:
        """The states on disk, the older first: one, or two in the middle of a change.

        Raises:
            AuditUnavailable: The file is missing, damaged or readable by others.
        """
        content = disk.read_private(self._path)
        found = [state for at in (0, _SLOT) if (state := _unpack(content[at : at + _SLOT])) is not None]
        if not found:
            raise AuditUnavailable(
                f"{self._path}: {len(content)} bytes hold no key; put it back from where its backup is, or start a "
                "log in a new folder"
            )
        return sorted(found, key=lambda state: (state.generation, state.epoch))

    def write(self, state: KeyState) -> None:
        """Put a state into the slot that is free, or holds the newer of two. The other stays.

        Raises:
            OSError: It is not on disk.
        """
        self._change(state, wipe=False)

    def keep_only(self, state: KeyState) -> None:
        """Make sure that no other state is left.

        Raises:
            OSError: It is not certain that the other seed is gone.
        """
        self._change(state, wipe=True)

    def _change(self, state: KeyState, *, wipe: bool) -> None:
        handle = os.open(self._path, os.O_RDWR)
        try:
            slots = [_unpack(os.pread(handle, _SLOT, at)) for at in (0, _SLOT)]
            if state not in slots:
                ages = [(-1, -1) if slot is None else (slot.generation, slot.epoch) for slot in slots]
                target = ages.index((-1, -1)) if (-1, -1) in ages else ages.index(max(ages))
                _write_slot(handle, target, _pack(state))
            else:
                target = slots.index(state)
            if wipe and (slots[1 - target] is not None or self.is_unsure):
                self.is_unsure = True
                _write_slot(handle, 1 - target, bytes(_SLOT))
                self.is_unsure = False
        finally:
            os.close(handle)


def public_keys(seed: bytes, epochs: int) -> list[bytes]:
    """The public key of each epoch that a first seed leads to."""
    keys = []
    for _ in range(epochs):
        keys.append(_signing_key(seed).public_key().public_bytes_raw())
        seed = _derive(seed, b"next")
    return keys


def key_root(keys: Sequence[bytes]) -> bytes:
    """The root of the tree over the public keys of a generation."""
    return merkle.root_of(merkle.leaf_hash(key) for key in keys)


def signature_fits(key: bytes, content: bytes, signature: bytes) -> bool:
    """Whether a signature over a checkpoint was made with this epoch's key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _CONTEXT + content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signing_key(seed: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_derive(seed, b"sign"))


def _derive(seed: bytes, purpose: bytes) -> bytes:
    # HKDF-Expand (RFC 5869) for one block of output.
    return hmac.digest(seed, b"apl-guard audit " + purpose + b"\x01", "sha256")


def _pack(state: KeyState) -> bytes:
    fields = [state.generation, state.epoch, state.started, state.seed.hex()]
    content = json.dumps(fields).encode()
    return (hashlib.sha256(content).hexdigest().encode() + content).ljust(_SLOT, b" ")


def _unpack(slot: bytes) -> KeyState | None:
    digest, content = slot[:64], slot[64:].rstrip(b" \0")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    generation, epoch, started, seed = json.loads(content)
    return KeyState(generation, epoch, started, bytes.fromhex(seed))


def _write_slot(handle: int, slot: int, content: bytes) -> None:
    if os.pwrite(handle, content, slot * _SLOT) != len(content):
        raise OSError(5, "only a part of the key was written")
    sync(handle)
