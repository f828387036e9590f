"""The list of prefixes that must not be used any more, `revoked.json` at the top of a registry."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apl_guard.errors import InvalidInput, PrefixInvalid, RegistryUnavailable, StorageFailed
from apl_guard.prefix.layout import REVOKED_NAME
from apl_guard.prefix.tensorfile import parse_json, printable, read_file
from apl_guard.registry.writing import only_writer
from apl_guard.storage import write_file

__all__ = ["Revocation", "RevokedFile", "as_file", "parse_revoked", "read_revoked", "revoke"]

MAX_REVOKED_BYTES = 1 << 20


class Revocation(BaseModel):
    """One prefix that must not be used, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
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
    try:
        os.lstat(os.path.join(root, REVOKED_NAME))  # on each call of a guard, so no more than one question
    except FileNotFoundError:
        return _EMPTY
    except OSError as error:
        raise RegistryUnavailable(
            f"{root}: cannot be looked into ({error.strerror}), so nobody knows which prefixes were revoked"
        ) from error
    path = root / REVOKED_NAME
    try:
        return parse_revoked(read_file(path, limit=MAX_REVOKED_BYTES, follow_links=False), path)
    except PrefixInvalid as error:
        raise RegistryUnavailable(f"{error}; without the list nobody knows which prefixes were revoked") from error


def parse_revoked(content: bytes, where: Path) -> RevokedFile:
    """Read the list from the bytes of its file.

    Raises:
        PrefixInvalid: It is damaged.
    """
    try:
        return RevokedFile.model_validate(parse_json(content, "list of revoked prefixes", where))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "revoked"
        raise PrefixInvalid(f"field '{printable(field)}': {first['msg']}", where=where) from error


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
    try:
        added = Revocation(digest=digest, reason=reason, when=datetime.now(UTC))
    except ValidationError as error:
        raise InvalidInput(
            "expected a digest of 64 hexadecimal digits and a reason of at most 500 characters", where="digest"
        ) from error
    with only_writer(root):
        known = read_revoked(root)
        if digest in known.reasons:
            return known
        both = RevokedFile(revoked=(*known.revoked, added))
        write_file(root / REVOKED_NAME, as_file(both, root / REVOKED_NAME))
    return both
