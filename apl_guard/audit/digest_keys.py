"""The keys of the keyed digests: the one in use, and those before it for as long as they are kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from apl_guard.audit import disk
from apl_guard.audit.checkpoint import LOG_FILE
from apl_guard.audit.folder import DIGEST_KEY, KEYS
from apl_guard.audit.keyed_digests import digest, key_id, normal_digest
from apl_guard.audit.seal_key import KEY_BYTES
from apl_guard.errors import AuditUnavailable, InvalidInput
from apl_guard.storage import sync_folder

__all__ = ["DigestKeys"]


class DigestKeys:
    """The digest keys of one log.

    Each record names the key that made its digests by an id, which tells nothing about the key. The key in use is the
    file `digest.key`; one that was in use before is `digest-ID.key`.

    Args:
        folder: The folder of the log's keys.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     disk.create_private(Path(folder, "digest.key"), bytes(32))
        ...     keys = DigestKeys(Path(folder))
        ...     before = keys.in_use
        ...     keys.exchange(before, bytes(31) + b"1")
        ...     keys.in_use == before, list(keys.kept().values()) == [keys.in_use, before]
        (False, True)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / DIGEST_KEY
        self._read: tuple[tuple[int, int, int] | None, bytes] | None = None

    @classmethod
    def of_log(cls, folder: Path, keys: Path | None = None) -> DigestKeys:
        """The digest keys of a log.

        Args:
            folder: The log.
            keys: Folder of its keys, where it is not inside the log.

        Raises:
            InvalidInput: The folder holds no log.
        """
        if not (folder / LOG_FILE).exists():
            raise InvalidInput("holds no audit log; expected log.json and a folder of segments", where=folder)
        return cls(folder / KEYS if keys is None else keys)

    @property
    def in_use(self) -> bytes:
        """The key that makes digests now. Read again where another process has exchanged it.

        Raises:
            AuditUnavailable: It is missing, damaged, or others can read it.
        """
        try:
            found = os.stat(self._path)
            state = (found.st_mtime_ns, found.st_ino, found.st_size)
        except OSError:
            state = None  # reading it says why
        read = self._read
        if read is None or state is None or read[0] != state:
            self._read = read = (state, _read_key(self._path))
        return read[1]

    def kept(self) -> dict[str, bytes]:
        """Id → key: the one in use, then those before it, the newest first.

        Raises:
            AuditUnavailable: One is damaged, is not what its name says, or others can read it.
        """
        found = {key_id(self.in_use): self.in_use}
        older = sorted(self.folder.glob("digest-*.key"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in older:
            key = _read_key(path)
            if path != self._kept_path(key_id(key)):
                raise AuditUnavailable(f"{path}: is key {key_id(key)}; give it back its own name, or remove it")
            found.setdefault(key_id(key), key)
        return found

    def missing(self, named: Iterable[str]) -> list[str]:
        """The ids of the keys that are not kept: what is under them cannot be looked for.

        Args:
            named: The ids that the records of the log name.

        Raises:
            AuditUnavailable: As for `kept`.
        """
        return sorted(set(named) - self.kept().keys())

    def check_are_of(self, named: Iterable[str]) -> None:
        """Refuse to change anything in a folder of keys that is that of another log.

        Args:
            named: The ids that the records of the log name.

        Raises:
            InvalidInput: Nothing is recorded under any key that is kept.
            AuditUnavailable: As for `kept`.
        """
        if not (known := set(named)) & self.kept().keys():
            raise InvalidInput(
                f"found the digest keys {', '.join(self.kept())}, under which this log has recorded nothing; expected "
                f"{' or '.join(sorted(known)) or 'those of a log that has recorded something'}: name the folder of its "
                "own keys with --keys",
                where=self.folder,
            )

    def digests_of(self, text: str) -> Iterator[str]:
        """What a text may be called in records, under each key that is kept: as it is, and in its canonical form.

        Raises:
            AuditUnavailable: As for `kept`.
        """
        for key in self.kept().values():
            yield digest(key, text)
            yield normal_digest(key, text)

    def exchange(self, before: bytes, after: bytes) -> None:
        """Put another key in use. The one before it is kept. Called with the log's lock held.

        Raises:
            InvalidInput: Another process has exchanged it meanwhile.
            OSError: It is not certain that both are on disk. The one before is in use, or the other is, never none.
        """
        if _read_key(self._path) != before:
            raise InvalidInput("somebody else exchanged the key meanwhile; nothing was changed", where=self._path)
        with contextlib.suppress(FileExistsError):
            # The same file by another name, not a copy, so that destroying it later leaves none.
            os.link(self._path, self._kept_path(key_id(before)))
        new = self.folder / f".{DIGEST_KEY}.{os.getpid()}.{os.urandom(4).hex()}"
        disk.create_private(new, after)
        os.replace(new, self._path)
        sync_folder(self.folder)

    def destroy(self, id: str) -> None:
        """Destroy a key that is no longer in use. What it digested can no longer be looked for.

        Raises:
            InvalidInput: It is in use, or there is none of this id.
            OSError: It cannot be destroyed.
        """
        if id == key_id(self.in_use):
            raise InvalidInput(
                "is in use; put another in use first: apl-guard audit keys rotate LOG", where=f"key {id}"
            )
        if id not in self.kept():
            raise InvalidInput(f"is not kept; there are: {', '.join(self.kept())}", where=f"key {id[:64]!r}")
        disk.destroy(self._kept_path(id))

    def _kept_path(self, id: str) -> Path:
        return self.folder / f"digest-{id}.key"


def _read_key(path: Path) -> bytes:
    key = disk.read_private(path)
    if len(key) != KEY_BYTES:
        raise AuditUnavailable(
            f"{path}: {len(key)} bytes, expected {KEY_BYTES}; put the key back, or start a log in a new folder"
        )
    return key
