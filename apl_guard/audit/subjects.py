"""Prompts that can be read again, for platforms that opt in, until their key is destroyed.

Each subject, such as an account, has a key of its own in a file of its own. The record holds the text encrypted
with it, so the log proves as before that nothing was changed when the key, and with it the text, is gone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apl_guard.audit import disk
from apl_guard.audit.keyed_digests import digest
from apl_guard.errors import AuditUnavailable

__all__ = ["SubjectKeys"]

FOLDER = "subjects"
_ALGORITHM = "A256GCM"
_MAX_TEXTS = 4
_MAX_CHARACTERS = 2000


@dataclass(frozen=True)
class _SubjectKey:
    id: str
    key: bytes


class SubjectKeys:
    """The keys of the subjects of one log.

    Args:
        keys: The folder of the log's keys.
        digest_key: The key of its digests, from which a subject's file gets its name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keys = SubjectKeys(Path(folder), bytes(32))
        ...     sealed = keys.encrypt("account-7", "decision-1", {"prompt": ["a cat"]})
        ...     keys.decrypt("decision-1", sealed), keys.destroy(keys.name_of("account-7")) == sealed["enc"]["kid"]
        ({'prompt': ['a cat']}, True)
    """

    def __init__(self, keys: Path, digest_key: bytes) -> None:
        self._folder = keys / FOLDER
        self._digest_key = digest_key

    def name_of(self, subject: str) -> str:
        """What a subject is called in records."""
        return digest(self._digest_key, f"subject\0{subject}")

    def encrypt(self, subject: str | None, decision_id: str, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The fields that hold the texts of a decision.

        Args:
            subject: Whose they are. None gives the decision a key of its own.
            decision_id: The decision, to which they are bound.
            texts: The texts. What is too long is left out, which the fields say.

        Raises:
            OSError: A new key cannot be kept.
            AuditUnavailable: The key is damaged, or others can read it.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        name = self.name_of(f"decision\0{decision_id}" if subject is None else subject)
        key = self._key(name)
        kept = {channel: [text[:_MAX_CHARACTERS] for text in found[:_MAX_TEXTS]] for channel, found in texts.items()}
        cut = any(list(found) != kept[channel] for channel, found in texts.items())
        nonce = os.urandom(12)
        encrypted = AESGCM(key.key).encrypt(nonce, json.dumps(kept).encode("ascii"), decision_id.encode())
        enc = {"kid": key.id, "alg": _ALGORITHM, "nonce": nonce.hex(), "ct": base64.b64encode(encrypted).decode()}
        return {"subject": name, "enc": {**enc, "cut": cut}}

    def decrypt(self, decision_id: str, fields: Mapping[str, Any]) -> Any:
        """The texts of a decision; None where their key was destroyed.

        Raises:
            AuditUnavailable: They cannot be decrypted, though their key is there.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        enc = fields["enc"]
        path = self._path(fields["subject"])
        if not path.exists():
            return None
        key = self._read(path)
        if key.id != enc["kid"]:
            return None  # the subject came back after an erasure, under a new key
        try:
            nonce, content = bytes.fromhex(enc["nonce"]), base64.b64decode(enc["ct"], validate=True)
            return json.loads(AESGCM(key.key).decrypt(nonce, content, decision_id.encode()))
        except (InvalidTag, ValueError) as error:
            raise AuditUnavailable(f"{path}: the key does not fit the text of {decision_id}") from error

    def destroy(self, name: str) -> str | None:
        """Destroy the key of a subject; see `disk.destroy` for what that reaches.

        Returns:
            The id of the key, `unknown` where it cannot be read any more; None where there is no key.

        Raises:
            OSError: It cannot be destroyed.
        """
        path = self._path(name)
        if not path.exists():
            return None
        found = "unknown"
        with contextlib.suppress(AuditUnavailable):  # damaged, but its bytes go all the same
            found = self._read(path).id
        disk.destroy(path)
        return found

    def _key(self, name: str) -> _SubjectKey:
        # Read each time: another process may have destroyed it.
        path = self._path(name)
        if not path.exists():
            disk.make_folder(self._folder, 0o700)
            made = {"id": secrets.token_hex(8), "key": secrets.token_hex(32)}
            disk.create_private(path, json.dumps(made).encode())
        return self._read(path)

    def _read(self, path: Path) -> _SubjectKey:
        try:
            fields = json.loads(disk.read_private(path))
            return _SubjectKey(str(fields["id"]), bytes.fromhex(fields["key"]))
        except (ValueError, KeyError, TypeError) as error:
            raise AuditUnavailable(f"{path}: the key of this subject is damaged; put it back or remove it") from error

    def _path(self, name: str) -> Path:
        if len(name) != 64 or not name.isalnum():
            raise AuditUnavailable(f"{name[:64]!r} is no name of a subject")
        return self._folder / f"{name}.key"
