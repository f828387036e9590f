"""The list of prefixes that must not be used any more.

It is `revoked.json` at the top of a registry and, where no lock keeps two who add to it apart, a file for each
revocation in `revoked/`. What is in one of them counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apl_guard.encoder.fingerprint import Sha256
from apl_guard.errors import InvalidInput, PrefixInvalid, RegistryUnavailable, StorageFailed
from apl_guard.prefix.layout import REVOKED_FOLDER, REVOKED_NAME
from apl_guard.prefix.tensorfile import parse_model, read_file
from apl_guard.registry.writing import only_writer
from apl_guard.storage import write_file

__all__ = [
    "MAX_REVOKED_BYTES",
    "Revocation",
    "RevokedFile",
    "as_file",
    "digest_of",
    "file_of",
    "joined",
    "parse_one",
    "parse_revoked",
    "read_revoked",
    "revocation",
    "revoke",
]

MAX_REVOKED_BYTES = 1 << 20


class Revocation(BaseModel):
    """One prefix that must not be used, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Sha256
    reason: Annotated[str, Field(max_length=500)]
    when: datetime


class RevokedFile(BaseModel):
    """The content of `revoked.json`. It only grows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["apl-guard-revoked/1"] = "apl-guard-revoked/1"
    revoked: tuple[Revocation, ...] = ()

    @property
    def reasons(self) -> dict[str, str]:
        """Digest → reason."""
        return {entry.digest: entry.reason for entry in self.revoked}


_EMPTY = RevokedFile()


def read_revoked(root: Path) -> RevokedFile:
    """Read the list of a registry's folder; an empty one where there is none.

    Raises:
        RegistryUnavailable: It is damaged or out of reach, so nobody knows what was revoked.
    """
    listed, one_by_one = _look_for(root)
    found = _EMPTY
    try:
        if listed:
            path = root / REVOKED_NAME
            found = parse_revoked(read_file(path, limit=MAX_REVOKED_BYTES, follow_links=False), path)
    except PrefixInvalid as error:
        raise RegistryUnavailable(f"{error}; without the list nobody knows which prefixes were revoked") from error
    return joined(found, (_read_one(root, digest) for digest in one_by_one)) if one_by_one else found


def _look_for(root: Path) -> tuple[bool, list[str]]:
    """Whether there is a list, and the digests of what is revoked beside it. On each call, so in two questions."""
    try:
        try:
            os.lstat(os.path.join(root, REVOKED_NAME))
            listed = True
        except FileNotFoundError:
            listed = False
        try:
            names = os.listdir(os.path.join(root, REVOKED_FOLDER))
        except FileNotFoundError:
            names = []
    except OSError as error:
        raise RegistryUnavailable(
            f"{root}: cannot be looked into ({error.strerror}), so nobody knows which prefixes were revoked"
        ) from error
    return listed, [digest for name in names if (digest := digest_of(name)) is not None]


def _read_one(root: Path, digest: str) -> Revocation:
    try:
        content = read_file(root / REVOKED_FOLDER / file_of(digest), limit=MAX_REVOKED_BYTES, follow_links=False)
    except PrefixInvalid:
        content = b""
    return parse_one(content, digest)


def digest_of(file: str) -> str | None:
    """The digest that the name of a revocation's own file says, or None where it is no such name."""
    return file[:64] if re.fullmatch(r"[0-9a-f]{64}\.json", file) else None


def file_of(digest: str) -> str:
    """The name of a revocation's own file."""
    return f"{digest}.json"


def parse_one(content: bytes, digest: str) -> Revocation:
    """Read a revocation's own file. Its name is enough to revoke, so damage costs no more than the reason."""
    try:
        found = parse_revoked(content, Path(file_of(digest))).revoked
    except PrefixInvalid:
        found = ()
    same = [entry for entry in found if entry.digest == digest]
    return same[0] if same else Revocation(digest=digest, reason="", when=datetime.fromtimestamp(0, UTC))


def joined(first: RevokedFile, others: Iterable[Revocation]) -> RevokedFile:
    """A list with others added that it lacks."""
    known = first.reasons
    added = {entry.digest: entry for entry in others if entry.digest not in known}
    return RevokedFile(revoked=(*first.revoked, *added.values())) if added else first


def parse_revoked(content: bytes, where: Path) -> RevokedFile:
    """Read the list from the bytes of its file.

    Raises:
        PrefixInvalid: It is damaged.
    """
    return parse_model(RevokedFile, content, "list of revoked prefixes", where)


def as_file(revoked: RevokedFile, where: Path) -> bytes:
    """The bytes of a list's file.

    Raises:
        StorageFailed: There would be more than are read again, and then no guard could use the registry.
    """
    content = revoked.model_dump_json(indent=1).encode()
    if len(content) > MAX_REVOKED_BYTES:
        raise StorageFailed(
            f"would have {len(content)} bytes with one more, expected at most {MAX_REVOKED_BYTES}; give a shorter "
            "reason, or move what is in use to another registry",
            path=where,
        )
    return content


def revocation(digest: str, reason: str) -> Revocation:
    """A new entry for a list.

    Raises:
        InvalidInput: The digest is none, or the reason is too long.
    """
    try:
        return Revocation(digest=digest, reason=reason, when=datetime.now(UTC))
    except ValidationError as error:
        raise InvalidInput(
            "expected a digest of 64 hexadecimal digits and a reason of at most 500 characters", where="digest"
        ) from error


def revoke(root: Path, digest: str, reason: str) -> RevokedFile:
    """Put a prefix on the list.

    Args:
        root: The registry's folder.
        digest: Of the prefix, 64 hexadecimal digits.
        reason: For those who will ask.

    Raises:
        InvalidInput: The digest is none, or the reason is too long.
        RegistryUnavailable: The list is damaged.
        StorageFailed: The list could not be written, or would be too long to be read again.
    """
    added = revocation(digest, reason)
    with only_writer(root):
        both = joined(read_revoked(root), [added])
        write_file(root / REVOKED_NAME, as_file(both, root / REVOKED_NAME))
    return both
